"""The JSON that the command line promises: names, kinds and times of everything it prints.

Stable: a key is never renamed or removed within ``"schema": 1``. Keys are snake_case, times ISO 8601
in UTC with milliseconds, durations seconds as numbers. What is not known is null.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlqueue.formats import iso

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlqueue.health import Check
    from sqlqueue.inspection import (
        DeadGroup,
        Failure,
        History,
        Inspection,
        Job,
        Queue,
        Scheduled,
        Stats,
        Worker,
    )
    from sqlqueue.operations import (
        Action,
        BackupReport,
        Choice,
        Migration,
        QueueChange,
        Recounted,
        Report,
        Target,
    )
    from sqlqueue_transport.lifecycle import State
    from sqlqueue_transport.reading import AuditRow, JobRow

__all__ = [
    "action_document",
    "backup_document",
    "check_document",
    "check_item",
    "dead_item",
    "entry_item",
    "job_document",
    "job_item",
    "migration_document",
    "path_document",
    "prune_document",
    "purge_document",
    "queue_action_document",
    "queue_item",
    "recount_document",
    "stats_document",
    "worker_item",
]


def stats_document(stats: Stats) -> dict[str, Any]:
    """Return `inspect stats`."""
    return {
        "states": {state.value: count for state, count in stats.states.items()},
        "stalled": stats.stalled,
        "oldest_pending_s": stats.oldest_pending_s,
        "paused": dict(stats.paused),
        "workers": {"alive": stats.alive, "slots": stats.slots},
        "log_bytes": stats.log_bytes,
    }


def job_item(row: JobRow, inspection: Inspection) -> dict[str, Any]:
    """Return a job as `inspect jobs` lists it."""
    error = None
    if row.error_type is not None:
        error = {"type": row.error_type, "message": row.error_message or ""}
    return {**_job_fields(row, inspection.max_attempts_of(row)), "error": error}


def job_document(job: Job) -> dict[str, Any]:
    """Return `inspect job`."""
    return {
        **_job_fields(job.row, job.max_attempts),
        "args": None if job.arguments.args is None else list(job.arguments.args),
        "kwargs": job.arguments.kwargs,
        "body_error": job.arguments.problem or None,
        "sensitive": job.is_sensitive,
        "result": job.result,
        "error": _error(job.error),
        "history": [_history(one) for one in job.history],
        "audit": [_audit(one) for one in job.audit],
        "other_messages": list(job.others),
        "celery": job.celery
        and {
            "state": job.celery.state,
            "result": job.celery.result,
            "error": _error(job.celery.error),
        },
    }


def dead_item(group: DeadGroup) -> dict[str, Any]:
    """Return a group of `inspect dead --by error`."""
    return {
        "error": {"type": group.type, "message": group.text},
        "count": group.count,
        "newest_at": iso(group.newest_at_ms),
        "tasks": list(group.tasks),
        "example": group.example,
    }


def queue_item(queue: Queue) -> dict[str, Any]:
    """Return a queue of `inspect queues`."""
    return {
        "name": queue.name,
        "pending": queue.pending,
        "later": queue.later,
        "processing": queue.processing,
        "oldest_pending_s": queue.oldest_pending_s,
        "workers": queue.servers,
        "paused": queue.pause
        and {
            "since": iso(queue.pause.since_ms),
            "actor": queue.pause.actor,
            "reason": queue.pause.reason,
        },
    }


def worker_item(worker: Worker) -> dict[str, Any]:
    """Return a process of `inspect workers`; `alive` null means that nobody knows."""
    row = worker.row
    return {
        "id": row.id,
        "name": row.name,
        "kind": row.kind,
        "parent_id": row.parent_id,
        "pid": row.pid,
        "host": row.host,
        "slots": row.slots,
        "queues": list(row.queues),
        "started_at": iso(row.started_at_ms),
        "alive": True if row.is_known_alive else None,
        "heartbeat_age_s": row.heartbeat_age_s,
        "jobs": [
            {
                "id": job.job_id,
                "message_id": job.message_id,
                "task": job.task,
                "started_at": iso(job.started_at_ms),
                "progress": job.progress and job.progress.part,
            }
            for job in worker.jobs
        ],
    }


def entry_item(entry: Scheduled, *, count: int, now_ms: int) -> dict[str, Any]:
    """Return an entry of `inspect schedule` with its next `count` due times.

    `state` is one of `scheduled.Standing`; `timezone` null and `next` empty mean that its definition
    cannot be read.
    """
    row = entry.row
    return {
        "entry": row.entry,
        "schedule": row.description,
        "target": row.target,
        "origin": row.origin,
        "state": entry.standing.value,
        "paused_at": iso(row.paused_at_ms),
        "last_due_at": iso(row.last_due_ms),
        "last_at": iso(row.last_at_ms),
        "last_late_s": entry.late_s,
        "last_skipped": row.last_skipped,
        "next_due_at": iso(row.next_due_ms),
        "timezone": entry.zone_name if entry.when else None,
        "next": [
            {"at": iso(at_ms), "local": entry.local(at_ms).isoformat(timespec="milliseconds")}
            for at_ms in entry.next_ms(count, now_ms=now_ms)
        ],
        "ticks": row.ticks,
        "first_seen_at": iso(row.first_seen_ms),
        "beats": list(row.beats),
        "error": row.error,
    }


def check_item(check: Check) -> dict[str, Any]:
    """Return one answer of `doctor`."""
    return {
        "name": check.name,
        "level": check.level.value,
        "summary": check.summary,
        "problems": list(check.problems),
        "hint": check.hint or None,
    }


def action_document(action: Action, choice: Choice, report: Report | None) -> dict[str, Any]:
    """Return `requeue`, `cancel` and `fail`; `report` None is a dry run.

    In `items`, `after` null means skipped (in a dry run: not done yet), and "processing" that a
    running job was asked to stop. The action of `cancel --terminate` is "terminate".
    """
    changes = (
        [(target, None) for target in choice.targets]
        if report is None
        else [(change.target, change.after) for change in report.changes]
    )
    return {
        "action": action.value,
        "dry_run": report is None,
        "matched": len(choice.targets),
        "changed": 0 if report is None else report.changed,
        "asked_to_stop": 0 if report is None else report.asked,
        "skipped": len(choice.unfit) + (0 if report is None else report.skipped),
        "not_found": list(choice.unknown),
        "items": [
            *(_target(target, None if after is None else after.value) for target, after in changes),
            *(_target(target, None) for target in choice.unfit),
        ],
    }


def queue_action_document(action: str, changes: Sequence[QueueChange]) -> dict[str, Any]:
    """Return `pause` and `resume`."""
    return {
        "action": action,
        "items": [{"queue": change.queue, "changed": change.changed} for change in changes],
    }


def purge_document(waiting: Mapping[str, int], deleted: Mapping[str, int] | None) -> dict[str, Any]:
    """Return `purge`, by queue; `deleted` None is a dry run, and then so for each queue."""
    return {
        "action": "purge",
        "dry_run": deleted is None,
        "items": [
            {"queue": queue, "matched": count, "deleted": 0 if deleted is None else deleted[queue]}
            for queue, count in waiting.items()
        ],
    }


def prune_document(
    states: Sequence[State], older_than_s: float, matched: int, deleted: int | None
) -> dict[str, Any]:
    """Return `prune`; `deleted` None is a dry run."""
    return {
        "action": "prune",
        "dry_run": deleted is None,
        "states": [state.value for state in states],
        "older_than_s": older_than_s,
        "matched": matched,
        "deleted": deleted or 0,
    }


def _target(target: Target, after: str | None) -> dict[str, Any]:
    return {
        "id": target.job_id,
        "message_id": target.message_id,
        "before": target.state.value,
        "after": after,
    }


def _job_fields(row: JobRow, max_attempts: int) -> dict[str, Any]:
    return {
        "id": row.job_id,
        "message_id": row.message_id,
        "task": row.task,
        "queue": row.queue,
        "state": row.state.value,
        "priority": row.priority,
        "attempts": row.attempts,
        "max_attempts": max_attempts,
        "enqueued_at": iso(row.enqueued_at_ms),
        "due_at": iso(row.due_at_ms),
        "started_at": iso(row.started_at_ms),
        "finished_at": iso(row.finished_at_ms),
        "stop_asked_at": iso(row.stop_asked_at_ms),
        "kill_at": iso(row.kill_at_ms),
        "progress": row.progress
        and {
            "done": row.progress.done,
            "total": row.progress.total,
            "note": row.progress.note,
            "at": iso(row.progress.at_ms),
        },
        # Who had it last, unless it was handed back: then nobody has started it.
        "worker": None if row.started_at_ms is None else row.worker,
    }


def path_document(path: Path) -> dict[str, Any]:
    """Return `db path`; a size is null where there is no file."""
    return {
        "path": str(path),
        "run_directory": f"{path}-run",
        "bytes": {
            name: _size(Path(f"{path}{end}"))
            for name, end in (("database", ""), ("log", "-wal"), ("shared_memory", "-shm"))
        },
    }


def check_document(complaints: Sequence[str], *, full: bool) -> dict[str, Any]:
    """Return `db check`."""
    return {"sound": not complaints, "full": full, "complaints": list(complaints)}


def backup_document(report: BackupReport) -> dict[str, Any]:
    """Return `db backup`."""
    return {
        "path": str(report.path),
        "bytes": report.bytes,
        "jobs": report.jobs,
        "took_s": round(report.took_s, 3),
    }


def migration_document(migration: Migration, *, is_done: bool) -> dict[str, Any]:
    """Return `db migrate`; `migrated` is false for a dry run, and where there was nothing to do."""
    return {
        "path": str(migration.path),
        "from_version": migration.from_version,
        "to_version": migration.to_version,
        "migrated": is_done,
        "backup": migration.backup and str(migration.backup),
    }


def recount_document(found: Recounted) -> dict[str, Any]:
    """Return `db recount`."""
    return {"blocks": found.blocks, "wrong": found.wrong}


def _size(path: Path) -> int | None:
    try:
        return path.lstat().st_size
    except OSError:
        return None


def _error(failure: Failure | None) -> dict[str, Any] | None:
    if failure is None:
        return None
    return {
        "type": failure.type,
        "message": failure.message,
        "traceback": failure.traceback,
    }


def _history(one: History) -> dict[str, Any]:
    return {
        "run": one.run,
        "attempt": one.attempt,
        "worker": one.worker,
        "started_at": iso(one.started_at_ms),
        "ended_at": iso(one.ended_at_ms),
        "outcome": one.outcome,
        "error": _error(one.error),
    }


def _audit(one: AuditRow) -> dict[str, Any]:
    return {
        "at": iso(one.at_ms),
        "actor": one.actor,
        "action": one.action,
        "reason": one.reason,
        "before": one.before,
        "after": one.after,
    }
