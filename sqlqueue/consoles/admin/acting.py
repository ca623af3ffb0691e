"""The one place where a console acts: a dialog that says what would change, and a report of what did.

The jobs are fixed, by id and the state they were seen in, before the dialog opens; confirming changes
exactly those that are still so. The report stays until it is dismissed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import streamlit as st

from sqlqueue.actor import actor
from sqlqueue.consoles import look, source
from sqlqueue.consoles.admin.questions import (
    LABELS,
    Question,
    narrowed,
    question_of,
    summary,
)
from sqlqueue.consoles.troubles import trouble_of
from sqlqueue.operations import Action, Choice, Operations

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlqueue.inspection import Inspection, JobFilter

    Deed = Callable[[Operations, "Answer"], str]

__all__ = ["Answer", "act_on", "act_on_all", "ask", "show_report", "tell"]

_REPORT: Final = "told"
_FORCE: Final[dict[str, float | None]] = {
    "never": None,
    "after 10 s": 10.0,
    "after 1 min": 60.0,
    "after 10 min": 600.0,
}


@dataclass(frozen=True, slots=True)
class Answer:
    """Be what the operator said. `actor` is who, for the audit table.

    `progress` is called with the part that is done, 0 to 1, by what takes long.
    """

    actor: str
    reason: str | None
    force_after_s: float | None
    progress: Callable[[float], None]


def ask(question: Question, do: Deed, *, done: Callable[[], None] | None = None) -> None:
    """Open the dialog; when it is confirmed, call `do`, report what it returns, then call `done`.

    `do` gets its own Operations, opened for the run that confirms. Call at most once in a run.
    """
    st.dialog(look.safe(question.title), width="medium")(_dialog)(question, do, done)


def act_on(action: Action, choice: Choice, *, done: Callable[[], None] | None = None) -> None:
    """Ask, and then change these jobs where they are still in the state they were seen in."""

    def do(operations: Operations, answer: Answer) -> str:
        return _apply(operations, action, choice, answer)

    ask(question_of(action, choice), do, done=done)


def act_on_all(
    inspection: Inspection,
    action: Action,
    chosen: JobFilter,
    *,
    done: Callable[[], None] | None = None,
) -> None:
    """Ask, and then change every job that matches the filter now; what comes later is not touched."""
    meant = narrowed(action, chosen)
    choice = Choice() if meant is None else Operations(inspection).choose(action, chosen=meant)
    if choice.targets:
        act_on(action, choice, done=done)
    else:
        tell(
            f"{LABELS[action]}: no job that matches is in a state that allows it. Nothing changed."
        )


def tell(text: str) -> None:
    """Show a report from the next run of the page on, until it is dismissed."""
    st.session_state[_REPORT] = text


def show_report() -> None:
    """Show the newest report, above the page and without moving it. Called once, by the frame."""
    text = st.session_state.get(_REPORT)
    if text is None:
        return
    with st.container(key="report", horizontal=True, vertical_alignment="center"):
        st.markdown(look.safe(text))
        st.button("Dismiss", key="report-dismiss", on_click=_dismiss, width="content")


def _dismiss() -> None:
    st.session_state.pop(_REPORT, None)


def _dialog(question: Question, do: Deed, done: Callable[[], None] | None) -> None:
    for line in question.lines:
        st.markdown(look.safe(line))
    if question.samples:
        st.code("\n".join(map(look.plain, question.samples)), language=None)
    reason = (
        st.text_input(
            "Reason",
            key="dialog-reason",
            placeholder="Why; kept in the audit table",
            max_chars=500,
        )
        if question.asks_reason
        else ""
    )
    force = (
        st.segmented_control(
            "End by force what does not stop",
            list(_FORCE),
            default="never",
            required=True,
            key="dialog-force",
        )
        if question.asks_force
        else None
    )
    typed = (
        st.text_input(look.safe(question.typed_label), key="dialog-count", autocomplete="off")
        if question.typed
        else ""
    )
    with st.container(horizontal=True, horizontal_alignment="right"):
        if st.button("Do nothing", key="dialog-dismiss"):
            st.rerun()
        is_confirmed = st.button(look.safe(question.label), key="dialog-confirm", type="primary")
    if not is_confirmed:
        return
    if not question.is_answered_by(typed):
        st.error(f"Nothing was changed. {look.safe(question.typed_label)}.")
        return
    bar = st.empty()

    def progress(part: float) -> None:
        bar.progress(part)

    answer = Answer(
        actor=actor("admin console"),
        reason=reason.strip() or None,
        force_after_s=_FORCE[force] if force else None,
        progress=progress,
    )
    try:
        with source.chosen().opened() as inspection:
            tell(do(Operations(inspection), answer))
    except Exception as error:
        trouble = trouble_of(error)
        if trouble is None:
            raise
        st.error(f"**{trouble.title}** {look.safe(trouble.advice)}")
        return
    if done is not None:
        done()
    st.rerun()


def _apply(operations: Operations, action: Action, choice: Choice, answer: Answer) -> str:
    count = len(choice.targets)
    report = operations.apply(
        action,
        choice.targets,
        actor=answer.actor,
        reason=answer.reason,
        force_after_s=answer.force_after_s,
        tell=lambda done: answer.progress(done / count),
    )
    return summary(action, report, force_after_s=answer.force_after_s)
