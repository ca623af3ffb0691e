"""What can go wrong in the broker, as one tree.

::

    TransportError
    ├── Unavailable            the store cannot be used now; in Kombu's `connection_errors`
    │   ├── Busy               another process held the writer lock for too long
    │   ├── DiskFault          disk full, I/O error, a flush that failed
    │   ├── FileReplaced       the file was moved, removed, emptied or replaced while open
    │   ├── SchemaChanged      another process migrated the file while it was open
    │   └── CannotOpen         the path is not a queue we may open
    │       ├── DatabaseMissing    there is no file and the caller asked not to make one
    │       ├── DatabaseEmpty      there is a file, but no queue in it, and the caller may not make one
    │       ├── UnsafeFile         link, foreign owner, directory, FIFO, open permissions
    │       ├── NetworkFilesystem  SQLite's WAL is not safe there
    │       ├── ForeignDatabase    not SQLite, or another application's database
    │       ├── SchemaTooNew       written by a newer sqlqueue
    │       ├── SchemaTooOld       to be migrated first, which a reader may not do
    │       └── SqliteTooOld       this Python's SQLite lacks what we need
    ├── BackupRefused          the destination of a backup exists, or cannot be one
    ├── ReadOnlyStore          a write was asked of a store that was opened for reading only
    ├── ForkedStore            a handle crossed a fork that could not be made safe
    ├── InvalidMessage         a message, name or option that cannot be stored (also ValueError)
    ├── NotDeclared            an exchange or queue that was never declared, a queue that went away
    ├── QueueFull              a publish to a full queue that refuses instead of dropping its oldest
    ├── QueueLocked            an exclusive queue of another connection
    ├── InsideTransaction      a write was asked for inside another write of the same thread
    ├── LeaseLost              a late settlement was refused; expected, never retried
    └── WorkerSwept            this process was taken for dead; it must register anew

`Unavailable` and its children are what a caller may wait out and try again. The others are
mistakes or facts, and trying again does not help.
"""

from __future__ import annotations

import os


class TransportError(Exception):
    """Be the base of every error this package raises on purpose."""

    def __str__(self) -> str:
        """Return the text in a form that every log and terminal can take.

        A path need not be UTF-8; Python then has its bytes as halves of surrogate pairs, which no
        stream can write.
        """
        return super().__str__().encode("utf-8", "backslashreplace").decode()


class Unavailable(TransportError):
    """Say that the store cannot be used now."""


class Busy(Unavailable):
    """Say that the writer lock was not to be had in time.

    `holder` is the process id that held it, None when nobody could be named.
    """

    def __init__(self, text: str, *, holder: int | None = None) -> None:
        super().__init__(text)
        self.holder = holder


class DiskFault(Unavailable):
    """Say that the disk refused: full, read-only, I/O error or a failed flush.

    A publish that raised this may or may not be stored; nothing acknowledged before is lost.
    """


class FileReplaced(Unavailable):
    """Say that the path no longer leads to the file that is open."""


class SchemaChanged(Unavailable):
    """Say that another process migrated the file; close, and start the newer software."""


class CannotOpen(Unavailable):
    """Say why the path cannot be opened as a queue."""


class DatabaseMissing(CannotOpen):
    """Say that there is no database at the path."""


class DatabaseEmpty(CannotOpen):
    """Say that the file at the path has no tables: it is new, or what it held was in a log that is gone.

    The first commits of a queue may be in its write-ahead log alone.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        name = os.fspath(path)
        super().__init__(
            f"{name} is a database without its content: its write-ahead log is missing (put its "
            f"{name}-wal beside it), or it is new and empty (a worker, a beat or the first "
            "'sqlqueue call' makes it a queue)"
        )


class UnsafeFile(CannotOpen):
    """Say that the file or its directory could be under somebody else's control."""


class NetworkFilesystem(CannotOpen):
    """Say that the path lies where SQLite's write-ahead log corrupts."""


class ForeignDatabase(CannotOpen):
    """Say that the file is not a queue of ours."""


class SchemaTooNew(CannotOpen):
    """Say that the file was written by a newer version."""


class SchemaTooOld(CannotOpen):
    """Say that the file must be migrated, which who opened it for reading only may not do."""


class SqliteTooOld(CannotOpen):
    """Say that the SQLite library of this Python is older than 3.37."""


class BackupRefused(TransportError):
    """Say why a backup cannot be written where it was asked for; nothing was written."""


class ReadOnlyStore(TransportError):
    """Refuse a write to a store that was opened for reading only; nothing was changed."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(
            f"{os.fspath(path)} was opened for reading only, so nothing was changed; open it without "
            "read_only to write"
        )


class ForkedStore(TransportError):
    """Refuse a store that an unsafe fork carried into this process."""


class InvalidMessage(TransportError, ValueError):
    """Refuse a message, name or option before anything is stored."""


class NotDeclared(TransportError):
    """Say that there is no such exchange or queue, or that a queue went away by itself.

    A channel says so as AMQP does, with 404.
    """


class QueueFull(TransportError):
    """Say that a queue holds its `x-max-length` and refuses more (`x-overflow: reject-publish`)."""


class QueueLocked(TransportError):
    """Say that a queue is exclusive to another connection. A channel says so with AMQP's 405."""


class InsideTransaction(TransportError):
    """Refuse a write inside a write of the same thread."""


class LeaseLost(TransportError):
    """Say that a settlement came too late and changed nothing.

    `message_id` and `delivery` name the delivery that is no longer this consumer's.
    """

    def __init__(self, message_id: int, delivery: int) -> None:
        super().__init__(
            f"the lease of delivery {delivery} of message {message_id} is over: it was settled, "
            "taken over or changed by an operator; this settlement changed nothing",
        )
        self.message_id = message_id
        self.delivery = delivery


class WorkerSwept(TransportError):
    """Say that this consumer was taken for dead and its deliveries were given back."""
