"""Put findings into text: a table of medians, what each subject promises, and ratios by aims."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from tests.benchmarks import surroundings
from tests.benchmarks.findings import verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.benchmarks.findings import Findings, Spread
    from tests.benchmarks.levels import Measure

__all__ = ["lines_of"]

_WIDTH = 118
_NOTHING = "–"


def lines_of(findings: Findings) -> list[str]:
    """Return the report of one level."""
    lines = [findings.title, "=" * len(findings.title), ""]
    if findings.surroundings:
        lines += [*surroundings.in_words(findings.surroundings), ""]
    counted = sum(1 for figures in findings.rounds if figures)
    lines += [
        "one round" if counted == 1 else f"medians of {counted} interleaved rounds (least–most)",
        "",
    ]
    lines += itertools.chain(_figures(findings), _promises(findings), _ratios(findings))
    lines += [f"{name}: FAILED: {why}" for name, why in findings.failed.items()]
    lines += [f"{name}: not measured: {why}" for name, why in findings.unavailable.items()]
    lines += findings.notes
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _figures(findings: Findings) -> Iterator[str]:
    """Give each subject a line and each measure a column, in as many blocks as the width asks for."""
    names = [one.name for one in findings.subjects]
    columns = []
    for measure in findings.measures:
        spreads = [findings.spread(name, measure.name) for name in names]
        if not any(spreads):
            continue
        unit = f" {measure.unit}" if measure.unit else ""
        columns.append([f"{measure.name}{unit}", *(_told(one, measure) for one in spreads)])
    for block in _blocks(columns, _WIDTH - _width(names)):
        yield from _table([["", *names], *block])
        yield ""


def _promises(findings: Findings) -> Iterator[str]:
    """Say what a publish, a done message and a stored one mean, so that like is compared with like."""
    columns = [
        [heading, *(getattr(one, what) for one in findings.subjects)]
        for heading, what in (
            ("on the disk after a publish", "synced"),
            ("done when", "acked"),
            ("survives", "survives"),
        )
        if any(getattr(one, what) for one in findings.subjects)
    ]
    if columns:
        yield from _table([["", *(one.name for one in findings.subjects)], *columns], right=False)
        yield ""


def _ratios(findings: Findings) -> Iterator[str]:
    """Give each aim a line: the median of what was found round by round, and what it means."""
    rows = [["ratio", "", "found", "aim", "and then", ""]]
    for ratio in findings.ratios:
        found, measure = findings.ratio(ratio), findings.measure(ratio.measure)
        if found is None:
            continue
        sign = "≥" if measure.more_is_better else "≤"
        rows.append(
            [
                ratio.measure,
                f"{ratio.ours} / {ratio.theirs}",
                _with_extremes(found, "{:.2f}"),
                _NOTHING if ratio.at_least is None else f"{sign} {ratio.at_least:g}",
                _NOTHING if ratio.then is None else f"{sign} {ratio.then:g}",
                verdict(ratio, measure, found.median),
            ]
        )
    if len(rows) > 1:
        yield from _table([list(column) for column in zip(*rows, strict=True)], right=False)
        yield ""


def _told(spread: Spread | None, measure: Measure) -> str:
    if spread is None:
        return _NOTHING
    return _with_extremes(spread, measure.pattern)


def _with_extremes(spread: Spread, pattern: str) -> str:
    median, least, most = map(pattern.format, (spread.median, spread.least, spread.most))
    return median if spread.rounds == 1 else f"{median} ({least}–{most})"


def _table(columns: Sequence[Sequence[str]], *, right: bool = True) -> Iterator[str]:
    """Lay columns side by side, the first to the left."""
    widths = [_width(column) for column in columns]
    for cells in zip(*columns, strict=True):
        first, *others = (
            f"{cell:>{width}}" if right and number else f"{cell:<{width}}"
            for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        yield "  ".join([first, *others]).rstrip()


def _blocks(columns: Sequence[list[str]], width: int) -> Iterator[list[list[str]]]:
    """Divide columns so that each block fits; a column that never would stands alone."""
    block: list[list[str]] = []
    for column in columns:
        if block and sum(_width(one) + 2 for one in [*block, column]) > width:
            yield block
            block = []
        block.append(column)
    if block:
        yield block


def _width(cells: Sequence[str]) -> int:
    return max(len(cell) for cell in cells)
