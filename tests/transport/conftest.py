"""What every test of the transport gets: no process of its own outlives it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import end_processes


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    end_processes()
