"""An application on a file in tmp_path, away from the settings of this repository."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from sqlqueue import SqlQueue, log
from sqlqueue.config import set_command_line


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be in an empty directory, without any setting of this machine."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("SQLQUEUE_")]:
        monkeypatch.delenv(name)
    set_command_line({})
    return tmp_path


@pytest.fixture
def make_app(here: Path) -> Iterator[Callable[..., SqlQueue]]:
    """Make applications on one queue file; they are closed in the end."""
    made: list[SqlQueue] = []

    def make(**settings: Any) -> SqlQueue:
        app = SqlQueue("test", **{"broker_url": "sqlqueue:///queue.db", **settings})
        made.append(app)
        return app

    yield make
    for app in made:
        app.close()


@pytest.fixture
def app(make_app: Callable[..., SqlQueue]) -> SqlQueue:
    """Be an application with default settings."""
    return make_app()


@pytest.fixture
def events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., list[dict[str, Any]]]]:
    """Write the log to a file; called, return what was logged, or what of some names."""
    file = tmp_path / "events.jsonl"
    monkeypatch.setattr(log, "_active", None)
    structlog.reset_defaults()
    log.configure("debug", format="json", file=file)

    def read(*names: str) -> list[dict[str, Any]]:
        lines = file.read_text().splitlines() if file.exists() else []
        found = [json.loads(line) for line in lines]
        return [one for one in found if not names or one["event"] in names]

    yield read
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
