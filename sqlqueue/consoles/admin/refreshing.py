"""What pages that refresh themselves share: how often, the line that says when, and stable rows."""

from __future__ import annotations

from typing import Final

import streamlit as st

from sqlqueue.consoles import markup, source
from sqlqueue.consoles.admin.numbering import Numbers
from sqlqueue.formats import at

__all__ = ["REFRESH_S", "heading", "numbers"]

REFRESH_S: Final = 3.0


def heading(title: str, summary: str, *, now_ms: int) -> None:
    """Show what a page is about, and of which moment its numbers are."""
    moment = at(now_ms, utc=source.chosen().utc)
    st.html(markup.heading(title, summary, f"as of {moment[11:]}"))


def numbers(kind: str) -> Numbers:
    """Return this session's numbers of a kind of thing."""
    found: Numbers = st.session_state.setdefault(f"numbers-{kind}", Numbers())
    return found
