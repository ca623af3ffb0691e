"""The Queues page: how deep, how old, who serves them; pause, resume, purge."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from sqlqueue.consoles import markup, source
from sqlqueue.consoles.admin import acting, queue_rows
from sqlqueue.consoles.admin.refreshing import REFRESH_S, heading, numbers
from sqlqueue.consoles.shield import shielded
from sqlqueue.formats import number

if TYPE_CHECKING:
    from sqlqueue.consoles.admin.acting import Answer
    from sqlqueue.inspection import Queue
    from sqlqueue.operations import Operations

__all__ = ["show"]

_BUTTON_PX = 96  # Pause and Resume take turns at one place


def show() -> None:
    """Show the page."""
    st.html(markup.STYLE)
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        st.text_input(
            "Find a queue",
            key="queue-find",
            placeholder="Find a queue",
            label_visibility="collapsed",
            width=280,
        )
        st.toggle("Mailboxes, too", key="queue-mailboxes", help="Queues of Celery's own talk")
    _queues()


@st.fragment(run_every=REFRESH_S)
def _queues() -> None:
    with shielded(), source.chosen().opened() as inspection:
        found = queue_rows.chosen(
            inspection.queues(),
            containing=st.session_state.get("queue-find", ""),
            mailboxes=st.session_state.get("queue-mailboxes", False),
        )
        now_ms = inspection.now_ms
        heading("Queues", queue_rows.summary(found), now_ms=now_ms)
        if not found:
            st.info(queue_rows.EMPTY)
        ordered = numbers("queues").ordered(found, lambda one: one.name)
        for place, queue in ordered[: queue_rows.MOST]:
            _row(place, queue, now_ms)
        if len(found) > queue_rows.MOST:
            st.caption(f"{number(len(found) - queue_rows.MOST)} more: find them by name.")


def _row(place: int, queue: Queue, now_ms: int) -> None:
    with st.container(border=True, horizontal=True, vertical_alignment="center"):
        st.html(queue_rows.facts(queue, now_ms=now_ms))
        if queue.pause is None:
            if st.button("Pause", key=f"queue-pause-{place}", width=_BUTTON_PX):
                _ask_pause(queue.name)
        elif st.button("Resume", key=f"queue-resume-{place}", width=_BUTTON_PX):
            _ask_resume(queue.name)
        if st.button(
            "Purge",
            key=f"queue-purge-{place}",
            width=_BUTTON_PX,
            disabled=not queue_rows.waiting(queue),
            help="Delete what waits in it",
        ):
            _ask_purge(queue)


def _ask_pause(name: str) -> None:
    def do(operations: Operations, answer: Answer) -> str:
        [change] = operations.pause([name], actor=answer.actor, reason=answer.reason)
        return f"Queue {name} is paused{'' if change.changed else ', as it was before'}."

    acting.ask(queue_rows.pause_question(name), do)


def _ask_resume(name: str) -> None:
    def do(operations: Operations, answer: Answer) -> str:
        [change] = operations.resume([name], actor=answer.actor, reason=answer.reason)
        return f"Queue {name} runs{' again' if change.changed else ', as it did before'}."

    acting.ask(queue_rows.resume_question(name), do)
