"""Level `floor`: what SQLite itself can do with our statements, and how much of it the Store leaves.

See `programs.on_sqlite`. The store checks, fences, keeps its writers in turn and wakes sleepers; what
that costs is the distance between the two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.benchmarks.fresh import run_fresh
from tests.benchmarks.levels import Measure, Ratio, Subject

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["LEVEL"]

_WORK = ("enqueue", "claim", "ack", "ack + claim")
_BATCHES = (1, 10, 100)
# Messages at full scale, by batch: half a second for the store and each kind of work.
_UNSYNCED, _SYNCED = {1: 8_000, 10: 20_000, 100: 40_000}, {1: 1_500, 10: 8_000, 100: 30_000}


_BARE, _ALONE, _STORE = "SQLite alone, bare table", "SQLite alone", "sqlqueue Store"
_BY = {_BARE: "bare", _ALONE: "plain", _STORE: "store"}


def _name(by: str, batch: int, *, synced: bool) -> str:
    many = "one a transaction" if batch == 1 else f"{batch} a transaction"
    return f"{by}, {'synced' if synced else 'unsynced'}, {many}"


class _Floor:
    name = "floor"
    title = "SQLite alone, and our Store on it: messages a second by one process"
    measures = (
        *(Measure(name, "/s") for name in _WORK),
        *(Measure(f"{name} CPU", "µs", "{:,.1f}", more_is_better=False) for name in _WORK),
    )
    notes = (
        "SQLite alone: the same file, indexes, triggers and statements, nothing else (sqlite3 of Python).",
        "Bare table: six columns and one index, so what is left of the distance is the price of our schema.",
        "A claim without anything to settle is not flushed by the store: a lost claim loses nothing.",
    )

    def __init__(self) -> None:
        self._how = {
            _name(by, batch, synced=synced): (by, batch, synced)
            for synced in (False, True)
            for batch in _BATCHES
            for by in _BY
            if by != _BARE or not synced
        }
        self.subjects = tuple(
            Subject(
                name,
                synced="each transaction" if synced else "nothing",
                survives="power cut" if synced else "any kill",
            )
            for name, (_, _, synced) in self._how.items()
        )
        self.ratios = tuple(
            Ratio(measure, _name(_STORE, batch, synced=synced), floor)
            for floor, (by, batch, synced) in self._how.items()
            if by == _ALONE
            for measure in ("enqueue", "ack + claim")
        )

    def measure(self, subject: Subject, directory: Path, scale: float) -> Mapping[str, float]:
        """Measure one in a process of its own."""
        by, batch, synced = self._how[subject.name]
        count = max(round((_SYNCED if synced else _UNSYNCED)[batch] * scale), batch * 8)
        return run_fresh(
            "tests.benchmarks.programs.on_sqlite",
            directory,
            by=_BY[by],
            count=count,
            batch=batch,
            synced=synced,
        )


LEVEL = _Floor()
