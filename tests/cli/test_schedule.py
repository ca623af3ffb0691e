"""`sqlqueue schedule` and `sqlqueue inspect schedule`, as an operator uses them."""

from __future__ import annotations

import json

import pytest

from sqlqueue_transport.schedules import Described

EVERY = ("--every", "10s")


def items(cli, *arguments):
    return {
        item["entry"]: item for item in cli("schedule", "list", "--json", *arguments).json["items"]
    }


def test_an_entry_is_added_shown_paused_resumed_and_removed(cli):
    said = cli(
        *("schedule", "add", "nightly", "shop.tidy", '[1, "a"]', "--kwargs", '{"k": 2}'),
        *("--cron", "30 2 * * *", "--timezone", "Europe/Berlin", "--catch-up", "all(3)"),
        *("--jitter", "10m", "--overlap", "skip", "--queue", "night", "--priority", 3),
        *("--expires", "1h"),
    )
    assert (said.code, said.out, said.err) == (0, "nightly: added.\n", "")
    [item] = items(cli, "--next", 2).values()
    assert (item["origin"], item["state"], item["target"]) == ("file", "no_beat", "shop.tidy")
    assert (item["timezone"], len(item["next"])) == ("Europe/Berlin", 2)
    assert all("T02:30:00.000+0" in one["local"] for one in item["next"])
    assert cli("schedule", "pause", "nightly", "--reason", "a fair").out == "nightly: paused.\n"
    assert cli("schedule", "pause", "nightly").out == "nightly: paused already.\n"
    assert items(cli)["nightly"]["state"] == "paused"
    assert cli("schedule", "resume", "nightly", "--json").json == {
        "schema": 1,
        "entry": "nightly",
        "result": "resumed",
    }
    assert cli("schedule", "resume", "nightly").out == "nightly: not paused.\n"
    assert cli("schedule", "remove", "nightly").out == "nightly: removed.\n"
    assert items(cli) == {}


def test_resuming_a_one_off_whose_time_came_during_its_pause_says_that_it_is_over(cli, filled):
    schedules = filled.store.schedules
    once = {"definition": '{"at": "2020-01-01T00:00:00Z"}', "next_due_ms": 1_577_836_800_000}
    for name in ("a", "b"):
        schedules.add(name, description="once", target="t", actor="me", **once)
        schedules.pause(name, actor="me")
    said = cli("schedule", "resume", "a").out
    assert said == (
        "a: resumed, but over: nothing comes any more. What was due during the pause is given up.\n"
    )
    assert cli("schedule", "resume", "b", "--json").json["result"] == "resumed, but over"
    assert {one["state"] for one in items(cli).values()} == {"over"}


def test_what_was_added_is_kept_as_it_was_said(cli, tmp_path, filled):
    cli("schedule", "add", "e", "t", "[1]", *EVERY, "--queue", "q", "--priority", 3)
    [row] = filled.store.schedules.rows()
    assert json.loads(row.definition) == {
        "every": 10.0,
        "catch_up": "one",
        "catch_up_limit": 100,
        "jitter": 0.0,
        "overlap": "allow",
        "task": "t",
        "args": [1],
        "kwargs": {},
        "options": {"queue": "q", "priority": 3},
    }
    [(actor,)] = filled.store.database.read(
        lambda c: c.execute("SELECT actor FROM audit").fetchall()
    )
    assert actor.endswith(" via cli")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("add", "e", "t"), 2, "give one of every=, cron= and at="),
        (("add", "e", "t", "--every", "soon"), 2, "every = 'soon' is no duration"),
        (("add", "e", "t", "--cron", "60 * * * *"), 2, "cron = '60 * * * *'"),
        (("add", "e", "t", "--at", "2020-01-01"), 2, "is over already"),
        (("add", "e", "t", *EVERY, "--timezone", "Mars"), 2, "no known time zone"),
        (("add", "e", "t", *EVERY, "--timezone", "CET"), 2, "means nothing to every="),
        (("add", "e", "t", "--cron", "0 0 * * *", "--timezone", "Mars"), 2, "no known time zone"),
        (("add", "e", "t", "{}", *EVERY), 2, "JSON_ARGS is no JSON list"),
        (("add", "a\nb", "t", *EVERY), 2, "is no entry name"),
        (("pause", "e"), 2, "no database at ./queue.db"),
        (("list",), 2, "no database at ./queue.db"),
    ],
)
def test_mistakes_are_told_with_their_exit_code(cli, tmp_path, arguments, code, said):
    result = cli("schedule", *arguments)
    assert result.code == code
    assert said in result.err
    assert (tmp_path / "queue.db").exists() is False


