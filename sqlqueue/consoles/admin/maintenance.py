"""The Maintenance page: the file, a check, a backup, pruning, the doctor, and what operators did."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import streamlit as st

from sqlqueue import health
from sqlqueue.backend import SqliteBackend
from sqlqueue.consoles import look, markup, source
from sqlqueue.consoles.admin import acting, maintenance_rows
from sqlqueue.consoles.admin.refreshing import heading
from sqlqueue.consoles.shield import shielded
from sqlqueue.errors import NotAvailable
from sqlqueue.inspection import State
from sqlqueue.operations import Operations
from sqlqueue.palette import TITLES

if TYPE_CHECKING:
    from sqlqueue.consoles.admin.acting import Answer
    from sqlqueue.inspection import Inspection

__all__ = ["show"]

_REFRESH_S: Final = 10.0
_AUDIT_ROWS: Final = 25
_DAY_S: Final = 86_400
_CHECKED: Final = "maintenance-checked"
_EXAMINED: Final = "maintenance-examined"
_CURSORS: Final = "audit-cursors"  # of the pages before the one that is shown


def show() -> None:
    """Show the page."""
    st.html(markup.STYLE)
    with shielded(), source.chosen().opened() as inspection:
        path = _path(inspection)
        _file(path)
        left, middle, right = st.columns(3)
        with left.container(border=True, height="stretch"):
            _check()
        with middle.container(border=True, height="stretch"):
            _backup(path)
        with right.container(border=True, height="stretch"):
            _prune()
        _doctor()
        _audit()


def _path(inspection: Inspection) -> Path:
    if not isinstance(inspection.backend, SqliteBackend):
        raise NotAvailable("maintenance")
    return inspection.backend.store.path


@st.fragment(run_every=_REFRESH_S)
def _file(path: Path) -> None:
    with shielded(), source.chosen().opened() as inspection:
        heading("Maintenance", "", now_ms=inspection.now_ms)
        with st.container(border=True):
            st.html(maintenance_rows.file(path, inspection.size(), health.versions()))


@st.fragment
def _check() -> None:
    st.html(markup.heading("Check the file", small=True))
    st.html(markup.muted(maintenance_rows.ABOUT_CHECK))
    full = st.toggle(
        "In full",
        key="check-full",
        help="Compare every index with its table, too: takes a minute for some gigabytes",
    )
    is_wanted = st.button("Check", key="check-run")
    bar = st.empty()
    if is_wanted:
        with shielded(), source.chosen().opened() as inspection:
            bar.progress(0.0, "Reading")

            def tell(part: float | None) -> None:
                bar.progress(part or 0.0, "Reading")

            found = Operations(inspection).check(full=full, tell=tell)
            st.session_state[_CHECKED] = (found, full)
        bar.empty()
    if _CHECKED in st.session_state:
        found, was_full = st.session_state[_CHECKED]
        level, said = maintenance_rows.complaints(found, full=was_full)
        st.html(markup.warned(said, level))


@st.fragment
def _backup(path: Path) -> None:
    st.html(markup.heading("Back up", small=True))
    st.html(markup.muted(maintenance_rows.ABOUT_BACKUP))
    with shielded(), source.chosen().opened() as inspection:
        destination = st.text_input(
            "To a path on the console’s machine",
            value=maintenance_rows.backup_name(path, inspection.now_ms),
            key="backup-path",
        )
        if st.button("Back up", key="backup-run", disabled=not destination.strip()):
            target = Path(destination.strip())

            def do(operations: Operations, answer: Answer) -> str:
                report = operations.backup(
                    target, tell=lambda done, whole: answer.progress(done / (whole or 1))
                )
                return maintenance_rows.backed_up(report)

            question = maintenance_rows.backup_question(str(target), inspection.size())
            acting.ask(question, do, done=_forget_destination)


def _forget_destination() -> None:
    """Let the next backup have a name of its own: there is something by this one now."""
    st.session_state.pop("backup-path", None)


@st.fragment
def _prune() -> None:
    st.html(markup.heading("Prune", small=True))
    st.html(markup.muted(maintenance_rows.ABOUT_PRUNING))
    days = st.number_input(
        "Jobs that ended more than so many days ago",
        min_value=0.0,
        value=7.0,
        step=1.0,
        format="%g",
        key="prune-days",
    )
    states = tuple(
        st.multiselect(
            "In state",
            maintenance_rows.ENDED,
            default=[State.DONE],
            format_func=lambda state: TITLES[state.value],
            key="prune-states",
        )
    )
    if st.button("Count and prune", key="prune-run", disabled=not states):
        with shielded(), source.chosen().opened() as inspection:
            _ask_prune(inspection, older_than_s=days * _DAY_S, states=states)


def _ask_prune(inspection: Inspection, *, older_than_s: float, states: tuple[State, ...]) -> None:
    count = Operations(inspection).prunable(older_than_s=older_than_s, states=states)
    if not count:
        st.html(markup.muted("No job ended that long ago. Nothing to delete."))
        return

    def do(operations: Operations, answer: Answer) -> str:
        deleted = operations.prune(
            older_than_s=older_than_s,
            states=states,
            actor=answer.actor,
            reason=answer.reason,
            tell=lambda done: answer.progress(min(done / count, 1.0)),
        )
        return maintenance_rows.pruned(deleted)

    acting.ask(maintenance_rows.prune_question(count, older_than_s=older_than_s, states=states), do)


@st.fragment
def _doctor() -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        said = st.empty()
        st.toggle("Strictly", key="doctor-strict", help="Read every page of the file, too")
        is_wanted = st.button("Examine", key="doctor-run")
    with shielded(), source.chosen().opened() as inspection:
        if is_wanted:
            app = source.chosen().app
            st.session_state[_EXAMINED] = (
                inspection.now_ms,
                list(
                    health.examine(
                        inspection,
                        strict=st.session_state.get("doctor-strict", False),
                        app_checks=None if app is None else app.checks,
                    )
                ),
            )
        at_ms, found = st.session_state.get(_EXAMINED, (0, []))
        verdict = (
            maintenance_rows.health(found, at_ms=at_ms, now_ms=inspection.now_ms)
            if found
            else "Not examined yet."
        )
        said.html(markup.heading("Doctor", verdict, small=True))
        if found:
            st.html(maintenance_rows.checks(found))


@st.fragment(run_every=_REFRESH_S)
def _audit() -> None:
    cursors: list[str] = st.session_state.setdefault(_CURSORS, [])
    with shielded(), source.chosen().opened() as inspection:
        page = inspection.audit(limit=_AUDIT_ROWS, cursor=cursors[-1] if cursors else None)
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.html(markup.heading("What operators did", small=True))
            st.button("Newer", key="audit-newer", disabled=not cursors, on_click=_newer)
            st.button(
                "Older",
                key="audit-older",
                disabled=page.next is None,
                on_click=cursors.append,
                args=(page.next,),
            )
        if page.items:
            st.html(
                maintenance_rows.audit(
                    page.items, now_ms=inspection.now_ms, utc=source.chosen().utc
                )
            )
        else:
            st.caption(look.safe(maintenance_rows.NOTHING_DONE))


def _newer() -> None:
    cursors: list[str] = st.session_state[_CURSORS]
    if cursors:  # of two quick clicks the second may find none
        cursors.pop()
