"""What the jobs of every framework do: nothing, sleep, or note how long they were under way.

Each one counts itself in a file that all processes map, where the measurement sees at any moment how
many have run, and when the first and the last one began. That is exact, whoever overtakes whom, and
costs each framework the same microsecond.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
import time
from functools import cache
from pathlib import Path

__all__ = ["NAP_S", "NUMBERED", "Tally", "forget_marks", "mark", "marked", "nap", "nothing"]

NAP_S = 0.002
TALLY, MARKS = "tally", "marks.txt"
SLOTS = 20_000  # of processes; RQ has one for each job
NUMBERED = 16  # slots of those that are told their number, because they cannot lock a file
_WORDS = 3  # of 8 bytes: how many jobs, when the first and the last one began (monotonic, ns)
# The first word of the file is the number of slots that are taken, beside the numbered ones.

_lock = threading.Lock()


def nothing() -> None:
    """Be a job that costs nothing."""
    _count()


def nap() -> None:
    """Be a job of two milliseconds, which leaves the processor to others."""
    _count()
    time.sleep(NAP_S)


def mark(published_ns: int) -> None:
    """Note when this job was published and when it began."""
    began_ns = time.monotonic_ns()
    os.write(_marks(), b"%d %d\n" % (published_ns, began_ns))
    _count()


def marked(directory: Path) -> list[float]:
    """Return how long jobs were under way from publish to their begin, in seconds."""
    path = directory / MARKS
    lines = path.read_text().splitlines() if path.exists() else []
    times = [[int(word) for word in line.split()] for line in lines]
    return [(began - published) / 1e9 for published, began in times]


def forget_marks(directory: Path) -> None:
    """Empty the notes; workers go on to write into the same file."""
    (directory / MARKS).write_text("")


def _count() -> None:
    now_ns = time.monotonic_ns()
    with _lock:  # jobs of a pool of threads share a slot
        slot = _slot()
        if not slot[0]:
            slot[1] = now_ns
        slot[2] = now_ns
        slot[0] += 1


@cache
def _marks() -> int:
    path = Path(os.environ["BENCH_DIRECTORY"]) / MARKS
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


@cache
def _slot() -> memoryview:
    directory = Path(os.environ["BENCH_DIRECTORY"])
    words = _mapped(directory)
    with (directory / TALLY).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        number = NUMBERED + words[0]
        words[0] += 1
    return words[1 + number * _WORDS : 1 + (number + 1) * _WORDS]


def _mapped(directory: Path) -> memoryview:
    with (directory / TALLY).open("r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")


class Tally:
    """Be the side that looks on."""

    def __init__(self, directory: Path) -> None:
        self._words = _mapped(directory)

    @classmethod
    def fresh(cls, directory: Path) -> Tally:
        """Start from nothing. Workers that run already go on with the old file."""
        (directory / TALLY).unlink(missing_ok=True)
        (directory / TALLY).write_bytes(bytes(8 * (1 + SLOTS * _WORDS)))
        return cls(directory)

    def count(self) -> int:
        """Return how many jobs have begun."""
        return sum(self._column(0))

    def first_ns(self) -> int:
        """Return when the first job began, on the monotonic clock."""
        return min(filter(None, self._column(1)))

    def last_ns(self) -> int:
        """Return when the last job began, on the monotonic clock."""
        return max(self._column(2))

    def _column(self, number: int) -> memoryview:
        end = 1 + (NUMBERED + self._words[0]) * _WORDS
        return self._words[1 + number : end : _WORDS]
