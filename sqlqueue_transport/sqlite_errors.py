"""Tell what SQLite's errors mean, in ours: which are worth another try, and what to do about the rest."""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from typing import TYPE_CHECKING

from sqlqueue_transport import files
from sqlqueue_transport.errors import (
    Busy,
    CannotOpen,
    DiskFault,
    ForeignDatabase,
    InvalidMessage,
    TransportError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# SQLite's way of saying that a statement or a value of ours is wrong: never worth another try.
MISTAKES = (
    sqlite3.IntegrityError,
    sqlite3.ProgrammingError,
    sqlite3.DataError,
    sqlite3.NotSupportedError,
)
# What SQLite and its Python binding raise for a value that a column cannot hold: a wrong type or a
# broken CHECK, a lone surrogate, an integer beyond 64 bits, a value beyond SQLite's limit.
NOT_STORABLE = (
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    sqlite3.DataError,
    UnicodeEncodeError,
    OverflowError,
)
# What SQLite says of the disk, and what to do. After an I/O error nobody can promise that nothing was
# changed: what a write that failed has left may be found when the log is read anew.
_DISK_REMEDIES = {
    "disk is full": "nothing was changed; free space and try again",
    "disk I/O error": "the kernel's log (dmesg) may say why; mend the disk and try again",
    "readonly": "nothing was changed; mend the permissions, or mount it for writing",
    "unable to open": "nothing was changed; mend the permissions or the disk, and try again",
}
# On a disk without room SQLite cannot make log and shared memory, and says no more than this
# (SQLITE_IOERR_SHMSIZE, SQLITE_CANTOPEN): the kernel's log would have nothing about it.
_ALSO_WITHOUT_ROOM = frozenset({"disk I/O error", "unable to open"})
_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS})


@contextlib.contextmanager
def refused_values(what: str) -> Iterator[None]:
    """Turn SQLite's refusal of a value into InvalidMessage, which begins with `what`."""
    try:
        yield
    except NOT_STORABLE as error:
        raise refused(what, error) from error


def refused(what: str, error: Exception) -> InvalidMessage:
    """Return what to raise for a value that SQLite refused."""
    return InvalidMessage(f"{what}: {error}")


def is_locked(error: sqlite3.Error) -> bool:
    """Say whether another connection held a lock, which may be waited out."""
    return "database is locked" in str(error)


def is_read_only(error: sqlite3.Error) -> bool:
    """Say whether a connection cannot write: SQLite opens so what it could not open for writing."""
    return "readonly database" in str(error)


def not_sqlite_text(path: Path) -> str:
    """Say that a file is no database."""
    return f"{path} is not a SQLite database; give another path"


def translated(error: sqlite3.Error, path: Path) -> TransportError:
    """Turn SQLite's errors into ours; Python 3.10 offers nothing but the text."""
    text = str(error)
    if is_locked(error):
        return Busy(f"{path}: {text}")
    if "not a database" in text:
        return ForeignDatabase(not_sqlite_text(path))
    if "malformed" in text or "Could not decode" in text:
        # Also what SQLite makes of a read that failed (SQLITE_IOERR_CORRUPTFS in its vdbe.c).
        return DiskFault(
            f"{path} is damaged ({text}), unless its disk cannot be read (dmesg says so); stop "
            "everything and restore a backup, or try '.recover' of the sqlite3 shell on a copy",
        )
    for hint, remedy in _DISK_REMEDIES.items():
        if hint in text:
            if hint in _ALSO_WITHOUT_ROOM and files.is_full(path):
                return DiskFault(
                    f"{path}: its disk is full ({files.free_bytes(path.parent) or 0} bytes free), and "
                    f"SQLite needs some to open it ({text}); free space and try again"
                )
            return DiskFault(f"{path}: {text}; {remedy}")
    if isinstance(error, sqlite3.OperationalError) and "no such table" in text:
        return ForeignDatabase(f"{path} lacks our tables ({text})")
    return TransportError(f"{path}: {text}")


def translated_os_error(error: OSError, path: Path) -> TransportError:
    """Turn what the operating system says while we open or watch the file into ours."""
    where = error.filename or path
    if error.errno in _DISK_ERRORS:
        return DiskFault(f"{where}: {error.strerror}; free space or mend the disk and try again")
    return CannotOpen(f"cannot open {path}: {where}: {error.strerror}")
