"""Wrong arguments to a task are found by mypy, before anything runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

pytest.importorskip("mypy")

EXAMPLES = sorted(path for path in Path(__file__).parent.glob("*.py") if "test_" not in path.name)


@pytest.fixture(scope="module", params=EXAMPLES, ids=lambda path: path.stem)
def example(request):
    """Return the file and what mypy says of it, by line number."""
    return request.param, said_of(request.param, request.getfixturevalue("cache"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("mypy")


def said_of(path, cache):
    result = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--no-error-summary"),
            *("--config-file", "", "--follow-imports=silent", "--hide-error-context"),
            *("--cache-dir", str(cache), str(path)),
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


def test_mypy_says_of_each_line_what_stands_below_it_and_nothing_else(example):
    path, said = example
    expected: dict[int, list[str]] = {}
    code_line = 0
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.strip().startswith("#: "):
            expected.setdefault(code_line, []).append(line.strip().removeprefix("#: "))
        else:
            code_line = number
    assert len(expected) > 5
    assert said == expected


def test_users_of_the_package_get_its_types():
    assert (ROOT / "sqlqueue" / "py.typed").exists()
