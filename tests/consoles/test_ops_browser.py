"""The ops console, as somebody has it open on a second screen: it shows, and it cannot act."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

import pytest

from tests.consoles import filling
from tests.support import wait_until

pytestmark = [pytest.mark.debian("chromium"), pytest.mark.timeout(300)]


@pytest.fixture
def day(tmp_path):
    day = filling.working_day(tmp_path / "queue.db")
    filling.stall(day, task="reports.build", args=("stuck",))
    yield day
    day.close()


def test_it_shows_what_inspect_says(day, start, open_tab, ask):
    tab = open_tab(start("ops")).enter()
    stats = ask("inspect", "stats")["states"]
    page = wait_until(
        lambda: re.search("oldest pending", text := _text(tab), re.IGNORECASE) and text,
        deadline_s=30,
    )
    assert f"{stats['permanently_failed']:,}" in page
    for wanted in ("ConnectionError", "reports.build", "pending", "as of"):
        assert wanted.lower() in page.lower(), wanted
    # Nobody serves what waits, and that is told before all else.
    assert re.search("no worker", page, re.IGNORECASE)


def test_numbers_follow_the_file_and_nothing_moves(day, start, open_tab):
    tab = open_tab(start("ops")).enter()
    tab.go("/?refresh=5s")
    parts = [key for key in _keys(tab) if key != "trouble"]
    assert len(parts) > 5
    before = tab.boxes(*parts)
    seen = _text(tab)
    for _ in range(40):
        day.publish(task="mail.send")
    wait_until(lambda: _text(tab) != seen and re.search(r"\b5[0-9]\b", _text(tab)), deadline_s=60)
    after = tab.boxes(*parts)
    moved = {key: (before[key], after[key]) for key in parts if before[key] != after[key]}
    assert not moved


def test_it_offers_nothing_that_acts(day, start, open_tab):
    tab = open_tab(start("ops")).enter()
    for key in ("action-requeue", "action-cancel", "dialog-confirm", "jobs-table", "queue-pause-0"):
        assert tab.part(key).count() == 0
    main = tab.page.locator("[data-testid=stMainBlockContainer]")
    named = [one.inner_text() for one in main.get_by_role("button").all()]
    assert not [
        name for name in named if re.search("requeue|cancel|fail|pause|purge", name, re.IGNORECASE)
    ]
    # Nor do the admin console's pages answer by their names.
    for page in ("/maintenance", "/job", "/queues"):
        tab.go(page)
        assert tab.part("check-run").count() == 0
        assert tab.part("queue-find").count() == 0
    tab.errors.clear()  # of pages that are not there


def test_its_process_can_only_read_and_has_loaded_nothing_that_acts(day, start, open_tab, tmp_path):
    # Every import is told on stderr, by Python itself.
    with (tmp_path / "imports").open("w") as log:
        console = start("ops", env={"PYTHONPROFILEIMPORTTIME": "1"}, stderr=log)
    tab = open_tab(console).enter()
    wait_until(lambda: "ConnectionError" in _text(tab), deadline_s=30)
    imported = {
        line.rpartition("|")[2].strip() for line in (tmp_path / "imports").read_text().splitlines()
    }
    assert {"sqlqueue.inspection", "sqlqueue.consoles.ops"} & imported
    assert "sqlqueue.operations" not in imported
    assert not [name for name in imported if name.startswith("sqlqueue.consoles.admin")]
    path = str(day.path)
    # The file is open while a page is made, and not between. (Its log SQLite 3.40 opens for writing
    # in any case.)
    opened = wait_until(
        lambda: (
            [(name, mode) for name, mode in _modes(console.process.pid, path) if name == path]
            and _modes(console.process.pid, path)
        ),
        deadline_s=60,
        every_s=0.001,
    )
    assert {mode for name, mode in opened if name == path} <= {os.O_RDONLY}
    # Nor does it hold a lock that anybody would have to wait for, or look alive as a worker.
    assert not [name for name, _ in opened if "writer" in Path(name).name]


def _modes(pid: int, path: str) -> list[tuple[str, int]]:
    """Return the open files of a process that begin with `path`, and how each was opened."""
    found = []
    for one in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            name = str(one.readlink())
            if name.startswith(path):
                info = Path(f"/proc/{pid}/fdinfo/{one.name}").read_text()
                flags = int(re.search(r"flags:\s+(\d+)", info)[1], 8)
                found.append((name, flags & os.O_ACCMODE))
    return found


def _keys(tab) -> list[str]:
    keys: list[str] = tab.page.evaluate(
        """() => [...document.querySelectorAll('[data-testid=stMainBlockContainer] [class*=st-key-]')]
                 .map(one => [...one.classList].find(name => name.startsWith('st-key-')).slice(7))"""
    )
    return keys


def _text(tab) -> str:
    text: str = tab.page.locator("[data-testid=stMainBlockContainer]").inner_text()
    return text
