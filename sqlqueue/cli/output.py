"""Where data goes: tables for people, JSON for machines, both to standard output; notes to stderr.

Whatever is shown of a job was written by a stranger. Tables take plain text, escape it and make it
`rich.text.Text`, which no markup is read in; JSON is pure ASCII. rich is imported by the first
table.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from sqlqueue.palette import HEADING, MUTED
from sqlqueue.text import escaped

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console

    from sqlqueue.cli.invocation import Invocation

__all__ = ["Cell", "Column", "Output", "console_for", "dumped", "is_colored"]

_GAP: Final = 2  # between two columns
_LEAST_FLEXIBLE: Final = 12
_MOST_FIXED: Final = 40  # a UUID has 36; who makes his own ids longer sees their beginning


@dataclass(frozen=True, slots=True)
class Column:
    """Be a column of a table. Where a terminal is too narrow, the highest `rank` goes first.

    Rank 0 always stays. `flexible` columns may be cut there.
    """

    title: str
    rank: int = 0
    right: bool = False
    flexible: bool = False


@dataclass(frozen=True, slots=True)
class Cell:
    """Be a text with a style; a plain text is a cell without one."""

    text: str
    style: str = ""


class Output:
    """Print what a command found, in the way that was asked for."""

    def __init__(self, invocation: Invocation) -> None:
        self._invocation = invocation

    @property
    def is_table(self) -> bool:
        """Say whether a person reads it."""
        return self._invocation.output == "table"

    def document(self, document: dict[str, Any]) -> None:
        """Print one JSON document: on one line, or indented for eyes on a terminal."""
        is_for_eyes = self._invocation.output == "json" and not self._invocation.is_watching
        indent = is_for_eyes and sys.stdout.isatty()
        click.echo(dumped({"schema": 1, **document}, indent=indent))

    def items(self, items: Iterable[dict[str, Any]], *, following: str | None = None) -> None:
        """Print a list: one document with a cursor, or a line each for ``-o jsonl``.

        While watching it is always a document: nobody could tell where the next look begins.
        """
        if self._invocation.output == "jsonl" and not self._invocation.is_watching:
            for item in items:
                click.echo(dumped(item))
            return
        self.document({"items": list(items), "next": following})

    def table(self, columns: Sequence[Column], rows: Sequence[Sequence[Cell | str]]) -> None:
        """Print a table: on a terminal as wide as that, elsewhere as wide as it has to be."""
        from rich.table import Table
        from rich.text import Text

        console = console_for(sys.stdout, self._invocation)
        cells = [[_as_cell(each) for each in row] for row in rows]
        widths = _widths(columns, cells, console.width if console.is_terminal else None)
        table = Table(box=None, padding=(0, _GAP, 0, 0), show_edge=False, header_style=HEADING)
        for index, width in widths.items():
            column = columns[index]
            table.add_column(
                Text(column.title),
                justify="right" if column.right else "left",
                width=width,
                no_wrap=True,
                overflow="ellipsis",
            )
        for row in cells:
            table.add_row(*[Text(row[index].text, style=row[index].style) for index in widths])
        self.print(table, console=console)

    def print(self, renderable: object, *, console: Console | None = None) -> None:
        """Print something of rich's to standard output, without spaces at the ends of lines."""
        console = console or console_for(sys.stdout, self._invocation)
        with console.capture() as captured:
            console.print(renderable)
        for line in captured.get().splitlines():
            click.echo(line.rstrip(), color=True)

    def line(self, text: str, style: str = "") -> None:
        """Print one line of data for people; the text is escaped."""
        from rich.text import Text

        self.print(Text(escaped(text), style=style, no_wrap=True, overflow="ignore"))

    def pieces(self, pieces: Sequence[str | tuple[str, str]]) -> None:
        """Print one line of data made of texts and (text, style); all of it is escaped."""
        from rich.text import Text

        line = Text(no_wrap=True, overflow="ignore")
        for piece in pieces:
            text, style = (piece, "") if isinstance(piece, str) else piece
            line.append(escaped(text), style=style or None)
        self.print(line)

    def note(self, text: str) -> None:
        """Tell something on standard error, unless quiet."""
        if not self._invocation.quiet:
            click.echo(escaped(text), err=True)

    def empty(self, text: str) -> None:
        """Say that there is nothing, and what there is instead: data for people."""
        self.line(text, style=MUTED)


def is_colored(stream: Any, invocation: Invocation) -> bool:
    """Say whether colours are wanted on a stream, and can be shown."""
    if invocation.no_color or os.environ.get("NO_COLOR"):
        return False
    with contextlib.suppress(AttributeError, ValueError):
        return bool(stream.isatty())
    return False


def console_for(stream: Any, invocation: Invocation) -> Console:
    """Return rich's view of a stream: colours only where they are wanted and can be shown."""
    from rich.console import Console

    if not stream.isatty():
        # Nobody cuts what goes into a file or a pipe.
        return Console(
            file=io.StringIO(), width=10_000, color_system=None, force_terminal=False, emoji=False
        )
    return Console(
        file=stream,
        no_color=not is_colored(stream, invocation),
        highlight=False,
        markup=False,
        emoji=False,
    )


def dumped(document: object, *, indent: bool = False) -> str:
    """Return JSON in plain ASCII: harmless on a terminal, and the same on every one."""
    # json escapes whatever is not between space and tilde, DEL as well.
    return json.dumps(document, allow_nan=False, indent=2 if indent else None)


def _as_cell(given: Cell | str) -> Cell:
    cell = given if isinstance(given, Cell) else Cell(given)
    return Cell(escaped(cell.text), cell.style)


def _widths(
    columns: Sequence[Column], rows: Sequence[Sequence[Cell]], width: int | None
) -> dict[int, int]:
    """Return the width of each column that is shown; `width` None is as wide as it has to be.

    rich would take from all columns alike, from states and ids, too. Here columns without a word in
    them go, then columns by rank until the rest fits; what is left over is given to those that were
    cut, the neediest last.
    """
    from rich.cells import cell_len

    natural = {
        index: max(cell_len(column.title), *(cell_len(row[index].text) for row in rows), 0)
        for index, column in enumerate(columns)
    }
    if width is None:
        return natural
    least = {
        index: min(wanted, _LEAST_FLEXIBLE if columns[index].flexible else _MOST_FIXED)
        for index, wanted in natural.items()
        if not columns[index].rank or any(row[index].text for row in rows)
    }
    while sum(least.values()) + _GAP * len(least) > width:
        droppable = [index for index in least if columns[index].rank]
        if not droppable:
            break
        del least[max(droppable, key=lambda index: columns[index].rank)]
    left = width - sum(least.values()) - _GAP * len(least)
    needy = sorted(least, key=lambda index: natural[index])
    for place, index in enumerate(needy):
        more = min(natural[index] - least[index], max(left, 0) // (len(needy) - place))
        least[index] += more
        left -= more
    return least
