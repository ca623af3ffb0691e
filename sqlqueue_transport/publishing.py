"""Turn what Kombu publishes into a row: the first edge a message crosses, and the strictest.

What cannot be stored is refused here, with a sentence, before anything is written. JSON is
written by the standard library and never with Kombu's own decoder in mind: that one revives
`__type__` objects, which would make data run code.
"""

from __future__ import annotations

import json
from datetime import date, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlqueue_transport.errors import InvalidMessage
from sqlqueue_transport.messages import NewMessage
from sqlqueue_transport.showing import shown
from sqlqueue_transport.topology import valid_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlqueue_transport.channel import Channel

# Properties of our own; other transports ignore what they do not know.
UNIQUE_PROPERTY = "sqlqueue_job_id"
MAX_ATTEMPTS_PROPERTY = "sqlqueue_max_attempts"
LOWEST_PRIORITY, HIGHEST_PRIORITY = 0, 9
_TRANSIENT = (1, "1", "transient")  # AMQP's delivery mode; Kombu's default is 2, persistent
_SAME_MOMENT_MS = 1000  # one is counted from when Celery began to publish, the other from now
_LARGEST_INTEGER = 2**63 - 1
_EPOCH, _MILLISECOND = datetime.fromtimestamp(0, tz=timezone.utc), timedelta(milliseconds=1)
# What Kombu's virtual base adds for itself; delivery info and tag are made anew at delivery.
_NOT_STORED = frozenset(
    {"delivery_info", "delivery_tag", "body_encoding", UNIQUE_PROPERTY, MAX_ATTEMPTS_PROPERTY}
)


def new_message(
    message: dict[str, Any], exchange: str, routing_key: str, *, now_ms: int, hold_eta: bool
) -> NewMessage:
    """Make the row of a message that Kombu prepared (`Channel.prepare_message`).

    With `hold_eta` its `eta` header keeps it in the file until then. Raises InvalidMessage.
    """
    headers, properties = message["headers"], message["properties"]
    if exchange:
        valid_name(exchange, what="exchange")
        if routing_key:
            # A topic's patterns are compared with each of its words, inside of a transaction.
            valid_name(routing_key, what="routing key")
    else:
        valid_name(routing_key, what="queue")
    job_id, task = headers.get("id"), headers.get("task")
    eta, expires = headers.get("eta"), headers.get("expires")
    expiration = properties.get("expiration")
    never = expires is None and expiration is None
    kept = {name: value for name, value in properties.items() if name not in _NOT_STORED}
    return NewMessage(
        body=_as_bytes(message["body"], message["content-encoding"]),
        queue=None if exchange else routing_key,
        exchange=exchange,
        routing_key=routing_key,
        content_type=message["content-type"],
        content_encoding=message["content-encoding"],
        headers=_as_json(headers, "headers"),
        properties=_as_json(kept, "properties"),
        priority=_priority(properties.get("priority")),
        job_id=job_id if isinstance(job_id, str) else None,
        task=task if isinstance(task, str) else None,
        unique_key=_unique_key(properties.get(UNIQUE_PROPERTY)),
        due_at_ms=time_ms(eta) if hold_eta and eta is not None else None,
        expires_at_ms=None if never else _expires_ms(expires, expiration, now_ms),
        max_attempts=_max_attempts(properties.get(MAX_ATTEMPTS_PROPERTY)),
        transient=properties.get("delivery_mode") in _TRANSIENT,
        # Celery's own names for them.
        goes_on=bool(headers.get("parent_id") or headers.get("retries")),
    )


class PublishBatch:
    """Hold the publishes of one `Producer.batch` (Kombu 5.7): each flush is one transaction.

    If the process dies midway, the flushes before are stored and the rest is not.
    """

    def __init__(self, channel: Channel, max_size: int) -> None:
        """Hold up to `max_size` messages between two flushes."""
        self.channel = channel
        self._max_size = max_size
        self._waiting: list[NewMessage] = []

    def publish(self, message: dict[str, Any], exchange: str, routing_key: str, **_: Any) -> None:
        """Take one message. Raises InvalidMessage, and then only that one is left out."""
        self._waiting.append(self.channel.new_message(message, exchange, routing_key))
        if len(self._waiting) >= self._max_size:
            self.flush()

    def flush(self) -> None:
        """Store what was taken. When this raises, none of it is published again by the batch."""
        waiting, self._waiting = self._waiting, []
        self.channel.publish_all(waiting)

    def discard(self) -> None:
        """Forget what was taken since the last flush."""
        self._waiting = []

    def close(self) -> None:
        """Do nothing: a batch holds neither a lock nor a transaction."""


