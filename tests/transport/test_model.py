"""The store against a dictionary, in few and short examples; at length in tests/proofs."""

from __future__ import annotations

import pytest
from hypothesis.stateful import run_state_machine_as_test

from tests.transport.machine import StoreMachine, at_length


@pytest.mark.timeout(600)  # it takes seconds, but a failure is first made small
def test_the_store_is_a_dictionary_that_survives() -> None:
    run_state_machine_as_test(StoreMachine, settings=at_length(60, 40))
