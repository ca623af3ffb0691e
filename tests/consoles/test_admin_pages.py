"""The admin console's pages, run by Streamlit without a browser, on real files and on another broker."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from sqlqueue.config import Settings
from sqlqueue.consoles import source
from sqlqueue.consoles.admin import acting
from sqlqueue.consoles.admin.acting import Answer
from sqlqueue.consoles.admin.questions import Question
from sqlqueue.consoles.source import Source
from sqlqueue.consoles.troubles import trouble_of
from sqlqueue.operations import Operations
from sqlqueue_transport import Store
from sqlqueue_transport.errors import BackupRefused
from sqlqueue_transport.lifecycle import State
from sqlqueue_transport.schedules import Described
from tests.cli.filling import HOSTILE, RAW, Filled

PAGES = ["errors", "queues", "workers", "schedule", "maintenance"]
Look = Callable[..., AppTest]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@pytest.fixture
def look() -> Iterator[Look]:
    """Show a page of a queue, as the frame would; called again, of another."""

    def look_at(page: str, broker: Path | str) -> AppTest:
        url = broker if isinstance(broker, str) else f"sqlqueue:///{broker}"
        source.choose(Source(Settings(broker_url=url), utc=True))
        test = AppTest.from_string(
            f"""
            from sqlqueue.consoles.admin import acting, {page}
            from sqlqueue.consoles.shield import shielded

            with shielded():
                {page}.show()
            acting.show_report()
            """,
            default_timeout=30,
        )
        return test.run()

    yield look_at
    source._chosen.clear()


def seen(page: AppTest) -> str:
    """Return all that a page shows as one text."""
    assert not page.exception, page.exception
    found = [element.proto.body for element in page.get("html")]
    found += [str(one.value) for kind in ("info", "warning", "caption") for one in page.get(kind)]
    found += [str(one.value) for one in page.markdown]
    return "\n".join(found)


def fill(path: Path) -> None:
    """Make a file in which every page has something to show, strangers' text as well."""
    filled = Filled(path)
    filled.store.consumers.register(name="w1", kind="worker", queues=["default"], slots=2)
    for number in range(3):
        filled.dead("OSError", f"no such file 'job-{number}'")
    filled.dead("Evil", f"<script>x()</script>{HOSTILE}", task="<b>tasks</b>")
    filled.publish(queue="mail")
    filled.publish(queue="celeryev.1")
    filled.publish(queue="<i>odd</i>")
    filled.store.schedules.describe([Described("every", "every 5s", "tasks.add", 5000)])
    filled.store.pausing.pause("mail", actor="anna", reason=HOSTILE)
    filled.close()


@pytest.mark.parametrize("page", PAGES)
def test_a_page_of_a_filled_file_shows_strangers_text_as_text(page, path, look) -> None:
    fill(path)
    text = seen(look(page, path))
    assert "<script>" not in text
    assert "<b>tasks" not in text
    assert "<i>odd" not in text
    assert not any(one in text for one in RAW)


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("errors", "No dead letters."),
        ("queues", "No queues yet."),
        ("workers", "sqlqueue worker -A"),
        ("schedule", "sqlqueue beat -A"),
        ("maintenance", "Nothing yet."),
    ],
)
def test_a_page_of_an_empty_file_says_something_useful(page, said, path, look) -> None:
    Filled(path).close()
    assert said in seen(look(page, path)).replace("\\", "")


@pytest.mark.parametrize("page", PAGES)
def test_another_broker_is_no_error(page, look) -> None:
    test = look(page, "memory://")
    assert "This broker cannot tell." in seen(test)


@pytest.mark.parametrize("page", PAGES)
def test_a_missing_file_is_told_and_is_not_made(page, path, look) -> None:
    assert "There is no queue file yet." in seen(look(page, path))
    assert not path.exists()


@pytest.fixture
def confirmed(monkeypatch) -> Callable[..., str]:
    """Confirm the newest dialog, for what AppTest does not do: it runs no dialog on its own.

    The dialog itself is tried in a browser; here the question and the deed are.
    """
    asked: list[tuple[Question, Callable[[Operations, Answer], str]]] = []
    monkeypatch.setattr(acting, "ask", lambda question, do, done=None: asked.append((question, do)))

    def confirm(reason: str | None = None, *, typed: str = "") -> str:
        [(question, do)] = asked
        asked.clear()
        assert question.is_answered_by(typed)
        answer = Answer("anna via admin console", reason, None, lambda part: None)
        with source.chosen().opened() as inspection:
            return do(Operations(inspection), answer)

    return confirm


def reread(path: Path, question: Callable[[Store], Any]) -> Any:
    filled = Filled(path)
    try:
        return question(filled.store)
    finally:
        filled.close()


def test_a_queue_is_paused_and_resumed_with_a_reason(path, look, confirmed) -> None:
    filled = Filled(path)
    filled.publish(queue="mail")
    filled.close()
    page = look("queues", path)
    page.button(key="queue-pause-0").click().run()
    assert confirmed("disk is full") == "Queue mail is paused."
    assert "by anna via admin console: disk is full" in seen(page.run())
    page.button(key="queue-resume-0").click().run()
    assert confirmed() == "Queue mail runs again."
    assert "Paused" not in seen(page.run())


def test_a_group_of_dead_letters_is_requeued_and_no_other(path, look, confirmed) -> None:
    fill(path)
    page = look("errors", path)
    page.button(key="group-requeue-0").click().run()
    assert confirmed() == "3 requeued."
    page.run()
    keys = [one.key for one in page.button]
    assert "group-requeue-0" not in keys
    assert "group-requeue-1" in keys
    assert "1 job in 1 group" in seen(page)


