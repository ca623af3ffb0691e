"""Copy a queue file while it is in use: whole, of one moment, or not at all.

SQLite's backup API goes page by page, and begins anew whenever somebody else has written to the
file: under load it never ends (measured: 20 s in vain for 114 MB). So the copying connection is
inside a read transaction, whose pages nobody changes; then it goes on, step by step, to its end
(0.8 s). It holds no lock that a writer wants. Only the log cannot begin anew meanwhile, and grows by
what is written in that time.

The copy is made under another name beside its destination, by one process at a time, flushed,
examined, compared and then renamed. So there is never a half backup by the name somebody will
restore, and what a killed process leaves is written over by the next.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from sqlqueue_transport import checking, files
from sqlqueue_transport.errors import BackupRefused, DiskFault
from sqlqueue_transport.opening import run_directory_of
from sqlqueue_transport.read_only import ReadOnlyDatabase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["BackupReport", "back_up"]

_STEP_PAGES = 1000  # 4 MB: some 20 ms between two calls of `tell`
_COUNTS = "SELECT state, task IS NOT NULL, count(*) FROM message GROUP BY 1, 2 ORDER BY 1, 2"


@dataclass(frozen=True, slots=True)
class BackupReport:
    """Be a finished backup: where it is, its size, how many jobs of whatever state are in it."""

    path: Path
    bytes: int
    jobs: int
    took_s: float


def back_up(
    source: Path,
    destination: Path,
    *,
    force: bool = False,
    tell: Callable[[int, int], None] | None = None,
) -> BackupReport:
    """Copy the queue file at `source` to `destination`, which is of mode 0600 and on the disk then.

    `tell` is called in this thread with the bytes copied so far and those of all; what it raises
    ends the backup. Raises BackupRefused for a destination that exists (unless `force`), is a
    directory or the queue itself, or that another process is making; DiskFault, and a CannotOpen
    of the source. With `force` a regular file is replaced, and nothing else ever is. If it fails, or
    the process dies midway, there is nothing by the name of the destination that was not there
    before; only a kill leaves a hidden file `.NAME.sqlqueue-backup`, which the next backup of that
    name writes over. A fork in another thread waits for the end.
    """
    began_s = time.monotonic()
    if destination.is_dir():
        message = (
            f"{destination} is a directory; give a name in it, such as {destination / source.name}"
        )
        raise BackupRefused(message)
    destination = files.resolved_path(destination)
    _refuse(source, destination, force=force)
    with _making(destination) as (making, descriptor):
        counts = _copied(source, making, tell)
        _verify(making, counts, tell)
        os.fsync(descriptor)
        _refuse(source, destination, force=force)  # somebody else's may have come meanwhile
        making.rename(destination)
    files.sync_directory(destination.parent)
    return BackupReport(
        path=destination,
        bytes=files.size_of(destination) or 0,
        jobs=sum(count for _, is_job, count in counts if is_job),
        took_s=time.monotonic() - began_s,
    )


def _refuse(source: Path, destination: Path, *, force: bool) -> None:
    run_directory = run_directory_of(source)
    of_the_queue = {source, *(Path(f"{source}{end}") for end in files.COMPANIONS), run_directory}
    if {
        destination,
        _making_of(destination),
    } & of_the_queue or run_directory in destination.parents:
        message = f"{destination} belongs to the queue itself; give the backup another name"
        raise BackupRefused(message)
    for end in ("-wal", "-journal"):
        log = destination.with_name(destination.name + end)
        if files.size_of(log):  # an empty one, as readers leave it, does no harm
            message = (
                f"{log} is not empty: SQLite would play it into the backup. Give the backup another "
                "name, or remove that database with its log, if nothing has it open"
            )
            raise BackupRefused(message)
    if not os.path.lexists(destination):
        return
    if not stat.S_ISREG(destination.lstat().st_mode):
        message = f"{destination} is no regular file, and is not replaced; give another name"
        raise BackupRefused(message)
    if not force:
        message = f"{destination} exists; give another name, or --force to replace it"
        raise BackupRefused(message)


def _making_of(destination: Path) -> Path:
    """Return the name under which a copy is made: nobody else's file is called like that."""
    return destination.with_name(f".{destination.name}.sqlqueue-backup")


@contextlib.contextmanager
def _making(destination: Path) -> Iterator[tuple[Path, int]]:
    """Give a new file beside the destination to write to, and take it away unless it was renamed."""
    making = _making_of(destination)
    files.create_private_file(making)
    descriptor = os.open(making, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _lock(making, descriptor)
        os.fchmod(descriptor, 0o600)
        os.ftruncate(descriptor, 0)  # what a killed process has left
        try:
            yield making, descriptor
        except BaseException:
            making.unlink(missing_ok=True)
            raise
    finally:
        os.close(descriptor)


def _lock(making: Path, descriptor: int) -> None:
    """Be the one process that writes this file; the lock goes with the descriptor."""
    message = f"another process is making {making}; wait for it, or give the backup another name"
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BackupRefused(message) from None
    found = os.fstat(descriptor)
    if files.identity_of(making) != files.FileIdentity(found.st_dev, found.st_ino):
        raise BackupRefused(message)  # it was finished and renamed just now


def _copied(
    source: Path, making: Path, tell: Callable[[int, int], None] | None
) -> list[tuple[str, int, int]]:
    """Copy the pages of one moment, and return what was counted at that moment."""

    def work(connection: sqlite3.Connection) -> list[tuple[str, int, int]]:
        # The transaction has read already, so its moment is fixed.
        page_size = connection.execute("PRAGMA page_size").fetchone()[0]

        def progress(_: int, remaining: int, total: int) -> None:
            if tell is not None:
                tell((total - remaining) * page_size, total * page_size)

        with checking.ticking(connection, None):
            counts: list[tuple[str, int, int]] = connection.execute(_COUNTS).fetchall()
        target = _connect(making, "nolock=1")  # locked above, and on any filesystem
        try:
            # Nobody reads it before it is finished and flushed.
            target.execute("PRAGMA journal_mode = OFF").fetchall()
            target.execute("PRAGMA synchronous = OFF").fetchall()
            connection.backup(target, pages=_STEP_PAGES, progress=progress)
        except sqlite3.Error as error:
            message = f"copying {source} to {making} failed: {error}; free space or mend the disk"
            raise DiskFault(message) from error
        finally:
            target.close()
        return counts

    database = ReadOnlyDatabase(source)
    try:
        return database.read(work)
    finally:
        database.close()


def _verify(
    making: Path, counts: list[tuple[str, int, int]], tell: Callable[[int, int], None] | None
) -> None:
    """Raise DiskFault unless the copy is in order and holds what was counted."""
    size = files.size_of(making) or 0
    # Immutable: no log is made beside it, though its header asks for one.
    copy = _connect(making, "mode=ro&immutable=1")
    try:
        found = checking.complaints(
            copy, full=True, tick=None if tell is None else (lambda: tell(size, size))
        )
        if not found and copy.execute(_COUNTS).fetchall() != counts:
            found = ["it does not hold as many jobs as the queue did"]
    except sqlite3.DatabaseError as error:
        found = [str(error)]
    finally:
        copy.close()
    if found:
        message = (
            f"the copy at {making} is damaged and was removed ({found[0]}); examine the queue: "
            "sqlqueue db check --full"
        )
        raise DiskFault(message)


def _connect(path: Path, query: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"file:{quote(os.fsencode(path))}?{query}", uri=True, isolation_level=None
    )
