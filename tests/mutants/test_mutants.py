"""Tests that cannot fail prove nothing: each promise is broken once, and its tests have to notice.

Each mutant is tried in a copy of the project of its own, by real runs of pytest, some at a time. The
same tests are run once in a copy in which nothing was changed: there they have to pass.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.mutants.mutants import MUTANTS, Mutant
from tests.support import ROOT

# What tests need: the packages, the tests themselves, and what they read.
_COPIED = (
    "sqlqueue",
    "sqlqueue_transport",
    "tasks",
    "tests",
    "conf",
    "pyproject.toml",
    "setup.cfg",
)
_LEFT_OUT = shutil.ignore_patterns("results", "artefacts", "*.png", ".hypothesis")
_TRIED = "test_a_mistake_on_purpose_is_noticed"
_RUN_S = 120  # a mutant that makes its test hang is caught by pytest's own timeout before


def _copy(directory: Path) -> Path:
    """Copy the project, compiled modules included: they stay valid, as times are copied, too."""
    directory.mkdir()
    for name in _COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, directory / name, ignore=_LEFT_OUT)
        else:
            shutil.copy2(source, directory / name)
    return directory


def _pytest(directory: Path, tests: tuple[str, ...]) -> tuple[int, str]:
    """Run tests in a copy; return the exit code and what was said."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--no-header",
        "--tb=short",
        "-p",
        "no:cacheprovider",
    ]
    run = subprocess.run(
        [*command, *tests],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(directory)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_RUN_S,
        check=False,
    )
    return run.returncode, run.stdout + run.stderr


def _try(mutant: Mutant, directory: Path) -> list[str]:
    """Return what is wrong with a mutant or with the tests that should catch it."""
    copy = _copy(directory)
    file = copy / mutant.file
    text = file.read_text()
    if (count := text.count(mutant.old)) != 1:
        return [f"does not apply: what it replaces stands {count} times in {mutant.file}"]
    file.write_text(text.replace(mutant.old, mutant.new))
    wrong = []
    code, said = _pytest(copy, mutant.tests)
    # Told from the summary: one that was not collected, or whose setup failed, is no FAILED there.
    failed = set(re.findall(r"^FAILED (\S+?)(?:\[.*)?(?: - .*)?$", said, re.MULTILINE))
    if code not in {0, 1}:
        wrong.append(f"its tests could not be run (exit code {code}):\n{said}")
    wrong += [f"survives {test}:\n{said}" for test in mutant.tests if test not in failed]
    shutil.rmtree(copy)
    return wrong


@pytest.fixture(scope="module")
def trials(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[list[str]]]]:
    """Try, as many at a time as there are processors, the mutants this run has chosen."""
    directory = tmp_path_factory.mktemp("mutants")
    chosen = {
        item.callspec.params["mutant"].name
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.originalname == _TRIED
    }
    with ThreadPoolExecutor(max(2, len(os.sched_getaffinity(0)))) as pool:
        yield {
            one.name: pool.submit(_try, one, directory / f"mutant-{number}")
            for number, one in enumerate(MUTANTS)
            if one.name in chosen
        }
        pool.shutdown(cancel_futures=True)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda one: one.name.replace(" ", "-"))
def test_a_mistake_on_purpose_is_noticed(
    trials: dict[str, Future[list[str]]], mutant: Mutant
) -> None:
    assert trials[mutant.name].result() == []


@pytest.mark.slow
def test_the_tests_that_notice_mistakes_pass_where_there_is_none(tmp_path: Path) -> None:
    tests = tuple(dict.fromkeys(test for one in MUTANTS for test in one.tests))
    code, said = _pytest(_copy(tmp_path / "unchanged"), tests)
    assert code == 0, said
    assert re.search(r"^\d+ passed in ", said, re.MULTILINE), said  # and none was skipped


def test_every_mutant_has_a_name_of_its_own() -> None:
    assert len({one.name for one in MUTANTS}) == len(MUTANTS)
