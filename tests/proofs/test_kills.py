"""A thousand kills: `python -m tests.proofs` makes more of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.proofs import kills


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_thousand_kills_of_everything_lose_nothing_and_count_right(tmp_path: Path) -> None:
    print("\n".join(kills.prove(tmp_path, kills=1000, seed=20261128)))
