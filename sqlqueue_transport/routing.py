"""Where a message goes: from its exchange to queues, and what a queue's own rules make of it there.

All of it runs inside a transaction of the caller and never commits. Who was given a message is
collected in a `Landed`, so that sleepers can be woken after the commit.

A dead letter exchange is where the difference to other transports lies: the message is not
published again, its row moves. So it keeps its id, its attempts' history and its age, and there is
no moment in which it is in neither queue or in both.
"""

from __future__ import annotations

import functools
import itertools
import json
import operator
from dataclasses import replace
from datetime import datetime, timezone
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from sqlqueue_transport import statements as sql
from sqlqueue_transport.errors import NotDeclared, QueueFull
from sqlqueue_transport.lifecycle import State
from sqlqueue_transport.messages import NewMessage, Published

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

# (queue, when it is due or None for now) of every message that became worth waking somebody for.
Landed = list[tuple[str, "int | None"]]

# Queues that got one more, each with how many it may hold (`x-max-length`); see `_shorten`.
_Grown = dict[str, int]

# Above this size a body lies in a table of its own: an ack of a 200 kB row took 207 µs, now 11.
INLINE_BODY_BYTES = 16_384

_PENDING, _SCHEDULED = State.PENDING.value, State.SCHEDULED.value
_NO_RULES = (None, None, None, None)  # of a queue that was declared with no arguments
# What QUEUE_RULES says of queues, None for no rules, for as long as one transaction lasts.
_Rules = dict[str, "tuple[int | None, int | None, int | None, int | None] | None"]

# Ended in one transaction, so that a flood of expired messages never holds the writer for long.
EXPIRED_AT_ONCE = 200

EXCHANGE_TYPES: Final = ("direct", "topic", "fanout")
# There without being declared (AMQP 0-9-1, 3.1.3.1).
_BUILT_IN: Final = {f"amq.{kind}": kind for kind in EXCHANGE_TYPES}


class Unwanted(Enum):
    """Why a message leaves its queue without success; the values are RabbitMQ's, in `x-death`."""

    EXPIRED = "expired"
    REJECTED = "rejected"
    MAXLEN = "maxlen"
    DELIVERY_LIMIT = "delivery_limit"


def publish(
    connection: sqlite3.Connection, messages: Sequence[NewMessage], now_ms: int, landed: Landed
) -> list[Published]:
    """Store each message in every queue it is for; return the answer of its first.

    Raises NotDeclared, and QueueFull where a queue refuses more.
    """
    rules: _Rules = {}
    return [_publish(connection, one, now_ms, landed, rules) for one in messages]


def _publish(
    connection: sqlite3.Connection, message: NewMessage, now_ms: int, landed: Landed, rules: _Rules
) -> Published:
    grown: _Grown = {}
    if message.queue is not None:
        answer = _insert(connection, message, message.queue, now_ms, landed, grown, rules)
    else:
        answers = [
            _insert(connection, message, queue, now_ms, landed, grown, rules)
            for queue in routes(connection, message.exchange, message.routing_key)
        ]
        answer = answers[0] if answers else Published(0, stored=False)
    if grown:
        _shorten(connection, grown, now_ms, landed)
    return answer


def routes(connection: sqlite3.Connection, exchange: str, routing_key: str) -> list[str]:
    """Return the queues that an exchange leads to with this key. Raises NotDeclared."""
    if not exchange:
        return [routing_key] if routing_key else []
    values = {"exchange": exchange, "routing_key": routing_key}
    kind = exchange_type(connection, exchange)
    if kind is None:
        message = f"exchange {exchange!r} was never declared; declare it before publishing to it"
        raise NotDeclared(message)
    if kind == "direct":
        return [queue for (queue,) in connection.execute(sql.ROUTE, values).fetchall()]
    bindings = connection.execute(sql.BINDINGS_OF, values).fetchall()
    if kind == "topic":
        bindings = [one for one in bindings if topic_matches(one[0], routing_key)]
    return list(dict.fromkeys(queue for _, queue in bindings))


