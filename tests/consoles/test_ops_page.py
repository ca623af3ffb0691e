"""The ops page as Streamlit runs it, without a browser, on real files."""

from __future__ import annotations

import re
import sqlite3
import sys
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

import sqlqueue.consoles.ops
from sqlqueue.config import Settings
from sqlqueue.consoles import source
from sqlqueue.consoles.ops import snapshot
from sqlqueue.consoles.source import Source
from sqlqueue_transport import Store
from sqlqueue_transport.clock import SYSTEM_CLOCK
from tests.cli.filling import Filled
from tests.support import FakeClock, end_processes, finish, kill, read_line, run_python

SCRIPT = Path(sqlqueue.consoles.ops.__file__).with_name("main.py")
KEYS = (
    *("status", "as-of", "kpi-oldest", "kpi-pending", "kpi-processing", "kpi-done", "kpi-failed"),
    *("kpi-run", "kpi-wait", "kpi-dead", "file"),
)
Look = Callable[..., AppTest]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@pytest.fixture
def look() -> Iterator[Look]:
    """Show the page of a queue, as a browser would that asks for it with these choices."""

    def look_at(broker: Path | str, **choices: str) -> AppTest:
        url = broker if isinstance(broker, str) else f"sqlqueue:///{broker}"
        source.choose(Source(Settings(broker_url=url), utc=True))
        test = AppTest.from_file(SCRIPT, default_timeout=30)
        test.query_params.update(choices)
        return test.run()

    st.cache_resource.clear()
    yield look_at
    source._chosen.clear()
    st.cache_resource.clear()


def html(page: AppTest) -> str:
    """Return all the HTML of a page."""
    assert not page.exception, page.exception
    return "\n".join(element.proto.body for element in page.get("html"))


def charts(page: AppTest) -> list[object]:
    return page.get("vega_lite_chart") + page.get("arrow_vega_lite_chart")


def status_in(found: str) -> str:
    [said] = re.findall(r'class="say" title="([^"]*)"', found)
    return unescape(said)


def status(page: AppTest) -> str:
    return status_in(html(page))


def fill(path: Path) -> None:
    filled = Filled(path)
    for number in range(5):
        filled.done(args=(f"jobs/{number}.json",))
        filled.dead("OSError", f"no such file 'job-{number}'")
    filled.publish(queue="mail")
    filled.publish(args=("jobs/active.json",))
    filled.close()


@pytest.fixture
def hold() -> Iterator[Callable[[Path], None]]:
    """Have a worker of its own process take all that waits in the queue `default`, and keep it."""
    holders = []

    def hold_all(path: Path) -> None:
        holder = run_python(
            """
            import sys
            from sqlqueue_transport import Store
            store = Store(sys.argv[1])
            store.consumers.register(name="w", kind="worker", slots=400, queues=["default"])
            print(len(store.claim(["default"], limit=1000, lease_s=3600).deliveries), flush=True)
            input()
            """,
            path,
        )
        read_line(holder)
        holders.append(holder)

    yield hold_all
    for holder in holders:
        kill(holder)
    end_processes()


def test_the_page_of_an_empty_file_has_everything_in_its_place(path, look):
    Store(path).close()

    page = look(path)

    found = html(page)
    for key in KEYS:
        assert f"st-key-{key}" in found, key
    assert status(page) == "No worker is alive, and nothing waits."
    assert "Nothing ended in the last 1h." in found
    assert "Nothing runs at this moment." in found
    assert not charts(page)


def test_the_page_of_a_filled_file_shows_what_is_in_it(path, look, hold):
    fill(path)
    hold(path)

    found = html(look(path, window="15m"))

    assert "jobs/active.json" in found
    assert status_in(found) == "No worker serves mail (1 pending)"
    assert str(path) in found


def test_charts_are_drawn_of_buckets_that_have_ended(path, look):
    filled = Filled(path, clock=FakeClock(wall=SYSTEM_CLOCK.wall_ms() - 120_000))
    for _ in range(3):
        filled.done()
    filled.close()

    assert len(charts(look(path, window="15m"))) == 2


def test_the_page_of_many_jobs_shows_some_and_counts_the_rest(path, look, hold):
    filled = Filled(path)
    for _ in range(300):
        filled.publish()
    filled.close()
    hold(path)

    found = html(look(path))

    assert found.count("<tr>") < 100
    assert f"the {snapshot.MOST_ACTIVE} longest running of 300 jobs" in found


def test_window_and_refresh_are_those_of_the_address(path, look):
    Store(path).close()

    page = look(path, window="6h", refresh="30s")

    assert page.session_state["window"] == "6h"
    assert page.session_state["refresh"] == "30s"
    assert "ops-asof in-30 " in html(page)
    assert "in the last 6h" in html(page)


