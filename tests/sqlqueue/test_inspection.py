"""What operators are told of jobs, queues and workers."""

from __future__ import annotations

import pytest

from sqlqueue.backend import open_backend
from sqlqueue.config import Settings
from sqlqueue.errors import JobNotFound, NotAvailable
from sqlqueue.inspection import Counted, Inspection, JobFilter
from sqlqueue_transport import Fault, Outcome
from sqlqueue_transport.lifecycle import Event, State
from tests.cli.filling import Filled
from tests.support import FakeClock


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def filled(tmp_path, clock):
    filled = Filled(tmp_path / "q.db", clock=clock)
    yield filled
    filled.close()


@pytest.fixture
def backend(filled):
    backend = filled.backend()
    yield backend
    backend.close()


@pytest.fixture
def inspection(backend, clock):
    return Inspection(backend, clock=clock)


def test_stats_count_every_state_also_those_without_jobs(filled, inspection):
    filled.done()
    filled.dead()
    filled.failed()
    filled.publish(due_in_s=60)
    filled.publish()
    stats = inspection.stats()
    assert set(stats.states) == set(State)
    assert {state.value: count for state, count in stats.states.items() if count} == {
        "done": 1,
        "permanently_failed": 1,
        "failed": 1,
        "scheduled": 1,
        "pending": 1,
    }


def test_oldest_pending_has_an_age_that_is_never_negative(filled, inspection, clock):
    assert inspection.stats().oldest_pending_s is None
    filled.publish()
    clock.advance(2.5)
    assert inspection.stats().oldest_pending_s == 2.5
    clock.jump_wall(-3600)
    assert inspection.stats().oldest_pending_s == 0


def test_stats_count_workers_and_their_slots_but_no_children(filled, inspection):
    assert (inspection.stats().alive, inspection.stats().slots) == (0, 0)
    filled.store.consumers.register(name="w", kind="worker", queues=["default"], slots=4)
    assert (inspection.stats().alive, inspection.stats().slots) == (1, 4)


def test_child_is_no_worker(filled, inspection):
    filled.store.consumers.register(name="w/1", kind="child", parent_id=7, slots=1)
    assert (inspection.stats().alive, inspection.stats().slots) == (0, 0)


def test_stalled_is_a_processing_job_whose_lease_is_over(filled, inspection, clock):
    filled.publish()
    filled.claim(lease_s=10)
    assert inspection.stats().stalled == 0
    clock.advance(10)
    stats = inspection.stats()
    assert (stats.stalled, stats.states[State.PROCESSING]) == (1, 1)
    [row] = inspection.jobs(JobFilter(stalled=True)).items
    assert row.lease_left_ms <= 0


def test_pages_go_to_the_end_without_losing_or_repeating_a_job(filled, inspection):
    published = [filled.publish() for _ in range(7)]
    seen, cursor = [], None
    while True:
        page = inspection.jobs(JobFilter(), limit=3, cursor=cursor)
        seen += [row.job_id for row in page.items]
        cursor = page.next
        if cursor is None:
            break
    assert seen == published[::-1]


def test_page_that_holds_all_has_no_next_one(filled, inspection):
    for _ in range(3):
        filled.publish()
    assert inspection.jobs(JobFilter(), limit=3).next is None


@pytest.mark.parametrize("cursor", ["", "x", "-1", "1 OR 1=1", "9" * 30])
def test_made_up_cursor_is_refused(inspection, cursor):
    with pytest.raises(ValueError, match="cursor"):
        inspection.jobs(JobFilter(), cursor=cursor)


def test_every_job_goes_beyond_a_page(filled, inspection, monkeypatch):
    monkeypatch.setattr("sqlqueue.inspection.MOST_ON_A_PAGE", 4)
    published = [filled.publish() for _ in range(11)]
    assert [row.job_id for row in inspection.every_job(JobFilter())] == published[::-1]


def test_history_has_every_counted_attempt_with_the_successful_one_last(filled, inspection, clock):
    job_id = filled.failed(retry_in_s=0)
    clock.advance(1)
    filled.settle(filled.claim(), Outcome.done('"ok"'))
    job = inspection.job(job_id)
    assert [(one.run, one.attempt, one.outcome) for one in job.history] == [
        (1, 1, "failed"),
        (1, 2, "done"),
    ]
    first, last = job.history
    assert first.error.type == "OSError"
    assert "Traceback" in first.error.traceback
    assert last.error is None
    assert last.worker == job.row.worker
    assert last.ended_at_ms == job.row.finished_at_ms
    assert job.result == "ok"
    assert job.error is None


