"""What a task says of itself: checked, and written no more often than is worth it."""

from __future__ import annotations

import math
import os
import threading

import pytest

from sqlqueue.progress import EVERY_S, Reporter, word
from tests.support import in_forked_child, wait_until


class Clock:
    """Count the seconds that the test lets pass."""

    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def written():
    return []


@pytest.fixture
def reporter(clock, written):
    reporter = Reporter(lambda *said: written.append(said), clock)
    yield reporter
    reporter.close()


def test_the_first_word_is_written_at_once(reporter, written):
    reporter.report(word(1, 4, "reading"))
    assert written == [(1.0, 4.0, "reading")]


def test_a_word_half_a_second_later_is_written_at_once(reporter, written, clock):
    for number in range(3):
        reporter.report(word(number, None, ""))
        clock.now_s += EVERY_S
    assert [done for done, *_ in written] == [0, 1, 2]


def test_of_many_words_the_newest_is_written_when_the_time_is_over(reporter, written):
    for number in range(1000):
        reporter.report(word(number, 1000, ""))
    assert len(written) == 1
    # The task goes on with something long, and says nothing.
    wait_until(lambda: len(written) == 2, what="the held word")
    assert written[1] == (999.0, 1000.0, "")


def test_the_last_word_is_written_when_the_job_ends_and_nothing_after_it(reporter, written):
    reporter.report(word(1, 2, ""))
    reporter.report(word(2, 2, "done"))
    reporter.close()
    assert written == [(1.0, 2.0, ""), (2.0, 2.0, "done")]
    reporter.report(word(3, 2, "too late"))
    reporter.close()
    assert len(written) == 2


def test_a_thread_that_reports_many_words_keeps_no_thread_for_each(reporter):
    before = threading.active_count()
    for number in range(1000):
        reporter.report(word(number, 1000, ""))
    assert threading.active_count() <= before + 1


def test_a_job_that_is_not_ours_any_more_is_not_written_again(clock):
    asked = []

    def write(*said):
        asked.append(said)
        return False

    reporter = Reporter(write, clock)
    for number in range(3):
        reporter.report(word(number, None, ""))
        clock.now_s += 1
    reporter.close()
    assert len(asked) == 1


def test_a_process_that_the_task_has_forked_says_nothing(reporter, written, tmp_path):
    def in_child():
        reporter.report(word(1, 2, ""))
        (tmp_path / "written").write_text(str(len(written)))

    pid = os.getpid()
    assert in_forked_child(in_child)
    assert os.getpid() == pid
    assert (tmp_path / "written").read_text() == "0"


@pytest.mark.parametrize(
    "amount", [math.nan, math.inf, -math.inf, -1, -0.001, 10**400, "3", b"3", None, [], 1j]
)
def test_what_is_no_amount_is_a_value_error_that_says_so(amount):
    with pytest.raises(ValueError, match=r"progress\(done=.*\): give a finite number"):
        word(amount, 1, "")
    if amount is not None:
        with pytest.raises(ValueError, match=r"progress\(total=.*\): give a finite number"):
            word(1, amount, "")


def test_a_note_is_text():
    with pytest.raises(ValueError, match=r"progress\(note=7\): give a text"):
        word(1, 2, 7)


# -- in a task --------------------------------------------------------------------------------------


def test_outside_of_a_worker_it_does_nothing_but_check(app):
    task = app.task(name="t", bind=True)(lambda self: self.progress(1, 2, "half"))
    task()
    with pytest.raises(ValueError, match="give a finite number"):
        task.progress(math.nan)
