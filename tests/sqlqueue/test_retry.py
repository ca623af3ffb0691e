import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlqueue.errors import Reject, Retry, SqlQueueError, TaskDefinitionError
from sqlqueue.retry import Backoff, RetryPolicy

NO_JITTER = random.Random(1)


def retried(policy, error, *, attempt=1, most=5):
    """Say whether an attempt that this error ended is followed by another one."""
    return policy.retry_in_s(error, attempt, most, NO_JITTER) is not None


def test_the_wait_doubles_with_each_failed_attempt_up_to_the_cap():
    policy = RetryPolicy(backoff_s=1.0, backoff_max_s=600.0, jitter=False, max_attempts=0)
    waits = [
        policy.retry_in_s(OSError(), attempt, 0, NO_JITTER)
        for attempt in (1, 2, 3, 4, 10, 11, 5000)
    ]
    assert waits == [1.0, 2.0, 4.0, 8.0, 512.0, 600.0, 600.0]


@settings(deadline=None)
@given(
    st.integers(-5, 2**31),
    st.floats(0, 1e11),
    st.floats(0, 1e11),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_no_wait_is_negative_infinite_or_above_the_cap(attempt, backoff, cap, jitter, randoms):
    wait = Backoff(first_s=backoff, longest_s=cap, jitter=jitter).delay_s(attempt, randoms)
    assert 0 <= wait <= cap
    assert math.isfinite(wait)


def test_jitter_takes_away_up_to_half_of_the_wait_even_at_the_cap():
    backoff = Backoff(first_s=1.0, longest_s=10.0, jitter=True)
    randoms = random.Random(7)
    waits = [backoff.delay_s(20, randoms) for _ in range(1000)]
    assert 5.0 <= min(waits) < 5.2
    assert 9.8 < max(waits) <= 10.0


def test_ordinary_errors_are_retried_unless_excluded():
    policy = RetryPolicy(retry_for=(OSError,), dont_retry_for=(FileNotFoundError,))
    assert retried(policy, PermissionError())
    assert not retried(policy, FileNotFoundError())
    assert not retried(policy, ValueError())
    assert retried(RetryPolicy(), ValueError())
    never = RetryPolicy(retry_for=(FileNotFoundError,), dont_retry_for=(OSError,))
    assert not retried(never, FileNotFoundError())


def test_a_task_that_exits_has_failed_like_any_other():
    for error in (SystemExit(0), KeyboardInterrupt(), BaseException()):
        assert retried(RetryPolicy(), error)
        assert not retried(RetryPolicy(retry_for=(OSError,)), error)
        assert not retried(RetryPolicy(dont_retry_for=(BaseException,)), error)
        assert retried(RetryPolicy(retry_for=(BaseException,)), error)
        assert not retried(RetryPolicy(policies={BaseException: None}), error)


def test_the_tasks_own_word_beats_the_policy():
    never = RetryPolicy(retry_for=(), dont_retry_for=(Exception,), policies={SqlQueueError: None})
    assert never.retry_in_s(Retry(countdown=3), 1, 5, NO_JITTER) == 3
    assert retried(never, Retry())
    assert not retried(RetryPolicy(retry_for=(Reject,)), Reject("bad file"))


class Refused(ConnectionRefusedError):
    """More special than all that a test names."""


def test_the_most_specific_class_of_an_error_decides_how_it_is_retried():
    policy = RetryPolicy(
        jitter=False,
        retry_for=(),
        dont_retry_for=(ConnectionResetError,),
        policies={
            Exception: Backoff(first_s=1, jitter=False),
            ConnectionError: Backoff(first_s=20, longest_s=30, jitter=False),
            OSError: None,
            ConnectionRefusedError: Backoff(first_s=7, jitter=False),
        },
    )

    def waits(error, attempt=1):
        return policy.retry_in_s(error, attempt, 5, NO_JITTER)

    assert waits(ValueError()) == 1
    assert waits(FileNotFoundError()) is None
    assert waits(ConnectionAbortedError()) == 20
    assert waits(ConnectionAbortedError(), 2) == 30
    assert waits(ConnectionResetError()) is None
    assert waits(Refused()) == 7
    assert waits(SystemExit()) is None


def test_a_policys_own_number_of_attempts_may_be_above_and_below_the_tasks():
    policy = RetryPolicy(
        max_attempts=3,
        policies={
            OSError: Backoff(max_attempts=6),
            ValueError: Backoff(max_attempts=2),
            KeyError: Backoff(),
        },
    )
    most = policy.most_attempts
    assert most == 6

    def last(error):
        return next(n for n in range(1, 99) if not retried(policy, error, attempt=n, most=most))

    kinds = (OSError, ValueError, KeyError, TypeError, Retry)
    assert [last(kind()) for kind in kinds] == [6, 2, 3, 3, 3]
    assert policy.allowed_when_lost(most) == 3


def test_no_number_of_attempts_is_a_limit_when_it_is_0():
    assert retried(RetryPolicy(max_attempts=0), OSError(), attempt=10**6, most=0)
    policy = RetryPolicy(max_attempts=3, policies={OSError: Backoff(max_attempts=0)})
    assert policy.most_attempts == 0
    assert retried(policy, OSError(), attempt=10**6, most=0)
    assert not retried(policy, ValueError(), attempt=3, most=0)
    assert policy.allowed_when_lost(0) == 3
    bounded = RetryPolicy(max_attempts=0, policies={OSError: Backoff(max_attempts=2)})
    assert not retried(bounded, OSError(), attempt=2, most=0)
    assert retried(bounded, ValueError(), attempt=10**6, most=0)
    assert bounded.allowed_when_lost(0) == 0


def test_a_jobs_own_number_of_attempts_wins_over_that_of_a_task_without_policies():
    policy = RetryPolicy(max_attempts=3)
    assert retried(policy, OSError(), attempt=3, most=7)
    assert not retried(policy, OSError(), attempt=2, most=2)
    assert retried(policy, OSError(), attempt=99, most=0)
    # And bounds it where there are policies.
    policy = RetryPolicy(max_attempts=3, policies={OSError: Backoff(max_attempts=6)})
    assert not retried(policy, OSError(), attempt=2, most=2)


@pytest.mark.parametrize(
    "bad",
    [
        {"max_attempts": -1},
        {"max_attempts": True},
        {"max_attempts": 2.0},
        {"max_attempts": None},
        {"backoff_s": -1},
        {"backoff_s": math.nan},
        {"backoff_s": math.inf},
        {"backoff_s": 10**400},
        {"backoff_s": "1s"},
        {"backoff_max_s": -0.1},
        {"backoff_max_s": None},
        {"retry_for": OSError},
        {"retry_for": [OSError]},
        {"retry_for": (OSError(),)},
        {"dont_retry_for": ("OSError",)},
        {"dont_retry_for": (int,)},
        {"policies": [OSError]},
        {"policies": {int: Backoff()}},
        {"policies": {"OSError": Backoff()}},
        {"policies": {OSError: 5}},
        {"policies": {OSError: "never"}},
        {"policies": {OSError: None}, "dont_retry_for": (OSError,)},
        {"policies": {Retry: Backoff()}},
        {"policies": {Reject: None}},
    ],
)
def test_a_policy_that_cannot_work_fails_where_the_task_is_declared(bad):
    with pytest.raises(TaskDefinitionError):
        RetryPolicy(**bad)


@pytest.mark.parametrize(
    "bad",
    [
        {"first_s": -1},
        {"first_s": math.nan},
        {"longest_s": "1m"},
        {"max_attempts": -1},
        {"max_attempts": True},
        {"max_attempts": 2.0},
    ],
)
def test_a_backoff_that_cannot_work_fails_where_it_is_written(bad):
    with pytest.raises(TaskDefinitionError):
        Backoff(**bad)


@pytest.mark.parametrize("countdown", [-1, math.nan, math.inf])
def test_retry_refuses_a_countdown_that_is_no_time(countdown):
    with pytest.raises(ValueError, match="countdown"):
        Retry(countdown=countdown)
