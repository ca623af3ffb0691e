"""What operators may do: requeue, cancel, terminate and fail jobs; pause and resume queues.

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

from sqlqueue.errors import JobNotFound, QueueNotFound
from sqlqueue.text import did_you_mean
from sqlqueue_transport.lifecycle import Event, State, sources

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlqueue.failure_groups import DeadGroup
    from sqlqueue.inspection import Inspection
    from sqlqueue_transport.reading import JobFilter, JobRow

__all__ = ["Action", "Change", "Choice", "Operations", "QueueChange", "Report", "Target"]

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
    ) -> Report:
        """Change the targets that are still in the state they were seen in.

        `actor` and `reason` go into the audit table; a failed job also shows the reason as its
        error. `force_after_s` is for TERMINATE: the process of what still runs so many seconds from
        now is killed by its supervisor; None means never. If the process dies midway, some chunks of 500 are changed and audited, and the rest
        is untouched: choosing and applying again does the rest.
        """
        if reason is None and action is Action.FAIL:
            reason = NO_REASON
        by_event: dict[Event, list[tuple[int, State]]] = {}
        for one in targets:
            by_event.setdefault(action.event_in(one.state), []).append((one.message_id, one.state))
        acted = {
            done.message_id: done
            for event, some in by_event.items()
            for done in self._inspection.backend.act(
                event, some, actor=actor, reason=reason, kill_in_s=force_after_s
            )
        }
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
