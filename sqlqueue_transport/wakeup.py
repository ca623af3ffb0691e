"""Wake idle consumers in other processes, without anybody polling the file.

A consumer that finds nothing raises its flag in the presence file, looks at the store once more
in a new read transaction, and sleeps on a FIFO. A publisher commits, then reads the flags and
writes one byte. Either the consumer's second look sees the commit, or the publisher's look at
the flags sees the flag: no order of the two loses a message. FIFOs and not sockets, because a
socket's path ends at 107 bytes, and not abstract ones, because containers do not share them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_WORD = b"!"


class Bell:
    """Be the FIFO on which one process sleeps. `ring` may be called from a signal handler.

    Any thread may close it, also while others use it. They read and write under a lock (reentrant,
    for signal handlers), and only while it is open: by then the numbers of its descriptors may be
    others' files, and a byte written to the database by such a number would destroy it.
    """

    def __init__(self, path: Path) -> None:
        """Make the FIFO, or take over the one a dead predecessor left in this slot.

        It need not survive a power cut, so nothing is flushed.
        """
        try:
            os.mkfifo(path, 0o600)
        except FileExistsError:
            if not stat.S_ISFIFO(os.lstat(path).st_mode):
                path.unlink()
                os.mkfifo(path, 0o600)
        # Reading and writing, so that opening never blocks and the FIFO never reads as closed.
        self.descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        # By which an event loop that polls the same FIFO tells the thread that listens.
        self._word_reading, self._word_writing = os.pipe()
        self._poll = select.poll()
        for descriptor in (self._word_reading, self._word_writing):
            os.set_blocking(descriptor, False)
        for descriptor in (self.descriptor, self._word_reading):
            self._poll.register(descriptor, select.POLLIN)
        self._changed = threading.Condition()
        self._is_open = True
        self._somebody_listens = False
        self._echoes: set[int] = set()
        # How often this process has heard it: see `wait`.
        self.heard = 0

    def wait(self, timeout_s: float, *, since: int | None = None) -> bool:
        """Sleep until somebody rings, at most `timeout_s`; say whether somebody may have.

        Of several threads one listens for all: whoever reads the byte would otherwise take it
        from the thread it was meant for. When it stops listening, the others wake as well.

        That leaves a thread which has looked and is about to sleep. With `since`, what `heard` was
        before it raised its flag, it does not sleep if another has heard the bell by now.
        """
        timeout_s = max(timeout_s, 0.0)
        is_listening = False
        try:
            with self._changed:
                if not self._is_open or (since is not None and since != self.heard):
                    return True
                if self._somebody_listens:
                    return self._changed.wait(timeout_s)
                self._somebody_listens = is_listening = True
            if not self._poll.poll(timeout_s * 1000):
                return False
            with self._changed:
                if self._is_open:
                    silence(self._word_reading)
            self._hear()
            return True
        finally:
            if is_listening:
                with self._changed:
                    self._somebody_listens = False
                    self._changed.notify_all()

    def hear(self) -> None:
        """Take the bytes rung so far, for an event loop, and wake all who sleep in this process."""
        self._hear()
        with self._changed:
            if self._somebody_listens and self._is_open:
                # It polls the same FIFO. Woken by a byte that is gone it would sleep on.
                with contextlib.suppress(BlockingIOError):  # full: it is awake already
                    os.write(self._word_writing, _WORD)

    def _hear(self) -> None:
        with self._changed:
            if not self._is_open:
                return
            # In one step for who compares `heard`: no byte is taken that it does not tell of.
            silence(self.descriptor)
            self.heard += 1
            self._changed.notify_all()
            for echo in self._echoes:
                with contextlib.suppress(BlockingIOError):  # full: it is awake already
                    os.write(echo, _WORD)

    def add_echo(self, descriptor: int) -> None:
        """Write a byte to a pipe of an event loop whenever somebody hears the bell.

        A loop watches the FIFO itself, too; but a thread that waits may take the byte from it.
        """
        with self._changed:
            self._echoes.add(descriptor)

    def remove_echo(self, descriptor: int) -> None:
        """Stop writing to a pipe, before it is closed."""
        with self._changed:
            self._echoes.discard(descriptor)

    def ring(self) -> None:
        """Wake the owner itself: for signal handlers and other threads of the process."""
        with self._changed, contextlib.suppress(BlockingIOError):  # full: it is awake already
            if self._is_open:
                os.write(self.descriptor, _WORD)

    def close(self) -> None:
        """Close the FIFO and wake who waits; its name stays for the slot's next owner."""
        with self._changed:
            if not self._is_open:
                return
            self._is_open = False
            self._changed.notify_all()
            with contextlib.suppress(BlockingIOError):  # full: it is awake already
                os.write(self._word_writing, _WORD)
            self._close_descriptors()

    def close_in_child(self) -> None:
        """Close a forked child's copies, whatever thread held the lock at that moment."""
        self._changed = threading.Condition()
        if self._is_open:
            self._is_open = False
            self._close_descriptors()

    def _close_descriptors(self) -> None:
        for descriptor in (self.descriptor, self._word_reading, self._word_writing):
            os.close(descriptor)


def silence(descriptor: int) -> None:
    """Read all there is from a FIFO or pipe that does not block."""
    try:
        while len(os.read(descriptor, 4096)) == 4096:
            pass
    except BlockingIOError:
        pass


def bell_path(run_directory: Path, slot: int) -> Path:
    """Return where the FIFO of a slot lies."""
    return run_directory / f"wake.{slot}"


def ring(run_directory: Path, slot: int) -> bool:
    """Wake the owner of a slot; False when nobody listens there any more."""
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(bell_path(run_directory, slot), flags)
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
