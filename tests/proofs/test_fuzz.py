"""The fuzz proof, for as long as CI can spare."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.proofs import fuzz

SECONDS, SEED = 60, 20_261_128


@pytest.mark.slow
def test_whatever_is_fed_in_ends_in_an_error_that_helps_or_as_promised(tmp_path: Path) -> None:
    for line in fuzz.prove(tmp_path, seconds=SECONDS, seed=SEED):
        print(line)
