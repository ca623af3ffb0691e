"""Run transactions on the SQLite file: who may, in which turn, and what a fork may find.

One `Database` serves one file in one process. It keeps two connections, one to write and one
to read, each behind a mutex, so that a reader never waits for the writer lock. The rules that
keep data safe live here and in `opening`, and each was learned from a loss:

* Every write transaction and every close happens under the writer lock, then BEGIN IMMEDIATE.
* A read transaction never becomes a write transaction: after another process's commit SQLite
  refuses that at once, whatever the timeout (SQLITE_BUSY_SNAPSHOT).
* Locks are taken inside the `try` and given back in nested `finally`s. An exception raised by
  a signal handler between "acquire" and "try" would otherwise leak the lock. See
  `mutexes.acquire` for the other half: CPython runs signal handlers after a call and on entering
  a function, so the cleaning up consists of calls of C functions, each in a `finally` of its own.
* A durable commit is flushed after the lock is given up; see `flushing`.
* No connection crosses a fork: a child that inherits one shares SQLite's per-process lock table,
  holds no locks, and its commits vanish without an error. See `forking`.
* Cursors never leave a transaction function: a half-read one survives `close()` and keeps the
  file's descriptors.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import threading
import time
from typing import TYPE_CHECKING, ClassVar, TypeVar

from sqlqueue_transport import files, forking, migrations, opening
from sqlqueue_transport.errors import (
    Busy,
    CannotOpen,
    DiskFault,
    InsideTransaction,
    SchemaChanged,
    SchemaTooNew,
    TransportError,
)
from sqlqueue_transport.flushing import Flushing
from sqlqueue_transport.handles import Handles, Watch
from sqlqueue_transport.mutexes import acquire, owned, owner_asked
from sqlqueue_transport.sqlite_errors import (
    MISTAKES,
    is_locked,
    is_read_only,
    translated,
    translated_os_error,
)
from sqlqueue_transport.writer_lock import WriterLock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Result = TypeVar("Result")

BUSY_TIMEOUT_S = 30.0
# A connection that is not ours may hold SQLite's write lock. We wait for it in slices and give
# the writer lock up in between, so that a foreign program never stops all our processes at once.
FOREIGN_SLICE_S = 1.0


class Database:
    """Run transactions on one queue file; safe to share between threads.

    Raises a `CannotOpen` when the path is refused and `Unavailable` kinds later; see `errors`.
    """

    fork_order = 1
    is_read_only: ClassVar[bool] = False

    def __init__(
        self,
        path: Path,
        *,
        create: bool = True,
        busy_timeout_s: float = BUSY_TIMEOUT_S,
    ) -> None:
        """Check the path and remember it; the file is opened by the first transaction."""
        opening.refuse_old_sqlite()
        self.path = path
        self.run_directory = opening.run_directory_of(path)
        self._create = create
        self._busy_timeout_s = busy_timeout_s
        self._held = Handles()
        self._watch = Watch(path, self._held)
        self._flushing = Flushing(path, self._held)
        self._closed = False
        self._poisoned: str | None = None
        self._fork_trouble: str | None = None
        self._fork_holds: list[list[bool]] = []
        self.write_transactions = 0
        self.read_transactions = 0
        self._reset_mutexes()
        forking.guard(self)

    def _reset_mutexes(self) -> None:
        # Always taken in this order, and the mutex of the flushes last.
        self._write_mutex = threading.RLock()
        self._read_mutex = threading.RLock()
        self._is_writing = owner_asked(self._write_mutex)
        self._is_reading = owner_asked(self._read_mutex)
        self._flushing.reset()
        self._pid = os.getpid()

    # -- transactions ---------------------------------------------------------------------------

    def write(
        self,
        work: Callable[[sqlite3.Connection], Result],
        *,
        durable: bool = False,
        committed: Callable[[], object] | None = None,
    ) -> Result:
        """Run `work` in one write transaction and return its result.

        With `durable`, the commit is on the disk when this returns. `committed` is called before
        that, as soon as others see the commit; it must not raise. `work` may run again when a
        foreign connection held SQLite's lock, never after a COMMIT. Raises Busy after the busy
        timeout, DiskFault, SchemaChanged, FileReplaced, ForkedStore. If the process dies midway,
        nothing of the transaction is in the file, or all of it.
        """
        result, commit = self._with_writer(
            lambda connection: self._transaction(connection, work, durable=durable)
        )
        if committed is not None:
            committed()
        if durable:
            self._flushing.flush(commit)
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
                if self._held.reading is None:
                    self._open_reader()
                return self._read_once(work)
            except _NotOpen:
                continue
            except sqlite3.DatabaseError as error:
                if isinstance(error, MISTAKES):
                    raise
                if not is_locked(error) or time.monotonic() >= deadline_s:
                    raise self._explained(error) from error

    def empty_log(self) -> bool:
        """Copy the log into the file as far as readers allow; if nobody reads, cut it to nothing.

        Return whether it is empty now. Waits for other writers, not for readers. If the process dies
        midway, the log is there as it was, and the copying begins again.
        """
        return self._with_writer(self._emptied_log)

    def _emptied_log(self, connection: sqlite3.Connection) -> bool:
        lock = self._held.lock
        if lock is not None and lock.log_is_suspect:  # the next durable commit knows what to do
            return False
        _, in_log, copied = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if copied < in_log:
            return False
        try:
            # All other writers wait for us: we must not wait for a reader that came just now.
            connection.execute("PRAGMA busy_timeout = 0").fetchall()
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            wait_ms = round(self._foreign_wait_s * 1000)
            connection.execute(f"PRAGMA busy_timeout = {wait_ms}").fetchall()
        return not busy

    def _read_once(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        if self._is_reading():
            message = "a read inside a read of the same thread; finish the outer one first"
            raise InsideTransaction(message)
        with self._read_mutex:
            self._refuse_unusable()
            connection = self._held.reading
            if connection is None:  # a fork in another thread closed it just now
                raise _NotOpen
            self._watch.look_sometimes()
            self.read_transactions += 1
            try:
                connection.execute("BEGIN")
                migrations.refuse_migrated(connection)
                result = _without_cursor(work(connection))
                self._refuse_unusable()  # `work` may have forked: then the child stops here
                return result
            finally:
                reading = self._held.reading
                if reading is not None and reading.in_transaction:
                    reading.execute("ROLLBACK")

    def _with_writer(self, step: Callable[[sqlite3.Connection], Result]) -> Result:
        """Run `step` on the writing connection under the writer lock, waiting for others."""
        deadline_s = time.monotonic() + self._busy_timeout_s
        while True:
            try:
                return self._with_writer_once(step, deadline_s)
            except sqlite3.DatabaseError as error:
                if isinstance(error, MISTAKES):
                    raise
                if not is_locked(error):
                    if is_read_only(error):
                        self._close_to_open_anew()
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
        if self._is_writing() or self._is_reading():
            message = "a write inside a transaction of the same thread; finish the outer one first"
            raise InsideTransaction(message)
        held: list[bool] = []
        try:
            acquire(mutex, held, wait_s=max(deadline_s - time.monotonic(), 0.001))
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
                        writing = self._held.writing
                        if writing is not None and writing.in_transaction:
                            writing.execute("ROLLBACK")
                    finally:
                        lock = self._held.lock
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
            self._flushing.empty_suspect_log(connection)
        self.write_transactions += 1
        connection.execute("BEGIN IMMEDIATE")
        migrations.refuse_migrated(connection)
        result = _without_cursor(work(connection))
        # `work` may have forked: the child comes by here, too, and must not commit the parent's
        # transaction.
        self._refuse_unusable()
        connection.execute("COMMIT")
        return result, self._flushing.committed(durable=durable)

    def _locked_writer(self, deadline_s: float) -> sqlite3.Connection:
        """Take the writer lock and return the open writing connection."""
        held = self._held
        try:
            if held.lock is None:
                held.lock = self._prepare_files()
            held.lock.take(deadline_s)
            self._watch.look_sometimes()
            return held.writing or self._open_writer()
        except OSError as error:
            raise translated_os_error(error, self.path) from error

    # -- opening --------------------------------------------------------------------------------

    def _prepare_files(self) -> WriterLock:
        self._watch.look()
        opening.refuse_unsafe(self.path, create=self._create)
        files.create_private_directory(self.run_directory)
        return WriterLock(self.run_directory / "writer.lock")

    def _open_writer(self) -> sqlite3.Connection:
        self._watch.look()  # a fork closed it: is it still the same file?
        was_open = self._held.identity is not None
        try:
            return opening.open_writer(
                self.path, self._held, create=self._create, timeout_s=self._foreign_wait_s
            )
        except SchemaTooNew as error:
            if was_open:  # as if it had been open all the time
                raise SchemaChanged(str(error)) from error
            raise

    @property
    def _foreign_wait_s(self) -> float:
        return min(FOREIGN_SLICE_S, self._busy_timeout_s)

    def _open_reader(self) -> None:
        # Outside the read mutex: whoever forks or closes takes the write mutex first.
        if self._held.writing is None:
            self.open()
        with self._write_mutex, self._read_mutex:
            if self._held.reading is None and self._held.writing is not None:
                opening.open_reader(self.path, self._held, timeout_s=self._foreign_wait_s)

    # -- watching the file ------------------------------------------------------------------------

    @property
    def presence_path(self) -> Path:
        """Return where the presence file of this database lies."""
        return opening.presence_path_of(self.path)

    def look_at_path(self) -> None:
        """Raise FileReplaced unless the paths still lead to the files that are open."""
        self._watch.look()

    def _explained(self, error: sqlite3.DatabaseError) -> TransportError:
        """Turn SQLite's error into ours; raises FileReplaced when that is what is behind it."""
        self.look_at_path()
        return translated(error, self.path)

    # -- closing and forking ----------------------------------------------------------------------

    def close(self) -> None:
        """Close every connection, under the writer lock; harmless when closed.

        Raises Busy when the writer lock is not to be had in time; nothing is closed then.
        """
        if self._closed:
            return
        if self._pid != os.getpid() or self._poisoned is not None:
            self._abandon("it was inherited")  # closing what the parent uses would harm it
        elif self._is_writing() or self._is_reading():
            message = "a store cannot be closed inside a transaction of its own"
            raise InsideTransaction(message)
        with self._write_mutex, self._read_mutex, self._flushing.mutex:
            self._close_connections()
            self._closed = True
            if self._held.lock is not None:
                self._held.lock.close()
                self._held.lock = None
        forking.forget(self)

    def _close_to_open_anew(self) -> None:
        """Close what cannot write, so that the next transaction opens the file again.

        One call that fails while SQLite opens the file or its shared memory (no descriptor to be had,
        a disk that stumbles) makes it open them for reading, and it never looks again: this process
        could not write as long as it lives.
        """
        with (
            contextlib.suppress(TransportError, sqlite3.Error, OSError),
            self._write_mutex,
            self._read_mutex,
            self._flushing.mutex,
        ):
            self._close_connections()

    def _close_connections(self) -> None:
        """Close all; the caller holds all three mutexes. Raises Busy without having closed."""
        if self._held.writing is None and self._held.reading is None:
            return
        if self._flushing.is_owed:
            # Another thread committed and has not come to its flush yet. It will, and be told.
            with contextlib.suppress(DiskFault):
                self._flushing.flush_now()
        lock = self._held.lock
        try:
            if lock is not None:
                lock.take(time.monotonic() + self._busy_timeout_s)
            self._held.companions = {}  # before SQLite removes them: see `handles.Watch`
            if self._held.reading is not None:
                self._held.reading.close()
                self._held.reading = None
            if self._held.writing is not None:
                self._held.writing.close()
                self._held.writing = None
            if self._held.log is not None:
                os.close(self._held.log)
                self._held.log = None
        finally:
            if lock is not None:
                fcntl.flock(lock.descriptor, fcntl.LOCK_UN)

    def before_fork(self) -> None:
        """Take every mutex and close everything, so that nothing of SQLite is inherited.

        Called by `forking` in the forking thread. What could not be closed stays open: the child
        then refuses every call instead of losing its commits silently.
        """
        mutexes = (self._write_mutex, self._read_mutex, self._flushing.mutex)
        inside = any(owned(mutex) for mutex in mutexes)
        held: list[bool] = []
        self._fork_holds.append(held)
        for mutex in mutexes:
            acquire(mutex, held)
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
        mutexes = (self._write_mutex, self._read_mutex, self._flushing.mutex)
        for _, mutex in reversed(list(zip(held, mutexes, strict=False))):
            mutex.release()

    def after_fork_in_child(self) -> None:
        """Start with new mutexes and nothing open; poisoned if something was left open."""
        if self._held.writing is not None or self._held.reading is not None:
            self._abandon(self._fork_trouble or "the parent had it open while it forked")
        self._reset_mutexes()
        self._fork_holds.clear()
        self._close_inherited_lock()

    def _abandon(self, why: str) -> None:
        """Leave what belongs to the parent open and unused, and refuse every further call."""
        self._poisoned = self._poisoned or why
        self._reset_mutexes()
        for connection in (self._held.writing, self._held.reading):
            if connection is not None:
                forking.abandon(connection)
        self._held.writing = self._held.reading = self._held.log = None
        self._close_inherited_lock()

    def _close_inherited_lock(self) -> None:
        """Close it without unlocking: the parent shares the lock, and an unlock would free it.

        Left open it would outlive the parent, if that dies while it holds the lock.
        """
        if self._held.lock is not None:
            self._held.lock.close()
            self._held.lock = None

    def _refuse_unusable(self) -> None:
        if self._pid != os.getpid():
            self._abandon("the process was forked without Python's fork hooks (from C code?)")
        if self._poisoned is not None:
            forking.refuse(self.path, self._poisoned)
        if self._closed:
            message = f"the store of {self.path} is closed"
            raise CannotOpen(message)


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


__all__ = ["BUSY_TIMEOUT_S", "Database", "Result"]
