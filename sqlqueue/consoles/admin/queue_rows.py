"""What the Queues page says: which queues, their numbers, and what is wrong with one. No Streamlit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlqueue.consoles import markup
from sqlqueue.consoles.admin.questions import Question
from sqlqueue.formats import ago, number, took

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlqueue.consoles.markup import Html
    from sqlqueue.inspection import Queue

__all__ = [
    "MOST",
    "chosen",
    "facts",
    "is_mailbox",
    "nothing",
    "pause_question",
    "purge_question",
    "resume_question",
    "summary",
    "waiting",
]

MOST = 100  # of queues on the page; the box above finds the others
_EMPTY = "No queues yet. The first job, or the first worker, makes one."


def is_mailbox(name: str) -> bool:
    """Say whether a queue is one of Celery's for talking to its workers (kombu.pidbox, celery.events)."""
    return name.endswith(".pidbox") or name.startswith("celeryev.")


def chosen(queues: Sequence[Queue], *, containing: str, mailboxes: bool) -> list[Queue]:
    """Return the queues that a page shows, by name."""
    wanted = containing.strip().casefold()
    return sorted(
        (
            queue
            for queue in queues
            if wanted in queue.name.casefold() and (mailboxes or not is_mailbox(queue.name))
        ),
        key=lambda queue: queue.name,
    )


def waiting(queue: Queue) -> int:
    """Return how many messages a purge would delete."""
    return queue.pending + queue.later


def facts(queue: Queue, *, now_ms: int) -> Html:
    """Return a queue's numbers, and below them what somebody should know."""
    return markup.facts(
        [
            ("Queue", markup.strong(queue.name)),
            ("Pending", markup.text(number(queue.pending))),
            ("Later", markup.text(number(queue.later))),
            ("Processing", markup.text(number(queue.processing))),
            ("Oldest", markup.text(took(queue.oldest_pending_s) or "–")),
            ("Workers", markup.text(number(queue.servers))),
        ],
        below=[_pause(queue, now_ms), _unserved(queue)],
    )


def summary(queues: Sequence[Queue]) -> str:
    """Return one line about all of them."""
    paused = sum(queue.pause is not None for queue in queues)
    unserved = sum(bool(_unserved(queue)) for queue in queues)
    said = [
        number(len(queues), "queue"),
        f"{number(sum(queue.pending for queue in queues))} pending",
        f"{number(sum(queue.processing for queue in queues))} processing",
    ]
    if paused:
        said.append(f"{paused} paused")
    if unserved:
        said.append(f"{unserved} served by nobody")
    return ", ".join(said)


def nothing(containing: str) -> str:
    """Return what to say when no queue is shown."""
    return "No queue has that in its name." if containing.strip() else _EMPTY


def pause_question(name: str) -> Question:
    """Return what to ask before a queue is paused."""
    return Question(
        title=f"Pause queue {name}",
        label="Pause",
        lines=("No worker takes anything from it until it is resumed. What runs may finish.",),
    )


def resume_question(name: str) -> Question:
    """Return what to ask before a queue is resumed."""
    return Question(
        title=f"Resume queue {name}",
        label="Resume",
        lines=("Workers take from it again at once.",),
    )


def purge_question(name: str, count: int) -> Question:
    """Return what to ask before what waits in a queue is deleted: always its name."""
    return Question(
        title=f"Purge queue {name}",
        label=f"Delete {number(count, 'message')}",
        lines=(
            f"{number(count, 'message')} {'is' if count == 1 else 'are'} deleted for good.",
            "That is what is pending, scheduled, or waits for another attempt.",
            "What runs goes on, and the history stays.",
        ),
        typed=name,
        typed_label=f"Type the queue’s name, {name}, to confirm",
    )


def _pause(queue: Queue, now_ms: int) -> Html:
    if queue.pause is None:
        return markup.NOTHING
    who = f" by {queue.pause.actor}" if queue.pause.actor else ""
    why = f": {queue.pause.reason}" if queue.pause.reason else ""
    return markup.warned(f"Paused {ago(queue.pause.since_ms, now_ms)}{who}{why}")


def _unserved(queue: Queue) -> Html:
    if queue.servers or not queue.pending or is_mailbox(queue.name):
        return markup.NOTHING
    return markup.warned(
        f"No worker serves it. Start one: sqlqueue worker -A MODULE:ATTR -Q {queue.name}", "fail"
    )
