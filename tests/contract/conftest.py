"""Brokers that the contract tests run on, and a clock that can be set while they do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import freezegun
import kombu
import pytest
from kombu.transport import memory

import sqlqueue_transport  # registers the scheme

assert sqlqueue_transport


@dataclass
class Broker:
    """Be a broker to connect to as often as a test likes; `path` is None where there is no file."""

    url: str
    path: Path | None = None
    opened: list[kombu.Connection] = field(default_factory=list)

    def connect(self, **options: Any) -> kombu.Connection:
        """Return a new connection; `options` are transport options."""
        connection = kombu.Connection(self.url, transport_options=options)
        self.opened.append(connection)
        return connection

    def close(self) -> None:
        for connection in self.opened:
            connection.release()


@pytest.fixture
def sqlqueue(tmp_path: Path) -> Iterator[Broker]:
    broker = Broker(f"sqlqueue:///{tmp_path}/queue.db", tmp_path / "queue.db")
    yield broker
    broker.close()


@pytest.fixture
def in_memory() -> Iterator[Broker]:
    """Kombu's own transport, whose queues outlive its connections."""
    broker = Broker("memory://")
    yield broker
    broker.close()
    memory.Transport.global_state.clear()
    memory.Channel.queues.clear()


@pytest.fixture(params=["sqlqueue", "in_memory"])
def broker(request: pytest.FixtureRequest) -> Broker:
    """Be either: what is tested on this one is what Kombu's own transports do as well."""
    chosen: Broker = request.getfixturevalue(request.param)
    return chosen


@pytest.fixture
def frozen() -> Iterator[Any]:
    """Set the clock with `frozen.tick(seconds)`, while `drain_events` still times out.

    A clock that stands still would stop `drain_events(timeout=…)` for ever, in every transport of
    Kombu: freezegun freezes time.monotonic, too. So it starts at a fixed moment and then ticks.
    """
    with freezegun.freeze_time(
        "2026-11-22T05:00:00Z", tick=True, ignore=["_pytest.timing"]
    ) as clock:
        yield clock
