"""The Jobs page: find jobs by state and filters, tick them, act on them.

Filters are drawn by a run of the page; what changes by itself (counts, states, how many are newer)
by a fragment, every few seconds, in which no id of the table ever changes. What an operator does in
the fragment is only noted there: the run of the page that follows opens the dialog, so that no
refresh closes it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Final

import streamlit as st

from sqlqueue.consoles import look, source
from sqlqueue.consoles.admin import acting, rows, sheet
from sqlqueue.consoles.admin.questions import ICONS, LABELS, choice_of, why_not
from sqlqueue.consoles.admin.rows import COLUMNS
from sqlqueue.consoles.admin.view import CUSTOM, STALLED, WINDOWS, View
from sqlqueue.consoles.shield import shielded
from sqlqueue.formats import number
from sqlqueue.inspection import State
from sqlqueue.palette import MUTED, STATES, TITLES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from streamlit.elements.lib.column_types import ColumnConfig

    from sqlqueue.consoles.admin.sheet import Sheet
    from sqlqueue.inspection import Counted, Inspection, Stats
    from sqlqueue.operations import Action
    from sqlqueue_transport.reading import JobRow

__all__ = ["show"]

_REFRESH_S: Final = 3.0
_COUNT_S: Final = 0.3  # of counting what no index knows
_COUNT_SHARE: Final = 0.04  # of the time may go into counting again; states and queues are quick
_DESK: Final = "jobs-desk"
_ROW_PX: Final = 33
_TILES: Final = (*(state.value for state in State), STALLED)
_FILTERS: Final = ("queue", "task", "worker", "error", "search", "window")
# Widths in pixels: with them no column moves as texts come and go. The last one takes the rest.
_WIDTHS: Final = {
    "Job": 150,
    "Open": 44,
    "State": 145,
    "Task": 145,
    "Queue": 80,
    "Try": 50,
    "Enqueued": 80,
    "Started": 80,
    "Ran": 70,
    "Worker": 110,
    "Last error": 190,
    "Arguments": 180,
}


@dataclass
class _Desk:
    """Be what one browser tab has before it: the sheet, what was asked of it, and what to say.

    `calls` are the arguments of the sheet's jobs, which do not change. `turn` makes the next sheet,
    `asked` is an action on these jobs, or (None) on all that match; both wait for the run that
    follows the button.
    """

    sheet: Sheet | None = None
    calls: Mapping[int, str] = field(default_factory=dict)
    turn: Callable[[Inspection, Sheet], Sheet] | None = None
    asked: tuple[Action, tuple[JobRow, ...] | None] | None = None
    note: str = ""
    counted: Counted | None = None
    count_again_s: float = 0.0


def show() -> None:
    """Show the page."""
    view = View.read(st.query_params)
    # Taken off the desk first: the fragment runs the page anew as long as something lies there.
    desk = _desk()
    asked, desk.asked = desk.asked, None
    _filters(view)
    live = st.session_state["live"]
    st.fragment(_list, run_every=_REFRESH_S if live else None)(view)
    if asked is not None and desk.sheet is not None:
        _open_dialog(desk.sheet, *asked)


# -- what one tab has before it --------------------------------------------------------------------


def _desk() -> _Desk:
    desk: _Desk = st.session_state.setdefault(_DESK, _Desk())
    return desk


def _lay(desk: _Desk, inspection: Inspection, found: Sheet) -> None:
    """Put another sheet on the desk; ticks belong to the one before, and are told of."""
    if desk.sheet is not None and (dropped := len(_positions(desk.sheet))):
        desk.note = f"{number(dropped, 'tick')} cleared: the list is another one now."
    desk.sheet = found
    desk.counted = None
    desk.calls = {
        message_id: rows.call_text(arguments)
        for message_id, arguments in inspection.arguments_of(found.ids).items()
    }


def _positions(shown: Sheet) -> list[int]:
    """Return which lines of the table are ticked."""
    state = st.session_state.get(_table_key(shown))
    return list(state["selection"]["rows"]) if state else []


def _table_key(shown: Sheet) -> str:
    return f"jobs-table-{shown.generation}"


def _turn(how: Callable[[Inspection, Sheet], Sheet]) -> None:
    """Note that another page is wanted, as a button's callback: the run that follows reads it."""
    _desk().turn = how


