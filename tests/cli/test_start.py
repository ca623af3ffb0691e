"""The command line starts fast: it imports what a command needs, and nothing for the others."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support import ROOT

# Each takes longer to import than the whole of --help may take.
HEAVY = {"celery", "kombu", "rich", "sqlite3", "streamlit", "structlog"}
AS_A_PROGRAM = """
import atexit, json, runpy, sys
atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))
runpy.run_module("sqlqueue", run_name="__main__", alter_sys=True)
"""


def heavy_imports(*arguments: str, cwd) -> set[str]:
    """Return the heavy modules that a command line has imported when it ends."""
    done = subprocess.run(
        [sys.executable, "-c", AS_A_PROGRAM, *arguments],
        cwd=cwd,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    return HEAVY & set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    "line",
    [
        *("--help", "--version", "worker --help", "inspect --help", "inspect stats --help"),
        *("completion bash", "init"),
    ],
)
def test_what_needs_no_queue_imports_nothing_heavy(line, tmp_path):
    wanted = {"rich"} if line == "init" else set()
    assert heavy_imports(*line.split(), cwd=tmp_path) <= wanted


@pytest.mark.parametrize("line", ["inspect stats", "inspect jobs", "inspect queues"])
def test_looking_imports_neither_celery_nor_streamlit_nor_a_logger(filled, tmp_path, line):
    filled.publish()
    filled.close()
    as_table = heavy_imports(*line.split(), cwd=tmp_path)
    assert as_table == {"kombu", "rich", "sqlite3"}
    assert heavy_imports(*line.split(), "--json", cwd=tmp_path) == as_table - {"rich"}
