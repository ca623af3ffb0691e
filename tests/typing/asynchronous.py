"""Checked by mypy in test_typing.py, never run: async functions as tasks."""

# ruff: noqa: F821 - reveal_type is mypy's

from __future__ import annotations

from sqlqueue import SqlQueue, Task

app = SqlQueue("typed", broker_url="sqlqueue:///queue.db")


@app.task
async def fetch(url: str) -> bytes:
    return url.encode()


@app.task(soft_time_limit=5, time_limit=10)
async def count(url: str, *, deep: bool = False) -> int:
    return len(await fetch(url))


@app.task(bind=True)
async def bound(self: Task[..., str], path: str) -> str:
    return self.request.id + path


reveal_type(fetch.delay("a").get())
#: note: Revealed type is "bytes"
reveal_type(count.delay("a", deep=True).get())
#: note: Revealed type is "int"
reveal_type(count("a"))
#: error: Value of type "Coroutine[Any, Any, int]" must be used  [unused-coroutine]
#: note: Revealed type is "typing.Coroutine[Any, Any, int]"
reveal_type(bound.delay("a").get())
#: note: Revealed type is "str"
fetch.delay(1)
#: error: Argument 1 to "delay" of "Task" has incompatible type "int"; expected "str"  [arg-type]
count.s("a", deep="no")
#: error: Argument "deep" to "s" of "Task" has incompatible type "str"; expected "bool"  [arg-type]
