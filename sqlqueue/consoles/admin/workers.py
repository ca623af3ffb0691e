"""The Workers page: who is alive, what each runs, and since when. Nothing can be done here."""

from __future__ import annotations

import streamlit as st

from sqlqueue.consoles import markup, source
from sqlqueue.consoles.admin import worker_rows
from sqlqueue.consoles.admin.refreshing import REFRESH_S, heading
from sqlqueue.consoles.shield import shielded

__all__ = ["show"]


def show() -> None:
    """Show the page."""
    st.html(markup.STYLE)
    _workers()


@st.fragment(run_every=REFRESH_S)
def _workers() -> None:
    with shielded(), source.chosen().opened() as inspection:
        found = worker_rows.families(inspection.workers())
        now_ms = inspection.now_ms
        heading("Workers", worker_rows.summary(found), now_ms=now_ms)
        if not any(one.is_worker for one in found):
            st.info(worker_rows.EMPTY)
        for family in found:
            with st.container(border=True):
                st.html(
                    worker_rows.card(
                        family,
                        now_ms=now_ms,
                        silent_after_s=inspection.settings.visibility_timeout,
                    )
                )
