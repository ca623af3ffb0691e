"""From a call with its options to what a backend publishes.

`app.send_task`, producers and schedule entries all come through here, so that a mistake is refused
with a sentence before anything is published, on every broker alike.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TypedDict

from sqlqueue import envelope, signing
from sqlqueue.backend import Publication
from sqlqueue.errors import EnvelopeError
from sqlqueue.task import Signature
from sqlqueue.text import did_you_mean, escaped, quoted
from sqlqueue_transport.clock import SYSTEM_CLOCK, Clock

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlqueue.config import Settings
    from sqlqueue.signing import Keys
    from sqlqueue.task import TaskOptions

__all__ = [
    "limits_of",
    "publication_of",
    "signature_of",
    "valid_mark",
    "valid_priority",
    "valid_queue",
]

_OPTIONS: Final = (
    *("countdown", "eta", "expires", "priority", "queue", "job_id"),
    *("time_limit", "soft_time_limit", "sensitive"),
)


class TimeLimits(TypedDict):
    """The two limits as `envelope.build` takes them: seconds, 0 for none, None for the worker's."""

    time_limit_s: float | None
    soft_time_limit_s: float | None


_LATEST_S: Final = 253_370_764_800  # the year 9999: what datetime, and so Celery, can say
_LONGEST_QUEUE: Final = 200


def signature_of(
    task: str, args: Sequence[Any], kwargs: Mapping[str, Any] | None, options: dict[str, Any]
) -> Signature:
    """Put a call together.

    What is neither list nor dict is left as it is, for the envelope to refuse: tuple("ab") would
    make two arguments of a text.
    """
    given_args: Any = tuple(args) if isinstance(args, list) else args
    given_kwargs: Any = {} if kwargs is None else kwargs
    return Signature(task, given_args, given_kwargs, options)


def publication_of(
    call: Signature,
    *,
    defaults: TaskOptions,
    max_attempts: int | None,
    conf: Settings,
    keys: Keys,
    clock: Clock = SYSTEM_CLOCK,
) -> Publication:
    """Return what to publish for a call, whose own options win over the task's `defaults`.

    `max_attempts` None leaves it to the worker; seconds count from now on `clock`. It is signed if
    there are `keys`. Raises EnvelopeError kinds.
    """
    envelope.task_name(call.task)  # first: every other error names the task
    for key in call.options:
        if key not in _OPTIONS:
            raise EnvelopeError(
                f"call of {call.task}: {quoted(key)} is no option.{did_you_mean(key, _OPTIONS)}"
            )
    options = {key: value for key, value in call.options.items() if value is not None}
    job_id = options.get("job_id")
    built = envelope.build(
        call.task,
        call.args,
        call.kwargs,
        job_id=envelope.new_job_id() if job_id is None else job_id,
        eta_ms=_eta_ms(call.task, options, clock),
        expires_ms=_time_ms(call.task, "expires", options.get("expires"), clock),
        **limits_of(defaults, options),
        # A call may add the mark, and not take it away.
        sensitive=valid_mark(options.get("sensitive", False)) or defaults.sensitive,
        max_bytes=conf.max_message_bytes,
    )
    signature = keys.of_message(
        built.headers, built.body.encode(), envelope.CONTENT_TYPE, envelope.CONTENT_ENCODING
    )
    if signature is not None:
        built.headers[signing.HEADER] = signature
    return Publication(
        built,
        queue=valid_queue(options.get("queue", defaults.queue)) or conf.task_default_queue,
        priority=valid_priority(options.get("priority", defaults.priority)) or 0,
        max_attempts=max_attempts,
        unique_key=job_id,
    )


def limits_of(defaults: TaskOptions, options: Mapping[str, Any] | None = None) -> TimeLimits:
    """Return the time limits to build a message with. Raises EnvelopeError.

    That both are seconds is for `envelope.build` to say; here it is that the soft one comes first.
    """
    given = options or {}
    hard = given.get("time_limit", defaults.time_limit)
    soft = given.get("soft_time_limit", defaults.soft_time_limit)
    if isinstance(hard, (int, float)) and isinstance(soft, (int, float)) and 0 < hard <= soft:
        raise EnvelopeError(
            f"soft_time_limit={soft} is not below time_limit={hard}, and would never be raised; give"
            " the task some time between them"
        )
    return {"time_limit_s": hard, "soft_time_limit_s": soft}


def valid_priority(value: object) -> int | None:
    """Return a priority, None for none. Raises EnvelopeError."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 9:
        raise EnvelopeError(f"priority={quoted(value)}; give a whole number from 0 to 9")
    return value


def valid_queue(value: object) -> str | None:
    """Return a queue's name, None for none. Raises EnvelopeError.

    The rule is that of the settings, too, where lists of queues are parted by commas.
    """
    if value is None:
        return None
    if (
        isinstance(value, str)
        and 0 < len(value) <= _LONGEST_QUEUE
        and value.strip() == escaped(value)
        and "," not in value
    ):
        return value
    raise EnvelopeError(
        f"queue={quoted(value)} is no queue name; use 1 to {_LONGEST_QUEUE} visible characters, no"
        " comma"
    )


def valid_mark(value: object) -> bool:
    """Return whether something is marked sensitive. Raises EnvelopeError."""
    if isinstance(value, bool):
        return value
    raise EnvelopeError(f"sensitive={quoted(value)}; give True or False")


def _eta_ms(task: str, options: Mapping[str, Any], clock: Clock) -> int | None:
    if "countdown" in options and "eta" in options:
        raise EnvelopeError(f"call of {task}: give either countdown= or eta=, not both")
    if "countdown" in options:
        return _ms_from_now(task, "countdown", options["countdown"], clock)
    eta = options.get("eta")
    if eta is not None and not isinstance(eta, datetime):
        raise EnvelopeError(f"call of {task}: eta={quoted(eta)}; give an aware datetime")
    return _time_ms(task, "eta", eta, clock)


def _time_ms(task: str, name: str, value: object, clock: Clock) -> int | None:
    """Return UTC milliseconds for an aware datetime, or for seconds from now."""
    if value is None:
        return None
    if not isinstance(value, datetime):
        return _ms_from_now(task, name, value, clock)
    if value.utcoffset() is None:
        raise EnvelopeError(
            f"call of {task}: {name}={value} has no time zone; give an aware datetime, such as"
            " datetime.now(timezone.utc) + timedelta(minutes=5)"
        )
    return round(value.timestamp() * 1000)


def _ms_from_now(task: str, name: str, seconds: object, clock: Clock) -> int:
    now_s = clock.wall_ms() / 1000
    if (
        isinstance(seconds, bool)
        or not isinstance(seconds, (int, float))
        or not 0 <= seconds <= _LATEST_S - now_s
    ):
        raise EnvelopeError(
            f"call of {task}: {name}={quoted(seconds)}; give seconds from now, 0 or more"
        )
    return round((now_s + seconds) * 1000)
