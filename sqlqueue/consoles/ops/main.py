"""The script of the ops console, run by Streamlit for each look at it.

One page, to be left open: it shows the queue as it is and knows no way to change it. A look is taken
in `snapshot`, what it means is worked out in `figures`, `lists` and `charts`; here is only where
things stand. Nothing moves when values change: every panel has a height of its own, and the page asks
anew as a fragment, which leaves the rest of it alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import streamlit as st

from sqlqueue.consoles import look, source
from sqlqueue.consoles.ops import charts, drawing, figures, lists
from sqlqueue.consoles.ops.pieces import Status
from sqlqueue.consoles.ops.snapshot import Memory, Snapshot, take
from sqlqueue.consoles.ops.view import (
    REFRESHES,
    USUAL_REFRESH,
    USUAL_WINDOW,
    WINDOWS,
    Window,
)
from sqlqueue.consoles.troubles import Trouble, trouble_of
from sqlqueue.formats import ago, at, number
from sqlqueue_transport.clock import SYSTEM_CLOCK

if TYPE_CHECKING:
    from sqlqueue.consoles.ops.pieces import Table

_LAST: Final = "last"  # what this session saw last


@st.cache_resource
def memory() -> Memory:
    """Return what all who look share."""
    return Memory()


def controls() -> tuple[Window, int | None]:
    """Show title and selectors; return the window and the seconds between two looks."""
    with st.container(horizontal=True, vertical_alignment="bottom", key="head"):
        st.title("Operations", width="stretch")
        window = st.segmented_control(
            "Window",
            list(WINDOWS),
            default=USUAL_WINDOW,
            required=True,
            key="window",
            bind="query-params",
        )
        refresh = st.segmented_control(
            "Refresh",
            list(REFRESHES),
            default=USUAL_REFRESH,
            required=True,
            key="refresh",
            bind="query-params",
        )
    return WINDOWS[window], REFRESHES[refresh]


def page(window: Window, refresh_s: int | None) -> None:
    """Look, and show what was seen; where that cannot be, what was seen before, and why."""
    trouble = None
    try:
        with source.looking().opened() as inspection:
            st.session_state[_LAST] = take(inspection, window, memory())
    except Exception as error:
        trouble = trouble_of(error)
        if trouble is None:
            raise
    seen: Snapshot | None = st.session_state.get(_LAST)
    now_ms = SYSTEM_CLOCK.wall_ms() if seen is None else seen.now_ms
    stands = _stale(trouble, seen) if trouble else figures.status(seen) if seen else Status("", "")
    as_of = at(now_ms, utc=source.chosen().utc).split(" ")[1]
    st.html(drawing.status(stands, as_of, refresh_s=refresh_s))
    if seen is None:
        comes = trouble is not None and trouble.passes and refresh_s is not None
        said = "It is shown as soon as it can be read." if comes else "There is nothing to show."
        st.html(drawing.nothing(said, height=charts.HEIGHT))
        return
    st.html(drawing.cards(figures.cards(seen)))
    wide, narrow = st.columns((2, 1))
    with wide:
        throughput(seen)
        panel("active", lists.active(seen), rows=8)
    with narrow:
        durations(seen)
        panel("errors", lists.errors(seen), rows=8)
    for key, table, place in zip(
        ("workers", "queues", "schedule"),
        (lists.workers(seen), lists.queues(seen), lists.schedule(seen)),
        st.columns((5, 4, 4)),
        strict=True,
    ):
        with place:
            panel(key, table, rows=6)
    st.html(drawing.facts(lists.facts(seen)))


def throughput(seen: Snapshot) -> None:
    """Show what ended when."""
    found = seen.activity
    with st.container(key="chart-throughput", gap=None):
        beside = f"per {_bucket(seen.window)}, last {seen.window.name}"
        st.html(drawing.heading("Throughput", beside, keys=charts.COLOURS))
        if not found.done and not found.failed:
            said = f"Nothing ended in the last {seen.window.name}."
            st.html(drawing.nothing(said, height=charts.HEIGHT))
            return
        offset_ms = charts.offset_ms_at(found.until_ms, utc=source.chosen().utc)
        st.vega_lite_chart(charts.throughput(found, offset_ms=offset_ms), width="stretch")


def durations(seen: Snapshot) -> None:
    """Show how long jobs ran."""
    found = seen.activity
    with st.container(key="chart-durations", gap=None):
        beside = f"of the newest {number(found.sampled, 'done job')}" if found.sampled else ""
        st.html(drawing.heading("Run times", beside))
        if not found.durations:
            said = f"No job was done in the last {seen.window.name}."
            st.html(drawing.nothing(said, height=charts.HEIGHT))
            return
        st.vega_lite_chart(charts.durations(found.durations), width="stretch")


def panel(key: str, table: Table, *, rows: int) -> None:
    """Show a table that is so many rows high, whatever it holds; it scrolls in itself."""
    height = (rows + 1) * drawing.ROW_HEIGHT
    with st.container(key=key, gap=None):
        st.html(drawing.heading(table.title, table.count))
        with st.container(height=height, border=True, key=f"{key}-rows"):
            if table.rows:
                st.html(drawing.table(table))
            else:
                st.html(drawing.nothing(table.empty, height=height - 2))


def _stale(trouble: Trouble, seen: Snapshot | None) -> Status:
    """Say why there is nothing newer to see, and how old the rest is."""
    said = f"{trouble.title} {trouble.advice}"
    if seen is None:
        return Status("warn" if trouble.passes else "", "", (said,))
    age = ago(min(seen.now_ms, SYSTEM_CLOCK.wall_ms()), SYSTEM_CLOCK.wall_ms())
    return Status("fail", "", (f"What you see was true {age}.", said))


def _bucket(window: Window) -> str:
    seconds = window.bucket_s
    return f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:.0f} min"


st.set_page_config(page_title="sqlqueue ops", layout="wide", initial_sidebar_state="collapsed")
st.html(look.STYLE)
st.html(drawing.STYLE)
chosen_window, chosen_refresh_s = controls()
st.fragment(page, run_every=chosen_refresh_s)(chosen_window, chosen_refresh_s)
