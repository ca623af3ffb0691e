"""Whatever user code does ends in an outcome; whatever cannot run ends in the dead letters."""

from __future__ import annotations

import contextvars
import json
import random
import sys

import pytest

from sqlqueue import Reject, Retry, SqlQueue, envelope, execute
from sqlqueue.backend import Taken
from sqlqueue.execute import Prepared, fault_of, prepare, run
from sqlqueue.worker.interrupts import ThreadInterrupt
from sqlqueue_transport.lifecycle import Event
from sqlqueue_transport.messages import Outcome


@pytest.fixture
def app(here):
    return SqlQueue("test")


def taken(task="t", args=(), kwargs=None, *, attempts=0, max_attempts=None, **build):
    """Return a claimed message, as a backend hands it over."""
    written = envelope.build(task, args, kwargs or {}, job_id="job-1", **build)
    return message(written.headers, written.body.encode(), attempts, max_attempts)


def in_own_context(prepared):
    """Run it as a worker does: what it leaves in its context is not this test's."""
    return contextvars.copy_context().run(run, prepared, ThreadInterrupt())


def message(headers, body, attempts=0, max_attempts=None, **changes):
    fields = {
        "tag": 1,
        "headers": headers,
        "body": body,
        "content_type": envelope.CONTENT_TYPE,
        "content_encoding": envelope.CONTENT_ENCODING,
        "queue": "default",
        "attempts": attempts,
        "max_attempts": max_attempts,
        "delivery": 4,
    }
    return Taken(**{**fields, **changes})


def outcome_of(app, function, *args, attempts=0, **options):
    """Declare a task and run one attempt of it."""
    app.tasks.clear()
    app.task(name="t", **options)(function)
    prepared = prepare(app, taken(args=args, attempts=attempts), worker="w/1")
    assert isinstance(prepared, Prepared)
    return in_own_context(prepared)


def raising(error):
    def function():
        raise error

    return function


# --- how it ends ----------------------------------------------------------------------------------


def test_a_result_is_kept_as_json(app):
    assert outcome_of(app, lambda x: {"x": x}, [1, None]) == Outcome.done('{"x":[1,null]}')


def test_no_result_is_null(app):
    assert outcome_of(app, lambda: None) == Outcome.done("null")


def test_the_request_names_this_very_execution(app):
    app.task(name="t", max_attempts=7)(lambda: None)
    request = prepare(app, taken(attempts=2), worker="w/1").request
    assert (request.id, request.task, request.queue) == ("job-1", "t", "default")
    assert (request.attempt, request.max_attempts, request.delivery) == (3, 7, 4)
    assert request.worker == "w/1"


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


class Nameless(type):
    @property
    def __name__(cls):
        raise RuntimeError("no name")


class Hostile(str):
    """A text that is none when one looks closer."""

    __slots__ = ()

    def encode(self, *_):
        raise RuntimeError("no bytes")

    def __getitem__(self, _):
        raise RuntimeError("no part")

    def __len__(self):
        raise RuntimeError("no length")


class Says(Exception):
    def __init__(self, text):
        super().__init__()
        self.text = text

    def __str__(self):
        return self.text


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (ValueError("boom"), "ValueError", "boom"),
        (SystemExit(3), "SystemExit", "3"),
        (KeyboardInterrupt(), "KeyboardInterrupt", ""),
        (GeneratorExit(), "GeneratorExit", ""),
        (BaseException("bare"), "BaseException", "bare"),
        (Unprintable(), "Unprintable", "(its text cannot be had: RuntimeError)"),
        (Says(Hostile("text")), "Says", "text"),
        (Says("\ud800 \x00"), "Says", "\\ud800 \x00"),
        (
            Nameless("Any", (Exception,), {})("boom"),
            "(its text cannot be had: RuntimeError)",
            "boom",
        ),
    ],
)
def test_whatever_is_raised_fails_the_attempt_with_its_type_and_text(app, error, kind, said):
    outcome = outcome_of(app, raising(error))
    assert outcome.event is Event.RETRY
    assert (outcome.fault.type, outcome.fault.message) == (kind, said)
    json.dumps([outcome.fault.type, outcome.fault.message, outcome.fault.traceback]).encode()


