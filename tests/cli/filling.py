"""A queue file filled as producers and workers would fill it, for tests of what operators see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sqlqueue import envelope
from sqlqueue.backend import Backend, open_backend
from sqlqueue.config import Settings
from sqlqueue_transport import Fault, NewMessage, Outcome, Settlement, Store, close_store, stores
from sqlqueue_transport.messages import Delivery

HOSTILE = "evil\x1b[31m\x1b]0;title\x07[bold red]x[/]\u202eabc\r\nX\x9b2J"
# What of it must never reach a terminal as it is.
RAW = ("\x1b", "\x07", "\u202e", "\r", "\x9b")


class Filled:
    """Publish and settle through a store; `close` it before another program looks."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.path = path
        self.store = Store(path, **options)

    def publish(
        self,
        task: str | None = "tasks.add",
        args: tuple[Any, ...] = (2, 3),
        kwargs: dict[str, Any] | None = None,
        *,
        queue: str = "default",
        job_id: str | None = None,
        due_in_s: float | None = None,
        expires_in_s: float | None = None,
        body: bytes | None = None,
        headers: str | None = None,
        **more: Any,
    ) -> str:
        """Publish a job and return its id."""
        job_id = job_id or envelope.new_job_id()
        now_ms = self.store.clock.wall_ms()
        call = envelope.build("tasks.any", args, kwargs or {}, job_id="any")
        written = {**call.headers, "task": task, "id": job_id}
        message = NewMessage(
            call.body.encode() if body is None else body,
            queue,
            content_type=envelope.CONTENT_TYPE,
            content_encoding=envelope.CONTENT_ENCODING,
            headers=json.dumps(written) if headers is None else headers,
            job_id=job_id,
            task=task,
            due_at_ms=None if due_in_s is None else now_ms + round(due_in_s * 1000),
            expires_at_ms=None if expires_in_s is None else now_ms + round(expires_in_s * 1000),
            **more,
        )
        self.store.publish([message])
        return job_id

    def claim(self, queue: str = "default", *, lease_s: float = 60, start: bool = True) -> Delivery:
        """Take the next message, and note its start."""
        [delivery] = self.store.claim([queue], lease_s=lease_s).deliveries
        if start:
            self.store.consumers.note_start(0, delivery.message_id, delivery.delivery, 0)
        return delivery

    def settle(self, delivery: Delivery, outcome: Outcome) -> bool:
        """End a delivery; False when that was refused."""
        one = Settlement(delivery.message_id, delivery.delivery, outcome)
        refused = self.store.settle([one])
        self.store.consumers.note_end(0)
        return not refused

    def done(self, result: Any = None, **job: Any) -> str:
        """Add a job that is done."""
        job_id = self.publish(**job)
        self.settle(self.claim(job.get("queue", "default")), Outcome.done(json.dumps(result)))
        return job_id

    def dead(self, kind: str = "ValueError", message: str = "no such file", **job: Any) -> str:
        """Add a dead letter."""
        job_id = self.publish(**job)
        fault = Fault(kind, message, f"Traceback (most recent call last):\n{kind}: {message}")
        self.settle(self.claim(job.get("queue", "default")), Outcome.dead(fault))
        return job_id

    def failed(
        self, kind: str = "OSError", message: str = "later", *, retry_in_s: float = 600, **job: Any
    ) -> str:
        """Add a job whose first attempt failed, and which waits for the next."""
        job_id = self.publish(**job)
        fault = Fault(kind, message, f"Traceback\n{kind}: {message}")
        self.settle(self.claim(), Outcome.retry(fault, in_s=retry_in_s))
        return job_id

    def message_id(self, job_id: str) -> int:
        """Return the newest message of a job."""
        return self.store.reading.message_ids_of(job_id)[0]

    def backend(self, **settings: Any) -> Backend:
        """Return a backend on this very store, with its clock; `close` ends both."""
        stores._open.setdefault(self.store.path, (self.store, 1))
        return open_backend(Settings(broker_url=f"sqlqueue:///{self.store.path}", **settings))

    def close(self) -> None:
        """Close the store, as the end of its process would."""
        close_store(self.store)
        self.store.close()
