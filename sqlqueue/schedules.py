"""Schedule entries that live in the queue file: added, removed, paused and resumed while beats run.

The third origin of entries, beside code and `[beat.NAME]` tables. Every method is one transaction,
audited, and rings the beats: they take the change up at once. Names are unique across all three
origins; an entry keeps its name until it is removed. Refuses what would run code: an entry of the
file is a call by a task's name, with JSON for arguments, and never a producer function.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlqueue.actor import actor as this_actor
from sqlqueue.beat import definition
from sqlqueue.beat.schedule import Entry, EntryOptions, timing
from sqlqueue.errors import ConfigError, EnvelopeError, ScheduleNotFound
from sqlqueue.task import Signature
from sqlqueue.text import did_you_mean, quoted
from sqlqueue_transport.clock import SYSTEM_CLOCK
from sqlqueue_transport.messages import SENSITIVE_HEADER
from sqlqueue_transport.schedules import Changed

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from sqlqueue.app import SqlQueue
    from sqlqueue_transport.schedules import ScheduleRow

__all__ = ["Schedules", "next_due_ms_of", "stored_entry"]


class Schedules:
    """Change the schedule of an application's queue file. Made by `SqlQueue.schedules`.

    Any thread may call it, in any process: beats need not run. Methods raise the transport's errors,
    and NotAvailable on a broker that keeps no schedule. If the process dies midway, a change is made
    whole, or not at all. `actor` None means the user of this process.
    """

    def __init__(self, app: SqlQueue) -> None:
        """Work on the application's queue."""
        self._app = app

    def add(
        self,
        name: str,
        signature: Signature,
        *,
        actor: str | None = None,
        **options: Unpack[EntryOptions],
    ) -> None:
        """Have every beat enqueue a call on each tick, from now on and also after restarts.

        Options are those of `SqlQueue.producer`. The arguments are kept as JSON, those of a sensitive
        call in the entry alone, and not in the record of who added or removed it. Raises ConfigError
        for what makes no sense, for a one-off whose time is over, and for a name that is taken.
        """
        entry = Entry(
            name,
            signature=signature,
            origin="file",
            **timing(options, zone=self._app.conf.timezone, name=str(name)),
        )
        where = f"schedule entry {quoted(name)}"
        try:
            headers = self._app.publication(signature).envelope.headers
        except EnvelopeError as error:
            raise ConfigError(f"{where}: {error}") from None
        for key in signature.options:
            if key not in definition.OPTIONS:
                raise ConfigError(
                    f"{where}: {key}= would be the same for every tick. Of a call's options an entry"
                    f" may have {', '.join(definition.OPTIONS)}."
                )
        now_ms = SYSTEM_CLOCK.wall_ms()
        next_due_ms = entry.when.next_after(now_ms - 1)
        if next_due_ms is None:
            raise ConfigError(f"{where}: {definition.in_words(entry.when)} is over already.")
        if name in self._app.entries:
            raise ConfigError(f"{where}: the code or the settings have an entry of that name.")
        options_of_call = dict(signature.options)
        if SENSITIVE_HEADER in headers:
            # By its task, perhaps, which who removes the entry need not know.
            options_of_call["sensitive"] = True
        call = definition.StoredCall(
            signature.task, signature.args, signature.kwargs, options_of_call
        )
        text = definition.write(entry, call, keys=self._app.keys)
        changed = self._app.backend.schedules.add(
            name,
            description=definition.in_words(entry.when),
            target=signature.task,
            definition=text,
            audited=definition.for_audit(text),
            next_due_ms=next_due_ms,
            actor=_named(actor),
        )
        if changed is not Changed.DONE:
            raise ConfigError(
                f"{where}: there is one of that name. Remove it first: 'sqlqueue schedule remove"
                f" {name}', or app.schedules.remove({name!r})."
            )

    def remove(self, name: str, *, actor: str | None = None, reason: str | None = None) -> None:
        """Remove an entry; what it has enqueued stays.

        One of code or settings can be removed when no beat alive has it any more. Raises
        ScheduleNotFound, and ConfigError for one that a beat has.
        """
        # Older entries, and those that were not added by `add`, may lack the mark.
        sensitive = {task.name for task in self._app.tasks.values() if task.options.sensitive}
        changed = self._app.backend.schedules.remove(
            name,
            audited=lambda text: definition.for_audit(text, sensitive_tasks=sensitive),
            actor=_named(actor),
            reason=reason,
        )
        if changed is Changed.IN_USE:
            raise ConfigError(
                f"schedule entry {quoted(name)} is in the code or the settings of a running beat."
                " Remove it there and restart the beat, or pause it: 'sqlqueue schedule pause"
                f" {name}'."
            )
        self._known(changed, name)

    def pause(self, name: str, *, actor: str | None = None, reason: str | None = None) -> bool:
        """Let an entry of any origin rest until it is resumed; False when it rested already.

        Raises ScheduleNotFound for one that no beat has described yet.
        """
        changed = self._app.backend.schedules.pause(name, actor=_named(actor), reason=reason)
        return self._known(changed, name)

    def resume(self, name: str, *, actor: str | None = None, reason: str | None = None) -> bool:
        """Let an entry go on with its next tick; False when it was not paused.

        What was due during the pause is given up; a one-off of that time is over. Raises
        ScheduleNotFound.
        """
        changed = self._app.backend.schedules.resume(
            name,
            next_due=lambda text, now_ms: next_due_ms_of(name, text, now_ms),
            actor=_named(actor),
            reason=reason,
        )
        return self._known(changed, name)

    def list(self) -> list[ScheduleRow]:
        """List the entries of all origins, as the file knows them."""
        return self._app.backend.schedules.rows()

    def _known(self, changed: Changed, name: str) -> bool:
        if changed is Changed.UNKNOWN:
            if name in self._app.entries:
                hint = (
                    " The code or the settings have an entry of that name, but no beat has described"
                    " it yet: start one."
                )
            else:
                hint = did_you_mean(name, [row.entry for row in self.list()])
            raise ScheduleNotFound(name, hint)
        return changed is Changed.DONE


def stored_entry(app: SqlQueue, name: str, text: str | None) -> Entry[Signature]:
    """Return an entry that lives in the file, from its definition. Raises ConfigError.

    With keys, one that is not signed is refused.
    """
    found = definition.read(text or "", name=name)
    if found.call is None:
        raise ConfigError(f"schedule entry {quoted(name)}: its definition has no task.")
    definition.check_signature(text or "", name=name, keys=app.keys)
    call = found.call
    signature = Signature(call.task, call.args, call.kwargs, call.options)
    try:
        app.publication(signature)
    except EnvelopeError as error:
        raise ConfigError(f"schedule entry {quoted(name)}: {error}") from None
    fields: dict[str, Any] = found.manner
    return Entry(name, found.when, signature=signature, origin="file", definition=text, **fields)


def next_due_ms_of(name: str, text: str, now_ms: int) -> int | None:
    """Return when an entry with this definition is due after `now_ms`; None: it is over.

    A definition that cannot be read is due at once: the beats then say what is wrong with it.
    """
    try:
        return definition.read(text, name=name).when.next_after(now_ms)
    except ConfigError:
        return now_ms


def _named(actor: str | None) -> str:
    return this_actor("python") if actor is None else actor
