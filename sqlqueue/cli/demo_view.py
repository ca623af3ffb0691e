"""How the demo looks: a live picture on a terminal, a line now and then elsewhere. To stderr."""

from __future__ import annotations

import re
import sys
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

import click

from sqlqueue.cli.output import console_for
from sqlqueue.formats import number, took
from sqlqueue.palette import HEADING, MUTED, STATES, TITLES
from sqlqueue.text import escaped

if TYPE_CHECKING:
    from types import TracebackType

    from rich.text import Text

    from sqlqueue.cli.demo import Plan
    from sqlqueue.cli.demo_progress import Seen
    from sqlqueue.cli.invocation import Invocation

__all__ = ["LiveView", "PlainView", "View", "place"]

_ALWAYS_SHOWN: Final = ("pending", "processing", "done", "failed", "permanently_failed")
_LINE_EVERY_S: Final = 2.0


class View(Protocol):
    """Be something that shows how it goes."""

    def show(self, seen: Seen, *, stopping: bool, running_s: float) -> None:
        """Show a look; `stopping` while the worker finishes, `running_s` since the start."""


class PlainView:
    """Write a line to standard error when something has changed, at most every two seconds."""

    def __init__(self, invocation: Invocation, plan: Plan) -> None:
        """Say what is about to happen."""
        self._quiet = invocation.quiet
        self._plan = plan
        self._said = ""
        self._said_at_s = time.monotonic()
        self._say(f"demo: {_what(plan)}; queue {place(plan)}")

    def show(self, seen: Seen, *, stopping: bool, running_s: float) -> None:  # noqa: ARG002
        """Write a line if there is news."""
        counts = seen.of_this_run
        line = ", ".join(
            f"{number(counts.get(state, 0))} {TITLES[state]}"
            for state in STATES
            if counts.get(state, 0) or state in {"done", "processing", "pending"}
        )
        if self._plan.count is not None:
            line = f"{number(counts.get('done', 0))} of {number(self._plan.count)} stamped: {line}"
        if stopping:
            line = f"finishing: {line}"
        now_s = time.monotonic()
        if line != self._said and now_s - self._said_at_s >= _LINE_EVERY_S:
            self._said, self._said_at_s = line, now_s
            self._say(f"demo: {line}")

    def _say(self, line: str) -> None:
        if not self._quiet:
            click.echo(escaped(line), err=True)