def _list_anew(inspection: Inspection, shown: Sheet) -> Sheet:
    return sheet.first(inspection, shown.view, generation=shown.generation + 1)


def _clear() -> None:
    """Take all ticks away: another generation of the same sheet."""
    desk = _desk()
    if desk.sheet is not None:
        desk.sheet = replace(desk.sheet, generation=desk.sheet.generation + 1)
    desk.note = ""


# -- filters -----------------------------------------------------------------------------------------


def _filters(view: View) -> None:
    """Draw the filters, set as the link says."""
    _follow(view)
    with source.chosen().opened() as inspection:
        queues = [row.name for row in inspection.queues()]
    app = source.chosen().app
    _filter_widgets(view, queues, [] if app is None else [*app.tasks])


def _follow(view: View) -> None:
    """Set the widgets from the link, when it is not they who changed it."""
    st.session_state.setdefault("live", True)
    if st.session_state.get("jobs-view") == view and "search" in st.session_state:
        return
    st.session_state["jobs-view"] = view
    for name in _FILTERS:
        st.session_state[_widget(name)] = getattr(view, name) or None
    st.session_state["search"] = view.search


def _widget(name: str) -> str:
    return name if name == "search" else f"{name}-filter"


def _filter_widgets(view: View, queues: Sequence[str], tasks: Sequence[str]) -> None:
    with st.container(key="filters", horizontal=True, vertical_alignment="bottom"):
        st.text_input(
            "Search",
            key="search",
            placeholder="id, start of an id, task, path …",
            icon=":material/search:",
            width=280,
            on_change=_changed,
        )
        for name, options in (("queue", queues), ("task", tasks)):
            chosen = getattr(view, name)
            st.selectbox(
                name.capitalize(),
                sorted({*options, *([chosen] if chosen else [])}),
                index=None,
                key=f"{name}-filter",
                placeholder=f"any {name}",
                accept_new_options=name == "task",
                format_func=look.plain,
                width=170,
                on_change=_changed,
            )
        st.text_input(
            "Worker", key="worker-filter", placeholder="any worker", width=150, on_change=_changed
        )
        st.text_input(
            "Error", key="error-filter", placeholder="Type: text", width=190, on_change=_changed
        )
        st.selectbox(
            "Time",
            [*WINDOWS, CUSTOM],
            index=None,
            key="window-filter",
            placeholder="any time",
            format_func=lambda name: "from – to" if name == CUSTOM else f"last {name}",
            width=130,
            on_change=_changed,
        )
        if view.window == CUSTOM:
            _times(view)
        st.button(
            "Reset",
            key="reset",
            icon=":material/filter_alt_off:",
            disabled=not view.is_narrowed,
            on_click=_go,
            args=(View(),),
        )
        st.toggle("Live", key="live", help=f"Refresh what is shown every {_REFRESH_S:g} s")


def _times(view: View) -> None:
    for name, label in (("since_ms", "From"), ("until_ms", "To")):
        at_ms = getattr(view, name)
        zone = timezone.utc if source.chosen().utc else None
        value = None if at_ms is None else datetime.fromtimestamp(at_ms / 1000, timezone.utc)
        st.datetime_input(
            f"{label} (UTC)" if source.chosen().utc else label,
            value=None if value is None else value.astimezone(zone).replace(tzinfo=None),
            key=_widget(name),
            format="YYYY-MM-DD",
            step=60,
            width=190,
            on_change=_changed,
        )


def _changed() -> None:
    """Write what the widgets say into the link, as their callback."""
    window = _said("window")
    is_custom = window == CUSTOM
    found = View(
        states=View.read(st.query_params).states,
        queue=_said("queue"),
        task=_said("task"),
        worker=_said("worker"),
        error=_said("error"),
        search=_said("search"),
        window=window,
        since_ms=_moment_ms("since_ms") if is_custom else None,
        until_ms=_moment_ms("until_ms") if is_custom else None,
    )
    _go(found, by_widget=True)


def _said(name: str) -> str:
    return st.session_state.get(_widget(name)) or ""


def _moment_ms(name: str) -> int | None:
    moment: datetime | None = st.session_state.get(_widget(name))
    if moment is None:
        return None
    aware = moment.replace(tzinfo=timezone.utc) if source.chosen().utc else moment.astimezone()
    return round(aware.timestamp() * 1000)


