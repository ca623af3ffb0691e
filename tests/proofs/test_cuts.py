"""Power cuts, as many as CI has time for; and queues broken on purpose, whose losses must be seen."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.proofs import cuts
from tests.proofs.cut_scenarios import record
from tests.support import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.debian("cc")]
CUTS = 3_000


def test_no_acknowledged_publish_is_lost_in_thousands_of_power_cuts(tmp_path: Path) -> None:
    lines = cuts.prove(tmp_path, cuts=CUTS, seed=20_260_101)
    print(*lines, sep="\n")
    assert list(tmp_path.iterdir()) == [], "a recording is kept only when its cuts failed"


def first_loss(recording, *, ignores: str = "", total: int = 600) -> str:
    """Cut until something that was promised is gone, and say what; fail if nothing ever is."""
    with pytest.raises(AssertionError) as caught:
        for _ in cuts.cut(recording, range(total), total=total, seed=1, ignores=ignores):
            pass
    return str(caught.value)


LOST = "acknowledged publishes are lost"


@pytest.mark.parametrize(
    ("way", "scenario", "loss"),
    [
        ("no flush of our own", "traffic", LOST),
        ("flush before the commit", "traffic", LOST),
        ("durability process", "traffic", LOST),
        ("synchronous off", "traffic", "does not open|lost|malformed|database"),
        ("a flush in flight is joined", "forks", LOST),
        ("the descriptor of an older log", "quiet files", LOST),
        ("no flush of our own", "an operator", "not one of"),
        (
            "settlements not flushed",
            "durable settlements",
            "was durably settled as|lost an attempt",
        ),
        ("no sync of directories", "schema 2", "is of version 0"),
        ("no sync of directories", "backups", "was finished and is not there"),
        ("backup not flushed", "backups", "the backup .* is"),
        ("tick and jobs apart", "two beats", "of its jobs"),
        ("a batch in two transactions", "traffic", "only a part is there"),
    ],
)
def test_the_cuts_see_what_a_broken_queue_loses(tmp_path, way, scenario, loss):
    found = first_loss(record(scenario, tmp_path / "recording", way=way))
    assert re.search(loss, found), found


@pytest.mark.parametrize(
    ("ignores", "scenario"),
    [
        ("*", "durable settlements"),
        ("/", "creation"),
        ("/", "quiet files"),
        ("queue.db-wal", "traffic"),
        ("queue.db", "traffic"),
        ("queue.db", "quiet files"),
    ],
)
def test_the_cuts_see_what_a_disk_that_ignores_syncs_loses(tmp_path, ignores, scenario):
    recording = record(scenario, tmp_path / "recording")
    assert first_loss(recording, ignores=ignores, total=100)


def test_a_cut_that_failed_is_made_again_by_the_words_it_says(tmp_path):
    recording = record("creation", tmp_path / "recording", way="durability process")
    loss, _, words = first_loss(recording).partition("again: ")
    command = [sys.executable, *words.split()[1:]]
    again = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert again.returncode
    assert loss.splitlines()[0] in again.stderr
