"""A call, written as a message and read back: Celery's message protocol, version 2.

On the way of a job this stands between `task.py` (who calls) and Kombu's Producer (who publishes),
and again between the channel and `execute.py`. The names and types of the headers are Celery's
(docs.celeryq.dev, "Message Protocol"; celery/app/amqp.py, as_task_v2), so a Celery worker can run
our jobs and ours can run Celery's.

It refuses to read anything but plain JSON of bounded size and depth, and to write what it would not
read. Kombu's own decoder is never used: it revives ``{"__type__": …}`` into objects (a decimal of
10^9 digits is one of them) and takes NaN. Such a dictionary reaches the task as a dictionary.
"""

from __future__ import annotations

import functools
import os
import reprlib
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Final

from sqlqueue import plain_json
from sqlqueue.errors import (
    EnvelopeError,
    UndecodableMessage,
    UnserializableArguments,
    UnserializableResult,
)
from sqlqueue.text import HIDDEN, escaped, quoted
from sqlqueue_transport.messages import SENSITIVE_HEADER

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeGuard

__all__ = [
    "CONTENT_ENCODING",
    "CONTENT_TYPE",
    "Call",
    "Envelope",
    "build",
    "dump_result",
    "new_job_id",
    "parse",
    "task_name",
]

CONTENT_TYPE: Final = "application/json"
CONTENT_ENCODING: Final = "utf-8"

_MAX_HEADERS: Final = 256  # Celery sends 19; stamps add some
_MAX_NAME: Final = 255  # characters of a task's name or a job's id


@dataclass(frozen=True, slots=True)
class Envelope:
    """A call as it is published.

    ``producer.publish(e.body, headers=e.headers, content_type=CONTENT_TYPE,
    content_encoding=CONTENT_ENCODING, **e.properties)``: the content type keeps Kombu from
    serializing the body once more.
    """

    headers: dict[str, object]
    body: str
    properties: dict[str, str]


@dataclass(frozen=True, slots=True)
class Call:
    """A message read as a call: which task, with what.

    Times are UTC wall-clock milliseconds, limits are seconds; None where the caller set none.
    `retries` is Celery's count, not our attempts. `root_id` is the id of the first job of a family,
    this one's own id when nobody else is. Of what `is_sensitive` nothing is shown to anybody.
    """

    task: str
    id: str
    args: tuple[object, ...]
    kwargs: dict[str, object]
    retries: int
    eta_ms: int | None
    expires_ms: int | None
    root_id: str
    parent_id: str | None
    time_limit_s: float | None
    soft_time_limit_s: float | None
    is_sensitive: bool = False


def new_job_id() -> str:
    """Return a fresh UUIDv7 as text: ids of one machine sort by time, so index inserts stay cheap.

    Layout by RFC 9562, 5.7, with its method 3: 48 bits of milliseconds, 12 bits of the fraction of
    the millisecond, 62 random bits. Random from the kernel, so a forked child repeats nothing.
    """
    now_ms, rest_ns = divmod(max(time.time_ns(), 0), 1_000_000)
    fraction = (rest_ns << 12) // 1_000_000
    value = (now_ms & (1 << 48) - 1) << 80 | 0x7 << 76 | fraction << 64
    value |= 0b10 << 62 | int.from_bytes(os.urandom(8), "big") >> 2
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def task_name(value: object) -> str:
    """Return the name of a task, or raise EnvelopeError where it cannot be one."""
    if not _is_name(value):
        raise EnvelopeError(f"{quoted(value)} is no task name. {_NAME_RULE}")
    return value