def test_an_address_that_makes_no_sense_shows_the_usual_page(path, look):
    Store(path).close()

    page = look(path, window="<b>", refresh="1ms")

    assert page.session_state["window"] == "1h"
    assert page.session_state["refresh"] == "5s"
    assert html(page)


def test_a_file_that_is_not_there_yet_is_said_calmly_and_shown_when_it_comes(path, look):
    page = look(path)
    assert status(page).startswith("There is no queue file yet.")
    assert "It is shown as soon as it can be read." in html(page)
    assert not path.exists()

    Store(path).close()

    assert status(page.run()) == "No worker is alive, and nothing waits."


def test_what_was_seen_stays_with_its_age_while_the_file_cannot_be_read(path, look, hold):
    fill(path)
    hold(path)
    page = look(path)
    before = html(page)
    path.rename(path.with_name("moved.db"))

    page.run()

    assert status(page).startswith("What you see was true ")
    assert "jobs/active.json" in html(page)
    time_of = re.compile(r"<time>(.*?)</time>")
    assert time_of.findall(html(page)) == time_of.findall(before)

    path.with_name("moved.db").rename(path)
    assert not status(page.run()).startswith("What you see")


def test_another_file_at_the_path_is_shown_without_memories_of_the_first(
    path, look, hold, tmp_path
):
    fill(path)
    hold(path)
    page = look(path)
    assert "jobs/active.json" in html(page)
    for old in [path, *tmp_path.glob("queue.db-*")]:
        old.rename(tmp_path / f"old-{old.name}")
    filled = Filled(path)
    for number in range(12):  # of which one has the message id that the active job had
        filled.publish(args=(f"jobs/second-{number}.json",))
    filled.close()
    hold(path)

    found = html(page.run())

    assert "jobs/second-11.json" in found
    assert "jobs/active.json" not in found


@pytest.mark.parametrize(
    ("url", "said", "below"),
    [
        ("memory://", "This broker cannot tell.", "There is nothing to show."),
        # Nobody listens there. It may come up, and then be told from a file.
        ("redis://127.0.0.1:1/0", "The queue cannot be shown.", "as soon as it can be read."),
    ],
)
def test_another_broker_than_a_file_is_said_calmly(look, url, said, below):
    page = look(url)

    assert status(page).startswith(said)
    assert below in html(page)


def test_the_page_offers_no_way_to_act(path, look):
    fill(path)

    page = look(path)

    assert not page.button
    assert not page.text_input
    assert {one.key for one in page.get("button_group")} == {"window", "refresh"}


def test_the_page_cannot_write_whatever_it_tries(path, look, monkeypatch):
    fill(path)
    tried = []

    def take(inspection, *_):
        store = inspection.backend.store
        for write in (
            lambda: store.pausing.pause("default", actor="ops"),
            lambda: store.database.write(lambda c: c.execute("DELETE FROM message")),
            lambda: store.database.read(lambda c: c.execute("DELETE FROM message").fetchall()),
        ):
            with pytest.raises(Exception, match="read") as refused:
                write()
            tried.append(refused.type.__name__)

    monkeypatch.setattr(snapshot, "take", take)
    look(path)

    assert len(tried) == 3
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM message").fetchone() == (12,)


def test_no_code_that_acts_is_loaded_when_the_page_has_run(path):
    fill(path)
    code = """
        import sys
        from streamlit.testing.v1 import AppTest
        from sqlqueue.config import Settings
        from sqlqueue.consoles import source
        source.choose(source.Source(Settings(broker_url=f"sqlqueue:///{sys.argv[1]}")))
        page = AppTest.from_file(sys.argv[2], default_timeout=30).run()
        assert not page.exception and len(page.get("html")) > 10
        wrong = ("sqlqueue.operations", "sqlqueue.consoles.admin", "sqlqueue.cli", "sqlqueue.worker")
        print([name for name in sys.modules if name.startswith(wrong)])
    """

    assert finish(run_python(code, path, SCRIPT), deadline_s=60).splitlines()[-1] == "[]"


@pytest.mark.parametrize("role", ["admin", "ops"])
def test_no_module_beside_a_script_has_the_name_of_one_of_pythons_own(role):
    # Streamlit (1.67) puts the directory of the script first on sys.path: `import html` anywhere in
    # the process would find ours.
    ours = {one.stem for one in SCRIPT.parents[1].joinpath(role).glob("*.py")}

    assert "main" in ours
    assert not ours & sys.stdlib_module_names
