"""Messages that wait, expire, overtake or are too many, and where they go then."""

from __future__ import annotations

import socket
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from kombu import Consumer, Queue

from tests.contract.conftest import Broker
from tests.contract.verbs import (
    drain_all,
    get,
    publish,
)


def test_higher_priorities_are_delivered_first(sqlqueue: Broker) -> None:
    connection = sqlqueue.connect()
    for priority in (0, 5, 9, 5, 0):
        publish(connection, priority, priority=priority)
    assert [get(connection).payload for _ in range(5)] == [9, 5, 5, 0, 0]


def test_an_eta_is_held_in_the_file_until_it_is_due(sqlqueue: Broker, frozen: Any) -> None:
    connection = sqlqueue.connect()
    due = datetime.now(timezone.utc) + timedelta(hours=1)
    publish(connection, "later", headers={"eta": due.isoformat()})
    publish(connection, "now")
    found: list[Any] = []
    with Consumer(connection.default_channel, [Queue("q")], no_ack=True,
                  callbacks=[lambda body, _: found.append(body)]):  # fmt: skip
        drain_all(connection, 1)
        frozen.tick(timedelta(minutes=59))
        with pytest.raises(socket.timeout):
            connection.drain_events(timeout=0.05)
        frozen.tick(timedelta(minutes=1, seconds=1))
        drain_all(connection, 1)
    assert found == ["now", "later"]


def test_a_countdown_longer_than_the_visibility_timeout_is_delivered_once(
    sqlqueue: Broker, frozen: Any
) -> None:
    """In transports that hold such messages in the worker they are delivered again and again."""
    connection = sqlqueue.connect(visibility_timeout=60)
    due = datetime.now(timezone.utc) + timedelta(hours=1)
    publish(connection, "x", headers={"eta": due.isoformat()})
    for _ in range(6):
        frozen.tick(timedelta(minutes=9))
        assert get(connection) is None
    frozen.tick(timedelta(minutes=6, seconds=1))
    get(connection).ack()
    assert get(connection) is None


def test_a_message_expires(sqlqueue: Broker, frozen: Any) -> None:
    connection = sqlqueue.connect()
    publish(connection, "short", expiration=60)
    publish(connection, "long", expiration=3600)
    frozen.tick(timedelta(seconds=61))
    assert get(connection).payload == "long"
    assert get(connection) is None


def test_a_frozen_clock_does_not_hang_a_drain(sqlqueue: Broker, frozen: Any) -> None:
    connection = sqlqueue.connect()
    with Consumer(connection.default_channel, [Queue("q")]), pytest.raises(socket.timeout):
        connection.drain_events(timeout=0.05)
