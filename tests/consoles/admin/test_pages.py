"""The Jobs page and the Job page, run as Streamlit runs them but without a browser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest
from streamlit.util import calc_hash

from sqlqueue import envelope
from sqlqueue.config import Settings
from sqlqueue.consoles import admin, source
from sqlqueue.consoles.source import Source
from sqlqueue.text import HIDDEN
from tests.cli.filling import HOSTILE, RAW, Filled

MAIN = Path(admin.__file__).with_name("main.py")


def opened(page: str = "", **params: str) -> AppTest:
    """Open a page of the admin console by its link."""
    at = AppTest.from_file(str(MAIN), default_timeout=30)
    if page:
        at.run()
        at._page_hash = calc_hash(page)  # switch_page() knows only pages that are files (1.67)
    for name, value in params.items():
        at.query_params[name] = value
    at.run()
    assert not at.exception
    return at


def dialog() -> None:
    """Be a page that opens the dialog in every run: AppTest runs no fragment alone (1.67)."""
    import streamlit as st

    from sqlqueue.consoles import source
    from sqlqueue.consoles.admin import acting
    from sqlqueue.inspection import JobFilter
    from sqlqueue.operations import Action, Operations

    action = Action(st.session_state["action"])
    if "choice" not in st.session_state:
        with source.chosen().opened() as inspection:
            found = Operations(inspection).choose(action, chosen=JobFilter(queue="default"))
        st.session_state["choice"] = found
    acting.act_on(action, st.session_state["choice"])
    acting.show_report()


def asked(action: str) -> AppTest:
    """Open the dialog about all jobs that such an action usually means."""
    at = AppTest.from_function(dialog, default_timeout=30)
    at.session_state["action"] = action
    at.run()
    assert not at.exception
    return at


def table(at: AppTest) -> dict[str, list[object]]:
    return at.dataframe[0].value.to_dict(orient="list")


def words(at: AppTest) -> str:
    """Return what is said, without the backslashes that keep Markdown from reading marks."""
    said = (*at.markdown, *at.warning, *at.code, *at.subheader)
    return " ".join(one.value for one in said).replace("\\", "")


def state_of(shown: Filled, job_id: str) -> str:
    return shown.store.reading.job(shown.message_id(job_id)).row.state.value


def test_jobs_page_lists_jobs_newest_first_with_their_counts(shown):
    ids = [shown.publish(), shown.done(), shown.dead()]
    at = opened()
    assert table(at)["Job"] == ids[::-1]
    assert at.button(key="state-done").label == "done **1**"
    assert "3 jobs, newest first" in words(at)


def test_link_narrows_the_list(shown):
    shown.done()
    dead = shown.dead(task="mail.send")
    at = opened(state="permanently_failed", task="mail.send")
    assert table(at)["Job"] == [dead]
    assert at.selectbox(key="task-filter").value == "mail.send"
    assert "1 job, newest first · 1 match now" in words(at)


def test_tile_narrows_the_list_and_the_link(shown):
    shown.done()
    waiting = shown.publish()
    at = opened()
    at.button(key="state-pending").click().run()
    assert not at.exception
    assert table(at)["Job"] == [waiting]
    assert at.query_params["state"] in ("pending", ["pending"])


def test_search_finds_a_job_by_the_start_of_its_id(shown):
    shown.publish(job_id="other")
    shown.publish(job_id="wanted-1")
    at = opened()
    at.text_input(key="search").input("wanted").run()
    assert table(at)["Job"] == ["wanted-1"]
    at.button(key="reset").click().run()
    assert len(table(at)["Job"]) == 2


def test_empty_queue_says_how_to_fill_it(shown):
    at = opened()
    assert "No jobs yet" in words(at)
    assert not at.dataframe


def test_filter_that_finds_nothing_says_what_there_is(shown):
    shown.done()
    at = opened(state="failed")
    assert "No failed jobs" in words(at)
    assert "There are 1 done" in words(at)


def test_buttons_wait_for_ticks_and_say_so(shown):
    shown.dead()
    at = opened()
    for name in ("requeue", "fail", "cancel", "terminate"):
        button = at.button(key=f"action-{name}")
        assert button.disabled
        assert "Tick jobs first" in button.help


def test_all_matching_opens_the_dialog_about_all_of_them(shown):
    for n in range(60):
        shown.dead(args=(n,))
    shown.publish()
    at = opened(state="permanently_failed")
    at.checkbox(key="all-matching").check().run()
    assert at.checkbox(key="all-matching").label == "All 60 matching"
    assert at.button(key="action-cancel").disabled
    at.button(key="action-requeue").click().run()
    assert not at.exception
    assert at.button(key="dialog-confirm").label == "Requeue 60 jobs"
    assert at.text_input(key="dialog-count").label == "Type 60 to confirm"
    assert not at.checkbox(key="all-matching").value, "the next button must not mean all again"


def test_confirmed_action_changes_the_jobs_with_reason_and_actor_and_is_reported(shown):
    ids = [shown.dead(args=(n,)) for n in range(3)]
    done = shown.done()
    at = asked("requeue")
    at.text_input(key="dialog-reason").input("disk is back")
    at.button(key="dialog-confirm").click().run()
    assert not at.exception
    assert "3 requeued" in words(at)
    assert [state_of(shown, job_id) for job_id in (*ids, done)] == [*["pending"] * 3, "done"]
    [entry] = shown.store.reading.job(shown.message_id(ids[0])).audit
    assert entry.reason == "disk is back"
    assert entry.actor.endswith("via admin console")
    at.button(key="report-dismiss").click().run()
    assert "3 requeued" not in words(at)


def test_dialog_that_is_left_changes_nothing(shown):
    job_id = shown.dead()
    at = asked("requeue")
    at.button(key="dialog-dismiss").click().run()
    assert state_of(shown, job_id) == "permanently_failed"
    assert not shown.store.reading.job(shown.message_id(job_id)).audit


def test_more_than_twenty_jobs_need_their_count_typed(shown):
    ids = [shown.dead(args=(n,)) for n in range(21)]
    at = asked("requeue")
    for wrong in ("", "20", "2 1"):
        at.text_input(key="dialog-count").input(wrong)
        at.button(key="dialog-confirm").click().run()
        assert "Nothing was changed" in at.error[0].value
    assert state_of(shown, ids[0]) == "permanently_failed"
    at.text_input(key="dialog-count").input("21")
    at.button(key="dialog-confirm").click().run()
    assert "21 requeued" in words(at)
    assert state_of(shown, ids[0]) == "pending"


def test_job_that_changed_before_the_confirmation_is_skipped_and_told(shown):
    taken, waiting = shown.publish(), shown.publish()
    at = asked("cancel")
    shown.claim()
    at.button(key="dialog-confirm").click().run()
    assert "1 cancelled, 1 skipped: their state had changed" in words(at)
    assert [state_of(shown, one) for one in (taken, waiting)] == ["processing", "cancelled"]


def test_dialog_shows_hostile_ids_escaped(shown):
    shown.dead(job_id=HOSTILE, task=HOSTILE)
    at = asked("requeue")
    assert not any(raw in words(at) for raw in RAW)


def test_job_page_tells_the_whole_of_a_dead_letter(shown):
    job_id = shown.dead(task="mail.send", args=("a@b",))
    at = opened("job", id=job_id)
    said = words(at)
    for piece in (job_id, '"a@b"', "ValueError: no such file", f"sqlqueue requeue {job_id} --db"):
        assert piece in said
    assert not [one for one in at.button if one.key == "action-cancel"]


def test_job_page_asks_about_its_job(shown):
    at = opened("job", id=shown.dead())
    at.button(key="action-requeue").click().run()
    assert not at.exception
    assert at.button(key="dialog-confirm").label == "Requeue 1 job"


def test_job_page_shows_what_operators_did(shown):
    job_id = shown.dead()
    at = asked("requeue")
    at.button(key="dialog-confirm").click().run()
    assert opened("job", id=job_id).dataframe[0].value["Action"].tolist() == ["requeue"]


@pytest.mark.parametrize("name", ["nobody", "#99", HOSTILE])
def test_unknown_job_leads_to_the_search(shown, name):
    found = shown.publish(job_id="somebody")
    at = opened("job", id=name)
    assert "No job has the id" in words(at)
    at.text_input(key="search").input("some").run()
    assert table(at)["Job"] == [found]


def test_hostile_job_is_shown_escaped_on_both_pages(shown):
    shown.dead(HOSTILE, HOSTILE, task=HOSTILE, args=(HOSTILE,), job_id=HOSTILE)
    for at in (opened(), opened("job", id=HOSTILE)):
        shown_texts = words(at) + str([one.value.to_dict() for one in at.dataframe])
        assert not any(raw in shown_texts for raw in RAW)


def test_missing_file_is_told_calmly(tmp_path):
    before = list(source._chosen)
    source.choose(Source(Settings(broker_url=f"sqlqueue:///{tmp_path / 'none.db'}")))
    at = opened()
    source._chosen[:] = before
    assert len(at.warning) == 1
    assert "There is no queue file yet" in at.warning[0].value


def test_other_broker_is_told_calmly():
    before = list(source._chosen)
    source.choose(Source(Settings(broker_url="memory://")))
    found = [opened(), opened("job", id="x")]
    source._chosen[:] = before
    for at in found:
        assert len(at.warning) == 1
        assert "This broker cannot tell" in at.warning[0].value


def test_nothing_of_a_sensitive_job_is_on_its_page_nor_in_the_list(shown):
    secret = "hush4711"
    call = envelope.build("shop.pay", (secret,), {"cvc": secret}, job_id="x", sensitive=True)
    marked = {"body": call.body.encode(), "headers": json.dumps({**call.headers, "id": "one"})}
    shown.done({"seen": secret}, job_id="one", task="shop.pay", **marked)
    running = shown.publish(job_id="two", task="shop.pay", **marked)
    shown.claim()
    for at in (opened(), opened("job", id="one"), opened("job", id=running)):
        everything = words(at) + str([one.value.to_dict() for one in at.dataframe])
        everything += str([one.value for one in (*at.get("html"), *at.json)])
        assert secret not in everything
    assert table(opened())["Arguments"] == [HIDDEN, HIDDEN]
    page = opened("job", id="one")
    assert [code.value for code in page.code].count(HIDDEN) == 2  # arguments and result
    assert not opened(search=secret).dataframe
