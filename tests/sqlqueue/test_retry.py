import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlqueue.errors import Reject, Retry, TaskDefinitionError
from sqlqueue.retry import RetryPolicy


def test_the_wait_doubles_with_each_failed_attempt_up_to_the_cap():
    policy = RetryPolicy(backoff_s=1.0, backoff_max_s=600.0, jitter=False)
    waits = [policy.delay_s(attempt, random.Random(1)) for attempt in (1, 2, 3, 4, 10, 11, 5000)]
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
    policy = RetryPolicy(backoff_s=backoff, backoff_max_s=cap, jitter=jitter)
    wait = policy.delay_s(attempt, randoms)
    assert 0 <= wait <= cap
    assert math.isfinite(wait)


def test_jitter_takes_away_up_to_half_of_the_wait_even_at_the_cap():
    policy = RetryPolicy(backoff_s=1.0, backoff_max_s=10.0, jitter=True)
    randoms = random.Random(7)
    waits = [policy.delay_s(20, randoms) for _ in range(1000)]
    assert 5.0 <= min(waits) < 5.2
    assert 9.8 < max(waits) <= 10.0


def test_ordinary_errors_are_retried_unless_excluded():
    policy = RetryPolicy(retry_for=(OSError,), dont_retry_for=(FileNotFoundError,))
    assert policy.should_retry(PermissionError())
    assert not policy.should_retry(FileNotFoundError())
    assert not policy.should_retry(ValueError())
    assert RetryPolicy().should_retry(ValueError())


def test_a_task_that_exits_has_failed_like_any_other():
    for error in (SystemExit(0), KeyboardInterrupt(), BaseException()):
        assert RetryPolicy().should_retry(error)
        assert not RetryPolicy(retry_for=(OSError,)).should_retry(error)
        assert not RetryPolicy(dont_retry_for=(BaseException,)).should_retry(error)
        assert RetryPolicy(retry_for=(BaseException,)).should_retry(error)


def test_the_tasks_own_word_beats_the_policy():
    never = RetryPolicy(retry_for=(), dont_retry_for=(Exception,))
    assert never.should_retry(Retry(countdown=3))
    assert not RetryPolicy(retry_for=(Reject,)).should_retry(Reject("bad file"))


@pytest.mark.parametrize(
    "bad",
    [
        {"max_attempts": 0},
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
    ],
)
def test_a_policy_that_cannot_work_fails_where_the_task_is_declared(bad):
    with pytest.raises(TaskDefinitionError):
        RetryPolicy(**bad)


@pytest.mark.parametrize("countdown", [-1, math.nan, math.inf])
def test_retry_refuses_a_countdown_that_is_no_time(countdown):
    with pytest.raises(ValueError, match="countdown"):
        Retry(countdown=countdown)
