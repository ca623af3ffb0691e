"""Command the faults and the clocks of real processes: see `inject.c`, which stands in them."""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from collections.abc import Iterator
from enum import IntFlag
from pathlib import Path

from tests.preload import built

_LAYOUT = struct.Struct("<11q256s")
_NUMBERS = "calls files first last error seen failed budget has_budget wall_ns asleep_ns".split()
_EVER = 2**62
SHORT = -1


class Call(IntFlag):
    """Name what may fail."""

    WRITE = 1
    SYNC = 2
    TRUNCATE = 4
    READ = 8
    OPEN = 16
    MAP = 32
    ALLOCATE = 64
    UNLINK = 128


class File(IntFlag):
    """Name of which file: `SIDE` is what lies in the `-run` directory."""

    DATABASE = 1
    LOG = 2
    SHARED_MEMORY = 4
    SIDE = 8
    DIRECTORY = 16
    ALL = 31


class Injector:
    """Be the switch of one test. Processes started with `environment` obey it, and their children."""

    def __init__(self, directory: Path, control: Path) -> None:
        """Make the control file, or take up one that is there; `directory` is where the queue lies."""
        if not control.exists():
            control.write_bytes(bytes(mmap.PAGESIZE))
        self._path = control
        with control.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        self.environment = {
            "LD_PRELOAD": str(built(Path(__file__).with_name("inject.c"))),
            "INJECT_CONTROL": str(control),
            "INJECT_DIRECTORY": str(directory),
        }

    def _set(self, **values: int) -> None:
        for name, value in values.items():
            struct.pack_into("<q", self._memory, 8 * _NUMBERS.index(name), value)

    def _get(self, name: str) -> int:
        value: int = struct.unpack_from("<q", self._memory, 8 * _NUMBERS.index(name))[0]
        return value

    @property
    def seen(self) -> int:
        """Return how many calls there were that could have failed, since `fail`."""
        return self._get("seen")

    @property
    def failed(self) -> int:
        """Return how many calls have failed since `fail` or `fill`."""
        return self._get("failed")

    def fail(
        self, calls: Call, files: File, *, error: int, first: int = 1, count: int = _EVER
    ) -> None:
        """Fail these calls with an errno, from the `first` on; SHORT writes half, and says so."""
        self.mend()
        self._set(seen=0, failed=0)
        self._set(files=files, first=first, last=min(first + count - 1, _EVER), error=error)
        self._set(calls=calls)

    def fill(self, left_bytes: int = 0) -> None:
        """Be a disk on which the files may grow by so much, and then it is full."""
        self.mend()
        self._set(budget=left_bytes, failed=0)
        self._set(has_budget=1)

    def mend(self) -> None:
        """Fail nothing any more; `seen` and `failed` stay as they are."""
        self._set(calls=0, has_budget=0)

    @contextlib.contextmanager
    def failing(self, calls: Call, files: File, *, error: int) -> Iterator[None]:
        """Fail these calls in the block."""
        self.fail(calls, files, error=error)
        try:
            yield
        finally:
            self.mend()

    def set_wall(self, seconds: float) -> None:
        """Set the wall clock so much ahead of the machine's."""
        self._set(wall_ns=round(seconds * 1e9))

    def suspend(self, seconds: float) -> None:
        """Be a machine that slept: wall clock and CLOCK_BOOTTIME go on, CLOCK_MONOTONIC stood still."""
        for name in ("wall_ns", "asleep_ns"):
            self._set(**{name: self._get(name) + round(seconds * 1e9)})

    def reboot(self, boot_id: str) -> None:
        """Have processes started from now on read another boot id."""
        path = self._path.with_name("boot_id")
        path.write_text(boot_id + "\n")
        text = os.fsencode(path)
        at = 8 * len(_NUMBERS)
        self._memory[at : at + len(text) + 1] = text + b"\0"
