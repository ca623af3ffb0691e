"""Kombu connections on a queue file, for the tests of channel and transport."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kombu

import sqlqueue_transport  # registers the scheme
from sqlqueue_transport.message import Message
from sqlqueue_transport.store import Store

assert sqlqueue_transport


def connect(path: Path, **options: Any) -> kombu.Connection:
    """Return a connection on the file, unconnected; `options` are transport options."""
    return kombu.Connection(f"sqlqueue:///{path}", transport_options=options)


def store_of(connection: kombu.Connection) -> Store:
    store: Store = connection.default_channel.store
    return store


def publish(connection: kombu.Connection, queue: str, body: Any = "x", **options: Any) -> None:
    """Publish a job, unless `headers` say otherwise: what is no job leaves no history."""
    options.setdefault("headers", {"task": "tasks.t"})
    kombu.Producer(connection.default_channel).publish(body, routing_key=queue, **options)


def get(connection: kombu.Connection, queue: str, *, look: bool = True) -> Message:
    """Take one message, as a Kombu queue does; `look` at its errors, too."""
    message: Message | None = connection.default_channel.basic_get(queue)
    assert message is not None, f"nothing is ready in {queue}"
    assert not look or not message.errors
    return message
