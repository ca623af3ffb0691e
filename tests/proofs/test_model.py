"""The figure of CI for `model`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.proofs import model


@pytest.mark.slow
def test_the_store_is_a_dictionary_that_survives_at_length(tmp_path: Path) -> None:
    print(*model.prove(tmp_path, examples=200, seed=1), sep="\n")
