"""What we ship: the wheel, alone in an empty environment, runs the demo with the one copy of its job."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = (
    "LICENSE",
    "README.md",
    "conf",
    "pyproject.toml",
    "setup.cfg",
    "sqlqueue",
    "sqlqueue_discovery.py",
    "sqlqueue_transport",
    "tasks",
    "tests",
)


class Installed(NamedTuple):
    """An environment of its own that holds our wheel and what it depends on."""

    python: Path
    command: Path


def foreign_environment() -> dict[str, str]:
    """Return the environment without anything that could lead a program back to the checkout."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SQLQUEUE_", "PYTHON", "VIRTUAL_ENV", "COV"))
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Built from a copy: an old build/ in the checkout would be packed in, and a new one left there.
    sources = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            caches = shutil.ignore_patterns("__pycache__", "*.db*", "results")
            shutil.copytree(ROOT / name, sources / name, ignore=caches)
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, sources / name)
    target = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--wheel-dir",
            target,
            sources,
        ],
        check=True,
        env=foreign_environment(),
    )
    (built,) = target.glob("sqlqueue-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    venv = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run(
        [sys.executable, ROOT / "tools" / "bootstrap.py", venv, wheel],
        check=True,
        env=foreign_environment(),
    )
    return Installed(venv / "bin" / "python", venv / "bin" / "sqlqueue")


@pytest.mark.slow
def test_wheel_brings_no_top_level_name_but_our_packages_and_the_module_kombu_loads(
    wheel: Path,
) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in tops if not name.endswith(".dist-info")} == {
        "sqlqueue",
        "sqlqueue_discovery.py",
        "sqlqueue_transport",
    }


@pytest.mark.slow
def test_wheel_carries_every_module_of_the_packages(wheel: Path) -> None:
    # setup.cfg names the packages one by one: this finds the one that somebody forgot to add.
    shipped = set(zipfile.ZipFile(wheel).namelist())
    for package in ("sqlqueue", "sqlqueue_transport"):
        for module in (ROOT / package).rglob("*.py"):
            assert module.relative_to(ROOT).as_posix() in shipped


@pytest.mark.slow
def test_wheel_carries_the_demo_job_letter_for_letter_as_the_repository_keeps_it(
    wheel: Path,
) -> None:
    archive = zipfile.ZipFile(wheel)
    prefix = "sqlqueue/demo_tasks/"
    shipped = {
        name.removeprefix(prefix): archive.read(name)
        for name in archive.namelist()
        if name.startswith(prefix)
    }
    kept = {file.name: file.read_bytes() for file in (ROOT / "tasks").glob("*.py")}
    assert kept
    assert shipped == kept


def test_repository_holds_no_second_copy_of_the_demo_job() -> None:
    assert not (ROOT / "sqlqueue" / "demo_tasks").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "sqlqueue/py.typed",
        *(f"sqlqueue/templates/{file.name}" for file in (ROOT / "sqlqueue/templates").iterdir()),
        "sqlqueue_transport/py.typed",
        "sqlqueue_transport/schema.sql",
        "sqlqueue_transport/schema-2.sql",
        "sqlqueue_transport/schema-3.sql",
        "sqlqueue_transport/schema-4.sql",
        "sqlqueue_transport/schema-5.sql",
    ],
)
def test_wheel_carries_what_is_not_python(wheel: Path, name: str) -> None:
    assert zipfile.ZipFile(wheel).read(name) == (ROOT / name).read_bytes()


@pytest.mark.slow
def test_installed_wheel_imports_the_demo_job_and_nothing_from_here(
    installed: Installed, tmp_path: Path
) -> None:
    question = (
        "import importlib.util, sqlqueue, sqlqueue.demo_tasks, sqlqueue_transport\n"
        "for module in (sqlqueue, sqlqueue.demo_tasks, sqlqueue_transport):\n"
        "    print(module.__file__)\n"
        "assert importlib.util.find_spec('tasks') is None\n"
        "assert importlib.util.find_spec('tests') is None\n"
    )
    answer = subprocess.run(
        [installed.python, "-c", question],
        check=True,
        cwd=tmp_path,
        env=foreign_environment(),
        capture_output=True,
        text=True,
    ).stdout
    assert len(answer.splitlines()) == 3
    for place in answer.splitlines():
        assert Path(place).is_relative_to(installed.python.parents[1])


@pytest.mark.slow
def test_installed_wheel_runs_the_demo_in_an_empty_directory(
    installed: Installed, tmp_path: Path
) -> None:
    options = "--count 2 --every 0.2s --min-seconds 0.1 --max-seconds 0.3 --json".split()
    demo = subprocess.run(
        [installed.command, "demo", *options],
        check=False,
        cwd=tmp_path,
        env=foreign_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert demo.returncode == 0, demo.stderr
    summary = json.loads(demo.stdout.splitlines()[-1])
    assert (summary["schema"], summary["done"]) == (1, 2)
    assert (summary["failed"], summary["permanently_failed"]) == (0, 0)
    stamped = sorted((tmp_path / "jobs").glob("job-*.txt"))
    assert len(stamped) == 2
    for file in stamped:
        assert file.read_text().count(" job=") == 1


SHOP = """
from celery import Celery

app = Celery("shop", broker="sqlqueue:///queue.db", backend="sqlqueue:///queue.db")


@app.task
def add(x, y):
    return x + y
"""


@pytest.mark.slow
def test_wheel_with_its_extra_runs_a_celery_application_that_imports_nothing_of_ours(
    wheel: Path, tmp_path: Path
) -> None:
    venv = tmp_path / "venv"
    subprocess.run(
        [sys.executable, ROOT / "tools" / "bootstrap.py", venv, f"{wheel}[celery]"],
        check=True,
        env=foreign_environment(),
    )
    (tmp_path / "shop.py").write_text(SHOP)
    here: dict[str, Any] = {"cwd": tmp_path, "env": foreign_environment()}
    options = "worker --pool solo --loglevel INFO".split()
    with (tmp_path / "worker.log").open("w") as log:
        worker = subprocess.Popen(
            [venv / "bin" / "celery", "-A", "shop", *options], stdout=log, stderr=log, **here
        )
    try:
        answer = subprocess.run(
            [venv / "bin" / "python", "-c", "import shop; print(shop.add.delay(2, 3).get(60))"],
            check=True,
            capture_output=True,
            text=True,
            **here,
        ).stdout
    finally:
        worker.terminate()
        worker.wait(30)
    assert answer.strip() == "5", (tmp_path / "worker.log").read_text()


def test_checkout_installed_in_place_offers_the_demo_job_under_its_shipped_name(
    tmp_path: Path,
) -> None:
    question = "import sqlqueue.demo_tasks; print(sqlqueue.demo_tasks.__file__)"
    answer = subprocess.run(
        [sys.executable, "-c", question],
        check=True,
        cwd=tmp_path,
        env=foreign_environment(),
        capture_output=True,
        text=True,
    ).stdout
    assert Path(answer.strip()) == ROOT / "tasks" / "__init__.py"