def test_requeued_success_stays_in_the_history(filled, inspection):
    job_id = filled.done(1)
    targets = [(filled.message_id(job_id), State.DONE)]
    filled.store.acting.act(Event.REQUEUE, targets, actor="me")
    assert [(one.run, one.outcome) for one in inspection.job(job_id).history] == [(1, "done")]
    filled.settle(filled.claim(), Outcome.done("2"))
    job = inspection.job(job_id)
    assert [(one.run, one.attempt, one.outcome) for one in job.history] == [
        (1, 1, "done"),
        (2, 1, "done"),
    ]
    assert job.result == 2
    assert [one.action for one in job.audit] == ["requeue"]


def test_error_of_a_job_has_the_traceback_of_the_attempt_that_left_it(filled, inspection):
    job = inspection.job(filled.dead("KeyError", "'a'"))
    assert (job.error.type, job.error.message) == ("KeyError", "'a'")
    assert job.error.traceback.endswith("KeyError: 'a'")


def test_operators_decision_has_no_traceback(filled, inspection):
    job_id = filled.failed()
    targets = [(filled.message_id(job_id), State.FAILED)]
    filled.store.acting.act(Event.FAIL, targets, actor="me", reason="enough")
    error = inspection.job(job_id).error
    assert (error.type, error.message, error.traceback) == ("FailedByOperator", "enough", None)


def test_arguments_are_decoded(filled, inspection):
    job = inspection.job(filled.publish(args=(1, "a"), kwargs={"b": [None]}))
    assert (job.arguments.args, job.arguments.kwargs) == ((1, "a"), {"b": [None]})
    assert not job.arguments.problem


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"body": b""}, "its body is empty"),
        ({"body": b"\xff"}, "its body is not UTF-8"),
        ({"headers": "[]"}, "it has no headers"),
        ({"headers": "nonsense"}, "its headers cannot be read"),
        ({"headers": "[" * 100_000}, "its headers cannot be read"),
    ],
)
def test_unreadable_body_is_told_and_hides_nothing_else(filled, inspection, changed, problem):
    job = inspection.job(filled.publish(**changed))
    assert (job.arguments.args, job.arguments.kwargs) == (None, None)
    assert job.arguments.problem == problem
    assert job.row.task == "tasks.add"


def test_large_body_is_limited_by_the_setting(filled, backend):
    job_id = filled.publish(args=("x" * 20_000,))
    small = Inspection(backend, settings=Settings(max_message_bytes=100))
    assert "limit is 100" in small.job(job_id).arguments.problem


def test_unreadable_result_is_none(filled, inspection):
    job_id = filled.publish()
    filled.settle(filled.claim(), Outcome.done("NaN"))
    assert inspection.job(job_id).result is None


def test_id_that_several_messages_share_shows_the_newest_and_names_the_others(filled, inspection):
    for number in range(3):
        filled.publish(args=(number,), job_id="same")
    job = inspection.job("same")
    assert job.arguments.args == (2,)
    newest = job.row.message_id
    assert job.others == (newest - 1, newest - 2)
    other = inspection.job(f"#{job.others[0]}")
    assert other.arguments.args == (1,)
    assert other.others == (newest, newest - 2)


@pytest.mark.parametrize("name", ["", "nope", "#", "#0", "#999", "#-1", "1", "#1e1", "'; --"])
def test_unknown_job_is_not_found(filled, inspection, name):
    filled.publish(job_id="known")
    with pytest.raises(JobNotFound):
        inspection.job(name)


def test_attempts_allowed_are_the_jobs_own_or_its_tasks_or_the_settings(filled, backend):
    looking = Inspection(
        backend,
        settings=Settings(task_max_attempts=7),
        max_attempts={"tasks.add": 3},
    )
    own = filled.publish(max_attempts=9)
    of_task, of_setting = filled.publish(), filled.publish(task="tasks.other")
    assert [looking.job(each).max_attempts for each in (own, of_task, of_setting)] == [9, 3, 7]


