"""One page of the list of jobs, frozen: which jobs stand on it, in which order. Knows no Streamlit.

A table keeps its ticks by position (Streamlit 1.67). Were the list read anew while somebody looks
at it, three new jobs would move every tick to another job. So a sheet names its jobs by message
id and keeps them; only their states are read again, and a job that is gone leaves its line behind.
Another sheet has another `generation`, under which no tick of this one counts.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlqueue.inspection import JobFilter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlqueue.consoles.admin.view import View
    from sqlqueue.inspection import Inspection
    from sqlqueue_transport.reading import JobRow

__all__ = ["ROWS", "Sheet", "first", "newer", "older", "rows_now", "ticked"]

ROWS: Final = 50
_BUDGET_S: Final = 1.0  # of looking through what no index knows; "older" goes on from there


@dataclass(frozen=True, slots=True)
class Sheet:
    """Be the jobs of a page. `chosen` has its times fixed, so that later pages continue this one.

    `before` are the cursors of the pages that were turned, the first one's at their front; `newest` is the message id beyond which a job is newer than the list.
    """

    generation: int
    view: View
    chosen: JobFilter
    cursor: str | None = None
    before: tuple[str | None, ...] = ()
    ids: tuple[int, ...] = ()
    next: str | None = None
    newest: int = 0
    is_complete: bool = True

    @property
    def number(self) -> int:
        """Return which page it is, counted from 1."""
        return len(self.before) + 1


def first(inspection: Inspection, view: View, *, generation: int) -> Sheet:
    """List the newest jobs of a view."""
    chosen = view.chosen(inspection.now_ms)
    # Of any job, so that counting what is newer never walks through what was looked at; and read
    # first, so that what comes between the two is not missed.
    newest = max((row.message_id for row in inspection.jobs(JobFilter(), limit=1).items), default=0)
    found = _read(inspection, Sheet(generation, view, chosen))
    newest = max([newest, *found.ids])
    # Turned back to, it is the same page: what has come meanwhile is newer than the list.
    return dataclasses.replace(found, newest=newest, cursor=str(newest + 1))


def older(inspection: Inspection, sheet: Sheet) -> Sheet:
    """Turn to the page of older jobs; the same one where there is none."""
    if sheet.next is None:
        return sheet
    turned = dataclasses.replace(
        sheet,
        generation=sheet.generation + 1,
        cursor=sheet.next,
        before=(*sheet.before, sheet.cursor),
    )
    return _read(inspection, turned)


def newer(inspection: Inspection, sheet: Sheet) -> Sheet:
    """Turn back to the page that this one was reached from; the same one on the first page."""
    if not sheet.before:
        return sheet
    turned = dataclasses.replace(
        sheet,
        generation=sheet.generation + 1,
        cursor=sheet.before[-1],
        before=sheet.before[:-1],
    )
    return _read(inspection, turned)


def rows_now(inspection: Inspection, sheet: Sheet) -> tuple[JobRow | None, ...]:
    """Return the jobs of a sheet as they are now, each in its place; None for one that is gone."""
    found = {row.message_id: row for row in inspection.again(sheet.ids)}
    return tuple(found.get(message_id) for message_id in sheet.ids)


def ticked(rows: Sequence[JobRow | None], positions: Sequence[int]) -> tuple[JobRow, ...]:
    """Return the jobs at these positions; what is gone, or beyond the end, is left out."""
    return tuple(
        row for at in sorted({*positions}) if 0 <= at < len(rows) and (row := rows[at]) is not None
    )


def _read(inspection: Inspection, sheet: Sheet) -> Sheet:
    page = inspection.jobs(sheet.chosen, limit=ROWS, cursor=sheet.cursor, budget_s=_BUDGET_S)
    return dataclasses.replace(
        sheet,
        ids=tuple(row.message_id for row in page.items),
        next=page.next,
        is_complete=page.is_complete,
    )
