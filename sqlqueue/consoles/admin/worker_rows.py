"""What the Workers page says: each worker, its children beneath it, and what they run. No Streamlit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlqueue.consoles import markup
from sqlqueue.consoles.markup import Column
from sqlqueue.formats import number, short, took
from sqlqueue.palette import STATES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlqueue.consoles.markup import Html
    from sqlqueue.inspection import Worker
    from sqlqueue_transport.reading import JobRow

__all__ = ["EMPTY", "Family", "card", "families", "summary"]

EMPTY: Final = "No worker is running. Start one: sqlqueue worker -A MODULE:ATTR"
_COLUMNS: Final = (
    Column("Process", 4),
    Column("Job", 4),
    Column("Task", 5),
    Column("Runs for", 2, right=True),
    Column("Lease left", 2, right=True),
    Column("Sign of life", 3),
)
_KINDS: Final = {"client": "other program"}


@dataclass(frozen=True, slots=True)
class Family:
    """Be a process and its children; of most kinds there are none."""

    head: Worker
    children: tuple[Worker, ...]

    @property
    def is_worker(self) -> bool:
        """Say whether it works on queues: a worker of ours, or a program such as Celery's worker."""
        return self.head.row.is_serving

    @property
    def members(self) -> tuple[Worker, ...]:
        """Return all that run jobs: the children, or the process itself."""
        return self.children or (self.head,)

    @property
    def used(self) -> int:
        """Return how many jobs they run at this moment."""
        return sum(len(one.jobs) for one in (self.head, *self.children))


def families(workers: Sequence[Worker]) -> list[Family]:
    """Put children beneath their worker; a child whose worker is gone stands alone.

    Workers come first, then beats, then other programs, each by id: the order they came in.
    """
    known = {one.row.id for one in workers}
    heads = [one for one in workers if one.row.parent_id not in known]
    children: dict[int | None, list[Worker]] = {}
    for one in workers:
        if one.row.parent_id in known:
            children.setdefault(one.row.parent_id, []).append(one)
    for some in children.values():  # main/2 before main/10
        some.sort(key=lambda one: (len(one.row.name), one.row.name))
    order = {"worker": 0, "child": 1, "beat": 2}
    return [
        Family(one, tuple(children.get(one.row.id, ())))
        for one in sorted(heads, key=lambda one: (order.get(one.row.kind, 3), one.row.id))
    ]


def summary(found: Sequence[Family]) -> str:
    """Return one line about all of them."""
    alive = [one for one in found if one.head.row.kind == "worker" and one.head.row.is_known_alive]
    slots, used = sum(one.head.row.slots for one in alive), sum(one.used for one in alive)
    beats = sum(one.head.row.kind == "beat" for one in found)
    others = len(found) - sum(one.head.row.kind in {"worker", "beat"} for one in found)
    said = [f"{number(len(alive), 'worker')} alive", f"{used} of {number(slots, 'slot')} in use"]
    if beats:
        said.append(number(beats, "beat"))
    if others:
        said.append(number(others, "other program"))
    return ", ".join(said)


def card(family: Family, *, now_ms: int, silent_after_s: float) -> Html:
    """Return one process with its children and their jobs.

    `silent_after_s` is the visibility timeout: whoever gave no sign of life for longer is flagged.
    """
    row = family.head.row
    pairs = [
        (_KINDS.get(row.kind, row.kind).capitalize(), markup.strong(row.name)),
        ("Process", markup.joined([markup.text(str(row.pid)), markup.muted(f"on {row.host}")])),
        ("Slots in use", _slots(family)),
        ("Up", markup.text(short(max(now_ms - row.started_at_ms, 0) / 1000))),
        ("Sign of life", _sign_of_life(family.head, silent_after_s)),
        ("Queues", markup.text(", ".join(row.queues) or "–")),
    ]
    head = markup.facts(pairs)
    rows = [line for one in family.members for line in _lines(one, now_ms, silent_after_s)]
    if not family.children and not family.head.jobs:
        return head
    return markup.joined([head, markup.table(_COLUMNS, rows)])


def _slots(family: Family) -> Html:
    total = family.head.row.slots
    if not total:
        return markup.text("–")
    return markup.joined(
        [
            markup.bar(family.used, total, STATES["processing"]),
            markup.text(f"{family.used} of {total}"),
        ]
    )


def _sign_of_life(worker: Worker, silent_after_s: float) -> Html:
    age_s = worker.row.heartbeat_age_s
    if not worker.row.is_known_alive or age_s is None:
        return markup.warned("unknown: the presence file was lost")
    said = f"{short(age_s)} ago" if age_s >= 1 else "now"
    if age_s > silent_after_s:
        return markup.warned(f"silent, {said}", "fail")
    return markup.text(said)


def _lines(worker: Worker, now_ms: int, silent_after_s: float) -> Iterator[list[Html]]:
    """Yield a line for each job it runs, or one that says it is idle."""
    who = markup.joined([markup.text(worker.row.name), markup.muted(str(worker.row.pid))])
    sign = _sign_of_life(worker, silent_after_s)
    if not worker.jobs:
        yield [who, markup.muted("idle"), *[markup.NOTHING] * 3, sign]
    for job in worker.jobs:
        yield [who, _job(job), markup.text(job.task or ""), *_times(job, now_ms), sign]
        who = sign = markup.NOTHING


def _job(job: JobRow) -> Html:
    name = job.name
    part = job.progress.part if job.progress else None
    said = [
        "" if part is None else f"{part:.0%}",
        "asked to stop" if job.stop_asked_at_ms is not None else "",
    ]
    notes = ", ".join(filter(None, said))
    return markup.joined([markup.example(name), markup.muted(notes)])


def _times(job: JobRow, now_ms: int) -> list[Html]:
    runs = "" if job.started_at_ms is None else took(max(now_ms - job.started_at_ms, 0) / 1000)
    if job.lease_left_ms is None:
        return [markup.text(runs), markup.NOTHING]
    left_s = job.lease_left_ms / 1000
    if left_s > 0:
        return [markup.text(runs), markup.text(took(left_s))]
    return [markup.text(runs), markup.warned(f"over for {took(-left_s)}", "fail")]
