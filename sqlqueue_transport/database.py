"""Open the SQLite file and run transactions on it: the only room with PRAGMAs and locks.

One `Database` serves one file in one process. It keeps two connections, one to write and one
to read, each behind a mutex, so that a reader never waits for the writer lock. The rules that
keep data safe live here, and each was learned from a loss:

* Every write transaction and every close happens under the writer lock, then BEGIN IMMEDIATE.
* A read transaction never becomes a write transaction: after another process's commit SQLite
  refuses that at once, whatever the timeout (SQLITE_BUSY_SNAPSHOT).
* Locks are taken inside the `try` and given back in nested `finally`s. An exception raised by
  a signal handler between "acquire" and "try" would otherwise leak the lock.
* A durable commit is WAL at synchronous=NORMAL, then our own fdatasync of the `-wal` file after
  the lock is given up, so that processes share flushes. The flush begins after the COMMIT, the
  descriptor belongs to the log of the connection that committed, and that connection stays open
  until the flush has returned.
* No connection crosses a fork: a child that inherits one shares SQLite's per-process lock table,
  holds no locks, and its commits vanish without an error. See `forking`.
* Cursors never leave a transaction function: a half-read one survives `close()` and keeps the
  file's descriptors.
"""

from __future__ import annotations

import errno
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
    SchemaChanged,
    SchemaTooNew,
    SqliteTooOld,
    TransportError,
)
from sqlqueue_transport.writer_lock import WriterLock

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")

APPLICATION_ID = (
    0x53514C51  # "SQLQ", in the file's header (sqlite.org/pragma.html#pragma_application_id)
)
SCHEMA_VERSION = 1
MINIMUM_SQLITE = (3, 37, 0)  # STRICT tables
BUSY_TIMEOUT_S = 30.0
# A connection that is not ours may hold SQLite's write lock. We wait for it in slices and give
# the writer lock up in between, so that a foreign program never stops all our processes at once.
FOREIGN_SLICE_MS = 1000
LOOK_AT_PATH_EVERY_S = 1.0

