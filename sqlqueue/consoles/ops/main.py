"""The script of the ops console, run by Streamlit for each look at it."""

from __future__ import annotations

import streamlit as st

from sqlqueue.consoles import look, source

st.set_page_config(page_title="sqlqueue ops", layout="wide", initial_sidebar_state="collapsed")
st.html(look.STYLE)
st.title("Operations")
with source.chosen().opened() as inspection:
    stats = inspection.stats()
with st.container(horizontal=True):
    for state, count in stats.states.items():
        st.metric(state.value.replace("_", " "), f"{count:,}", border=True)
