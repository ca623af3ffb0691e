"""What operators may do: requeue, cancel, terminate and fail jobs; pause and resume queues and entries.

The one way for command line and consoles.

An action has two steps. `choose` finds the jobs that are meant, each with the state it was seen in;
between the steps a person may look at them and say yes. `apply` changes exactly those that are
still in that state, in chunks, each change with a row in the audit table; whatever changed in
between is skipped and told, never overwritten. Refuses to act on anything by position or by a
filter that is evaluated twice.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from sqlqueue.errors import JobNotFound, QueueNotFound, ScheduleNotFound
from sqlqueue.schedules import next_due_ms_of
from sqlqueue.text import did_you_mean
from sqlqueue_transport import migrations, opening
from sqlqueue_transport.acting import CHUNK
from sqlqueue_transport.backup import BackupReport
from sqlqueue_transport.lifecycle import Event, State, sources
from sqlqueue_transport.recounting import Recounted
from sqlqueue_transport.schedules import Changed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from sqlqueue.failure_groups import DeadGroup
    from sqlqueue.inspection import Inspection
    from sqlqueue_transport.acting import Acted
    from sqlqueue_transport.reading import JobFilter, JobRow

__all__ = [
    "Action",
    "BackupReport",
    "Change",
    "Choice",
    "Migration",
    "Operations",
    "QueueChange",
    "Recounted",
    "Report",
    "Target",
    "legal_actions",
    "migration_of",
]

NO_REASON: Final = "no reason given"


class Action(str, Enum):
    """What an operator can do to a job. TERMINATE is to cancel, also what runs: that is asked to stop."""

    REQUEUE = "requeue"
    CANCEL = "cancel"
    TERMINATE = "terminate"
    FAIL = "fail"

    def event_in(self, state: State) -> Event:
        """Return the step in the life of a message that this action is for a job in that state."""
        if self is Action.TERMINATE and state is not State.PROCESSING:
            return Event.CANCEL
        return {
            Action.REQUEUE: Event.REQUEUE,
            Action.CANCEL: Event.CANCEL,
            Action.TERMINATE: Event.TERMINATE,
            Action.FAIL: Event.FAIL,
        }[self]

    @property
    def legal_states(self) -> tuple[State, ...]:
        """Return the states in which it is possible, in the order of a job's life."""
        return tuple(state for state in State if state in sources(self.event_in(state)))

    @property
    def usual_states(self) -> tuple[State, ...]:
        """Return the states a filter means when it names none: those where nothing can be lost.

        Requeueing takes the dead letters only: what is done would run twice, what failed runs again
        by itself, and what was cancelled or has expired was given up on purpose. Failing leaves
        running jobs alone; terminating is meant for them.
        """
        if self is Action.REQUEUE:
            return (State.PERMANENTLY_FAILED,)
        if self is Action.TERMINATE:
            return self.legal_states
        return (State.PENDING, State.SCHEDULED, State.FAILED)


def legal_actions(state: State) -> tuple[Action, ...]:
    """Return what an operator can do to a job in that state, in the order of `Action`."""
    return tuple(action for action in Action if state in action.legal_states)


@dataclass(frozen=True, slots=True)
class Target:
    """Be one job about to be changed, in the state it was seen in. `job_id` None: no job of ours."""

    message_id: int
    job_id: str | None
    task: str | None
    queue: str
    state: State

    @property
    def name(self) -> str:
        """Return what the command line takes for it: the job id, or "#" and the message id."""
        return self.job_id or f"#{self.message_id}"


@dataclass(frozen=True, slots=True)
class Choice:
    """Be the jobs an action would change, those whose state forbids it, and ids that name no job."""

    targets: tuple[Target, ...] = ()
    unfit: tuple[Target, ...] = ()
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """Be what became of one job: `after` None means skipped, because its state had changed.

    Of a job that was asked to stop `after` is PROCESSING: whether it does is still to come. `holder`
    is then the kind of process that runs it, as in `Acted`.
    """

    target: Target
    after: State | None
    holder: str | None = None

    @property
    def is_foreign(self) -> bool:
        """Say whether it was skipped because a consumer runs it that is no worker of ours."""
        return self.after is None and self.holder == "client"


@dataclass(frozen=True, slots=True)
class Report:
    """Be what became of all of them."""

    changes: tuple[Change, ...]

    @property
    def changed(self) -> int:
        """Return how many were changed."""
        return sum(change.after is not None for change in self.changes)

    @property
    def asked(self) -> int:
        """Return how many of these run on until they heed that they were asked to stop."""
        return sum(change.after is State.PROCESSING for change in self.changes)

    @property
    def foreign(self) -> int:
        """Return how many were skipped because a consumer runs them that is no worker of ours."""
        return sum(change.is_foreign for change in self.changes)

    @property
    def skipped(self) -> int:
        """Return how many were skipped, mostly because their state had changed."""
        return len(self.changes) - self.changed


@dataclass(frozen=True, slots=True)
class QueueChange:
    """Be what became of one queue: `changed` False means that it was paused, or ran, before."""

    queue: str
    changed: bool


