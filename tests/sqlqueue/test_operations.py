"""What operators do to jobs: chosen first, then changed only if nothing has changed meanwhile."""

from __future__ import annotations

import pytest

from sqlqueue.errors import QueueNotFound
from sqlqueue.inspection import Inspection, JobFilter
from sqlqueue.operations import Action, Operations, QueueChange
from sqlqueue_transport import Outcome
from sqlqueue_transport.lifecycle import State
from tests.cli.filling import Filled
from tests.support import FakeClock


@pytest.fixture
def filled(tmp_path):
    filled = Filled(tmp_path / "q.db", clock=FakeClock())
    yield filled
    filled.close()


@pytest.fixture
def inspection(filled):
    backend = filled.backend()
    yield Inspection(backend)
    backend.close()


@pytest.fixture
def operations(inspection):
    return Operations(inspection)


def one_of_each(filled) -> dict[str, str]:
    """Return a job id for each state that can be reached without waiting."""
    cancelled = filled.publish()
    message = filled.message_id(cancelled)
    from sqlqueue_transport.lifecycle import Event

    filled.store.acting.act(Event.CANCEL, [(message, State.PENDING)], actor="test")
    ids = {
        "cancelled": cancelled,
        "done": filled.done(),
        "permanently_failed": filled.dead(),
        "failed": filled.failed(),
        "scheduled": filled.publish(due_in_s=600),
    }
    ids["processing"] = filled.publish()
    filled.claim()
    ids["pending"] = filled.publish()
    return ids


def apply(operations, action, choice, **more):
    return operations.apply(action, choice.targets, actor="me@here via test", **more)


def test_requeue_by_filter_takes_dead_letters_only(filled, operations):
    ids = one_of_each(filled)
    choice = operations.choose(Action.REQUEUE, chosen=JobFilter(task="tasks.add"))
    assert [target.job_id for target in choice.targets] == [ids["permanently_failed"]]


@pytest.mark.parametrize("action", [Action.CANCEL, Action.FAIL])
def test_cancel_and_fail_by_filter_leave_running_and_ended_jobs_alone(filled, operations, action):
    ids = one_of_each(filled)
    choice = operations.choose(action, chosen=JobFilter(queue="default"))
    found = {target.job_id for target in choice.targets}
    assert found == {ids[state] for state in ("pending", "scheduled", "failed")}


@pytest.mark.parametrize(
    ("action", "legal"),
    [
        (Action.REQUEUE, {"done", "failed", "permanently_failed", "cancelled"}),
        (Action.CANCEL, {"pending", "scheduled", "failed"}),
        (Action.FAIL, {"pending", "scheduled", "failed", "processing"}),
        (Action.TERMINATE, {"pending", "scheduled", "failed", "processing"}),
    ],
)
def test_jobs_by_id_are_taken_in_every_state_that_allows_it(filled, operations, action, legal):
    filled.store.consumers.register(name="w/1", kind="child")
    ids = one_of_each(filled)
    choice = operations.choose(action, names=list(ids.values()))
    assert {target.job_id for target in choice.targets} == {ids[state] for state in legal}
    assert {target.job_id for target in choice.unfit} == {
        ids[state] for state in ids.keys() - legal
    }
    report = apply(operations, action, choice)
    assert (report.changed, report.skipped) == (len(legal), 0)


def test_filter_with_a_state_takes_that_state(filled, operations):
    ids = one_of_each(filled)
    choice = operations.choose(Action.REQUEUE, chosen=JobFilter(states=(State.DONE,)))
    assert [target.job_id for target in choice.targets] == [ids["done"]]


def test_empty_filter_never_means_everything(filled, operations):
    filled.publish()
    for chosen in (None, JobFilter()):
        with pytest.raises(ValueError, match="every job"):
            operations.choose(Action.CANCEL, chosen=chosen)


def test_ids_without_a_job_are_told(filled, operations):
    known = filled.dead()
    choice = operations.choose(Action.REQUEUE, names=["nope", known, "#999"])
    assert choice.unknown == ("nope", "#999")
    assert [target.job_id for target in choice.targets] == [known]


def test_id_given_twice_is_one_job(filled, operations):
    known = filled.dead()
    name = f"#{filled.message_id(known)}"
    choice = operations.choose(Action.REQUEUE, names=[known, known, name])
    assert len(choice.targets) == 1


def test_shared_id_means_the_newest_message(filled, operations, inspection):
    filled.dead(job_id="same")
    filled.dead(job_id="same")
    apply(operations, Action.REQUEUE, operations.choose(Action.REQUEUE, names=["same"]))
    newest, older = inspection.message_ids("same")
    assert inspection.job(f"#{newest}").row.state is State.PENDING
    assert inspection.job(f"#{older}").row.state is State.PERMANENTLY_FAILED


def test_what_changed_since_it_was_chosen_is_skipped(filled, operations, inspection):
    first, second = filled.publish(), filled.publish()
    choice = operations.choose(Action.CANCEL, names=[first, second])
    filled.settle(filled.claim(), Outcome.done("1"))
    report = apply(operations, Action.CANCEL, choice)
    assert (report.changed, report.skipped) == (1, 1)
    after = {change.target.job_id: change.after for change in report.changes}
    assert after == {first: None, second: State.CANCELLED}
    assert inspection.job(first).row.state is State.DONE


