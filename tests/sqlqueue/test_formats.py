"""Times and amounts, for people and for machines."""

from __future__ import annotations

import pytest

from sqlqueue.formats import ago, at, iso, number, took

NOW_MS = 1_700_000_000_000


@pytest.mark.parametrize(
    ("at_ms", "text"),
    [
        (None, None),
        (0, "1970-01-01T00:00:00.000Z"),
        (1_700_000_000_123, "2023-11-14T22:13:20.123Z"),
        (4_102_444_800_000, "2100-01-01T00:00:00.000Z"),
        (-1, "1969-12-31T23:59:59.999Z"),
        (2**62, None),
    ],
)
def test_machines_get_iso_times_in_utc(at_ms, text):
    assert iso(at_ms) == text


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "now"),
        (999, "now"),
        (1_000, "1s ago"),
        (59_999, "59s ago"),
        (60_000, "1m ago"),
        (3_600_000, "1h ago"),
        (172_800_000, "2d ago"),
        (-5_000, "in 5s"),
        (-7_200_000, "in 2h"),
    ],
)
def test_people_get_distances(ms, text):
    assert ago(NOW_MS - ms, NOW_MS) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (0, "0ms"),
        (0.085, "85ms"),
        (0.9999, "1.0s"),
        (11, "11.0s"),
        (59.94, "59.9s"),
        (59.97, "1m 00s"),
        (125, "2m 05s"),
        (4200, "1h 10m"),
        (90_000, "1d 01h"),
    ],
)
def test_people_get_durations(seconds, text):
    assert took(seconds) == text


def test_times_for_people_are_local_or_utc():
    assert at(NOW_MS, utc=True) == "2023-11-14 22:13:20 UTC"
    assert "UTC" not in at(NOW_MS, utc=False)
    assert at(None, utc=True) == at(2**62, utc=True) == ""


def test_amounts_have_separators_and_plurals():
    assert number(98_670) == "98,670"
    assert (number(1, "job"), number(2, "job")) == ("1 job", "2 jobs")
