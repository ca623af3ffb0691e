"""What the admin console's pages say, worked out without a browser, on real files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sqlqueue.backend import WorkerRow
from sqlqueue.consoles.admin import (
    error_rows,
    maintenance_rows,
    queue_rows,
    schedule_rows,
    worker_rows,
)
from sqlqueue.consoles.admin.numbering import Numbers
from sqlqueue.consoles.admin.view import View
from sqlqueue.health import Check, Level
from sqlqueue.inspection import DeadGroup, Inspection, Queue, State, Worker
from sqlqueue_transport.lifecycle import State as Stored
from sqlqueue_transport.reading import AuditRow, JobRow, Pause
from sqlqueue_transport.schedules import Described, TickRow
from tests.cli.filling import Filled
from tests.consoles.test_markup import Seen
from tests.support import FakeClock

NOW_MS = 1_700_000_000_000


# -- rows that keep their place ---------------------------------------------------------------------------


def test_a_name_keeps_its_number_when_others_come_and_go() -> None:
    numbers = Numbers()
    assert numbers.ordered(["a", "c"], str) == [(0, "a"), (1, "c")]
    assert numbers.ordered(["a", "b", "c"], str) == [(0, "a"), (1, "c"), (2, "b")]
    assert numbers.ordered(["b", "c"], str) == [(1, "c"), (2, "b")]
    assert numbers.ordered(["a", "b", "c"], str) == [(0, "a"), (1, "c"), (2, "b")]


# -- queues -----------------------------------------------------------------------------------------------


def queue(name: str = "mail", **fields) -> Queue:
    given = {"pending": 0, "later": 0, "processing": 0, "oldest_pending_s": None, "servers": 1}
    return Queue(name, **{**given, **fields})


def said(html: str) -> str:
    return " ".join(Seen(html).text.split())


def test_mailboxes_of_celery_are_hidden_until_they_are_asked_for() -> None:
    names = ["mail", "celery@box.celery.pidbox", "celeryev.0f3a", "celeryevents"]
    found = [queue(name) for name in names]
    shown = [one.name for one in queue_rows.chosen(found, containing="", mailboxes=False)]
    assert shown == ["celeryevents", "mail"]
    assert len(queue_rows.chosen(found, containing="", mailboxes=True)) == 4


def test_queues_are_found_by_a_piece_of_their_name_in_any_case() -> None:
    found = [queue("Mail.Out"), queue("reports")]
    shown = queue_rows.chosen(found, containing=" mail ", mailboxes=False)
    assert [one.name for one in shown] == ["Mail.Out"]


def test_a_queue_that_nobody_serves_is_flagged_with_the_command_that_would() -> None:
    html = queue_rows.facts(queue(pending=3, servers=0, oldest_pending_s=90), now_ms=NOW_MS)
    assert "No worker serves it" in said(html)
    assert "-Q mail" in said(html)
    assert "No worker" not in said(queue_rows.facts(queue(servers=0), now_ms=NOW_MS))
    mailbox = queue("celeryev.1", pending=3, servers=0)
    assert "No worker" not in said(queue_rows.facts(mailbox, now_ms=NOW_MS))


def test_a_paused_queue_says_since_when_by_whom_and_why() -> None:
    pause = Pause(NOW_MS - 180_000, "anna@box via cli", "the disk is being moved")
    html = queue_rows.facts(queue(pause=pause), now_ms=NOW_MS)
    assert "Paused 3m ago by anna@box via cli: the disk is being moved" in said(html)
    unknown = queue(pause=Pause(NOW_MS - 1000, None, None))
    assert said(queue_rows.facts(unknown, now_ms=NOW_MS)).endswith("Paused 1s ago")


def test_the_line_above_queues_counts_what_needs_somebody() -> None:
    pause = Pause(NOW_MS, None, None)
    found = [queue("a", pending=1000), queue("b", pending=204, servers=0), queue("c", pause=pause)]
    assert queue_rows.summary(found) == (
        "3 queues, 1,204 pending, 0 processing, 1 paused, 1 served by nobody"
    )


def test_a_purge_wants_the_queues_name_typed() -> None:
    asked = queue_rows.purge_question("mail", 3)
    assert not asked.is_answered_by("3")
    assert not asked.is_answered_by("mai")
    assert asked.is_answered_by(" mail ")
    assert "3 messages" in asked.lines[0]


# -- workers ----------------------------------------------------------------------------------------------


def worker(number: int, **fields) -> Worker:
    jobs = fields.pop("jobs", ())
    given = {
        "name": f"w{number}",
        "kind": "worker",
        "parent_id": None,
        "pid": 1000 + number,
        "host": "box",
        "slots": 2,
        "queues": ("default",),
        "started_at_ms": NOW_MS - 3_600_000,
        "is_known_alive": True,
        "heartbeat_age_s": 0.4,
        "running": (),
    }
    return Worker(WorkerRow(id=number, **{**given, **fields}), jobs)


def running(job_id: str | None = "a-job", **fields) -> JobRow:
    given = {
        "message_id": 7,
        "job_id": job_id,
        "task": "tasks.add",
        "queue": "default",
        "state": Stored.PROCESSING,
        "priority": 0,
        "run": 1,
        "attempts": 1,
        "max_attempts": None,
        "delivery": 1,
        "enqueued_at_ms": NOW_MS - 60_000,
        "due_at_ms": None,
        "expires_at_ms": None,
        "started_at_ms": NOW_MS - 4000,
        "finished_at_ms": None,
        "worker": "w1/1",
        "error_type": None,
        "error_message": None,
        "lease_left_ms": 56_000,
    }
    return JobRow(**{**given, **fields})


def card(*workers: Worker, silent_after_s: float = 60) -> str:
    [family] = worker_rows.families(workers)
    return said(worker_rows.card(family, now_ms=NOW_MS, silent_after_s=silent_after_s))


def test_children_stand_beneath_their_worker_in_the_order_of_their_names() -> None:
    child = {"kind": "child", "parent_id": 1, "slots": 0}
    found = worker_rows.families(
        [
            worker(1),
            worker(5, name="w1/10", **child),
            worker(3, name="w1/2", **child),
            worker(4, kind="beat", slots=0),
            worker(2),
        ]
    )
    assert [(one.head.row.id, [c.row.name for c in one.children]) for one in found] == [
        (1, ["w1/2", "w1/10"]),
        (2, []),
        (4, []),
    ]


def test_a_child_whose_worker_is_gone_is_shown_all_the_same() -> None:
    [alone] = worker_rows.families([worker(3, kind="child", parent_id=99)])
    assert alone.head.row.id == 3


def test_a_card_says_what_runs_for_how_long_and_how_much_lease_is_left() -> None:
    child = worker(2, name="w1/1", kind="child", parent_id=1, jobs=(running(),))
    idle = worker(3, name="w1/2", kind="child", parent_id=1)
    text = card(worker(1), child, idle)
    assert "1 of 2" in text
    assert "w1/1 1002 a-job tasks.add 4.0s 56.0s now" in text
    assert text.endswith("w1/2 1003 idle now")
    html = worker_rows.card(
        worker_rows.families([worker(1), child])[0], now_ms=NOW_MS, silent_after_s=60
    )
    assert 'href="job?id=a-job"' in html


def test_a_job_without_an_id_is_linked_by_its_message() -> None:
    solo = worker(1, jobs=(running(None),))
    html = worker_rows.card(worker_rows.families([solo])[0], now_ms=NOW_MS, silent_after_s=60)
    assert 'href="job?id=%237"' in html


def test_a_lease_that_is_over_and_a_job_asked_to_stop_stand_out() -> None:
    text = card(worker(1, jobs=(running(lease_left_ms=-2000, stop_asked_at_ms=NOW_MS),)))
    assert "over for 2.0s" in text
    assert "asked to stop" in text


def test_silence_beyond_the_visibility_timeout_and_lost_presence_are_flagged() -> None:
    assert "silent, 2m ago" in card(worker(1, heartbeat_age_s=120))
    assert "silent" not in card(worker(1, heartbeat_age_s=50))
    assert "unknown" in card(worker(1, is_known_alive=False, heartbeat_age_s=None))


def test_the_line_above_workers_counts_living_ones_and_their_slots() -> None:
    found = worker_rows.families(
        [
            worker(1, jobs=(running(),)),
            worker(2, is_known_alive=False),
            worker(3, kind="beat", slots=0),
            worker(4, kind="client", slots=0),
        ]
    )
    assert worker_rows.summary(found) == (
        "1 worker alive, 1 of 2 slots in use, 1 beat, 1 other program"
    )
    assert worker_rows.summary([]) == "0 workers alive, 0 of 0 slots in use"


# -- schedule ---------------------------------------------------------------------------------------------


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(wall=NOW_MS)


@pytest.fixture
def filled(tmp_path: Path, clock: FakeClock):
    opened = Filled(tmp_path / "queue.db", clock=clock)
    yield opened
    opened.close()


@pytest.fixture
def look(filled: Filled, clock: FakeClock) -> Iterator[Inspection]:
    backend = filled.backend()
    yield Inspection(backend, clock=clock)
    backend.close()


def describe(filled: Filled, name: str = "every", next_due_ms: int | None = NOW_MS + 5000) -> None:
    filled.store.schedules.describe([Described(name, "every 5s", "tasks.add", next_due_ms)])


def test_an_entry_says_when_it_came_last_and_comes_next(filled, clock, look) -> None:
    describe(filled)
    [entry] = look.schedule()
    text = said(schedule_rows.facts(entry, now_ms=look.now_ms))
    assert "every 5s" in text
    assert "never" in text
    assert "in 5s" in text
    assert "no beat runs" in text
    clock.advance(65)
    assert "overdue for 1m 00s" in said(schedule_rows.facts(entry, now_ms=look.now_ms))


def test_an_entry_that_fails_says_why_and_a_paused_one_that_ticks_are_given_up(
    filled, look
) -> None:
    describe(filled)
    filled.store.schedules.set_error("every", "OSError: <b>no</b> space\nTraceback …")
    filled.store.schedules.pause("every", actor="me")
    [entry] = look.schedule()
    assert schedule_rows.is_paused(entry)
    text = said(schedule_rows.facts(entry, now_ms=NOW_MS + 60_000))
    assert "OSError: <b>no</b> space" in text
    assert "Traceback" not in text
    assert "Paused 1m ago" in text
    assert "overdue" not in text


def test_the_line_above_the_schedule_says_when_something_was_last_enqueued() -> None:
    found = [
        TickRow("idle", NOW_MS, NOW_MS, "beat", 0, "overlap"),
        TickRow("files", NOW_MS - 4000, NOW_MS - 4000, "beat", 1, None),
        TickRow("mail", NOW_MS - 9000, NOW_MS - 9000, "beat", 2, None),
    ]
    line = schedule_rows.summary([], found, now_ms=NOW_MS)
    assert line == "0 entries, no beat is running, last enqueued 4s ago by files"
    assert "nothing enqueued yet" in schedule_rows.summary([], found[:1], now_ms=NOW_MS)


def test_recent_ticks_say_how_late_and_why_left_out() -> None:
    found = [
        TickRow("files", NOW_MS, NOW_MS + 90_000, "beat-1", 3, None),
        TickRow("files", NOW_MS - 5000, NOW_MS - 5000, "beat-1", 0, "overlap"),
    ]
    text = said(schedule_rows.ticks(found, now_ms=NOW_MS + 95_000, utc=True, most=2))
    assert "2023-11-14 22:13:20 UTC files 5s ago 1m 30s 3 beat-1" in text
    assert text.endswith("overlap")
    assert "overlap" not in said(schedule_rows.ticks(found, now_ms=NOW_MS, utc=True, most=1))


# -- errors -----------------------------------------------------------------------------------------------


def group(text: str = "no such file …", kind: str = "OSError", **fields) -> DeadGroup:
    given = {"count": 3, "newest_at_ms": NOW_MS - 60_000, "tasks": ("a",), "example": "#7"}
    return DeadGroup(type=kind, text=text, **{**given, **fields})


@pytest.mark.parametrize(
    ("kind", "text", "error"),
    [
        ("OSError", "no such file …", "OSError: no such file"),
        ("OSError", "… is gone", "OSError"),
        ("OSError", "", "OSError"),
        ("", "lost", "lost"),
        ("", "", None),
    ],
)
def test_a_groups_link_finds_all_its_jobs(kind, text, error) -> None:
    query = error_rows.link_of(group(text, kind))
    assert query.get("error") == error
    assert query["state"] == "permanently_failed"


def test_a_groups_link_finds_its_jobs_in_a_real_file(filled, look) -> None:
    for number in range(3):
        filled.dead("OSError", f"no such file 'job-{number}.txt' in 0x{number}f")
    filled.dead("ValueError", "no such file")
    [largest, _] = look.dead_groups()
    query = error_rows.link_of(largest)
    found = look.jobs(View.read(query).chosen(look.now_ms)).items
    assert len(found) == largest.count == 3


def test_a_group_is_shown_with_its_number_age_tasks_and_an_example() -> None:
    text = said(error_rows.facts(group(tasks=("b", "")), now_ms=NOW_MS))
    assert text == "Error OSError: no such file … Jobs 3 Newest 1m ago Task b Example #7"


def test_no_dead_letters_is_good_news_with_a_number() -> None:
    week = 7 * 86_400
    assert error_rows.nothing_dead(done=98_670, kept_s=week) == (
        "No dead letters. 98,670 done in the last 7d."
    )
    assert error_rows.nothing_dead(done=2, kept_s=0) == "No dead letters. 2 done."
    assert error_rows.nothing_dead(done=0, kept_s=week) == "No dead letters."


# -- maintenance ------------------------------------------------------------------------------------------


def test_the_doctors_findings_are_shown_with_levels_and_the_way_out() -> None:
    found = [
        Check("sqlite", Level.OK, "SQLite 3.40"),
        Check("leases", Level.FAIL, "3 over", ("job <a>", "job b"), "start a worker"),
    ]
    text = said(maintenance_rows.checks(found))
    assert "leases fail 3 over job <a> job b → start a worker" in text
    assert maintenance_rows.health(found, at_ms=NOW_MS, now_ms=NOW_MS + 5000) == (
        "Unhealthy: leases. Examined 5s ago."
    )
    assert maintenance_rows.health(found[:1], at_ms=NOW_MS, now_ms=NOW_MS).startswith("Healthy.")


def test_what_a_check_said_is_one_sentence_however_much_is_broken() -> None:
    assert maintenance_rows.complaints((), full=True) == ("ok", "Full check: the file is in order.")
    level, text = maintenance_rows.complaints([f"page {n}" for n in range(9)], full=False)
    assert level == "fail"
    assert "page 2; and 6 more. Stop everything" in text


def test_a_backup_goes_beside_the_file_under_a_name_with_the_time() -> None:
    name = maintenance_rows.backup_name(Path("/var/lib/q/queue.db"), NOW_MS)
    assert name == "/var/lib/q/queue-20231114T221320Z.db"


@pytest.mark.parametrize(("count", "typed"), [(20, ""), (21, "21"), (1200, "1200")])
def test_pruning_more_than_twenty_jobs_wants_their_number_typed(count, typed) -> None:
    asked = maintenance_rows.prune_question(count, older_than_s=7 * 86_400, states=[State.DONE])
    assert asked.typed == typed
    assert "7d ago as done" in asked.lines[0]


def audited(**fields) -> AuditRow:
    given = {"at_ms": NOW_MS, "actor": "anna", "action": "cancel", "reason": None}
    return AuditRow(**{**given, "before": "pending", "after": "cancelled", **fields})


def test_the_audit_says_who_did_what_to_which_job_and_why() -> None:
    row = audited(reason="<b>wrong</b>", message_id=7, job_id="a-job")
    html = maintenance_rows.audit([row], now_ms=NOW_MS + 60_000, utc=True)
    assert "1m ago anna cancel a-job pending → cancelled <b>wrong</b>" in said(html)
    assert "<b>" not in html
    assert 'href="job?id=%237"' in html


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        (None, '{"entry": "nightly"}', "schedule pause nightly"),
        ('{"entry": "nightly", "x": 1}', None, "schedule pause nightly"),
        ("{broken", None, "schedule pause {broken"),
        (None, '{"entry": 7}', 'schedule pause {"entry": 7}'),
        ("running", "paused", "schedule pause running → paused"),
    ],
)
def test_the_audit_of_an_entry_names_it_and_shows_what_it_cannot_read(before, after, shown) -> None:
    row = audited(action="schedule_pause", before=before, after=after)
    html = maintenance_rows.audit([row], now_ms=NOW_MS, utc=True)
    assert said(html).endswith(f"anna {shown}")
