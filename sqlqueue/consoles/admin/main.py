"""The script of the admin console, run by Streamlit for each look at it: the frame of its pages."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import streamlit as st

from sqlqueue.consoles import look
from sqlqueue.consoles.admin import acting, style
from sqlqueue.consoles.shield import shielded

if TYPE_CHECKING:
    from collections.abc import Callable


def page_of(module: str) -> Callable[[], None]:
    """Return what shows the page of a module: its `show`, imported when the page is first asked for."""

    def show() -> None:
        with shielded():
            importlib.import_module(f"sqlqueue.consoles.admin.{module}").show()

    return show


st.set_page_config(page_title="sqlqueue admin", layout="wide", initial_sidebar_state="collapsed")
st.html(look.STYLE)
st.html(style.STYLE)
page = st.navigation(
    [
        st.Page(page_of("jobs"), title="Jobs", url_path="jobs", default=True),
        st.Page(page_of("errors"), title="Errors", url_path="errors"),
        st.Page(page_of("queues"), title="Queues", url_path="queues"),
        st.Page(page_of("workers"), title="Workers", url_path="workers"),
        st.Page(page_of("schedule"), title="Schedule", url_path="schedule"),
        st.Page(page_of("maintenance"), title="Maintenance", url_path="maintenance"),
        st.Page(page_of("job"), title="Job", url_path="job", visibility="hidden"),
    ],
    position="top",
)
page.run()
acting.show_report()
