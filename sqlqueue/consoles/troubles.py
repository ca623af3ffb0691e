"""What a page says when it cannot show the queue: one calm sentence, and what to do next.

Expected errors only. What is not expected is a bug: its traceback goes to the console's log, and
whoever looks is told just that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlqueue.errors import NotAvailable, QueueNotFound, ScheduleNotFound, SqlQueueError
from sqlqueue_transport.errors import (
    BackupRefused,
    Busy,
    DatabaseMissing,
    DiskFault,
    FileReplaced,
    InvalidMessage,
    SchemaChanged,
    SchemaTooNew,
    TransportError,
)

__all__ = ["Trouble", "trouble_of"]


@dataclass(frozen=True, slots=True)
class Trouble:
    """Be why there is nothing to see. `passes` says that waiting may help: the page tries again."""

    title: str
    advice: str
    passes: bool = True


# The first that fits; the error's own text follows in parentheses.
_KNOWN: Final[tuple[tuple[type[Exception], str, str, bool], ...]] = (
    (
        NotAvailable,
        "This broker cannot tell.",
        "The consoles show all of it on a queue file, broker_url = sqlqueue:///queue.db.",
        False,
    ),
    (
        DatabaseMissing,
        "There is no queue file yet.",
        "A worker, a beat or the first call of a task makes it.",
        True,
    ),
    (Busy, "The queue file is busy.", "'sqlqueue doctor' names who holds it.", True),
    (
        FileReplaced,
        "The queue file was moved or replaced.",
        "What is at its path is shown as soon as there is something.",
        True,
    ),
    (
        SchemaChanged,
        "The queue file belongs to a newer version now.",
        "Start this console anew with that software.",
        False,
    ),
    (SchemaTooNew, "This console is older than the queue file.", "Start a newer one.", False),
    (DiskFault, "The disk refuses.", "'sqlqueue doctor' looks at the file and its disk.", True),
    (BackupRefused, "No backup was made.", "Choose another path.", False),
    (InvalidMessage, "That was refused, and nothing was changed.", "", False),
    (QueueNotFound, "Nothing was changed.", "It may have gone meanwhile.", False),
    (ScheduleNotFound, "Nothing was changed.", "It may have gone meanwhile.", False),
    (TransportError, "The queue cannot be shown.", "'sqlqueue doctor' may say more.", True),
    (SqlQueueError, "The queue cannot be shown.", "'sqlqueue doctor' may say more.", True),
)


def trouble_of(error: Exception) -> Trouble | None:
    """Return what to say about an error; None for one that is a bug of ours."""
    for kind, title, advice, passes in _KNOWN:
        if isinstance(error, kind):
            return Trouble(title, f"{advice} ({error})".strip(), passes)
    return None