def build(
    task: str,
    args: Sequence[object],
    kwargs: Mapping[str, object],
    *,
    job_id: str,
    eta_ms: int | None = None,
    expires_ms: int | None = None,
    time_limit_s: float | None = None,
    soft_time_limit_s: float | None = None,
    retries: int = 0,
    root_id: str | None = None,
    parent_id: str | None = None,
    sensitive: bool = False,
    max_bytes: int = plain_json.MAX_BYTES,
) -> Envelope:
    """Write a call as a message.

    Times are UTC wall-clock milliseconds, limits are seconds, and 0 or None mean none. Tuples are
    written as lists. `sensitive` marks it: its arguments are in the body alone. Raises UnserializableArguments for what JSON would lose, change or not read
    back (objects, keys that are no text, NaN, half surrogate pairs, brackets 65 deep), and
    EnvelopeError for a bad name or id, a time beyond the year 9999, or a body above `max_bytes`.
    """
    task_name(task)
    if not _is_name(job_id):
        raise EnvelopeError(f"{quoted(job_id)} is no job id. {_NAME_RULE}")
    body = _written_body(task, args, kwargs, max_bytes=max_bytes)
    headers: dict[str, object] = {
        "lang": "py",
        "task": task,
        "id": job_id,
        "shadow": None,
        "eta": _iso(eta_ms, name="eta"),
        "expires": _iso(expires_ms, name="expires"),
        "group": None,
        "group_index": None,
        "retries": retries,
        "timelimit": [
            _limit(time_limit_s, name="time_limit"),
            _limit(soft_time_limit_s, name="soft_time_limit"),
        ],
        "root_id": root_id or job_id,
        "parent_id": parent_id,
        # Celery's monitors show these two; nothing ever evaluates them.
        "argsrepr": _shown(tuple(args), fits=len(body) <= _SHOWN_CHARS, hidden=sensitive),
        "kwargsrepr": _shown(dict(kwargs), fits=len(body) <= _SHOWN_CHARS, hidden=sensitive),
        "origin": f"gen{os.getpid()}@{_hostname()}",
        "ignore_result": False,
        "replaced_task_nesting": 0,
        "stamped_headers": None,
        "stamps": {},
    }
    if sensitive:
        headers[SENSITIVE_HEADER] = True
    return Envelope(headers, body, {"correlation_id": job_id, "reply_to": ""})


def parse(
    headers: object,
    body: object,
    *,
    content_type: object = CONTENT_TYPE,
    content_encoding: object = CONTENT_ENCODING,
    max_bytes: int = plain_json.MAX_BYTES,
) -> Call:
    """Read a message as a call.

    The message may come from anybody: whatever is wrong with it raises UndecodableMessage, with a
    reason for people, and nothing else is ever raised. A naive eta or expires is taken as UTC, as
    Celery's protocol has it. A call that asks for what should follow it (chain, chord, callbacks)
    is refused: to run it and drop the rest would lose work in silence.
    """
    if not isinstance(headers, Mapping):
        raise UndecodableMessage("it has no headers")
    if len(headers) > _MAX_HEADERS:
        raise UndecodableMessage(f"it has {len(headers)} headers; the limit is {_MAX_HEADERS}")
    task, job_id = headers.get("task"), headers.get("id")
    if task is None:
        raise UndecodableMessage(
            "it has no 'task' header: no job, or one of Celery's message protocol 1"
        )
    if not _is_name(task):
        raise UndecodableMessage(f"its task header {quoted(task)} is no task name")
    if not _is_name(job_id):
        raise UndecodableMessage(f"its id header {quoted(job_id)} is no job id")
    if headers.get("compression"):  # a small message that unpacks into all memory
        raise UndecodableMessage("its body is compressed; only plain JSON is read")
    args, kwargs = _read_body(_body_bytes(body, content_type, content_encoding, max_bytes))
    time_limit_s, soft_time_limit_s = _read_limits(headers.get("timelimit"))
    return Call(
        task=task,
        id=job_id,
        args=tuple(args),
        kwargs=kwargs,
        retries=_read_retries(headers.get("retries")),
        eta_ms=_read_time(headers.get("eta"), name="eta"),
        expires_ms=_read_time(headers.get("expires"), name="expires"),
        root_id=_read_related_id(headers.get("root_id"), job_id, name="root_id") or job_id,
        parent_id=_read_related_id(headers.get("parent_id"), job_id, name="parent_id"),
        time_limit_s=time_limit_s,
        soft_time_limit_s=soft_time_limit_s,
        is_sensitive=SENSITIVE_HEADER in headers,
    )


