"""What a link says and what the Jobs page looks at are the same, both ways."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as some

from sqlqueue.consoles.admin.view import CUSTOM, STALLED, WINDOWS, View
from sqlqueue.inspection import JobFilter, State

NAMES = [state.value for state in State]
NOW_MS = 1_700_000_000_000
texts = some.text(max_size=40).map(str.strip)
minutes = some.none() | some.integers(1, 4_000_000_000).map(lambda minute: minute * 60_000)


@some.composite
def views(draw) -> View:
    wanted = draw(some.sets(some.sampled_from(NAMES)))
    states = tuple(name for name in NAMES if name in wanted)
    window = draw(some.sampled_from(["", CUSTOM, *WINDOWS]))
    return View(
        states=draw(some.sampled_from([(STALLED,), states])),
        queue=draw(texts),
        task=draw(texts),
        worker=draw(texts),
        error=draw(texts),
        search=draw(texts),
        window=window,
        since_ms=draw(minutes) if window == CUSTOM else None,
        until_ms=draw(minutes) if window == CUSTOM else None,
    )


@given(views())
def test_view_survives_the_way_through_its_link(view):
    assert View.read(view.params()) == view


@given(
    some.dictionaries(some.sampled_from([*View().__slots__, "state", "within", "x"]), some.text())
)
def test_any_link_is_read_and_says_the_same_when_it_is_written_again(params):
    view = View.read(params)
    assert View.read(view.params()) == view
    view.chosen(NOW_MS)
    assert view.described()


@given(some.text(max_size=30))
def test_any_time_in_a_link_is_a_whole_minute_or_none(text):
    since_ms = View.read({"since": text}).since_ms
    assert since_ms is None or since_ms % 60_000 == 0


def test_link_of_everything_is_empty():
    assert View().params() == {}
    assert not View().is_narrowed
    assert View().chosen(NOW_MS) == JobFilter()


def test_link_says_what_is_narrowed_and_no_more():
    view = View(states=("failed",), queue="mail", window="1h")
    assert view.params() == {"state": "failed", "queue": "mail", "within": "1h"}
    assert view.chosen(NOW_MS) == JobFilter(
        states=(State.FAILED,), queue="mail", since_ms=NOW_MS - 3_600_000
    )


def test_times_of_a_link_are_utc_where_they_say_no_zone():
    named = View.read({"since": "2026-11-22T05:11:59Z", "until": "2026-11-22T07:11+01:00"})
    assert named == View.read({"since": "2026-11-22T05:11", "until": "2026-11-22T06:11"})
    assert named.window == CUSTOM
    assert named.params()["since"] == "2026-11-22T05:11Z"


def test_stalled_stands_alone():
    stalled = View(states=("failed",)).with_state(STALLED)
    assert stalled.states == (STALLED,)
    assert stalled.chosen(NOW_MS) == JobFilter(stalled=True)
    assert stalled.with_state("done").states == ("done",)
    assert View.read({"state": "stalled,done"}).states == ("done",)


def test_state_is_added_and_taken_away_in_the_order_of_a_jobs_life():
    view = View().with_state("failed").with_state("pending")
    assert view.states == ("pending", "failed")
    assert view.with_state("pending").states == ("failed",)


def test_view_is_described_in_words():
    view = View(states=("permanently_failed",), task="mail.send", window="24h")
    assert view.described() == "permanently failed jobs of mail.send of the last 24h"