def exchange_type(connection: sqlite3.Connection, exchange: str) -> str | None:
    """Return an exchange's type; None when it was not declared."""
    row = connection.execute(sql.EXCHANGE_TYPE, {"exchange": exchange}).fetchone()
    return row[0] if row else _BUILT_IN.get(exchange)


@functools.lru_cache(maxsize=4096)
def topic_matches(pattern: str, routing_key: str) -> bool:
    """Say whether a topic binding takes a key: `*` is one word, `#` any number (AMQP 0-9-1, 3.1.3.3).

    Word by word and not as a regular expression: a pattern with many `#` would make that one
    try for hours.
    """
    words = routing_key.split(".") if routing_key else []
    # At i: whether the pattern so far can stand for the first i words.
    stands = [True, *[False] * len(words)]
    for part in pattern.split(".") if pattern else []:
        if part == "#":
            stands = list(itertools.accumulate(stands, operator.or_))
        else:
            fits = (part in {"*", word} for word in words)
            stands = [False, *map(operator.and_, stands, fits)]
    return stands[-1]


def _insert(  # noqa: PLR0917 - what `publish` and `discard` take, and what they remember
    connection: sqlite3.Connection,
    message: NewMessage,
    queue: str,
    now_ms: int,
    landed: Landed,
    grown: _Grown,
    rules: _Rules,
) -> Published:
    """Store one message in one queue, by the queue's rules; the caller calls `_shorten`."""
    is_later = message.due_at_ms is not None and message.due_at_ms > now_ms
    priority, expires_at_ms, max_length = message.priority, message.expires_at_ms, None
    if queue not in rules:
        found = connection.execute(sql.QUEUE_RULES, {"queue": queue}).fetchone()
        rules[queue] = None if found == _NO_RULES else found
    if (given := rules[queue]) is not None:
        ttl_ms, max_length, max_priority, gone_at_ms = given
        if gone_at_ms is not None:
            return Published(0, stored=False)
        if max_priority is not None:
            priority = min(priority, max_priority)
        if ttl_ms is not None:
            since_ms = message.due_at_ms if is_later and message.due_at_ms else now_ms
            latest_ms = since_ms + ttl_ms
            expires_at_ms = latest_ms if expires_at_ms is None else min(expires_at_ms, latest_ms)
        if max_length is not None:
            _refuse_full(connection, queue, max_length)
    inline = len(message.body) <= INLINE_BODY_BYTES
    cursor = connection.execute(
        sql.PUBLISH,
        (
            queue,
            _SCHEDULED if is_later else _PENDING,
            priority,
            message.job_id,
            message.task,
            message.unique_key,
            message.max_attempts,
            now_ms,
            message.due_at_ms,
            expires_at_ms,
            message.exchange,
            message.routing_key,
            message.content_type,
            message.content_encoding,
            message.headers,
            message.properties,
            message.body if inline else None,
        ),
    )
    if not cursor.rowcount:
        found = connection.execute(sql.FIND_UNIQUE, {"unique_key": message.unique_key}).fetchone()
        return Published(found[0], stored=False)
    message_id = cursor.lastrowid or 0
    if not inline:
        connection.execute(sql.STORE_BODY, {"id": message_id, "content": message.body})
    landed.append((queue, message.due_at_ms if is_later else None))
    if max_length is not None:
        grown[queue] = max_length
    return Published(message_id, stored=True)


# -- full queues ------------------------------------------------------------------------------------


def _refuse_full(connection: sqlite3.Connection, queue: str, max_length: int) -> None:
    """Raise QueueFull for a queue that wants to refuse (`x-overflow`) instead of to drop."""
    (arguments,) = connection.execute(sql.QUEUE_ARGUMENTS, {"queue": queue}).fetchone()
    if json.loads(arguments).get("x-overflow") not in {"reject-publish", "reject-publish-dlx"}:
        return
    if _ready(connection, queue) >= max_length:
        message = f"queue {queue!r} holds {max_length} messages and refuses more (x-max-length)"
        raise QueueFull(message)


