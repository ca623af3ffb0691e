"""What tests of the transport share: a store on a clock that jumps; no process outlives its test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import kombu
import pytest
from kombu.asynchronous import Hub

from sqlqueue_transport.store import Store
from tests.support import FakeClock, end_processes


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    end_processes()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(tmp_path: Path, clock: FakeClock) -> Iterator[Store]:
    """Give a store on a file of its own; many tests have one on the machine's own clocks instead."""
    opened = Store(tmp_path / "queue.db", clock=clock)
    yield opened
    opened.close()


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub()
    yield made
    made.close()


@pytest.fixture
def other(path: Path, connection: kombu.Connection) -> Iterator[Store]:
    """Be another process than that of a test's `connection` to `path`, as far as the file is concerned."""
    connection.connect()
    opened = Store(path)
    yield opened
    opened.close()
