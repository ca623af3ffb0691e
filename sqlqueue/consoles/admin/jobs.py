"""The Jobs page: find jobs by state and filters, tick them, act on them."""

from __future__ import annotations

import streamlit as st

from sqlqueue.consoles import source

__all__ = ["show"]


def show() -> None:
    """Show the page."""
    with source.chosen().opened() as inspection:
        stats = inspection.stats()
    with st.container(horizontal=True):
        for state, count in stats.states.items():
            st.metric(state.value.replace("_", " "), f"{count:,}", border=True)
