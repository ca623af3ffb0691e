"""Fifty stops: `python -m tests.proofs` makes more of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.proofs import stops


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_fifty_stops_longer_than_a_lease_let_no_late_settlement_through(tmp_path: Path) -> None:
    print("\n".join(stops.prove(tmp_path, stops=50, seed=20261128)))
