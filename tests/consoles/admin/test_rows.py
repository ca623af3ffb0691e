"""A line of the table: what it shows of a job, and that no text of strangers does anything there."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from sqlqueue.consoles.admin import rows
from sqlqueue.consoles.admin.rows import COLUMNS
from sqlqueue.inspection import Arguments, Inspection, JobFilter
from tests.cli.filling import HOSTILE, RAW


@pytest.fixture
def lines(filled) -> Iterator[Callable[..., list[dict[str, object]]]]:
    backend = filled.backend()
    inspection = Inspection(backend)

    def read(now_ms: int | None = None) -> list[dict[str, object]]:
        found = inspection.jobs(JobFilter()).items
        calls = inspection.arguments_of([row.message_id for row in found])
        return [
            rows.cells(
                row,
                row.message_id,
                now_ms=now_ms or inspection.now_ms,
                max_attempts=inspection.max_attempts_of(row),
                call=rows.call_text(calls[row.message_id]),
            )
            for row in found
        ]

    yield read
    backend.close()


def test_line_of_a_dead_letter(filled, lines):
    job_id = filled.dead(task="mail.send", args=("a@b",), kwargs={"copy": True}, max_attempts=3)
    [line] = lines()
    assert [*line] == [*COLUMNS]
    assert line["Job"] == job_id
    assert line["Open"] == f"job?id={job_id}"
    assert line["State"] == ["permanently failed"]
    assert line["Try"] == "1/3"
    assert line["Last error"] == "ValueError: no such file"
    assert line["Arguments"] == '"a@b", copy=true'


def test_line_of_a_waiting_job_has_no_worker_and_no_times(filled, lines):
    filled.publish()
    [line] = lines()
    assert (line["Started"], line["Ran"], line["Worker"], line["Last error"]) == ("", "", "", "")


def test_ages_are_never_negative(filled, lines):
    filled.done()
    [line] = lines(now_ms=1)
    assert line["Enqueued"] == line["Started"] == "now"
    filled.publish()
    filled.claim()
    assert lines(now_ms=1)[0]["Ran"] == "0ms"


def test_job_whose_lease_is_over_is_stalled(filled, lines):
    filled.publish()
    filled.claim(lease_s=0)
    assert lines()[0]["State"] == ["stalled"]


def test_removed_job_leaves_a_line_with_its_number():
    line = rows.cells(None, 17, now_ms=0, max_attempts=0, call="")
    assert [*line] == [*COLUMNS]
    assert (line["Job"], line["State"]) == ("#17", [rows.GONE])


def test_texts_of_strangers_are_shown_escaped(filled, lines):
    filled.dead(
        HOSTILE,
        HOSTILE,
        task=HOSTILE,
        args=(HOSTILE,),
        kwargs={HOSTILE: HOSTILE},
        job_id=HOSTILE,
    )
    [line] = lines()
    for text in map(str, line.values()):
        assert not any(raw in text for raw in RAW)


def test_link_leads_to_any_job_whatever_its_id():
    assert rows.link("#17") == "job?id=%2317"
    assert rows.link("a&b=c/d\n") == "job?id=a%26b%3Dc%2Fd%0A"
    assert rows.link("\ud800") == "job?id=%3F"


def test_arguments_that_cannot_be_read_say_why_and_long_ones_are_cut():
    assert rows.call_text(Arguments(None, None, "no JSON")) == "cannot be read: no JSON"
    assert len(rows.call_text(Arguments(("x" * 9999,), {}))) < 300
