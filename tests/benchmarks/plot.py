"""Draw findings: a dot for each median, a line from the least to the most, on logarithmic axes.

Dots and not bars: a bar's length would have to begin at zero, and a logarithmic axis has none. What
is ours, what is SQLite alone and what others do differ in shape and in grey value, not in hue only.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from sqlqueue.palette import MUTED, STATES
from tests.benchmarks.findings import is_ours

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tests.benchmarks.findings import Findings

__all__ = ["draw"]

# (colour, shape, fill). Blue and orange are told apart by everybody; grey by its lightness.
_OURS = (STATES["pending"], "o", STATES["pending"])
_FLOOR = (STATES["failed"], "D", "white")
_PEER = (MUTED, "s", MUTED)
_PANELS_A_ROW = 3
_PANEL_WIDTH, _LINE_HEIGHT, _PANEL_ROOM = 3.1, 0.23, 0.85  # inches
_LABELS_WIDTH = 2.9


def draw(
    levels: Sequence[Findings], path: Path, *, only: Mapping[str, Sequence[str]] | None = None
) -> None:
    """Draw levels below each other into a file; `only` names measures by level, None draws all.

    Without any figure there is no picture.
    Raises ImportError where matplotlib is not installed.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update(
        {
            "font.size": 8.5,
            "font.family": "sans-serif",
            "svg.fonttype": "none",  # text stays text
            "svg.hashsalt": "sqlqueue",  # the same figures give the same file
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.spines.left": False,
        }
    )
    from matplotlib.figure import Figure

    rows = [
        (findings, measures)
        for findings in levels
        for measures in _rows_of(findings, only and only.get(findings.name))
    ]
    if not rows:
        return
    heights = [_PANEL_ROOM + _LINE_HEIGHT * len(_shown(findings)) for findings, _ in rows]
    columns = max((len(measures) for _, measures in rows), default=1)
    width = _LABELS_WIDTH + _PANEL_WIDTH * columns
    figure = Figure(figsize=(width, sum(heights) + 0.3), facecolor="white", layout="constrained")
    parts = figure.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)[:, 0]
    titled: set[str] = set()
    for part, (findings, measures) in zip(parts, rows, strict=True):
        if findings.name not in titled:
            part.suptitle(findings.title, x=0.01, ha="left", fontsize=10.5, fontweight="bold")
            titled.add(findings.name)
        panels = part.subplots(1, columns, sharey=True, squeeze=False)[0]
        for panel, name in zip(panels, measures, strict=False):
            _panel(panel, findings, name)
        for panel in panels[len(measures) :]:
            panel.set_visible(False)
        for label in panels[0].get_yticklabels():
            label.set_fontweight("bold" if is_ours(label.get_text()) else "normal")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=150)


def _rows_of(findings: Findings, only: Sequence[str] | None) -> list[list[str]]:
    """Divide the measures that have figures into rows of panels, as equal as can be."""
    names = [
        one.name
        for one in findings.measures
        if (only is None or one.name in only)
        and any(findings.spread(subject, one.name) for subject in _shown(findings))
    ]
    rows = math.ceil(len(names) / _PANELS_A_ROW)
    columns = math.ceil(len(names) / rows) if rows else 0
    return [names[row * columns : (row + 1) * columns] for row in range(rows)]


def _shown(findings: Findings) -> list[str]:
    """Return the subjects that have any figure."""
    return [
        one.name
        for one in findings.subjects
        if any(one.name in figures for figures in findings.rounds)
    ]


def _panel(panel: Any, findings: Findings, name: str) -> None:
    measure = findings.measure(name)
    subjects = _shown(findings)
    spreads = {subject: findings.spread(subject, name) for subject in subjects}
    above_zero = [
        value
        for spread in spreads.values()
        if spread is not None
        for value in (spread.least, spread.median, spread.most)
        if value > 0
    ]
    least, most = (min(above_zero), max(above_zero)) if above_zero else (1.0, 1.0)
    # Whole decades would leave most of a panel empty; the figures at the right need room.
    span = max(math.log10(most / least), 0.5)
    edge = least / 10 ** (0.06 * span)
    panel.set_xscale("log")
    panel.set_xlim(edge, most * 10 ** (0.32 * span))
    _ticks(panel, few=span > 2)
    for line, subject in enumerate(subjects):
        spread = spreads[subject]
        if spread is None:
            continue
        colour, shape, fill = _look(subject)
        # A logarithmic axis has no zero: what is there stands at its edge, without a dot.
        ends = max(spread.least, edge), max(spread.most, edge)
        panel.plot(ends, [line, line], color=colour, linewidth=1.6)
        if spread.median > 0:
            panel.plot(
                spread.median,
                line,
                shape,
                color=colour,
                markerfacecolor=fill,
                markersize=5,
                zorder=3,
            )
        panel.annotate(
            measure.pattern.format(spread.median),
            (ends[1], line),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
        )
    better = "" if measure.more_is_better else ", less is better"
    unit = f", {measure.unit}" if measure.unit else ""
    panel.set_title(f"{measure.name}{unit}{better}", loc="left", fontsize=8.5)
    panel.set_yticks(range(len(subjects)), subjects)
    panel.set_ylim(len(subjects) - 0.4, -0.6)
    panel.tick_params(axis="y", length=0)
    panel.grid(axis="y", color="#eceef1", linewidth=0.8)
    panel.grid(axis="x", which="major", color="#dfe2e6", linewidth=0.8)
    panel.set_axisbelow(True)


def _ticks(panel: Any, *, few: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    panel.xaxis.set_major_locator(LogLocator(subs=(1.0,) if few else (1.0, 2.0, 5.0)))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))


def _short(value: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _look(subject: str) -> tuple[str, str, str]:
    if is_ours(subject):
        return _OURS
    return _FLOOR if subject.startswith("SQLite alone") else _PEER
