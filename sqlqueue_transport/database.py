"""Open the SQLite file and run transactions on it: the only room with PRAGMAs and locks.

One `Database` serves one file in one process. It keeps two connections, one to write and one
to read, each behind a mutex, so that a reader never waits for the writer lock. The rules that
keep data safe live here, and each was learned from a loss:

* Every write transaction and every close happens under the writer lock, then BEGIN IMMEDIATE.
* A read transaction never becomes a write transaction: after another process's commit SQLite
  refuses that at once, whatever the timeout (SQLITE_BUSY_SNAPSHOT).
* Locks are taken inside the `try` and given back in nested `finally`s. An exception raised by
  a signal handler between "acquire" and "try" would otherwise leak the lock. See `_acquire` for
  the other half: CPython runs signal handlers after a call and on entering a function, so the
  cleaning up consists of calls of C functions, each in a `finally` of its own.
* A durable commit is WAL at synchronous=NORMAL, then our own fdatasync of the `-wal` file after
  the lock is given up, so that processes share flushes. The flush begins after the COMMIT, the
  descriptor belongs to the log of the connection that committed, and that connection stays open
  until the flush has returned.
* No connection crosses a fork: a child that inherits one shares SQLite's per-process lock table,
  holds no locks, and its commits vanish without an error. See `forking`.
* Cursors never leave a transaction function: a half-read one survives `close()` and keeps the
  file's descriptors.
* Nothing here opens the database file but SQLite: closing any other descriptor of it would drop
  SQLite's locks in this process.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import sqlite3
import sys
import threading
import time
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

from sqlqueue_transport import files, forking
from sqlqueue_transport.errors import (
    Busy,
    CannotOpen,
    DatabaseMissing,
    DiskFault,
    FileReplaced,
    ForeignDatabase,
    InsideTransaction,
    InvalidMessage,
    SchemaChanged,
    SchemaTooNew,
    SqliteTooOld,
    TransportError,
)
from sqlqueue_transport.writer_lock import WriterLock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Result = TypeVar("Result")

# "SQLQ", in the file's header (sqlite.org/pragma.html#pragma_application_id)
APPLICATION_ID = 0x53514C51
SCHEMA_VERSION = 3
MINIMUM_SQLITE = (3, 37, 0)  # STRICT tables
BUSY_TIMEOUT_S = 30.0
# A connection that is not ours may hold SQLite's write lock. We wait for it in slices and give
# the writer lock up in between, so that a foreign program never stops all our processes at once.
FOREIGN_SLICE_S = 1.0
LOOK_AT_PATH_EVERY_S = 1.0


def _packaged(name: str) -> str:
    """Return the text of an SQL file of this package."""
    return resources.files("sqlqueue_transport").joinpath(name).read_text("utf-8")


# Migrations by the version they lead to, each read when it is needed; a new file gets schema.sql at
# once. Each runs in one transaction together with the new user_version, under the writer lock,
# after an online backup.
MIGRATIONS: dict[int, Callable[[], str]] = {
    2: functools.partial(_packaged, "schema-2.sql"),
    3: functools.partial(_packaged, "schema-3.sql"),
}

# SQLite's way of saying that a statement or a value of ours is wrong: never worth another try.
_MISTAKES = (
    sqlite3.IntegrityError,
    sqlite3.ProgrammingError,
    sqlite3.DataError,
    sqlite3.NotSupportedError,
)
# What SQLite and its Python binding raise for a value that a column cannot hold: a wrong type or a
# broken CHECK, a lone surrogate, an integer beyond 64 bits, a value beyond SQLite's limit.
_NOT_STORABLE = (
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    sqlite3.DataError,
    UnicodeEncodeError,
    OverflowError,
)
_TEXT = functools.partial(str, encoding="utf-8", errors="surrogateescape")
_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS})


class Database:
    """Run transactions on one queue file; safe to share between threads.

    Raises a `CannotOpen` when the path is refused and `Unavailable` kinds later; see `errors`.
    """

    fork_order = 1

    def __init__(
        self,
        path: Path,
        *,
        create: bool = True,
        busy_timeout_s: float = BUSY_TIMEOUT_S,
    ) -> None:
        """Check the path and remember it; the file is opened by the first transaction."""
        if sqlite3.sqlite_version_info < MINIMUM_SQLITE:
            message = (
                f"SQLite {sqlite3.sqlite_version} is too old, 3.37 is needed: use a newer Python, "
                "for example one from python.org, conda or uv, which bring their own SQLite"
            )
            raise SqliteTooOld(message)
        self.path = path
        self.run_directory = path.with_name(path.name + "-run")
        self._create = create
        self._busy_timeout_s = busy_timeout_s
        self._lock: WriterLock | None = None
        self._writing: sqlite3.Connection | None = None
        self._reading: sqlite3.Connection | None = None
        self._wal: int | None = None
        # The files that must stay where they are, as long as they are open.
        self._identity: files.FileIdentity | None = None
        self._companions: dict[Path, files.FileIdentity] = {}
        self._looked_at_s = 0.0
        self._commits = 0
        self._flushed = 0
        self._flush_wanted = 0
        self._lost_commits: list[range] = []
        self._closed = False
        self._poisoned: str | None = None
        self._fork_trouble: str | None = None
        self._fork_holds: list[list[bool]] = []
        self.write_transactions = 0
        self.read_transactions = 0
        self._reset_mutexes()
        forking.guard(self)

    def _reset_mutexes(self) -> None:
        # Always taken in this order. Reentrant only so that a mutex can say whether this thread
        # holds it; a second entry is refused.
        self._write_mutex = threading.RLock()
        self._read_mutex = threading.RLock()
        self._flush_mutex = threading.RLock()
        self._pid = os.getpid()

    # -- transactions ---------------------------------------------------------------------------

    def write(
        self,
        work: Callable[[sqlite3.Connection], Result],
        *,
        durable: bool = False,
    ) -> Result:
        """Run `work` in one write transaction and return its result.

        With `durable`, the commit is on the disk when this returns. `work` may run again when a
        foreign connection held SQLite's lock, never after a COMMIT. Raises Busy after the busy
        timeout, DiskFault, SchemaChanged, FileReplaced, ForkedStore. If the process dies midway,
        nothing of the transaction is in the file, or all of it.
        """
        result, commit = self._with_writer(
            lambda connection: self._transaction(connection, work, durable=durable)
        )
        if durable:
            self._flush(commit)
        return result

    def open(self) -> None:
        """Open and check the file now, as the first transaction would.

        Unlike a write it does not wait for a foreign program that holds SQLite's write lock.
        """
        self._with_writer(_nothing)

    def read(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Run `work` in one new read transaction and return its result.

        It sees every commit made before the call. It must be short: while it runs, no checkpoint
        can shorten the log. Never waits for the writer lock once the file is open.
        """
        deadline_s = time.monotonic() + self._busy_timeout_s
        while True:
            self._refuse_unusable()
            try:
                if self._reading is None:
                    # Outside the read mutex: whoever forks or closes takes the write mutex first.
                    if self._writing is None:
                        self.open()
                    self._open_reader()
                return self._read_once(work)
            except _NotOpen:
                continue
            except sqlite3.DatabaseError as error:
                if isinstance(error, _MISTAKES):
                    raise
                if not _is_locked(error) or time.monotonic() >= deadline_s:
                    raise self._explained(error) from error

    def _read_once(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        if _owned(self._read_mutex):
            message = "a read inside a read of the same thread; finish the outer one first"
            raise InsideTransaction(message)
        with self._read_mutex:
            self._refuse_unusable()
            connection = self._reading
            if connection is None:  # a fork in another thread closed it just now
                raise _NotOpen
            self._look_at_path_sometimes()
            self.read_transactions += 1
            try:
                connection.execute("BEGIN")
                _refuse_migrated(connection)
                result = _without_cursor(work(connection))
                self._refuse_unusable()  # `work` may have forked: then the child stops here
                return result
            finally:
                reading = self._reading
                if reading is not None and reading.in_transaction:
                    reading.execute("ROLLBACK")

    def _with_writer(self, step: Callable[[sqlite3.Connection], Result]) -> Result:
        """Run `step` on the writing connection under the writer lock, waiting for others."""
        deadline_s = time.monotonic() + self._busy_timeout_s
        while True:
            try:
                return self._with_writer_once(step, deadline_s)
            except sqlite3.DatabaseError as error:
                if isinstance(error, _MISTAKES):
                    raise
                if not _is_locked(error):
                    raise self._explained(error) from error
                if time.monotonic() >= deadline_s:
                    message = (
                        f"a program that is not sqlqueue holds SQLite's write lock on {self.path}; "
                        "find and end it (for example an open sqlite3 shell with BEGIN)"
                    )
                    raise Busy(message) from error

    def _with_writer_once(
        self, step: Callable[[sqlite3.Connection], Result], deadline_s: float
    ) -> Result:
        self._refuse_unusable()
        mutex = self._write_mutex
        if _owned(mutex) or _owned(self._read_mutex):
            message = "a write inside a transaction of the same thread; finish the outer one first"
            raise InsideTransaction(message)
        held: list[bool] = []
        try:
            _acquire(mutex, held, wait_s=max(deadline_s - time.monotonic(), 0.001))
            if not held[0]:
                message = "other threads of this process kept the writer busy"
                raise Busy(message, holder=os.getpid())
            self._refuse_unusable()
            return step(self._locked_writer(deadline_s))
        finally:
            # Only calls of C functions, each in a finally of its own: see the module's docstring.
            if held and held[0]:
                try:
                    try:
                        writing = self._writing
                        if writing is not None and writing.in_transaction:
                            writing.execute("ROLLBACK")
                    finally:
                        lock = self._lock
                        if lock is not None:
                            fcntl.flock(lock.descriptor, fcntl.LOCK_UN)
                finally:
                    mutex.release()

    def _transaction(
        self,
        connection: sqlite3.Connection,
        work: Callable[[sqlite3.Connection], Result],
        *,
        durable: bool,
    ) -> tuple[Result, int]:
        """Commit `work`; return its result and the number of the commit in this process."""
        if durable:
            self._empty_suspect_log(connection)
        self.write_transactions += 1
        connection.execute("BEGIN IMMEDIATE")
        _refuse_migrated(connection)
        result = _without_cursor(work(connection))
        # `work` may have forked: the child comes by here, too, and must not commit the parent's
        # transaction.
        self._refuse_unusable()
        connection.execute("COMMIT")
        self._commits += 1
        if durable:
            self._flush_wanted = self._commits
        return result, self._commits

    def _locked_writer(self, deadline_s: float) -> sqlite3.Connection:
        """Take the writer lock and return the open writing connection."""
        try:
            if self._lock is None:
                self._lock = self._prepare_files()
            self._lock.take(deadline_s)
            self._look_at_path_sometimes()
            if self._writing is None:
                return self._open_writer()
        except OSError as error:
            raise _translated_os_error(error, self.path) from error
        else:
            return self._writing

    # -- durability -----------------------------------------------------------------------------

    def _flush(self, commit: int) -> None:
        """Return once commit number `commit` of this process is on the disk.

        Threads share flushes: who waited behind one that *began* after his own commit is done.
        A failed flush means "not published" and is never retried into success: Linux reports
        the error once and then calls the lost pages clean (fsync(2), "errseq"). So it fails for
        every commit that was to be in it, and for those after it, which a log with a hole in it
        would hide from recovery, until the log has been emptied.
        """
        held: list[bool] = []
        try:
            _acquire(self._flush_mutex, held)
            if any(commit in lost for lost in self._lost_commits):
                raise self._flush_fault("in another thread")
            if self._flushed >= commit:
                return
            if self._lock is not None and self._lock.log_is_suspect:
                raise self._flush_fault("in another process")
            self._flush_now()
        finally:
            if held:
                self._flush_mutex.release()

    def _flush_now(self) -> None:
        """Flush the log; the caller holds the flush mutex."""
        target, descriptor = self._commits, self._wal
        try:
            if descriptor is None:
                raise OSError(errno.EBADF, "the log was closed first")  # noqa: TRY301
            _sync_data(descriptor)
        except OSError as error:
            if self._lock is not None:
                self._lock.log_is_suspect = True
            self._lost_commits.append(range(self._flushed + 1, self._commits + 1))
            raise self._flush_fault(str(error.strerror)) from error
        self._flushed = target

    def _flush_fault(self, why: str) -> DiskFault:
        return DiskFault(
            f"flushing {self.path}-wal failed ({why}): the message may or may not be stored; "
            "publish it again with the same job_id"
        )

    def _empty_suspect_log(self, connection: sqlite3.Connection) -> None:
        """Move everything out of a log of which a flush failed, or refuse.

        Frames after a lost one would be unreadable after a power cut even if they were flushed,
        because a log is only valid up to its first bad frame.
        """
        lock = self._lock
        if lock is None or not lock.log_is_suspect:
            return
        with self._flush_mutex:
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if busy:
                message = f"{self.path}: an earlier flush failed and the log cannot be emptied yet"
                raise DiskFault(message)
            self._lost_commits.append(range(self._flushed + 1, self._commits + 1))
            lock.log_is_suspect = False

    # -- opening --------------------------------------------------------------------------------

    def _prepare_files(self) -> WriterLock:
        self._look_at_path()
        files.refuse_unsafe(self.path, create=self._create)
        files.create_private_directory(self.run_directory)
        return WriterLock(self.run_directory / "writer.lock")

    def _open_writer(self) -> sqlite3.Connection:
        """Open, check, and if need be create or migrate the file. Runs under the writer lock."""
        self._look_at_path()  # a fork closed it: is it still the same file?
        files.refuse_unsafe(self.path, create=self._create)
        size = files.size_of(self.path)
        if size == 1:  # SQLite takes it for empty (unixFileSize in os_unix.c) and writes over it
            raise ForeignDatabase(_not_sqlite_text(self.path))
        if not size:
            self._refuse_remains(size)
        if size is None:
            # Side files of a database that was removed would speak of workers it never knew.
            self.presence_path.unlink(missing_ok=True)
            files.create_private_file(self.path)
        identity = files.identity_of(self.path)
        if identity is not None and forking.was_inherited(identity):
            forking.refuse(
                self.path,
                "the parent had another SQLite connection to the file open while forking; close it "
                "before the fork",
            )
        connection = self._connect()
        try:
            self._adopt(connection)
            self._refuse_another(identity)
            # The names of database and log must survive a power cut, too.
            files.sync_directory(self.path.parent)
            companions = {
                path: found
                for path in (Path(f"{self.path}-wal"), Path(f"{self.path}-shm"))
                if (found := files.identity_of(path)) is not None
            }
            self._looked_at_s = time.monotonic()
            # The log exists once something was read.
            wal = os.open(f"{self.path}-wal", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except BaseException:
            connection.close()
            raise
        self._wal = wal
        self._companions = companions
        self._identity = identity
        self._writing = connection
        return connection

    def _refuse_another(self, identity: files.FileIdentity | None) -> None:
        if files.identity_of(self.path) != identity:
            raise FileReplaced(_replaced_text(self.path, "replaced while it was opened"))

    def _refuse_remains(self, size: int | None) -> None:
        """Refuse to start afresh where remains show that there was a queue.

        SQLite would delete the log, and with it jobs that were acknowledged.
        """
        found = "missing" if size is None else "empty"
        log = Path(f"{self.path}-wal")
        if log_size := files.size_of(log):
            message = (
                f"{self.path} is {found}, but its log {log} holds {log_size} bytes: the database "
                "was moved, removed or truncated. Put it back, or remove the log to start afresh"
            )
            raise FileReplaced(message)
        if size is not None and self.presence_path.exists():
            message = (
                f"{self.path} is empty although it held a queue: it was truncated. Restore a "
                f"backup, or remove {self.run_directory} to start afresh"
            )
            raise FileReplaced(message)

    def _open_reader(self) -> None:
        with self._write_mutex, self._read_mutex:
            if self._reading is not None or self._writing is None:
                return
            connection = self._connect()
            try:
                connection.execute("PRAGMA query_only = ON")
                connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchall()
            except BaseException:
                connection.close()
                raise
            self._reading = connection

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            # Quoted as bytes, because a path need not be valid Unicode.
            f"file:{quote(os.fsencode(self.path))}?mode=rw",
            uri=True,
            isolation_level=None,  # transactions are ours alone
            check_same_thread=False,  # the mutexes see to that
            timeout=min(FOREIGN_SLICE_S, self._busy_timeout_s),
            cached_statements=256,
        )
        # One text cell that is not UTF-8 must not make its whole table unreadable: it is read
        # with surrogates, and whoever looks at the value refuses that one message.
        connection.text_factory = _TEXT
        try:
            for pragma in (
                "PRAGMA trusted_schema = OFF",  # a foreign trigger must not run code
                "PRAGMA cell_size_check = ON",
                "PRAGMA foreign_keys = ON",
                # NORMAL syncs the log before a checkpoint; below it a checkpoint could write
                # pages whose log was lost. Every connection that writes or checkpoints needs it.
                "PRAGMA synchronous = NORMAL",
                "PRAGMA fullfsync = ON",  # macOS: fsync alone does not reach the disk
                "PRAGMA checkpoint_fullfsync = ON",
                "PRAGMA temp_store = MEMORY",
                "PRAGMA mmap_size = 0",  # a truncated file would be SIGBUS instead of an error
                "PRAGMA wal_autocheckpoint = 1000",
                "PRAGMA journal_size_limit = 16777216",
            ):
                connection.execute(pragma).fetchall()
            if sys.version_info >= (3, 12):
                connection.setconfig(sqlite3.SQLITE_DBCONFIG_DEFENSIVE, True)  # noqa: FBT003
                connection.setconfig(sqlite3.SQLITE_DBCONFIG_DQS_DML, False)  # noqa: FBT003
                connection.setconfig(sqlite3.SQLITE_DBCONFIG_DQS_DDL, False)  # noqa: FBT003
        except BaseException:
            connection.close()
            raise
        return connection

    def _adopt(self, connection: sqlite3.Connection) -> None:
        """Make sure the file is ours and of our version. Runs under the writer lock."""
        application_id = _pragma(connection, "application_id")
        version = _pragma(connection, "user_version")
        tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        if application_id == 0 and version == 0 and tables == 0:
            self._create_schema(connection)
            return
        if application_id != APPLICATION_ID:
            message = (
                f"{self.path} is another application's SQLite database; give a path of its own "
                "to the queue"
            )
            raise ForeignDatabase(message)
        if version > SCHEMA_VERSION:
            message = (
                f"{self.path} has schema version {version}, this software knows {SCHEMA_VERSION}: "
                "upgrade sqlqueue here, or use the software that wrote the file"
            )
            raise SchemaTooNew(message)
        if version < SCHEMA_VERSION:
            migrate(connection, self.path, from_version=version)
        if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
        connection.execute("SELECT value FROM meta LIMIT 1").fetchall()

    def _create_schema(self, connection: sqlite3.Connection) -> None:
        # auto_vacuum can only be chosen while the file has no tables.
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL").fetchall()
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            message = f"{self.path}: SQLite cannot use a write-ahead log here (it chose {mode!r})"
            raise CannotOpen(message)
        _run_script(
            connection,
            f"{_packaged('schema.sql')}\nPRAGMA application_id = {APPLICATION_ID};\n"
            f"PRAGMA user_version = {SCHEMA_VERSION};",
        )

    # -- watching the file ------------------------------------------------------------------------

    @property
    def presence_path(self) -> Path:
        """Return where the presence file of this database lies."""
        return self.run_directory / "presence"

    def look_at_path(self) -> None:
        """Raise FileReplaced unless the paths still lead to the files that are open.

        A renamed file still accepts writes. What becomes of the log, the shared memory and the
        writer lock matters as much: a process that comes later would not meet us there.
        """
        try:
            self._look_at_path()
        except OSError as error:
            raise _translated_os_error(error, self.path) from error
        self._looked_at_s = time.monotonic()

    def _look_at_path_sometimes(self) -> None:
        if abs(time.monotonic() - self._looked_at_s) >= LOOK_AT_PATH_EVERY_S:
            self.look_at_path()

    def _look_at_path(self) -> None:
        if self._identity is None:
            return
        companions, lock = self._companions, self._lock
        expected = {self.path: self._identity, **companions}
        if lock is not None:
            expected[lock.path] = lock.identity
        for path, identity in expected.items():
            found = files.identity_of(path)
            if path in companions and self._companions is not companions:
                continue  # closed in another thread, and so perhaps removed by SQLite
            if found is None:
                raise FileReplaced(_replaced_text(path, "moved or removed"))
            if found != identity:
                raise FileReplaced(_replaced_text(path, "replaced by another file"))
        if files.size_of(self.path) == 0:
            raise FileReplaced(_replaced_text(self.path, "truncated to zero bytes"))

    def _explained(self, error: sqlite3.DatabaseError) -> TransportError:
        """Turn SQLite's error into ours; raises FileReplaced when that is what is behind it."""
        self.look_at_path()
        return _translated(error, self.path)

    # -- closing and forking ----------------------------------------------------------------------

    def close(self) -> None:
        """Close every connection, under the writer lock; harmless when closed.

        Raises Busy when the writer lock is not to be had in time; nothing is closed then.
        """
        if self._closed:
            return
        if self._pid != os.getpid() or self._poisoned is not None:
            self._abandon("it was inherited")  # closing what the parent uses would harm it
        elif _owned(self._write_mutex) or _owned(self._read_mutex):
            message = "a store cannot be closed inside a transaction of its own"
            raise InsideTransaction(message)
        with self._write_mutex, self._read_mutex, self._flush_mutex:
            self._close_connections()
            self._closed = True
            if self._lock is not None:
                self._lock.close()
                self._lock = None
        forking.forget(self)

    def _close_connections(self) -> None:
        """Close all; the caller holds all three mutexes. Raises Busy without having closed."""
        if self._writing is None and self._reading is None:
            return
        if self._flush_wanted > self._flushed:
            # Another thread committed and has not come to its flush yet. It will, and be told.
            with contextlib.suppress(DiskFault):
                self._flush_now()
        lock = self._lock
        try:
            if lock is not None:
                lock.take(time.monotonic() + self._busy_timeout_s)
            self._companions = {}  # before SQLite removes them: see `_look_at_path`
            if self._reading is not None:
                self._reading.close()
                self._reading = None
            if self._writing is not None:
                self._writing.close()
                self._writing = None
            if self._wal is not None:
                os.close(self._wal)
                self._wal = None
        finally:
            if lock is not None:
                fcntl.flock(lock.descriptor, fcntl.LOCK_UN)

    def before_fork(self) -> None:
        """Take every mutex and close everything, so that nothing of SQLite is inherited.

        Called by `forking` in the forking thread. What could not be closed stays open: the child
        then refuses every call instead of losing its commits silently.
        """
        mutexes = (self._write_mutex, self._read_mutex, self._flush_mutex)
        inside = any(_owned(mutex) for mutex in mutexes)
        held: list[bool] = []
        self._fork_holds.append(held)
        for mutex in mutexes:
            _acquire(mutex, held)
        if inside:
            self._fork_trouble = "the process forked inside a transaction of this store"
            return
        try:
            self._close_connections()
        except (TransportError, sqlite3.Error, OSError) as error:
            self._fork_trouble = (
                f"the parent could not close the database before it forked: {error}"
            )

    def after_fork_in_parent(self) -> None:
        """Go on as before; connections open again when needed."""
        self._fork_trouble = None
        held = self._fork_holds.pop() if self._fork_holds else []
        mutexes = (self._write_mutex, self._read_mutex, self._flush_mutex)
        for _, mutex in reversed(list(zip(held, mutexes, strict=False))):
            mutex.release()

    def after_fork_in_child(self) -> None:
        """Start with new mutexes and nothing open; poisoned if something was left open."""
        if self._writing is not None or self._reading is not None:
            self._abandon(self._fork_trouble or "the parent had it open while it forked")
        self._reset_mutexes()
        self._fork_holds.clear()
        self._close_inherited_lock()

    def _abandon(self, why: str) -> None:
        """Leave what belongs to the parent open and unused, and refuse every further call."""
        self._poisoned = self._poisoned or why
        self._reset_mutexes()
        for connection in (self._writing, self._reading):
            if connection is not None:
                forking.abandon(connection)
        self._writing = self._reading = self._wal = None
        self._close_inherited_lock()

    def _close_inherited_lock(self) -> None:
        """Close it without unlocking: the parent shares the lock, and an unlock would free it.

        Left open it would outlive the parent, if that dies while it holds the lock.
        """
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _refuse_unusable(self) -> None:
        if self._pid != os.getpid():
            self._abandon("the process was forked without Python's fork hooks (from C code?)")
        if self._poisoned is not None:
            forking.refuse(self.path, self._poisoned)
        if self._closed:
            message = f"the store of {self.path} is closed"
            raise CannotOpen(message)


@contextlib.contextmanager
def refused_values(what: str) -> Iterator[None]:
    """Turn SQLite's refusal of a value into InvalidMessage, which begins with `what`."""
    try:
        yield
    except _NOT_STORABLE as error:
        message = f"{what}: {error}"
        raise InvalidMessage(message) from error


class _NotOpen(Exception):
    """Say that the reading connection was closed a moment ago."""


def _nothing(_: sqlite3.Connection) -> None:
    """Do nothing with the file but open it."""


def _without_cursor(result: Result) -> Result:
    """Return the result of a transaction, which must not be a cursor: see the module's docstring."""
    if isinstance(result, sqlite3.Cursor):
        message = "a transaction returned a cursor; fetch what it holds inside the transaction"
        raise TypeError(message)
    return result


def _acquire(mutex: threading.RLock, held: list[bool], *, wait_s: float = -1) -> None:
    """Take a mutex and append to `held` whether that succeeded, as one indivisible step.

    `held.append(mutex.acquire())` would be two calls, and a signal handler that raises between
    them would leave a mutex that nobody knows to be taken. `extend` makes both inside C code.
    """
    held.extend(map(mutex.acquire, (True,), (wait_s,)))


def migrate(connection: sqlite3.Connection, path: Path, *, from_version: int) -> None:
    """Bring an older file to SCHEMA_VERSION, after an online backup beside it.

    Runs under the writer lock. Each step commits with its version; if the process dies midway
    the file opens as the version reached.
    """
    versions = range(from_version + 1, SCHEMA_VERSION + 1)
    for version in versions:
        if version not in MIGRATIONS:
            message = f"{path} has schema version {from_version}, which has no way to {version}"
            raise ForeignDatabase(message)
    backup = path.with_name(f"{path.name}.v{from_version}.backup")
    files.create_private_file(backup)
    copy = sqlite3.connect(backup)
    try:
        connection.backup(copy)
    finally:
        copy.close()
    for version in versions:
        _run_script(connection, f"{MIGRATIONS[version]()}\nPRAGMA user_version = {version};")


def _run_script(connection: sqlite3.Connection, script: str) -> None:
    try:
        # executescript commits what is open before it starts, so BEGIN belongs into the script.
        connection.executescript(f"BEGIN IMMEDIATE;\n{script}\nCOMMIT;")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _refuse_migrated(connection: sqlite3.Connection) -> None:
    version = _pragma(connection, "user_version")
    if version != SCHEMA_VERSION:
        message = (
            f"the file was migrated to schema version {version} while this process had it open "
            f"at {SCHEMA_VERSION}; restart with the newer software"
        )
        raise SchemaChanged(message)


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def _sync_data(descriptor: int) -> None:
    if sys.platform == "darwin":  # pragma: no cover - fsync there stops at the drive's cache
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fdatasync(descriptor)


def _owned(mutex: threading.RLock) -> bool:
    return bool(mutex._is_owned())  # type: ignore[attr-defined]  # noqa: SLF001 - the only way to ask


def _is_locked(error: sqlite3.Error) -> bool:
    return "database is locked" in str(error)


def _replaced_text(path: Path, what: str) -> str:
    return (
        f"{path} was {what} while the queue was in use; what this process wrote since then may "
        "be lost to the others. Stop all processes of the queue, put the right file back, restart"
    )


def _not_sqlite_text(path: Path) -> str:
    return f"{path} is not a SQLite database; give another path"


def _translated(error: sqlite3.Error, path: Path) -> TransportError:
    """Turn SQLite's errors into ours; Python 3.10 offers nothing but the text."""
    text = str(error)
    if _is_locked(error):
        return Busy(f"{path}: {text}")
    if "not a database" in text:
        return ForeignDatabase(_not_sqlite_text(path))
    if "malformed" in text or "Could not decode" in text:
        return DiskFault(
            f"{path} is damaged ({text}); stop everything and restore a backup, or try "
            "'.recover' of the sqlite3 shell on a copy",
        )
    if any(
        hint in text for hint in ("disk is full", "disk I/O error", "readonly", "unable to open")
    ):
        return DiskFault(f"{path}: {text}; free space or mend the permissions, nothing was changed")
    if isinstance(error, sqlite3.OperationalError) and "no such table" in text:
        return ForeignDatabase(f"{path} lacks our tables ({text})")
    return TransportError(f"{path}: {text}")


def _translated_os_error(error: OSError, path: Path) -> TransportError:
    where = error.filename or path
    if error.errno in _DISK_ERRORS:
        return DiskFault(f"{where}: {error.strerror}; free space or mend the disk and try again")
    return CannotOpen(f"cannot open {path}: {where}: {error.strerror}")


__all__ = ["APPLICATION_ID", "BUSY_TIMEOUT_S", "SCHEMA_VERSION", "Database", "DatabaseMissing"]
