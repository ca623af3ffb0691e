"""The way from one page to another, in the same tab."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn

import streamlit as st

if TYPE_CHECKING:
    from streamlit.navigation.page import Page

    from sqlqueue.consoles.admin.view import View

__all__ = ["keep", "to_job", "to_jobs"]

_PAGES: Final = "pages"


def keep(found: dict[str, Page]) -> None:
    """Remember the pages of this run by their modules; the frame says so before it runs one."""
    st.session_state[_PAGES] = found


def to_jobs(view: View) -> NoReturn:
    """Go to the Jobs page, which shows this view."""
    st.switch_page(st.session_state[_PAGES]["jobs"], query_params=view.params())


def to_job(name: str) -> NoReturn:
    """Go to the page of a job: its id, or "#" and a message id."""
    st.switch_page(st.session_state[_PAGES]["job"], query_params={"id": name})
