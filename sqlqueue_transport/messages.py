"""The values that cross the store's edge: what is published, claimed and settled."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from sqlqueue_transport.lifecycle import Event

LARGEST_ID = 2**63 - 1  # SQLite's; a larger number names no message
LONGEST_WAIT_S = 10 * 366 * 24 * 3600.0

# A header of whoever publishes. Where it is, whatever its value, the body is not searched in, and
# programs that show messages to people show nothing of what the message says or led to.
SENSITIVE_HEADER = "sqlqueue-sensitive"

DELIVERY_BITS = 32
_DELIVERY_MASK = (1 << DELIVERY_BITS) - 1


# Not frozen, though nobody changes one: a frozen class sets each of its fields by a call, which made
# 0.9 of the 1.4 µs that a message took.
@dataclass(slots=True)
class NewMessage:
    """Be a message about to be published.

    `queue` None means: to every queue bound to `exchange` with `routing_key`. `headers` and
    `properties` are JSON text. Times are UTC milliseconds; None means no such time.
    `unique_key` is stored at most once in the whole file; None never deduplicates. A `transient`
    one (AMQP's delivery mode 1) need not survive a power cut. `goes_on` says that a job published
    it, as another try or what follows: it is part of ending what is queued.
    """

    body: bytes
    queue: str | None
    exchange: str = ""
    routing_key: str = ""
    content_type: str | None = None
    content_encoding: str | None = None
    headers: str = "{}"
    properties: str = "{}"
    priority: int = 0
    job_id: str | None = None
    task: str | None = None
    unique_key: str | None = None
    due_at_ms: int | None = None
    expires_at_ms: int | None = None
    max_attempts: int | None = None
    transient: bool = False
    goes_on: bool = False


@dataclass(slots=True)  # not frozen, as above
class Published:
    """Be the answer to a publish.

    `stored` False with an id: the unique key was there already. `stored` False without: no queue
    wanted it.
    """

    message_id: int
    stored: bool


@dataclass(frozen=True, slots=True)
class TickOf:
    """Name the tick that a publish belongs to; each is enqueued once in the whole file.

    `next_due_ms` is the entry's tick after it, None when it was the last. With `waits_for_last`
    it is skipped while jobs of the entry's last tick are unfinished. `definition` is that of an
    entry which lives in the file, as the beat has read it; None for others.
    """

    entry: str
    due_ms: int
    beat: str
    next_due_ms: int | None = None
    waits_for_last: bool = False
    definition: str | None = None


class TickAnswer(Enum):
    """What became of a tick."""

    TAKEN = "taken"  # its messages are stored
    THERE = "there"  # somebody took it before
    SKIPPED = (
        "skipped"  # recorded, and nothing stored: jobs of the entry's last tick are unfinished
    )
    HELD = "held"  # nothing is recorded: the entry was paused, removed or changed meanwhile


class Delivery(NamedTuple):
    """Be one claimed message, as `READY` selects it. `attempts` counts those already ended in this run.

    `ready_since_ms` is wall-clock time, None where it is not known.
    """

    message_id: int
    delivery: int
    queue: str
    job_id: str | None
    task: str | None
    body: bytes
    content_type: str | None
    content_encoding: str | None
    headers: str
    properties: str
    exchange: str
    routing_key: str
    priority: int
    attempts: int
    max_attempts: int | None
    ready_since_ms: int | None = None

    @property
    def tag(self) -> int:
        """Return the Kombu delivery tag: one integer, split again before use, never ordered."""
        return make_tag(self.message_id, self.delivery)


def make_tag(message_id: int, delivery: int) -> int:
    """Pack a delivery into one integer, as Kombu wants its tags."""
    return message_id << DELIVERY_BITS | delivery


def split_tag(tag: int) -> tuple[int, int]:
    """Return (message id, delivery number) of a tag."""
    return tag >> DELIVERY_BITS, tag & _DELIVERY_MASK


def storable(text: str | None) -> str | None:
    """Return text as SQLite can hold it: lone surrogates are written as their escapes.

    JSON stays the same JSON by that, because it writes them the same way.
    """
    if text is None or text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


@dataclass(frozen=True, slots=True)
class Fault:
    """Say what went wrong in an attempt: a type's name, a sentence, and a traceback or None."""

    type: str
    message: str
    traceback: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """Say how a delivery ended. Use the class methods.

    `cause` is what the attempt's record will say: failed, rejected, timed_out, lost or cancelled.
    `most_returns` bounds how often a message may be handed back without an outcome; 0 does not.
    """

    event: Event
    result: str | None = None
    fault: Fault | None = None
    retry_in_s: float = 0.0
    cause: str = "failed"
    most_returns: int = 0

    @classmethod
    def done(cls, result: str | None = None) -> Outcome:
        """End well; `result` is JSON text or None."""
        return cls(Event.COMPLETE, result=result)

    @classmethod
    def retry(cls, fault: Fault, *, in_s: float, cause: str = "failed") -> Outcome:
        """Count a failed attempt and run again after `in_s` seconds, at most ten years.

        Less than nothing, or not a number, means at once: the time comes from a task's code, and
        must not keep its delivery from ending.
        """
        wait_s = min(max(0.0, in_s), LONGEST_WAIT_S)  # max(0.0, nan) is 0.0
        return cls(Event.RETRY, fault=fault, retry_in_s=wait_s, cause=cause)

    @classmethod
    def dead(cls, fault: Fault, *, cause: str = "failed") -> Outcome:
        """Count a failed attempt and put the message to the dead letters."""
        return cls(Event.EXHAUST, fault=fault, cause=cause)

    @classmethod
    def cancelled(cls, fault: Fault) -> Outcome:
        """Count an attempt that stopped because it was asked to, or of its own will; no other follows."""
        return cls(Event.ABORT, fault=fault, cause="cancelled")

    @classmethod
    def release(cls) -> Outcome:
        """Hand back without counting anything: an orderly end, or never started."""
        return cls(Event.RELEASE)

    @classmethod
    def returned(cls, *, at_most: int) -> Outcome:
        """Hand back what the consumer did not want; the last of `at_most` times it is dead.

        0 means no bound. So a message that nobody can work on does not go round for ever.
        """
        return cls(Event.RELEASE, most_returns=at_most)


@dataclass(frozen=True, slots=True)
class Settlement:
    """Pair a delivery with its outcome."""

    message_id: int
    delivery: int
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Claim:
    """Be the answer to settle + claim.

    `refused` are settlements that came too late and changed nothing. `more` says that further
    messages were ready, so another idle consumer is worth waking.
    """

    deliveries: list[Delivery] = field(default_factory=list)
    refused: list[Settlement] = field(default_factory=list)
    more: bool = False


@dataclass(frozen=True, slots=True)
class Lost:
    """Be one delivery that was taken from a dead or silent consumer.

    `counted` says that its task had been started, so the attempt counts; `dead` that it was the
    last one allowed; `cancelled` that an operator had asked it to stop, so that no other follows.
    `attempt` is the attempt's number; `error` what its record says, None where it left none.
    """

    message_id: int
    job_id: str | None
    task: str | None
    queue: str
    worker: str
    attempt: int
    counted: bool
    dead: bool
    cancelled: bool = False
    error: Fault | None = None
