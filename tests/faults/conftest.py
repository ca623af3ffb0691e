"""An arena whose processes obey an injector."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.crash.conftest import Arena, arena
from tests.faults.injecting import Injector

__all__ = ["arena"]


@pytest.fixture
def injector(arena: Arena, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Injector]:
    """Give the switch of the arena's faults: processes get it by `env=injector.environment`."""
    made = Injector(arena.directory, tmp_path_factory.mktemp("control") / "control")
    yield made
    made.mend()
