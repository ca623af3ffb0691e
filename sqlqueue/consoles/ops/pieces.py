"""What the ops page is made of: cards, tables, a status line. Values only; `drawing` draws them.

Texts are as they were stored: escaping is `drawing`'s, once and for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Card", "Cell", "Column", "Level", "Status", "Table"]

Level = Literal["", "ok", "warn", "fail"]  # "": nothing to say about it


@dataclass(frozen=True, slots=True)
class Card:
    """Be one figure: a value, and one line below it which always has its place."""

    name: str
    title: str
    value: str
    note: str
    level: Level = ""
    help: str = ""


@dataclass(frozen=True, slots=True)
class Status:
    """Be the line on top: how all stands. The first of `problems` is the worst; none is well."""

    level: Level
    summary: str
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Column:
    """Be a column. `width` is a share; narrow tables leave out rank 2, then rank 1."""

    title: str
    width: int
    rank: int = 0
    right: bool = False


@dataclass(frozen=True, slots=True)
class Cell:
    """Be a cell. `part` (0 to 1) is drawn as a bar behind the text; `whole` is shown on hovering."""

    text: str
    level: Level = ""
    muted: bool = False
    part: float | None = None
    whole: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Be a table. `count` stands beside its title; `empty` is what is said when there are no rows."""

    title: str
    count: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    empty: str
