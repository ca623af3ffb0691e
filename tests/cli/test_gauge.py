"""How far a long action is: on a terminal's standard error, and put away at the end."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from sqlqueue.cli import gauge
from sqlqueue.cli.gauge import Gauge, broken_off_by_sigterm
from sqlqueue.cli.invocation import Invocation


@pytest.fixture
def at_once(monkeypatch):
    """Show everything, as if there were a terminal."""
    monkeypatch.setattr(gauge, "_SILENT_S", 0.0)
    monkeypatch.setattr(gauge, "_EVERY_S", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)


def test_it_shows_the_share_and_erases_its_line(at_once, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Gauge(Invocation(), "copying") as shown:
        shown.bytes(5_000_000, 10_000_000)
        shown.count(1500, 1000)
    out, err = capsys.readouterr()
    assert out == ""
    assert "copying … 50 %, 5 of 10 MB" in err
    assert "copying … 1,500 of 1,500" in err
    assert err.endswith("\r\x1b[K")


def test_without_a_terminal_or_when_quiet_it_says_nothing(at_once, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Gauge(Invocation(quiet=True), "copying") as shown:
        shown.bytes(1, 2)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    with Gauge(Invocation(), "copying") as shown:
        shown.bytes(1, 2)
    assert capsys.readouterr().err == ""


def test_what_is_over_soon_is_not_shown(capsys, monkeypatch):
    monkeypatch.setattr(gauge, "_SILENT_S", 60.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Gauge(Invocation(), "copying") as shown:
        shown.bytes(1, 2)
    assert capsys.readouterr().err == ""


def test_sigterm_interrupts_in_the_block_and_not_behind_it():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), broken_off_by_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