def _shorten(connection: sqlite3.Connection, grown: _Grown, now_ms: int, landed: Landed) -> None:
    """Drop the oldest of queues that grew too long. Counting walks over what is ready.

    What one queue drops may make the next too long, where its dead letter exchange leads. They are
    shortened one after the other and never within each other: round a circle that would go as deep
    as the queues are long, and a queue would be shortened while it is being shortened.
    """
    while grown:
        queue, max_length = grown.popitem()
        for _ in range(_ready(connection, queue) - max_length):
            (message_id,) = connection.execute(sql.FIRST_READY, {"queue": queue}).fetchone()
            _discard(connection, message_id, Unwanted.MAXLEN, now_ms, landed, grown)


def _ready(connection: sqlite3.Connection, queue: str) -> int:
    count: int = connection.execute(sql.READY_COUNT, {"queue": queue}).fetchone()[0]
    return count


# -- dead letter exchanges --------------------------------------------------------------------------


def discard(
    connection: sqlite3.Connection, message_id: int, why: Unwanted, now_ms: int, landed: Landed
) -> None:
    """End a pending message that expired or does not fit: to the dead letter exchange, or here.

    A job stays as `expired`, or as a dead letter that says why; what is no job is deleted.
    """
    grown: _Grown = {}
    _discard(connection, message_id, why, now_ms, landed, grown)
    _shorten(connection, grown, now_ms, landed)


def _discard(  # noqa: PLR0917 - what `publish` and `discard` take, and `grown`
    connection: sqlite3.Connection,
    message_id: int,
    why: Unwanted,
    now_ms: int,
    landed: Landed,
    grown: _Grown,
) -> None:
    if _dead_letter(connection, message_id, why, now_ms, landed, grown):
        return
    values = {"id": message_id, "now_ms": now_ms}
    statement = sql.EXPIRE if why is Unwanted.EXPIRED else sql.OVERFLOW
    if not connection.execute(statement, values).rowcount:
        connection.execute(sql.DELETE_PENDING, values)


def dead_letter(
    connection: sqlite3.Connection, message_id: int, why: Unwanted, now_ms: int, landed: Landed
) -> bool:
    """Move a message to where its queue's dead letter exchange leads; say whether it did.

    It does not when the queue names no such exchange, when that leads nowhere or only to queues
    that went away or refuse more, when the message would go round without anybody having rejected
    it on the way (RabbitMQ's guides call that an automatic cycle), and when its headers cannot be
    read or written.
    """
    grown: _Grown = {}
    moved = _dead_letter(connection, message_id, why, now_ms, landed, grown)
    _shorten(connection, grown, now_ms, landed)
    return moved


def _dead_letter(  # noqa: PLR0917 - what `publish` and `discard` take, and `grown`
    connection: sqlite3.Connection,
    message_id: int,
    why: Unwanted,
    now_ms: int,
    landed: Landed,
    grown: _Grown,
) -> bool:
    row = connection.execute(sql.DEAD_LETTER_RULES, {"id": message_id}).fetchone()
    if row is None:
        return False
    exchange, routing_key, queue, from_exchange, from_key, headers_text = row
    key = from_key if routing_key is None else routing_key
    try:
        targets = routes(connection, exchange, key)
    except NotDeclared:
        return False
    headers = _headers(headers_text)
    if headers is None:
        return False
    died = {
        "queue": queue,
        "reason": why.value,
        "count": 1,
        "exchange": from_exchange,
        "routing-keys": [from_key],
        "time": _as_text(now_ms),
    }
    deaths = _with_death(_deaths(headers), died)
    targets = [
        one for one in targets if not _goes_round(deaths, one) and _takes_more(connection, one)
    ]
    if not targets:
        return False
    headers["x-death"] = deaths
    for name in ("queue", "reason", "exchange"):
        headers.setdefault(f"x-first-death-{name}", died[name])
    headers_text = _text(headers)
    if headers_text is None:
        return False
    first, *others = targets
    if others:
        copy = replace(
            _as_new(connection, message_id),
            exchange=exchange,
            routing_key=key,
            headers=headers_text,
        )
        for target in others:
            # None of them refuses: each was asked above, and nothing else has got more since.
            _insert(connection, copy, target, now_ms, landed, grown, {})
    moved = {
        "id": message_id,
        "queue": first,
        "exchange": exchange,
        "routing_key": key,
        "headers": headers_text,
    }
    _move(connection, moved, now_ms, landed, grown)
    return True


