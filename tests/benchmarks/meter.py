"""Measure a loop from inside, in rounds: plain, under cProfile, or statement by statement.

Whoever runs the loop calls `Meter.tick` once for each message. So the same meter serves a loop of
our own, a Kombu callback, and a task in a real child process, where nothing else of ours runs.
"""

from __future__ import annotations

import cProfile
import functools
import itertools
import json
import os
import sqlite3
import time
from collections import Counter
from pathlib import Path
from types import CodeType
from typing import Any, ClassVar

__all__ = ["FLUSH", "LONG", "Meter", "per_call_ns", "time_statements"]


SHORT = 4  # profiled rounds follow each plain one, together half as long


class Meter:
    """Cut a loop into rounds of `size` messages, and write what each took to a file of JSON lines.

    Of kind `plain` they tell no more than that; of kind `whole` plain and profiled ones take turns,
    so that both see the same machine; of kind `statements` each tells what the SQL took. The first
    two are for warming up, and left out. Profiled ones are short: when another program gets the
    processor in between, that hits one function of one round, and spares the median of the rounds.
    """

    def __init__(self, path: Path, size: int, kind: str) -> None:
        """Prepare; the first tick begins the first round."""
        self._path = path
        self._size = size
        self._kind = kind
        self._left = self._messages = 1
        self._rounds = -3
        self._profile: cProfile.Profile | None = None
        self._began = (0, 0)

    def tick(self) -> None:
        """Count a message; any thread, but always the same one."""
        self._left -= 1
        if not self._left:
            self._turn()

    def _turn(self) -> None:
        cpu_ns, now_ns = time.thread_time_ns(), time.perf_counter_ns()
        told: dict[str, Any] = {"kind": "plain"}
        if self._profile is not None:
            self._profile.disable()
            told = {"kind": "profiled", "functions": _functions(self._profile)}
            self._profile = None
        elif self._kind == "statements":
            told = {"kind": "statements", "statements": _Timed.take()}
        if self._rounds >= 0:
            told["wall_ns"] = now_ns - self._began[1]
            told["cpu_ns"] = cpu_ns - self._began[0]
            told["messages"] = self._messages
            with self._path.open("a") as file:
                file.write(json.dumps(told) + "\n")
        self._rounds += 1
        is_profiled = self._kind == "whole" and self._rounds > 0 and self._rounds % (SHORT + 1) > 0
        self._left = self._messages = self._size // (2 * SHORT) if is_profiled else self._size
        profile = cProfile.Profile() if is_profiled else None
        self._profile = profile
        self._began = time.thread_time_ns(), time.perf_counter_ns()
        if profile is not None:
            profile.enable()


def _functions(profile: cProfile.Profile) -> list[Any]:
    """Return of each function: its name and file, its calls, its own time, and whom it called."""
    return [
        [
            _key(entry.code),
            entry.callcount + entry.reccallcount,
            entry.inlinetime * 1e9,
            [
                [_key(one.code), one.callcount + one.reccallcount, one.inlinetime * 1e9]
                for one in entry.calls or ()
            ],
        ]
        for entry in profile.getstats()
    ]


def _key(code: CodeType | str) -> str:
    if isinstance(code, str):
        return f"C:{code}"
    return f"{code.co_filename}:{getattr(code, 'co_qualname', code.co_name)}"


def per_call_ns() -> dict[str, float]:
    """Return what cProfile adds to a call, in ns: to whom is called and to the caller.

    Of Python functions (`py_in`, `py_out`) and of those in C (`c_in`, `c_out`).
    """

    def nothing() -> None:
        pass

    found = {}
    for kind, called in (("py", nothing), ("c", iter(()).__length_hint__)):
        plain, inside, outside = [], [], []
        for _ in range(_TRIES):
            plain.append(_loop_ns(called) / _LOOPS)
            profile = cProfile.Profile()
            profile.runcall(_loop_ns, called)
            entries = {_key(one.code): one for one in profile.getstats()}
            mine = next(key for key in entries if key.endswith("_loop_ns"))
            theirs = max(entries, key=lambda key, entries=entries: entries[key].callcount)
            inside.append(entries[theirs].inlinetime * 1e9 / _LOOPS)
            outside.append(entries[mine].inlinetime * 1e9 / _LOOPS)
        # The least of many short ones: nobody else had the processor meanwhile.
        found[f"{kind}_in"] = min(inside)
        found[f"{kind}_out"] = max(min(outside) - min(plain), 0.0)
    return found


_LOOPS, _TRIES = 1_000, 50


def _loop_ns(called: Any) -> int:
    began_ns = time.thread_time_ns()
    for _ in range(_LOOPS):
        called()
    return time.thread_time_ns() - began_ns


# -- statement by statement -------------------------------------------------------------------------


FLUSH = "fdatasync"
LONG_NS, LONG = 500_000, ", those over 0.5 ms"  # a COMMIT that long copies the log into the file


class _Timed(sqlite3.Connection):
    """Be a connection that adds up the processor time of its statements.

    Of this thread's processor, and not the clock on the wall: others may be running, too. (cProfile
    itself cannot use it. With half a microsecond for each look it would slow down all the rest.)
    """

    clock_ns: ClassVar[int] = 0  # of looking at the clock twice

    total_ns: ClassVar[Counter[str]] = Counter()
    calls: ClassVar[Counter[str]] = Counter()

    def execute(self, *args: Any) -> sqlite3.Cursor:
        began_ns = time.thread_time_ns()
        try:
            return super().execute(*args)
        finally:
            self.add(args[0], time.thread_time_ns() - began_ns)

    @classmethod
    def add(cls, text: str, took_ns: int) -> None:
        took_ns -= cls.clock_ns
        if took_ns >= LONG_NS:
            text += LONG
        cls.total_ns[text] += took_ns
        cls.calls[text] += 1

    @classmethod
    def take(cls) -> list[tuple[str, int, int]]:
        found = [(text, cls.calls[text], took_ns) for text, took_ns in cls.total_ns.items()]
        cls.total_ns.clear()
        cls.calls.clear()
        return found


def time_statements() -> None:
    """Let every connection that this process opens from now on time its statements, and each flush."""
    looks = [time.thread_time_ns() for _ in range(1000)]
    _Timed.clock_ns = min(after - before for before, after in itertools.pairwise(looks))
    sqlite3.connect = functools.partial(sqlite3.connect, factory=_Timed)
    flush = os.fdatasync

    def timed(descriptor: int) -> None:
        began_ns = time.thread_time_ns()
        flush(descriptor)
        _Timed.add(FLUSH, time.thread_time_ns() - began_ns)

    os.fdatasync = timed
