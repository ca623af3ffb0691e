"""What this process has open of one queue file, and whether the paths still lead there."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlqueue_transport import files
from sqlqueue_transport.errors import FileReplaced
from sqlqueue_transport.sqlite_errors import translated_os_error

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

    from sqlqueue_transport.writer_lock import WriterLock

LOOK_AT_PATH_EVERY_S = 1.0


@dataclass(slots=True)
class Handles:
    """Be what is open; None where it is not. Guarded by the mutexes of its `Database`."""

    lock: WriterLock | None = None
    writing: sqlite3.Connection | None = None
    reading: sqlite3.Connection | None = None
    log: int | None = None  # a descriptor of the `-wal` that `writing` appends to
    # The files that must stay where they are, as long as they are open.
    identity: files.FileIdentity | None = None
    companions: dict[Path, files.FileIdentity] = field(default_factory=dict)


class Watch:
    """Notice that a file was moved, removed, replaced or truncated while it is in use.

    A renamed file still accepts writes. What becomes of the log, the shared memory and the writer
    lock matters as much: a process that comes later would not meet us there.
    """

    def __init__(self, path: Path, held: Handles) -> None:
        """Watch over what is held of the database at `path`."""
        self._path = path
        self._held = held
        self.looked_at_s = 0.0

    def look(self) -> None:
        """Raise FileReplaced unless the paths still lead to the files that are open."""
        try:
            self._look()
        except OSError as error:
            raise translated_os_error(error, self._path) from error
        self.looked_at_s = time.monotonic()

    def look_sometimes(self) -> None:
        """Look unless somebody did within a second: it costs a few system calls."""
        if abs(time.monotonic() - self.looked_at_s) >= LOOK_AT_PATH_EVERY_S:
            self.look()

    def _look(self) -> None:
        held = self._held
        if held.identity is None:
            return
        companions, lock = held.companions, held.lock
        expected = {self._path: held.identity, **companions}
        if lock is not None:
            expected[lock.path] = lock.identity
        for path, identity in expected.items():
            found = files.identity_of(path)
            if path in companions and held.companions is not companions:
                continue  # closed in another thread, and so perhaps removed by SQLite
            if found is None:
                raise FileReplaced(replaced_text(path, "moved or removed"))
            if found != identity:
                raise FileReplaced(replaced_text(path, "replaced by another file"))
        if files.size_of(self._path) == 0:
            raise FileReplaced(replaced_text(self._path, "truncated to zero bytes"))


def replaced_text(path: Path, what: str) -> str:
    """Say what happened to a file that is in use, and what to do."""
    return (
        f"{path} was {what} while the queue was in use; what this process wrote since then may "
        "be lost to the others. Stop all processes of the queue, put the right file back, restart"
    )