class LiveView:
    """Draw a picture over and over in one place."""

    def __init__(self, invocation: Invocation, plan: Plan) -> None:
        """Prepare; drawing begins with the block."""
        from rich.live import Live

        self._plan = plan
        self._console = console_for(sys.stderr, invocation)
        is_wide = self._console.encoding.lower().startswith("utf")
        self._bar, self._dot, self._dash = ("━", "●", "–") if is_wide else ("=", "*", "-")
        # Drawn by us alone, from this thread: a fork must not meet a thread that holds a lock.
        self._live = Live(console=self._console, auto_refresh=False, vertical_overflow="crop")

    def __enter__(self) -> LiveView:  # noqa: PYI034 - typing.Self came with Python 3.11
        """Begin to draw."""
        self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the last picture standing."""
        self._live.__exit__(kind, error, trace)

    def show(self, seen: Seen, *, stopping: bool, running_s: float) -> None:
        """Draw."""
        self._live.update(self.picture(seen, stopping=stopping, running_s=running_s), refresh=True)

    def picture(self, seen: Seen, *, stopping: bool, running_s: float) -> Any:
        """Return the picture: title, counts, bar, what runs, what was stamped, what comes next."""
        from rich.console import Group
        from rich.padding import Padding
        from rich.text import Text

        parts: list[Any] = [self._title(running_s), Text(), self._counts(seen)]
        if self._plan.count is not None:
            parts += [Text(), self._progress(seen)]
        if seen.alive or not stopping:
            parts += [Text(), Text("Working", style=HEADING), *self._running(seen)]
        parts += [Text(), Text("Stamped", style=HEADING), *self._stamped(seen)]
        parts += [Text(), self._footer(seen, stopping=stopping)]
        return Padding(Group(*parts), (1, 2))

    @property
    def _width(self) -> int:
        return max(self._console.width - 4, 20)

    def _title(self, running_s: float) -> Text:
        title = _text(("sqlqueue demo", "bold"), ("  ", ""), (_what(self._plan), MUTED))
        clock = f"{int(running_s) // 60:02d}:{int(running_s) % 60:02d}"
        gap = self._width - title.cell_len - len(clock)
        title.append(f"{' ' * max(gap, 2)}{clock}", style=MUTED)
        return _fitted(title)

    def _counts(self, seen: Seen) -> Text:
        line = _text()
        for state, color in STATES.items():
            count = seen.counts.get(state, 0)
            if not count and state not in _ALWAYS_SHOWN:
                continue
            style = color if count else MUTED
            line.append_text(
                _text(
                    (f"{self._dot} ", style),
                    (number(count), f"bold {color}" if count else MUTED),
                    (f" {TITLES[state]}    ", "" if count else MUTED),
                )
            )
        return _fitted(line)

    def _progress(self, seen: Seen) -> Text:
        """Return one bar of the whole run, with a stretch for each state in its colour."""
        total = self._plan.count or 1
        done = seen.of_this_run.get("done", 0)
        label = f"  {number(done)} of {number(total)}"
        width = max(self._width - len(label), 10)
        line, drawn, counted = _text(), 0, 0
        for state in ("done", "permanently_failed", "cancelled", "failed", "processing", "pending"):
            counted += seen.of_this_run.get(state, 0)
            # By sums, so that roundings do not add up.
            end = min(round(width * counted / total), width)
            line.append(self._bar * (end - drawn), style=STATES[state])
            drawn = end
        line.append(self._bar * (width - drawn), style="#3c4048")
        line.append(label, style=HEADING)
        return _fitted(line)

    def _running(self, seen: Seen) -> list[Text]:
        if not seen.alive:
            return [_text(("  the worker is starting", MUTED))]
        lines = []
        for one in seen.running[: _most_rows(self._console.height)]:
            full = round(12 * min(one.for_s / max(self._plan.max_s, 0.001), 1.0))
            lines.append(
                _text(
                    (f"  {one.worker:<16}", MUTED),
                    (self._bar * full, STATES["processing"]),
                    (self._bar * (12 - full), "#3c4048"),
                    (f" {took(one.for_s):>6}  ", STATES["processing"]),
                    (one.file, ""),
                )
            )
        free = seen.slots - len(seen.running)
        if free > 0:
            text = f"  {free} of {seen.slots} slots are free" if lines else "  all slots are free"
            lines.append(_text((text, MUTED)))
        return [_fitted(line) for line in lines]

    def _stamped(self, seen: Seen) -> list[Text]:
        if not seen.stamped:
            first_s = self._plan.min_s
            return [_text((f"  the first one takes at least {took(first_s)}", MUTED))]
        lines = []
        for one in reversed(seen.stamped):
            lines.append(_text((f"  {one.file}", STATES["done"])))
            lines.append(_text((f"    {self._shortened(one.line)}", MUTED)))
        return [_fitted(line) for line in lines]

    def _shortened(self, line: str) -> str:
        """Return a stamp that fits: its job's id is what one can do without."""
        if len(line) + 4 <= self._width:
            return line
        return re.sub(r" job=(\S{8})\S{8,}(\S{4}) ", r" job=\1…\2 ", line)

    def _footer(self, seen: Seen, *, stopping: bool) -> Text:
        if stopping:
            if not seen.alive:
                return _text(("stopped", MUTED))
            left = len(seen.running)
            what = f"finishing {left} running job{'' if left == 1 else 's'}" if left else "stopping"
            return _fitted(
                _text((what, STATES["processing"]), ("; ctrl-c again stops at once", MUTED))
            )
        workers = f"{seen.alive} worker{'' if seen.alive == 1 else 's'}"
        pieces = [f"{workers}, {seen.slots} slots"]
        made = sum(seen.of_this_run.values())
        if seen.next_due_ms is not None and (self._plan.count is None or made < self._plan.count):
            pieces.append(f"next file in {max(seen.next_due_ms - seen.now_ms, 0) / 1000:.1f}s")
        pieces += [f"queue {place(self._plan)}", "ctrl-c finishes what runs and stops"]
        return _fitted(_text((" · ".join(pieces), MUTED)))


def _most_rows(height: int) -> int:
    """Leave room for the rest of the picture on a low terminal."""
    return max(height - 24, 4)


def _text(*pieces: tuple[str, str]) -> Text:
    """Return texts with styles as one; what strangers wrote is escaped."""
    from rich.text import Text

    line = Text()
    for text, style in pieces:
        line.append(escaped(text), style=style)
    return line


def _fitted(line: Text) -> Text:
    line.no_wrap = True
    line.overflow = "ellipsis"
    return line


def _what(plan: Plan) -> str:
    files = "a file" if plan.count is None else f"{number(plan.count)} files, one"
    return (
        f"{files} every {_plain(plan.every_s)} in {plan.directory}/, stamped after"
        f" {_plain(plan.min_s)} to {_plain(plan.max_s)}"
    )


def _plain(seconds: float) -> str:
    return f"{seconds:g}s"


def place(plan: Plan) -> str:
    """Return the queue's file as people write it."""
    return plan.broker_url.removeprefix("sqlqueue:///")
