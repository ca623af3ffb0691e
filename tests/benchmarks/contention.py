"""Level `contention`: many processes publish at once, through our writer lock or without it.

See `programs.many_writers`. SQLite alone lets a process that finds another writing sleep, for longer
each time, and ask again; who has just written finds the lock free. Ours takes turns (`writer_lock`).
How those turns were chosen, among other ways to wait, is measured without a store around them, in
`python -m tests.benchmarks.writer_lock`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.benchmarks.fresh import run_fresh
from tests.benchmarks.levels import Measure, Ratio, Subject

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["LEVEL"]

_WRITERS = {False: (1, 2, 4, 8, 16), True: (1, 4, 8, 16)}
_SECONDS = 1.5
_OURS, _ALONE = "sqlqueue Store", "SQLite's busy timeout"


def _name(by: str, writers: int, *, synced: bool) -> str:
    many = "1 writer" if writers == 1 else f"{writers} writers"
    return f"{by}, {'synced' if synced else 'unsynced'}, {many}"


class _Contention:
    name = "contention"
    title = "Processes that publish one message of 300 B a transaction, all at once"
    measures = (
        Measure("publish", "/s"),
        Measure("worst wait", "ms", "{:,.1f}", more_is_better=False),
        Measure("wait p99.9", "ms", "{:,.1f}", more_is_better=False),
        Measure("slowest publish", "ms", "{:,.1f}", more_is_better=False),
        Measure("share", "", "{:.2f}"),
        Measure("CPU", "µs", "{:,.1f}", more_is_better=False),
    )
    notes = (
        "Publish: of all processes together. A wait: from the call until it may write; the worst of all.",
        "Share: the messages of the process that got the fewest, of those of the one with the most.",
    )

    def __init__(self) -> None:
        self._how = {
            _name(by, writers, synced=synced): (by, writers, synced)
            for synced, numbers in _WRITERS.items()
            for writers in numbers
            for by in (_OURS, _ALONE)
        }
        self.subjects = tuple(
            Subject(
                name,
                synced="each transaction" if synced else "nothing",
                survives="power cut" if synced else "any kill",
            )
            for name, (_, _, synced) in self._how.items()
        )
        self.ratios = tuple(self._ratios())

    def _ratios(self):
        for synced, numbers in _WRITERS.items():
            for writers in numbers[1:]:
                ours = _name(_OURS, writers, synced=synced)
                theirs = _name(_ALONE, writers, synced=synced)
                aim = 0.1 if writers == 8 else None
                yield Ratio("publish", ours, theirs)
                yield Ratio("worst wait", ours, theirs, at_least=aim)
                # A single writer's share is 1, so that this is the share itself.
                alone = _name(_OURS, 1, synced=synced)
                even, evener = (0.5, 0.9) if writers == 8 else (None, None)
                yield Ratio("share", ours, alone, at_least=even, then=evener)

    def measure(self, subject: Subject, directory: Path, scale: float) -> Mapping[str, float]:
        """Measure one; the processes are children of one of its own."""
        by, writers, synced = self._how[subject.name]
        return run_fresh(
            "tests.benchmarks.programs.many_writers",
            directory,
            by="store" if by == _OURS else "plain",
            writers=writers,
            seconds=max(_SECONDS * scale, 0.3),
            synced=synced,
        )


LEVEL = _Contention()
