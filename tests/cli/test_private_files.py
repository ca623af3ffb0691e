"""Whatever the umask, all that a queue and its processes leave on the disk is its owner's alone."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path

import pytest

from tests.cli.conftest import program
from tests.support import free_port, wait_until

SETTINGS = """
broker_url = "sqlqueue:///queue.db"
log_dir = "logs"

[app]
directory = "jobs"
min_seconds = 0
max_seconds = 0.01
"""


def open_to_others(directory: Path, *, but: set[str]) -> list[str]:
    """Return what lies in a directory, or beneath, that others could read, write or enter."""
    return [
        f"{path.relative_to(directory)} {stat.S_IMODE(path.lstat().st_mode):04o}"
        for path in sorted(directory.rglob("*"))
        if path.relative_to(directory).parts[0] not in but and path.lstat().st_mode & 0o077
    ]


@pytest.mark.slow
def test_nothing_that_a_queue_leaves_behind_is_open_to_others(tmp_path):
    (tmp_path / "sqlqueue.toml").write_text(SETTINGS)
    before = os.umask(0)
    try:

        def run(*words: str) -> None:
            process = program(*words, cwd=tmp_path)
            out, error = process.communicate(timeout=60)
            assert process.returncode == 0, f"{words}: {out}{error}"

        run("beat", "-A", "tasks.app:app", "--max-ticks", "2")
        for pool in ("solo", "processes"):
            run("call", "-A", "tasks.app:app", "tasks.stamp", '["missing"]', "--force")
            run("worker", "-A", "tasks.app:app", "--burst", "--max-jobs", "1", "-P", pool)
        run("db", "backup", "copy.db")
        console = program(
            "console", "ops", "--no-browser", "--port", str(free_port()), cwd=tmp_path
        )
        token = tmp_path / "queue.db-run" / "console-ops.token"
        try:
            wait_until(token.exists, deadline_s=60, what="the console's token")
            reader = program("worker", "-A", "tasks.app:app", "-P", "threads", cwd=tmp_path)
            try:  # while it is open there are a log and a bell
                wait_until(lambda: [*token.parent.glob("wake.*")], deadline_s=60, what="a bell")
                assert (tmp_path / "queue.db-wal").exists()
                assert open_to_others(tmp_path, but={"sqlqueue.toml"}) == []
            finally:
                reader.send_signal(signal.SIGTERM)
                reader.communicate(timeout=60)
        finally:
            console.send_signal(signal.SIGTERM)
            console.communicate(timeout=60)
    finally:
        os.umask(before)
    assert open_to_others(tmp_path, but={"sqlqueue.toml"}) == []
    made = {path.name for path in tmp_path.rglob("*")}
    assert {"copy.db", "presence", "writer.lock", "console-ops.token", "logs", "jobs"} <= made
    assert [*(tmp_path / "jobs").iterdir()]
    assert [*(tmp_path / "logs").iterdir()]
