"""The charts of the ops page as Altair specifications, made of ended buckets only.

A specification is the same, byte for byte, until another bucket has ended: a browser does not draw it
again. Altair makes and checks it once, which takes ten milliseconds, and then it is kept. Grounds are
transparent and texts take Streamlit's theme, light or dark.
"""

from __future__ import annotations

from datetime import datetime, timezone
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, cast

import altair as alt

from sqlqueue.formats import took
from sqlqueue.palette import STATES, TITLES

if TYPE_CHECKING:
    from sqlqueue.inspection import Activity, Bin

    Specification = dict[str, Any]  # kept and handed out again: nobody changes one

__all__ = ["COLOURS", "durations", "offset_ms_at", "throughput"]

HEIGHT: Final = 220
COLOURS: Final = (
    ("done", STATES["done"]),
    ("failed attempts", STATES["permanently_failed"]),
)
_RUN: Final = STATES["pending"]
_PADDING: Final = {"left": 0, "right": 6, "top": 6, "bottom": 0}
_GAP: Final = 0.14  # of a bar's width, so that neighbours are told apart
# Minutes between the labels of a time axis.
_STEPS: Final = (1, 2, 5, 10, 15, 30, 60, 120, 180, 360)
_EDGES: Final = 6  # labels below the histogram


@lru_cache(maxsize=16)
def throughput(found: Activity, *, offset_ms: int) -> Specification:
    """Return done and failed attempts, one bar a bucket; an empty bucket is a gap.

    `offset_ms` is how far the clocks of the page are ahead of UTC. The axis is that of the window,
    also where nothing happened.
    """
    since_ms, until_ms = found.since_ms + offset_ms, found.until_ms + offset_ms
    # Numbers, not times: Vega knows UTC and the browser's zone, and the page has clocks of its own.
    x = alt.X(
        "from:Q",
        scale=alt.Scale(domain=[since_ms, until_ms], nice=False),
        axis=alt.Axis(
            title=None,
            values=_ticks(since_ms, until_ms),
            labelExpr="utcFormat(datum.value, '%H:%M')",
            labelOverlap="greedy",
            labelFlush=True,
            grid=False,
        ),
    )
    most = max((bucket.done + bucket.failed for bucket in found.buckets), default=0)
    return _bars(
        _stacked(found, offset_ms),
        x=x,
        most=most,
        color=alt.Color(
            "kind:N",
            scale=alt.Scale(
                domain=[name for name, _ in COLOURS], range=[colour for _, colour in COLOURS]
            ),
            legend=None,
        ),
        tooltip=[
            alt.Tooltip("when:N", title="from"),
            alt.Tooltip("done:Q", format=","),
            alt.Tooltip("failed:Q", format=",", title="failed attempts"),
            alt.Tooltip("dead:Q", format=",", title=TITLES["permanently_failed"]),
        ],
    )


@lru_cache(maxsize=16)
def durations(bins: tuple[Bin, ...]) -> Specification:
    """Return how many jobs ran for how long, every bin equally wide, whatever its seconds."""
    values = [
        {
            "from": index + _GAP / 2,
            "to": index + 1 - _GAP / 2,
            "low": 0,
            "high": one.jobs,
            "jobs": one.jobs,
            "when": f"{took(one.low_s)} to {took(one.high_s)}",
        }
        for index, one in enumerate(bins)
        if one.jobs
    ]
    edges = [one.low_s for one in bins] + [bins[-1].high_s]
    step = max(1, round(len(bins) / _EDGES))
    names = ",".join(f"'{took(edge)}'" for edge in edges)
    x = alt.X(
        "from:Q",
        scale=alt.Scale(domain=[0, len(bins)], nice=False),
        axis=alt.Axis(
            title=None,
            values=list(range(0, len(edges), step)),
            labelExpr=f"[{names}][datum.value]",
            labelOverlap="greedy",
            labelFlush=True,
            grid=False,
        ),
    )
    return _bars(
        values,
        x=x,
        most=max(one.jobs for one in bins),
        color=alt.value(_RUN),
        tooltip=[alt.Tooltip("when:N", title="ran"), alt.Tooltip("jobs:Q", format=",")],
    )


def offset_ms_at(at_ms: int, *, utc: bool) -> int:
    """Return how far this machine's clocks are ahead of UTC at a time; 0 where UTC is wanted."""
    if utc:
        return 0
    moment = datetime.fromtimestamp(at_ms / 1000, tz=timezone.utc).astimezone()
    offset = moment.utcoffset()
    return 0 if offset is None else round(offset.total_seconds() * 1000)


def _ticks(since_ms: int, until_ms: int) -> list[int]:
    """Return round times by the clock, at most nine."""
    step_ms = next(
        (minutes * 60_000 for minutes in _STEPS if (until_ms - since_ms) / minutes <= 8 * 60_000),
        until_ms - since_ms,
    )
    first_ms = -(-since_ms // step_ms) * step_ms
    return list(range(first_ms, until_ms + 1, step_ms))


def _stacked(found: Activity, offset_ms: int) -> list[dict[str, Any]]:
    """Return a bar for each kind of each bucket that has some, one upon the other."""
    gap_ms = round(found.bucket_ms * _GAP / 2)
    rows: list[dict[str, Any]] = []
    for bucket in found.buckets:
        start_ms = bucket.start_ms + offset_ms
        when = datetime.fromtimestamp(start_ms / 1000, tz=timezone.utc)
        shared = {
            "from": start_ms + gap_ms,
            "to": start_ms + found.bucket_ms - gap_ms,
            "when": f"{when:%H:%M:%S}",
            "done": bucket.done,
            "failed": bucket.failed,
            "dead": bucket.dead,
        }
        low = 0
        for (kind, _), count in zip(COLOURS, (bucket.done, bucket.failed), strict=True):
            if count:
                rows.append({**shared, "kind": kind, "low": low, "high": low + count})
            low += count
    return rows


def _bars(values: list[dict[str, Any]], *, x: alt.X, most: int, **more: Any) -> Specification:
    # Room for the same labels whatever they say, so that the bars do not shift when numbers grow.
    axis = alt.Axis(
        title=None,
        tickCount=4,
        tickMinStep=1,
        format="~s",
        minExtent=34,
        maxExtent=34,
        domain=False,
    )
    chart = (
        alt.Chart(alt.InlineData(values=values), height=HEIGHT, padding=_PADDING)
        .mark_bar(cornerRadius=1)
        .encode(
            x=x,
            x2=alt.X2("to"),
            y=alt.Y("low:Q", scale=alt.Scale(domain=[0, max(most, 1)], nice=True), axis=axis),
            y2=alt.Y2("high"),
            **more,
        )
        .configure(background="transparent")
        .configure_view(strokeWidth=0)
    )
    return cast("Specification", chart.to_dict())
