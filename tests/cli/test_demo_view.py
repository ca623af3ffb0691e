"""The demo's picture: it fits every terminal, and shows what strangers wrote without obeying it."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from sqlqueue.cli.demo import Plan
from sqlqueue.cli.demo_progress import Progress, Running, Seen, Stamped
from sqlqueue.cli.demo_view import LiveView, PlainView
from sqlqueue.cli.invocation import Invocation
from sqlqueue.inspection import Inspection, State
from sqlqueue.palette import STATES
from tests.cli.filling import HOSTILE, RAW

PLAN = Plan(
    broker_url="sqlqueue:///queue.db",
    directory=Path("jobs"),
    logs=Path("logs"),
    every_s=5,
    min_s=7,
    max_s=15,
    grace_s=30,
    concurrency=4,
    count=40,
    environment={},
)
SEEN = Seen(
    counts={"done": 27, "processing": 3, "pending": 1, "permanently_failed": 1},
    of_this_run={"done": 27, "processing": 3, "pending": 1, "permanently_failed": 1},
    unfinished=4,
    running=(Running("worker-demo/1", "job-producer-1-20261122T051105000Z.txt", 8.2),) * 3,
    stamped=(
        Stamped(
            "job-producer-1-20261122T051050000Z.txt",
            "2026-11-22T05:11:07.123Z job=01a203c6-c092-7512-8642-da568a10f46e attempt=1"
            " duration_s=11.312 worker=worker-demo/2",
        ),
    )
    * 6,
    alive=1,
    slots=4,
    next_due_ms=1_700_000_003_200,
    now_ms=1_700_000_000_000,
)


def drawn(seen=SEEN, plan=PLAN, *, width=120, height=40, stopping=False, colors=False) -> str:
    """Return the picture as a terminal of this size would get it."""
    view = LiveView(Invocation(), plan)
    view._console = Console(
        file=io.StringIO(), width=width, height=height, force_terminal=colors, emoji=False
    )
    view._console.print(view.picture(seen, stopping=stopping, running_s=83))
    return view._console.file.getvalue()


def test_picture_says_what_one_wants_to_know():
    picture = drawn()
    for expected in (
        "40 files, one every 5s in jobs/, stamped after 7s to 15s",
        "01:23",
        "27 done",
        "3 processing",
        "1 permanently failed",
        "27 of 40",
        "8.2s",
        "1 of 4 slots are free",
        "duration_s=11.312 worker=worker-demo/2",
        "1 worker, 4 slots",
        "next file in 3.2s",
        "ctrl-c finishes what runs and stops",
    ):
        assert expected in picture


@pytest.mark.parametrize("width", [30, 60, 80, 100, 200])
def test_picture_fits_the_terminal(width):
    assert max(map(len, drawn(width=width).splitlines())) <= width


def test_stamp_gives_up_its_id_before_its_worker():
    picture = drawn(width=112)
    assert "job=01a203c6…f46e attempt=1" in picture
    assert "worker=worker-demo/2" in picture


def test_states_have_their_colours():
    picture = drawn(colors=True)
    assert "\x1b[" in picture
    assert set(STATES) == {state.value for state in State} | {"stalled"}
    assert len(set(STATES.values())) == len(STATES)


def test_what_cannot_be_yet_is_not_shown():
    early = replace(SEEN, counts={}, of_this_run={}, running=(), stamped=(), alive=0, slots=0)
    assert "the worker is starting" in drawn(early)
    assert "the first one takes at least 7.0s" in drawn(early)
    assert " of 40" not in drawn(early, replace(PLAN, count=None))
    made = replace(SEEN, of_this_run={"done": 40})
    assert "next file" not in drawn(made)


def test_stopping_says_what_it_waits_for():
    assert "finishing 3 running jobs; ctrl-c again stops at once" in drawn(stopping=True)
    assert "stopped" in drawn(replace(SEEN, alive=0, running=()), stopping=True)


def test_strangers_move_nothing():
    seen = replace(
        SEEN, running=(Running(HOSTILE, HOSTILE, 1),), stamped=(Stamped(HOSTILE, HOSTILE),)
    )
    picture = drawn(seen)
    assert "evil\\x1b[31m\\x1b]0;title\\x07[bold red]x[/]" in picture
    for raw in RAW:
        assert raw not in picture


def test_lines_come_only_with_news_and_not_too_often(capsys, monkeypatch):
    now_s = [100.0]
    monkeypatch.setattr("sqlqueue.cli.demo_view.time.monotonic", lambda: now_s[0])
    view = PlainView(Invocation(), PLAN)
    for seconds, seen in ((1, SEEN), (2, SEEN), (3, SEEN), (9, SEEN)):
        now_s[0] = 100.0 + seconds
        view.show(seen, stopping=False, running_s=seconds)
    now_s[0] = 110.0
    view.show(replace(SEEN, of_this_run={"done": 28}), stopping=True, running_s=10)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("demo: 27 of 40 stamped: 1 pending, 3 processing, 27 done")
    assert lines[2].startswith("demo: finishing: 28 of 40 stamped")


# -- following jobs --------------------------------------------------------------------------------------

STAMP = "tasks.stamping.stamp"


@pytest.fixture
def progress(filled, tmp_path):
    """Return a way to begin following, now."""
    (tmp_path / "jobs").mkdir()
    backend = filled.backend()
    yield lambda: Progress(Inspection(backend), tmp_path / "jobs")
    backend.close()


def test_jobs_from_before_are_shown_but_not_counted_to_this_run(filled, progress):
    filled.done(task=STAMP)
    filled.publish(task=STAMP)
    following = progress()
    filled.publish(task=STAMP, args=("a",))
    seen = following.look()
    assert dict(seen.counts) == {"pending": 2}
    assert dict(seen.of_this_run) == {"pending": 1}
    assert seen.unfinished == 1


def test_job_is_followed_to_its_end(filled, progress, tmp_path):
    from sqlqueue_transport import Outcome

    following = progress()
    filled.publish(task=STAMP, args=("a.txt",))
    (tmp_path / "jobs" / "a.txt").write_text("8d1f\nstamped\n")
    assert following.look().unfinished == 1
    delivery = filled.claim()
    [running] = following.look().running
    assert running.file == "a.txt"
    filled.settle(delivery, Outcome.done())
    seen = following.look()
    assert (dict(seen.of_this_run), seen.unfinished, seen.running) == ({"done": 1}, 0, ())
    assert seen.stamped == (Stamped("a.txt", "stamped"),)
    assert following.look().stamped == seen.stamped


def test_what_ended_between_two_looks_is_counted_once(filled, progress):
    following = progress()
    for _ in range(3):
        filled.done(task=STAMP)
        filled.dead(task=STAMP)
    for _ in range(2):
        assert dict(following.look().of_this_run) == {"done": 3, "permanently_failed": 3}


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "link", "fifo", "dir", "missing", "\0"]
)
def test_name_that_is_no_plain_file_is_not_read(filled, progress, tmp_path, name):
    import os

    (tmp_path / "secret").write_text("secret\n")
    jobs = tmp_path / "jobs"
    following = progress()
    (jobs / "link").symlink_to(tmp_path / "secret")
    (jobs / "dir").mkdir()
    os.mkfifo(jobs / "fifo")
    filled.done(task=STAMP, args=(name,))
    [stamped] = following.look().stamped
    assert stamped == Stamped(name, "")


def test_jobs_of_other_tasks_are_not_the_demos(filled, progress):
    following = progress()
    filled.publish(task="other")
    assert following.look().unfinished == 0
