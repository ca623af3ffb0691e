"""Checked by mypy in test_typing.py, never run: `#:` lines are what it says of the line above."""

# ruff: noqa: F821 - reveal_type is mypy's

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlqueue import AsyncResult, Backoff, Signature, SqlQueue, Task, Tick, crontab, get_task_logger

app = SqlQueue("typed", broker_url="sqlqueue:///queue.db")


@app.task
def add(x: int, y: int = 0) -> int:
    return x + y


@app.task(name="mail", queue="mail", max_attempts=3, retry_for=(OSError,), time_limit=30)
def mail(to: str, *, subject: str) -> None:
    print(to, subject)


@app.task(bind=True, retry_backoff=0.5)
def bound(self: Task[..., str], path: str, size: int = 0) -> str:
    reveal_type(self.request.attempt)
    #: note: Revealed type is "int"
    if size:
        self.retry(countdown=5)
    return path


# --- the function's own signature ------------------------------------------------------------------

reveal_type(add)
#: note: Revealed type is "sqlqueue.task.Task[[x: int, y: int =], int]"
reveal_type(add(1))
#: note: Revealed type is "int"
reveal_type(add.delay(1, y=2))
#: note: Revealed type is "sqlqueue.results.AsyncResult[int]"
reveal_type(add.delay(1).get(timeout=5))
#: note: Revealed type is "int"
reveal_type(add.s(1))
#: note: Revealed type is "sqlqueue.task.Signature"
reveal_type(add.apply_async([1], countdown=5).get())
#: note: Revealed type is "int"
reveal_type(bound)
#: note: Revealed type is "sqlqueue.task.Task[[path: str, size: int =], str]"
reveal_type(bound("a"))
#: note: Revealed type is "str"
reveal_type(bound.delay("a", 1).get())
#: note: Revealed type is "str"
wide: AsyncResult[float] = add.delay(1)

# --- wrong arguments -------------------------------------------------------------------------------

add.delay()
#: error: Missing positional argument "x" in call to "delay" of "Task"  [call-arg]
add.delay("1")
#: error: Argument 1 to "delay" of "Task" has incompatible type "str"; expected "int"  [arg-type]
add.delay(1, 2, 3)
#: error: Too many arguments for "delay" of "Task"  [call-arg]
add.delay(1, z=2)
#: error: Unexpected keyword argument "z" for "delay" of "Task"  [call-arg]
add.s("1")
#: error: Argument 1 to "s" of "Task" has incompatible type "str"; expected "int"  [arg-type]
add("1")
#: error: Argument 1 to "__call__" of "Task" has incompatible type "str"; expected "int"  [arg-type]
mail.delay("me")
#: error: Missing named argument "subject" for "delay" of "Task"  [call-arg]
mail.delay("me", "hello")
#: error: Too many positional arguments for "delay" of "Task"  [call-arg]
bound.delay()
#: error: Missing positional argument "path" in call to "delay" of "Task"  [call-arg]
bound.delay(1)
#: error: Argument 1 to "delay" of "Task" has incompatible type "int"; expected "str"  [arg-type]
bound.delay(bound, "a")
#: error: Argument 1 to "delay" of "Task" has incompatible type "Task[[str, int], str]"; expected "str"  [arg-type]
#: error: Argument 2 to "delay" of "Task" has incompatible type "str"; expected "int"  [arg-type]
add.apply_async([1], priority="high")
#: error: Argument "priority" to "apply_async" of "Task" has incompatible type "str"; expected "int | None"  [arg-type]
add.apply_async([1], eta=5)
#: error: Argument "eta" to "apply_async" of "Task" has incompatible type "int"; expected "datetime | None"  [arg-type]
add.apply_async([1], prio=5)
#: error: Unexpected keyword argument "prio" for "apply_async" of "Task"  [call-arg]

# --- many calls ------------------------------------------------------------------------------------