# Migrations by the version they lead to; version 1 is schema.sql. Each runs in one transaction
# together with the new user_version, under the writer lock, after an online backup.
MIGRATIONS: dict[int, str] = {}


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
        self._identity: files.FileIdentity | None = None
        self._looked_at_s = 0.0
        self._commits = 0
        self._flushed = 0
        self._flush_wanted = 0
        self._flush_failed = False
        self._closed = False
        self.write_transactions = 0
        self.read_transactions = 0
        self._reset_mutexes()
        forking.guard(self)

    def _reset_mutexes(self) -> None:
        # Reentrant only so that a mutex can say whether this thread holds it; a second entry is
        # refused in `write`.
        self._write_mutex = threading.RLock()
        self._read_mutex = threading.RLock()
        self._flush_mutex = threading.RLock()
        self._pid = os.getpid()
        self._poisoned: str | None = None

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
        deadline_s = time.monotonic() + self._busy_timeout_s
        while True:
            try:
                result, commit = self._write_once(work, deadline_s, durable=durable)
                break
            except sqlite3.OperationalError as error:
                if not _is_locked(error):
                    raise _translated(error, self.path) from error
                if time.monotonic() >= deadline_s:
                    message = (
                        f"a program that is not sqlqueue holds SQLite's write lock on {self.path}; "
                        "find and end it (for example an open sqlite3 shell with BEGIN)"
                    )
                    raise Busy(message) from error
        if durable:
            self._flush(commit)
        return result

    def read(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Run `work` in one new read transaction and return its result.

        It sees every commit made before the call. It must be short: while it runs, no checkpoint
        can shorten the log. Never waits for the writer lock once the file is open.
        """
        while self._reading is None:
            # The first transaction opens and checks the file under the writer lock. Outside the
            # read mutex: whoever forks or closes takes the write mutex first.
            self.write(_nothing)
            self._open_reader()
        try:
            self._read_mutex.acquire()
            self._refuse_fork()
            connection = self._reading
            if connection is None:  # a fork in another thread closed it just now
                message = f"the store of {self.path} was closed while it was read; read again"
                raise Busy(message)
            self.read_transactions += 1
            try:
                connection.execute("BEGIN")
                return work(connection)
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise _translated(error, self.path) from error
        finally:
            _release(self._read_mutex)

    def _write_once(
        self,
        work: Callable[[sqlite3.Connection], Result],
        deadline_s: float,
        *,
        durable: bool,
    ) -> tuple[Result, int]:
        if _owned(self._write_mutex):
            message = "a write inside a write of the same thread; finish the outer one first"
            raise InsideTransaction(message)
        try:
            if not self._write_mutex.acquire(timeout=max(deadline_s - time.monotonic(), 0.001)):
                message = "other threads of this process kept the writer busy"
                raise Busy(message, holder=os.getpid())
            self._refuse_fork()
            connection = self._locked_writer(deadline_s)
            if durable and self._flush_failed:
                self._recover_from_failed_flush(connection)
            self.write_transactions += 1
            connection.execute("BEGIN IMMEDIATE")
            _refuse_migrated(connection)
            result = work(connection)
            connection.execute("COMMIT")
            self._commits += 1
            if durable:
                self._flush_wanted = self._commits
            return result, self._commits
        finally:
            self._leave_write()

    def _locked_writer(self, deadline_s: float) -> sqlite3.Connection:
        """Take the writer lock and return the open writing connection."""
        if self._lock is None:
            self._prepare_files()
        lock = self._lock
        if lock is None:  # pragma: no cover - _prepare_files sets it or raises
            raise AssertionError
        lock.take(deadline_s)
        self._look_at_path()
        if self._writing is None:
            self._writing = self._open_writer()
        return self._writing

    def _leave_write(self) -> None:
        if not _owned(self._write_mutex):
            return
        try:
            if self._writing is not None and self._writing.in_transaction:
                self._writing.execute("ROLLBACK")
        finally:
            try:
                if self._lock is not None:
                    self._lock.drop()
            finally:
                _release(self._write_mutex)

    # -- durability -----------------------------------------------------------------------------

    def _flush(self, commit: int) -> None:
        """Return once commit number `commit` of this process is on the disk.

        Threads share flushes: who waited behind one that *began* after his own commit is done.
        A failed flush means "not published" and is never retried into success: Linux reports
        the error once and then calls the lost pages clean (fsync(2), "errseq").
        """
        try:
            self._flush_mutex.acquire()
            if self._flushed >= commit:
                return
            self._flush_now()
        finally:
            _release(self._flush_mutex)

    def _flush_now(self) -> None:
        target, descriptor = self._commits, self._wal
        try:
            if descriptor is None:
                raise OSError(errno.EBADF, "the log was closed first")  # noqa: TRY301
            _sync_data(descriptor)
        except OSError as error:
            self._flush_failed = True
            message = (
                f"flushing {self.path}-wal failed ({error.strerror}): the message may or may "
                "not be stored; publish it again with the same job_id"
            )
            raise DiskFault(message) from error
        self._flushed = target

    def _recover_from_failed_flush(self, connection: sqlite3.Connection) -> None:
        """Move everything out of the log whose flush failed, or refuse.

        Frames after a lost one would be unreadable after a power cut even if they were flushed,
        because a log is only valid up to its first bad frame.
        """
        busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            message = f"{self.path}: an earlier flush failed and the log cannot be emptied yet"
            raise DiskFault(message)
        self._flush_failed = False

    # -- opening --------------------------------------------------------------------------------

    def _prepare_files(self) -> None:
        files.refuse_unsafe(self.path, create=self._create)
        try:
            files.create_private_directory(self.run_directory)
            self._lock = WriterLock(self.run_directory / "writer.lock")
        except OSError as error:
            message = f"cannot prepare {self.run_directory}: {error.strerror}"
            raise CannotOpen(message) from error

    def _open_writer(self) -> sqlite3.Connection:
        """Open, check, and if need be create or migrate the file. Runs under the writer lock."""
        files.refuse_unsafe(self.path, create=self._create)
        existed = files.identity_of(self.path) is not None
        if existed and self.path.lstat().st_size == 0 and self.presence_path.exists():
            message = (
                f"{self.path} is empty although it held a queue: it was truncated. Restore a "
                f"backup, or remove {self.run_directory} to start afresh"
            )
            raise FileReplaced(message)
        if not existed:
            # Side files of a database that was removed would speak of workers it never knew.
            self.presence_path.unlink(missing_ok=True)
            files.create_private_file(self.path)
        identity = files.identity_of(self.path)
        connection = self._connect()
        try:
            self._adopt(connection)
            if self._identity is not None and self._identity != identity:
                raise FileReplaced(_replaced_text(self.path))
            # The log exists once something was read. Its own name must survive a power cut, too.
            wal = os.open(f"{self.path}-wal", os.O_RDWR | os.O_CLOEXEC)
        except sqlite3.DatabaseError as error:
            connection.close()
            raise _translated(error, self.path) from error
        except BaseException:
            connection.close()
            raise
        files.sync_directory(self.path.parent)
        self._wal = wal
        self._identity = identity
        self._looked_at_s = time.monotonic()
        return connection

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
            f"file:{quote(str(self.path))}?mode=rw",
            uri=True,
            isolation_level=None,  # transactions are ours alone
            check_same_thread=False,  # the mutexes see to that
            timeout=FOREIGN_SLICE_MS / 1000,
            cached_statements=256,
        )
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
            if hasattr(connection, "setconfig"):  # Python 3.12
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
        schema = resources.files("sqlqueue_transport").joinpath("schema.sql").read_text("utf-8")
        _run_script(
            connection,
            f"{schema}\nPRAGMA application_id = {APPLICATION_ID};\n"
            f"PRAGMA user_version = {SCHEMA_VERSION};",
        )

    # -- watching the file ------------------------------------------------------------------------

    @property
    def presence_path(self) -> Path:
        """Return where the presence file of this database lies."""
        return self.run_directory / "presence"

    def _look_at_path(self) -> None:
        """Notice that the file was moved or replaced: a renamed file still accepts writes."""
        if self._writing is None:
            return
        now_s = time.monotonic()
        if abs(now_s - self._looked_at_s) < LOOK_AT_PATH_EVERY_S:
            return
        self.look_at_path()
        self._looked_at_s = now_s

    def look_at_path(self) -> None:
        """Raise FileReplaced unless the path still leads to the open file."""
        if self._identity is not None and files.identity_of(self.path) != self._identity:
            raise FileReplaced(_replaced_text(self.path))

    # -- closing and forking ----------------------------------------------------------------------

    def close(self) -> None:
        """Close every connection, under the writer lock; harmless when closed."""
        if self._closed:
            return
        with self._write_mutex, self._read_mutex, self._flush_mutex:
            self._refuse_fork()
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
            self._flush_now()  # another thread committed and has not come to its flush yet
        try:
            if self._lock is not None:
                self._lock.take(time.monotonic() + self._busy_timeout_s)
            if self._reading is not None:
                self._reading.close()
                self._reading = None
            if self._writing is not None:
                self._writing.close()
                self._writing = None
        finally:
            try:
                if self._wal is not None:
                    os.close(self._wal)
                    self._wal = None
            finally:
                if self._lock is not None:
                    self._lock.drop()

    def before_fork(self) -> None:
        """Take every mutex and close everything, so that nothing of SQLite is inherited.

        Called by `forking` in the forking thread. What could not be closed is noted: the child
        then refuses every call instead of losing its commits silently.
        """
        inside = _owned(self._write_mutex) or _owned(self._read_mutex)
        self._write_mutex.acquire()
        self._read_mutex.acquire()
        self._flush_mutex.acquire()
        if inside:
            self._poisoned = "the process forked inside a transaction of this store"
            return
        try:
            self._close_connections()
        except (TransportError, sqlite3.Error, OSError) as error:
            self._poisoned = f"the parent could not close the database before forking ({error})"
            return
        if forking.has_open_descriptor(self.path):
            self._poisoned = (
                "the parent had another SQLite connection to the file open while forking; close "
                "it before the fork"
            )

    def after_fork_in_parent(self) -> None:
        """Go on as before; connections open again when needed."""
        self._poisoned = None
        self._flush_mutex.release()
        self._read_mutex.release()
        self._write_mutex.release()

    def after_fork_in_child(self) -> None:
        """Start with new mutexes and nothing open; poisoned if something was left open."""
        poisoned = self._poisoned
        self._reset_mutexes()
        self._poisoned = poisoned
        self._lock_after_fork()

    def _lock_after_fork(self) -> None:
        if self._lock is not None:
            # The descriptor is shared with the parent: an unlock here would free its lock.
            self._lock.close()
            self._lock = None

    def _refuse_fork(self) -> None:
        if self._closed:
            message = f"the store of {self.path} is closed"
            raise CannotOpen(message)
        if self._pid != os.getpid():
            self._poisoned = "the process was forked without Python's fork hooks (from C code?)"
        if self._poisoned is not None:
            forking.refuse(self.path, self._poisoned)


def _nothing(_: sqlite3.Connection) -> None:
    """Write nothing; the transaction around it opens and checks the file."""


def migrate(connection: sqlite3.Connection, path: Path, *, from_version: int) -> None:
    """Bring an older file to SCHEMA_VERSION, after an online backup beside it.

    Runs under the writer lock. Each step commits with its version; if the process dies midway
    the file opens as the version reached.
    """
    backup = path.with_name(f"{path.name}.v{from_version}.backup")
    files.create_private_file(backup)
    copy = sqlite3.connect(backup)
    try:
        connection.backup(copy)
    finally:
        copy.close()
    for version in range(from_version + 1, SCHEMA_VERSION + 1):
        step = MIGRATIONS.get(version)
        if step is None:
            message = f"{path} has schema version {from_version}, which has no way to {version}"
            raise ForeignDatabase(message)
        _run_script(connection, f"{step}\nPRAGMA user_version = {version};")


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
        import fcntl  # noqa: PLC0415

        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fdatasync(descriptor)


def _owned(mutex: threading.RLock) -> bool:  # type: ignore[valid-type]
    return bool(mutex._is_owned())  # type: ignore[attr-defined]  # noqa: SLF001 - the only way to ask


def _release(mutex: threading.RLock) -> None:  # type: ignore[valid-type]
    if _owned(mutex):
        mutex.release()  # type: ignore[attr-defined]


def _is_locked(error: sqlite3.Error) -> bool:
    return "database is locked" in str(error)


def _replaced_text(path: Path) -> str:
    return (
        f"{path} was moved, removed or replaced while it was open; what was written since may be "
        "in the other file. Put the right file back and restart"
    )


def _translated(error: sqlite3.Error, path: Path) -> TransportError:
    """Turn SQLite's errors into ours; Python 3.10 offers nothing but the text."""
    text = str(error)
    if _is_locked(error):
        return Busy(f"{path}: {text}")
    if "not a database" in text:
        return ForeignDatabase(f"{path} is not a SQLite database; give another path")
    if "malformed" in text:
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


__all__ = ["APPLICATION_ID", "BUSY_TIMEOUT_S", "SCHEMA_VERSION", "Database", "DatabaseMissing"]
