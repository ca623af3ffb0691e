"""What measuring a level has found: figures by round and subject, and what follows from them.

Kept as JSON, so that tables and plots can be made again later without measuring anything.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from tests.benchmarks.levels import Measure, Ratio, Subject

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.benchmarks.levels import Level

__all__ = ["Findings", "Spread", "is_ours", "verdict"]


@dataclass(frozen=True, slots=True)
class Spread:
    """Be the median of some rounds and their extremes."""

    median: float
    least: float
    most: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """Return the spread of these values; None when there are none."""
        if not values:
            return None
        return cls(statistics.median(values), min(values), max(values), len(values))


@dataclass(slots=True)
class Findings:
    """Be all that is known of one level after its rounds, or after those until it was stopped.

    `rounds` holds for each round the figures of every subject that could be measured in it.
    `failed` and `unavailable` say why a subject has none, or fewer. `surroundings` tells of the
    machine while it was measured.
    """

    name: str
    title: str
    measures: list[Measure]
    subjects: list[Subject]
    ratios: list[Ratio]
    notes: list[str] = field(default_factory=list)
    rounds: list[dict[str, dict[str, float]]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    surroundings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, level: Level, subjects: Sequence[Subject]) -> Findings:
        """Return the findings of a level before its first round."""
        return cls(
            name=level.name,
            title=level.title,
            measures=list(level.measures),
            subjects=list(subjects),
            ratios=list(level.ratios),
            notes=list(getattr(level, "notes", ())),
        )

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> Findings:
        """Return what `as_json` gave."""
        return cls(
            **{
                **kept,
                "measures": [Measure(**one) for one in kept["measures"]],
                "subjects": [Subject(**one) for one in kept["subjects"]],
                "ratios": [Ratio(**one) for one in kept["ratios"]],
            }
        )

    def as_json(self) -> dict[str, Any]:
        """Return it as what JSON can hold."""
        return asdict(self)

    def spread(self, subject: str, measure: str) -> Spread | None:
        """Return a subject's figures in one measure; None where it has none."""
        return Spread.of(
            [
                figures[subject][measure]
                for figures in self.rounds
                if measure in figures.get(subject, {})
            ]
        )

    def ratio(self, ratio: Ratio) -> Spread | None:
        """Return ours by theirs, round by round: only what was measured together is compared."""
        pairs = [
            (figures[ratio.ours][ratio.measure], figures[ratio.theirs][ratio.measure])
            for figures in self.rounds
            if all(ratio.measure in figures.get(one, {}) for one in (ratio.ours, ratio.theirs))
        ]
        return Spread.of([ours / theirs for ours, theirs in pairs if theirs])

    def measure(self, name: str) -> Measure:
        """Return the measure of this name."""
        return next(one for one in self.measures if one.name == name)


def is_ours(subject: str) -> bool:
    """Say whether a subject is sqlqueue, or something that runs on it."""
    return "sqlqueue" in subject.lower()


def verdict(ratio: Ratio, measure: Measure, found: float) -> str:
    """Say what a ratio means for its aim; nothing where nothing is aimed at."""
    if ratio.at_least is None and ratio.then is None:
        return ""

    def reached(aim: float | None) -> bool:
        return aim is not None and (found >= aim if measure.more_is_better else found <= aim)

    if reached(ratio.then):
        return "reached, and then"
    if ratio.at_least is None:
        return "not yet"
    return "reached" if reached(ratio.at_least) else "MISSED"