def test_a_name_that_is_taken_or_unknown_is_an_error(cli):
    cli("schedule", "add", "nightly", "t", *EVERY)
    result = cli("schedule", "add", "nightly", "t", *EVERY)
    assert (result.code, "sqlqueue schedule remove nightly" in result.err) == (2, True)
    for verb in ("pause", "resume", "remove"):
        result = cli("schedule", verb, "nightli")
        assert (result.code, result.out) == (3, "")
        assert "Did you mean 'nightly'?" in result.err


def test_an_entry_of_the_settings_that_no_beat_has_described_yet_is_told_as_such(cli, tmp_path):
    table = '[beat.nightly]\ntask = "shop.tidy"\nevery = "1d"\n'
    (tmp_path / "sqlqueue.toml").write_text(table)
    cli("schedule", "add", "other", "t", *EVERY)
    result = cli("schedule", "pause", "nightly")
    assert (result.code, "no beat has described it yet" in result.err) == (3, True)


def test_with_the_application_a_task_must_be_known(cli, shop):
    result = cli("schedule", "add", "e", "shop.ad", *EVERY, "-A", shop)
    assert (result.code, "Did you mean 'shop.add'?" in result.err) == (2, True)
    assert cli("schedule", "add", "e", "shop.ad", *EVERY, "-A", shop, "--force").code == 0


def test_the_next_due_times_are_shown_by_both_clocks(cli, filled):
    zone = '{"cron": "30 2 * * *", "timezone": "Australia/Lord_Howe"}'
    filled.store.schedules.describe(
        [
            Described("howe", "30 2 * * *", "t", next_due_ms=1, definition=zone),
            Described("broken", "?", "t", next_due_ms=1, definition="{"),
            Described("old", "every 5s", "t", next_due_ms=1),
        ]
    )
    filled.close()
    out = cli("inspect", "schedule", "--next", 5).out
    assert out.count("02:30:00  Australia/Lord_Howe") == 5
    assert len(out.splitlines()) == 1 + 5 + 2
    found = items(cli, "--next", 5)
    assert [len(found[name]["next"]) for name in ("howe", "broken", "old")] == [5, 0, 0]
    assert (found["howe"]["timezone"], found["broken"]["timezone"]) == ("Australia/Lord_Howe", None)


def test_a_one_off_is_shown_by_the_clocks_of_its_zone(cli):
    at = ("--at", "2030-01-01T08:00:00", "--timezone", "Asia/Tokyo")
    assert cli("schedule", "add", "e", "t", *at).code == 0
    item = items(cli, "--next", 1)["e"]
    assert item["timezone"] == "Asia/Tokyo"
    assert item["next"] == [
        {"at": "2029-12-31T23:00:00.000Z", "local": "2030-01-01T08:00:00.000+09:00"}
    ]
    assert "08:00:00  Asia/Tokyo" in cli("inspect", "schedule", "--next", 1).out


def test_the_doctor_tells_of_entries_that_fail_and_of_those_nobody_runs(cli, filled):
    filled.store.schedules.describe([Described("e", "every 5s", "t", next_due_ms=1)])
    [check] = [one for one in cli("doctor", "--json").json["items"] if one["name"] == "schedule"]
    assert (check["level"], check["problems"]) == ("warn", ["entry e: no beat is running"])
    filled.store.consumers.register(name="b", kind="beat")
    [check] = [one for one in cli("doctor", "--json").json["items"] if one["name"] == "schedule"]
    assert check["problems"] == ["entry e: not in any running beat's application"]
    filled.store.schedules.set_error("e", "ValueError: boom")
    [check] = [one for one in cli("doctor", "--json").json["items"] if one["name"] == "schedule"]
    assert (check["level"], check["problems"]) == ("fail", ["entry e: ValueError: boom"])
    filled.store.schedules.pause("e", actor="me")
    [check] = [one for one in cli("doctor", "--json").json["items"] if one["name"] == "schedule"]
    assert check["level"] == "ok"
