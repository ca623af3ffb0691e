"""The charts of the ops page: what is in their specifications."""

from __future__ import annotations

import json
import time

import pytest

from sqlqueue.consoles.ops import charts
from sqlqueue.consoles.ops.view import WINDOWS
from sqlqueue.palette import STATES
from tests.consoles.seeing import NOW_MS, seeing

BUCKET_MS = 60_000


@pytest.fixture
def seen(tmp_path):
    with seeing(tmp_path / "queue.db") as found:
        yield found


def throughput(seen, window="1h"):
    return charts.throughput(seen.look(window).activity, offset_ms=0)


def bars(chart):
    [values] = chart["datasets"].values()
    return values


def test_done_and_failed_stand_one_upon_the_other_in_the_bucket_they_ended_in(seen):
    seen.done(waited_s=10, ran_s=10)
    seen.done(waited_s=1, ran_s=1)
    seen.dead()
    seen.clock.advance(60)

    chart = throughput(seen)

    found = [(bar["kind"], bar["low"], bar["high"], bar["when"]) for bar in bars(chart)]
    assert [one[:3] for one in found] == [("done", 0, 2), ("failed attempts", 2, 3)]
    assert {one[3] for one in found} == {time.strftime("%H:%M:%S", time.gmtime(NOW_MS / 1000))}


def test_an_empty_bucket_is_a_gap(seen):
    seen.done()
    seen.clock.advance(180)
    seen.done()
    seen.clock.advance(60)

    starts = [bar["from"] for bar in bars(throughput(seen))]

    assert len(starts) == 2
    assert starts[1] - starts[0] == 3 * BUCKET_MS


def test_the_specification_stays_the_same_until_another_bucket_has_ended(seen):
    seen.done()
    seen.clock.advance(60)
    before = json.dumps(throughput(seen))
    seen.done(ran_s=1)
    seen.clock.advance(20)

    assert json.dumps(throughput(seen)) == before

    seen.clock.advance(60)
    assert json.dumps(throughput(seen)) != before


def test_ended_buckets_are_counted_once_for_everybody_who_looks(seen, monkeypatch):
    before = seen.look().activity
    monkeypatch.setattr(seen.inspection, "activity", None)  # whoever asks again fails

    assert seen.look().activity is before


def test_a_clock_that_was_set_back_does_not_leave_the_page_in_the_future(seen):
    seen.look()
    seen.clock.jump_wall(-7200)

    assert seen.look().activity.until_ms <= seen.clock.wall


@pytest.mark.parametrize("name", WINDOWS)
def test_the_axis_is_that_of_the_window_whatever_happened(seen, name):
    seen.done()
    seen.clock.advance(700)

    chart = throughput(seen, name)

    since_ms, until_ms = chart["encoding"]["x"]["scale"]["domain"]
    assert until_ms - since_ms == WINDOWS[name].seconds * 1000
    ticks = chart["encoding"]["x"]["axis"]["values"]
    assert 4 <= len(ticks) <= 9
    assert all(since_ms <= tick <= until_ms for tick in ticks)


def test_the_axis_goes_by_the_clocks_of_the_page(seen):
    activity = seen.look().activity
    plain = charts.throughput(activity, offset_ms=0)
    shifted = charts.throughput(activity, offset_ms=3_600_000)

    before, after = (one["encoding"]["x"]["scale"]["domain"][0] for one in (plain, shifted))
    assert after - before == 3_600_000


def test_utc_has_no_offset_and_a_zone_has_its_own(monkeypatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        assert charts.offset_ms_at(NOW_MS, utc=False) in {3_600_000, 7_200_000}
        assert charts.offset_ms_at(NOW_MS, utc=True) == 0
    finally:
        monkeypatch.undo()
        time.tzset()


def test_colours_are_those_of_the_palette(seen):
    chart = throughput(seen)

    assert chart["encoding"]["color"]["scale"]["range"] == [
        STATES["done"],
        STATES["permanently_failed"],
    ]


def test_run_times_are_bins_of_equal_width_with_their_seconds_below(seen):
    for number in range(30):
        seen.done(ran_s=1 + number * 3)
    seen.clock.advance(60)
    activity = seen.look("24h").activity
    seen.clock.advance(600)
    activity = seen.look("24h").activity

    chart = charts.durations(activity.durations)

    assert sum(bar["jobs"] for bar in bars(chart)) == 30
    assert {round(bar["to"] - bar["from"], 6) for bar in bars(chart)} == {0.86}
    assert "'1.0s'" in chart["encoding"]["x"]["axis"]["labelExpr"]


def test_one_single_run_time_makes_a_chart_too(seen):
    seen.done()
    seen.clock.advance(60)

    [bar] = bars(charts.durations(seen.look().activity.durations))

    assert (bar["jobs"], bar["when"]) == (1, "2.0s to 2.0s")
