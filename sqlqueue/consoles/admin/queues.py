"""The Queues page: how deep, how old, who serves them; pause, resume, purge."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from sqlqueue.consoles import markup, source
from sqlqueue.consoles.admin import acting, queue_rows
from sqlqueue.consoles.admin.refreshing import REFRESH_S, heading, numbers
from sqlqueue.consoles.shield import shielded
from sqlqueue.formats import number
from sqlqueue.operations import Operations

if TYPE_CHECKING:
    from sqlqueue.consoles.admin.acting import Answer
    from sqlqueue.inspection import Inspection, Queue

__all__ = ["show"]

_BUTTON_PX = 96  # Pause and Resume take turns at one place


def show() -> None:
    """Show the page."""
    st.html(markup.STYLE)
    _queues()


@st.fragment(run_every=REFRESH_S)
def _queues() -> None:
    with shielded(), source.chosen().opened() as inspection:
        everything = inspection.queues()
        usual = queue_rows.chosen(everything, containing="", mailboxes=False)
        heading("Queues", queue_rows.summary(usual), now_ms=inspection.now_ms)
        containing, mailboxes = _controls()
        found = queue_rows.chosen(everything, containing=containing, mailboxes=mailboxes)
        if not found:
            st.info(queue_rows.nothing(containing))
        ordered = numbers("queues").ordered(found, lambda one: one.name)
        for place, queue in ordered[: queue_rows.MOST]:
            _row(inspection, place, queue)
        if len(found) > queue_rows.MOST:
            st.caption(f"{number(len(found) - queue_rows.MOST)} more: find them by name.")


def _controls() -> tuple[str, bool]:
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        containing = st.text_input(
            "Find a queue",
            key="queue-find",
            placeholder="Find a queue",
            label_visibility="collapsed",
            width=280,
        )
        mailboxes = st.toggle(
            "Mailboxes, too", key="queue-mailboxes", help="Queues of Celery's own talk"
        )
    return containing, mailboxes


def _row(inspection: Inspection, place: int, queue: Queue) -> None:
    with st.container(border=True, horizontal=True, vertical_alignment="center"):
        st.html(queue_rows.facts(queue, now_ms=inspection.now_ms))
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
        ):
            _ask_purge(inspection, queue.name)


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


def _ask_purge(inspection: Inspection, name: str) -> None:
    count = Operations(inspection).purgeable(name)

    def do(operations: Operations, answer: Answer) -> str:
        deleted = operations.purge(
            name,
            actor=answer.actor,
            reason=answer.reason,
            tell=lambda done: answer.progress(min(done / (count or 1), 1.0)),
        )
        return f"Queue {name} is purged: {number(deleted, 'message')} deleted."

    acting.ask(queue_rows.purge_question(name, count), do)
