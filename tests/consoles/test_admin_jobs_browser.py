"""The jobs page of the admin console, as an operator uses it: ticks, filters, actions, links."""

from __future__ import annotations

import contextlib
import json
import subprocess
from urllib.parse import urlsplit

import pytest

from sqlqueue.inspection import State
from sqlqueue.palette import TITLES
from tests.cli.conftest import program
from tests.consoles import filling
from tests.support import kill, wait_until

pytestmark = [pytest.mark.debian("chromium"), pytest.mark.timeout(300)]

APP = """
import pathlib, time
from sqlqueue import SqlQueue

app = SqlQueue("shop")


@app.task(name="shop.heal", max_attempts=1)
def heal():
    if not pathlib.Path("medicine").exists():
        raise ValueError("no medicine")
    return "healed"


@app.task(name="shop.wait", bind=True)
def wait(self):
    pathlib.Path("waiting").touch()
    while True:
        self.checkpoint()
        time.sleep(0.01)
"""


@pytest.fixture
def day(tmp_path):
    """Give a file after hours of work, which stays open: a test may go on filling it."""
    day = filling.working_day(tmp_path / "queue.db")
    yield day
    day.close()


@pytest.fixture
def ask(tmp_path):
    """Ask the command line for a document, as a program of its own."""

    def call(*arguments):
        process = program(*arguments, "--json", cwd=tmp_path)
        out, error = process.communicate(timeout=60)
        assert process.returncode == 0, error
        return json.loads(out)

    return call


@pytest.fixture
def worker(tmp_path):
    """Start a worker of the shop; it ends with the test."""
    (tmp_path / "shop.py").write_text(APP)
    started = []

    def start(*arguments):
        process = program(
            *("worker", "-A", "shop:app", "-c", 2, "-n", "w1", *arguments),
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"SQLQUEUE_LOG_DIR": "logs"},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):  # its job never ends
            process.wait(10)
        kill(process)


@pytest.fixture
def tab(day, start, open_tab):
    """Give a tab before the admin console of that file, as high as the page: a click finds its row."""
    tab = open_tab(start("admin"), height=2200).enter()
    tab.table().frame.wait_for()
    return tab


def ids(ask, *arguments) -> list[str]:
    return [job["id"] for job in ask("inspect", "jobs", "--limit", 1000, *arguments)["items"]]


def press_and_confirm(tab, action, *, reason="because the test says so", count=None) -> str:
    """Press an action, answer its dialog, and return the report."""
    tab.press(f"action-{action}")
    tab.type("dialog-reason", reason)
    if count is not None:
        tab.type("dialog-count", count)
    tab.press("dialog-confirm")
    return tab.until("report", ".")


# --- what is shown ---------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [*(state.value for state in State), "stalled"])
def test_filter_of_a_state_shows_the_jobs_that_inspect_shows(tab, day, ask, state):
    if state in {"processing", "stalled"}:
        filling.stall(day, task="reports.build", args=("stuck",))
    tab.press(f"state-{state}")
    wanted = ids(ask, "--state", state)[:50]
    assert wanted
    wait_until(lambda: tab.table().rows() and tab.table().column("Job") == wanted)
    assert f"state={state}" in tab.url
    if state not in {"processing", "stalled"}:
        assert {*tab.table().column("State")} == {TITLES[state]}


def test_counts_are_those_of_inspect_stats(tab, ask):
    stats = ask("inspect", "stats")
    for state, count in {**stats["states"], "stalled": stats["stalled"]}.items():
        assert tab.text(f"state-{state}").split()[-1] == f"{count:,}"


def test_pages_turned_to_the_end_show_every_job_once(tab, ask):
    seen = []
    while True:
        page = wait_until(tab.table().rows)
        seen += [row["Job"] for row in page]
        older = tab.button("pager-older")
        if not older.is_enabled():
            break
        older.click()
        wait_until(lambda shown=page: [*tab.table().rows()] != [*shown])
    assert seen == ids(ask)


@pytest.mark.parametrize(
    ("key", "text", "option"),
    [
        ("search", "jobs/later-1", None),
        ("error-filter", "ConnectionError", "--error"),
    ],
)
def test_texts_filter_as_on_the_command_line(tab, ask, key, text, option):
    wanted = ids(ask, option or "--search", text)[:50]
    assert wanted
    tab.type(key, text)
    wait_until(lambda: tab.table().rows() and tab.table().column("Job") == wanted)


