"""The channel: what Kombu publishes and consumes, turned into rows and leases."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import UUID

import kombu
import pytest
from kombu.exceptions import ChannelError

from sqlqueue_transport import channel as channel_module
from sqlqueue_transport import flushing
from sqlqueue_transport.channel import MAX_ATTEMPTS_PROPERTY, UNIQUE_PROPERTY
from sqlqueue_transport.errors import CannotOpen, DiskFault, InvalidMessage, LeaseLost
from sqlqueue_transport.lifecycle import State
from sqlqueue_transport.messages import Fault, Outcome, TickAnswer, TickOf
from sqlqueue_transport.store import Store
from tests.support import wait_until
from tests.transport.broker import connect, get, publish, store_of
from tests.transport.rows import attempts_of, bind, row, rows_of, state_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@pytest.fixture
def connection(path: Path) -> Iterator[kombu.Connection]:
    with connect(path) as opened:
        yield opened


@pytest.fixture
def store(connection: kombu.Connection) -> Store:
    return store_of(connection)


def _states(store: Store) -> list[str]:
    return [state for (state,) in rows_of(store, "SELECT state FROM message ORDER BY id")]


def _newest(store: Store) -> dict[str, Any]:
    return row(store, rows_of(store, "SELECT max(id) FROM message")[0][0])


def _refuse(*_: Any, **__: Any) -> None:
    message = "disk full"
    raise DiskFault(message)


def _iso(seconds: float) -> str:
    return (datetime.now(timezone.utc) + timedelta(seconds=seconds)).isoformat()


# -- publish: what the headers mean -----------------------------------------------------------------


def test_a_job_is_known_by_its_celery_headers(connection: kombu.Connection, store: Store) -> None:
    publish(connection, "q", headers={"id": "7", "task": "tasks.stamp"})
    assert (_newest(store)["job_id"], _newest(store)["task"]) == ("7", "tasks.stamp")


@pytest.mark.parametrize("headers", [{}, {"id": 7, "task": None}, {"id": ["7"], "task": {}}])
def test_what_has_no_such_headers_is_a_message_and_no_job(
    connection: kombu.Connection, store: Store, headers: dict[str, Any]
) -> None:
    publish(connection, "q", headers=headers)
    assert (_newest(store)["job_id"], _newest(store)["task"]) == (None, None)
    assert get(connection, "q").headers == headers


def test_our_own_properties_become_columns_and_travel_no_further(
    connection: kombu.Connection, store: Store
) -> None:
    for _ in range(2):
        publish(connection, "q", **{UNIQUE_PROPERTY: "invoice-7", MAX_ATTEMPTS_PROPERTY: 0})
    assert len(_states(store)) == 1
    assert _newest(store)["max_attempts"] == 0
    assert UNIQUE_PROPERTY not in get(connection, "q").properties


@pytest.mark.parametrize(
    ("given", "stored"), [(None, 0), (0, 0), (9, 9), (10, 9), (2**63, 9), (-1, 0), (-(2**70), 0)]
)
def test_priorities_are_clamped_as_in_kombus_own_transports(
    connection: kombu.Connection, store: Store, given: int | None, stored: int
) -> None:
    publish(connection, "q", priority=given)
    assert _newest(store)["priority"] == stored


@pytest.mark.parametrize("offset_s", [60, -60])
def test_an_eta_keeps_a_message_in_the_file(
    connection: kombu.Connection, store: Store, offset_s: float
) -> None:
    publish(connection, "q", headers={"eta": _iso(offset_s)})
    expected = State.SCHEDULED if offset_s > 0 else State.PENDING
    assert State(_newest(store)["state"]) is expected


@pytest.mark.parametrize(
    ("eta", "due"),
    [
        ("2126-11-22T05:11:07.123000+00:00", "2126-11-22T05:11:07.123+00:00"),
        ("2126-11-22T05:11:07.123Z", "2126-11-22T05:11:07.123+00:00"),
        ("2126-11-22T05:11:07.123001Z", "2126-11-22T05:11:07.124+00:00"),  # never before its time
        ("2126-11-22T05:11:07", "2126-11-22T05:11:07+00:00"),  # naive means UTC, as in Celery
        ("2126-11-22T07:11:07+02:00", "2126-11-22T05:11:07+00:00"),
        ("9999-12-31T23:59:59.999000+00:00", "9999-12-31T23:59:59.999+00:00"),
        (datetime(2126, 1, 1, tzinfo=timezone.utc), "2126-01-01T00:00:00+00:00"),
    ],
)
def test_an_eta_is_read_to_the_millisecond(
    connection: kombu.Connection, store: Store, eta: object, due: str
) -> None:
    publish(connection, "q", headers={"eta": eta})
    assert _newest(store)["due_at_ms"] == round(datetime.fromisoformat(due).timestamp() * 1000)


@pytest.mark.parametrize("eta", ["soon", "", 5, [], "0001-01-01T00:00:00", "1970-01-01T00:00:00"])
def test_an_eta_that_is_past_or_unreadable_delivers_at_once(
    connection: kombu.Connection, eta: object
) -> None:
    """The consumer reads the same header and judges it; nothing may be lost here."""
    publish(connection, "q", headers={"eta": eta})
    assert get(connection, "q").headers["eta"] == eta


def test_an_eta_is_left_to_the_consumer_if_so_wished(path: Path) -> None:
    with connect(path, hold_eta=False) as connection:
        publish(connection, "q", headers={"eta": _iso(60)})
        assert get(connection, "q").headers["eta"]


def test_the_earlier_of_two_expiries_counts(connection: kombu.Connection, store: Store) -> None:
    for expires_s, expiration_s in [(60, 1000), (1000, 60), (60, None), (None, 60)]:
        headers = {} if expires_s is None else {"expires": _iso(expires_s)}
        publish(connection, "q", headers=headers, expiration=expiration_s)
        left_ms = _newest(store)["expires_at_ms"] - time.time() * 1000
        assert 50_000 < left_ms < 61_000


def test_an_expired_message_is_not_delivered(connection: kombu.Connection, store: Store) -> None:
    publish(connection, "q", expiration=-1)
    assert connection.default_channel.basic_get("q") is None
    assert _states(store) == ["expired"]


def test_headers_are_what_json_can_say(connection: kombu.Connection) -> None:
    given = {
        "text": "ü \u202e \x00 \ud800 </script>",
        "huge": 10**4000,
        "float": 1e308,
        "deep": json.loads("[" * 100 + "]" * 100),
        "uuid": UUID(int=7),
        "when": datetime(2026, 11, 22, 5, tzinfo=timezone.utc),
        "day": date(2026, 11, 22),
        "set": {1},
        "tuple": (1, 2),
        "bytes": b"plain",
    }
    publish(connection, "q", headers=given)
    assert get(connection, "q").headers == {
        **given,
        "uuid": str(UUID(int=7)),
        "when": "2026-11-22T05:00:00+00:00",
        "day": "2026-11-22",
        "set": [1],
        "tuple": [1, 2],
        "bytes": "plain",
    }


def test_ten_thousand_headers_are_no_fault(connection: kombu.Connection) -> None:
    given = {f"h{number}": number for number in range(10_000)}
    publish(connection, "q", headers=given)
    assert get(connection, "q").headers == given


def _nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


_circle: dict[str, Any] = {}
_circle["self"] = _circle


@pytest.mark.parametrize(
    "options",
    [
        {"headers": {"a": math.nan}},
        {"headers": {"a": math.inf}},
        {"headers": {"a": object()}},
        {"headers": {"a": b"\xff"}},
        {"headers": {("a", "b"): 1}},
        {"headers": {b"a": 1}},
        {"headers": _circle},
        pytest.param(
            {"headers": {"a": 10**5000}},  # Python's own limit of digits, where it has one
            marks=pytest.mark.skipif(
                not hasattr(sys, "set_int_max_str_digits"), reason="no limit in this Python"
            ),
        ),
        {"headers": {"deep": _nested(100_000)}},
        {"headers": {"task": "\ud800"}},
        {"headers": {"id": "\ud800"}},
        {"correlation_id": object()},
        {"priority": "high"},
        {"priority": _nested(100_000)},
        {"priority": 1.5},
        {"priority": True},
        {"priority": [1]},
        {UNIQUE_PROPERTY: ""},
        {UNIQUE_PROPERTY: 7},
        {UNIQUE_PROPERTY: ["a"]},
        {UNIQUE_PROPERTY: "\ud800"},
        {MAX_ATTEMPTS_PROPERTY: -1},
        {MAX_ATTEMPTS_PROPERTY: 2**31},
        {MAX_ATTEMPTS_PROPERTY: "five"},
        {MAX_ATTEMPTS_PROPERTY: True},
        {MAX_ATTEMPTS_PROPERTY: 10**5000},  # whose repr Python refuses to make
        {UNIQUE_PROPERTY: 10**5000},
        {"exchange": "\ud800"},
        {"exchange": "e", "routing_key": "\ud800"},
        {"exchange": "e", "routing_key": "." * 256},
        {"exchange": "e", "routing_key": "a\nb"},
        {"routing_key": ""},
        {"routing_key": "\ud800"},
        {"routing_key": "x" * 300},
        {"routing_key": "a\nb"},
    ],
    ids=",".join,
)
def test_a_message_that_cannot_be_stored_is_refused_before_it_is(
    connection: kombu.Connection, store: Store, options: dict[str, Any]
) -> None:
    store.topology.declare_exchange("e", "direct")
    producer = kombu.Producer(connection.default_channel)
    with pytest.raises(InvalidMessage) as caught:
        producer.publish("x", **{"routing_key": "q", "exchange": "", **options})
    assert len(str(caught.value)) > 20
    assert _states(store) == []


@pytest.mark.parametrize("name", [["a"], {"a"}, 7, b"q", "\ud800", "a\nb", "x" * 300], ids=repr)
@pytest.mark.parametrize(
    "act",
    [
        lambda channel, name: channel.queue_declare(name),
        lambda channel, name: channel.queue_declare(name, passive=True),
        lambda channel, name: channel.queue_purge(name),
        lambda channel, name: channel.queue_delete(name),
        lambda channel, name: channel.queue_bind(name, exchange="amq.direct", routing_key="k"),
        lambda channel, name: channel.queue_bind("q", exchange=name, routing_key="k"),
        lambda channel, name: channel.queue_bind("q", exchange="amq.direct", routing_key=name),
        lambda channel, name: channel.queue_unbind(name, exchange="amq.direct", routing_key="k"),
        lambda channel, name: channel.queue_unbind("q", exchange=name, routing_key="k"),
        lambda channel, name: channel.exchange_declare(name, "direct"),
        lambda channel, name: channel.exchange_declare(name, "direct", passive=True),
        lambda channel, name: channel.exchange_delete(name),
        lambda channel, name: channel.basic_get(name),
        lambda channel, name: channel.basic_consume(name, no_ack=True, callback=print),
    ],
)
def test_what_can_be_no_name_is_refused_by_every_verb_that_takes_one(
    connection: kombu.Connection, act: Any, name: Any
) -> None:
    with pytest.raises(InvalidMessage, match=r"name") as caught:
        act(connection.default_channel, name)
    str(caught.value).encode()


@pytest.mark.parametrize(
    "kind", [["direct"], {"a"}, 10**5000, _nested(100_000), "headers"], ids=type
)
@pytest.mark.parametrize("name", ["e", ""])
def test_an_exchange_of_no_known_type_is_refused(
    connection: kombu.Connection, kind: Any, name: str
) -> None:
    with pytest.raises(ChannelError, match="NOT_IMPLEMENTED"):
        connection.default_channel.exchange_declare(name, kind)


class _Mute:
    def __repr__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    "arguments",
    [
        {"x-any": math.nan},
        {"x-any": _nested(100_000)},
        {"x-any": _circle},
        {"x-any": _Mute()},
        {"x-max-length": 10**5000},
        {"x-dead-letter-exchange": _Mute()},
    ],
    ids=range(6),
)
def test_arguments_of_a_queue_that_cannot_be_stored_are_refused(
    connection: kombu.Connection, store: Store, arguments: Any
) -> None:
    with pytest.raises(InvalidMessage, match=r"cannot be stored|not usable"):
        connection.default_channel.queue_declare("new", arguments=arguments)
    assert not store.topology.has_queue("new")


@pytest.mark.parametrize("expiration", ["soon", "", "1.5", "9" * 5000])
def test_an_expiration_that_is_no_number_is_refused(
    connection: kombu.Connection, store: Store, expiration: str
) -> None:
    channel = connection.default_channel
    message = channel.prepare_message("x", 0, None, None, {}, {"expiration": expiration})
    with pytest.raises(InvalidMessage, match="milliseconds"):
        channel.basic_publish(message, "", "q")


def test_an_expiration_beyond_all_time_is_never(connection: kombu.Connection) -> None:
    channel = connection.default_channel
    message = channel.prepare_message("x", 0, None, None, {}, {"expiration": "9" * 30})
    channel.basic_publish(message, "", "q")
    assert get(connection, "q").body == b"x"


@pytest.mark.parametrize(
    ("body", "encoding", "stored"),
    [
        (b"\x00\xff", "binary", b"\x00\xff"),
        (bytearray(b"a"), "binary", b"a"),
        (memoryview(b"a"), "binary", b"a"),
        (None, None, b""),
        ("ü", "utf-8", "ü".encode()),
        ("ü", None, "ü".encode()),
        ("ü", "binary", "ü".encode()),
        ("ü", "latin-1", b"\xfc"),
    ],
)
def test_a_body_is_stored_as_bytes(
    connection: kombu.Connection, body: object, encoding: str | None, stored: bytes
) -> None:
    channel = connection.default_channel
    channel.basic_publish(channel.prepare_message(body, 0, None, encoding, {}, {}), "", "q")
    assert get(connection, "q").body == stored


@pytest.mark.parametrize(("body", "encoding"), [("\ud800", "utf-8"), ("ü", "ascii"), ("a", "xyz")])
def test_a_body_that_cannot_be_encoded_is_refused(
    connection: kombu.Connection, body: str, encoding: str
) -> None:
    channel = connection.default_channel
    with pytest.raises(InvalidMessage, match="the body cannot be written"):
        channel.basic_publish(channel.prepare_message(body, 0, None, encoding, {}, {}), "", "q")


def test_mandatory_says_when_no_queue_is_bound(connection: kombu.Connection, store: Store) -> None:
    producer = kombu.Producer(connection.default_channel)
    store.topology.declare_exchange("e", "direct")
    producer.publish("x", exchange="e", routing_key="k")  # dropped, as AMQP does
    with pytest.raises(ChannelError, match="NO_ROUTE"):
        producer.publish("x", exchange="e", routing_key="k", mandatory=True)
    bind(store, "q", "e", "k")
    producer.publish("x", exchange="e", routing_key="k", mandatory=True)
    assert _states(store) == ["pending"]


# -- publish: together ------------------------------------------------------------------------------


def test_publishes_in_a_block_are_stored_in_one_transaction(
    connection: kombu.Connection, store: Store
) -> None:
    before = store.database.write_transactions
    with connection.default_channel.publishing_together() as stored:
        for _ in range(10):
            publish(connection, "q")
        assert _states(store) == []
        assert stored == []
    assert stored == [TickAnswer.TAKEN]
    assert _states(store) == ["pending"] * 10
    assert store.database.write_transactions == before + 1


def test_a_block_that_raises_stores_nothing(connection: kombu.Connection, store: Store) -> None:
    channel = connection.default_channel

    def fail() -> None:
        with channel.publishing_together():
            publish(connection, "q")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert _states(store) == []
    publish(connection, "q")  # and the channel publishes on as before
    assert _states(store) == ["pending"]


def test_a_block_with_a_refused_message_stores_nothing(
    connection: kombu.Connection, store: Store
) -> None:
    channel = connection.default_channel

    def publish_both() -> None:
        with channel.publishing_together(TickOf("a", 1, "beat")):
            publish(connection, "q")
            publish(connection, "q", headers={"task": "\ud800"})

    with pytest.raises(InvalidMessage):
        publish_both()
    assert _states(store) == []
    assert store.schedules.done_ms("a") is None


def test_a_tick_and_its_jobs_are_stored_together_and_once(
    connection: kombu.Connection, store: Store
) -> None:
    channel = connection.default_channel
    answers = []
    for _ in range(2):
        with channel.publishing_together(TickOf("a", 5000, "beat")) as stored:
            publish(connection, "q")
        answers += stored
    assert answers == [TickAnswer.TAKEN, TickAnswer.THERE]
    assert _states(store) == ["pending"]


def test_a_block_inside_a_block_is_refused(connection: kombu.Connection, store: Store) -> None:
    channel = connection.default_channel
    with channel.publishing_together():
        publish(connection, "q")
        with pytest.raises(InvalidMessage), channel.publishing_together():
            pass
        publish(connection, "q")
    assert _states(store) == ["pending", "pending"]


def test_a_block_without_publishes_writes_nothing(
    connection: kombu.Connection, store: Store
) -> None:
    before = store.database.write_transactions
    with connection.default_channel.publishing_together() as stored:
        pass
    assert stored == []
    assert store.database.write_transactions == before


has_batches = pytest.mark.skipif(
    not hasattr(kombu.Producer, "batch"), reason="Producer.batch came with Kombu 5.7"
)


@has_batches
def test_kombus_batches_are_one_transaction_a_flush(
    connection: kombu.Connection, store: Store
) -> None:
    producer = kombu.Producer(connection.default_channel)
    assert producer.supports_batch_publish
    before = store.database.write_transactions
    with producer.batch(max_size=4) as batch:
        for _ in range(6):
            producer.publish("x", routing_key="q")
        assert len(_states(store)) == 4
        batch.flush()
        assert len(_states(store)) == 6
        producer.publish("x", routing_key="q")
    assert len(_states(store)) == 7
    assert store.database.write_transactions == before + 3


@has_batches
def test_a_batch_that_raises_stores_nothing_more(
    connection: kombu.Connection, store: Store
) -> None:
    producer = kombu.Producer(connection.default_channel)

    def fail() -> None:
        with producer.batch(max_size=2):
            for _ in range(3):
                producer.publish("x", routing_key="q")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert len(_states(store)) == 2


# -- publish: durability ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("durability", "publishes", "settlements"),
    [("publish", 1, 0), ("full", 1, 1), ("process", 0, 0)],
)
def test_durability_decides_what_is_flushed_to_the_disk(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    durability: str,
    publishes: int,
    settlements: int,
) -> None:
    with connect(path, durability=durability) as connection:
        publish(connection, "q")
        message = get(connection, "q")
        flushes: list[int] = []
        real = flushing._sync_data
        monkeypatch.setattr(flushing, "_sync_data", lambda fd: (flushes.append(fd), real(fd)))
        publish(connection, "q")
        assert len(flushes) == publishes
        flushes.clear()
        message.ack()
        assert len(flushes) == settlements
        flushes.clear()
        second = connection.default_channel.claim(["q"])[0][0]
        flushes.clear()
        connection.default_channel.claim(["q"], settlements=[(second.delivery_tag, Outcome.done())])
        assert len(flushes) == settlements


# -- consume ----------------------------------------------------------------------------------------


class _Seen:
    """Collect what a consumer is handed."""

    def __init__(self, *, ack: bool = True, takes_s: float = 0.0) -> None:
        self.messages: list[Any] = []
        self._ack, self._takes_s = ack, takes_s

    def __call__(self, message: Any) -> None:
        self.messages.append(message)
        if self._takes_s:
            time.sleep(self._takes_s)
        if self._ack:
            message.ack()

    @property
    def bodies(self) -> list[str]:
        return [message.payload for message in self.messages]


def _fill(connection: kombu.Connection, count: int, queue: str = "q") -> None:
    with connection.default_channel.publishing_together():
        for number in range(count):
            publish(connection, queue, str(number))


def test_one_drain_delivers_one_message(connection: kombu.Connection) -> None:
    _fill(connection, 5)
    seen = _Seen()
    connection.channel().basic_consume("q", False, seen)
    for number in range(1, 6):
        connection.drain_events(timeout=5)
        assert len(seen.messages) == number
    assert seen.bodies == ["0", "1", "2", "3", "4"]


def test_short_calls_are_served_several_a_transaction(
    connection: kombu.Connection, store: Store
) -> None:
    _fill(connection, 100)
    seen = _Seen(ack=False)
    connection.channel().basic_consume("q", False, seen)
    connection.drain_events(timeout=5)  # registers
    before = store.database.write_transactions
    for _ in range(99):
        connection.drain_events(timeout=5)
    assert store.database.write_transactions - before <= 99 // 10
    assert seen.bodies == [str(number) for number in range(100)]


def test_what_waits_behind_a_long_call_is_given_back_for_others(
    connection: kombu.Connection, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "LONG_CALL_S", 0.0)
    _fill(connection, 20)
    channel = connection.channel()
    channel._batch = 8
    seen = _Seen(ack=False, takes_s=channel_module.SHORT_CALL_S)
    channel.basic_consume("q", False, seen)
    connection.drain_events(timeout=5)
    assert _states(store).count("processing") == 1
    connection.drain_events(timeout=5)
    assert seen.bodies == ["0", "1"]
    assert _states(store).count("processing") == 2


@pytest.mark.parametrize("prefetch", [1, 3, 10])
def test_a_channel_holds_no_more_than_its_prefetch_count(
    connection: kombu.Connection, store: Store, prefetch: int
) -> None:
    _fill(connection, 20)
    channel = connection.channel()
    channel.basic_qos(0, prefetch, False)
    seen = _Seen(ack=False)
    channel.basic_consume("q", False, seen)
    channel._batch = 16
    for _ in range(prefetch):
        connection.drain_events(timeout=5)
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.01)
    assert len(seen.messages) == prefetch
    assert _states(store).count("processing") == prefetch

    seen.messages[0].ack()
    connection.drain_events(timeout=5)
    assert len(seen.messages) == prefetch + 1


def test_without_a_prefetch_count_a_cap_bounds_what_is_held(path: Path) -> None:
    with connect(path, max_prefetch=5) as connection:
        _fill(connection, 20)
        seen = _Seen(ack=False)
        connection.channel().basic_consume("q", False, seen)
        for _ in range(5):
            connection.drain_events(timeout=5)
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.01)
        assert len(seen.messages) == 5


def test_a_consumer_without_acknowledgements_is_handed_one_at_a_time(
    connection: kombu.Connection, store: Store
) -> None:
    """What it was handed is done; more than that would be lost if it went away now."""
    _fill(connection, 5)
    seen = _Seen(ack=False)
    channel = connection.channel()
    channel._batch = 16
    channel.basic_qos(0, 1, False)
    channel.basic_consume("q", True, seen)
    for number in range(1, 4):
        connection.drain_events(timeout=5)
        assert _states(store).count("done") == number
    channel.close()
    assert _states(store).count("pending") == 2


def test_a_cancelled_consumer_gives_back_what_it_was_never_handed(
    connection: kombu.Connection, store: Store
) -> None:
    _fill(connection, 10)
    channel = connection.channel()
    channel._batch = 8
    seen = _Seen(ack=False)
    tag = channel.basic_consume("q", False, seen)
    connection.drain_events(timeout=5)
    assert _states(store).count("processing") == 8
    channel.basic_cancel(tag)
    assert _states(store).count("processing") == 1
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.01)
    seen.messages[0].ack()
    channel.basic_cancel("never there")


def test_a_callback_that_raises_loses_nothing(connection: kombu.Connection, store: Store) -> None:
    _fill(connection, 6)
    handed: list[str] = []

    def fail_first(message: Any) -> None:
        handed.append(message.payload)
        if len(handed) == 1:
            raise ZeroDivisionError
        message.ack()

    channel = connection.channel()
    channel._batch = 4
    channel.basic_consume("q", False, fail_first)
    with pytest.raises(ZeroDivisionError):
        connection.drain_events(timeout=5)
    for _ in range(5):
        connection.drain_events(timeout=5)
    assert handed == ["0", "1", "2", "3", "4", "5"]
    channel.close()
    assert _states(store) == ["pending"] + ["done"] * 5


def test_channels_take_turns(connection: kombu.Connection) -> None:
    for queue in ("a", "b"):
        _fill(connection, 6, queue)
    seen = {queue: _Seen() for queue in ("a", "b")}
    for queue, one in seen.items():
        connection.channel().basic_consume(queue, False, one)
    for _ in range(6):
        connection.drain_events(timeout=5)
    assert len(seen["a"].messages) == len(seen["b"].messages) == 3


def test_consumers_of_one_channel_take_turns(connection: kombu.Connection) -> None:
    for queue in ("a", "b"):
        _fill(connection, 10, queue)
    channel = connection.channel()
    channel.basic_qos(0, 1, False)
    seen = {queue: _Seen() for queue in ("a", "b")}
    for queue, one in seen.items():
        channel.basic_consume(queue, False, one)
    for _ in range(8):
        connection.drain_events(timeout=5)
    assert len(seen["a"].messages) == len(seen["b"].messages) == 4


def test_a_queue_that_is_named_like_nothing_is_not_consumed(connection: kombu.Connection) -> None:
    channel = connection.default_channel
    for name in ("", "\ud800", "a\nb"):
        with pytest.raises(InvalidMessage):
            channel.basic_consume(name, False, print)
        with pytest.raises(InvalidMessage):
            channel.basic_get(name)
    assert not channel.is_consuming


# -- settle -----------------------------------------------------------------------------------------


def test_a_late_ack_changes_nothing_and_says_so(connection: kombu.Connection, store: Store) -> None:
    publish(connection, "q")
    message = get(connection, "q")
    message.channel.basic_recover()
    again = get(connection, "q")
    with pytest.raises(LeaseLost) as caught:
        message.ack()
    assert (caught.value.message_id, caught.value.delivery) == (again.delivery.message_id, 1)
    assert _states(store) == ["processing"]
    again.ack()
    assert _states(store) == ["done"]


def test_a_late_reject_to_the_dead_letters_changes_nothing_and_says_so(
    connection: kombu.Connection, store: Store
) -> None:
    publish(connection, "q")
    message = get(connection, "q")
    message.channel.basic_recover()
    with pytest.raises(LeaseLost):
        message.reject()
    assert _states(store) == ["pending"]


def test_a_late_requeue_is_quiet_because_that_is_where_the_message_is(
    connection: kombu.Connection, store: Store
) -> None:
    publish(connection, "q")
    message = get(connection, "q")
    message.channel.basic_recover()
    message.requeue()
    assert _states(store) == ["pending"]


def test_an_ack_after_the_lease_is_refused(path: Path) -> None:
    with connect(path, visibility_timeout=0.05, keep_leases=False) as connection:
        publish(connection, "q")
        message = get(connection, "q")
        lease_until_ms = _newest(store_of(connection))["lease_until_ms"]
        while time.monotonic_ns() // 1_000_000 < lease_until_ms:
            time.sleep(0.005)
        with pytest.raises(LeaseLost):
            message.ack()


def test_a_lease_is_kept_while_its_consumer_lives(path: Path) -> None:
    with connect(path, visibility_timeout=0.4) as connection:
        publish(connection, "q")
        message = get(connection, "q")
        first_end_ms = _newest(store_of(connection))["lease_until_ms"]
        while time.monotonic_ns() // 1_000_000 <= first_end_ms + 200:
            time.sleep(0.01)
        message.ack()
        assert _states(store_of(connection)) == ["done"]


def test_multiple_acknowledges_what_was_handed_over_up_to_the_tag(
    connection: kombu.Connection, store: Store
) -> None:
    _fill(connection, 6)
    channel = connection.channel()
    channel._batch = 4
    seen = _Seen(ack=False)
    channel.basic_consume("q", False, seen)
    for _ in range(2):
        connection.drain_events(timeout=5)
    # Two more have arrived and were handed to nobody. A get goes past them.
    got = channel.basic_get("q")
    assert got is not None
    assert got.payload == "4"

    got.ack(multiple=True)

    assert _states(store) == ["done", "done", "processing", "processing", "done", "pending"]


def test_multiple_goes_by_the_order_of_delivery_and_not_by_the_tags(
    connection: kombu.Connection, store: Store
) -> None:
    """A requeued message keeps its old id, so its tag is smaller than that of one before it."""
    _fill(connection, 3)
    channel = connection.default_channel
    first = get(connection, "q")
    second = get(connection, "q")
    first.requeue()
    first_again = get(connection, "q")
    third = get(connection, "q")
    assert first_again.delivery_tag < second.delivery_tag

    channel.basic_ack(first_again.delivery_tag, multiple=True)
    assert _states(store) == ["done", "done", "processing"]
    third.ack()


def test_multiple_of_what_the_channel_does_not_hold_settles_nothing_else(
    connection: kombu.Connection, store: Store
) -> None:
    _fill(connection, 2)
    other = connection.channel()
    mine, theirs = get(connection, "q"), other.basic_get("q")
    assert theirs is not None
    connection.default_channel.basic_ack(theirs.delivery_tag, multiple=True)
    assert _states(store) == ["processing", "done"]
    mine.ack()


def test_settle_ends_a_delivery_with_an_outcome(connection: kombu.Connection, store: Store) -> None:
    publish(connection, "q", headers={"task": "t", "id": "7"})
    message = get(connection, "q")
    fault = Fault("ValueError", "no", None)
    message.channel.settle(message.delivery_tag, Outcome.retry(fault, in_s=60))
    found = _newest(store)
    assert (found["state"], found["attempts"], found["error_message"]) == ("failed", 1, "no")
    with pytest.raises(LeaseLost):
        message.channel.settle(message.delivery_tag, Outcome.done())


def test_a_reject_ends_in_the_dead_letters_with_its_cause(
    connection: kombu.Connection, store: Store
) -> None:
    publish(connection, "q")
    get(connection, "q").reject()
    assert _states(store) == ["permanently_failed"]
    assert attempts_of(store, _newest(store)["id"]) == [(1, 1, "rejected", "Rejected")]


def test_extend_lengthens_a_lease_or_says_that_it_is_over(
    connection: kombu.Connection, store: Store
) -> None:
    publish(connection, "q")
    message = get(connection, "q")
    before_ms = _newest(store)["lease_until_ms"]
    message.channel.extend(message.delivery_tag, 7200)
    assert _newest(store)["lease_until_ms"] - before_ms >= 3_600_000
    message.ack()
    with pytest.raises(LeaseLost):
        message.channel.extend(message.delivery_tag, 7200)


def test_claim_settles_and_takes_in_one_transaction(
    connection: kombu.Connection, store: Store
) -> None:
    _fill(connection, 3)
    channel = connection.default_channel
    (first,), _ = channel.claim(["q"])
    before = store.database.write_transactions
    (second,), refused = channel.claim(
        ["q"], settlements=[(first.delivery_tag, Outcome.done('"r"'))]
    )
    assert refused == []
    assert store.database.write_transactions == before + 1
    assert _states(store) == ["done", "processing", "pending"]

    _, refused = channel.claim(
        ["q"],
        0,
        settlements=[(first.delivery_tag, Outcome.done()), (second.delivery_tag, Outcome.done())],
    )
    assert refused == [first.delivery_tag]
    assert _states(store) == ["done", "done", "pending"]
    channel.close()  # has nothing left to hand back
    assert _states(store) == ["done", "done", "pending"]


def test_acks_may_come_from_any_thread(connection: kombu.Connection, store: Store) -> None:
    _fill(connection, 200)
    channel = connection.channel()
    errors: list[BaseException] = []

    def acknowledge(messages: list[Any]) -> None:
        try:
            for message in messages:
                message.ack()
        except BaseException as error:  # noqa: BLE001 - shown by the assertion
            errors.append(error)

    seen = _Seen(ack=False)
    channel.basic_qos(0, 200, False)
    channel.basic_consume("q", False, seen)
    for _ in range(200):
        connection.drain_events(timeout=5)
    threads = [
        threading.Thread(target=acknowledge, args=(seen.messages[number::4],))
        for number in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert _states(store) == ["done"] * 200
    assert not channel.held_tags()


def test_an_ack_of_another_thread_wakes_a_drain_that_was_full(
    connection: kombu.Connection,
) -> None:
    """Otherwise a pool of threads with a prefetch of one would do one message a second."""
    _fill(connection, 2)
    channel = connection.channel()
    channel.basic_qos(0, 1, False)
    seen = _Seen(ack=False)
    channel.basic_consume("q", False, seen)
    connection.drain_events(timeout=5)
    began_s = time.monotonic()
    acknowledging = threading.Timer(0.1, seen.messages[0].ack)
    acknowledging.start()
    connection.drain_events(timeout=5)
    acknowledging.join()
    assert len(seen.messages) == 2
    assert time.monotonic() - began_s < 0.6


def test_a_full_channel_waits_without_spinning_while_something_is_due(
    connection: kombu.Connection, store: Store
) -> None:
    publish(connection, "q")
    publish(connection, "q", headers={"eta": _iso(0.05)})
    channel = connection.channel()
    channel.basic_qos(0, 1, False)
    channel.basic_consume("q", False, _Seen(ack=False))
    connection.drain_events(timeout=5)
    before = store.database.read_transactions
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.4)
    assert store.database.read_transactions - before < 10


# -- the end ----------------------------------------------------------------------------------------


def test_a_closed_channel_hands_back_in_place_what_it_held(
    connection: kombu.Connection, store: Store
) -> None:
    _fill(connection, 5)
    channel = connection.channel()
    channel._batch = 3
    channel.basic_consume("q", False, _Seen(ack=False))
    connection.drain_events(timeout=5)
    channel.basic_get("q")
    assert _states(store).count("processing") == 4
    channel.close()
    channel.close()
    assert _states(store) == ["pending"] * 5
    assert rows_of(store, "SELECT sum(attempts) FROM message") == [(0,)]
    assert [get(connection, "q").payload for _ in range(5)] == ["0", "1", "2", "3", "4"]


def test_a_closed_channel_claims_nothing(connection: kombu.Connection, store: Store) -> None:
    _fill(connection, 1)
    channel = connection.channel()
    channel.close()
    for use in (
        lambda: channel.basic_get("q"),
        lambda: channel.basic_consume("q", False, print),
        lambda: channel.claim(["q"]),
    ):
        with pytest.raises(CannotOpen, match="closed"):
            use()
    assert _states(store) == ["pending"]


def test_a_forked_child_does_not_hand_back_what_its_parent_holds(
    connection: kombu.Connection, store: Store
) -> None:
    _fill(connection, 1)
    message = get(connection, "q")
    child = os.fork()
    if not child:
        status = 1
        try:
            message.channel.basic_recover()
            connection.release()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert _states(store) == ["processing"]
    message.ack()
    assert _states(store) == ["done"]


def test_a_consumer_that_was_taken_for_dead_is_told_to_connect_again(
    connection: kombu.Connection, store: Store, path: Path
) -> None:
    _fill(connection, 2)
    seen = _Seen(ack=False)
    connection.channel().basic_consume("q", False, seen)
    connection.drain_events(timeout=5)
    swept = store.consumers.worker_id
    store.consumers.end_worker(swept)

    with pytest.raises(connection.connection_errors, match="taken for dead"):
        connection.drain_events(timeout=5)

    with connect(path) as anew:
        anew.channel().basic_consume("q", False, seen)
        anew.drain_events(timeout=5)
        assert store.consumers.worker_id != swept
        assert seen.bodies == ["0", "0"]  # delivered again, because it had been given back
        with pytest.raises(LeaseLost):
            seen.messages[0].ack()
        seen.messages[1].ack()
        assert state_of(store, seen.messages[1].delivery.message_id) is State.DONE


def test_declaring_a_queue_that_goes_away_at_that_moment_is_no_error(
    connection: kombu.Connection, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was there when it was declared, and a declaration finds nothing missing."""
    touch = store.topology.touch

    def leave_and_touch(name: str) -> None:
        store.consumers.stop_consuming({"tag": name})
        touch(name)

    channel = connection.default_channel
    channel.queue_declare("q", auto_delete=True)
    store.consumers.consume("tag", "q")
    monkeypatch.setattr(store.topology, "touch", leave_and_touch)
    assert channel.queue_declare("q", auto_delete=True).queue == "q"


