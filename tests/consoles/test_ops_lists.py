"""The tables of the ops page, worked out from real files, and their HTML."""

from __future__ import annotations

import re
from html import unescape

import pytest

from sqlqueue.consoles.ops import drawing, figures, lists
from sqlqueue.consoles.ops.pieces import Cell, Column, Table
from sqlqueue.inspection import Arguments
from sqlqueue_transport.schedules import Described
from tests.cli.filling import HOSTILE, RAW
from tests.consoles.seeing import seeing
from tests.support import finish, read_line, run_python, say

TABLES = (lists.active, lists.errors, lists.workers, lists.queues, lists.schedule)


@pytest.fixture
def seen(tmp_path):
    with seeing(tmp_path / "queue.db") as found:
        yield found


def texts(table):
    return [[cell.text for cell in row] for row in table.rows]


@pytest.mark.parametrize("make", TABLES)
def test_an_empty_table_says_something_useful(seen, make):
    table = make(seen.look())

    assert not table.rows
    assert len(table.empty) > 20


@pytest.mark.parametrize("make", TABLES)
def test_every_row_has_a_cell_for_every_column(seen, make):
    seen.filled.store.consumers.register(name="w", kind="worker", slots=2)
    seen.dead()
    seen.filled.publish()
    seen.filled.claim()
    seen.filled.store.schedules.describe([Described("files", "every 5s", "tasks.make", 1)])

    table = make(seen.look())

    assert table.rows
    assert {len(row) for row in table.rows} == {len(table.columns)}


def test_active_jobs_tell_arguments_elapsed_and_what_is_left_of_the_lease(seen):
    seen.filled.publish(task="tasks.stamp", args=("jobs/1.json", 3), kwargs={"fast": True})
    seen.clock.advance(5)
    seen.filled.claim(lease_s=60)
    seen.clock.advance(15)

    [row] = lists.active(seen.look()).rows

    job, task, arguments, _, elapsed, progress, lease = row
    assert len(job.text) == 13
    assert len(job.whole) == 36
    assert task.text == "tasks.stamp"
    assert arguments.text == "jobs/1.json, 3, fast=true"
    assert elapsed.text == "15.0s"
    assert progress.text == ""
    assert (lease.text, lease.part) == ("45s", 0.75)


def test_the_longest_running_job_stands_first(seen):
    for number in range(3):
        seen.filled.publish(args=(f"job {number}",))
        seen.filled.claim()
        seen.clock.advance(3)

    assert [row[2] for row in texts(lists.active(seen.look()))] == ["job 0", "job 1", "job 2"]


def test_a_lease_that_is_over_is_said_in_red(seen):
    seen.filled.publish()
    seen.filled.claim(lease_s=5)
    seen.clock.advance(20)

    lease = lists.active(seen.look()).rows[0][-1]

    assert (lease.text, lease.level) == ("over 15s ago", "fail")


def test_progress_is_shown_where_a_task_says_some(seen):
    seen.filled.publish()
    delivery = seen.filled.claim()
    seen.filled.store.running.note_progress(
        delivery.message_id, delivery.delivery, done=30, total=120, note="rows"
    )

    progress = lists.active(seen.look()).rows[0][5]

    assert (progress.text, progress.part, progress.whole) == ("25%", 0.25, "25% rows")


def test_more_jobs_than_are_listed_are_counted(seen, monkeypatch):
    monkeypatch.setattr("sqlqueue.consoles.ops.snapshot.MOST_ACTIVE", 2)
    for _ in range(3):
        seen.filled.publish()
        seen.filled.claim()

    assert lists.active(seen.look()).count == "the 2 longest running of 3 jobs"


def test_errors_alike_are_one_row_the_most_frequent_first(seen):
    seen.dead("ValueError", "bad file 1")
    seen.clock.advance(60)
    for number in range(3):
        seen.dead("OSError", f"disk {number} is full")

    found = lists.errors(seen.look())

    assert [row[0] for row in texts(found)] == ["3", "1"]
    assert texts(found)[0][1].startswith("OSError: disk ")
    assert found.count == "4 attempts in 1h"


def test_an_error_of_a_clock_ahead_of_ours_is_of_now(seen):
    seen.dead()
    seen.clock.jump_wall(-30)

    assert lists.errors(seen.look()).rows[0][2].text == "now"


