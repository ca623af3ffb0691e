"""The log file: one that several processes append to, and logrotate takes away.

`log.py` hands lines to it; it knows nothing of events.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sqlqueue.errors import ConfigError
from sqlqueue.text import quoted

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["LogFile"]


class LogFile:
    """A file that lines are appended to, each whole. Raises ConfigError if it cannot be opened.

    `write` and `reopen` raise OSError. Nothing is written at opening. A process that dies in a
    write leaves a line cut short, at worst.

    A line is one write to a descriptor opened for appending, which no other process's line can come
    into. There is no lock, so none can be held at a fork or in a signal handler: the descriptor is
    exchanged by dup2, in one step, under the number it has. To close it and open another would be a
    trap: between the two, another thread's open may get the number, and a log line lands in a
    database.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = _open_log(path)
            self._identity = _identity(os.fstat(self._fd))
        except OSError as error:
            raise ConfigError(
                f"cannot write the log {quoted(str(path), limit=300)}: {error.strerror}."
                " Name another file with --log-file, or mend its directory."
            ) from None

    def write(self, line: str) -> None:
        """Append one line, to the file that bears the name now."""
        self._follow()
        data = f"{line}\n".encode(errors="backslashreplace")
        while data:  # a signal or a nearly full disk may cut a write short
            data = data[os.write(self._fd, data) :]

    def reopen(self) -> None:
        """Go over to the file that bears the name now, and make it if there is none."""
        fresh = _open_log(self.path)
        if self._is_ours():
            os.dup2(fresh, self._fd, inheritable=False)
            os.close(fresh)
        else:
            # Somebody closed all descriptors, as daemons do, and ours may be another file by now.
            self._fd = fresh
        self._identity = _identity(os.fstat(self._fd))

    def _follow(self) -> None:
        """Open the file anew if what the path names is no longer what we write to."""
        try:
            named = _identity(self.path.stat())
            if named == _identity(os.fstat(self._fd)):
                return
        except OSError:  # moved away and not made again; or our descriptor is closed
            pass
        # A directory that is gone for good leaves us the file we have, if we still have it.
        try:
            self.reopen()
        except OSError:
            if not self._is_ours():
                raise

    def _is_ours(self) -> bool:
        try:
            return _identity(os.fstat(self._fd)) == self._identity
        except OSError:
            return False


def _open_log(path: Path) -> int:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # O_NONBLOCK for the opening only: a FIFO without a reader would block it for ever.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    fd = os.open(path, flags, 0o600)
    os.set_blocking(fd, True)
    return fd


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
