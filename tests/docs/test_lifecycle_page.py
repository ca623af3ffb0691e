"""docs/lifecycle.md and its drawing are what the table of steps says, by tools/lifecycle_page.py."""

from __future__ import annotations

import runpy
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from sqlqueue_transport.lifecycle import MEANINGS, OPERATORS, TRANSITIONS, Event, State
from tests.support import ROOT

DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def tool() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "tools" / "lifecycle_page.py"))


def test_page_and_drawing_are_fresh(tool: dict[str, Any]) -> None:
    for name, wanted in (("lifecycle.md", tool["page"]()), ("lifecycle.svg", tool["drawing"]())):
        text = (DOCS / name).read_text()
        assert text == wanted, f"docs/{name} is stale: run 'make docs' and commit what it writes"


def test_the_drawing_has_every_state_and_an_arrow_for_every_step_of_no_operator(
    tool: dict[str, Any],
) -> None:
    drawing = ET.fromstring(tool["drawing"]())
    words = [one.text for one in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert [state.value for state in State if state.value not in words] == []
    shown = ", ".join(str(one) for one in words).split(", ")
    for event in {event for _, event in TRANSITIONS} - OPERATORS:
        pairs = {(before, after) for (before, its), after in TRANSITIONS.items() if its is event}
        assert shown.count(event.value.replace("_", " ")) == len(pairs), event


def test_every_event_is_in_the_table_and_says_what_happens() -> None:
    assert {event for _, event in TRANSITIONS} == set(Event) == set(MEANINGS)
