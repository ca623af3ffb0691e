"""What a dialog asks and what a report says: how many, which, and what becomes of them."""

from __future__ import annotations

import pytest

from sqlqueue.consoles.admin.questions import (
    choice_of,
    legal_states,
    narrowed,
    question_of,
    summary,
    why_not,
)
from sqlqueue.inspection import Inspection, JobFilter, State
from sqlqueue.operations import Action, Change, Choice, Report, Target


def targets(count: int, state: State = State.PERMANENTLY_FAILED) -> tuple[Target, ...]:
    return tuple(Target(n, f"job-{n}", "tasks.add", "default", state) for n in range(count))


def test_question_names_count_states_and_samples():
    question = question_of(Action.REQUEUE, Choice(targets(7)))
    assert question.title == "Requeue: 7 jobs"
    assert question.lines[0] == "7 permanently failed"
    assert question.samples == ("job-0", "job-1", "job-2", "job-3", "job-4")
    assert not question.asks_force


def test_twenty_jobs_need_no_typing_and_twenty_one_do():
    assert question_of(Action.FAIL, Choice(targets(20))).is_answered_by("")
    question = question_of(Action.FAIL, Choice(targets(21)))
    assert question.typed == "21"
    assert not question.is_answered_by("")
    assert not question.is_answered_by("20")
    assert question.is_answered_by(" 21 ")


def test_typed_thousands_may_be_parted():
    question = question_of(Action.FAIL, Choice(targets(1234)))
    assert question.is_answered_by("1,234")
    assert question.is_answered_by("1234")


def test_question_tells_what_is_left_out():
    choice = Choice(targets(1), unfit=targets(2, State.PROCESSING))
    assert "2 jobs left out, which are processing." in question_of(Action.REQUEUE, choice).lines


@pytest.mark.parametrize(
    ("action", "states", "refusal"),
    [
        (Action.REQUEUE, set(), "Tick jobs first"),
        (Action.REQUEUE, {State.DONE, State.PENDING}, ""),
        (Action.TERMINATE, {State.PENDING}, "Terminate takes processing"),
        (Action.CANCEL, {State.PROCESSING, State.DONE}, "ticked is processing or done"),
    ],
)
def test_button_says_why_it_cannot_be_used(action, states, refusal):
    found = why_not(action, states)
    assert refusal in found
    assert bool(found) == bool(refusal)


def test_every_state_but_none_has_a_button_that_takes_it():
    assert {state for action in Action for state in legal_states(action)} == {*State}


def test_terminate_leaves_alone_what_does_not_run():
    assert legal_states(Action.TERMINATE) == (State.PROCESSING,)
    assert narrowed(Action.TERMINATE, JobFilter()) == JobFilter(states=(State.PROCESSING,))


def test_all_matching_without_states_means_where_nothing_can_be_lost():
    everything = JobFilter(task="tasks.add")
    assert narrowed(Action.REQUEUE, everything) == JobFilter(
        task="tasks.add", states=(State.PERMANENTLY_FAILED,)
    )


def test_all_matching_keeps_only_states_that_the_action_takes():
    chosen = JobFilter(states=(State.DONE, State.PROCESSING))
    assert narrowed(Action.REQUEUE, chosen) == JobFilter(states=(State.DONE,))
    assert narrowed(Action.CANCEL, chosen) is None
    assert narrowed(Action.CANCEL, JobFilter(stalled=True)) is None
    assert narrowed(Action.FAIL, JobFilter(stalled=True)) == JobFilter(stalled=True)


def test_ticked_jobs_are_meant_in_the_state_they_were_shown_in(filled):
    job_id = filled.dead()
    filled.publish()
    backend = filled.backend()
    rows = Inspection(backend).jobs(JobFilter()).items
    choice = choice_of(Action.REQUEUE, rows)
    backend.close()
    assert [(one.job_id, one.state) for one in choice.targets] == [
        (job_id, State.PERMANENTLY_FAILED)
    ]
    assert [one.state for one in choice.unfit] == [State.PENDING]


def test_report_tells_changed_from_skipped():
    one, two = targets(2)
    report = Report((Change(one, State.PENDING), Change(two, None)))
    assert summary(Action.REQUEUE, report) == "1 requeued, 1 skipped: their state had changed."


def test_report_tells_who_is_only_asked_and_who_cannot_be():
    one, two, three = targets(3, State.PROCESSING)
    report = Report(
        (
            Change(one, State.PROCESSING, "worker"),
            Change(two, None, "client"),
            Change(three, None),
        )
    )
    text = summary(Action.TERMINATE, report, force_after_s=10)
    assert text.startswith("1 asked to stop, 1 skipped: their state had changed, 1 not asked")
    assert "1 cannot be killed for it" in text
