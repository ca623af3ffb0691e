"""Stacks at SIGQUIT: what each process of a worker does at this very moment.

The question is asked when something hangs, so the answer must not need what hangs: `faulthandler`
writes from the signal handler itself, in C, without Python's lock. A child writes to a file without
a name that its supervisor has opened, and the supervisor prints it with a heading, because the
lines of many processes on one standard error would be nobody's.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlqueue.text import escaped

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Asked", "Stacks"]

_STDERR: Final = 2
_MOST_FILES: Final = 200  # descriptors; the usual limit of a process is 1024
_PATIENCE_S: Final = 1.0
_LOOK_EVERY_S: Final = 0.02
# An answer has no end mark. It is whole when it has not grown for so many looks: threads are
# written in one go, and the process may have lost its processor in between.
_QUIET_LOOKS: Final = 5
_MOST_BYTES: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Asked:
    """Be one child that is asked: its place, its process id, and the heading of its answer."""

    place: int
    pid: int
    title: str


class Stacks:
    """The files that children answer in, one a place, shared with the supervisor by fork.

    Of the places beyond the 200th the answer goes to standard error directly, without a heading.
    """

    def __init__(self) -> None:
        self._files: dict[int, int] = {}

    def descriptor_of(self, place: int) -> int:
        """Return where the child of a place writes; opened at the first call. Call before forking.

        Standard error where no file can be had: then the child answers there.
        """
        if place not in self._files:
            if len(self._files) >= _MOST_FILES:
                return _STDERR
            with contextlib.suppress(OSError):
                self._files[place] = _file_without_name()
        return self._files.get(place, _STDERR)

    def close_others(self, descriptor: int) -> None:
        """Close the files of all other places, in a child."""
        for one in self._files.values():
            if one != descriptor:
                os.close(one)

    def close(self) -> None:
        """Close all files, when no child is left."""
        for one in self._files.values():
            os.close(one)
        self._files.clear()

    def ask(self, asked: Sequence[Asked]) -> None:
        """Print the stacks of these children to standard error. Takes a second at most, never raises.

        Who does not answer is stopped (SIGSTOP, a debugger), sits in the kernel, or has taken
        SIGQUIT for its own. Nobody ends by it.
        """
        with_file = [one for one in asked if one.place in self._files]
        for one in with_file:
            file = self._files[one.place]
            with contextlib.suppress(OSError):
                os.ftruncate(file, 0)
                os.lseek(file, 0, os.SEEK_SET)  # the child's position, too: it came by fork
        for one in asked:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one.pid, signal.SIGQUIT)
        self._wait_for(with_file)
        for one in asked:
            file = self._files.get(one.place, _STDERR)
            said = b"(it answers on standard error itself)\n"
            if file != _STDERR:
                said = os.pread(file, _MOST_BYTES, 0) or b"(did not answer)\n"
            _print(f"--- {one.title}", said.decode("utf-8", "backslashreplace"))

    def _wait_for(self, asked: Sequence[Asked]) -> None:
        give_up_s = time.monotonic() + _PATIENCE_S
        sizes: list[int] = []
        quiet = 0
        while asked and quiet < _QUIET_LOOKS and time.monotonic() < give_up_s:
            time.sleep(_LOOK_EVERY_S)
            now = [os.fstat(self._files[one.place]).st_size for one in asked]
            quiet = quiet + 1 if now == sizes and all(now) else 0
            sizes = now


def _file_without_name() -> int:
    if sys.platform == "linux":
        return os.memfd_create("sqlqueue-stacks")
    with tempfile.TemporaryFile() as file:  # pragma: no cover - not on Linux
        return os.dup(file.fileno())


def _print(title: str, text: str) -> None:
    with contextlib.suppress(Exception):  # a closed or full standard error must not end the worker
        sys.stderr.write(f"{escaped(title)}\n{escaped(text, keep_newlines=True)}\n")
        sys.stderr.flush()
