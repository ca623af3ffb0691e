"""What every backend does alike, and what one without a store answers instead.

Each test runs on our file, on Kombu's own `memory://` and on a real Redis; other brokers join by the
fixture.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from freezegun import freeze_time
from kombu.transport import memory

from sqlqueue import NotAvailable, SqlQueue
from sqlqueue.backend import (
    Backend,
    Inspecting,
    Outcome,
    Publication,
    SqliteBackend,
    TickAnswer,
    TickOf,
    open_backend,
)
from sqlqueue.config import resolve, set_command_line
from sqlqueue.envelope import build
from sqlqueue.kombu_backend import KombuBackend
from sqlqueue.worker.solo import run_solo
from sqlqueue_transport.channel import MAX_ATTEMPTS_PROPERTY
from sqlqueue_transport.errors import WorkerSwept
from sqlqueue_transport.lifecycle import Event, State
from sqlqueue_transport.messages import Fault
from sqlqueue_transport.reading import JobFilter
from tests.contract.conftest import REDIS, Broker
from tests.support import wait_until

FAULT = Fault("ValueError", "boom")
QUEUES = ("default", "mail")
# One millisecond, and one for freezegun, whose time.time_ns() is a float's and may be just below.
A_MOMENT = timedelta(milliseconds=2)


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("SQLQUEUE_")]:
        monkeypatch.delenv(name)
    set_command_line({})
    # Kombu keeps the queues of memory:// in the class, for the whole process.
    monkeypatch.setattr(memory.Channel, "queues", {})
    monkeypatch.setattr(memory.Transport, "global_state", type(memory.Transport.global_state)())


@pytest.fixture(params=["sqlqueue:///queue.db", "memory://", REDIS])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "redis":
        running: Broker = request.getfixturevalue("redis")
        return running.url
    return request.param


@contextlib.contextmanager
def consuming(url: str, **settings: Any) -> Iterator[Any]:
    opened = open_backend(resolve({"broker_url": url, **settings}).settings)
    opened.register(name="w", kind="worker", queues=QUEUES, slots=1)
    try:
        yield opened
    finally:
        opened.close()
        opened.close()  # harmless


@pytest.fixture
def backend(url: str) -> Iterator[Backend]:
    """Be a registered consumer of two queues, on each broker in turn."""
    with consuming(url) as opened:
        yield opened


@pytest.fixture
def stored() -> Iterator[SqliteBackend]:
    """Be one on the broker with a store."""
    with consuming("sqlqueue:///queue.db") as opened:
        yield opened


@pytest.fixture
def bare() -> Iterator[KombuBackend]:
    """Be one on a broker without."""
    with consuming("memory://") as opened:
        yield opened


def call(number: int = 0, queue: str = "default", **changes: Any) -> Publication:
    built = build(
        "t",
        [number],
        {},
        job_id=f"job-{number}",
        eta_ms=changes.pop("eta_ms", None),
        expires_ms=changes.pop("expires_ms", None),
    )
    return Publication(built, queue, **changes)


def take(backend: Backend, *settlements: Any, queues: Any = QUEUES) -> Any:
    """Settle and claim one; return it, or None."""
    found, refused = backend.claim(queues, 1, settlements)
    assert refused == []
    return found[0] if found else None


def taken_id(taken: Any) -> str:
    return str(taken.headers["id"])


# --- alike ----------------------------------------------------------------------------------------


def test_what_is_published_is_claimed_once_and_whole(backend):
    assert backend.publish([call(1, max_attempts=3)]) is TickAnswer.TAKEN
    taken = take(backend)
    assert taken.headers["task"] == "t"
    assert taken.headers["id"] == "job-1"
    assert taken.body == b'[[1],{},{"callbacks":null,"errbacks":null,"chain":null,"chord":null}]'
    assert (taken.content_type, taken.content_encoding) == ("application/json", "utf-8")
    assert (taken.queue, taken.attempts, taken.max_attempts, taken.delivery) == ("default", 0, 3, 1)
    assert take(backend) is None


def test_several_are_published_in_order_and_claimed_first_in_first_out(backend):
    backend.publish([call(number) for number in range(3)])
    found, _ = backend.claim(QUEUES, 2, [])
    assert [taken_id(one) for one in found] == ["job-0", "job-1"]
    assert taken_id(take(backend)) == "job-2"


def test_publishing_nothing_is_no_error(backend):
    assert backend.publish([]) is TickAnswer.TAKEN
    assert take(backend) is None


def test_queues_are_asked_in_the_order_given_and_no_other_is(backend):
    backend.publish([call(1, "default"), call(2, "mail"), call(3, "other")])
    assert taken_id(take(backend, queues=("mail", "default"))) == "job-2"
    assert taken_id(take(backend, queues=("mail", "default"))) == "job-1"
    assert take(backend, queues=("mail", "default")) is None


def test_a_limit_of_zero_settles_and_takes_nothing(backend):
    backend.publish([call(1), call(2)])
    first = take(backend)
    assert backend.claim(QUEUES, 0, [(first, Outcome.done("1"))]) == ([], [])
    assert taken_id(take(backend)) == "job-2"


def test_a_done_message_does_not_come_again(backend):
    backend.publish([call(1), call(2)])
    first = take(backend)
    second = take(backend, (first, Outcome.done("1")))
    assert taken_id(second) == "job-2"
    assert backend.settle([(second, Outcome.done(None))]) == []
    assert backend.unfinished_since_ms(QUEUES) is None


def test_a_cancelled_message_does_not_come_again(backend):
    backend.publish([call(1)])
    assert backend.settle([(take(backend), Outcome.cancelled(FAULT))]) == []
    assert take(backend) is None
    assert backend.unfinished_since_ms(QUEUES) is None


def test_a_running_job_of_which_nobody_wants_anything_goes_on_and_may_say_how_far_it_is(backend):
    backend.publish([call(1)])
    taken = take(backend)
    assert backend.stops_asked([taken]) == set()
    assert backend.note_progress(taken, 1, 2, "half") is True
    assert backend.paused() == {}


def test_a_retried_message_comes_again_after_its_wait_with_one_attempt_more(backend):
    with freeze_time("2026-11-22T12:00:00Z") as frozen:
        backend.publish([call(1, max_attempts=3, priority=4)])
        assert take(backend, (take(backend), Outcome.retry(FAULT, in_s=0.5))) is None
        frozen.tick(timedelta(milliseconds=499))
        assert take(backend) is None
        assert backend.unfinished_since_ms(QUEUES) is not None
        frozen.tick(A_MOMENT)
        again = take(backend)
    assert taken_id(again) == "job-1"
    assert (again.attempts, again.max_attempts, again.queue) == (1, 3, "default")
    assert b"[[1]," in again.body


def test_a_dead_letter_does_not_come_again(backend):
    backend.publish([call(1)])
    assert take(backend, (take(backend), Outcome.dead(FAULT))) is None
    assert backend.unfinished_since_ms(QUEUES) is None


def test_a_released_message_comes_again_at_once_with_no_attempt_more(backend):
    backend.publish([call(1)])
    first = take(backend)
    assert backend.settle([(first, Outcome.release())]) == []
    assert take(backend).attempts == 0


def test_a_future_eta_is_held_to_the_millisecond(backend):
    with freeze_time("2026-11-22T12:00:00Z") as frozen:
        now = datetime.now(timezone.utc)
        backend.publish([call(1, eta_ms=round(now.timestamp() * 1000) + 250), call(2)])
        first = take(backend)
        assert taken_id(first) == "job-2"
        frozen.tick(timedelta(milliseconds=249))
        assert take(backend, (first, Outcome.done())) is None
        assert backend.unfinished_since_ms(QUEUES) is not None
        frozen.tick(A_MOMENT)
        assert taken_id(take(backend)) == "job-1"


def test_what_has_expired_is_never_handed_out(backend):
    with freeze_time("2026-11-22T12:00:00Z") as frozen:
        now_ms = round(datetime.now(timezone.utc).timestamp() * 1000)
        backend.publish([call(1, expires_ms=now_ms + 100), call(2)])
        # Also where it was due only after it had expired.
        backend.publish([call(3, eta_ms=now_ms + 50, expires_ms=now_ms + 60)])
        frozen.tick(timedelta(milliseconds=100))
        assert taken_id(take(backend)) == "job-2"
        assert take(backend) is None


def test_leaving_gives_back_what_was_not_settled(backend):
    later_ms = round(datetime.now(timezone.utc).timestamp() * 1000) + 60_000
    backend.publish([call(1), call(2, eta_ms=later_ms)])
    found, _ = backend.claim(QUEUES, 2, [])
    assert [taken_id(one) for one in found] == ["job-1"]
    if not isinstance(backend, SqliteBackend):  # a plain broker does it when we disconnect
        backend.settle([(found[0], Outcome.release())])
    backend.leave()
    backend.register(name="w", kind="worker", queues=QUEUES, slots=1)
    first = take(backend)
    assert taken_id(first) == "job-1"
    backend.settle([(first, Outcome.done())])
    assert backend.unfinished_since_ms(QUEUES) is not None


def test_a_lease_can_be_extended_while_it_lasts(backend):
    backend.publish([call(1)])
    assert backend.extend(take(backend), 60.0) is True


def test_a_wait_says_that_there_may_be_work_where_there_is(backend):
    backend.publish([call(1)])
    assert backend.wait(QUEUES, 0.01) is True


def test_starts_ends_and_signs_of_life_are_noted_or_ignored(backend):
    backend.publish([call(1)])
    taken = take(backend)
    backend.beat()
    backend.note_start(0, taken, 5.0, 5)
    assert backend.settle([(taken, Outcome.done())]) == []
    backend.note_end(0)
    backend.interrupt()


def test_a_message_that_lies_about_itself_is_still_handed_out(backend):
    # The consumer must get hold of it to put it to the dead letters.
    headers = {"retries": "many", "eta": "soon", "expires": ["never"]}
    backend._publisher._producer.publish(
        b"\xff",
        routing_key="default",
        headers=headers,
        content_type="text/plain",
        content_encoding="binary",
    )
    taken = take(backend)
    assert (taken.attempts, taken.body, taken.headers.get("id")) == (0, b"\xff", None)
    assert take(backend, (taken, Outcome.dead(FAULT, cause="rejected"))) is None


@pytest.mark.parametrize("lie", ["many", -1, 1.5, True, None])
def test_a_plain_broker_takes_no_count_that_is_none(bare, lie):
    bare._publisher._producer.publish(
        "[[],{},{}]",
        routing_key="default",
        headers={"task": "t", "id": "j", "retries": lie},
        content_type="application/json",
        content_encoding="utf-8",
        **{MAX_ATTEMPTS_PROPERTY: lie},
    )
    taken = take(bare)
    assert (taken.attempts, taken.max_attempts) == (0, None)


def test_connection_errors_can_be_caught(backend):
    assert all(issubclass(one, BaseException) for one in backend.connection_errors)


# --- a worker -------------------------------------------------------------------------------------


@pytest.fixture
def app(url: str) -> Iterator[SqlQueue]:
    made = SqlQueue("contract", broker_url=url)
    yield made
    made.close()


def test_a_solo_worker_runs_a_job_through_a_retry_and_a_countdown(app):
    started = []

    @app.task(name="flaky", bind=True)
    def flaky(self, x):
        started.append((x, self.request.attempt, self.request.max_attempts))
        if self.request.attempt == 1:
            self.retry(countdown=0.02)

    flaky.delay(1)
    flaky.apply_async([2], countdown=0.05)
    code = run_solo(app, name="w", backend=app.backend, handle_signals=False, burst=True)
    assert code == 0
    assert sorted(started) == [(1, 1, 5), (1, 2, 5), (2, 1, 5), (2, 2, 5)]
    assert app.backend.unfinished_since_ms(app.queues) is None


def test_a_solo_worker_ends_a_job_that_always_fails_at_max_attempts(app, caplog):
    started = []

    @app.task(name="hopeless", max_attempts=3, retry_backoff=0.001)
    def hopeless():
        started.append(1)
        raise ValueError("boom")

    hopeless.delay()
    run_solo(app, name="w", backend=app.backend, handle_signals=False, burst=True)
    assert len(started) == 3
    assert caplog.text.count("job_retry_scheduled") == 2
    assert caplog.text.count("job_permanently_failed") == 1


def test_a_solo_worker_puts_what_it_cannot_run_to_the_dead_letters(app, caplog):
    app.send_task("of somebody else", [1])
    app.backend.publish([Publication(build("t", [], {}, job_id="j"), "default")])
    run_solo(app, name="w", backend=app.backend, handle_signals=False, burst=True)
    assert caplog.text.count("job_permanently_failed") == 2
    assert app.backend.unfinished_since_ms(app.queues) is None


# --- only with a store ----------------------------------------------------------------------------


def test_priorities_are_honoured_where_the_broker_has_them(stored):
    stored.publish([call(1, priority=0), call(2, priority=9), call(3, priority=9)])
    assert [taken_id(take(stored)) for _ in range(3)] == ["job-2", "job-3", "job-1"]


def test_a_late_settlement_is_refused_and_changes_nothing(stored):
    stored.publish([call(1)])
    taken = take(stored)
    stored.act(Event.FAIL, [(taken.message_id, stored.job(taken.message_id).row.state)], actor="me")
    assert stored.settle([(taken, Outcome.done("1"))]) == [taken]
    assert stored.claim(QUEUES, 1, [(taken, Outcome.done("1"))]) == ([], [taken])
    assert stored.job(taken.message_id).row.state.value == "permanently_failed"
    assert stored.extend(taken, 60) is False


@pytest.mark.parametrize("is_extended", [False, True])
def test_a_lease_lasts_the_visibility_timeout_to_the_millisecond(is_extended):
    with (
        freeze_time("2026-11-22T12:00:00Z") as frozen,
        consuming("sqlqueue:///queue.db", visibility_timeout=0.5) as backend,
    ):
        sweep = backend.store.consumers.sweep
        backend.publish([call(1), call(2)])
        late, last = take(backend), take(backend)
        if is_extended:
            frozen.tick(timedelta(milliseconds=300))
            assert backend.extend(late, 0.5) is backend.extend(last, 0.5) is True
        frozen.tick(timedelta(milliseconds=499))
        assert sweep() == []
        assert backend.settle([(last, Outcome.done())]) == []
        frozen.tick(A_MOMENT)
        assert backend.settle([(late, Outcome.done())]) == [late]
        assert backend.extend(late, 0.5) is False
        assert [one.message_id for one in sweep()] == [late.message_id]
        assert (take(backend).delivery, late.delivery) == (2, 1)


def test_a_claim_of_a_process_taken_for_dead_settles_nothing(stored):
    stored.publish([call(1), call(2)])
    taken = take(stored)
    (worker,) = stored.workers()
    stored.store.consumers.end_worker(worker.id)
    with pytest.raises(WorkerSwept):
        stored.claim(QUEUES, 1, [(taken, Outcome.done("1"))])
    assert stored.job(taken.message_id).row.state.value == "pending"
    assert stored.settle([(taken, Outcome.done("1"))]) == [taken]


def test_a_tick_is_enqueued_once_with_all_its_calls_or_none(stored):
    tick = TickOf("entry", 5000, "beat-1")
    assert stored.publish([call(1), call(2)], tick=tick) is TickAnswer.TAKEN
    assert stored.publish([call(3)], tick=tick) is TickAnswer.THERE
    assert stored.publish([], tick=TickOf("entry", 6000, "beat-1")) is TickAnswer.TAKEN
    assert stored.publish([], tick=TickOf("entry", 6000, "beat-2")) is TickAnswer.THERE
    assert stored.schedules.done_ms("entry") == 6000
    assert [row.job_id for row in stored.jobs(JobFilter())] == ["job-2", "job-1"]


def test_a_unique_key_is_stored_once(stored):
    stored.publish([call(1, unique_key="mine")])
    stored.publish([call(2, unique_key="mine")])
    assert [row.job_id for row in stored.jobs(JobFilter())] == ["job-1"]


def test_a_message_whose_headers_cannot_be_read_is_claimed_without_them(stored):
    stored.publish([call(number) for number in range(4)])
    damage = ["{", "[]", "[" * 100_000, '{"id": "job-3", "task": "t"}']
    for number, text in enumerate(damage):
        stored.store.database.write(
            lambda c, text=text, number=number: (
                c.execute(
                    "UPDATE message SET headers = ? WHERE id = ?", (text, number + 1)
                ).rowcount
            )
        )
    found, _ = stored.claim(QUEUES, 4, [])
    assert [one.headers for one in found] == [{}, {}, {}, {"id": "job-3", "task": "t"}]


def test_living_processes_are_listed_with_what_they_run(stored):
    stored.publish([call(1)])
    taken = take(stored)
    stored.note_start(0, taken, 0, 5)
    (row,) = stored.workers()
    assert (row.name, row.kind, row.pid, row.queues) == ("w", "worker", os.getpid(), QUEUES)
    assert (row.slots, row.is_known_alive, row.running) == (1, True, (taken.message_id,))
    assert 0 <= row.heartbeat_age_s < 30


def test_who_runs_a_job_hears_that_it_is_asked_to_stop_or_that_it_is_not_his_any_more(stored):
    stored.publish([call(number) for number in range(3)])
    taken, _ = stored.claim(QUEUES, 3, [])
    states = [(one.message_id, State.PROCESSING) for one in taken]
    stored.act(Event.TERMINATE, states[:1], actor="me")
    stored.act(Event.FAIL, states[1:2], actor="me")
    assert stored.stops_asked(taken) == {one.message_id for one in taken[:2]}
    assert stored.note_progress(taken[0], 1, None, "") is True
    assert stored.note_progress(taken[1], 1, None, "") is False


def test_nothing_is_taken_from_a_paused_queue(stored):
    stored.publish([call(1), call(2, "mail")])
    assert stored.pause("default", actor="me") is True
    assert taken_id(take(stored)) == "job-2"
    assert (take(stored), stored.paused()) == (None, {"default": 1})
    assert stored.resume("default", actor="me") is True
    assert taken_id(take(stored)) == "job-1"


def test_a_wait_is_ended_by_a_publisher_or_by_an_interrupt(stored):
    assert stored.wait(QUEUES, 0.001) is False
    stored.interrupt()
    assert stored.wait(QUEUES, 30) is True


def test_whoever_keeps_house_is_told_when_to_come_again(stored, bare):
    assert 0 < stored.keep_house(sweep=True) <= 60
    assert bare.keep_house() == math.inf


# --- only without ---------------------------------------------------------------------------------

ASKED: dict[str, Callable[[Backend], object]] = {
    "counts": lambda b: b.counts(),
    "log_bytes": lambda b: b.log_bytes(),
    "size": lambda b: b.size(),
    "jobs": lambda b: b.jobs(JobFilter()),
    "lists": lambda b: b.lists,
    "activity": lambda b: b.activity,
    "audit": lambda b: b.audit(limit=1),
    "job": lambda b: b.job(1),
    "message_ids_of": lambda b: b.message_ids_of("a"),
    "queues": lambda b: b.queues(),
    "workers": lambda b: b.workers(),
    "schedules": lambda b: b.schedules,
    "act": lambda b: b.act(Event.CANCEL, [], actor="me"),
    "pause": lambda b: b.pause("a", actor="me"),
    "resume": lambda b: b.resume("a", actor="me"),
    "purgeable": lambda b: b.purgeable("a"),
    "purge": lambda b: b.purge("a", actor="me"),
    "prunable": lambda b: b.prunable(older_than_s=1, states=(State.DONE,)),
    "prune": lambda b: b.prune(older_than_s=1, states=(State.DONE,), actor="me"),
    "check": lambda b: b.check(),
    "backup": lambda b: b.backup(Path("backup.db")),
    "recount": lambda b: b.recount(),
    "a tick": lambda b: b.publish([], tick=TickOf("a", 1, "b")),
    "a unique key": lambda b: b.publish([call(1, unique_key="mine")]),
}


@pytest.mark.parametrize("asked", ASKED)
def test_what_a_broker_cannot_do_it_says(bare, asked):
    with pytest.raises(NotAvailable, match=r".+: not available on this broker") as caught:
        ASKED[asked](bare)
    assert caught.value.feature
    assert bare.unfinished_since_ms(QUEUES) is None


def test_every_question_an_operator_can_ask_is_in_that_list():
    asked = {name for name in vars(Inspecting) if not name.startswith("_")}
    assert asked == set(ASKED) - {"a tick", "a unique key"}


def test_a_result_cannot_be_asked_for_on_a_broker_without_a_store(bare):
    app = SqlQueue("bare", broker_url="memory://")
    result = app.task(name="t")(lambda: None).delay()
    with pytest.raises(NotAvailable, match="listing jobs: not available on this broker"):
        _ = result.state
    app.close()


def test_a_plain_broker_says_what_it_is(bare):
    assert isinstance(bare, KombuBackend)
    assert (bare.name, bare.can_fork, bare.can_inspect) == ("memory", False, False)


def test_a_retry_is_published_before_the_first_message_is_acknowledged(bare, monkeypatch):
    bare.publish([call(1)])
    taken = take(bare)
    steps = []
    publish = bare._publisher.publish
    monkeypatch.setattr(
        bare._publisher, "publish", lambda one: (steps.append("publish"), publish(one))
    )
    ack = taken.message.ack
    monkeypatch.setattr(taken.message, "ack", lambda: (steps.append("ack"), ack()))
    bare.settle([(taken, Outcome.retry(FAULT, in_s=0))])
    assert steps == ["publish", "ack"]
    wait_until(lambda: take(bare), what="the retried message")