def test_sys_exit_fails_the_attempt_and_not_the_worker(app):
    outcome = outcome_of(app, lambda: sys.exit("enough"))
    assert (outcome.event, outcome.fault.message) == (Event.RETRY, "enough")


def test_a_traceback_shows_user_code_and_none_of_ours(app):
    def inner():
        return 1 / 0

    trace = outcome_of(app, lambda: inner()).fault.traceback  # noqa: PLW0108
    assert trace.startswith("Traceback (most recent call last):\n")
    assert trace.endswith("ZeroDivisionError: division by zero\n")
    assert trace.count("File ") == 2
    assert "sqlqueue/execute.py" not in trace


def test_a_chain_of_errors_is_kept(app):
    def chained():
        try:
            _ = {}["key"]
        except KeyError as error:
            raise ValueError("outer") from error

    trace = outcome_of(app, chained).fault.traceback
    assert "KeyError: 'key'" in trace
    assert "ValueError: outer" in trace


def test_what_failed_before_user_code_has_no_traceback(app):
    fault = outcome_of(app, lambda x: x).fault
    assert fault.type == "TypeError"
    assert "missing 1 required positional argument: 'x'" in fault.message
    assert fault.traceback is None


def test_a_message_of_a_hundred_megabytes_is_cut_at_both_ends(app):
    def giant():
        raise ValueError("begin" + "x" * 100_000_000 + "end")

    fault = outcome_of(app, giant).fault
    assert fault.message.startswith("beginxxx")
    assert fault.message.endswith("… (99998008 characters left out)")
    assert len(fault.message) < 2_100
    assert fault.traceback.endswith("xxxend\n")
    assert len(fault.traceback) < 20_100


def test_a_type_with_an_endless_name_is_cut(app):
    assert len(outcome_of(app, raising(type("X" * 10_000, (Exception,), {})())).fault.type) < 300


def test_endless_recursion_fails_the_attempt_with_a_bounded_traceback(app):
    def deeper():
        return deeper()

    outcome = outcome_of(app, deeper)
    assert (outcome.event, outcome.fault.type) == (Event.RETRY, "RecursionError")
    assert len(outcome.fault.traceback) < 20_100


def test_an_error_that_contains_itself_as_its_cause_is_bounded(app):
    def circle():
        first, second = ValueError("first"), ValueError("second")
        first.__cause__, second.__cause__ = second, first
        raise first

    assert "first" in outcome_of(app, circle).fault.traceback


class Circular(list):
    """A list that can contain itself and still be told apart."""


def circular():
    value = Circular()
    value.append(value)
    return value


def deep():
    value = []
    for _ in range(100_000):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (object, "the result is a object, which JSON cannot hold"),
        (circular, "nested more than 64 deep, or contains itself"),
        (deep, "nested more than 64 deep, or contains itself"),
        (lambda: "x" * 2_000_000, "above 1,048,576"),
        (lambda: float("inf"), "which JSON cannot hold"),
        (lambda: (yield 1), "generator"),
        (lambda: {1: 2}, "a key that is no text"),
    ],
    ids=["object", "circular", "deep", "giant", "infinite", "generator", "key"],
)
def test_a_result_that_cannot_be_kept_fails_the_attempt(app, function, said):
    outcome = outcome_of(app, function)
    assert (outcome.event, outcome.fault.type) == (Event.RETRY, "UnserializableResult")
    assert said in outcome.fault.message
    assert "keep large data in a file and return its name" in outcome.fault.message
    assert outcome.fault.traceback is None


# --- again, or not --------------------------------------------------------------------------------


@pytest.mark.parametrize(("attempts", "delay_s"), [(0, 2.0), (1, 4.0), (2, 8.0), (3, 10.0)])
def test_a_failed_attempt_is_repeated_with_growing_waits(app, attempts, delay_s):
    options = {"retry_backoff": 2, "retry_backoff_max": 10, "retry_jitter": False}
    outcome = outcome_of(app, raising(ValueError()), attempts=attempts, **options)
    assert (outcome.event, outcome.retry_in_s) == (Event.RETRY, delay_s)


