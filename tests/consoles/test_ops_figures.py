"""The cards and the status line of the ops page, worked out from real files."""

from __future__ import annotations

import re

import pytest

from sqlqueue.consoles.ops import figures
from sqlqueue.consoles.ops.figures import cards, status
from tests.consoles.seeing import seeing
from tests.support import ROOT


@pytest.fixture
def seen(tmp_path):
    with seeing(tmp_path / "queue.db") as found:
        yield found


def card(seen, name, window="1h"):
    [found] = [one for one in cards(seen.look(window)) if one.name == name]
    return found


def test_the_oldest_pending_age_comes_first_and_the_dead_letters_last(seen):
    names = [one.name for one in cards(seen.look())]

    assert names == ["oldest", "pending", "processing", "done", "failed", "run", "wait", "dead"]


def test_every_card_of_an_empty_file_has_a_value_and_a_line_below_it(seen):
    for one in cards(seen.look()):
        assert one.value, one.name
        assert one.note, one.name
        assert not one.level, one.name


@pytest.mark.parametrize(
    ("age_s", "level", "value"),
    [(59.9, "", "59.9s"), (60, "warn", "1m 00s"), (299, "warn", "4m 59s"), (300, "fail", "5m 00s")],
)
def test_the_oldest_pending_age_turns_amber_and_then_red(seen, age_s, level, value):
    seen.filled.publish(queue="mail")
    seen.clock.advance(age_s)

    found = card(seen, "oldest")

    assert (found.level, found.value) == (level, value)
    assert "in mail" in found.note


def test_no_age_is_negative_when_the_clock_was_set_back(seen):
    seen.done()
    seen.filled.publish()
    seen.clock.jump_wall(-7200)

    for one in cards(seen.look()):
        assert "-" not in one.value, one
        assert "-" not in one.note, one


def test_pending_tells_what_comes_later_and_what_is_retried(seen):
    seen.filled.publish(due_in_s=600)
    seen.filled.failed()
    seen.filled.publish()

    found = card(seen, "pending")

    assert (found.value, found.note) == ("1", "1 later, 1 to retry")


def test_processing_says_how_many_are_stalled(seen):
    seen.filled.publish()
    seen.filled.claim(lease_s=5)
    assert card(seen, "processing").level == ""

    seen.clock.advance(6)

    found = card(seen, "processing")
    assert (found.value, found.note, found.level) == ("1", "1 stalled", "fail")


def test_rates_are_those_of_ended_buckets(seen):
    for _ in range(6):
        seen.done(ran_s=4, waited_s=1)
    seen.dead()
    seen.clock.advance(60)

    assert card(seen, "done").value == "0.1"
    assert card(seen, "done").note == "6 in 1h"
    assert card(seen, "failed").note == "1 of 7 attempts"
    assert card(seen, "failed").value == "14.3%"
    assert card(seen, "failed").level == "warn"
    assert card(seen, "run").value == "4.0s"
    assert card(seen, "wait").value == "1.0s"


def test_dead_letters_are_red_while_new_ones_are_in_the_window(seen):
    seen.dead()
    seen.clock.advance(60)
    assert card(seen, "dead", "15m").level == "fail"

    seen.clock.advance(1800)

    found = card(seen, "dead", "15m")
    assert (found.value, found.note, found.level) == ("1", "none new in 15m", "")


@pytest.mark.parametrize(
    ("part", "shown"),
    [
        (0.0, "0%"),
        (0.000001, "0.01%"),
        (0.0123, "1.23%"),
        (0.5, "50.0%"),
        (0.99999, "99.9%"),
        (1.0, "100%"),
    ],
)
def test_only_nothing_is_shown_as_nothing_and_only_all_as_all(part, shown):
    assert figures._percent(part) == shown


# -- status ------------------------------------------------------------------------------------------


def test_jobs_that_wait_while_no_worker_is_alive_are_the_first_thing_said(seen):
    seen.filled.publish()
    seen.filled.publish()

    found = status(seen.look())

    assert found.level == "fail"
    assert found.problems[0].startswith("No worker is alive, and 2 jobs wait")


def test_nothing_that_waits_and_no_worker_is_no_alarm(seen):
    found = status(seen.look())

    assert (found.level, found.problems) == ("", ())
    assert found.summary == "No worker is alive, and nothing waits."


def test_failures_and_new_dead_letters_are_said_while_workers_are_alive(seen):
    seen.filled.store.consumers.register(name="w", kind="worker", slots=4)
    seen.dead()
    seen.clock.advance(seen.look().activity.bucket_ms / 1000 + 1)

    found = status(seen.look())

    assert found.level == "fail"
    assert [text.split(" in ")[0] for text in found.problems] == [
        "100% of the attempts",
        "1 new dead letter",
    ]


def test_a_queue_that_nobody_serves_is_named_while_others_are_served(seen):
    seen.filled.store.consumers.register(name="w", kind="worker", slots=4)
    seen.filled.store.consumers.consume("t", "default")
    seen.filled.publish(queue="mail")

    assert status(seen.look()).problems == ("No worker serves mail (1 pending)",)


def test_a_worker_with_nothing_late_is_well(seen):
    seen.filled.store.consumers.register(name="w", kind="worker", slots=4)
    seen.filled.store.consumers.consume("t", "default")
    seen.filled.publish()

    found = status(seen.look())

    assert found.level == "ok"
    assert "1 worker with 4 slots" in found.summary


def test_what_is_red_comes_before_what_is_amber(seen):
    seen.filled.publish(queue="mail")
    seen.filled.store.pausing.pause("mail", actor="ana", reason=None)
    seen.filled.publish(queue="default")
    seen.filled.claim("default", lease_s=5)
    seen.clock.advance(100)

    found = status(seen.look())

    assert found.level == "fail"
    assert "stalled" in found.problems[1]
    assert found.problems[-1] == "Queue mail is paused, 1 message waiting"


def test_a_job_that_runs_longer_than_the_visibility_timeout_is_said(seen):
    seen.filled.store.consumers.register(name="w", kind="worker", slots=4)
    seen.filled.publish()
    seen.filled.claim(lease_s=600)
    seen.clock.advance(60)
    assert not status(seen.look()).problems

    seen.clock.advance(1)

    [said] = status(seen.look()).problems
    assert said == "1 job runs for longer than the visibility timeout of 1m 00s"


def test_the_thresholds_in_the_documentation_are_those_of_the_page():
    text = (ROOT / "docs" / "consoles.md").read_text().partition("## Ops\n")[2]
    rows = {
        row[0]: row[1:]
        for row in re.findall(r"^\| ([\w ]+) \| (.+) \| (.+) \|$", text, re.MULTILINE)
    }

    assert rows["oldest pending"] == ("1 min", "5 min")
    assert figures.OLDEST_PENDING_S == (60, 300)
    assert rows["failure rate"] == ("5%", "20%")
    assert figures.PART_FAILED == (0.05, 0.2)
    assert rows["sign of life"] == ("30 s", "2 min")
    assert figures.SILENT_S == (30, 120)
    assert rows["free on disk"] == ("2 GB", "500 MB")
    assert figures.FREE_BYTES == (2e9, 5e8)
