"""How far a long action is: one line on a terminal's standard error, and nothing anywhere else."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Final, NoReturn

import click

from sqlqueue.text import escaped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

    from sqlqueue.cli.invocation import Invocation

__all__ = ["Gauge", "broken_off_by_sigterm"]

_SILENT_S: Final = 0.5  # what is over sooner needs no word
_EVERY_S: Final = 0.1
_ERASE_LINE: Final = "\r\x1b[K"


class Gauge:
    """Be told how far something is, often; show it now and then. Use it in a `with`."""

    def __init__(self, invocation: Invocation, label: str) -> None:
        """`label` says what is being done, as in "copying"."""
        self._label = label
        self._is_shown = sys.stderr.isatty() and not invocation.quiet
        self._began_s = time.monotonic()
        self._next_s = self._began_s + _SILENT_S
        self._is_dirty = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_dirty:
            click.echo(_ERASE_LINE, err=True, nl=False, color=True)

    def is_at(self, text: str) -> None:
        """Say how far it is, in words."""
        now_s = time.monotonic()
        if self._is_shown and now_s >= self._next_s:
            self._next_s = now_s + _EVERY_S
            self._is_dirty = True
            line = f"{self._label} … {text or f'{now_s - self._began_s:.0f}s'}"
            click.echo(f"{_ERASE_LINE}{escaped(line)}", err=True, nl=False, color=True)

    def bytes(self, done: int, total: int) -> None:
        """Say how many bytes of how many are done."""
        share = 100 * done // total if total else 0
        self.is_at(f"{share} %, {done / 1e6:.0f} of {total / 1e6:.0f} MB")

    def count(self, done: int, total: int) -> None:
        """Say how many things of how many are done; there may be more of them by now."""
        self.is_at(f"{done:,} of {max(done, total):,}")


@contextlib.contextmanager
def broken_off_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as ctrl-c does, so that what is half done is put away."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
