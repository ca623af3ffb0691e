"""Faults of the disk at any call, with the figure of CI."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.proofs.faults import prove


@pytest.mark.slow
@pytest.mark.debian("cc")
def test_whatever_call_to_the_disk_fails_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    print(*prove(tmp_path, faults=300, seed=2026), sep="\n")
