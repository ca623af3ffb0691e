"""Queues, exchanges and bindings: rows in the file, so every process sees the same ones at once."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from sqlqueue_transport.errors import InvalidMessage

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping

    from sqlqueue_transport.clock import Clock
    from sqlqueue_transport.database import Database

LONGEST_NAME = 255  # AMQP's short string (AMQP 0-9-1, 4.2.5.3)

_DECLARE_QUEUE = """
INSERT INTO queue (name, durable, exclusive, auto_delete, arguments, created_at_ms)
VALUES (:name, :durable, :exclusive, :auto_delete, :arguments, :now_ms)
ON CONFLICT (name) DO NOTHING
"""
_HAS_QUEUE = "SELECT 1 FROM queue WHERE name = :name"
_READY_COUNT = "SELECT count(*) FROM message WHERE state = 'pending' AND queue = :queue"
_CONSUMER_COUNT = """
SELECT count(*) FROM worker
WHERE ended_at_ms IS NULL
  AND EXISTS (SELECT 1 FROM json_each(worker.queues) WHERE value = :queue)
"""
# Only what waits is purged, as in AMQP: what somebody holds is his. Purged messages are gone.
_PURGE = "DELETE FROM message WHERE state = 'pending' AND queue = :queue"
_PURGE_LATER = """
DELETE FROM message WHERE state IN ('scheduled', 'failed') AND queue = :queue
"""
_DELETE_QUEUE = "DELETE FROM queue WHERE name = :name"
_DECLARE_EXCHANGE = """
INSERT INTO exchange (name, type, durable, auto_delete, arguments)
VALUES (:name, :type, :durable, :auto_delete, :arguments)
ON CONFLICT (name) DO NOTHING
"""
_EXCHANGE_TYPE = "SELECT type FROM exchange WHERE name = :name"
_DELETE_EXCHANGE = "DELETE FROM exchange WHERE name = :name"
_DELETE_EXCHANGE_BINDINGS = "DELETE FROM binding WHERE exchange = :name"
_BIND = """
INSERT INTO binding (exchange, routing_key, queue, arguments)
VALUES (:exchange, :routing_key, :queue, :arguments)
ON CONFLICT DO NOTHING
"""
_UNBIND = """
DELETE FROM binding
WHERE exchange = :exchange AND routing_key = :routing_key AND queue = :queue
"""
_BINDINGS = "SELECT queue, exchange, routing_key FROM binding ORDER BY exchange, routing_key, queue"


class Topology:
    """Declare and delete what messages travel through. Each call is one transaction."""

    def __init__(self, database: Database, clock: Clock) -> None:
        """Remember where."""
        self._database = database
        self._clock = clock

    def declare_queue(
        self,
        name: str,
        *,
        durable: bool = True,
        exclusive: bool = False,
        auto_delete: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Make a queue unless it is there; looks first, so that a repetition writes nothing."""
        valid_name(name, what="queue")
        if self.has_queue(name):
            return
        values = {
            "name": name,
            "durable": int(durable),
            "exclusive": int(exclusive),
            "auto_delete": int(auto_delete),
            "arguments": json.dumps(dict(arguments or {}), default=str),
            "now_ms": self._clock.wall_ms(),
        }
        self._database.write(lambda c: c.execute(_DECLARE_QUEUE, values).rowcount)

    def has_queue(self, name: str) -> bool:
        """Say whether the queue was declared."""
        return bool(self._database.read(lambda c: c.execute(_HAS_QUEUE, {"name": name}).fetchone()))

    def size(self, name: str) -> int:
        """Return how many messages of a queue are ready."""
        count: int = self._database.read(
            lambda c: c.execute(_READY_COUNT, {"queue": name}).fetchone()[0]
        )
        return count

    def consumers(self, name: str) -> int:
        """Return how many registered processes consume a queue."""
        count: int = self._database.read(
            lambda c: c.execute(_CONSUMER_COUNT, {"queue": name}).fetchone()[0]
        )
        return count

    def purge(self, name: str) -> int:
        """Delete what is ready in a queue and return how many; what is held or due later stays."""
        return self._database.write(lambda c: c.execute(_PURGE, {"queue": name}).rowcount)

    def delete_queue(self, name: str, *, if_unused: bool = False, if_empty: bool = False) -> int:
        """Delete a queue with its bindings and waiting messages; return how many were ready.

        What a consumer holds is left to it. Nothing happens when a condition is not met, as in
        Kombu's virtual transports.
        """

        def work(connection: sqlite3.Connection) -> int:
            ready = connection.execute(_READY_COUNT, {"queue": name}).fetchone()[0]
            used = connection.execute(_CONSUMER_COUNT, {"queue": name}).fetchone()[0]
            if (if_empty and ready) or (if_unused and used):
                return 0
            purged = connection.execute(_PURGE, {"queue": name}).rowcount
            connection.execute(_PURGE_LATER, {"queue": name})
            connection.execute(_DELETE_QUEUE, {"name": name})
            return purged

        return self._database.write(work)

    def declare_exchange(
        self,
        name: str,
        kind: str,
        *,
        durable: bool = True,
        auto_delete: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """Make an exchange unless it is there and return the type it has."""
        valid_name(name, what="exchange")
        known = self.exchange_type(name)
        if known is None:
            values = {
                "name": name,
                "type": kind,
                "durable": int(durable),
                "auto_delete": int(auto_delete),
                "arguments": json.dumps(dict(arguments or {}), default=str),
            }
            self._database.write(lambda c: c.execute(_DECLARE_EXCHANGE, values).rowcount)
            known = self.exchange_type(name) or kind
        return known

    def exchange_type(self, name: str) -> str | None:
        """Return an exchange's type; None when it was not declared."""
        row = self._database.read(lambda c: c.execute(_EXCHANGE_TYPE, {"name": name}).fetchone())
        return row[0] if row else None

    def delete_exchange(self, name: str) -> None:
        """Delete an exchange and its bindings; queues and their messages stay."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(_DELETE_EXCHANGE_BINDINGS, {"name": name})
            connection.execute(_DELETE_EXCHANGE, {"name": name})

        self._database.write(work)

    def bind(
        self,
        queue: str,
        exchange: str,
        routing_key: str,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Route an exchange's messages with this key to a queue, which is made if need be."""
        values = {
            "queue": queue,
            "exchange": exchange,
            "routing_key": routing_key,
            "arguments": json.dumps(dict(arguments or {}), default=str),
        }
        if (queue, exchange, routing_key) in self.bindings():
            return
        self.declare_queue(queue)
        self._database.write(lambda c: c.execute(_BIND, values).rowcount)

    def unbind(self, queue: str, exchange: str, routing_key: str) -> None:
        """Remove one binding; harmless when it is not there."""
        values = {"queue": queue, "exchange": exchange, "routing_key": routing_key}
        self._database.write(lambda c: c.execute(_UNBIND, values).rowcount)

    def bindings(self) -> list[tuple[str, str, str]]:
        """Return every binding as (queue, exchange, routing key)."""
        return self._database.read(lambda c: c.execute(_BINDINGS).fetchall())


def valid_name(name: str, *, what: str) -> str:
    """Return the name, or raise InvalidMessage when it cannot be one.

    Control characters would forge lines in logs and terminals, and AMQP ends names at 255 bytes.
    """
    if not name:
        message = f"a {what} needs a name"
        raise InvalidMessage(message)
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        message = f"{what} name {name!r} contains a lone surrogate; use valid Unicode text"
        raise InvalidMessage(message) from None
    if length > LONGEST_NAME:
        message = f"{what} name of {length} bytes is too long; {LONGEST_NAME} are allowed"
        raise InvalidMessage(message)
    if any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in name):  # noqa: PLR2004
        message = f"{what} name {name!r} contains control characters; leave them out"
        raise InvalidMessage(message)
    return name
