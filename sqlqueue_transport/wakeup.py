"""Wake idle consumers in other processes, without anybody polling the file.

A consumer that finds nothing raises its flag in the presence file, looks at the store once more
in a new read transaction, and sleeps on a FIFO. A publisher commits, then reads the flags and
writes one byte. Either the consumer's second look sees the commit, or the publisher's look at
the flags sees the flag: no order of the two loses a message. FIFOs and not sockets, because a
socket's path ends at 107 bytes, and not abstract ones, because containers do not share them.
"""

from __future__ import annotations

import errno
import os
import select
from typing import TYPE_CHECKING

from sqlqueue_transport.files import sync_directory

if TYPE_CHECKING:
    from pathlib import Path

_WORD = b"!"


class Bell:
    """Be the FIFO on which one consumer sleeps. `ring` may be called from a signal handler."""

    def __init__(self, path: Path) -> None:
        """Make the FIFO, or take over the one a dead predecessor left in this slot."""
        try:
            os.mkfifo(path, 0o600)
            sync_directory(path.parent)
        except FileExistsError:
            pass
        # Reading and writing, so that opening never blocks and the FIFO never reads as closed.
        self.descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self.descriptor, select.POLLIN)

    def wait(self, timeout_s: float) -> bool:
        """Sleep until somebody rings, at most `timeout_s`; say whether somebody did."""
        if not self._poll.poll(max(timeout_s, 0.0) * 1000):
            return False
        self.silence()
        return True

    def silence(self) -> None:
        """Forget what was rung so far."""
        try:
            while len(os.read(self.descriptor, 4096)) == 4096:  # noqa: PLR2004
                pass
        except BlockingIOError:
            pass

    def ring(self) -> None:
        """Wake the owner itself: for signal handlers and other threads of the process."""
        try:
            os.write(self.descriptor, _WORD)
        except BlockingIOError:
            pass  # full: it is awake already

    def close(self) -> None:
        """Close the FIFO; its name stays for the slot's next owner."""
        os.close(self.descriptor)


def bell_path(run_directory: Path, slot: int) -> Path:
    """Return where the FIFO of a slot lies."""
    return run_directory / f"wake.{slot}"


def ring(run_directory: Path, slot: int) -> bool:
    """Wake the owner of a slot; False when nobody listens there any more."""
    try:
        descriptor = os.open(
            bell_path(run_directory, slot), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC
        )
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno == errno.ENXIO:  # no reader: its owner died
            return False
        raise
    try:
        os.write(descriptor, _WORD)
    except BlockingIOError:
        pass
    finally:
        os.close(descriptor)
    return True
