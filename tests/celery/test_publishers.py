"""Who publishes: many threads, forked children, and one whose queue file is away for a moment."""

from __future__ import annotations

import threading

import pytest
from kombu.exceptions import OperationalError

from tests.celery.conftest import Arena, ours_only
from tests.support import wait_until

pytestmark = pytest.mark.slow

THREADS = """
from concurrent.futures import ThreadPoolExecutor
from tests.celery.app import stamp_late

def request(number):
    return [stamp_late.delay(f"{number}-{n}").id for n in range(100)]

with ThreadPoolExecutor(8) as pool:
    for ids in pool.map(request, range(8)):
        print(*ids, sep="\\n")
"""

FORKS = """
import multiprocessing, os, sys
from tests.celery.app import stamp_late

def publish(who):
    for number in range(20):
        stamp_late.delay(f"{who}-{number}")

publish("parent before")
child = os.fork()
if not child:
    publish("child of fork")
    os._exit(0)
context = multiprocessing.get_context("fork")
children = [context.Process(target=publish, args=(f"process {n}",)) for n in range(2)]
for one in children:
    one.start()
publish("parent meanwhile")
for one in children:
    one.join()
    assert one.exitcode == 0
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
publish("parent after")
"""


def test_eight_threads_of_a_process_publish_at_once(arena: Arena) -> None:
    arena.worker(concurrency=2)
    program = arena.python("publisher", THREADS)
    assert program.wait() == 0, program.text
    jobs = program.text.split()
    assert len(jobs) == 800

    arena.wait_trace(800, deadline_s=60)
    assert sorted(line["id"] for line in arena.trace()) == sorted(jobs)


def test_a_publisher_may_fork_before_during_and_after_publishing(arena: Arena) -> None:
    arena.worker(concurrency=2)
    program = arena.python("publisher", FORKS)
    assert program.wait() == 0, program.text

    arena.wait_trace(120, deadline_s=60)
    who = {
        "parent before",
        "child of fork",
        "process 0",
        "process 1",
        "parent meanwhile",
        "parent after",
    }
    assert sorted(line["label"] for line in arena.trace()) == sorted(
        f"{one}-{number}" for one in who for number in range(20)
    )


@ours_only
def test_a_publish_is_retried_until_the_file_is_back(arena: Arena) -> None:
    labels = ["before"]
    arena.tasks.stamp.delay("before")
    away = arena.directory / "away"
    arena.file.parent.rename(away)

    def is_refused() -> bool:
        # The file that is open is the right one, wherever it is; that it has gone is noticed soon.
        label = f"moving {len(labels)}"
        try:
            arena.tasks.stamp.apply_async((label,), retry=False)
        except OperationalError:
            return True
        labels.append(label)
        return False

    wait_until(is_refused, what="a publish to be refused")

    published = threading.Event()
    tries: list[BaseException] = []

    def publish() -> None:
        arena.tasks.stamp.apply_async(("kept",), retry=True, retry_policy=policy)
        published.set()

    policy = {
        "max_retries": 600,
        "interval_start": 0.1,
        "interval_step": 0,
        "interval_max": 0.1,
        "errback": lambda error, _: tries.append(error),
    }
    thread = threading.Thread(target=publish)
    thread.start()
    wait_until(lambda: tries or published.is_set(), what="a try that failed")
    assert not published.is_set()
    away.rename(arena.file.parent)
    assert published.wait(timeout=30)
    thread.join()

    arena.worker()
    lines = arena.wait_trace(len(labels) + 1)
    assert sorted(line["label"] for line in lines) == sorted([*labels, "kept"])
