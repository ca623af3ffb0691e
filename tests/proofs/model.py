"""The store against its model, at length: `tests.transport.machine` says what is done.

Each portion has a seed of its own, so a difference is found again by running that one portion.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import hypothesis
from hypothesis.stateful import run_state_machine_as_test

from sqlqueue_transport.lifecycle import TRANSITIONS
from tests.transport.machine import StoreMachine, at_length

STEPS = 50  # of each example
ENOUGH = 1000  # examples, from which on each step of the table must have been taken
_PORTION = 100
_TOLD = (
    "publishes",
    "refused publishes",
    "deliveries",
    "settlements",
    "settlements refused",
    "jobs swept",
    "ends noted",
    "ends settled by others",
    "actions",
    "crashes",
    "reboots",
    "clock jumps",
)


def prove(
    directory: Path, *, examples: int, seed: int, say: Callable[[str], object] = print
) -> list[str]:
    """Run so many examples of fifty steps; raise AssertionError where store and model differ.

    From 1,000 examples on it also fails when a step of the table was never taken: what is not tried
    is not proven. A difference is first made small, which takes up to some minutes, and told with the steps
    that lead to it. Nothing runs on afterwards: consumers are stores in this process.
    """

    class Machine(StoreMachine):
        home = directory
        done: ClassVar[Counter[object]] = Counter()

    began_s = time.monotonic()
    for start in range(0, examples, _PORTION):
        portion_seed = seed + start // _PORTION
        count = min(_PORTION, examples - start)
        settings = hypothesis.settings(at_length(count, STEPS), database=None, print_blob=False)
        try:
            run_state_machine_as_test(hypothesis.seed(portion_seed)(Machine), settings=settings)
        except Exception as error:
            message = (
                "the store is not what its model is; again with "
                f"prove(…, examples={count}, seed={portion_seed})"
            )
            raise AssertionError(message) from error
        say(f"{start + count:,} of {examples:,} examples, {Machine.done['steps']:,} steps")
    done = Machine.done
    untried = [
        f"{state.value} {event.value}" for state, event in TRANSITIONS if not done[state, event]
    ]
    assert not untried or examples < ENOUGH, f"seed {seed} never came to: {', '.join(untried)}"
    took_s = time.monotonic() - began_s
    rarest = min(done[step] for step in TRANSITIONS)
    return [
        f"{examples:,} examples, {done['steps']:,} steps in {took_s:.0f} s: never a difference",
        ", ".join(f"{done[what]:,} {what}" for what in _TOLD),
        f"each of the {len(TRANSITIONS)} steps of the table was taken, the rarest {rarest:,} times",
    ]
