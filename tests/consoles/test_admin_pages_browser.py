"""The other pages of the admin console in a browser: one job whole, and what is done by group or queue."""

from __future__ import annotations

import pytest

from sqlqueue_transport import Fault, Outcome
from tests.consoles import filling
from tests.support import wait_until

pytestmark = [pytest.mark.debian("chromium"), pytest.mark.timeout(300)]


@pytest.fixture
def day(tmp_path):
    day = filling.working_day(tmp_path / "queue.db", jobs=200)
    yield day
    day.close()


@pytest.fixture
def tab(day, start, open_tab):
    return open_tab(start("admin"), height=1600).enter()


def confirm(tab, *, reason="because the test says so", typed=None) -> str:
    tab.type("dialog-reason", reason)
    if typed is not None:
        tab.type("dialog-count", typed)
    tab.press("dialog-confirm")
    return tab.until("report", ".")


def main_text(tab) -> str:
    text: str = tab.page.locator("[data-testid=stMainBlockContainer]").inner_text()
    return text


def test_job_page_tells_its_whole_life_and_how_to_act_on_it_from_a_shell(
    tab, day, ask, run_worker, tmp_path
):
    job_id = day.publish(task="shop.heal", args=(), queue="clinic")
    for number in range(2):
        fault = Fault(
            "ConnectionError",
            f"try {number}",
            f"Traceback\n  line of try {number}\nConnectionError",
        )
        day.settle(day.claim("clinic"), Outcome.retry(fault, in_s=0))
    day.settle(
        day.claim("clinic"),
        Outcome.dead(Fault("ValueError", "the last one", "Traceback\nValueError")),
    )
    tab.go(f"/job?id={job_id}")
    wait_until(lambda: "the last one" in main_text(tab))
    for wanted in ("try 0", "try 1", "permanently failed", job_id, f"sqlqueue requeue {job_id}"):
        wait_until(lambda wanted=wanted: wanted in main_text(tab), what=wanted)
    tab.page.get_by_text("Traceback of attempt 1").click()
    wait_until(lambda: "line of try 0" in main_text(tab))
    # It follows the job until it has ended.
    (tmp_path / "medicine").touch()
    tab.press("action-requeue")
    assert confirm(tab).startswith("1 requeued.")
    run_worker("-Q", "clinic")
    wait_until(lambda: "healed" in main_text(tab), deadline_s=60)
    assert ask("inspect", "job", job_id)["state"] == "done"


def test_row_of_the_list_leads_to_the_jobs_page(tab):
    wait_until(lambda: tab.table().rows())
    row = tab.table().rows()[2]
    tab.go(f"/{next(cell for cell in row.values() if cell.startswith('job?id='))}")
    wait_until(lambda: row["Job"] in main_text(tab))


def test_unknown_job_is_told_and_can_be_looked_for(tab):
    tab.go("/job?id=no-such-job")
    assert "No job has the id no-such-job" in tab.until("no-job", "No job")
    tab.type("search", "jobs/later-1")
    wait_until(lambda: len(tab.table().rows()) == 3)  # 1, 10, 11


def test_group_of_errors_is_requeued_and_no_other(tab, ask):
    groups = ask("inspect", "dead", "--by", "error")["items"]
    largest = groups[0]
    others = sum(group["count"] for group in groups[1:])
    tab.go("/errors")
    tab.press("group-requeue-0")
    report = confirm(tab)
    assert report.startswith(f"{largest['count']} requeued.")
    assert ask("inspect", "stats")["states"]["permanently_failed"] == others


def test_queue_is_paused_resumed_and_purged_once_its_name_is_typed(tab, day, ask):
    day.store.topology.declare_queue("mail")
    day.store.topology.declare_queue("default")
    tab.go("/queues")
    place = [row["name"] for row in ask("inspect", "queues")["items"]].index("default")

    def default():
        return next(row for row in ask("inspect", "queues")["items"] if row["name"] == "default")

    tab.press(f"queue-pause-{place}")
    confirm(tab, reason="a quiet hour")
    assert default()["paused"]["reason"] == "a quiet hour"
    tab.press(f"queue-resume-{place}")
    confirm(tab, reason="over")
    assert default()["paused"] is None
    tab.press(f"queue-purge-{place}")
    tab.type("dialog-reason", "not this one")
    tab.type("dialog-count", "mail")
    tab.press("dialog-confirm")
    tab.page.get_by_text("Nothing was changed").wait_for()
    assert default()["pending"] == 12
    tab.type("dialog-count", "default")
    tab.press("dialog-confirm")
    wait_until(lambda: default()["pending"] == 0)


def test_file_is_checked_and_copied_and_the_copy_is_a_queue(tab, tmp_path, ask):
    tab.go("/maintenance")
    tab.press("check-run")
    tab.type("backup-path", str(tmp_path / "copy.db"))
    tab.press("backup-run")
    tab.press("dialog-confirm")
    tab.until("report", "copy.db")
    wait_until((tmp_path / "copy.db").exists, deadline_s=60)
    copied = ask("--db", str(tmp_path / "copy.db"), "inspect", "stats")["states"]
    assert copied["done"] == ask("inspect", "stats")["states"]["done"]