@pytest.mark.parametrize("ends_by", ["close", "cancel"])
def test_what_a_full_disk_keeps_a_channel_from_handing_back_is_handed_back_later(
    connection: kombu.Connection,
    store: Store,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ends_by: str,
) -> None:
    """A program reconnects in the same process, so nobody would take it for dead.

    Nor may the other connections of the process suffer from it.
    """
    others = connect(path)
    publish(others, "held")
    held = get(others, "held")
    channel = connection.channel()
    channel.queue_declare("q", auto_delete=True)
    tag = channel.basic_consume("q", False, lambda _: None)
    if ends_by == "close":
        publish(connection, "q")
        connection.drain_events(timeout=10)

    end = channel.close if ends_by == "close" else functools.partial(channel.basic_cancel, tag)
    with monkeypatch.context() as patched:
        patched.setattr(store.database, "write", _refuse)
        with pytest.raises(DiskFault):
            end()
    with connect(path) as again:
        again.default_channel.queue_declare("other")
        again.default_channel.basic_consume("other", False, lambda _: None)
        wait_until(lambda: not store.topology.has_queue("q"))
    held.ack()
    others.release()
    assert rows_of(store, "SELECT queue, state FROM message") == [("held", "done")]


@pytest.mark.parametrize(
    ("method", "state"), [("ack", "done"), ("reject", "permanently_failed"), ("requeue", "pending")]
)
def test_what_a_moment_of_a_full_disk_keeps_from_being_settled_is_settled_later(
    connection: kombu.Connection, store: Store, method: str, state: str
) -> None:
    """Celery does not come back to it: it waits for a connection that breaks, and here none does."""
    seen = _refused_settlement(connection, method)
    wait_until(lambda: _states(store) == [state])
    if method != "requeue":
        publish(connection, "q", headers={"id": "second", "task": "t"})
    connection.drain_events(timeout=10)  # the first does not fill the prefetch for ever
    assert len(seen.messages) == 2


