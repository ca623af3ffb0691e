from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.benchmarks import framework, latency
from tests.benchmarks.framework import Backlog
from tests.benchmarks.frameworks.apps import jobs
from tests.benchmarks.frameworks.peer import Peer
from tests.benchmarks.frameworks.site import Site
from tests.benchmarks.levels import Level, Subject, Unavailable
from tests.support import ROOT, is_running, run_python

CLIENT = """
import json, os, pathlib, sys
directory = pathlib.Path(os.environ["BENCH_DIRECTORY"])
(directory / "queue").write_text(sys.argv[3])
(directory / "client.json").write_text(json.dumps({"rate": 5, "cpu_us": 3}))
"""
WORKER = """
import os, pathlib, sys, time
from tests.benchmarks.frameworks.apps import jobs
published = int((pathlib.Path(os.environ["BENCH_DIRECTORY"]) / "queue").read_text())
for _ in range(published + int(sys.argv[1])):
    jobs.nothing()
print("all done", flush=True)
time.sleep(float(sys.argv[2]))
"""


@dataclass(frozen=True)
class Toy(Peer):
    """Be a framework whose queue is a number in a file."""

    more: int = 0
    lives_s: float = 60

    app = "toy"

    @property
    def client(self) -> list[str]:
        return [sys.executable, "-c", CLIENT]

    def work(self, count: int) -> list[list[str]]:
        return [[sys.executable, "-c", WORKER, str(self.more), str(self.lives_s)]]


def toy(directory: Path, **options: float):
    return Site.open(Toy(Subject("toy"), **options), directory)


def test_jobs_of_all_processes_are_counted(tmp_path):
    tally = jobs.Tally.fresh(tmp_path)
    code = "from tests.benchmarks.frameworks.apps import jobs\nfor _ in range(500): jobs.nothing()"
    environment = {"BENCH_DIRECTORY": str(tmp_path)}
    processes = [run_python(code, env=environment) for _ in range(3)]
    assert [process.wait(timeout=30) for process in processes] == [0, 0, 0]
    assert tally.count() == 1500
    assert tally.first_ns() < tally.last_ns()


def test_jobs_of_threads_are_counted(tmp_path):
    tally = jobs.Tally.fresh(tmp_path)
    code = """
        import threading
        from tests.benchmarks.frameworks.apps import jobs
        def run():
            for _ in range(20_000):
                jobs.nothing()
        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
    """
    process = run_python(code, env={"BENCH_DIRECTORY": str(tmp_path)})
    assert process.wait(timeout=60) == 0
    assert tally.count() == 80_000


def test_a_backlog_gives_a_rate_and_ends_its_workers(tmp_path):
    with toy(tmp_path) as site:
        backlog = Backlog(site, "nothing", 1000, timed=1000)
        started = []
        wait_for = site.wait_for
        site.wait_for = lambda count: (started.extend(site.workers), wait_for(count))
        rate, used_us = backlog.run(1)
        assert rate > 0
        assert used_us >= 0
        assert backlog.enqueued() == (5, 3)
        assert not any(is_running(worker.pid) for worker in started)


def test_a_job_that_ran_twice_is_an_error(tmp_path):
    with toy(tmp_path, more=1) as site:
        backlog = Backlog(site, "nothing", 10, timed=10)
        with site.working(1):
            site.wait_for(11)
        with pytest.raises(RuntimeError, match=r"toy: .* jobs have run instead of 10"):
            backlog.run(1)


def test_a_worker_that_ends_too_early_is_told_with_what_it_said(tmp_path):
    with (
        toy(tmp_path, more=-5, lives_s=0) as site,
        pytest.raises(RuntimeError, match=r"(?s)ended with 5 of 10 jobs run.*all done"),
    ):
        Backlog(site, "nothing", 10, timed=10).run(1)


@pytest.mark.parametrize("level", [framework.LEVEL, latency.LEVEL], ids=lambda level: level.name)
def test_ratios_name_subjects_and_measures_that_there_are(level: Level):
    subjects = {subject.name for subject in level.subjects}
    measures = {measure.name for measure in level.measures}
    assert len(subjects) == len(level.subjects)
    for ratio in level.ratios:
        assert ratio.measure in measures
        assert {ratio.ours, ratio.theirs} <= subjects


def test_what_a_worker_imports_for_its_jobs_imports_no_framework():
    code = "import sys, tests.benchmarks.frameworks.apps.jobs; print(*sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    heavy = {"celery", "kombu", "sqlqueue", "huey", "redis", "subprocess", "tests.support"}
    assert not heavy & set(ran.stdout.split())


def test_a_framework_that_is_not_installed_is_unavailable(tmp_path):
    class Missing(Toy):
        needs = "no_such_framework"

    with (
        pytest.raises(Unavailable, match="no_such_framework is not installed"),
        Site.open(Missing(Subject("missing")), tmp_path),
    ):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("level", [framework.LEVEL, latency.LEVEL], ids=lambda level: level.name)
def test_our_own_framework_is_measured(tmp_path, level: Level):
    (ours,) = (subject for subject in level.subjects if subject.name == "sqlqueue")
    found = level.measure(ours, tmp_path, 0.02)
    missing = {measure.name for measure in level.measures} - found.keys()
    assert all("at once" in name for name in missing)
    assert all(value > 0 for name, value in found.items() if name != "idle CPU")
