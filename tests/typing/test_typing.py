"""Wrong arguments to a task are found by mypy, before anything runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

pytest.importorskip("mypy")

HERE = Path(__file__).parent
# With how many lines mypy has something to say about at least: a file that it passes over says nothing.
FILES = {"calls.py": 25, "schedules.py": 6}


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """Return what mypy says of each file, by line number."""
    result = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--no-error-summary"),
            *("--config-file", "", "--follow-imports=silent", "--hide-error-context"),
            *("--cache-dir", str(tmp_path_factory.mktemp("mypy"))),
            *(str(HERE / name) for name in FILES),
        ],
        cwd=ROOT,
        env={"MYPYPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.stderr == ""
    found: dict[str, dict[int, list[str]]] = {name: {} for name in FILES}
    for line in result.stdout.splitlines():
        path, number, text = line.split(":", 2)
        # Other notes are advice, which changes with mypy's versions.
        if text.startswith((" error:", " note: Revealed type")):
            found[Path(path).name].setdefault(int(number), []).append(text.strip())
    return found


@pytest.mark.parametrize("name", FILES)
def test_mypy_says_of_each_line_what_stands_below_it_and_nothing_else(said, name):
    expected: dict[int, list[str]] = {}
    code_line = 0
    for number, line in enumerate((HERE / name).read_text().splitlines(), 1):
        if line.strip().startswith("#: "):
            expected.setdefault(code_line, []).append(line.strip().removeprefix("#: "))
        else:
            code_line = number
    assert len(expected) > FILES[name]
    assert said[name] == expected


def test_users_of_the_package_get_its_types():
    assert (ROOT / "sqlqueue" / "py.typed").exists()