def _go(view: View, *, by_widget: bool = False) -> None:
    """Show another view: the link changes, and with it the list."""
    st.query_params.from_dict(view.params())
    if by_widget:
        st.session_state["jobs-view"] = View.read(view.params())


# -- what refreshes itself ---------------------------------------------------------------------------


def _list(view: View) -> None:
    desk = _desk()
    with shielded(), source.chosen().opened() as inspection:
        shown = _sheet(desk, inspection, view)
        stats = inspection.stats()
        _tiles(view, stats)
        now = sheet.rows_now(inspection, shown)
        counted = _counted(desk, inspection, shown)
        _head(inspection, shown, counted)
        if shown.ids:
            _table(inspection, shown, now, desk.calls)
        else:
            _nothing(shown, stats)
        _bar(desk, shown, now, counted)
    # Not what the button returns: it is False where the job has changed under the click, and the
    # button is grey now.
    if desk.asked is not None:
        st.rerun()


def _sheet(desk: _Desk, inspection: Inspection, view: View) -> Sheet:
    """Return the sheet on the desk: the one that was there, unless another is wanted."""
    shown, turn, desk.turn = desk.sheet, desk.turn, None
    if shown is None or shown.view != view:
        generation = 0 if shown is None else shown.generation + 1
        _lay(desk, inspection, found := sheet.first(inspection, view, generation=generation))
        return found
    if turn is not None and (found := turn(inspection, shown)) is not shown:
        _lay(desk, inspection, found)
        return found
    return shown


def _counted(desk: _Desk, inspection: Inspection, shown: Sheet) -> Counted:
    """Return how many jobs match: counted anew, unless that took long and was not long ago."""
    began_s = time.monotonic()
    if desk.counted is None or began_s >= desk.count_again_s:
        desk.counted = inspection.count(shown.chosen, budget_s=_COUNT_S)
        took_s = time.monotonic() - began_s
        desk.count_again_s = began_s + took_s / _COUNT_SHARE
    return desk.counted


def _tiles(view: View, stats: Stats) -> None:
    counts = {state.value: count for state, count in stats.states.items()}
    counts[STALLED] = stats.stalled
    with st.container(key="state-pills"):
        for state in _TILES:
            is_on = state in view.states
            if st.button(
                f"{TITLES[state]} **{number(counts[state])}**",
                key=f"state-{state}",
                type="primary" if is_on else "secondary",
                on_click=_go,
                args=(view.with_state(state),),
            ):
                st.rerun()


def _head(inspection: Inspection, shown: Sheet, counted: Counted) -> None:
    arrived = inspection.newer(shown.chosen, shown.newest)
    label = "Read the list anew"
    if arrived:
        label = f"Show {number(arrived)}{'+' if arrived >= 1000 else ''} newer"
    with st.container(key="list-head", horizontal=True, vertical_alignment="center"):
        st.markdown(_where(shown, counted))
        st.button(
            label,
            key="show-newer",
            icon=":material/arrow_upward:" if arrived else ":material/refresh:",
            type="primary" if arrived else "tertiary",
            on_click=_turn,
            args=(_list_anew,),
        )


def _where(shown: Sheet, counted: Counted) -> str:
    # The list stands still and the count does not, so that neither is told as a part of the other.
    what = "match now" if shown.view.is_narrowed else "jobs in all"
    more = "" if shown.is_complete else " · not everything looked through: Older goes on"
    return f"Page {shown.number}: {number(len(shown.ids), 'job')}, newest first · {_many(counted)} {what}{more}"


def _many(counted: Counted) -> str:
    return f"{number(counted.count)}{'' if counted.is_complete else '+'}"


def _table(
    inspection: Inspection,
    shown: Sheet,
    now: Sequence[JobRow | None],
    calls: Mapping[int, str],
) -> None:
    lines = [
        rows.cells(
            row,
            message_id,
            now_ms=inspection.now_ms,
            max_attempts=0 if row is None else inspection.max_attempts_of(row),
            call=calls.get(message_id, ""),
        )
        for message_id, row in zip(shown.ids, now, strict=True)
    ]
    with st.container(key="jobs-table"):
        st.dataframe(
            {name: [line[name] for line in lines] for name in COLUMNS},
            key=_table_key(shown),
            on_select="rerun",
            selection_mode="multi-row",
            hide_index=True,
            row_height=_ROW_PX,
            height="content",
            column_config=_columns(),
        )