reveal_type(add.map([1, 2], chunk=10, on_progress=lambda done, total: None))
#: note: Revealed type is "int"
add.map((x for x in range(3)), job_id=str, queue="q", countdown=5)
bound.map({"a", "b"})
add.map(["1"])
#: error: List item 0 has incompatible type "str"; expected "int"  [list-item]
add.map([1], job_id=lambda x: x)
#: error: Argument "job_id" to "map" of "Task" has incompatible type "Callable[[int], int]"; expected "Callable[[int], str] | None"  [arg-type]
#: error: Incompatible return value type (got "int", expected "str")  [return-value]
add.map(5)
#: error: Argument 1 to "map" of "Task" has incompatible type "int"; expected "Iterable[int]"  [arg-type]
reveal_type(add.starmap([(1, 2), [3]]))
#: note: Revealed type is "int"
add.starmap([1])
#: error: List item 0 has incompatible type "int"; expected "Sequence[Any]"  [list-item]
reveal_type(app.publish_many(add.s(x, 1).set(job_id=f"{x}") for x in range(3)))
#: note: Revealed type is "int"
app.publish_many([add])
#: error: List item 0 has incompatible type "Task[[int, int], int]"; expected "Signature"  [list-item]
app.publish_many([add.s(1)], on_progress=lambda done: None)
#: error: Cannot infer type of lambda  [misc]
#: error: Argument "on_progress" to "publish_many" of "SqlQueue" has incompatible type "Callable[[Any], None]"; expected "Callable[[int, int | None], object] | None"  [arg-type]

# --- results ---------------------------------------------------------------------------------------

reveal_type(app.result("id").get())
#: note: Revealed type is "Any"
reveal_type(add.delay(1).state)
#: note: Revealed type is "str"
add.delay(1).get(timeout="5")
#: error: Argument "timeout" to "get" of "AsyncResult" has incompatible type "str"; expected "float | None"  [arg-type]

# --- testing ---------------------------------------------------------------------------------------

with app.testing() as testing:
    reveal_type(testing.drain(until_empty=True)[0].error)
    #: note: Revealed type is "BaseException | None"
    reveal_type(testing.jobs(state="done")[0].args)
    #: note: Revealed type is "tuple[Any, ...]"
    reveal_type(testing.advance(5))
    #: note: Revealed type is "datetime.datetime"
    testing.advance("5s")
    #: error: Argument 1 to "advance" of "Testing" has incompatible type "str"; expected "float | timedelta"  [arg-type]
    testing.drain(until=5)
    #: error: Unexpected keyword argument "until" for "drain" of "Testing"  [call-arg]
    with testing.worker():
        add.delay(1).get(timeout=5)

reveal_type(get_task_logger(__name__))
#: note: Revealed type is "logging.Logger"

# --- retries ---------------------------------------------------------------------------------------


@app.task(
    max_attempts=0,
    retry_policies={
        ConnectionError: Backoff(first_s=5, longest_s=60, max_attempts=10),
        OSError: None,
    },
)
def retried(x: int) -> None: ...


reveal_type(retried)
#: note: Revealed type is "sqlqueue.task.Task[[x: int], None]"
Backoff(first="5s")
#: error: Unexpected keyword argument "first" for "Backoff"; did you mean "first_s"?  [call-arg]


@app.task(retry_policies={ConnectionError: "never"})
#: error: Dict entry 0 has incompatible type "type[ConnectionError]": "str"; expected "type[BaseException]": "Backoff | None"  [dict-item]
def wrong_policy() -> None: ...


# --- wrong declarations ----------------------------------------------------------------------------


@app.task(max_attempts="3")
#: error: No overload variant of "task" of "SqlQueue" matches argument type "str"  [call-overload]
#: error: Untyped decorator makes function "wrong_option" untyped  [untyped-decorator]
def wrong_option() -> None: ...


@app.task(que="mail")
#: error: Unexpected keyword argument "que" for overloaded function "task" of "SqlQueue"  [call-overload]
#: error: Untyped decorator makes function "unknown_option" untyped  [untyped-decorator]
def unknown_option() -> None: ...


# --- producers -------------------------------------------------------------------------------------


@app.producer(every="5s")
def produce(tick: Tick) -> Iterator[Signature]:
    yield add.s(tick.due_ms)


@app.producer(cron=crontab(minute=0), timezone="Europe/Berlin", catch_up="all")
def hourly(tick: Tick) -> list[Signature]:
    return [add.s(1)]


@app.producer(every=5)
#: error: Argument 1 has incompatible type "Callable[[Tick], list[int]]"; expected "Callable[[Tick], Iterable[Signature]]"  [arg-type]
def no_calls(tick: Tick) -> list[int]:
    return [1]


app.periodic("a", add.s(1), every="5s", catch_up="two")
#: error: Argument "catch_up" to "periodic" of "SqlQueue" has incompatible type "Literal['two']"; expected "Literal['one', 'skip', 'all']"  [arg-type]
app.periodic("b", add, every="5s")
#: error: Argument 2 to "periodic" of "SqlQueue" has incompatible type "Task[[int, int], int]"; expected "Signature"  [arg-type]


@app.check("files")
def files(inspection: Any) -> Iterator[str]:
    yield "a problem"
