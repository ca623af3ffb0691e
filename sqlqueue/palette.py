"""One colour for each state of a job, wherever it is shown: terminal and consoles.

Chosen to be told apart on a dark and on a light ground, and in the order of a job's life: cool
while it waits, amber while it runs, green when it is done, warm to red when it is not. A colour
never stands alone: the state's name is always beside it.
"""

from __future__ import annotations

from typing import Final

__all__ = ["HEADING", "LEVELS", "MUTED", "STATES", "TITLES"]

STATES: Final[dict[str, str]] = {
    "pending": "#4f8fd0",
    "scheduled": "#8f7fd6",
    "processing": "#d79a21",
    "done": "#3a9e62",
    "failed": "#e07b39",
    "permanently_failed": "#d9484b",
    "cancelled": "#8c919b",
    "expired": "#a58468",
    "stalled": "#c2498f",
}

TITLES: Final[dict[str, str]] = {state: state.replace("_", " ") for state in STATES}

LEVELS: Final[dict[str, str]] = {
    "ok": STATES["done"],
    "warn": STATES["processing"],
    "fail": STATES["permanently_failed"],
}

HEADING: Final = "bold"
MUTED: Final = "#8c919b"
