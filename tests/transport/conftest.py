"""What tests of the transport share: a store on a clock that jumps; no process outlives its test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

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