def _columns() -> dict[str, ColumnConfig]:
    text = st.column_config.TextColumn
    right = {"Try", "Ran"}
    found: dict[str, ColumnConfig] = {
        name: text(width=width, alignment="right" if name in right else "left")
        for name, width in _WIDTHS.items()
    }
    names = [*STATES, rows.GONE]
    found["Open"] = st.column_config.LinkColumn(
        "", width=_WIDTHS["Open"], display_text=":material/open_in_new:", help="The job’s page"
    )
    found["State"] = st.column_config.MultiselectColumn(
        width=_WIDTHS["State"],
        options=[TITLES.get(name, name) for name in names],
        color=[STATES.get(name, MUTED) for name in names],
    )
    return found


def _nothing(shown: Sheet, stats: Stats) -> None:
    total = sum(stats.states.values())
    there = ", ".join(
        f"{number(count)} {TITLES[state.value]}" for state, count in stats.states.items() if count
    )
    with st.container(key="nothing", border=True):
        if not total:
            st.markdown("**No jobs yet.** Enqueue one, and it stands here:")
            st.code("sqlqueue call TASK\ntask.delay(…)", language=None)
            return
        so_far = "" if shown.is_complete else " among the newest"
        st.markdown(
            f"**No {look.safe(shown.view.described() + so_far)}.** There are {there}."
            f"{'' if shown.is_complete else ' “Older” looks further.'}"
        )


# -- what can be done --------------------------------------------------------------------------------


def _bar(desk: _Desk, shown: Sheet, now: Sequence[JobRow | None], counted: Counted) -> None:
    ticked = sheet.ticked(now, _positions(shown))
    if ticked:
        desk.note = ""
    with st.container(key="action-bar", horizontal=True, vertical_alignment="center"):
        with st.container(key="bar-text"):
            st.markdown(look.safe(_ticked_text(ticked, desk.note)))
        is_all = st.checkbox(
            f"All {_many(counted)} matching",
            key="all-matching",
            disabled=not shown.ids,
            help="Act on every job that the filters match, not only on those ticked here",
        )
        states = _states_meant(shown) if is_all else {row.state for row in ticked}
        for action in LABELS:
            refusal = why_not(action, states)
            st.button(
                LABELS[action],
                key=f"action-{action.value}",
                icon=ICONS[action],
                disabled=bool(refusal),
                help=refusal or None,
                on_click=_note_action,
                args=(action, None if is_all else ticked),
            )
        st.button("Clear", key="clear", disabled=not ticked, on_click=_clear)
        st.button(
            "Newer",
            key="pager-newer",
            icon=":material/chevron_left:",
            disabled=not shown.before,
            on_click=_turn,
            args=(sheet.newer,),
        )
        st.button(
            "Older",
            key="pager-older",
            icon=":material/chevron_right:",
            icon_position="right",
            disabled=shown.next is None,
            on_click=_turn,
            args=(sheet.older,),
        )


def _states_meant(shown: Sheet) -> set[State]:
    """Return the states that jobs of the list's filter may have."""
    if shown.chosen.stalled:
        return {State.PROCESSING}
    return {*(shown.chosen.states or State)}


def _ticked_text(ticked: Sequence[JobRow], note: str) -> str:
    if not ticked:
        return note or "Tick jobs to act on them."
    counts: dict[str, int] = {}
    for row in ticked:
        counts[row.state.value] = counts.get(row.state.value, 0) + 1
    what = ", ".join(f"{number(many)} {TITLES[state]}" for state, many in counts.items())
    return f"{number(len(ticked))} ticked: {what}"


def _note_action(action: Action, ticked: tuple[JobRow, ...] | None) -> None:
    """Note what a button asks for, with the jobs as they stood on the screen; None: all matching."""
    _desk().asked = (action, ticked)
    if ticked is None:
        # Said once: what comes later is not meant by the next button.
        st.session_state["all-matching"] = False


def _open_dialog(shown: Sheet, action: Action, ticked: tuple[JobRow, ...] | None) -> None:
    if ticked is not None:
        acting.act_on(action, choice_of(action, ticked), done=_clear)
        return
    with source.chosen().opened() as inspection, st.spinner("Looking for the jobs …"):
        acting.act_on_all(inspection, action, shown.chosen, done=_clear)
