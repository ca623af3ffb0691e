"""Wrong arguments to a task are found by mypy, before anything runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

pytest.importorskip("mypy")

CALLS = Path(__file__).with_name("calls.py")


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """Return what mypy says of the file, by line number."""
    result = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--no-error-summary"),
            *("--config-file", "", "--follow-imports=silent", "--hide-error-context"),
            *("--cache-dir", str(tmp_path_factory.mktemp("mypy")), str(CALLS)),
        ],
        cwd=ROOT,
        env={"MYPYPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.stderr == ""
    found: dict[int, list[str]] = {}
    for line in result.stdout.splitlines():
        _, number, text = line.split(":", 2)
        # Other notes are advice, which changes with mypy's versions.
        if text.startswith((" error:", " note: Revealed type")):
            found.setdefault(int(number), []).append(text.strip())
    return found


def test_mypy_says_of_each_line_what_stands_below_it_and_nothing_else(said):
    expected: dict[int, list[str]] = {}
    code_line = 0
    for number, line in enumerate(CALLS.read_text().splitlines(), 1):
        if line.strip().startswith("#: "):
            expected.setdefault(code_line, []).append(line.strip().removeprefix("#: "))
        else:
            code_line = number
    assert len(expected) > 25
    assert said == expected


def test_users_of_the_package_get_its_types():
    assert (ROOT / "sqlqueue" / "py.typed").exists()