def test_link_shows_the_same_to_somebody_else(tab, open_tab):
    tab.press("state-permanently_failed")
    tab.until("list-head", "25 match now")
    tab.type("error-filter", "ConnectionError")
    wait_until(lambda: "error=ConnectionError" in tab.url)
    shown = wait_until(
        lambda: (
            {*tab.table().column("State")} == {"permanently failed"} and tab.table().column("Job")
        )
    )
    wait_until(lambda: len(tab.table().rows()) < 25)
    shown = tab.table().column("Job")
    parts = urlsplit(tab.url)
    other = open_tab(tab.console).enter()
    other.go(f"{parts.path}?{parts.query}")
    wait_until(lambda: other.table().rows() and other.table().column("Job") == shown)
    assert other.part("error-filter").locator("input").input_value() == "ConnectionError"


# --- ticks -----------------------------------------------------------------------------------------


def test_ticks_stay_on_their_jobs_while_others_arrive_and_the_action_hits_exactly_them(
    tab, day, ask
):
    shown = tab.table().column("Job")
    meant = [shown[1], shown[4]]
    for job_id in meant:
        tab.table().tick(job_id)
    tab.until("bar-text", "2 ticked: 2 pending")
    came = [day.publish() for _ in range(3)]
    tab.until("show-newer", "Show 3 newer")
    assert tab.table().column("Job") == shown
    assert tab.table().ticked() == meant
    report = press_and_confirm(tab, "cancel")
    assert report.startswith("2 cancelled.")
    assert {*meant} <= {*ids(ask, "--state", "cancelled")}
    assert len(ids(ask, "--state", "cancelled")) == 5 + 2
    assert {*came} <= {*ids(ask, "--state", "pending")}
    tab.press("show-newer")
    wait_until(lambda: tab.table().column("Job")[:3] == came[::-1])


def test_filter_drops_the_ticks_and_says_so(tab):
    shown = tab.table().column("Job")
    for job_id in shown[:2]:
        tab.table().tick(job_id)
    tab.until("bar-text", "2 ticked")
    tab.press("state-done")
    tab.until("bar-text", "2 ticks cleared: the list is another one now")
    wait_until(lambda: {*tab.table().column("State")} == {"done"})
    assert tab.table().ticked() == []
    assert not tab.button("action-cancel").is_enabled()


def test_turned_page_has_no_ticks_of_the_one_before(tab):
    first = tab.table().column("Job")
    tab.table().tick(first[0])
    tab.until("bar-text", "1 ticked")
    tab.press("pager-older")
    wait_until(lambda: tab.table().rows() and tab.table().column("Job")[0] != first[0])
    tab.until("bar-text", "1 tick cleared")
    assert tab.table().ticked() == []
    tab.press("pager-newer")
    wait_until(lambda: tab.table().column("Job") == first)
    assert tab.table().ticked() == []


def test_nothing_moves_while_jobs_arrive_and_change(tab, day, ask):
    keys = (
        "filters",
        "state-pills",
        "list-head",
        "jobs-table",
        "action-bar",
        "action-cancel",
        "pager-older",
    )
    before = tab.boxes(*keys)
    ids_before = tab.table().column("Job")
    for job_id in ids_before[:2]:
        tab.table().tick(job_id)
    tab.until("bar-text", "2 ticked")
    for number in range(30):
        day.publish(args=(f"jobs/{number}.json",))
    delivery = day.claim()
    tab.until("show-newer", "Show 30 newer")
    tab.until("state-processing", r"\b1\b")
    assert tab.boxes(*keys) == before
    day.settle(delivery, filling.Outcome.dead(filling.Fault("ValueError", "a text " * 300)))
    tab.until("state-permanently_failed", r"\b26\b")
    assert tab.boxes(*keys) == before
    assert tab.table().column("Job") == ids_before
    assert tab.table().ticked() == ids_before[:2]


# --- actions ---------------------------------------------------------------------------------------


def test_dead_letter_is_requeued_and_a_real_worker_does_it(tab, day, ask, worker, tmp_path):
    job_id = day.dead(task="shop.heal", args=(), queue="clinic")
    tab.press("show-newer")
    wait_until(lambda: job_id in tab.table().column("Job"))
    (tmp_path / "medicine").touch()
    worker("-Q", "clinic")
    tab.table().tick(job_id)
    tab.until("bar-text", "1 ticked: 1 permanently failed")
    report = press_and_confirm(tab, "requeue", reason="medicine has come")
    assert report.startswith("1 requeued.")
    wait_until(
        lambda: {row["Job"]: row["State"] for row in tab.table().rows()}[job_id] == "done",
        deadline_s=60,
    )
    job = ask("inspect", "job", job_id)
    assert (job["state"], job["result"]) == ("done", "healed")
    [entry] = job["audit"]
    assert (entry["action"], entry["reason"]) == ("requeue", "medicine has come")
    assert (entry["before"], entry["after"]) == ("permanently_failed", "pending")
    assert "admin console" in entry["actor"]