def test_requeue_keeps_the_history_counts_anew_and_is_audited(filled, operations, inspection):
    job_id = filled.dead()
    choice = operations.choose(Action.REQUEUE, names=[job_id])
    apply(operations, Action.REQUEUE, choice, reason="disk was full")
    job = inspection.job(job_id)
    assert (job.row.state, job.row.attempts, job.row.run) == (State.PENDING, 0, 2)
    assert [(one.run, one.outcome) for one in job.history] == [(1, "failed")]
    assert job.error is None
    [audit] = job.audit
    assert (audit.actor, audit.action, audit.reason) == (
        "me@here via test",
        "requeue",
        "disk was full",
    )
    assert (audit.before, audit.after) == ("permanently_failed", "pending")


def test_failed_job_shows_the_reason_as_its_error(filled, operations, inspection):
    for reason, shown in ((None, "no reason given"), ("obsolete", "obsolete")):
        job_id = filled.publish()
        choice = operations.choose(Action.FAIL, names=[job_id])
        apply(operations, Action.FAIL, choice, reason=reason)
        job = inspection.job(job_id)
        assert job.row.state is State.PERMANENTLY_FAILED
        assert (job.error.type, job.error.message) == ("FailedByOperator", shown)


def test_failing_a_running_job_takes_its_lease_away(filled, operations):
    job_id = filled.publish()
    delivery = filled.claim()
    apply(operations, Action.FAIL, operations.choose(Action.FAIL, names=[job_id]))
    assert not filled.settle(delivery, Outcome.done("1"))


def test_many_jobs_go_in_several_transactions(filled, operations):
    for _ in range(1001):
        filled.publish()
    choice = operations.choose(Action.CANCEL, chosen=JobFilter(task="tasks.add"))
    before = filled.store.database.write_transactions
    report = apply(operations, Action.CANCEL, choice)
    assert report.changed == 1001
    assert filled.store.database.write_transactions - before == 3


# -- running jobs, and queues -------------------------------------------------------------------------


@pytest.fixture
def worker(filled):
    """Let the claims of the file be those of a worker of ours, and not of some program."""
    filled.store.consumers.register(name="w/1", kind="child")


def test_terminate_cancels_what_waits_and_asks_what_runs(filled, operations, worker):
    ids = one_of_each(filled)
    choice = operations.choose(Action.TERMINATE, chosen=JobFilter(queue="default"))
    found = {target.job_id: target.state for target in choice.targets}
    assert set(found) == {ids[state] for state in ("pending", "scheduled", "failed", "processing")}
    report = apply(operations, Action.TERMINATE, choice, force_after_s=5, reason="wrong month")
    assert (report.changed, report.asked, report.skipped, report.foreign) == (4, 1, 0, 0)
    (asked,) = [change for change in report.changes if change.after is State.PROCESSING]
    assert (asked.target.job_id, asked.holder) == (ids["processing"], "child")
    row = filled.store.reading.job(asked.target.message_id).row
    assert row.kill_at_ms - row.stop_asked_at_ms == 5000


def test_terminate_asks_nobody_who_is_no_worker_of_ours(filled, operations):
    job_id = filled.publish()
    filled.claim()
    choice = operations.choose(Action.TERMINATE, names=[job_id])
    report = apply(operations, Action.TERMINATE, choice)
    assert (report.changed, report.skipped, report.foreign) == (0, 1, 1)


def test_cancel_alone_does_not_touch_what_runs(filled, operations, worker):
    job_id = filled.publish()
    filled.claim()
    choice = operations.choose(Action.CANCEL, names=[job_id])
    assert (choice.targets, [one.job_id for one in choice.unfit]) == ((), [job_id])


def test_queues_are_paused_and_resumed_and_what_was_so_before_is_told(filled, operations):
    filled.publish(queue="mail")
    assert operations.pause(["mail"], actor="me") == [QueueChange("mail", changed=True)]
    assert operations.pause(["mail"], actor="me") == [QueueChange("mail", changed=False)]
    assert operations.resume(["mail"], actor="me") == [QueueChange("mail", changed=True)]


@pytest.mark.parametrize("action", ["pause", "resume"])
def test_a_queue_nobody_knows_is_an_error_before_anything_is_changed(
    filled, operations, inspection, action
):
    filled.publish(queue="mail")
    with pytest.raises(QueueNotFound, match=r"no queue 'mial'\. Did you mean 'mail'"):
        getattr(operations, action)(["mail", "mial"], actor="me")
    assert inspection.queues()[0].pause is None


def test_group_of_dead_letters_is_requeued_and_nothing_else(filled, operations, inspection):
    ids = [filled.dead("KeyError", f"no {number}") for number in range(3)]
    other = filled.dead("OSError", "no 1")
    [group] = [one for one in inspection.dead_groups() if one.type == "KeyError"]
    choice = operations.choose(Action.REQUEUE, group=group)
    assert [one.job_id for one in choice.targets] == ids[::-1]
    apply(operations, Action.REQUEUE, choice)
    assert [one.type for one in inspection.dead_groups()] == ["OSError"]
    narrowed = operations.choose(Action.REQUEUE, chosen=JobFilter(queue="x"), group=group)
    assert narrowed.targets == ()
    assert inspection.job(other).row.state is State.PERMANENTLY_FAILED