def test_jitter_shortens_a_wait_to_no_less_than_half(app, monkeypatch):
    monkeypatch.setattr(execute, "_random", random.Random(7))
    waits = {outcome_of(app, raising(ValueError()), retry_backoff=8).retry_in_s for _ in range(50)}
    assert len(waits) == 50
    assert all(4 <= wait <= 8 for wait in waits)


def test_the_last_attempt_ends_in_the_dead_letters(app):
    assert outcome_of(app, raising(ValueError()), attempts=3).event is Event.RETRY
    outcome = outcome_of(app, raising(ValueError("boom")), attempts=4)
    assert (outcome.event, outcome.cause, outcome.fault.message) == (
        Event.EXHAUST,
        "failed",
        "boom",
    )
    assert outcome_of(app, raising(ValueError()), max_attempts=1).event is Event.EXHAUST


@pytest.mark.parametrize(
    ("options", "error", "event"),
    [
        ({"retry_for": (OSError,)}, OSError(), Event.RETRY),
        ({"retry_for": (OSError,)}, ConnectionError(), Event.RETRY),
        ({"retry_for": (OSError,)}, ValueError(), Event.EXHAUST),
        ({"retry_for": (OSError,)}, SystemExit(), Event.EXHAUST),
        ({"retry_for": ()}, ValueError(), Event.EXHAUST),
        ({"dont_retry_for": (ValueError,)}, ValueError(), Event.EXHAUST),
        ({"dont_retry_for": (ValueError,)}, UnicodeError(), Event.EXHAUST),
        ({"dont_retry_for": (SystemExit,)}, SystemExit(), Event.EXHAUST),
        ({"dont_retry_for": (ValueError,)}, OSError(), Event.RETRY),
        ({"dont_retry_for": (Exception,)}, Retry(), Event.RETRY),
        ({"retry_for": (Reject,)}, Reject("no"), Event.EXHAUST),
    ],
)
def test_which_errors_are_repeated_is_the_tasks_choice(app, options, error, event):
    assert outcome_of(app, raising(error), **options).event is event


def test_a_retry_has_its_own_countdown_or_the_tasks_back_off(app):
    assert outcome_of(app, raising(Retry(7.5))).retry_in_s == 7.5
    outcome = outcome_of(app, raising(Retry(reason="later")), retry_backoff=3, retry_jitter=False)
    assert (outcome.retry_in_s, outcome.fault.message) == (3, "later")
    assert outcome_of(app, raising(Retry(0)), attempts=4).event is Event.EXHAUST


def test_a_reject_is_a_dead_letter_at_once(app):
    outcome = outcome_of(app, raising(Reject("never")))
    assert (outcome.event, outcome.cause) == (Event.EXHAUST, "rejected")
    assert (outcome.fault.type, outcome.fault.message) == ("Reject", "never")


def test_attempts_of_the_message_beat_those_of_the_task(app):
    app.task(name="t", max_attempts=2)(raising(ValueError()))
    for attempts, most, event in [
        (1, None, Event.EXHAUST),
        (1, 3, Event.RETRY),
        (2, 3, Event.EXHAUST),
        (0, 1, Event.EXHAUST),
        (1000, 0, Event.RETRY),  # 0 means no limit
    ]:
        prepared = prepare(app, taken(attempts=attempts, max_attempts=most), worker="w")
        assert in_own_context(prepared).event is event, (attempts, most)


def test_attempts_that_were_used_up_elsewhere_are_not_exceeded(app):
    # The message names no number, and another worker's application allows more than ours.
    app.task(name="t", max_attempts=2)(lambda: pytest.fail("it must not run"))
    outcome = prepare(app, taken(attempts=2), worker="w")
    assert (outcome.event, outcome.fault.type) == (Event.EXHAUST, "AttemptsExhausted")


