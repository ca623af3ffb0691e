"""What a level of the comparison is made of: subjects that are measured the same way, in turns.

A level names its measures and its subjects, and measures one subject once, in a directory of its
own, with whatever server it needs started and ended by itself. Rounds, turns, medians, ratios,
tables and plots are the runner's affair, and the same for all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["Level", "Measure", "Ratio", "Subject", "Unavailable"]


@dataclass(frozen=True, slots=True)
class Measure:
    """Be one figure of a subject. `pattern` shows its value: "{:,.0f}"; `unit` stands behind it."""

    name: str
    unit: str
    pattern: str = "{:,.0f}"
    more_is_better: bool = True


@dataclass(frozen=True, slots=True)
class Subject:
    """Be one system in one setting, and say what it promises, so that like is compared with like.

    `synced` is what is on the disk when a publish has returned, `acked` when a message counts as
    done, `survives` what a message outlives. Each is a few words, "" where it makes no sense.
    """

    name: str
    synced: str = ""
    acked: str = ""
    survives: str = ""


@dataclass(frozen=True, slots=True)
class Ratio:
    """Be an aim: `ours` divided by `theirs` in one measure.

    It is to be at least `at_least` (at most, where less is better), and then `then`; None where
    nothing is aimed at.
    """

    measure: str
    ours: str
    theirs: str
    at_least: float | None = None
    then: float | None = None


class Unavailable(Exception):
    """Say why a subject cannot be measured here, such as a program that is not installed."""


class Level(Protocol):
    """Be a set of subjects that compare with each other.

    It may have `notes` besides, lines that stand below its tables. Names of subjects that are ours
    have "sqlqueue" in them, and those of the floor begin with "SQLite alone".
    """

    name: str  # one word, for the command line
    title: str
    measures: Sequence[Measure]
    subjects: Sequence[Subject]
    ratios: Sequence[Ratio]

    def measure(self, subject: Subject, directory: Path, scale: float) -> Mapping[str, float]:
        """Measure one subject once, in an empty directory; return values by the measures' names.

        `scale` multiplies how much is done: 1 is what a full run does, 0.1 a quick look. A measure
        that makes no sense for a subject is left out. Raises Unavailable.
        """
