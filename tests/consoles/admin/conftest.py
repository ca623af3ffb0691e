"""A queue file to fill, which the console of this process then shows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sqlqueue.config import Settings
from sqlqueue.consoles import source
from sqlqueue.consoles.source import Source
from tests.cli.filling import Filled


@pytest.fixture
def filled(tmp_path) -> Iterator[Filled]:
    """Give a queue.db to fill; it may stay open while a page shows it."""
    filled = Filled(tmp_path / "queue.db")
    yield filled
    filled.close()


@pytest.fixture
def shown(filled) -> Iterator[Filled]:
    """Have the pages of this process show the filled file, which may be filled further meanwhile."""
    before = list(source._chosen)
    backend = filled.backend()  # the pages share the store that fills, as one process has to
    source.choose(Source(Settings(broker_url=f"sqlqueue:///{filled.path}"), utc=True))
    yield filled
    source._chosen[:] = before
    backend.close()
