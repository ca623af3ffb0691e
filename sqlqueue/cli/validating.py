"""What `sqlqueue config validate` looks at: settings, application, queue names, schedule, broker.

One mistake must not hide the others, so each part is looked at by itself, as far as the parts before
allow. Nothing is made: not the queue file, nor a queue in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlqueue import config, signing
from sqlqueue.cli.failures import explain
from sqlqueue.cli.opening import inspecting, load, resolved
from sqlqueue.formats import number
from sqlqueue.text import did_you_mean, quoted, without_passwords

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlqueue.app import SqlQueue
    from sqlqueue.cli.invocation import Invocation
    from sqlqueue.config import Settings

__all__ = ["Examined", "examined"]


@dataclass(slots=True)
class Examined:
    """Be what was found: mistakes, what may be meant, and the parts that were looked at."""

    mistakes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    subjects: list[str] = field(default_factory=list)

    def tried(self, work: Callable[[], object]) -> bool:
        """Do something, and keep what every command would tell of it as an error."""
        try:
            work()
        except Exception as error:
            known = explain(error)
            if known is None:
                raise
            if (
                known[1] not in self.mistakes
            ):  # the import of an application reads its settings, too
                self.mistakes.append(known[1])
            return False
        return True


def examined(invocation: Invocation) -> Examined:
    """Look at everything. Imports the application of `-A`; call `apply_command_line` before."""
    found = Examined()
    app: SqlQueue | None = None

    def import_it() -> None:
        nonlocal app
        app = load(invocation)

    is_imported = found.tried(import_it)
    mistakes = config.mistakes({}) if app is None else app.mistakes
    found.mistakes += [one for one in mistakes if one not in found.mistakes]
    found.subjects.append("settings")
    if app is not None:
        found.subjects.append(f"{number(len(app.tasks), 'task')} of {invocation.app}")
    if mistakes:
        return found  # queues and broker are not known
    if app is not None:
        _look_at_schedule(found, app)
    if is_imported:  # the application's code may name another broker
        settings = resolved(app).settings
        found.tried(
            lambda: signing.keys_of(
                settings.signing_key, settings.signing_keys_accepted, settings.signing_key_file
            )
        )
        _look_at_queues(found, settings, app)
        _look_at_broker(found, invocation, settings, app)
    return found


def _look_at_schedule(found: Examined, app: SqlQueue) -> None:
    entries = app.entries
    count = len(entries)
    found.subjects.append("1 schedule entry" if count == 1 else f"{count} schedule entries")
    for name, entry in entries.items():
        task = None if entry.signature is None else entry.signature.task
        if task is not None and task not in app.tasks:
            found.warnings.append(
                f"schedule entry {quoted(name)}: no task is named {quoted(task)} here."
                f"{did_you_mean(task, app.tasks)} Another program may have it."
            )


def _look_at_queues(found: Examined, settings: Settings, app: SqlQueue | None) -> None:
    """Try every name of a queue as the file would take it: in bytes, which settings do not count."""
    if not settings.broker_url.startswith("sqlqueue://"):
        return
    from sqlqueue_transport.topology import valid_name

    named = [settings.task_default_queue, *settings.worker_queues, *settings.worker_queue_weights]
    if app is not None:
        named += [task.options.queue for task in app.tasks.values() if task.options.queue]
    queues = tuple(dict.fromkeys(named))
    found.subjects.append(number(len(queues), "queue"))
    for queue in queues:
        found.tried(lambda queue=queue: valid_name(queue, what="queue"))  # type: ignore[misc]


def _look_at_broker(
    found: Examined, invocation: Invocation, settings: Settings, app: SqlQueue | None
) -> None:
    """Open a file for looking, or say whether it could be made; connect to any other broker."""
    from sqlqueue import health

    def look() -> None:
        path = health.database_path(settings.broker_url)
        if path is None:
            with inspecting(invocation, app=app):
                return
        from sqlqueue_transport import files, opening
        from sqlqueue_transport.options import Options
        from sqlqueue_transport.transport import split_url

        Options.read({**split_url(settings.broker_url)[1], **settings.transport_options})
        opening.refuse_unsafe(path, create=True)
        if files.size_of(path):
            opening.version_at(path)

    if found.tried(look):
        found.subjects.append(without_passwords(settings.broker_url))