def test_children_are_counted_with_their_worker(tmp_path):
    with seeing(tmp_path / "queue.db") as seen:
        worker_id = seen.filled.store.consumers.register(name="w", kind="worker", slots=2)
        for _ in range(2):
            seen.filled.publish(task="tasks.stamp")
        child = run_python(
            """
            import sys
            from sqlqueue_transport import Store
            store = Store(sys.argv[1])
            store.consumers.register(name="w/1", kind="child", parent_id=int(sys.argv[2]))
            [one] = store.claim(["default"], lease_s=60).deliveries
            store.consumers.note_start(0, one.message_id, one.delivery, 0)
            print("ready", flush=True)
            input()
            """,
            seen.filled.path,
            worker_id,
        )
        read_line(child)

        found = lists.workers(seen.look())

        assert [row[:4] for row in texts(found)] == [["w", "worker", "1/2", "tasks.stamp"]]
        assert found.count == "1 worker"
        say(child)
        finish(child)


def test_a_paused_queue_says_so_and_by_whom(seen):
    seen.filled.publish(queue="mail")
    seen.filled.store.pausing.pause("mail", actor="ana@desk", reason="provider is down")

    [row] = lists.queues(seen.look()).rows

    assert (row[0].text, row[0].level) == ("mail (paused)", "warn")
    assert row[0].whole == "paused by ana@desk, provider is down"


def test_the_queue_with_the_oldest_waiting_job_stands_first(seen):
    seen.filled.publish(queue="b")
    seen.clock.advance(1)
    seen.filled.publish(queue="a")

    assert [row[0] for row in texts(lists.queues(seen.look()))] == ["b", "a"]


def test_an_entry_of_the_schedule_without_a_beat_stands_out(seen):
    seen.filled.store.schedules.describe([Described("files", "every 5s", "tasks.make", 1)])

    [row] = lists.schedule(seen.look()).rows

    assert (row[0].text, row[0].level) == ("files (no beat)", "warn")
    assert row[2].text == "never"


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (Arguments((), {}), ""),
        (Arguments(("jobs/1.json",), {}), "jobs/1.json"),
        (Arguments((1, None, [True]), {"a": "b"}), "1, null, [true], a=b"),
        (Arguments(None, None, "no JSON"), "cannot be read: no JSON"),
    ],
)
def test_arguments_are_one_line(arguments, shown):
    assert lists.arguments_text(arguments) == shown


def test_long_arguments_are_cut():
    assert len(lists.arguments_text(Arguments(("x" * 10_000_000,), {}))) == 201


def test_arguments_that_were_seen_are_not_read_again(seen, monkeypatch):
    seen.filled.publish(args=("jobs/1.json",))
    seen.filled.claim()
    seen.look()
    monkeypatch.setattr(seen.inspection, "job", None)  # whoever asks again fails

    assert lists.active(seen.look()).rows[0][2].text == "jobs/1.json"


def test_strangers_text_is_escaped_in_every_cell_card_and_line(seen):
    evil = f"<script>alert(1)</script>\"'{HOSTILE}"
    store = seen.filled.store
    store.consumers.register(name=evil, kind="worker", slots=1, queues=["q<b>"])
    store.schedules.describe([Described(evil, evil, evil, 1)])
    seen.dead(evil, evil, task=evil, job_id=evil)
    seen.filled.publish(task=evil, job_id=f"{evil}2", args=(evil,), queue="q<b>")
    delivery = seen.filled.claim("q<b>")
    store.running.note_progress(delivery.message_id, delivery.delivery, done=1, total=2, note=evil)
    seen.filled.publish(queue="q<b>")
    store.pausing.pause("q<b>", actor=evil, reason=evil)
    store.schedules.set_error(evil, evil)
    seen.clock.advance(300)

    found = seen.look()
    page = "".join(
        drawing.table(make(found)) + drawing.heading(make(found).title) for make in TABLES
    )
    page += drawing.cards(figures.cards(found)) + drawing.facts(lists.facts(found))
    page += drawing.status(figures.status(found), "07:06:54", refresh_s=5)

    assert "alert(1)" in page
    assert "<script" not in page
    assert "<b>q" not in page.replace("<b>No", "")
    assert "[31m" in page  # it is shown, and stands for itself
    for raw in RAW:
        assert raw not in page
        assert raw not in unescape(page)
    # No text ends the attribute it stands in.
    assert not re.search(r'title="[^"]*"[^ >]', page)


def test_the_bar_of_a_cell_stays_within_it():
    table = Table("", "", (Column("", 1),), ((Cell("x", part=7.0),), (Cell("y", part=-1.0),)), "")

    assert re.findall(r"--part:(\S+?)\"", drawing.table(table)) == ["100%", "0%"]


def test_the_time_of_the_page_has_a_constant_width_and_says_by_itself_when_it_is_old():
    found = drawing.status(figures.Status("", "all"), "07:06:54", refresh_s=5)

    assert "in-5" in found
    assert "in-" not in drawing.status(figures.Status("", "all"), "07:06:54", refresh_s=None)
    assert all(f".ops-asof.in-{seconds}::after" in drawing.STYLE for seconds in (5, 10, 30))
