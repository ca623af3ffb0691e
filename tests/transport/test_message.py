"""Our Kombu message: everything Kombu's consumers ask of one, decoded no earlier than asked."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kombu
import pytest
from kombu.compression import compress, register
from kombu.exceptions import ContentDisallowed, MessageStateError

from sqlqueue_transport import message as message_module
from sqlqueue_transport.message import Message
from tests.transport.broker import connect, get


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[kombu.Connection]:
    with connect(tmp_path / "queue.db") as opened:
        yield opened


def _publish(connection: kombu.Connection, body: Any, **options: Any) -> None:
    kombu.Producer(connection.default_channel).publish(body, routing_key="q", **options)


def test_a_message_has_what_kombu_and_celery_look_at(connection: kombu.Connection) -> None:
    _publish(
        connection,
        {"a": [1, "ü"]},
        headers={"task": "t", "id": "7", "nested": {"x": None}},
        priority=3,
        correlation_id="7",
        reply_to="answers",
    )
    message = get(connection, "q")

    assert message.payload == {"a": [1, "ü"]}
    assert message.headers == {"task": "t", "id": "7", "nested": {"x": None}}
    assert (message.content_type, message.content_encoding) == ("application/json", "utf-8")
    assert message.properties["correlation_id"] == "7"
    assert message.properties["reply_to"] == "answers"
    assert message.properties["priority"] == 3
    assert message.properties["delivery_tag"] == message.delivery_tag
    assert message.properties["delivery_info"] == message.delivery_info
    assert message.delivery_info == {
        "exchange": "",
        "routing_key": "q",
        "redelivered": False,
        "priority": 3,
    }
    assert not message.errors
    assert str(message.delivery_tag) in repr(message)


def test_wrapping_a_delivery_decodes_nothing(connection: kombu.Connection) -> None:
    _publish(connection, {"a": 1}, headers={"task": "t"})
    message = get(connection, "q", look=False)
    assert not {"headers", "properties", "body"} & set(vars(message))
    _ = message.headers
    assert "properties" not in vars(message)


def test_kombus_own_bookkeeping_is_not_stored(connection: kombu.Connection) -> None:
    _publish(connection, "x")
    stored = get(connection, "q").delivery.properties
    assert "delivery_tag" not in stored
    assert "delivery_info" not in stored


@pytest.mark.parametrize("codec", ["gzip", "zlib", "bzip2", "lzma"])
def test_a_compressed_body_comes_back(connection: kombu.Connection, codec: str) -> None:
    _publish(connection, "ü" * 10_000, compression=codec)
    message = get(connection, "q")
    assert len(message.delivery.body) < 1000
    assert message.payload == "ü" * 10_000


def test_a_codec_the_user_registered_is_used(connection: kombu.Connection) -> None:
    register(lambda body: body[::-1], lambda body: body[::-1], "application/x-backwards", ["back"])
    _publish(connection, "abc", compression="back")
    message = get(connection, "q")
    assert message.delivery.body == b"cba"
    assert message.payload == "abc"


@pytest.mark.parametrize(
    ("body", "codec"),
    [
        (b"no zlib at all", "application/x-gzip"),
        (zlib.compress(b"x" * 1000)[:-5], "application/x-gzip"),
        (b"", "application/x-gzip"),
        (bz2.compress(b"x")[:-3], "application/x-bz2"),
        (lzma.compress(b"x")[:-3], "application/x-lzma"),
        (b"x", "application/x-nobody-knows"),
        (b"x", "\x00"),
    ],
)
def test_a_body_that_cannot_be_unpacked_is_reported_as_kombu_does(
    connection: kombu.Connection, body: bytes, codec: str
) -> None:
    channel = connection.default_channel
    channel.basic_publish(
        channel.prepare_message(body, 0, "application/json", "utf-8", {"compression": codec}, {}),
        "",
        "q",
    )
    reported = []
    consumer = kombu.Consumer(
        channel, [kombu.Queue("q")], on_decode_error=lambda message, error: reported.append(error)
    )
    with consumer:
        connection.drain_events(timeout=5)
    assert len(reported) == 1


@pytest.mark.parametrize("column", ["headers", "properties"])
@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", '{"a": ' * 2000, "\ud800", '{"a": ' + "1" * 5000 + "}"]
)
def test_what_another_program_wrote_in_place_of_headers_ends_no_consumer(
    connection: kombu.Connection, column: str, text: str
) -> None:
    """A Celery worker would meet it again after each start."""
    _publish(connection, "x", headers={"a": 1})
    store = connection.default_channel.store  # type: ignore[attr-defined]
    store.database.write(
        lambda c: (
            c.execute(
                f"UPDATE message SET {column} = CAST(? AS TEXT)",
                (text.encode("utf-8", "surrogatepass"),),
            ).rowcount
        )
    )
    reported, received = [], []
    consumer = kombu.Consumer(
        connection.default_channel,
        [kombu.Queue("q")],
        callbacks=[lambda _, message: received.append(message)],
        on_decode_error=lambda message, error: reported.append(error),
    )
    with consumer:
        connection.drain_events(timeout=5)
    assert (len(reported), len(received)) == ((1, 0) if column == "headers" else (0, 1))
    for message in received:
        assert message.properties["delivery_tag"] == message.delivery_tag


@pytest.mark.parametrize("codec", ["gzip", "bzip2", "lzma"])
def test_a_bomb_is_not_unpacked(
    connection: kombu.Connection, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(message_module, "LARGEST_UNPACKED_BYTES", 1_000_000)
    packed, content_type = compress(bytes(20_000_000), codec)
    assert len(packed) < 25_000
    channel = connection.default_channel
    headers = {"compression": content_type}
    channel.basic_publish(
        channel.prepare_message(packed, 0, "application/data", "binary", headers, {}), "", "q"
    )
    message = get(connection, "q", look=False)
    ((_, error, _),) = message.errors
    assert "unpacks to more than 1000000 bytes" in str(error)
    assert message.body == packed


def test_a_body_of_exactly_the_largest_size_is_unpacked(
    connection: kombu.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(message_module, "LARGEST_UNPACKED_BYTES", 1_000_000)
    _publish(connection, bytes(1_000_000), compression="gzip", content_type="application/data",
             content_encoding="binary")  # fmt: skip
    assert get(connection, "q").body == bytes(1_000_000)


def test_data_is_never_made_into_code(connection: kombu.Connection) -> None:
    """Pickle is refused by Kombu unless asked for; headers never go through Kombu's decoder."""
    _publish(
        connection,
        {"a": 1},
        serializer="pickle",
        headers={"d": {"__type__": "decimal", "__value__": "1e1000000000"}},
    )
    message = get(connection, "q")
    assert message.headers["d"] == {"__type__": "decimal", "__value__": "1e1000000000"}
    message.accept = {"application/json"}
    with pytest.raises(ContentDisallowed):
        message.decode()


def test_a_message_is_acknowledged_once(connection: kombu.Connection) -> None:
    _publish(connection, "x")
    message = get(connection, "q")
    message.ack()
    assert message.acknowledged
    for again in (message.ack, message.reject, message.requeue):
        with pytest.raises(MessageStateError):
            again()


def test_acknowledging_what_needs_none_is_no_fault(connection: kombu.Connection) -> None:
    _publish(connection, "x")
    message = connection.default_channel.basic_get("q", no_ack=True)
    assert isinstance(message, Message)
    message.ack()
    message.ack()


def test_a_message_says_when_it_is_delivered_again(connection: kombu.Connection) -> None:
    _publish(connection, "x")
    first = get(connection, "q")
    assert first.delivery_info["redelivered"] is False
    first.requeue()
    assert get(connection, "q").delivery_info["redelivered"] is True