def _as_bytes(body: object, content_encoding: str | None) -> bytes:
    if isinstance(body, bytes):
        return body
    if isinstance(body, (bytearray, memoryview)):
        return bytes(body)
    if body is None:
        return b""
    encoding = content_encoding if content_encoding not in {None, "binary"} else "utf-8"
    try:
        return str(body).encode(encoding or "utf-8")
    except (UnicodeEncodeError, LookupError) as error:
        message = f"the body cannot be written as {encoding}: {error}"
        raise InvalidMessage(message) from error


def _as_json(values: dict[str, Any], what: str) -> str:
    try:
        return _encode(values)
    except (TypeError, ValueError, RecursionError) as error:
        message = f"the {what} of the message cannot be stored as JSON: {error}"
        raise InvalidMessage(message) from error


def _plain(value: object) -> object:
    """Write what Kombu programs put into headers."""
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, (set, frozenset, tuple)):
        return list(value)
    if isinstance(value, bytes):
        return value.decode("utf-8")
    text = f"{type(value).__name__} is not JSON"
    raise TypeError(text)


def _make_encode() -> Callable[[object], str]:
    """Return a function that writes JSON.

    `json.dumps` makes a new encoder for every call, and `JSONEncoder.encode` makes the half of it
    that is written in C: 8.8 µs for Celery's headers, of which 2.5 are the encoding. So that half is
    made once, as `JSONEncoder.iterencode` does it (CPython 3.10 to 3.14). It does not look for
    circles, which needs a state; they end as what is nested too deeply does, in a RecursionError.
    """
    encoder = json.JSONEncoder(default=_plain, allow_nan=False, separators=(",", ":"))
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:  # PyPy
        return encoder.encode
    escape = json.encoder.encode_basestring_ascii
    in_c = make(None, _plain, escape, None, ":", ",", False, False, False)  # noqa: FBT003 - its own
    return lambda values: "".join(in_c(values, 0))


_encode = _make_encode()


def _priority(given: object) -> int:
    """Return 0 to 9, clamped as in Kombu's virtual transports; text or fractions are refused."""
    if given is None:
        return LOWEST_PRIORITY
    if isinstance(given, bool) or not isinstance(given, int):
        message = f"priority {shown(given)} is not a whole number from 0 to 9"
        raise InvalidMessage(message)
    return max(LOWEST_PRIORITY, min(given, HIGHEST_PRIORITY))


def _unique_key(given: object) -> str | None:
    if given is None or (isinstance(given, str) and given):
        return given
    message = f"{UNIQUE_PROPERTY}={shown(given)} is not usable: give a text that is not empty"
    raise InvalidMessage(message)


def _max_attempts(given: object) -> int | None:
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given < 2**31:
        message = (
            f"{MAX_ATTEMPTS_PROPERTY}={shown(given)} is not usable: give a whole number,"
            " 0 for no limit"
        )
        raise InvalidMessage(message)
    return given


def _expires_ms(expires: object, expiration: object, now_ms: int) -> int | None:
    """Return the earlier of Celery's `expires` header and AMQP's `expiration` (ms, as text).

    Celery writes the same moment into both; then it is the header's, so that one can tell later
    whose business it is (`Store.claim`).
    """
    header_ms = time_ms(expires)
    if expiration is None:
        return header_ms
    try:
        expiration_ms = min(now_ms + int(str(expiration)), _LARGEST_INTEGER)
    except ValueError:
        message = f"expiration {shown(expiration)} is not a number of milliseconds"
        raise InvalidMessage(message) from None
    if header_ms is None:
        return expiration_ms
    is_the_same = abs(header_ms - expiration_ms) < _SAME_MOMENT_MS
    return header_ms if is_the_same else min(header_ms, expiration_ms)


def time_ms(given: object) -> int | None:
    """Read a time of Celery's headers: ISO 8601 text, a datetime, or None.

    Rounded up, so that nobody gets a message before its time and has to hold it for the rest of
    the millisecond. A time without a zone is UTC. What cannot be read is left to the consumer, who
    reads the same header: the message is then delivered at once.
    """
    if isinstance(given, str):
        try:
            given = datetime.fromisoformat(given.replace("Z", "+00:00"))
        except ValueError:
            return None
    if not isinstance(given, datetime):
        return None
    aware = given if given.tzinfo else given.replace(tzinfo=timezone.utc)
    return -((_EPOCH - aware) // _MILLISECOND)
