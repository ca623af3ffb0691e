"""The script of the admin console, run by Streamlit for each look at it: the frame of its pages."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import streamlit as st

from sqlqueue.consoles import look
from sqlqueue.consoles.admin import acting, pages, style
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
found = {
    module: st.Page(
        page_of(module),
        title=module.capitalize(),
        url_path=module,
        default=module == "jobs",
        visibility="hidden" if module == "job" else "visible",
    )
    for module in ("jobs", "errors", "queues", "workers", "schedule", "maintenance", "job")
}
pages.keep(found)
st.navigation([*found.values()], position="top").run()
acting.show_report()
