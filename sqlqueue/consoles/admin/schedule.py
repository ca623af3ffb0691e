"""The Schedule page: entries, how they stand, when they come; pause and resume; recent ticks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from sqlqueue.consoles import markup, source
from sqlqueue.consoles.admin import acting, schedule_rows
from sqlqueue.consoles.admin.refreshing import REFRESH_S, heading, numbers
from sqlqueue.consoles.shield import shielded

if TYPE_CHECKING:
    from sqlqueue.consoles.admin.acting import Answer
    from sqlqueue.inspection import Scheduled
    from sqlqueue.operations import Operations

__all__ = ["show"]

_BUTTON_PX = 96
_TICKS = 20


def show() -> None:
    """Show the page."""
    st.html(markup.STYLE)
    _entries()


@st.fragment(run_every=REFRESH_S)
def _entries() -> None:
    with shielded(), source.chosen().opened() as inspection:
        found = inspection.schedule()
        newest = inspection.ticks(found, most=_TICKS)
        now_ms = inspection.now_ms
        heading("Schedule", schedule_rows.summary(found, newest, now_ms=now_ms), now_ms=now_ms)
        if not found:
            st.info(schedule_rows.EMPTY)
        for place, entry in numbers("entries").ordered(found, lambda one: one.row.entry):
            _row(place, entry, now_ms)
        if newest:
            st.html(markup.heading("Recent ticks", small=True))
            st.html(
                schedule_rows.ticks(newest, now_ms=now_ms, utc=source.chosen().utc, most=_TICKS)
            )


def _row(place: int, entry: Scheduled, now_ms: int) -> None:
    name = entry.row.entry
    with st.container(border=True, horizontal=True, vertical_alignment="center"):
        st.html(schedule_rows.facts(entry, now_ms=now_ms))
        if schedule_rows.is_paused(entry):
            if st.button("Resume", key=f"schedule-resume-{place}", width=_BUTTON_PX):
                _ask_resume(name)
        elif st.button("Pause", key=f"schedule-pause-{place}", width=_BUTTON_PX):
            _ask_pause(name)


def _ask_pause(name: str) -> None:
    def do(operations: Operations, answer: Answer) -> str:
        is_new = operations.pause_entry(name, actor=answer.actor, reason=answer.reason)
        return f"Entry {name} is paused{'' if is_new else ', as it was before'}."

    acting.ask(schedule_rows.pause_question(name), do)


def _ask_resume(name: str) -> None:
    def do(operations: Operations, answer: Answer) -> str:
        is_new = operations.resume_entry(name, actor=answer.actor, reason=answer.reason)
        return (
            f"Entry {name} goes on with its next tick."
            if is_new
            else f"Entry {name} was not paused."
        )

    acting.ask(schedule_rows.resume_question(name), do)