@pytest.mark.parametrize(
    ("of_message", "of_task", "limit_s"),
    [(None, None, 3600), (None, 5, 5), (None, 0, 0), (7, 5, 7), (7, None, 7)],
)
def test_the_time_limit_is_the_messages_the_tasks_or_the_settings(
    app, of_message, of_task, limit_s
):
    app.task(name="t", time_limit=of_task)(lambda: None)
    assert prepare(app, taken(time_limit_s=of_message), worker="w").time_limit_s == limit_s


# --- what cannot run ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["nobody", "__init__", "__class__.__name__", "os.system", "../../etc/passwd", "t\u0131"]
)
def test_an_unknown_task_is_a_dead_letter_whatever_its_name(app, name):
    app.task(name="t")(lambda: None)
    outcome = prepare(app, taken(name), worker="w")
    assert (outcome.event, outcome.cause) == (Event.EXHAUST, "rejected")
    assert outcome.fault.type == "UnknownTask"
    assert f"no task named {name!r}" in outcome.fault.message
    assert outcome.fault.traceback is None


HEADERS = {"task": "t", "id": "job-1", "retries": 0}
BODY = b'[[], {}, {"callbacks": null}]'


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"body": b""}, "its body is empty"),
        ({"body": b"[" * 100_000}, "nested more than 64 deep"),
        ({"body": b"[[" + b"9" * 5000 + b"],{},{}]"}, "integer of 5,000 digits"),
        ({"body": b"[[NaN],{},{}]"}, "NaN"),
        ({"body": b'[[],{"a":1,"a":2},{}]'}, "the same key twice"),
        ({"body": b'[["\\ud800"],{},{}]'}, "half a surrogate pair"),
        ({"body": b"\xff\xfe"}, "not UTF-8"),
        ({"body": b" " * 1_048_577}, "the limit is 1,048,576"),
        ({"body": b"{}"}, "not [args, kwargs, embed]"),
        ({"content_type": "application/x-python-serialize"}, "only JSON is read"),
        ({"content_type": "application/x-yaml"}, "only JSON is read"),
        ({"content_type": None}, "only JSON is read"),
        ({"content_encoding": "binary"}, "only UTF-8 is read"),
        ({"headers": {}}, "no 'task' header"),
        ({"headers": {"task": "t"}}, "is no job id"),
        ({"headers": {**HEADERS, "task": 5}}, "is no task name"),
        ({"headers": {**HEADERS, "task": "a\x1b[2J"}}, "is no task name"),
        ({"headers": {**HEADERS, "compression": "zlib"}}, "compressed"),
        ({"headers": {**HEADERS, "eta": "soon"}}, "is no ISO 8601 time"),
        ({"headers": {**HEADERS, "timelimit": [-1, None]}}, "timelimit"),
        ({"headers": {f"h{n}": n for n in range(10_000)}}, "10000 headers"),
    ],
)
def test_an_undecodable_message_is_a_dead_letter_with_a_reason(app, change, said):
    app.task(name="t")(lambda: pytest.fail("it must not run"))
    found = message(**{"headers": HEADERS, "body": BODY, **change})
    outcome = prepare(app, found, worker="w")
    assert (outcome.event, outcome.cause) == (Event.EXHAUST, "rejected")
    assert outcome.fault.type == "UndecodableMessage"
    assert said in outcome.fault.message
    assert execute.job_id_of(found) in {"job-1", "?"}
    assert isinstance(execute.task_name_of(found), str)


def test_a_dictionary_that_kombu_would_revive_reaches_the_task_as_it_is(app):
    app.task(name="t")(lambda x: x)
    bomb = {"__type__": "decimal", "__value__": "1e1000000000"}
    outcome = in_own_context(prepare(app, taken(args=[bomb]), worker="w"))
    assert json.loads(outcome.result) == bomb


def test_a_fault_is_had_of_errors_that_were_never_raised():
    fault = fault_of(ValueError("boom"))
    assert (fault.type, fault.message, fault.traceback) == ("ValueError", "boom", None)
