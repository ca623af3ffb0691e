"""The profile's arithmetic: parts that add up to the whole, and each in its layer."""

from __future__ import annotations

import re

import pytest

from tests.benchmarks import profile
from tests.benchmarks.profile import REST, Functions, layer_of

EXECUTE = "C:<method 'execute' of 'sqlite3.Connection' objects>"
STORE = "/x/sqlqueue_transport/store.py:Store.publish"
CHANNEL = "/x/sqlqueue_transport/channel.py:Channel.basic_publish"
ENCODE = "/usr/lib/python3/json/encoder.py:JSONEncoder.encode"
LEN = "C:<built-in method builtins.len>"


@pytest.fixture
def functions():
    """Return a store that takes 30 µs, SQLite 40, and an encoder called by two layers, 3 to 1."""
    found = Functions()
    found.raw_us = {STORE: 35.0, CHANNEL: 20.0, EXECUTE: 40.5, ENCODE: 8.0, LEN: 1.0}
    found.added_us = {STORE: 5.0, CHANNEL: 0.0, EXECUTE: 0.5, ENCODE: 0.0, LEN: 2.0}
    found.callers[EXECUTE].update({STORE: 1})
    found.callers[ENCODE].update({CHANNEL: 3, STORE: 1})
    found.callers[LEN].update({ENCODE: 1})
    return found


def test_the_parts_add_up_to_the_whole(functions):
    factor = functions.factor_for(69.0)  # 40 in C, and half of the 58 in Python
    assert factor == pytest.approx(0.5)
    layers = functions.by_layer(factor)
    assert sum(one.total() for one in layers.values()) == pytest.approx(69.0)
    assert layers["SQLite"].total() == pytest.approx(40.0)  # not scaled


def test_what_belongs_to_no_layer_counts_for_its_callers(functions):
    layers = functions.by_layer(1.0)
    assert layers[layer_of(CHANNEL)][ENCODE] == pytest.approx(6.0)
    assert layers[layer_of(STORE)][ENCODE] == pytest.approx(2.0)


def test_what_calls_itself_in_a_circle_ends(functions):
    functions.raw_us |= {"/usr/lib/a.py:a": 1.0, "/usr/lib/b.py:b": 1.0}
    functions.added_us |= {"/usr/lib/a.py:a": 0.0, "/usr/lib/b.py:b": 0.0}
    functions.callers["/usr/lib/a.py:a"]["/usr/lib/b.py:b"] = 1
    functions.callers["/usr/lib/b.py:b"]["/usr/lib/a.py:a"] = 1
    assert functions.by_layer(1.0)[REST].total() == pytest.approx(2.0)


@pytest.mark.slow
@pytest.mark.parametrize("what", sorted(profile.SCENES))
def test_each_scene_gives_a_table_of_layers_and_one_of_statements(what):
    told = profile.profiled(what, "process", rounds=4, functions=2, size=100)
    print(told.splitlines()[0])
    assert re.search(r"^SQLite +\d", told, re.MULTILINE)
    assert re.search(r"^COMMIT +\d", told, re.MULTILINE)