def test_an_entry_is_paused_and_resumed(path, look, confirmed) -> None:
    fill(path)
    page = look("schedule", path)
    page.button(key="schedule-pause-0").click().run()
    assert confirmed() == "Entry every is paused."
    assert "Paused now" in seen(page.run())
    page.button(key="schedule-resume-0").click().run()
    assert confirmed() == "Entry every goes on with its next tick."
    assert "Paused" not in seen(page.run())


def test_a_purge_deletes_what_waits_in_one_queue_once_its_name_is_typed(
    path, look, confirmed
) -> None:
    filled = Filled(path)
    for due_in_s in (None, None, 600):
        filled.publish(queue="mail", due_in_s=due_in_s)
    filled.done()
    filled.publish()
    filled.close()
    page = look("queues", path)
    page.button(key="queue-purge-1").click().run()
    assert confirmed("by mistake", typed="mail") == "Queue mail is purged: 3 messages deleted."
    states = reread(path, lambda store: store.reading.counts().states)
    assert (states[State.PENDING], states[State.SCHEDULED], states[State.DONE]) == (1, 0, 1)


def test_pruning_deletes_old_jobs_of_the_chosen_states_and_is_audited(
    path, look, confirmed
) -> None:
    fill(path)
    page = look("maintenance", path)
    page.button(key="prune-run").click().run()
    assert "Nothing to delete." in seen(page)
    page.number_input(key="prune-days").set_value(0.0)
    page.multiselect(key="prune-states").set_value([State.PERMANENTLY_FAILED])
    page.button(key="prune-run").click().run()
    assert confirmed("old").startswith("4 jobs deleted.")
    assert "anna via admin console" in seen(page.run())
    states = reread(path, lambda store: store.reading.counts().states)
    assert states[State.PERMANENTLY_FAILED] == 0
    assert states[State.PENDING] == 3


def test_a_click_means_the_queue_that_was_under_it_though_another_came_before_it(
    path, look, confirmed
) -> None:
    filled = Filled(path)
    filled.publish(queue="mail")
    page = look("queues", path)
    filled.publish(queue="alpha")  # by name it would stand where mail stood
    filled.close()
    page.button(key="queue-pause-0").click().run()
    assert confirmed() == "Queue mail is paused."


def test_mailboxes_are_shown_when_asked_for_and_queues_found_by_name(path, look) -> None:
    fill(path)
    page = look("queues", path)
    assert "celeryev.1" not in seen(page)
    page.toggle(key="queue-mailboxes").set_value(True).run()
    assert "celeryev.1" in seen(page)
    page.text_input(key="queue-find").set_value("odd").run()
    assert "celeryev.1" not in seen(page)
    assert "&lt;i&gt;odd" in seen(page)
    page.text_input(key="queue-find").set_value("nowhere").run()
    assert "No queue has that in its name" in seen(page)


def test_a_check_says_that_the_file_is_in_order(path, look) -> None:
    fill(path)
    page = look("maintenance", path)
    page.button(key="check-run").click().run()
    assert "Quick check: the file is in order." in seen(page)
    page.toggle(key="check-full").set_value(True)
    page.button(key="check-run").click().run()
    assert "Full check: the file is in order." in seen(page)


def test_a_check_says_what_is_damaged(path, look) -> None:
    fill(path)
    with sqlite3.connect(path) as connection:  # an index that lacks what its table has
        connection.execute("PRAGMA writable_schema = 1")
        connection.execute(
            "UPDATE sqlite_schema SET sql = replace(sql, 'job_id', 'task') WHERE name = 'message_job'"
        )
    connection.close()
    page = look("maintenance", path)
    page.toggle(key="check-full").set_value(True)
    page.button(key="check-run").click().run()
    assert "the file is damaged" in seen(page)


def test_a_backup_is_made_where_it_was_asked_for(path, look, confirmed) -> None:
    fill(path)
    page = look("maintenance", path)
    page.text_input(key="backup-path").set_value(f"{path.parent}/copy.db")
    page.button(key="backup-run").click().run()
    assert confirmed().startswith(f"Backed up to {path.parent}/copy.db: ")
    counts = reread(path.parent / "copy.db", lambda store: store.reading.counts())
    assert counts.states[State.PERMANENTLY_FAILED] == 4


def test_a_backup_onto_something_that_exists_is_refused(path, look, confirmed) -> None:
    fill(path)
    page = look("maintenance", path)
    page.text_input(key="backup-path").set_value(str(path))
    page.button(key="backup-run").click().run()
    with pytest.raises(BackupRefused) as refused:
        confirmed()
    assert trouble_of(refused.value).title == "No backup was made."


def test_the_doctor_examines_when_it_is_asked(path, look) -> None:
    fill(path)
    page = look("maintenance", path)
    assert "Not examined yet." in seen(page)
    page.button(key="doctor-run").click().run()
    text = seen(page)
    assert "Examined now." in text
    assert "quick integrity and foreign keys are in order" in text


def test_the_audit_is_paged_to_and_fro(path, look) -> None:
    filled = Filled(path)
    filled.publish(queue="mail")
    for number in range(15):
        filled.store.pausing.pause("mail", actor=f"anna-{number}.")
        filled.store.pausing.resume("mail", actor=f"bert-{number}.")
    filled.close()
    page = look("maintenance", path)
    assert "bert-14." in seen(page)
    assert "anna-0." not in seen(page)
    assert page.button(key="audit-newer").disabled
    page.button(key="audit-older").click().run()
    assert "anna-0." in seen(page)
    assert "bert-14." not in seen(page)
    assert page.button(key="audit-older").disabled
    page.button(key="audit-newer").click().run()
    assert "bert-14." in seen(page)
