"""How the consoles look: every page, light and dark, on a desk and on a telephone; and hostile text.

The pictures are kept in `artefacts`, to be looked at.
"""

from __future__ import annotations

from urllib.parse import quote

import pytest

from tests.consoles import filling
from tests.support import wait_until

pytestmark = [pytest.mark.debian("chromium"), pytest.mark.timeout(600)]

ADMIN = (
    "/",
    "/errors",
    "/queues",
    "/workers",
    "/schedule",
    "/maintenance",
    "/job?id={dead}",
    "/job",
)
LOOKS = {
    "light": {},
    "dark": {"dark": True},
    "1024": {"width": 1024},
    "390": {"width": 390, "height": 844},
    "390-dark": {"width": 390, "height": 844, "dark": True},
}


@pytest.fixture
def day(tmp_path):
    day = filling.working_day(tmp_path / "queue.db")
    filling.stall(day, task="reports.build", args=("stuck",))
    yield day
    day.close()


@pytest.fixture
def enemy(tmp_path):
    enemy = filling.hostile(tmp_path / "queue.db")
    yield enemy
    enemy.close()


def look_at(tab, page, path, *, wide=True):
    tab.go(page)
    wait_until(lambda: _is_drawn(tab), deadline_s=30, what=f"what {page} shows")
    tab.shot(path)
    assert tab.page.locator("[data-testid=stException]").count() == 0
    assert tab.overflow() <= 0, f"{page} is too wide"


def _is_drawn(tab) -> bool:
    """Say whether nothing is stale or still to come; charts are drawn after everything else."""
    return not tab.page.locator(
        "[data-stale=true], [data-testid=stSkeleton], [data-test-script-state=running]"
    ).count()


@pytest.mark.parametrize("name", LOOKS)
def test_every_page_of_admin_fits_its_window(name, day, start, open_tab, artefacts, run_worker):
    dead = day.dead("ValueError", "no such file", task="shop.heal", args=("x",), queue="clinic")
    day.publish(task="shop.wait", args=(), queue="clinic")
    run_worker("-Q", "clinic")
    tab = open_tab(start("admin"), **LOOKS[name]).enter()
    wait_until(lambda: tab.table().rows())
    for page in ADMIN:
        path = page.format(dead=dead)
        title = "no-job" if path == "/job" else path.strip("/").partition("?")[0] or "jobs"
        look_at(tab, path, artefacts / f"{title}.png")


@pytest.mark.parametrize("name", LOOKS)
def test_ops_fits_its_window(name, day, start, open_tab, artefacts, run_worker):
    day.publish(task="shop.wait", args=(), queue="clinic")
    run_worker("-Q", "clinic")
    tab = open_tab(start("ops"), **LOOKS[name]).enter()
    look_at(tab, "/?window=6h", artefacts / "ops.png")


@pytest.mark.parametrize("role", ["admin", "ops"])
def test_pages_of_an_empty_file_say_something_useful(role, tmp_path, start, open_tab, artefacts):
    filling.Day(tmp_path / "queue.db").close()
    tab = open_tab(start(role)).enter()
    for page in ADMIN[:6] if role == "admin" else ("/",):
        look_at(tab, page, artefacts / f"{page.strip('/') or role}.png")
        assert len(tab.page.locator("[data-testid=stMain]").inner_text()) > 60


@pytest.mark.parametrize("width", [1440, 390])
def test_text_of_an_enemy_is_shown_and_neither_runs_nor_is_rendered(
    width, enemy, start, open_tab, artefacts, ask
):
    tab = open_tab(start("admin"), width=width, height=1400).enter()
    jobs = [f"#{job['message_id']}" for job in ask("inspect", "jobs")["items"]]
    assert len(jobs) == 5
    pages = [*ADMIN[:6], *(f"/job?id={quote(job)}" for job in jobs)]
    pages += [f"/?search={quote(filling.MARKUP)}", f"/job?id={quote(filling.MARKUP)}"]
    for number, page in enumerate(pages):
        look_at(tab, page, artefacts / f"{number:02}.png")
        assert not tab.is_hacked(), page
        text = tab.page.locator("[data-testid=stMain]").inner_text()
        for raw in ("\u202e", "\u200b", "\x1b", "\x07"):
            assert raw not in text, page
    ops = open_tab(start("ops"), width=width, height=1400).enter()
    look_at(ops, "/?window=1h", artefacts / "ops.png")
    assert not ops.is_hacked()
    text = ops.page.locator("[data-testid=stMain]").inner_text()
    assert not {"\u202e", "\u200b", "\x1b"} & {*text}


def test_dialogs_about_an_enemys_jobs_are_harmless(enemy, start, open_tab, artefacts):
    tab = open_tab(start("admin"), height=1400).enter()
    wait_until(lambda: tab.table().rows())
    for row in tab.table().column("Job")[:4]:
        tab.table().tick(row)
    tab.until("bar-text", "4 ticked")
    tab.press("action-requeue")
    tab.part("dialog-reason").wait_for()
    tab.shot(artefacts / "dialog.png")
    assert not tab.is_hacked()
    tab.type("dialog-reason", filling.MARKUP)
    tab.press("dialog-confirm")
    tab.until("report", "requeued")
    look_at(tab, "/maintenance", artefacts / "audit.png")
    assert not tab.is_hacked()


def test_no_table_offers_strangers_text_as_a_sheet(enemy, start, open_tab, artefacts, ask):
    """A spreadsheet runs what begins with "=". Streamlit offers each table as a CSV, where it may."""
    job = ask("inspect", "jobs")["items"][0]["message_id"]
    ask("cancel", f"#{job}", "--yes", "--reason", '=HYPERLINK("http://evil.example")')
    tab = open_tab(start("admin"), height=1400).enter()
    for page in ("/", f"/job?id={quote(f'#{job}')}"):
        look_at(tab, page, artefacts / f"{len(page)}.png")
        assert tab.page.locator("[data-testid=stDataFrame]").count()
        toolbars = tab.page.locator("[data-testid=stElementToolbar]")
        assert not any(one.is_visible() for one in toolbars.all()), page
