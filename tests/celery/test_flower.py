"""Flower, as PyPI has it, watches a Celery application on the queue file."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest

from tests.celery.conftest import Arena, Program, ours_only
from tests.support import free_port, wait_until

pytestmark = pytest.mark.slow


class Flower:
    """Be a running Flower, and what its pages say."""

    def __init__(self, arena: Arena) -> None:
        self.port = free_port()
        self.program: Program = arena.celery(
            "flower",
            *("flower", "--address=127.0.0.1", f"--port={self.port}"),
            env={"FLOWER_UNAUTHENTICATED_API": "true"},
        )
        wait_until(self.answers, deadline_s=60, what="Flower to answer", every_s=0.1)

    def answers(self) -> bool:
        assert self.program.process.poll() is None, self.program.text
        try:
            return self.page("/healthcheck") == "OK"
        except OSError:
            return False

    def page(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            assert answer.status == 200
            return str(answer.read().decode())

    def knows_add(self) -> bool:
        """Say whether it has asked the worker, and heard of the task `add`."""
        workers = json.loads(self.page("/api/workers?refresh=1"))
        return "add" in workers.get("worker@arena", {}).get("registered", [])

    def post(self, path: str, data: dict[str, object]) -> dict[str, object]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data=json.dumps(data).encode(), method="POST"
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            read: dict[str, object] = json.loads(answer.read())
            return read


def test_flower_shows_the_worker_and_its_tasks(arena: Arena) -> None:
    arena.settings["task_send_sent_event"] = True
    flower = Flower(arena)
    arena.worker("worker", "-E")
    wait_until(
        lambda: "worker@arena" in flower.page("/workers"),
        what="the worker to be shown",
        every_s=0.2,
    )
    jobs = [arena.tasks.add.delay(number, 1).id for number in range(5)]

    def succeeded() -> bool:
        tasks = json.loads(flower.page("/api/tasks"))
        return [tasks.get(job, {}).get("state") for job in jobs] == ["SUCCESS"] * 5

    wait_until(succeeded, deadline_s=30, what="five successes", every_s=0.2)
    wait_until(flower.knows_add, deadline_s=30, what="what the worker can do", every_s=0.2)
    assert "worker@arena" in flower.page("/worker/worker@arena")
    for path in ("/", "/tasks", f"/task/{jobs[0]}", "/metrics"):
        flower.page(path)
    assert json.loads(flower.page(f"/api/task/result/{jobs[0]}"))["result"] == 1


@ours_only
def test_flower_says_that_its_broker_page_knows_no_such_broker(arena: Arena) -> None:
    flower = Flower(arena)
    with pytest.raises(urllib.error.HTTPError, match="404"):
        flower.page("/broker")


def test_flower_publishes_and_controls(arena: Arena) -> None:
    flower = Flower(arena)
    worker = arena.worker("worker", "-E", concurrency=1)
    # It controls only workers that it has asked for details.
    wait_until(flower.knows_add, deadline_s=30, what="the worker to be known", every_s=0.2)
    job = flower.post("/api/task/async-apply/add", {"args": [1, 2]})["task-id"]
    assert arena.app.AsyncResult(job).get(timeout=30) == 3
    flower.post("/api/worker/pool/grow/worker@arena?n=1", {})
    wait_until(lambda: len(worker.children) == 2, what="another child")
    flower.post("/api/worker/shutdown/worker@arena", {})
    assert worker.wait() == 0
