"""The Job page, `/job?id=…`: one job whole, and what can be done to it.

A job that has not ended is read anew every two seconds, in a fragment; one that has ended stands
still.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import streamlit as st

from sqlqueue.backend import SqliteBackend
from sqlqueue.consoles import look, source
from sqlqueue.consoles.admin import acting, details, pages
from sqlqueue.consoles.admin.questions import ICONS, LABELS, choice_of
from sqlqueue.consoles.admin.rows import error_line, link, standing
from sqlqueue.consoles.admin.view import View
from sqlqueue.consoles.shield import shielded
from sqlqueue.errors import JobNotFound
from sqlqueue.formats import at, number
from sqlqueue.text import HIDDEN, without_passwords
from sqlqueue_transport.lifecycle import FINISHED

if TYPE_CHECKING:
    from sqlqueue.inspection import Inspection, Job
    from sqlqueue.operations import Action
    from sqlqueue_transport.reading import JobRow

__all__ = ["show"]

_REFRESH_S: Final = 2.0
_ASKED: Final = "job-asked"
_TEXT_PX: Final = 360  # of arguments, results and files: what is longer scrolls in its box


def show() -> None:
    """Show the job that the link names."""
    name = st.query_params.get("id", "").strip()
    with source.chosen().opened() as inspection:
        job = _found(inspection, name)
        if job is None:
            _nothing(name)
            return
        is_ended = job.row.state in FINISHED
        st.fragment(_body, run_every=None if is_ended else _REFRESH_S)(name, is_ended)
        _rest(inspection, job)
    _open_dialog()


def _found(inspection: Inspection, name: str) -> Job | None:
    try:
        return inspection.job(name) if name else None
    except JobNotFound:
        return None


def _nothing(name: str) -> None:
    with st.container(key="no-job", border=True):
        if name:
            st.markdown(f"**No job has the id {look.safe(name)}.**")
            st.markdown(
                "It was never stored here, or retention has removed it. Look for the start of its"
                " id, its task or its path:"
            )
        else:
            st.markdown("**Which job?** Look for an id, the start of one, a task or a path:")
        said = st.text_input(
            "Search", key="search", label_visibility="collapsed", icon=":material/search:"
        )
        if said.strip():
            pages.to_jobs(View(search=said.strip()))


# -- what changes while the job lives --------------------------------------------------------------


def _body(name: str, was_ended: bool) -> None:  # noqa: FBT001 - a fragment's argument
    with shielded(), source.chosen().opened() as inspection:
        job = _found(inspection, name)
        if job is None or (job.row.state in FINISHED) != was_ended:
            st.rerun()  # it has ended, or gone, or lives again: the page is another one
        utc, now_ms = source.chosen().utc, inspection.now_ms
        _head(job.row)
        _actions(job.row)
        st.html(details.facts_html(details.facts(job, now_ms=now_ms, utc=utc)))
        _progress(job.row)
        found = details.attempts(job, now_ms=now_ms, utc=utc)
        if found:
            st.markdown("**Attempts**")
            st.html(details.timeline_html(found))


def _head(row: JobRow) -> None:
    with st.container(key="job-head", horizontal=True, vertical_alignment="center"):
        st.subheader(look.safe(row.task or "no job of ours"), anchor=False, width="content")
        st.html(look.badge(standing(row)), width="content")
        st.code(look.plain(row.name), language=None, width="content")


def _actions(row: JobRow) -> None:
    legal = details.legal_actions(row)
    with st.container(key="job-actions", horizontal=True):
        for action in LABELS:
            if action in legal and st.button(
                LABELS[action], key=f"action-{action.value}", icon=ICONS[action]
            ):
                # The job as it stood on the screen when the button was pressed, or a moment later.
                st.session_state[_ASKED] = (action, row)
                st.rerun()


def _progress(row: JobRow) -> None:
    said = row.progress
    if said is None or row.state.value != "processing":
        return
    amount = f"{said.done:g}" if said.total is None else f"{said.done:g} of {said.total:g}"
    text = look.safe(f"{amount} {said.note}".strip())
    if said.part is None:
        st.markdown(text)
    else:
        st.progress(said.part, text)


def _open_dialog() -> None:
    asked: tuple[Action, JobRow] | None = st.session_state.pop(_ASKED, None)
    if asked is not None:
        action, row = asked
        acting.act_on(action, choice_of(action, [row]))


# -- what stands still -------------------------------------------------------------------------------


def _rest(inspection: Inspection, job: Job) -> None:
    utc = source.chosen().utc
    _tracebacks(job, now_ms=inspection.now_ms, utc=utc)
    left, right = st.columns(2, gap="large")
    with left:
        _arguments(job)
        _outcome(job)
    with right:
        for title, text in details.views(source.chosen().app, job):
            _text(title, text)
        _audit(job, utc=utc)
        _others(job)
        if lines := details.commands(job, db=_db(inspection)):
            st.markdown("**The same from a command line**")
            st.code(lines, language="shell", wrap_lines=True)


def _tracebacks(job: Job, *, now_ms: int, utc: bool) -> None:
    for one in reversed(details.attempts(job, now_ms=now_ms, utc=utc)):
        if one.traceback:
            with st.expander(f"Traceback of attempt {one.label} · {look.safe(one.error)}"):
                st.code(one.traceback, language="python")


def _arguments(job: Job) -> None:
    if job.arguments.problem:
        st.markdown("**Arguments**")
        st.warning(f"They cannot be read: {look.safe(job.arguments.problem)}")
        return
    text = details.arguments_text(job.arguments)
    is_json = bool(text) and not job.is_sensitive
    _text("Arguments", text or "none", language="json" if is_json else None)


def _outcome(job: Job) -> None:
    if job.error is not None:
        _text("Error", look.plain(error_line(job.error.type, job.error.message)))
    if job.celery is not None:
        said = job.celery
        _text("Celery says", look.plain(said.state))
        if said.error is not None:
            _text("Celery’s error", look.plain(error_line(said.error.type, said.error.message)))
        elif said.result is not None:
            _text("Celery’s result", details.pretty(said.result), language="json")
    elif job.row.state.value == "done" and job.is_sensitive:
        _text("Result", HIDDEN)
    elif job.row.state.value == "done":
        _text("Result", details.pretty(job.result), language="json")


def _text(title: str, text: str, *, language: str | None = None) -> None:
    st.markdown(f"**{look.safe(title)}**")
    is_long = text.count("\n") > 14 or len(text) > 1500
    st.code(text, language=language, wrap_lines=True, height=_TEXT_PX if is_long else "content")


def _audit(job: Job, *, utc: bool) -> None:
    if not job.audit:
        return
    st.markdown("**What operators did**")
    st.dataframe(
        {
            "When": [at(one.at_ms, utc=utc) for one in job.audit],
            "Action": [look.plain(one.action) for one in job.audit],
            "By": [look.plain(one.actor) for one in job.audit],
            "State": [f"{one.before} → {one.after}" for one in job.audit],
            "Reason": [look.plain(one.reason or "") for one in job.audit],
        },
        hide_index=True,
        key="job-audit",
    )


def _others(job: Job) -> None:
    if not job.others:
        return
    shown = ", ".join(f"[\\#{one}]({link(f'#{one}')})" for one in job.others[:20])
    st.markdown(f"**Other messages with this id** ({number(len(job.others))}): {shown}")


def _db(inspection: Inspection) -> str:
    """Return what --db takes for the queue that is shown."""
    if isinstance(inspection.backend, SqliteBackend):
        return str(inspection.backend.store.path)
    return without_passwords(inspection.settings.broker_url)
