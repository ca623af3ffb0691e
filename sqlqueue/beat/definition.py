"""A schedule entry as JSON: how the file knows when it is due, and what one of its own enqueues.

Beats write it for every entry, so that due times can be told without the application. What is read
back was perhaps written by hand: everything is checked again, by the same rules as in code.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Final

from sqlqueue import plain_json
from sqlqueue.beat.cron import Cron
from sqlqueue.beat.schedule import Interval, Once, manner, when
from sqlqueue.errors import ConfigError, UndecodableMessage
from sqlqueue.signing import Keys
from sqlqueue.text import quoted

if TYPE_CHECKING:
    from collections.abc import Container

    from sqlqueue.beat.schedule import Entry, When

__all__ = [
    "Definition",
    "StoredCall",
    "check_signature",
    "for_audit",
    "in_words",
    "read",
    "write",
]

_SIGNATURE: Final = "signature"
_SENSITIVE: Final = "sensitive"
#: What the audit keeps of an entry whose call is sensitive.
_TASK_AND_TIMING: Final = frozenset(
    ("task", "every", "cron", "at", "timezone", "catch_up", "catch_up_limit", "jitter", "overlap")
)
_NO_KEYS: Final = Keys()

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
#: The options of a call that make sense for every tick alike.
OPTIONS: Final = ("queue", "priority", "expires", "countdown", _SENSITIVE)


@dataclass(frozen=True, slots=True)
class StoredCall:
    """Be what an entry of the file enqueues. `options` are some of `OPTIONS`."""

    task: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Definition:
    """Be an entry read back. `manner` are fields of `Entry`; `call` None: code or settings have it."""

    when: When
    manner: dict[str, Any]
    call: StoredCall | None


def write(entry: Entry[Any], call: StoredCall | None = None, *, keys: Keys = _NO_KEYS) -> str:
    """Return an entry as JSON text, with its call if it is to live in the file, signed with `keys`.

    Raises ConfigError for a call that JSON would change.
    """
    value: dict[str, Any] = {
        **_when(entry.when),
        "catch_up": entry.catch_up,
        "catch_up_limit": entry.catch_up_limit,
        "jitter": entry.jitter_ms / 1000,
        "overlap": entry.overlap,
    }
    if call is not None:
        value.update(task=call.task, args=call.args, kwargs=call.kwargs, options=call.options)
    try:
        text = plain_json.write(value, where="call")
        signature = keys.of_entry(entry.name, text)
        return (
            text
            if signature is None
            else plain_json.write({**value, _SIGNATURE: signature}, where="call")
        )
    except plain_json.Unwritable as error:
        raise ConfigError(f"schedule entry {quoted(entry.name)}: {error}") from None


def read(text: str, *, name: str) -> Definition:
    """Return what the file says of an entry. Raises ConfigError, which names the entry."""
    where = f"schedule entry {quoted(name)}"
    try:
        value = plain_json.read(text.encode("utf-8", "surrogatepass"))
    except plain_json.Unreadable as error:
        raise ConfigError(f"{where}: its definition {error}. Remove it and add it anew.") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: its definition is no object. Remove it and add it anew.")
    return Definition(
        when(
            every=value.get("every"),
            cron=value.get("cron"),
            at=value.get("at"),
            zone=value.get("timezone", "UTC"),
            name=where,
        ),
        manner(
            **{
                key: value[key]
                for key in ("catch_up", "catch_up_limit", "jitter", "overlap")
                if key in value
            },
            name=where,
        ),
        _call(value, where) if "task" in value else None,
    )


def check_signature(text: str, *, name: str, keys: Keys) -> None:
    """Raise ConfigError for a definition, one that `read` can read, that no holder of the keys made.

    A beat signs what it enqueues: whoever could write an entry would have a signature for the asking.
    """
    value = plain_json.read(text.encode("utf-8", "surrogatepass"))
    if not keys or not isinstance(value, dict):
        return
    signature = value.pop(_SIGNATURE, None)
    try:
        keys.check_entry(name, plain_json.write(value, where="call"), signature)
    except UndecodableMessage as error:
        raise ConfigError(
            f"schedule entry {quoted(name)}: {error.reason}. Remove it, and add it anew where the key"
            " is."
        ) from None


def for_audit(text: str | None, *, sensitive_tasks: Container[str] = ()) -> str | None:
    """Return what the record of a change keeps of a definition: of a sensitive call no arguments.

    A call is sensitive by its own mark, or by its task. One that nobody can read, and that may have
    the mark, is left out: None.
    """
    if text is None:
        return None
    try:
        value = plain_json.read(text.encode("utf-8", "surrogatepass"))
    except plain_json.Unreadable:
        value = None
    if not isinstance(value, dict):
        return None if _SENSITIVE in text else text
    task, options = value.get("task"), value.get("options", {})
    is_marked = not isinstance(options, dict) or bool(options.get(_SENSITIVE))
    if not is_marked and not (isinstance(task, str) and task in sensitive_tasks):
        return text
    return json.dumps({key: one for key, one in value.items() if key in _TASK_AND_TIMING})


def in_words(when: When) -> str:
    """Return when an entry is due, for people: ``every 5s``, ``0 3 * * * Europe/Berlin``."""
    if isinstance(when, Cron):
        return f"{when.expression} {when.zone_name}"
    if isinstance(when, Once):
        return f"once at {_iso(when.at_ms)}"
    return f"every {when.every_ms / 1000:g}s"


def _when(when: When) -> dict[str, Any]:
    if isinstance(when, Interval):
        return {"every": when.every_ms / 1000}
    if isinstance(when, Once):
        return {"at": _iso(when.at_ms), "timezone": when.zone_name}
    return {"cron": when.expression, "timezone": when.zone_name}


def _iso(at_ms: int) -> str:
    moment = _EPOCH + timedelta(milliseconds=at_ms)
    text = moment.replace(tzinfo=None).isoformat(
        timespec="auto" if at_ms % 1000 == 0 else "milliseconds"
    )
    return f"{text}Z"


def _call(value: dict[str, Any], where: str) -> StoredCall:
    task, args, kwargs = value["task"], value.get("args", []), value.get("kwargs", {})
    options = value.get("options", {})
    if (
        not isinstance(task, str)
        or not isinstance(args, list)
        or not isinstance(kwargs, dict)
        or not isinstance(options, dict)
    ):
        raise ConfigError(f"{where}: its call cannot be read. Remove it and add it anew.")
    return StoredCall(task, tuple(args), kwargs, options)
