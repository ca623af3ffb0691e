"""A page of the list stands still: its jobs keep their places, whatever comes or goes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sqlqueue.consoles.admin import sheet
from sqlqueue.consoles.admin.sheet import ROWS
from sqlqueue.consoles.admin.view import View
from sqlqueue.inspection import Inspection


@pytest.fixture
def inspection(filled) -> Iterator[Inspection]:
    backend = filled.backend()
    yield Inspection(backend)
    backend.close()


def test_jobs_that_come_later_do_not_move_those_of_the_page(filled, inspection):
    ids = [filled.publish(args=(n,)) for n in range(3)]
    page = sheet.first(inspection, View(), generation=0)
    before = sheet.rows_now(inspection, page)
    filled.publish()
    after = sheet.rows_now(inspection, page)
    assert [row.job_id for row in before] == [row.job_id for row in after] == ids[::-1]
    assert inspection.newer(page.chosen, page.newest) == 1


def test_ticks_name_the_jobs_that_were_ticked_while_others_come(filled, inspection):
    ids = [filled.publish(args=(n,)) for n in range(4)]
    page = sheet.first(inspection, View(), generation=0)
    filled.publish()
    ticked = sheet.ticked(sheet.rows_now(inspection, page), [0, 2])
    assert [row.job_id for row in ticked] == [ids[3], ids[1]]


def test_job_that_is_gone_leaves_its_line_behind(filled, inspection):
    ids = [filled.publish(args=(n,)) for n in range(3)]
    page = sheet.first(inspection, View(), generation=0)
    gone = filled.message_id(ids[1])
    filled.store.database.write(
        lambda c: c.execute("DELETE FROM message WHERE id = ?", (gone,)).rowcount
    )
    now = sheet.rows_now(inspection, page)
    assert [row and row.job_id for row in now] == [ids[2], None, ids[0]]
    assert [row.job_id for row in sheet.ticked(now, [0, 1, 2, 3])] == [ids[2], ids[0]]


def test_job_that_left_the_filter_stays_on_the_page_with_its_new_state(filled, inspection):
    filled.publish()
    page = sheet.first(inspection, View(states=("pending",)), generation=0)
    filled.claim()
    [row] = sheet.rows_now(inspection, page)
    assert row.state.value == "processing"


def test_pages_are_turned_there_and_back_without_a_job_twice(filled, inspection):
    ids = [filled.publish(args=(n,)) for n in range(2 * ROWS + 5)][::-1]
    first = sheet.first(inspection, View(), generation=0)
    second = sheet.older(inspection, first)
    filled.publish()
    third = sheet.older(inspection, second)
    seen = [
        row.job_id for page in (first, second, third) for row in sheet.rows_now(inspection, page)
    ]
    assert seen == ids
    assert [page.number for page in (first, second, third)] == [1, 2, 3]
    assert third.next is None
    assert sheet.older(inspection, third) is third
    back = sheet.newer(inspection, sheet.newer(inspection, third))
    assert back.ids == first.ids
    assert inspection.newer(back.chosen, back.newest) == 1
    assert sheet.newer(inspection, back) is back


def test_every_turn_has_a_generation_of_its_own(filled, inspection):
    for n in range(ROWS + 1):
        filled.publish(args=(n,))
    first = sheet.first(inspection, View(), generation=7)
    second = sheet.older(inspection, first)
    back = sheet.newer(inspection, second)
    assert len({page.generation for page in (first, second, back)}) == 3


def test_empty_list_tells_of_the_first_job_that_comes(filled, inspection):
    page = sheet.first(inspection, View(), generation=0)
    assert page.ids == ()
    assert sheet.rows_now(inspection, page) == ()
    filled.publish()
    assert inspection.newer(page.chosen, page.newest) == 1


def test_filter_that_finds_nothing_tells_of_the_first_job_it_would_find(filled, inspection):
    filled.publish()
    page = sheet.first(inspection, View(task="mail.send"), generation=0)
    assert (page.ids, inspection.newer(page.chosen, page.newest)) == ((), 0)
    filled.publish()
    assert inspection.newer(page.chosen, page.newest) == 0
    filled.publish(task="mail.send")
    assert inspection.newer(page.chosen, page.newest) == 1