def dump_result(value: object, *, max_bytes: int = plain_json.MAX_BYTES) -> str:
    """Return what a task returned as JSON text, under the same rules as arguments.

    Raises UnserializableResult, whatever the value is.
    """
    if value is None:  # mostly
        return "null"
    try:
        return plain_json.write(value, where="the result", max_bytes=max_bytes)
    except plain_json.Unwritable as error:
        raise UnserializableResult(
            f"{error}. Return text, numbers, lists and dicts, or nothing; keep large data in a file"
            " and return its name."
        ) from None


# --- writing --------------------------------------------------------------------------------------

_EMBED: Final = '{"callbacks":null,"errbacks":null,"chain":null,"chord":null}'
_SHOWN_CHARS: Final = 1024  # Celery's argsrepr_maxsize
_NAME_RULE: Final = f"Use 1 to {_MAX_NAME} visible characters."
_LONGEST_S: Final = 1e11  # of a time limit; three thousand years
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)


def _is_name(value: object) -> TypeGuard[str]:
    """Say whether this can be a task's name or a job's id: short, visible, and possible as UTF-8.

    Nothing more: a name with a slash or a dunder is just a name that no task has.
    """
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_NAME or value.isspace():
        return False
    return (value.isascii() and value.isprintable()) or escaped(value) == value


def _is_limit(value: object) -> TypeGuard[float | None]:
    """Say whether this can be a time limit: seconds, or None. NaN is neither."""
    if value is None:
        return True
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= _LONGEST_S
    )


def _written_body(
    task: str, args: Sequence[object], kwargs: Mapping[str, object], *, max_bytes: int
) -> str:
    # Text would pass as a list of characters.
    if not isinstance(args, (list, tuple)) or not isinstance(kwargs, Mapping):
        raise UnserializableArguments(
            f"call of {task}: args are {quoted(args)} and kwargs {quoted(kwargs)}. Pass a list or"
            " tuple, and a dict."
        )
    try:
        # Apart, so that an error can say which; depth 1, as the brackets of the body are around.
        text_of_args = plain_json.write(list(args), where="args", depth=1, max_bytes=max_bytes)
        text_of_kwargs = plain_json.write(
            dict(kwargs), where="kwargs", depth=1, max_bytes=max_bytes
        )
    except plain_json.TooLarge as error:
        raise _too_large(task, str(error), max_bytes) from None
    except plain_json.Unwritable as error:
        raise UnserializableArguments(
            f"call of {task}: {error}. Pass text, numbers, lists and dicts with text keys."
        ) from None
    body = f"[{text_of_args},{text_of_kwargs},{_EMBED}]"
    if len(body.encode()) > max_bytes:
        raise _too_large(task, "args and kwargs together are too large", max_bytes)
    return body


def _too_large(task: str, what: str, max_bytes: int) -> EnvelopeError:
    return EnvelopeError(
        f"call of {task}: {what}; the limit is {max_bytes:,} bytes as JSON (max_message_bytes)."
        " Keep the data in a file and pass its name."
    )


def _iso(at_ms: int | None, *, name: str) -> str | None:
    """Return a time as Celery writes it: ``2026-11-22T05:11:07.123000+00:00``."""
    if at_ms is None:
        return None
    try:
        return (_EPOCH + timedelta(milliseconds=at_ms)).isoformat()
    except (OverflowError, TypeError, ValueError):
        raise EnvelopeError(
            f"{name} is {quoted(at_ms)} ms after 1970. Give a time before the year 9999."
        ) from None


def _limit(seconds: float | None, *, name: str) -> float | None:
    if not _is_limit(seconds):
        raise EnvelopeError(f"{name} = {quoted(seconds)}: give seconds, or 0 for none.")
    return seconds or None


def _shown(value: object, *, fits: bool, hidden: bool) -> str:
    """Return the repr of a value, cut. `fits` says that the value is known to be short."""
    if hidden:
        return f"({HIDDEN})"
    try:
        shown = repr(value) if fits else _SHORT_REPR.repr(value)
    except Exception:  # noqa: BLE001 - a str's subclass may have a repr of its own
        return "..."
    return shown if len(shown) <= _SHOWN_CHARS else f"{shown[: _SHOWN_CHARS - 3]}..."


