"""What processes tell each other of their flushes is believed only where it is surely true."""

from __future__ import annotations

import mmap
import time

import pytest

from sqlqueue_transport import shared_flushes
from sqlqueue_transport.files import FileIdentity
from sqlqueue_transport.shared_flushes import SharedFlushes

LOG = FileIdentity(64, 4711)


@pytest.fixture
def page():
    return mmap.mmap(-1, 4096)


@pytest.fixture
def one(page):
    return SharedFlushes(page, "boot", LOG)


@pytest.fixture
def other(page):
    return SharedFlushes(page, "boot", LOG)


def test_commits_of_all_processes_are_numbered_in_one_row(one, other):
    assert [one.count(), other.count(), one.count()] == [1, 2, 3]
    assert one.commits == other.commits == 3


def test_what_one_has_flushed_another_need_not(one, other):
    one.count()
    other.count()
    assert not other.has_reached(1, 0)
    one.reach(2, 0)
    assert other.has_reached(1, 0)
    assert other.has_reached(2, 0)
    assert not other.has_reached(3, 0)


def test_a_flush_that_ends_late_does_not_take_back_what_a_younger_one_reached(one, other):
    one.reach(5, 0)
    other.reach(3, 0)
    assert one.has_reached(5, 0)


def test_each_process_knows_what_it_owes(one, other):
    one.count()
    assert one.is_owed
    assert not other.is_owed
    other.reach(1, 0)
    assert one.has_reached(1, 0)
    assert not one.is_owed


@pytest.mark.parametrize(
    ("boot", "log"),
    [
        ("the boot before", LOG),
        ("boot", FileIdentity(64, 4712)),
        ("boot", FileIdentity(65, 4711)),
    ],
)
def test_the_flush_of_another_boot_or_log_says_nothing(page, one, boot, log):
    SharedFlushes(page, boot, log).reach(9, 0)
    assert not one.has_reached(1, 0)
    one.reach(1, 0)
    assert one.has_reached(1, 0)
    assert not one.has_reached(2, 0)


def test_a_flush_counts_only_for_commits_with_the_same_failure_behind_them(one, other):
    """Who failed has reported the lost pages once; a flush by a younger descriptor succeeds."""
    before_ns = one.failed_ns
    other.fail()
    since_ns = other.failed_ns
    other.reach(9, since_ns)
    assert not one.has_reached(1, before_ns)
    assert one.has_reached(1, since_ns)


def test_a_success_that_was_seen_does_not_hide_a_failure_that_came_before_it(one, other):
    before_ns = one.failed_ns
    other.fail()
    one.reach(9, one.failed_ns)
    assert not one.knows(1, before_ns)
    assert one.knows(1, one.failed_ns)


def test_a_torn_word_says_nothing(page, one, other):
    one.reach(2, 0)
    at = page.find((2).to_bytes(8, "little"))
    for place in range(at, at + 48):
        page[place] ^= 0x81
        assert not other.has_reached(1, 0)
        page[place] ^= 0x81
    assert other.has_reached(1, 0)


def test_noise_that_a_power_cut_has_left_is_no_number(page, one):
    page[2048:4096] = b"\xff" * 2048
    assert one.commits == 0
    assert one.count() == 1
    assert not one.has_reached(1, one.failed_ns)
    assert not one.should_wait(time.monotonic_ns())


def test_nobody_waits_for_the_only_flush_that_began_too_early(one, other):
    one.begin()
    assert not other.should_wait(time.monotonic_ns())


def test_whoever_is_third_waits_until_one_of_two_has_ended(one, other):
    first, second = one.begin(), one.begin()
    now_ns = time.monotonic_ns()
    assert other.should_wait(now_ns)
    one.end(first)
    assert not other.should_wait(now_ns)
    assert one.begin() == first
    one.end(first)
    one.end(second)


def test_one_waits_for_a_flush_that_began_after_ones_commit(one, other):
    committed_ns = time.monotonic_ns()
    place = one.begin()
    assert other.should_wait(committed_ns)
    one.end(place)
    assert not other.should_wait(committed_ns)


def test_who_never_ends_a_flush_is_forgotten(monkeypatch, one, other):
    one.begin()
    one.begin()
    assert other.should_wait(time.monotonic_ns())
    monkeypatch.setattr(shared_flushes, "LONGEST_NS", 0)
    assert not other.should_wait(time.monotonic_ns())
    assert not other.should_wait(0)
