"""A minute of the soak: `make soak` runs longer, and its figures are kept in tests/benchmarks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.soak import Soak


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_nothing_is_lost_and_nothing_grows_in_a_minute_of_load_kills_and_restarts(
    tmp_path: Path,
) -> None:
    print(Soak(tmp_path, seconds=60).run())