def test_attempts_include_the_one_that_runs(filled, inspection):
    job_id = filled.publish()
    delivery = filled.claim(start=False)
    assert inspection.job(job_id).row.attempts == 0
    filled.store.consumers.note_start(0, delivery.message_id, delivery.delivery, 0)
    assert inspection.job(job_id).row.attempts == 1
    assert inspection.job(job_id).history == ()


def test_dead_letters_of_one_mistake_make_one_group(filled, inspection, clock):
    for name in ("a", "b", "c"):
        clock.advance(1)
        newest = filled.dead(
            "FileNotFoundError", f"no file '{name}' after {ord(name)} s at 0x7f{name}"
        )
    filled.dead("ValueError", "7 is too many")
    first, second = inspection.dead_groups()
    assert (first.type, first.count, first.example) == ("FileNotFoundError", 3, newest)
    assert "…" in first.text
    assert "'a'" not in first.text
    assert first.tasks == ("tasks.add",)
    assert (second.type, second.text, second.count) == ("ValueError", "… is too many", 1)


def test_dead_groups_take_a_filter(filled, inspection):
    filled.dead("ValueError", "a", task="one")
    filled.dead("ValueError", "a", task="two")
    chosen = JobFilter(states=(State.PERMANENTLY_FAILED,), task="two")
    assert [group.tasks for group in inspection.dead_groups(chosen)] == [("two",)]


def test_queues_tell_how_many_workers_serve_them(filled, inspection, clock):
    filled.publish(queue="mail")
    clock.advance(3)
    filled.publish(queue="other")
    filled.store.consumers.register(name="w", kind="worker", queues=["mail"], slots=2)
    found = {queue.name: queue for queue in inspection.queues()}
    assert (found["mail"].pending, found["mail"].servers, found["mail"].oldest_pending_s) == (
        1,
        1,
        3,
    )
    assert (found["other"].pending, found["other"].servers) == (1, 0)


def test_workers_show_what_they_run(filled, inspection):
    job_id = filled.publish()
    filled.store.consumers.register(name="w", kind="worker", queues=["default"], slots=1)
    filled.claim()
    [worker] = inspection.workers()
    assert worker.row.is_known_alive
    assert [row.job_id for row in worker.jobs] == [job_id]


def test_jobs_with_arguments_are_all_jobs_of_a_task(filled, inspection):
    first = filled.done(args=("a.txt",))
    broken = filled.publish(body=b"")
    filled.publish(task="tasks.other")
    calls = list(inspection.jobs_with_arguments(task="tasks.add"))
    assert [(call.id, call.state, call.args, call.kwargs) for call in calls] == [
        (broken, "pending", (), {}),
        (first, "done", ("a.txt",), {}),
    ]


def test_broker_that_cannot_look_says_so():
    backend = open_backend(Settings(broker_url="memory://"))
    try:
        with pytest.raises(NotAvailable, match="not available on this broker"):
            Inspection(backend).stats()
    finally:
        backend.close()


def test_attempt_that_was_rejected_is_in_the_history(filled, inspection):
    job_id = filled.publish()
    filled.settle(filled.claim(), Outcome.dead(Fault("UnknownTask", "?"), cause="rejected"))
    [one] = inspection.job(job_id).history
    assert (one.outcome, one.error.type, one.error.traceback) == ("rejected", "UnknownTask", None)


# -- a million rows ---------------------------------------------------------------------------------


def test_page_that_ran_out_of_time_says_so_and_goes_on(filled, inspection, monkeypatch):
    from sqlqueue_transport import listing
    from tests.transport.rows import count_in_small_portions

    monkeypatch.setattr(listing, "BLOCK", 8)
    count_in_small_portions(filled.store)
    rare = filled.publish(task="tasks.rare")
    for _ in range(30):
        filled.publish()
    page = inspection.jobs(JobFilter(task="tasks.rare"), budget_s=0)
    assert (page.items, page.is_complete) == ((), False)
    pages = [page]
    while page.next is not None:
        page = inspection.jobs(JobFilter(task="tasks.rare"), cursor=page.next, budget_s=0)
        pages.append(page)
    assert [row.job_id for one in pages for row in one.items] == [rare]
    assert page.is_complete
    assert len(pages) > 2
    assert len(inspection.jobs(JobFilter(task="tasks.rare")).items) == 1


