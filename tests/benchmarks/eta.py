"""Level `eta`: what messages for later cost those for now, and how they come when they are due.

See `programs.with_eta` and `filled`. What is for later is in a state of its own, with an index of its
own; claims make ready what is due, some at a time.
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

_BY = {"sqlqueue Store": "store", "sqlqueue through Kombu": "kombu"}
_FILES = {"empty": 0, "300,000 for tomorrow": 300_000}
_EMPTY, _FULL = _FILES
_PORTIONS, _SIZE = 4, 1_000
_DUE, _LATE = 10_000, 100


class _Eta:
    name = "eta"
    title = "Beside 300,000 messages for later: one process, 300 B, nothing synced"
    measures = (
        Measure("enqueue", "/s"),
        Measure("claim + ack", "/s"),
        Measure("due at once", "/s"),
        Measure("late p50", "ms", "{:,.1f}", more_is_better=False),
        Measure("late p99", "ms", "{:,.1f}", more_is_better=False),
        Measure("enqueue CPU", "µs", "{:,.1f}", more_is_better=False),
        Measure("claim + ack CPU", "µs", "{:,.1f}", more_is_better=False),
    )
    notes = (
        f"Due at once: {_DUE:,} messages become due in one instant, and are claimed and acknowledged.",
        "Late: from the due time to the callback of a consumer that has slept, one message in 10 ms.",
    )

    def __init__(self) -> None:
        self._how = {f"{by}, {what}": (by, what) for what in _FILES for by in _BY}
        self.subjects = tuple(
            Subject(name, synced="nothing", survives="any kill") for name in self._how
        )
        self.ratios = tuple(
            Ratio(measure, f"{by}, {_FULL}", f"{by}, {_EMPTY}", *aims)
            for by in _BY
            for measure, *aims in (
                ("enqueue", 0.85, 0.95),
                ("claim + ack", 0.85, 0.95),
                ("due at once", None, None),
            )
        )
        self._together = Together(_measured)

    def measure(self, subject: Subject, directory: Path, scale: float) -> Mapping[str, float]:
        """Measure one; both files of one kind together, in a process of their own."""
        by, what = self._how[subject.name]
        return self._together.figures(by, what, directory, scale)


def _measured(by: str, directory: Path, scale: float) -> dict[str, dict[str, float]]:
    files = {what: str(filled(directory, count, "scheduled")) for what, count in _FILES.items()}
    return run_fresh(
        "tests.benchmarks.programs.with_eta",
        directory,
        by=_BY[by],
        files=files,
        portions=max(round(_PORTIONS * scale), 2),
        size=_SIZE,
        due=max(round(_DUE * scale), 1_000),
        late=max(round(_LATE * scale), 30),
    )


LEVEL = _Eta()