@dataclass(frozen=True, slots=True)
class Migration:
    """Be what opening a file for writing would do, or did, to its schema.

    `backup` is where the file of before is kept; None when nothing has to be done.
    """

    path: Path
    from_version: int
    to_version: int
    backup: Path | None

    @property
    def is_needed(self) -> bool:
        """Say whether the file is of an older version than this software."""
        return self.from_version < self.to_version


def migration_of(path: Path) -> Migration:
    """Say what opening the file for writing would migrate. Changes nothing.

    Raises a CannotOpen of the transport, SchemaTooNew among them.
    """
    version = opening.version_at(path)
    backup = migrations.backup_path_of(path, version)
    is_needed = version < migrations.SCHEMA_VERSION
    return Migration(path, version, migrations.SCHEMA_VERSION, backup if is_needed else None)


class Operations:
    """Act on jobs and queues through the backend that an inspection reads; one thread at a time."""

    def __init__(self, inspection: Inspection) -> None:
        """Act on what the inspection sees."""
        self._inspection = inspection

    def choose(
        self,
        action: Action,
        *,
        names: Sequence[str] = (),
        chosen: JobFilter | None = None,
        group: DeadGroup | None = None,
    ) -> Choice:
        """Find the jobs that are meant: those named by id or "#message id", or those of a filter.

        A job id that several messages share means the newest. A filter without states means the
        action's `usual_states`. With a group, those of the filter (None: of the dead letters) whose
        error is the group's. Changes nothing.
        """
        if names:
            return self._named(action, names)
        if group is not None:
            jobs = self._inspection.jobs_of_group
            return _sorted_out(
                action, _targets(jobs(group) if chosen is None else jobs(group, chosen))
            )
        if chosen is None or chosen.is_empty:
            raise ValueError("name jobs, or give a filter: an empty one would mean every job")
        if not chosen.states and not chosen.stalled:
            chosen = dataclasses.replace(chosen, states=action.usual_states)
        return _sorted_out(action, _targets(self._inspection.every_job(chosen)))

    def _named(self, action: Action, names: Sequence[str]) -> Choice:
        targets: dict[int, Target] = {}
        unknown = []
        for name in dict.fromkeys(names):
            try:
                message_id = self._inspection.message_ids(name)[0]
            except JobNotFound:
                unknown.append(name)
                continue
            detail = self._inspection.backend.job(message_id)
            if detail is None:  # pruned since
                unknown.append(name)
                continue
            row = detail.row
            targets[message_id] = Target(message_id, row.job_id, row.task, row.queue, row.state)
        found = _sorted_out(action, list(targets.values()))
        return dataclasses.replace(found, unknown=tuple(unknown))

    def apply(
        self,
        action: Action,
        targets: Sequence[Target],
        *,
        actor: str,
        reason: str | None = None,
        force_after_s: float | None = None,
        tell: Callable[[int], None] | None = None,
    ) -> Report:
        """Change the targets that are still in the state they were seen in.

        `actor` and `reason` go into the audit table; a failed job also shows the reason as its
        error. `force_after_s` is for TERMINATE: the process of what still runs so many seconds from
        now is killed by its supervisor; None means never. `tell` is called in this thread after each chunk
        of 500 with how many targets are dealt with, skipped ones included; what it raises ends the
        action there. If the process dies midway, some chunks are changed and audited, and the rest
        is untouched: choosing and applying again does the rest.
        """
        if reason is None and action is Action.FAIL:
            reason = NO_REASON
        by_event: dict[Event, list[tuple[int, State]]] = {}
        for one in targets:
            by_event.setdefault(action.event_in(one.state), []).append((one.message_id, one.state))
        acted: dict[int, Acted] = {}
        for event, some in by_event.items():
            for start in range(0, len(some), CHUNK):
                chunk = some[start : start + CHUNK]
                for done in self._inspection.backend.act(
                    event, chunk, actor=actor, reason=reason, kill_in_s=force_after_s
                ):
                    acted[done.message_id] = done
                if tell is not None:
                    tell(len(acted))
        return Report(
            tuple(
                Change(target, acted[target.message_id].after, acted[target.message_id].holder)
                for target in targets
            )
        )

    def pause(
        self, queues: Sequence[str], *, actor: str, reason: str | None = None
    ) -> list[QueueChange]:
        """Let no consumer claim from these queues until they are resumed; running jobs finish.

        Raises QueueNotFound before anything is changed, and the transport's InvalidMessage for a
        queue that is a program's mailbox. If the process dies midway, some of them are paused.
        """
        self._refuse_unknown(queues)
        pause = self._inspection.backend.pause
        return [QueueChange(one, pause(one, actor=actor, reason=reason)) for one in queues]

    def resume(
        self, queues: Sequence[str], *, actor: str, reason: str | None = None
    ) -> list[QueueChange]:
        """Let these queues be claimed from again, at once.

        Raises QueueNotFound before anything is changed. If the process dies midway, some of them are
        resumed.
        """
        self._refuse_unknown(queues)
        resume = self._inspection.backend.resume
        return [QueueChange(one, resume(one, actor=actor, reason=reason)) for one in queues]

    def pause_entry(self, name: str, *, actor: str, reason: str | None = None) -> bool:
        """Let a schedule entry rest until it is resumed; False when it rested already.

        Raises ScheduleNotFound, and NotAvailable on a broker that keeps no schedule. If the process
        dies midway it is paused and audited, or neither.
        """
        schedules = self._inspection.backend.schedules
        return self._known(schedules.pause(name, actor=actor, reason=reason), name)

    def resume_entry(self, name: str, *, actor: str, reason: str | None = None) -> bool:
        """Let a schedule entry go on with its next tick; False when it was not paused.

        What was due meanwhile is given up. Raises, and dies, as `pause_entry` does.
        """
        changed = self._inspection.backend.schedules.resume(
            name,
            next_due=lambda text, now_ms: next_due_ms_of(name, text, now_ms),
            actor=actor,
            reason=reason,
        )
        return self._known(changed, name)

    def _known(self, changed: Changed, name: str) -> bool:
        if changed is Changed.UNKNOWN:
            known = [one.row.entry for one in self._inspection.schedule()]
            raise ScheduleNotFound(name, did_you_mean(name, known))
        return changed is Changed.DONE

    def purgeable(self, queue: str) -> int:
        """Return how many messages a purge of a queue would delete now. Raises QueueNotFound."""
        self._refuse_unknown((queue,))
        return self._inspection.backend.purgeable(queue)

    def purge(
        self,
        queue: str,
        *,
        actor: str,
        reason: str | None = None,
        tell: Callable[[int], None] | None = None,
    ) -> int:
        """Delete what waits in a queue (pending, scheduled, failed) and return how many that were.

        What runs, what has ended and what comes meanwhile stays. `tell` is called in this thread after
        each portion with how many are deleted by then; what it raises ends the purge. Raises
        QueueNotFound. If the process dies midway, a part is deleted, and the one record of it in the
        audit says how many.
        """
        self._refuse_unknown((queue,))
        return self._inspection.backend.purge(queue, actor=actor, reason=reason, tell=tell)

    def prunable(self, *, older_than_s: float, states: Sequence[State]) -> int:
        """Return how many messages `prune` would delete now. Raises ValueError as it does."""
        return self._inspection.backend.prunable(older_than_s=older_than_s, states=states)

    def prune(
        self,
        *,
        older_than_s: float,
        states: Sequence[State],
        actor: str,
        reason: str | None = None,
        tell: Callable[[int], None] | None = None,
    ) -> int:
        """Delete what ended in these states more than so many seconds ago; return how many.

        The whole history of these jobs goes, records of operators' actions excepted. `tell` and a
        death midway are as with `purge`. Raises ValueError for a state that is no end.
        """
        return self._inspection.backend.prune(
            older_than_s=older_than_s, states=states, actor=actor, reason=reason, tell=tell
        )

    def check(
        self, *, full: bool = False, tell: Callable[[float | None], None] | None = None
    ) -> tuple[str, ...]:
        """Have SQLite examine the file and return what it complains of; empty when all is well.

        `full` also compares every index with its table. `tell` is called now and then in this thread,
        with how much is done, or None where that is not known; what it raises ends the check. Changes
        nothing, and no writer waits.
        """
        return self._inspection.backend.check(full=full, tell=tell)

    def backup(
        self,
        destination: Path,
        *,
        force: bool = False,
        tell: Callable[[int, int], None] | None = None,
    ) -> BackupReport:
        """Copy the file while it is in use; return when the copy is examined and on the disk.

        `tell` is called in this thread with the bytes copied so far and those of all; what it raises
        ends the backup. Raises the transport's BackupRefused for a destination that exists (unless
        `force`) or cannot be one, and DiskFault. If the process dies midway there is nothing by the
        name of the destination that was not there before.
        """
        return self._inspection.backend.backup(destination, force=force, tell=tell)

    def recount(self, tell: Callable[[int, int], None] | None = None) -> Recounted:
        """Make the file's counts what is there, where another program has made them wrong.

        `tell` is called in this thread with how many blocks of ids are done, of how many; what it raises
        ends it. No job changes, so there is no record of it. If the process dies midway, a part is
        right, and doing it again does the rest.
        """
        return self._inspection.backend.recount(tell)

    def _refuse_unknown(self, queues: Sequence[str]) -> None:
        known = {row.name for row in self._inspection.backend.queues()}
        for queue in queues:
            if queue not in known:
                raise QueueNotFound(queue, f".{did_you_mean(queue, known)}")


def _targets(rows: Iterable[JobRow]) -> list[Target]:
    return [Target(row.message_id, row.job_id, row.task, row.queue, row.state) for row in rows]


def _sorted_out(action: Action, targets: Sequence[Target]) -> Choice:
    legal = action.legal_states
    return Choice(
        targets=tuple(target for target in targets if target.state in legal),
        unfit=tuple(target for target in targets if target.state not in legal),
    )
