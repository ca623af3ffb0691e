"""`--watch`: what `inspect` shows, over and over, until ctrl-c.

On a terminal one look after the other is drawn in the alternate screen, from its upper left corner
over the picture before: nothing is cleared in between, so nothing flickers, and no resize can leave
pieces of an older picture. The last one stays on the ordinary screen at the end. Elsewhere looks
follow each other: tables with an empty line between, JSON a document a line.

Each look opens the queue anew. A file that was replaced is seen for what it is, and no long read
keeps the write-ahead log from being emptied.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import click

from sqlqueue.cli.failures import ExitCode, explain, one_line
from sqlqueue.cli.invocation import duration
from sqlqueue.cli.output import console_for
from sqlqueue.cli.unwinding import ended_in_order
from sqlqueue.palette import LEVELS, MUTED

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.text import Text

    from sqlqueue.cli.invocation import Invocation

__all__ = ["watchable"]

_USUAL_S: Final = 2.0
_LEAST_S: Final = 0.2
_SLICE_S: Final = 0.1  # how soon a resize is seen


def watchable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command that looks, and prints, the option `--watch`. Put it below `pass_invocation`.

    The command must not mind being called often, and take the invocation as its first argument.
    """

    @click.option(
        "--watch",
        "every_s",
        type=_interval,
        is_flag=False,
        flag_value=f"{_USUAL_S:g}s",
        metavar="[SECONDS]",
        help=f"Look again every {_USUAL_S:g} s, or so often, until ctrl-c. The least is"
        f" {_LEAST_S:g}.",
    )
    @functools.wraps(function)
    def command(invocation: Invocation, /, *, every_s: float | None, **options: Any) -> Any:
        look = functools.partial(function, invocation, **options)
        return look() if every_s is None else _watch(invocation, look, every_s)

    return command


def _interval(text: str) -> float:
    every_s = duration(text)
    if every_s < _LEAST_S:
        raise click.BadParameter(f"{text} is too often; the least is {_LEAST_S:g} seconds")
    return every_s


def _watch(invocation: Invocation, look: Callable[[], Any], every_s: float) -> int:
    """Look until ctrl-c, which is the ordinary end; return the exit code.

    What is wrong at the first look ends it, as without `--watch`. What goes wrong later is shown,
    and it is tried again. Raises what is a bug, and BrokenPipeError where nobody reads on.
    """
    invocation.is_watching = True
    is_table = invocation.output == "table"
    on_screen = is_table and sys.stdout.isatty()
    if on_screen:  # and one that can put its cursor somewhere
        on_screen = not console_for(sys.stdout, invocation).is_dumb_terminal
    with contextlib.suppress(KeyboardInterrupt), ended_in_order():
        if on_screen:
            _draw(invocation, look, every_s)
        else:
            _print(look, every_s, is_table=is_table)
    return ExitCode.OK


def _error_line(error: Exception) -> str:
    """Return how an error is told, or raise it again if it is none that passes."""
    known = None if isinstance(error, click.ClickException | BrokenPipeError) else explain(error)
    if known is None:
        raise error
    return f"error: {one_line(known[1])}"


# -- a look after the other ------------------------------------------------------------------------


def _print(look: Callable[[], Any], every_s: float, *, is_table: bool) -> None:
    is_first = True
    while True:
        try:
            if is_table and not is_first:
                click.echo()
            look()
        except Exception as error:  # bugs are raised again in there
            if is_first:
                raise
            click.echo(_error_line(error), err=True)
        is_first = False
        time.sleep(every_s)


# -- one place on a terminal -----------------------------------------------------------------------


class _Picture(io.StringIO):
    """Take what a look prints; claim to be a terminal, so that it is as wide and as coloured."""

    def isatty(self) -> bool:
        return True


def _draw(invocation: Invocation, look: Callable[[], Any], every_s: float) -> None:
    from rich.live import Live

    picture = _pictured(look)
    # Drawn by us alone: a thread of rich's would draw at times of its own.
    live = Live(
        console=console_for(sys.stdout, invocation),
        screen=True,
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    try:
        with live:
            failure = ""
            while True:
                size = os.get_terminal_size(sys.stdout.fileno())
                live.update(_framed(invocation, picture, failure, every_s, size), refresh=True)
                _wait(every_s, size)
                try:
                    picture, failure = _pictured(look), ""
                except Exception as error:  # noqa: BLE001 - bugs are raised again in there
                    failure = _error_line(error)
    finally:
        sys.stdout.write(picture)
        sys.stdout.flush()


def _pictured(look: Callable[[], Any]) -> str:
    """Return what a look prints, with its colours; notes to standard error are part of it."""
    picture = _Picture()
    with contextlib.redirect_stdout(picture), contextlib.redirect_stderr(picture):
        look()
    return picture.getvalue()


def _framed(
    invocation: Invocation, picture: str, failure: str, every_s: float, size: os.terminal_size
) -> Text:
    """Return the picture below a line that says how old it is, or what went wrong since."""
    from rich.text import Text

    clock = time.strftime("%H:%M:%S", time.gmtime() if invocation.utc else time.localtime())
    if failure:
        head = Text(f"{clock}  {failure} Trying again.", style=LEVELS["fail"])
    else:
        head = Text(f"{clock}  every {every_s:g}s, ctrl-c ends", style=MUTED)
    # What was printed is escaped already, except for our own colours.
    lines = [head, Text(), *(Text.from_ansi(line) for line in picture.splitlines())]
    if len(lines) > size.lines:
        more = len(lines) - size.lines + 1
        lines = [*lines[: size.lines - 1], Text(f"… {more} more lines", style=MUTED)]
    for line in lines:
        line.no_wrap = True
        line.truncate(size.columns, overflow="ellipsis")
    return Text("\n", no_wrap=True, overflow="crop").join(lines)


def _wait(every_s: float, size: os.terminal_size) -> None:
    """Sleep until it is time, or the terminal has another size."""
    until_s = time.monotonic() + every_s
    while (left_s := until_s - time.monotonic()) > 0:
        time.sleep(min(left_s, _SLICE_S))
        if os.get_terminal_size(sys.stdout.fileno()) != size:
            return
