"""The states of a message and the ONE table of the steps between them.

Every statement that changes a state takes its target from here, and a test walks every
(state, event) pair: what is not in the table is refused.

    (published) ──► pending ──► processing ──► done

docs/lifecycle.svg and the tables of docs/lifecycle.md are drawn from here (`make docs`).

An operator may cancel or fail what has not ended, and requeue what has. What runs can only be
asked to stop (terminate: a mark on the running delivery, no other state). How it then ends decides:

    processing, asked to stop ──complete──► done          it was faster, and that is the truth
                              └──abort────► cancelled     instead of retry, exhaust and release

`stalled` is not a state: it is `processing` whose lease is over, and only ever computed.

A queue with a dead letter exchange moves what expired, was rejected or does not fit any more to
the queues of that exchange, where it is pending again. Messages that are no jobs (no task in
their headers) are deleted where a job would become `done` or `expired`: nobody asks for them.
"""

from __future__ import annotations

from enum import Enum


class State(str, Enum):
    """Where a message stands; the text is what the file and every screen show."""

    PENDING = "pending"
    SCHEDULED = "scheduled"
    PROCESSING = "processing"
    DONE = "done"
    FAILED = "failed"
    PERMANENTLY_FAILED = "permanently_failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class Event(str, Enum):
    """What can happen to a message."""

    PROMOTE = "promote"
    CLAIM = "claim"
    COMPLETE = "complete"
    RETRY = "retry"
    EXHAUST = "exhaust"
    RELEASE = "release"
    EXPIRE = "expire"
    TERMINATE = "terminate"
    ABORT = "abort"
    CANCEL = "cancel"
    FAIL = "fail"
    REQUEUE = "requeue"
    OVERFLOW = "overflow"
    DEAD_LETTER = "dead_letter"


# What happens in each step, for docs/lifecycle.md.
MEANINGS = {
    Event.PROMOTE: "It is due. Whoever claims next does it, in the transaction of the claim.",
    Event.CLAIM: (
        "A child of a worker, or a Kombu consumer, takes it under a lease, with a new delivery number."
    ),
    Event.COMPLETE: "Its task returned.",
    Event.RETRY: (
        "Its task failed, or was lost with its process or its lease, and another attempt follows"
        " after a wait."
    ),
    Event.EXHAUST: (
        "Its task failed, or was lost with its process or its lease, and no attempt follows. The"
        " error stays with it."
    ),
    Event.RELEASE: (
        "Who claimed it shuts down in good order or hands it back, or is gone without having started"
        " it. No attempt counts."
    ),
    Event.EXPIRE: (
        "Its `expires` or its time to live was over before it was started. Whoever claims meets it;"
        " for AMQP's own `expiration` and TTL also whoever sweeps."
    ),
    Event.TERMINATE: "An operator asks what runs to stop: a mark on the delivery, no other state.",
    Event.ABORT: (
        "It was asked to stop, and then ended in whatever but success; or its task raised"
        " `JobCancelled`."
    ),
    Event.CANCEL: "An operator gives it up before it runs.",
    Event.FAIL: (
        "An operator puts it among the dead letters. A worker that runs it is refused when it settles."
    ),
    Event.REQUEUE: "An operator lets it run again, as another run; attempts start at 0.",
    Event.OVERFLOW: "Its queue holds its `x-max-length`, and whoever publishes one more drops it.",
    Event.DEAD_LETTER: (
        "It was rejected, expired, or did not fit, and its queue has a dead letter exchange. Whoever"
        " ends it moves its row, in the same transaction, to the queues of that exchange."
    ),
}

OPERATORS = frozenset({Event.CANCEL, Event.TERMINATE, Event.FAIL, Event.REQUEUE})
FINISHED = frozenset({State.DONE, State.PERMANENTLY_FAILED, State.CANCELLED, State.EXPIRED})
WAITING = frozenset({State.PENDING, State.SCHEDULED, State.FAILED})

TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.SCHEDULED, Event.PROMOTE): State.PENDING,
    (State.FAILED, Event.PROMOTE): State.PENDING,
    (State.PENDING, Event.CLAIM): State.PROCESSING,
    # The end of a delivery: by its own worker, or by whoever cleans up after a dead one.
    (State.PROCESSING, Event.COMPLETE): State.DONE,
    (State.PROCESSING, Event.RETRY): State.FAILED,
    (State.PROCESSING, Event.EXHAUST): State.PERMANENTLY_FAILED,
    (State.PROCESSING, Event.RELEASE): State.PENDING,
    # The end of a delivery that was asked to stop, or whose task gave up by itself: whatever it
    # ended in but success.
    (State.PROCESSING, Event.ABORT): State.CANCELLED,
    # A message whose `expires` passed before anybody started it.
    (State.PENDING, Event.EXPIRE): State.EXPIRED,
    # A full queue drops its oldest; a dead letter exchange takes what ended without success.
    (State.PENDING, Event.OVERFLOW): State.PERMANENTLY_FAILED,
    (State.PENDING, Event.DEAD_LETTER): State.PENDING,
    (State.PERMANENTLY_FAILED, Event.DEAD_LETTER): State.PENDING,
    # An operator's actions. Failing a running job takes its lease away: the worker's late
    # settlement is then refused like any other.
    (State.PROCESSING, Event.TERMINATE): State.PROCESSING,
    (State.PENDING, Event.CANCEL): State.CANCELLED,
    (State.SCHEDULED, Event.CANCEL): State.CANCELLED,
    (State.FAILED, Event.CANCEL): State.CANCELLED,
    (State.PENDING, Event.FAIL): State.PERMANENTLY_FAILED,
    (State.SCHEDULED, Event.FAIL): State.PERMANENTLY_FAILED,
    (State.FAILED, Event.FAIL): State.PERMANENTLY_FAILED,
    (State.PROCESSING, Event.FAIL): State.PERMANENTLY_FAILED,
    (State.DONE, Event.REQUEUE): State.PENDING,
    (State.FAILED, Event.REQUEUE): State.PENDING,
    (State.PERMANENTLY_FAILED, Event.REQUEUE): State.PENDING,
    (State.CANCELLED, Event.REQUEUE): State.PENDING,
    (State.EXPIRED, Event.REQUEUE): State.PENDING,
}


def sources(event: Event) -> frozenset[State]:
    """Return the states in which `event` is legal."""
    return frozenset(state for state, known in TRANSITIONS if known is event)


def target(state: State, event: Event) -> State:
    """Return where `event` leads from `state`.

    Raises KeyError when the step is not in the table.
    """
    return TRANSITIONS[state, event]
