"""The Errors page: dead letters by error, to requeue together, and what failed lately."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import streamlit as st

from sqlqueue.consoles import markup, source
from sqlqueue.consoles.admin import acting, error_rows, questions
from sqlqueue.consoles.admin.refreshing import heading, numbers
from sqlqueue.consoles.shield import shielded
from sqlqueue.formats import number
from sqlqueue.inspection import State
from sqlqueue.operations import Action

if TYPE_CHECKING:
    from sqlqueue.inspection import DeadGroup, Inspection

__all__ = ["show"]

_REFRESH_S: Final = 10.0  # to group is to read them all
_BUTTON_PX: Final = 96


def show() -> None:
    """Show the page."""
    st.html(markup.STYLE)
    _errors()


@st.fragment(run_every=_REFRESH_S)
def _errors() -> None:
    with shielded(), source.chosen().opened() as inspection:
        _dead(inspection)
        _recent(inspection)


def _dead(inspection: Inspection) -> None:
    found = inspection.dead_groups()
    now_ms = inspection.now_ms
    heading("Dead letters", error_rows.summary(found), now_ms=now_ms)
    if not found:
        done = inspection.stats().states[State.DONE]
        st.info(error_rows.nothing_dead(done=done, kept_s=inspection.settings.retention_done))
    ordered = numbers("groups").ordered(found[: error_rows.MOST], error_rows.key_of)
    for place, group in ordered:
        with st.container(border=True, horizontal=True, vertical_alignment="center"):
            st.html(error_rows.facts(group, now_ms=now_ms))
            if st.button("Requeue", key=f"group-requeue-{place}", width=_BUTTON_PX):
                _ask_requeue(inspection, group)
    if len(found) > error_rows.MOST:
        st.caption(f"{number(len(found) - error_rows.MOST)} smaller groups are not shown.")


def _ask_requeue(inspection: Inspection, group: DeadGroup) -> None:
    rows = inspection.jobs_of_group(group)
    acting.act_on(Action.REQUEUE, questions.choice_of(Action.REQUEUE, rows))


def _recent(inspection: Inspection) -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        st.html(markup.heading("Failed attempts", small=True), width="content")
        window = st.segmented_control(
            "Window",
            list(error_rows.WINDOWS),
            default="1h",
            required=True,
            key="errors-window",
            label_visibility="collapsed",
        )
    window_s = error_rows.WINDOWS[window]
    found = inspection.errors_since(window_s)
    if found:
        st.html(error_rows.recent(found, now_ms=inspection.now_ms))
    else:
        st.caption(error_rows.nothing_failed(window_s))
