"""Publish many calls, a chunk at a time: each chunk is one transaction.

`app.publish_many`, `task.map` and `task.starmap` come through here. Calls are taken from their
iterable as they are needed, so a generator of a million costs the memory of a chunk. All of a chunk
is made into messages first; only then the writer's lock is taken, for as long as SQLite inserts.
"""

from __future__ import annotations

from collections.abc import Sized
from typing import TYPE_CHECKING, Final

from sqlqueue.errors import BulkStopped, EnvelopeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlqueue.backend import Publication
    from sqlqueue.task import Signature

__all__ = ["CHUNK", "publish_in_chunks"]

#: Calls in a transaction. While it runs, nobody else's claim does: see docs/decisions.md.
CHUNK: Final = 200


def publish_in_chunks(
    calls: Iterable[Signature],
    *,
    publication: Callable[[Signature], Publication],
    publish: Callable[[list[Publication]], object],
    chunk: int,
    on_progress: Callable[[int, int | None], object] | None,
    total: int | None,
) -> int:
    """Publish every call and return how many there were; see `SqlQueue.publish_many`."""
    if type(chunk) is not int or chunk < 1:
        raise ValueError(f"chunk={chunk!r}: give a whole number from 1 up")
    if total is None and isinstance(calls, Sized):
        total = len(calls)
    published = 0
    waiting: list[Publication] = []

    def publish_waiting() -> None:
        nonlocal published
        publish(waiting)
        published += len(waiting)
        waiting.clear()
        if on_progress is not None:
            on_progress(published, total)

    for index, call in enumerate(calls):
        try:
            waiting.append(publication(call))
        except EnvelopeError as error:
            raise BulkStopped(index, published, str(error)) from error
        if len(waiting) == chunk:
            publish_waiting()
    if waiting:
        publish_waiting()
    return published
