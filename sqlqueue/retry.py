"""Whether a failed attempt is followed by another one, and how long after.

`execute.py` asks here once an attempt has failed; the store writes the answer into the job's row.
Pure: no clock, and randomness is handed in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlqueue.errors import Reject, Retry, TaskDefinitionError, TimeLimitExceeded
from sqlqueue.text import quoted

if TYPE_CHECKING:
    from random import Random

__all__ = ["Backoff", "RetryPolicy"]

# Above it 2^n has long passed every cap, and 2.0 ** 1024 is an OverflowError.
_MOST_DOUBLINGS = 64


@dataclass(frozen=True, slots=True)
class Backoff:
    """How failures of one kind are retried. Raises TaskDefinitionError for what cannot work.

    first_s         seconds after the first failed attempt, doubled after each further one
    longest_s       no wait is longer
    jitter          shorten each wait at random, down to half of it
    max_attempts    attempts of the job in all, whatever ended the earlier ones; 0 is no limit, None
                    the task's own number. It may be above or below that.
    """

    first_s: float = 1.0
    longest_s: float = 600.0
    jitter: bool = True
    max_attempts: int | None = None

    def __post_init__(self) -> None:
        """Refuse what could only fail later, in a worker."""
        for name in ("first_s", "longest_s"):
            if not _is_seconds(getattr(self, name)):
                raise TaskDefinitionError(
                    f"Backoff({name}={quoted(getattr(self, name))}): give seconds, 0 or more."
                )
        if self.max_attempts is not None:
            _refuse_no_count(self.max_attempts)

    def delay_s(self, attempt: int, random: Random) -> float:
        """Return the seconds to wait after failed attempt number `attempt`, counted from 1.

        ``first × 2^(attempt−1)``, at most `longest_s`; with jitter times a number between 0.5 and 1,
        after the cap, so that a thousand jobs which failed together do not come back together even
        when all have reached the cap. Never more than `longest_s`.
        """
        doublings = min(max(attempt, 1) - 1, _MOST_DOUBLINGS)
        delay_s = min(self.first_s * 2.0**doublings, self.longest_s)
        return delay_s * random.uniform(0.5, 1.0) if self.jitter else float(delay_s)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How a task is retried. Checked when the task is declared: raises TaskDefinitionError.

    max_attempts    attempts in all; 1 never retries, 0 is no limit
    backoff_s       seconds after the first failed attempt, doubled after each further one
    backoff_max_s   no wait is longer
    jitter          shorten each wait at random, down to half of it
    retry_for       exceptions that are retried
    dont_retry_for  exceptions that are not, even where retry_for covers them
    policies        exceptions with a back-off of their own, or None: never retried

    The most specific class an error has in `policies` or `dont_retry_for` decides; only where there
    is none, `retry_for` does. An attempt that no error of the task ended (a lost worker, a time
    limit) goes by `max_attempts`.
    """

    max_attempts: int = 5
    backoff_s: float = 1.0
    backoff_max_s: float = 600.0
    jitter: bool = True
    retry_for: tuple[type[BaseException], ...] = (Exception,)
    dont_retry_for: tuple[type[BaseException], ...] = ()
    policies: Mapping[type[BaseException], Backoff | None] = field(default_factory=dict)
    # The largest number of attempts that any policy allows; 0 is no limit. Every attempt asks.
    most_attempts: int = field(init=False, repr=False, compare=False)
    _own_backoff: Backoff = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse what could only fail later, in a worker."""
        _refuse_no_count(self.max_attempts)
        for name in ("backoff_s", "backoff_max_s"):
            if not _is_seconds(getattr(self, name)):
                raise TaskDefinitionError(
                    f"retry_{name.removesuffix('_s')} = {quoted(getattr(self, name))}:"
                    " give seconds, 0 or more."
                )
        for name in ("retry_for", "dont_retry_for"):
            if not _are_exceptions(getattr(self, name)):
                raise TaskDefinitionError(
                    f"{name} = {quoted(getattr(self, name))}: give a tuple of exception classes,"
                    " such as (OSError,)."
                )
        _refuse_no_policies(self.policies, self.dont_retry_for)
        own = [each.max_attempts for each in self.policies.values() if each is not None]
        numbers = [self.max_attempts, *(number for number in own if number is not None)]
        object.__setattr__(self, "most_attempts", 0 if 0 in numbers else max(numbers))
        own_backoff = Backoff(self.backoff_s, self.backoff_max_s, self.jitter)
        object.__setattr__(self, "_own_backoff", own_backoff)

    def retry_in_s(
        self, error: BaseException, attempt: int, most: int, random: Random
    ) -> float | None:
        """Return the seconds until the next attempt; None when attempt number `attempt` was the last.

        `most` is how many attempts this very job may have in all, by its message; 0 is no limit.
        `Reject` is never retried. `Retry` is, whatever the policies say, after its own countdown:
        the task said so itself. It counts as the task's ordinary failure, and so does the time limit,
        which is none of the task's errors: the pool decides whether it is raised or a process killed.
        """
        if isinstance(error, Reject):
            return None
        if isinstance(error, (Retry, TimeLimitExceeded)):
            backoff: Backoff | None = self._own_backoff
        else:
            backoff = self._backoff_for(error)
        if backoff is None or 0 < self._allowed(backoff, most) <= attempt:
            return None
        if isinstance(error, Retry) and error.countdown is not None:
            return error.countdown
        return backoff.delay_s(attempt, random)

    def allowed_when_lost(self, most: int) -> int:
        """Return how many attempts a job may have whose attempts end without an error of the task.

        0 is no limit. `most` is the message's own number, as in `retry_in_s`.
        """
        return self._allowed(self._own_backoff, most)

    def _allowed(self, backoff: Backoff, most: int) -> int:
        own = backoff.max_attempts
        if own is None:
            # The message's number is the task's of the day it was published, and wins. With
            # policies it is the largest of all, and says nothing of this error.
            own = most if self.most_attempts == self.max_attempts else self.max_attempts
        return min(own or most, most or own)

    def _backoff_for(self, error: BaseException) -> Backoff | None:
        """Return how this error is retried; None for never.

        A task that calls ``sys.exit`` or raises some other BaseException has failed like any other,
        so whoever retries for Exception (everybody, by default) retries for those too.
        """
        for kind in type(error).__mro__:
            if kind in self.dont_retry_for:
                return None
            if kind in self.policies:
                return self.policies[kind]
        is_other = not isinstance(error, Exception) and Exception in self.retry_for
        return self._own_backoff if is_other or isinstance(error, self.retry_for) else None


def _refuse_no_count(value: object) -> None:
    if type(value) is not int or not 0 <= value < 2**31:
        raise TaskDefinitionError(
            f"max_attempts = {quoted(value)}: give a whole number from 1 up, or 0 for no limit."
        )


def _refuse_no_policies(policies: object, never: tuple[type[BaseException], ...]) -> None:
    if (
        not isinstance(policies, Mapping)
        or not _are_exceptions(tuple(policies))
        or not all(each is None or isinstance(each, Backoff) for each in policies.values())
    ):
        raise TaskDefinitionError(
            f"retry_policies = {quoted(policies)}: give a dict of exception classes, such as"
            " {OSError: Backoff(first_s=5), ValueError: None}."
        )
    for kind in policies:
        if kind in never:
            raise TaskDefinitionError(
                f"{kind.__name__} is both in retry_policies and in dont_retry_for; leave it in one"
            )
        if issubclass(kind, (Retry, Reject)):
            raise TaskDefinitionError(
                f"{kind.__name__} in retry_policies: it says itself what becomes of the job"
            )


def _is_seconds(value: object) -> bool:
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and 0 <= value <= 1e11  # NaN is not, and no product of it below overflows
    )


def _are_exceptions(value: object) -> bool:
    return isinstance(value, tuple) and all(
        isinstance(each, type) and issubclass(each, BaseException) for each in value
    )
