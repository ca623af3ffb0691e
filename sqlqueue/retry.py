"""Whether a failed attempt is followed by another one, and how long after.

`execute.py` asks here once an attempt has failed; the store writes the answer into the job's row.
Pure: no clock, and randomness is handed in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlqueue.errors import Reject, Retry, TaskDefinitionError
from sqlqueue.text import quoted

if TYPE_CHECKING:
    from random import Random

__all__ = ["RetryPolicy"]

# Above it 2^n has long passed every cap, and 2.0 ** 1024 is an OverflowError.
_MOST_DOUBLINGS = 64


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How a task is retried. Checked when the task is declared: raises TaskDefinitionError.

    max_attempts    attempts in all, 1 or more; 1 never retries
    backoff_s       seconds after the first failed attempt, doubled after each further one
    backoff_max_s   no wait is longer
    jitter          shorten each wait at random, down to half of it
    retry_for       exceptions that are retried
    dont_retry_for  exceptions that are not, even where retry_for covers them
    """

    max_attempts: int = 5
    backoff_s: float = 1.0
    backoff_max_s: float = 600.0
    jitter: bool = True
    retry_for: tuple[type[BaseException], ...] = (Exception,)
    dont_retry_for: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        """Refuse what could only fail later, in a worker."""
        if type(self.max_attempts) is not int or not 1 <= self.max_attempts < 2**31:
            raise TaskDefinitionError(
                f"max_attempts = {quoted(self.max_attempts)}: give a whole number from 1 up."
            )
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

    def delay_s(self, attempt: int, random: Random) -> float:
        """Return the seconds to wait after failed attempt number `attempt`, counted from 1.

        ``backoff × 2^(attempt−1)``, at most `backoff_max_s`; with jitter times a number between 0.5
        and 1, after the cap, so that a thousand jobs which failed together do not come back
        together even when all have reached the cap. Never more than `backoff_max_s`.
        """
        doublings = min(max(attempt, 1) - 1, _MOST_DOUBLINGS)
        delay_s = min(self.backoff_s * 2.0**doublings, self.backoff_max_s)
        return delay_s * random.uniform(0.5, 1.0) if self.jitter else float(delay_s)

    def should_retry(self, error: BaseException) -> bool:
        """Say whether this error deserves another attempt, if any is left.

        `Reject` never does, `Retry` always: the task said so itself. A task that calls ``sys.exit``
        or raises some other BaseException has failed like any other, so whoever retries for
        Exception (everybody, by default) retries for those too.
        """
        if isinstance(error, Reject):
            return False
        if isinstance(error, Retry):
            return True
        if isinstance(error, self.dont_retry_for):
            return False
        if isinstance(error, self.retry_for):
            return True
        return not isinstance(error, Exception) and Exception in self.retry_for


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