@pytest.mark.parametrize(
    ("method", "state"), [("ack", "done"), ("reject", "permanently_failed"), ("requeue", "pending")]
)
def test_what_could_not_be_settled_is_not_handed_back_by_the_end_of_its_connection(
    connection: kombu.Connection, path: Path, method: str, state: str
) -> None:
    _refused_settlement(connection, method, keep_leases=False)
    connection.release()
    with connect(path) as again:
        assert _states(store_of(again)) == [state]


def _refused_settlement(
    connection: kombu.Connection, method: str, *, keep_leases: bool = True
) -> _Seen:
    """Consume a job of the queue "q", one at a time, and settle it while the disk is full."""
    connection.connect()
    transport = connection.transport
    transport.options = dataclasses.replace(transport.options, keep_leases=keep_leases)
    channel = connection.channel()
    channel.basic_qos(prefetch_count=1)
    channel.queue_declare("q")
    seen = _Seen(ack=False)
    channel.basic_consume("q", False, seen)
    publish(connection, "q", headers={"id": "first", "task": "t"})
    connection.drain_events(timeout=10)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(store_of(connection).database, "write", _refuse)
        with pytest.raises(DiskFault):
            getattr(seen.messages[0], method)()
    return seen


def test_who_acknowledges_again_himself_is_not_hindered(
    connection: kombu.Connection, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(connection, "q", headers={"id": "first", "task": "t"})
    message = get(connection, "q")
    with monkeypatch.context() as patched:
        patched.setattr(store.database, "write", _refuse)
        with pytest.raises(DiskFault):
            message.ack()
    message.ack()
    assert _states(store) == ["done"]
    store.do_what_is_owed()
    assert _states(store) == ["done"]


def test_of_two_connections_that_declare_an_exclusive_queue_at_once_one_has_it(
    connection: kombu.Connection, store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Store(path)
    owner_id = other.consumers.worker_id
    declare = store.topology.declare_queue

    def come_second(name: str, **options: Any) -> bool:
        other.topology.declare_queue(name, exclusive=True, owner_id=owner_id)
        return declare(name, **options)

    channel = connection.default_channel
    monkeypatch.setattr(store.topology, "declare_queue", come_second)
    with pytest.raises(ChannelError, match="RESOURCE_LOCKED"):
        channel.queue_declare("q", exclusive=True)
    other.close()


def test_a_job_that_expired_by_its_own_header_is_handed_to_a_plain_consumer(
    connection: kombu.Connection, store: Store
) -> None:
    """Celery's worker ends it itself: with a result, a signal, and for the chord around it."""
    publish(connection, "q", headers={"task": "t", "expires": _iso(-1)})
    store.consumers.sweep()
    assert _states(store) == ["pending"]
    get(connection, "q").ack()
    assert _states(store) == ["done"]


def test_what_amqp_itself_lets_expire_is_handed_to_nobody(
    connection: kombu.Connection, store: Store
) -> None:
    publish(connection, "q", headers={"task": "t", "expires": _iso(60)}, expiration=-1)
    publish(connection, "q", headers={"expires": _iso(-1)})  # no job, so nobody's business
    assert connection.default_channel.basic_get("q") is None
    assert _states(store) == ["expired"]


def test_a_worker_of_the_framework_is_not_handed_what_has_expired(
    connection: kombu.Connection, store: Store
) -> None:
    publish(connection, "q", headers={"task": "t", "expires": _iso(-1)})
    assert connection.default_channel.claim(["q"]) == ([], [])
    assert _states(store) == ["expired"]


def test_celery_writes_its_expiry_twice_and_it_stays_the_headers(
    connection: kombu.Connection, store: Store
) -> None:
    publish(connection, "q", headers={"task": "t", "expires": _iso(-1)}, expiration=-1.001)
    get(connection, "q").ack()
    assert _states(store) == ["done"]
