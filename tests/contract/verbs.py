"""Short words for what the contract's tests do with a connection: publish, get, drain, count."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import kombu
import pytest
from kombu import Consumer, Producer, Queue
from kombu.exceptions import ChannelError


def publish(connection: kombu.Connection, body: Any, queue: str = "q", **options: Any) -> None:
    """Publish to a queue through the default exchange, or to `exchange=` with that as the key."""
    Producer(connection.default_channel).publish(body, routing_key=queue, **options)


def get(connection: kombu.Connection, queue: str = "q", *, no_ack: bool = False) -> Any:
    """Take one message; None when there is none."""
    return connection.default_channel.basic_get(queue, no_ack=no_ack)


def get_all(connection: kombu.Connection, queue: str = "q") -> list[Any]:
    """Take and acknowledge all that is ready; return the bodies."""
    found = []
    while (message := get(connection, queue)) is not None:
        found.append(message.payload)
        message.ack()
    return found


def drain_all(connection: kombu.Connection, wanted: int) -> None:
    """Drain until `wanted` messages were delivered, and then nothing more comes."""
    for _ in range(wanted):
        connection.drain_events(timeout=10)
    with pytest.raises(socket.timeout):
        connection.drain_events(timeout=0)


def turn(connection: kombu.Connection, timeout_s: float = 0.01) -> None:
    """Give a connection the chance to deliver a message, and to look after the file."""
    with contextlib.suppress(socket.timeout):
        connection.drain_events(timeout=timeout_s)


def collecting(
    connection: kombu.Connection,
    *queues: Queue | str,
    into: list[Any] | None = None,
    **options: Any,
) -> Consumer:
    """Return a consumer that acknowledges, and puts the bodies into a list."""
    found = [] if into is None else into

    def on_message(body: Any, message: Any) -> None:
        found.append(body)
        message.ack()

    named = [Queue(one) if isinstance(one, str) else one for one in queues or ("q",)]
    return Consumer(
        options.pop("channel", None) or connection.default_channel,
        named,
        callbacks=[on_message],
        **options,
    )


def declared(connection: kombu.Connection, queue: str = "q") -> Any:
    """Look at a queue: (name, ready, consumers), or None when there is no such queue.

    On a channel of its own, because in AMQP a refusal closes the channel.
    """
    with connection.channel() as channel:
        try:
            return channel.queue_declare(queue, passive=True)
        except ChannelError as error:
            if int(error.reply_code) != 404:
                raise
            return None


def exists(connection: kombu.Connection, queue: str = "q") -> bool:
    """Say whether there is such a queue, and be it another connection's own."""
    try:
        return declared(connection, queue) is not None
    except ChannelError as error:
        if int(error.reply_code) != 405:
            raise
        return True


def declare(connection: kombu.Connection, queue: str = "q", **options: Any) -> Any:
    """Declare a queue with the arguments of Kombu's Queue, and return it."""
    bound = Queue(queue, **options)(connection.default_channel)
    bound.declare()
    return bound


@contextlib.contextmanager
def refused(code: int, match: str | None = None) -> Iterator[Any]:
    """Expect a ChannelError with AMQP's number for what is wrong."""
    with pytest.raises(ChannelError, match=match) as caught:
        yield caught
    assert int(caught.value.reply_code) == code