def _takes_more(connection: sqlite3.Connection, queue: str) -> bool:
    """Say whether a dead letter can go to a queue; nobody is there to be told if not."""
    rules = connection.execute(sql.QUEUE_RULES, {"queue": queue}).fetchone()
    if rules is None:
        return True
    _, max_length, _, gone_at_ms = rules
    try:
        if max_length is not None:
            _refuse_full(connection, queue, max_length)
    except QueueFull:
        return False
    return gone_at_ms is None


def forget_if_gone(connection: sqlite3.Connection, message_id: int) -> None:
    """Delete a message that came back to a queue which went away while somebody held it.

    Its queue's other messages went with the queue.
    """
    connection.execute(sql.DELETE_FROM_GONE, {"id": message_id})


def _move(
    connection: sqlite3.Connection,
    moved: dict[str, Any],
    now_ms: int,
    landed: Landed,
    grown: _Grown,
) -> None:
    queue = moved["queue"]
    ttl_ms, max_length, max_priority, _ = connection.execute(
        sql.QUEUE_RULES, {"queue": queue}
    ).fetchone() or (None, None, None, None)
    values = {
        **moved,
        "expires_at_ms": None if ttl_ms is None else now_ms + ttl_ms,
        "max_priority": max_priority,
    }
    connection.execute(sql.DEAD_LETTER, values)
    landed.append((queue, None))
    if max_length is not None:
        grown[queue] = max_length


def _headers(text: str) -> dict[str, Any] | None:
    """Return a message's headers; None when somebody wrote what are none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _text(headers: dict[str, Any]) -> str | None:
    """Return headers as JSON; None when they were just small and flat enough to be read."""
    try:
        return json.dumps(headers)
    except (ValueError, RecursionError):
        return None


def _deaths(headers: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a message says of its former deaths; anybody may have written that."""
    found = headers.get("x-death")
    return [
        one
        for one in (found if isinstance(found, list) else ())
        if isinstance(one, dict)
        and isinstance(one.get("queue"), str)
        and isinstance(one.get("reason"), str)
    ]


def _with_death(deaths: Sequence[dict[str, Any]], died: dict[str, Any]) -> list[dict[str, Any]]:
    """Put the newest death in front; one queue and reason is one entry, which counts."""
    same = [one for one in deaths if _kind(one) == _kind(died)]
    others = [one for one in deaths if _kind(one) != _kind(died)]
    counts = [one.get("count") for one in same]
    died["count"] = 1 + sum(
        # A longer number could be read, but its sum perhaps not written.
        count
        for count in counts
        if isinstance(count, int) and 0 < count < 2**53
    )
    return [died, *others]


def _kind(died: dict[str, Any]) -> tuple[str, str]:
    return died["queue"], died["reason"]


def _goes_round(deaths: Sequence[dict[str, Any]], queue: str) -> bool:
    """Say whether a message died in this queue before, and was not rejected anywhere since.

    An older rejection does not count: by rules alone the message would go round for ever, and
    where a TTL is 0 in one and the same claim.
    """
    for number, one in enumerate(deaths):
        if one["queue"] == queue:
            return all(since["reason"] != Unwanted.REJECTED.value for since in deaths[: number + 1])
    return False


def _as_text(now_ms: int) -> str:
    return datetime.fromtimestamp(now_ms / 1000, tz=timezone.utc).isoformat(timespec="milliseconds")


def _as_new(connection: sqlite3.Connection, message_id: int) -> NewMessage:
    """Return a stored message as one to be published: for the second and further queues."""
    (
        body,
        content_type,
        content_encoding,
        properties,
        priority,
        job_id,
        task,
        max_attempts,
    ) = connection.execute(sql.AS_NEW, {"id": message_id}).fetchone()
    return NewMessage(
        body=body,
        queue=None,
        content_type=content_type,
        content_encoding=content_encoding,
        properties=properties,
        priority=priority,
        job_id=job_id,
        task=task,
        max_attempts=max_attempts,
    )
