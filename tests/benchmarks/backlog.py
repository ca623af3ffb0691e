"""Level `backlog`: what a million messages that wait, or that are done, cost those that come and go.

See `programs.on_files` and `filled`. An index that holds only what is ready, and counts that are
kept for blocks of old rows, are meant to make it nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.benchmarks.filled import Together, filled
from tests.benchmarks.fresh import run_fresh
from tests.benchmarks.levels import Measure, Ratio, Subject

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["LEVEL"]

_BY = {
    "SQLite alone": "plain",
    "sqlqueue Store": "store",
    "sqlqueue through Kombu": "kombu",
}
_FILES = {
    "empty": (0, "pending"),
    "10,000 waiting": (10_000, "pending"),
    "1,000,000 waiting": (1_000_000, "pending"),
    "1,000,000 done": (1_000_000, "done"),
}
_EMPTY = next(iter(_FILES))
# At full scale, of each file: long enough for several copies of the log into the file.
_PORTIONS, _SIZE = 6, 1_000


class _Backlog:
    name = "backlog"
    title = "Beside a million messages: messages a second by one process, 300 B, nothing synced"
    measures = (
        Measure("enqueue", "/s"),
        Measure("claim + ack", "/s"),
        Measure("enqueue CPU", "µs", "{:,.1f}", more_is_better=False),
        Measure("claim + ack CPU", "µs", "{:,.1f}", more_is_better=False),
    )
    notes = (
        "Waiting: ready, and taken in their order, oldest first. Done: kept as history.",
        "Through Kombu up to 16 messages are taken at once, otherwise each alone.",
    )

    def __init__(self) -> None:
        self._how = {f"{by}, {what}": (by, what) for what in _FILES for by in _BY}
        self.subjects = tuple(
            Subject(name, synced="nothing", survives="any kill") for name in self._how
        )
        self.ratios = tuple(self._ratios())
        self._together = Together(_measured)

    def _ratios(self):
        for what in list(_FILES)[1:]:
            for by in _BY:
                # What SQLite itself loses is not ours to aim at.
                aims = (None, None) if by == "SQLite alone" else (0.85, 0.95)
                if what.endswith("done") and aims[0]:
                    aims = (0.90, 1.0)
                for measure in ("enqueue", "claim + ack"):
                    yield Ratio(measure, f"{by}, {what}", f"{by}, {_EMPTY}", *aims)

    def measure(self, subject: Subject, directory: Path, scale: float) -> Mapping[str, float]:
        """Measure one; all files of one kind together, in a process of their own, on copies."""
        by, what = self._how[subject.name]
        return self._together.figures(by, what, directory, scale)


def _measured(by: str, directory: Path, scale: float) -> dict[str, dict[str, float]]:
    files = {what: str(filled(directory, *how)) for what, how in _FILES.items()}
    return run_fresh(
        "tests.benchmarks.programs.on_files",
        directory,
        by=_BY[by],
        files=files,
        portions=max(round(_PORTIONS * scale), 2),
        size=_SIZE,
    )


LEVEL = _Backlog()
