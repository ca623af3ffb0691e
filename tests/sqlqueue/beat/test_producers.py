"""A producer's process, as the beat's thread sees it."""

from __future__ import annotations

import os
import signal
import subprocess
import tracemalloc

import pytest

from sqlqueue.beat.producers import Producer, publications
from sqlqueue.beat.schedule import Tick
from sqlqueue.errors import EnvelopeError
from sqlqueue_transport.clock import SYSTEM_CLOCK
from tests.support import is_running, wait_until


@pytest.fixture
def started(app):
    """Start a producer function; its process is ended after the test."""
    producers = []

    def start(function):
        app.producer(name="p", every="1s")(function)
        producer = Producer(app, app.entries["p"], limit_s=30, clock=SYSTEM_CLOCK)
        producers.append(producer)
        producer.start(Tick("p", 1000))
        return producer

    yield start
    for producer in producers:
        producer.end()


def test_what_was_said_already_is_not_copied_at_each_look(app, here, started):
    task = app.task(name="t")(lambda x: None)

    def much(tick):
        for _ in range(100):
            yield task.s("x" * 100_000)
        (here / "said").touch()
        wait_until((here / "go").exists, deadline_s=30)

    producer = started(much)

    def is_said():
        assert producer.finished() is None
        return (here / "said").exists()

    wait_until(is_said, deadline_s=20)
    assert producer.finished() is None  # takes the rest
    tracemalloc.start()
    try:
        assert producer.finished() is None
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 1_000_000
    (here / "go").touch()
    assert len(wait_until(producer.finished).publications) == 100


def test_what_a_producer_has_started_dies_with_it_when_it_ends_by_itself(here, started):
    """Also what has a process group of its own, as the jobs of an interactive shell have."""

    def starts_and_ends(tick):
        pids = []
        for before in (None, os.setpgrp):
            child = subprocess.Popen(["sleep", "60"], preexec_fn=before)  # noqa: PLW1509 - no threads
            pids.append(child.pid)
        (here / "pids").write_text(" ".join(map(str, pids)))
        os._exit(3)

    produced = wait_until(started(starts_and_ends).finished)
    assert produced.fault.message == "it ended its process (exit code 3)"
    pids = [int(pid) for pid in (here / "pids").read_text().split()]
    assert len(pids) == 2
    wait_until(lambda: not any(map(is_running, pids)))


def test_a_producer_whose_end_another_has_learnt_is_known_to_have_ended(started):
    """As code that waits for every child does: the process's number may be another's by then."""

    def ends(tick):
        os.kill(os.getpid(), signal.SIGKILL)

    producer = started(ends)
    os.wait()
    produced = wait_until(producer.finished, deadline_s=5)
    assert produced.fault.type == "ProducerEnded"


@pytest.mark.parametrize("jitter", [0, 60])
def test_what_is_no_call_is_said_to_be_none_with_and_without_jitter(app, jitter):
    app.producer(name="p", every="1s", jitter=jitter)(lambda tick: ["rubbish"])
    with pytest.raises(EnvelopeError, match=r"'rubbish' is no call; write one as task\.s"):
        list(publications(app, app.entries["p"], Tick("p", 1000)))