def test_job_marked_as_failed_is_a_dead_letter_with_the_reason_as_its_error(tab, ask):
    job_id = tab.table().column("Job")[0]
    tab.table().tick(job_id)
    tab.until("bar-text", "1 ticked")
    assert press_and_confirm(tab, "fail", reason="not wanted").startswith("1 marked as failed.")
    job = ask("inspect", "job", job_id)
    assert (job["state"], job["error"]["message"]) == ("permanently_failed", "not wanted")


def test_running_job_of_a_real_worker_is_terminated(tab, day, ask, worker, tmp_path):
    job_id = day.publish(task="shop.wait", args=(), queue="clinic")
    worker("-Q", "clinic")
    wait_until((tmp_path / "waiting").exists, deadline_s=60)
    tab.press("show-newer")
    wait_until(lambda: job_id in tab.table().column("Job"))
    tab.table().tick(job_id)
    tab.until("bar-text", "1 ticked: 1 processing")
    report = press_and_confirm(tab, "terminate")
    assert report.startswith("1 asked to stop.")
    wait_until(
        lambda: {row["Job"]: row["State"] for row in tab.table().rows()}[job_id] == "cancelled",
        deadline_s=60,
    )
    assert ask("inspect", "job", job_id)["state"] == "cancelled"


def test_dialog_that_is_left_changes_nothing(tab, ask):
    before = ask("inspect", "stats")["states"]
    tab.table().tick(tab.table().column("Job")[0])
    tab.until("bar-text", "1 ticked")
    tab.press("action-cancel")
    tab.type("dialog-reason", "no, not this one")
    tab.press("dialog-dismiss")
    tab.page.locator("[role=dialog]").wait_for(state="detached")
    assert ask("inspect", "stats")["states"] == before
    assert tab.text("report") == ""


def test_all_that_match_are_changed_once_their_number_is_typed(tab, ask):
    dead = ids(ask, "--state", "permanently_failed")
    assert len(dead) == 25
    tab.press("state-permanently_failed")
    tab.until("list-head", "25 match now")
    tab.part("all-matching").locator("label").first.click()
    wait_until(lambda: tab.button("action-requeue").is_enabled())
    tab.press("action-requeue")
    tab.type("dialog-reason", "all of them")
    tab.type("dialog-count", "24")
    tab.press("dialog-confirm")
    tab.page.get_by_text("Nothing was changed").wait_for()
    assert ids(ask, "--state", "permanently_failed") == dead
    tab.type("dialog-count", "25")
    tab.press("dialog-confirm")
    assert tab.until("report", ".").startswith("25 requeued.")
    assert ids(ask, "--state", "permanently_failed") == []
    assert {*dead} <= {*ids(ask, "--state", "pending")}


def test_job_that_changed_between_tick_and_yes_is_skipped_and_told(tab, ask):
    first, second = tab.table().column("Job")[:2]
    for job_id in (first, second):
        tab.table().tick(job_id)
    tab.until("bar-text", "2 ticked")
    tab.press("action-fail")
    tab.type("dialog-reason", "too late for one")
    ask("cancel", first, "--yes", "--reason", "was quicker")
    tab.press("dialog-confirm")
    report = tab.until("report", ".")
    assert report.startswith("1 marked as failed, 1 skipped: their state had changed.")
    assert ask("inspect", "job", first)["state"] == "cancelled"
    assert ask("inspect", "job", second)["state"] == "permanently_failed"


def test_action_that_no_ticked_job_allows_cannot_be_pressed(tab):
    done = next(row["Job"] for row in tab.table().rows() if row["State"] == "done")
    tab.table().tick(done)
    tab.until("bar-text", "1 ticked: 1 done")
    enabled = {
        action: tab.button(f"action-{action}").is_enabled()
        for action in ("requeue", "fail", "cancel", "terminate")
    }
    assert enabled == {"requeue": True, "fail": False, "cancel": False, "terminate": False}


def test_refresh_does_not_close_the_dialog_or_forget_what_was_typed(tab, day):
    tab.table().tick(tab.table().column("Job")[0])
    tab.until("bar-text", "1 ticked")
    tab.press("action-cancel")
    field = tab.part("dialog-reason").locator("input")
    field.press_sequentially("half a sent")
    day.publish()
    tab.until("show-newer", "Show 1 newer")
    day.publish()
    tab.until("show-newer", "Show 2 newer")
    assert field.input_value() == "half a sent"
