"""Measure the subjects of a level in turns, so that what the machine does otherwise hits all alike.

Each round measures every subject once, one round forwards and the next backwards: what warms up,
fills or slows down over time then favours nobody. A subject that fails does not end the others.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.benchmarks.findings import Findings
from tests.benchmarks.levels import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tests.benchmarks.levels import Level, Subject

__all__ = ["Stopped", "run"]

# Once may be bad luck; a subject that fails twice would only cost time in the rounds that follow.
_FAILURES_ALLOWED = 2


class Stopped(Exception):
    """Say that somebody pressed Ctrl-C; `findings` are what there is until then."""

    def __init__(self, findings: Findings) -> None:
        super().__init__(findings.name)
        self.findings = findings


def run(
    level: Level,
    *,
    rounds: int,
    scale: float,
    directory: Path,
    subjects: Sequence[Subject] | None = None,
    tell: Callable[[str], None],
) -> Findings:
    """Measure a level for some rounds, in directories of their own below `directory`.

    Raises Stopped on Ctrl-C; the subject that was being measured has ended its processes then.
    """
    chosen = list(level.subjects if subjects is None else subjects)
    findings = Findings.of(level, chosen)
    failures: dict[str, int] = {}
    took_s: dict[str, float] = {}
    try:
        for number in range(rounds):
            findings.rounds.append({})
            turns = [
                one
                for one in (chosen if number % 2 == 0 else reversed(chosen))
                if one.name not in findings.unavailable
                and failures.get(one.name, 0) < _FAILURES_ALLOWED
            ]
            for turn, subject in enumerate(turns):
                began_s = time.monotonic()
                told = _measure(level, subject, scale, directory, findings)
                took_s[subject.name] = time.monotonic() - began_s
                if subject.name not in findings.rounds[-1]:
                    failures[subject.name] = failures.get(subject.name, 0) + 1
                left = [one.name for one in turns[turn + 1 :]]
                left += [one.name for one in turns] * (rounds - number - 1)
                tell(
                    f"{level.name}, round {number + 1} of {rounds}, {subject.name}: {told}; "
                    f"{_left(left, took_s)}"
                )
    except KeyboardInterrupt:
        raise Stopped(findings) from None
    return findings


def _measure(
    level: Level, subject: Subject, scale: float, directory: Path, findings: Findings
) -> str:
    """Measure a subject once, note what was found, and return it in words."""
    with _directory_of_its_own(directory) as own:
        try:
            figures = level.measure(subject, own, scale)
        except Unavailable as why:
            findings.unavailable[subject.name] = str(why)
            return f"not here: {why}"
        except Exception as error:  # noqa: BLE001 - a benchmark of many goes on without one
            why = f"{type(error).__name__}: {error}"
            findings.failed[subject.name] = why
            return f"FAILED: {why}"
    # Six digits are more than any of them is good for.
    findings.rounds[-1][subject.name] = {
        name: float(f"{value:.6g}") for name, value in figures.items()
    }
    return _in_words(level, figures)


@contextlib.contextmanager
def _directory_of_its_own(below: Path):
    with tempfile.TemporaryDirectory(dir=below, ignore_cleanup_errors=True) as name:
        yield Path(name)


def _in_words(level: Level, figures: Mapping[str, float]) -> str:
    return ", ".join(
        f"{one.name} {one.pattern.format(figures[one.name])} {one.unit}".rstrip()
        for one in level.measures
        if one.name in figures
    )


def _left(names: Sequence[str], took_s: Mapping[str, float]) -> str:
    """Say how long the turns that are left will take, by what those before have taken."""
    usual_s = sum(took_s.values()) / len(took_s)
    left_s = round(sum(took_s.get(name, usual_s) for name in names))
    return f"{left_s // 60} min {left_s % 60} s left" if left_s >= 60 else f"{left_s} s left"