_SHORT_REPR: Final = reprlib.Repr()
_SHORT_REPR.maxstring = _SHORT_REPR.maxother = 200
_SHORT_REPR.maxlist = _SHORT_REPR.maxtuple = _SHORT_REPR.maxdict = 16


@functools.cache
def _hostname() -> str:
    return socket.gethostname()


# --- reading --------------------------------------------------------------------------------------

_UTF_8: Final = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})


def _body_bytes(
    body: object, content_type: object, content_encoding: object, max_bytes: int
) -> bytes:
    if content_type != CONTENT_TYPE and not (
        isinstance(content_type, str) and content_type.strip().lower() == CONTENT_TYPE
    ):
        raise UndecodableMessage(f"its content type is {quoted(content_type)}; only JSON is read")
    encoding = CONTENT_ENCODING if content_encoding is None else content_encoding
    if encoding != CONTENT_ENCODING and not (
        isinstance(encoding, str) and encoding.strip().lower() in _UTF_8
    ):
        raise UndecodableMessage(f"its encoding is {quoted(content_encoding)}; only UTF-8 is read")
    if isinstance(body, str):  # some transports hand over text
        try:
            body = body.encode()
        except UnicodeEncodeError:
            raise UndecodableMessage("its body is not UTF-8") from None
    if not isinstance(body, (bytes, bytearray, memoryview)):
        raise UndecodableMessage("it has no body")
    if len(body) > max_bytes:
        raise UndecodableMessage(f"its body is {len(body):,} bytes; the limit is {max_bytes:,}")
    return body if isinstance(body, bytes) else bytes(body)


def _read_body(body: bytes) -> tuple[list[object], dict[str, object]]:
    try:
        value = plain_json.read(body)
    except plain_json.Unreadable as error:
        raise UndecodableMessage(f"its body {error}") from None
    if not isinstance(value, list) or len(value) != 3:
        raise UndecodableMessage("its body is not [args, kwargs, embed], as protocol 2 has it")
    args, kwargs, embed = value
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise UndecodableMessage("its args are no list, or its kwargs no object")
    if not isinstance(embed, dict):
        raise UndecodableMessage("its embed, the third part of the body, is no object")
    wanted = [key for key in ("callbacks", "errbacks", "chain", "chord") if embed.get(key)]
    if wanted:
        raise UndecodableMessage(
            f"it asks for {' and '.join(wanted)}, which only a Celery worker can run"
        )
    return args, kwargs


def _read_retries(value: object) -> int:
    if value is None:
        return 0
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31:
        return value
    raise UndecodableMessage(f"its retries header {quoted(value)} is no count")


def _read_time(value: object, *, name: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, str) and len(value) <= 64:
        try:
            # Python 3.10 does not know "Z".
            at = datetime.fromisoformat(f"{value[:-1]}+00:00" if value[-1:] in "zZ" else value)
        except ValueError:
            pass
        else:
            # Subtracted, not converted: astimezone() overflows near the years 1 and 9999.
            aware = at if at.tzinfo else at.replace(tzinfo=timezone.utc)
            return (aware - _EPOCH) // timedelta(milliseconds=1)
    raise UndecodableMessage(f"its {name} header {quoted(value)} is no ISO 8601 time")


def _read_limits(value: object) -> tuple[float | None, float | None]:
    if value is None:
        return None, None
    if isinstance(value, (list, tuple)) and len(value) == 2:
        hard, soft = value
        if _is_limit(hard) and _is_limit(soft):
            return hard or None, soft or None
    raise UndecodableMessage(f"its timelimit header {quoted(value)} is no [seconds, seconds]")


def _read_related_id(value: object, job_id: str, *, name: str) -> str | None:
    if value is None or value == job_id or _is_name(value):
        return value
    raise UndecodableMessage(f"its {name} header {quoted(value)} is no job id")
