"""docs/cli.md is compared with what the command line really has."""

from __future__ import annotations

import re

import pytest

from sqlqueue.cli.failures import ExitCode
from sqlqueue.operations import Action
from tests.cli.tree import COMMANDS
from tests.support import ROOT

PAGE = (ROOT / "docs" / "cli.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """Return the rows of the first table below a heading."""
    below = PAGE.partition(f"## {heading}\n")[2]
    table = re.search(r"(?:^\|.*\n)+", below, re.MULTILINE)
    assert table is not None
    lines = table[0].replace(r"\|", "¦").splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_exit_code_is_in_the_table():
    assert {int(row[0]) for row in rows("Exit codes")} == {code.value for code in ExitCode}


@pytest.mark.parametrize("action", Action)
def test_states_that_actions_take_are_in_the_table(action):
    command = "cancel --terminate" if action is Action.TERMINATE else action.value
    [row] = [row for row in rows("Acting") if row[0] == f"`{command}`"]
    assert set(row[1].split(", ")) == {state.value for state in action.legal_states}
    usual = {state.value for state in action.usual_states}
    if row[2] == "all of these":
        assert usual == set(row[1].split(", "))
    elif row[2].startswith("all but "):
        assert usual == set(row[1].split(", ")) - {row[2].removeprefix("all but ")}
    else:
        assert usual == {row[2].partition(":")[0]}


@pytest.mark.parametrize("option", re.findall(r"`(--[a-z][a-z-]*)", PAGE))
def test_every_option_the_page_names_exists(option):
    assert option in {
        name for command in COMMANDS.values() for param in command.params for name in param.opts
    }
