"""The page of promises names tests that exist, and figures that were measured."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

from tests.proofs import __main__ as soak

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "promises.md"
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE.read_text())))


@functools.cache
def names_in(path: str) -> set[str]:
    """Return the functions and classes that a module defines."""
    tree = ast.parse((ROOT / path).read_text())
    return {
        node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    }


def test_the_page_names_tests():
    assert len(NAMED) > 50


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_every_test_that_is_named_is_there(path, name):
    assert not name or name in names_in(path)
    assert (ROOT / path).exists()


@pytest.mark.parametrize("name", soak.PROOFS)
def test_every_proof_is_told_of_with_the_figure_that_it_reached(name):
    """The first line of a report stands in the table, beside the command that makes another."""
    command, _, _, figure, *_ = (soak.RESULTS / f"proof-{name}.txt").read_text().splitlines()
    (row,) = [
        line for line in PAGE.read_text().splitlines() if line.startswith(f"| {name} |")
    ] or pytest.fail(f"no row for {name}")
    assert figure in row
    proof = soak.PROOFS[name]
    assert f'`make soak ARGS="{name}"`' in row
    assert command.startswith(f'make soak ARGS="{name} --count {proof.full} --seed ')
