"""A little of what `make soak` does with 50,000 jobs, and with a million."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.proofs import load

pytestmark = [pytest.mark.slow]


@pytest.mark.debian("chromium")
def test_eight_publishers_and_eight_workers_lose_and_repeat_nothing_under_open_consoles(
    tmp_path: Path,
) -> None:
    print("\n".join(load.prove(tmp_path, jobs=4_000, seed=20261128)))


def test_a_backlog_is_worked_off_once_while_the_log_stays_short(tmp_path: Path) -> None:
    print("\n".join(load.prove_backlog(tmp_path, jobs=40_000, seed=20261128)))
