"""The one place where pages show errors, and recover by themselves."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Final

import streamlit as st

from sqlqueue.consoles import look, source
from sqlqueue.consoles.troubles import trouble_of

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["shielded"]

_LOOK_AGAIN_S: Final = 3.0


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """Show an expected error of the block instead of what the block would have shown.

    Put it around all that a page does with the queue, and once more inside every fragment: a
    fragment runs without its page. The page tries again every few seconds, where waiting helps. What
    is no expected error goes on to Streamlit, which logs it and shows no traceback.
    """
    try:
        yield
    except Exception as error:
        trouble = trouble_of(error)
        if trouble is None:
            raise
        with st.container(key="trouble"):
            st.warning(f"**{trouble.title}** {look.safe(trouble.advice)}")
        if trouble.passes:
            _look_again(time.monotonic())


@st.fragment(run_every=_LOOK_AGAIN_S)
def _look_again(since_s: float) -> None:
    """Run the whole page as soon as the queue can be opened and read."""
    if time.monotonic() - since_s < _LOOK_AGAIN_S / 2:
        return  # the run that met the trouble, not yet a later one: it would go round and round
    try:
        with source.chosen().opened() as inspection:
            inspection.queues()
    except Exception as error:
        if trouble_of(error) is None:
            raise
        return
    st.rerun()
