"""A minute of what `make soak` does for a quarter of an hour."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.proofs import day


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_nothing_is_lost_and_nothing_grows_in_a_minute_of_load_kills_and_restarts(
    tmp_path: Path,
) -> None:
    print("\n".join(day.prove(tmp_path, seconds=60, seed=20261128)))
