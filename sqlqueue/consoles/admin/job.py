"""The Job page, `/job?id=…`: one job whole, and what can be done to it."""

from __future__ import annotations

import streamlit as st

__all__ = ["show"]


def show() -> None:
    """Show the job that the link names."""
    st.title("Job")
