"""What a supervisor does by force: to children that went silent, and to those whose job's time is over.

Always first the kill, then the release: a job is given to somebody else only when nobody runs it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import time
from typing import TYPE_CHECKING, Final

from sqlqueue.forks import kill_session
from sqlqueue.housekeeping import log_lost
from sqlqueue.log import get_logger
from sqlqueue_transport.messages import Fault
from sqlqueue_transport.writer_lock import Holder, read_holder

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlqueue.worker.places import Child
    from sqlqueue_transport.messages import Lost
    from sqlqueue_transport.presence import Entry, Note
    from sqlqueue_transport.store import Store

__all__ = ["LOCK_LIMIT_S", "Enforcer"]

log = get_logger(__name__)

LOCK_LIMIT_S: Final = 10.0  # how long a child may sit on the writer lock
LOOK_AGAIN_S: Final = 0.5
_NEIGHBOUR: Final = Fault(
    "WorkerLost", "its process was ended by force, because of another job in it"
)
_BY_FORCE: Final = (
    "cancelled",
    Fault("JobCancelled", "ended by force: it had been asked to stop, and did not in time"),
)


class Enforcer:
    """Kill children of this supervisor, which it knows by their process ids. In its thread."""

    def __init__(
        self,
        store: Store,
        children: dict[int, Child],
        *,
        lease_s: float,
        lenience_s: float,
        before_end: Callable[[Child], object],
        ended: Callable[[Child, int], object],
    ) -> None:
        """Watch over `children`; the dictionary is the supervisor's own, and loses who is killed.

        `lenience_s` is how long after its time limit a job is ended, where its process asks it first.
        `before_end` is called for a child that is killed; `ended`, with its exit code, for one that
        has ended by itself just before.
        """
        self._store = store
        self._consumers = store.consumers
        self._children = children
        self._lease_s = lease_s
        self._lenience_ms = round(lenience_s * 1000)
        self._before_end = before_end
        self._ended = ended
        # By worker id, what ended its jobs: until the store has taken it.
        self._owed: dict[int, dict[int, tuple[str, Fault]]] = {}
        self._lock_path = store.database.run_directory / "writer.lock"
        self._lock_holder: Holder | None = None
        self._lock_seen_s = 0.0

    def due_in_s(self, worker_id: int) -> float:
        """Return the seconds until the next time limit of a running job; inf when there is none."""
        now_ms = self._store.clock.lease_ms()
        due_ms = [
            note.deadline_ms + self._lenience_ms - now_ms
            for _, notes in self._consumers.children_of(worker_id)
            for note in notes.values()
            if note.deadline_ms
        ]
        return min(due_ms) / 1000 if due_ms else float("inf")

    def look_after(self, worker_id: int) -> None:
        """Kill who went silent or is over the time limit; first the kill, then the release."""
        now_ms = self._store.clock.lease_ms()
        for entry, notes in self._consumers.children_of(worker_id):
            child = self._children.get(entry.pid)
            if child is None:
                continue
            if now_ms - entry.heartbeat_ms >= self._lease_s * 1000:
                self.kill(child, f"no heartbeat for {self._lease_s:g} s")
                self._end(entry, {})
            elif any(self._is_over(note, now_ms) for note in notes.values()):
                self._end_overdue(entry, child)

    def _end_overdue(self, entry: Entry, child: Child) -> None:
        """Kill a child whose job is over its time limit."""
        now_ms = self._store.clock.lease_ms()
        over = self._stopped_over(entry, child, lambda note: self._is_over(note, now_ms))
        if not over:
            return
        limit_s = (over[0].deadline_ms - over[0].started_ms) / 1000
        self.kill(child, f"its job is over its time limit of {limit_s:g} s")
        fault = Fault("TimeLimitExceeded", f"ended by force at its time limit of {limit_s:g} s")
        faults = {note.message_id: ("timed_out", fault) for note in over}
        for lost in self._end(entry, dict(faults)):
            if lost.message_id in faults:
                log.error(
                    "job_timed_out",
                    job_id=lost.job_id,
                    task=lost.task,
                    queue=lost.queue,
                    attempt=lost.attempt,
                    limit_s=limit_s,
                )

    def _is_over(self, note: Note, now_ms: int) -> bool:
        return bool(note.deadline_ms) and now_ms >= note.deadline_ms + self._lenience_ms

    def end_terminated(self, worker_id: int) -> None:
        """Kill children whose job an operator asked to stop, and whose time for that is over.

        What a child has claimed and not started is no reason: it would not help that job.
        """
        due = self._store.running.to_kill()
        if not due:
            return
        for entry, _ in self._consumers.children_of(worker_id):
            child = self._children.get(entry.pid)
            doomed = due.get(entry.worker_id, set())
            if child is None or not doomed:
                continue
            over = self._stopped_over(entry, child, functools.partial(_is_one_of, doomed))
            if over:
                self.kill(child, "its job was to be ended by force")
                self._end(entry, {note.message_id: _BY_FORCE for note in over})

    def _stopped_over(
        self, entry: Entry, child: Child, is_over: Callable[[Note], bool]
    ) -> list[Note]:
        """Stop a child and return the notes to kill it for; without any it goes on.

        Stopped before its notes are read: between an earlier look and the kill it might have finished
        that job and started another, and nobody kills the innocent job after it.
        """
        os.kill(child.pid, signal.SIGSTOP)
        _, status = os.waitpid(child.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):  # it ended just now
            self._children.pop(child.pid)
            self._ended(child, os.waitstatus_to_exitcode(status))
            return []
        over = [
            note for note in self._consumers.presence.notes(entry.slot).values() if is_over(note)
        ]
        if not over:
            os.kill(child.pid, signal.SIGCONT)
        return over

    def _end(self, entry: Entry, faults: dict[int, tuple[str, Fault]]) -> list[Lost]:
        """Give back what a killed child held; `faults` says whose job was the reason, none if it hung."""
        if faults:
            for message_id in self._consumers.presence.notes(entry.slot):
                faults.setdefault(message_id, ("lost", _NEIGHBOUR))
        self._owed[entry.worker_id] = faults
        lost = self._consumers.end_worker(entry.worker_id, faults=faults)
        del self._owed[entry.worker_id]
        log_lost(lost)
        return lost

    def do_what_is_owed(self) -> None:
        """Give back what a busy store refused to take back when its child was killed, with the reason."""
        for worker_id in list(self._owed):
            log_lost(self._consumers.end_worker(worker_id, faults=self._owed[worker_id]))
            del self._owed[worker_id]

    def kill(self, child: Child, why: str) -> None:
        """End a child and everything in its session, and wait until it is gone."""
        log.warning("child_killed", worker=child.name, pid=child.pid, why=why)
        kill_session(child.pid)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child.pid, 0)
        self._before_end(child)
        self._children.pop(child.pid, None)

    def watch_lock(self) -> None:
        """Kill a child of ours that holds the writer lock for too long: it stops everybody.

        Only one that was seen to hold it before, since the same moment: see `Holder`.
        """
        holder, now_s = read_holder(self._lock_path), time.monotonic()
        if holder != self._lock_holder:
            self._lock_holder, self._lock_seen_s = holder, now_s
        if holder is None or holder.pid not in self._children:
            return
        since_s = self._lock_seen_s if holder.since_s is None else holder.since_s
        if now_s - since_s > LOCK_LIMIT_S and now_s - self._lock_seen_s > LOOK_AGAIN_S:
            self.kill(self._children[holder.pid], "it sat on the writer lock")


def _is_one_of(deliveries: set[tuple[int, int]], note: Note) -> bool:
    return (note.message_id, note.delivery) in deliveries
