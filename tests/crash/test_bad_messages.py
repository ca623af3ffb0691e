"""Every bad message of the list, to a real worker: an error for who publishes it, or a dead letter."""

from __future__ import annotations

import json
import pickle
import zlib
from collections.abc import Callable
from typing import Any

import kombu
import pytest

from sqlqueue import envelope
from sqlqueue_transport import NewMessage
from sqlqueue_transport.lifecycle import State
from tests.crash.conftest import Arena
from tests.support import wait_until

GOOD = b"[[0],{},{}]"
HEADERS = {"task": "work", "id": "bad"}
DEEP = 100_000

# Name: what is changed of a good message, and what the dead letter says. `headers_text` stands for
# headers that only somebody who writes the file himself can store.
DEAD: dict[str, tuple[dict[str, Any], str]] = {
    "empty body": ({"body": b""}, "is empty"),
    "a byte above 1 MiB": ({"body": GOOD + b" " * 1_048_566}, "the limit is 1,048,576"),
    "deep body": ({"body": b"[" * DEEP + b"]" * DEEP}, "nested more than 64 deep"),
    "deep headers": ({"headers_text": '{"a":' * DEEP + "1" + "}" * DEEP}, "no 'task' header"),
    "5,000 digits": ({"body": b"[[" + b"9" * 5_000 + b"],{},{}]"}, "an integer of 5,000 digits"),
    "5,000 digits in headers": (
        {"headers_text": f'{{"task":"work","id":"bad","n":{"9" * 5_000}}}'},
        "no 'task' header|",
    ),
    "NaN": ({"body": b"[[NaN],{},{}]"}, "has NaN"),
    "NaN in headers": ({"headers_text": '{"task":"work","id":"bad","eta":NaN}'}, "eta header nan"),
    "duplicate keys": ({"body": b'[[],{"a":1,"a":2},{}]'}, "the same key twice"),
    "lone surrogate": ({"body": b'[["\\ud800"],{},{}]'}, "half a surrogate pair"),
    "invalid UTF-8": ({"body": b'[["\xff"],{},{}]'}, "is not UTF-8"),
    "pickle": (
        {"body": pickle.dumps([]), "content_type": "application/x-python-serialize"},
        "only JSON is read",
    ),
    "yaml": (
        {"body": b"!!python/object/apply:os.system [true]", "content_type": "application/x-yaml"},
        "only JSON is read",
    ),
    "compressed bomb": (
        {
            "body": zlib.compress(b"0" * 200_000_000, 9),
            "headers": {**HEADERS, "compression": "application/x-gzip"},
        },
        "its body is compressed",
    ),
    "no headers": ({"headers": {}}, "no 'task' header"),
    "10,000 headers": (
        {"headers": {**HEADERS, **{f"h{n}": n for n in range(10_000)}}},
        "10002 headers",
    ),
    "unknown task": ({"headers": {**HEADERS, "task": "none"}}, "no task named 'none'"),
    "task like a path": ({"headers": {**HEADERS, "task": "../../bin/sh"}}, "no task named"),
    "task like a dunder": ({"headers": {**HEADERS, "task": "__class__"}}, "no task named"),
    "eta that is no time": ({"headers": {**HEADERS, "eta": "soon"}}, "is no ISO 8601 time"),
}


def publish(arena: Arena, change: dict[str, Any]) -> int:
    """Publish a changed message, by Kombu or as a row; return its message id."""
    store = arena.app.backend.store
    headers = change.get("headers", HEADERS)
    text = change.get("headers_text")
    body, kind = change.get("body", GOOD), change.get("content_type", envelope.CONTENT_TYPE)
    if text is not None:
        row = NewMessage(body, "default", content_type=kind, content_encoding="utf-8", headers=text)
        return int(store.publish([row])[0].message_id)
    with kombu.Connection(f"sqlqueue:///{arena.directory}/queue.db") as connection:
        kombu.Producer(connection.default_channel, auto_declare=False).publish(
            body,
            routing_key="default",
            headers=headers,
            content_type=kind,
            content_encoding="utf-8",
        )
    newest = store.database.read(lambda c: c.execute("SELECT max(id) FROM message").fetchone()[0])
    return int(newest)


@pytest.mark.slow
def test_every_bad_message_is_a_dead_letter_with_its_reason_and_its_neighbours_run_once(
    arena: Arena,
) -> None:
    bad, good = {}, []
    for name, (change, _) in DEAD.items():
        bad[name] = publish(arena, change)
        good.append(arena.publish("work", 0))
    # A Python decimal of 10^9 digits, if anybody revived it; here it is a dictionary.
    bomb = arena.publish("work", {"__type__": "decimal", "__value__": "1e1000000000"})
    worker = arena.worker("-c", 2)
    for job in good:
        assert arena.wait_state(job, State.DONE).row.attempts == 1
    jobs = {name: arena.app.backend.job(message_id) for name, message_id in bad.items()}
    for name, job in jobs.items():
        wait_until(
            lambda name=name: (
                arena.app.backend.job(bad[name]).row.state is State.PERMANENTLY_FAILED
            ),
            what=f"{name} to be a dead letter; it is {job.row.state}",
        )
        row = arena.app.backend.job(bad[name]).row
        said = DEAD[name][1]
        assert any(part in row.error_message for part in said.split("|")), (name, row.error_message)
        assert row.error_message
        assert row.attempts == 1
    failed = arena.job(bomb).row
    assert "TypeError" in (failed.error_type or ""), failed  # of time.sleep: it got a dictionary
    assert worker.poll() is None
    assert "child_lost" not in arena.logs()


@pytest.mark.slow
def test_times_at_the_ends_of_the_calendar_and_expiries_are_kept_by_a_worker(arena: Arena) -> None:
    def sent(**headers: Any) -> int:
        return publish(arena, {"headers": {**HEADERS, **headers}})

    expected: dict[int, State] = {
        sent(eta="1970-01-01T00:00:00"): State.DONE,  # naive: UTC
        sent(eta="2020-03-29T02:30:00+01:00"): State.DONE,
        sent(eta="9999-12-31T23:59:59"): State.SCHEDULED,
        sent(expires="1970-01-01T00:00:00+00:00"): State.EXPIRED,
        sent(eta="9999-01-01T00:00:00", expires="9998-01-01T00:00:00"): State.SCHEDULED,
    }
    arena.worker("-c", 1)
    state: Callable[[int], State] = lambda one: arena.app.backend.job(one).row.state  # noqa: E731
    wait_until(
        lambda: {one: state(one) for one in expected} == expected,
        what=f"{json.dumps({str(k): v.value for k, v in expected.items()})}",
    )


@pytest.mark.slow
def test_the_same_id_twice_with_another_body_runs_twice_and_ones_own_id_once(arena: Arena) -> None:
    first = publish(arena, {"body": b"[[0],{},{}]"})
    second = publish(arena, {"body": b"[[0.001],{},{}]"})
    assert first != second  # the header alone never deduplicates: Celery's retry sends it again
    own = [arena.publish("work", seconds, job_id="mine") for seconds in (0, 0.001)]
    assert own[0] == own[1]
    arena.worker("-c", 1)
    arena.wait_state("mine", State.DONE)
    wait_until(
        lambda: len([line for line in arena.trace() if line["event"] == "end"]) == 3,
        what="three runs",
    )
    assert [line["job"] for line in arena.trace() if line["event"] == "start"].count("mine") == 1