def test_frozen_page_is_refreshed_by_its_ids_and_told_what_is_newer(filled, inspection):
    ids = [filled.message_id(filled.publish()) for _ in range(3)]
    done = JobFilter(states=(State.DONE,))
    assert inspection.newer(JobFilter(), ids[-1]) == 0
    filled.settle(filled.claim(), Outcome.done())
    filled.done(queue="other")
    for _ in range(3):
        filled.publish()
    assert [row.state.value for row in inspection.again(ids[::-1])] == [
        "pending",
        "pending",
        "done",
    ]
    assert inspection.newer(JobFilter(), ids[-1]) == 4
    assert inspection.newer(done, ids[-1]) == 1
    assert inspection.newer(JobFilter(task="tasks.add"), ids[-1], most=2) == 2


def test_count_is_exact_for_states_and_limited_for_the_rest(filled, inspection):
    for _ in range(5):
        filled.publish()
    filled.done(queue="other")
    assert inspection.count(JobFilter(states=(State.PENDING,)), most=2) == Counted(5, True)
    assert inspection.count(JobFilter(queue="other")) == Counted(1, True)
    assert inspection.count(JobFilter(task="tasks.add"), most=2) == Counted(2, False)
    assert inspection.count(JobFilter(task="tasks.add")) == Counted(6, True)


def test_group_of_dead_letters_is_found_again_job_by_job(filled, inspection):
    ids = [filled.dead("KeyError", f"no {number} in 'x{number}'") for number in range(3)]
    filled.dead("KeyError", "another")
    filled.dead("OSError", "no 1 in 'x1'")
    [group, *_] = inspection.dead_groups()
    assert group.count == 3
    assert [row.job_id for row in inspection.jobs_of_group(group)] == ids[::-1]
    assert [*inspection.jobs_of_group(group, JobFilter(queue="elsewhere"))] == []


def test_failed_attempts_of_a_window_are_grouped_whatever_became_of_their_jobs(
    filled, inspection, clock
):
    filled.failed("OSError", "disk 1 full")
    clock.advance(100)
    again = filled.failed("OSError", "disk 2 full", retry_in_s=0)
    newest = filled.dead("OSError", "disk 3 full", queue="other")
    filled.dead("ValueError", "no")
    groups = inspection.errors_since(60)
    assert [(one.type, one.text, one.count, one.example) for one in groups] == [
        ("OSError", "disk … full", 2, newest),
        ("ValueError", "no", 1, groups[1].example),
    ]
    assert again != newest
    assert sum(one.count for one in inspection.errors_since(200)) == 4
    assert len(inspection.errors_since(200, most=1)) == 1


def test_active_jobs_are_those_that_run_the_longest_running_first(filled, inspection, clock):
    ids = [filled.publish() for _ in range(3)]
    filled.claim()
    clock.advance(5)
    filled.claim()
    assert [row.job_id for row in inspection.active()] == ids[:2]
    assert [row.job_id for row in inspection.active(most=1)] == ids[:1]


def test_audit_of_all_jobs_and_queues_is_paged(filled, inspection):
    ids = [filled.publish() for _ in range(3)]
    for job_id in ids:
        message = (filled.message_id(job_id), State.PENDING)
        filled.store.acting.act(Event.CANCEL, [message], actor="ann", reason="why")
    filled.store.topology.declare_queue("q")
    filled.store.pausing.pause("q", actor="ben")
    page = inspection.audit(limit=3)
    assert [(one.actor, one.action, one.job_id) for one in page.items] == [
        ("ben", "pause queue q", None),
        ("ann", "cancel", ids[2]),
        ("ann", "cancel", ids[1]),
    ]
    rest = inspection.audit(limit=3, cursor=page.next)
    assert [one.job_id for one in rest.items] == ids[:1]
    assert rest.next is None


def test_size_is_that_of_the_file_its_log_and_the_disk(filled, inspection):
    size = inspection.size()
    assert size.file_bytes == filled.path.stat().st_size
    assert size.log_bytes == filled.path.with_name("q.db-wal").stat().st_size
    assert size.free_bytes > 0
