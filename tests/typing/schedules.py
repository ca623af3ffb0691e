"""Checked by mypy in test_typing.py, never run: `#:` lines are what it says of the line above."""

# ruff: noqa: F821 - reveal_type is mypy's

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone

from sqlqueue import Signature, SqlQueue, Tick, crontab

app = SqlQueue("typed", broker_url="sqlqueue:///queue.db")


@app.task
def add(x: int, y: int = 0) -> int:
    return x + y


app.schedules.add("a", add.s(1), every="5s", jitter=1.5, overlap="skip", catch_up="all")
app.schedules.add("b", add.s(1), cron="30 2 * * *", timezone="Europe/Berlin", actor="ann")
app.schedules.add("c", add.s(1), at=datetime(2027, 1, 1, tzinfo=timezone.utc))
app.periodic("d", add.s(1), cron=crontab(minute=0), catch_up="skip", catch_up_limit=3)
reveal_type(app.schedules.pause("a", reason="a fair"))
#: note: Revealed type is "bool"
reveal_type(app.schedules.list()[0].next_due_ms)
#: note: Revealed type is "int | None"


@app.producer(at="2027-01-01T08:00", timezone="Europe/Berlin", overlap="skip")
def produce(tick: Tick) -> Iterator[Signature]:
    yield add.s(tick.due_ms)


# --- wrong ones ------------------------------------------------------------------------------------

app.schedules.add("a", add, every=5)
#: error: Argument 2 to "add" of "Schedules" has incompatible type "Task[[int, int], int]"; expected "Signature"  [arg-type]
app.schedules.add("a", add.s(), every=5)
#: error: Missing positional argument "x" in call to "s" of "Task"  [call-arg]
app.schedules.add("a", add.s(1), evry=5)
#: error: Unexpected keyword argument "evry" for "add" of "Schedules"; did you mean "every"?  [call-arg]
app.schedules.add("a", add.s(1), cron=5)
#: error: Argument "cron" to "add" of "Schedules" has incompatible type "int"; expected "str | Cron | None"  [arg-type]
app.periodic("a", add.s(1), every=5, overlap=True)
#: error: Argument "overlap" to "periodic" of "SqlQueue" has incompatible type "Literal[True]"; expected "Literal['allow', 'skip']"  [arg-type]
