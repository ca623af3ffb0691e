"""What the page of a job says, before it is drawn."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator

import pytest

from sqlqueue import SqlQueue
from sqlqueue.consoles.admin import details
from sqlqueue.errors import TaskDefinitionError
from sqlqueue.inspection import Arguments, Inspection, Job
from sqlqueue.operations import Action
from sqlqueue_transport import Fault, Outcome
from tests.cli.filling import HOSTILE, RAW, Filled
from tests.support import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def filled(tmp_path, clock) -> Iterator[Filled]:
    filled = Filled(tmp_path / "queue.db", clock=clock)
    yield filled
    filled.close()


@pytest.fixture
def job_of(filled, clock) -> Iterator[Callable[[str], Job]]:
    backend = filled.backend()
    yield Inspection(backend, clock=clock).job
    backend.close()


def facts(job: Job, clock: FakeClock) -> dict[str, str]:
    return dict(details.facts(job, now_ms=clock.wall, utc=True))


def test_facts_of_a_running_job_tell_waiting_running_and_lease(filled, job_of, clock):
    job_id = filled.publish(max_attempts=3)
    clock.advance(5)
    filled.claim(lease_s=60)
    clock.advance(7)
    found = facts(job_of(job_id), clock)
    assert found["Waited"] == "5.0s"
    assert found["Ran"] == "7.0s"
    assert found["Lease"] == "53.0s left"
    assert found["Attempts"] == "1 of 3"
    assert "Finished" not in found


def test_waiting_is_reckoned_from_when_a_job_is_due(filled, job_of, clock):
    job_id = filled.publish(due_in_s=100)
    clock.advance(30)
    assert facts(job_of(job_id), clock)["Waited"] == "0ms"


def test_timeline_has_a_line_for_each_attempt_in_its_place(filled, job_of, clock):
    job_id = filled.publish(max_attempts=5)
    for _ in range(2):
        delivery = filled.claim()
        clock.advance(10)
        filled.settle(delivery, Outcome.retry(Fault("OSError", "full", "Traceback …"), in_s=20))
        clock.advance(20)
    filled.claim()
    clock.advance(20)
    found = details.attempts(job_of(job_id), now_ms=clock.wall, utc=True)
    assert [(one.label, one.outcome, one.took) for one in found] == [
        ("1", "failed", "10.0s"),
        ("2", "failed", "10.0s"),
        ("3", "running", "20.0s"),
    ]
    assert [(one.from_part, one.to_part) for one in found] == [(0, 0.125), (0.375, 0.5), (0.75, 1)]
    assert found[0].error == "OSError: full"
    assert found[0].traceback == "Traceback …"


def test_success_is_the_last_line_of_the_timeline(filled, job_of, clock):
    job_id = filled.done()
    [one] = details.attempts(job_of(job_id), now_ms=clock.wall, utc=True)
    assert (one.label, one.outcome) == ("1", "done")


def test_hostile_texts_are_harmless_in_every_piece_of_html(filled, job_of, clock):
    job_id = filled.dead(
        "<script>alert(1)</script>" + HOSTILE,
        HOSTILE,
        task="<img src=x>" + HOSTILE,
        args=(HOSTILE,),
    )
    job = job_of(job_id)
    drawn = details.facts_html(details.facts(job, now_ms=clock.wall, utc=True))
    drawn += details.timeline_html(details.attempts(job, now_ms=clock.wall, utc=True))
    assert "<script>" not in drawn
    assert "<img" not in drawn
    everything = drawn + details.arguments_text(job.arguments)
    assert not any(raw in everything for raw in RAW)


def test_arguments_are_told_as_they_were_given():
    assert details.arguments_text(Arguments((), {})) == ""
    assert details.arguments_text(Arguments((1,), {})) == "[\n  1\n]"
    assert '"kwargs"' in details.arguments_text(Arguments((1,), {"b": 2}))


def test_long_arguments_are_cut_with_a_note_and_long_files_keep_their_end():
    assert details.pretty("x" * 30_000).endswith("more characters")
    shown = details.tail("begin" + "x" * 30_000 + "end\n")
    assert shown.startswith("… ")
    assert shown.endswith("end")
    assert len(shown) < 21_000


def test_command_to_copy_does_what_the_button_does(filled, job_of):
    job_id = filled.dead()
    job = job_of(job_id)
    assert details.legal_actions(job.row) == (Action.REQUEUE,)
    assert details.commands(job, db="/srv/my queue.db") == (
        f"sqlqueue requeue {job_id} --db '/srv/my queue.db'"
    )


def test_running_job_can_be_failed_and_terminated_and_nothing_else(filled, job_of):
    job_id = filled.publish()
    filled.claim()
    lines = details.commands(job_of(job_id), db="").split("\n")
    assert lines == [f"sqlqueue fail {job_id}", f"sqlqueue cancel {job_id} --terminate"]


def test_command_names_the_message_where_the_id_means_another_or_cannot_be_typed(filled, job_of):
    filled.publish(job_id="twice")
    old = filled.message_id("twice")
    filled.publish(job_id="twice")
    assert f"'#{old}'" in details.command_of(Action.CANCEL, job_of(f"#{old}"), db="")
    assert "twice" in details.command_of(Action.CANCEL, job_of("twice"), db="")
    for job_id in ("--yes", HOSTILE):
        filled.publish(job_id=job_id)
        words = shlex.split(details.command_of(Action.CANCEL, job_of(job_id), db=""))
        assert words == ["sqlqueue", "cancel", f"#{filled.message_id(job_id)}"]


def test_application_says_what_it_knows_of_its_jobs(filled, job_of):
    app = SqlQueue("shop")

    @app.job_view("Invoice", task="shop.pay")
    def invoice(call):
        return f"{call.state}: {call.args[0]}{HOSTILE}"

    @app.job_view("Nothing", task="shop.pay")
    def nothing(call):
        return None

    @app.job_view("Broken", task="shop.pay")
    def broken(call):
        raise ValueError(HOSTILE)

    paid = job_of(filled.publish(task="shop.pay", args=(7,)))
    found = dict(details.views(app, paid))
    assert [*found] == ["Invoice", "Broken"]
    assert found["Invoice"].startswith("pending: 7")
    assert found["Broken"].startswith("the view itself failed: ValueError")
    assert not any(raw in text for text in found.values() for raw in RAW if raw != "\r")
    assert details.views(app, job_of(filled.publish(task="shop.other"))) == ()
    assert details.views(None, paid) == ()


def test_two_views_of_a_task_cannot_have_one_title():
    app = SqlQueue("shop")
    app.job_view("Invoice", task="shop.pay")(lambda call: None)
    app.job_view("Invoice", task="shop.refund")(lambda call: None)
    with pytest.raises(TaskDefinitionError, match="rename one"):
        app.job_view("Invoice", task="shop.pay")(lambda call: None)
