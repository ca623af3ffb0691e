"""Let the n-th call to the disk fail, for every n, every kind of call and every way to fail.

One run is a short life of a queue in one real process: publish, claim, settle, publish again. One call
of it fails, once, or from then on until "the disk is mended". Then the same process has to go on, and
another one looks at what is there:

* what was acknowledged is there, whole, and what was settled is done;
* what was refused was refused with an error of ours that says which file and what to do;
* the file is in order, and everything in it can be run to its end.

Runs are forked from one process that has the library of `tests/faults/inject.c` in it and never opens
a queue itself, so that a run costs milliseconds.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import shutil
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlqueue_transport import NewMessage, Outcome, Settlement, Store
from sqlqueue_transport.errors import Unavailable
from tests.faults.injecting import SHORT, Call, File, Injector
from tests.support import kill, read_line, run_python

_EVER = 2**62
_MOST_TRIES = 20
_SAY_EVERY_S = 3.0
# The ways to fail of each kind of call, by name: with which errno, and how many calls in a row.
_WAYS = {
    Call.WRITE: {
        "EIO once": (errno.EIO, 1),
        "EIO": (errno.EIO, _EVER),
        "ENOSPC": (errno.ENOSPC, _EVER),
        "short": (SHORT, 1),
    },
    Call.SYNC: {"EIO once": (errno.EIO, 1), "EIO": (errno.EIO, _EVER)},
    Call.TRUNCATE: {"EIO once": (errno.EIO, 1), "EIO": (errno.EIO, _EVER)},
    Call.READ: {"EIO once": (errno.EIO, 1), "EIO": (errno.EIO, _EVER)},
    Call.OPEN: {"EIO once": (errno.EIO, 1), "EMFILE": (errno.EMFILE, 3)},
    Call.MAP: {"ENOMEM once": (errno.ENOMEM, 1)},
    Call.ALLOCATE: {"ENOSPC once": (errno.ENOSPC, 1), "ENOSPC": (errno.ENOSPC, _EVER)},
    Call.UNLINK: {"EIO once": (errno.EIO, 1)},
}


@dataclass(frozen=True)
class _Fault:
    """Be the `number`-th call of a kind that fails; `is_new`: of a queue that is not there yet."""

    call: Call
    way: str
    number: int
    is_new: bool

    def __str__(self) -> str:
        queue = "a new queue" if self.is_new else "a queue"
        return f"{self.call.name} number {self.number} of {queue}: {self.way}"


def prove(
    directory: Path, *, faults: int, seed: int, say: Callable[[str], object] = print
) -> list[str]:
    """Run `faults` faults in `directory` and return the figures.

    Each call of the program fails in each way; with fewer faults than that, those are drawn by lot, and
    with more, other programs follow. Raises AssertionError with the fault, the program and the seed.
    """
    injector = Injector(directory / "queue", directory / "control")
    process = run_python(
        "import sys; from tests.proofs.faults import drive; drive(*sys.argv[1:])",
        *(directory, faults, seed),
        env=injector.environment,
        stderr=None,
    )
    began_s = said_s = time.monotonic()
    done = 0
    figures: Counter[str] = Counter()
    try:
        while done < faults:
            told = json.loads(read_line(process, deadline_s=60))
            done += 1
            assert not told["problem"], (
                f"{told['fault']}, seed {seed}, program {told['program']}: {told['problem']}"
            )
            figures.update(told["figures"])
            if time.monotonic() - said_s > _SAY_EVERY_S:
                said_s = time.monotonic()
                say(f"faults: {done} of {faults}")
    finally:
        kill(process)
    line = (
        f"{faults:,} faults in {time.monotonic() - began_s:.0f} s, {figures['met']:,} met:"
        f" {figures['acknowledged']:,} publishes acknowledged, 0 lost;"
        f" {figures['refused']:,} calls refused, each with a clear error;"
        f" {figures['settled']:,} settled, 0 undone; every file in order and run to its end"
    )
    return [line]


# -- in the process with the library ------------------------------------------------------------------


def drive(where: str, faults: str, seed: str) -> None:
    """Run faults until told to stop, and print a line of JSON about each."""
    directory = Path(where)
    runs = _Runs(directory, int(seed))
    for fault, program in itertools.islice(runs.chosen(int(faults)), int(faults)):
        try:
            figures, problem = runs.run(fault, program), ""
        except AssertionError as error:
            figures, problem = {}, str(error)
        told = {"fault": str(fault), "program": program, "figures": figures, "problem": problem}
        print(json.dumps(told), flush=True)
        if problem:
            sys.exit(1)


class _Runs:
    def __init__(self, directory: Path, seed: int) -> None:
        self._directory = directory / "queue"
        self._random = random.Random(seed)
        self._injector = Injector(self._directory, directory / "control")
        self._template = directory / "template"
        self._template.mkdir(mode=0o700)
        self._in_child(lambda: _live(self._template / "queue.db", 0, lambda _: None, lambda: None))

    def chosen(self, wanted: int) -> Iterator[tuple[_Fault, int]]:
        """Yield faults with the number of the program that meets them."""
        program = 0
        while True:
            everything = [
                _Fault(call, way, number, is_new)
                for is_new in (False, True)
                for call, ways in _WAYS.items()
                for number in range(1, self._calls(call, program, is_new=is_new) + 1)
                for way in ways
            ]
            if not program and wanted < len(everything):
                everything = self._random.sample(everything, wanted)
            yield from ((fault, program) for fault in everything)
            program += 1

    def _calls(self, call: Call, program: int, *, is_new: bool) -> int:
        """Count the calls of a kind in a run in which nothing fails."""
        self._prepare(is_new=is_new)
        self._injector.fail(call, File.ALL, error=errno.EIO, first=_EVER)
        self._in_child(lambda: _live(self._path, program, lambda _: None, self._injector.mend))
        return self._injector.seen

    @property
    def _path(self) -> Path:
        return self._directory / "queue.db"

    def _prepare(self, *, is_new: bool) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)
        if is_new:
            self._directory.mkdir(mode=0o700)
        else:
            bells = shutil.ignore_patterns("wake.*")  # a FIFO cannot be copied
            shutil.copytree(self._template, self._directory, ignore=bells)

    def run(self, fault: _Fault, program: int) -> dict[str, int]:
        """Run one fault and look at what is there; return figures. Raises AssertionError."""
        self._prepare(is_new=fault.is_new)
        code, times = _WAYS[fault.call][fault.way]
        self._injector.fail(fault.call, File.ALL, error=code, first=fault.number, count=times)
        acts: list[dict[str, Any]] = []
        # By random choice it is a kill that ends the fault, and not the process that goes on.
        goes_on = self._random.random() < 0.8
        mended = self._injector.mend if goes_on else lambda: os._exit(0)
        # What it did comes line by line: it may be killed.
        self._in_child(lambda: _live(self._path, program, _print, mended), acts)
        self._injector.mend()
        published = {act["id"]: act["body"] for act in acts if act["did"] == "published"}
        settled = {act["id"] for act in acts if act["did"] == "settled"}
        if published or not fault.is_new or self._path.exists():
            self._in_child(lambda: _look(self._path, published, settled))
        return {
            "met": int(self._injector.failed > 0),
            "acknowledged": len(published),
            "settled": len(settled),
            "refused": sum(act["did"] == "refused" for act in acts),
        }

    def _in_child(
        self, work: Callable[[], object], acts: list[dict[str, Any]] | None = None
    ) -> None:
        """Run `work` in a forked child, and take what it prints. Raises AssertionError."""
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            code = 1
            try:
                os.dup2(writing, 1)
                os.close(reading)
                work()
                code = 0
            except BaseException:  # noqa: BLE001 - whatever it is, it is told
                _print({"did": "raised", "what": traceback.format_exc()})
            finally:
                os._exit(code)
        os.close(writing)
        with os.fdopen(reading) as lines:
            found = [json.loads(line) for line in lines]
        _, status = os.waitpid(pid, 0)
        raised = [act["what"] for act in found if act["did"] == "raised"]
        assert not raised, raised[0]
        assert os.waitstatus_to_exitcode(status) == 0, f"ended with status {status}"
        if acts is not None:
            acts += found


def _print(act: dict[str, Any]) -> None:
    os.write(1, json.dumps(act).encode() + b"\n")


def _live(
    path: Path,
    program: int,
    tell: Callable[[dict[str, Any]], object],
    mended: Callable[[], object],
) -> None:
    """Be the short life of a queue: everything is tried once, then `mended`, then until it succeeds."""
    drawn = random.Random(program)
    bodies = [
        f"{number}:".encode() + b"x" * drawn.choice((10, 3000, 40_000)) for number in range(6)
    ]

    def attempt(what: Callable[[], Any], *, tries: int) -> Any:
        for left in range(tries - 1, -1, -1):
            try:
                return what()
            except Unavailable as error:
                refusal = error
            # A text that does not say where helps nobody.
            assert str(path.parent) in str(refusal), f"this error names no file: {refusal!r}"
            tell({"did": "refused", "what": str(refusal)})
            assert left or tries == 1, f"still refused after the disk was mended: {refusal!r}"
        return None

    def publish(store: Store, body: bytes, *, tries: int) -> None:
        message = NewMessage(body, "q", task="t")
        answers = attempt(lambda: store.publish([message]), tries=tries)
        if answers:
            tell({"did": "published", "id": answers[0].message_id, "body": body.decode()})

    def work(store: Store, *, tries: int) -> None:
        claim = attempt(lambda: store.claim(["q"], 2, lease_s=3600), tries=tries)
        for one in claim.deliveries if claim else ():
            done = [Settlement(one.message_id, one.delivery, Outcome.done())]
            refused = attempt(lambda done=done: store.settle(done), tries=tries)
            if refused == []:
                tell({"did": "settled", "id": one.message_id})

    store = attempt(lambda: Store(path), tries=1)
    if store is not None:
        for body in bodies[:4]:
            publish(store, body, tries=1)
        work(store, tries=1)
        attempt(store.database.empty_log, tries=1)
        publish(store, bodies[4], tries=1)
        attempt(store.consumers.sweep, tries=1)
    mended()
    if store is None:
        store = attempt(lambda: Store(path), tries=_MOST_TRIES)
    publish(store, bodies[5], tries=_MOST_TRIES)
    work(store, tries=_MOST_TRIES)
    store.close()


def _look(path: Path, published: dict[int, str], settled: set[int]) -> None:
    """Be another process that finds what the first has left. Raises AssertionError."""
    store = Store(path)
    store.consumers.register(name="looker", kind="worker")
    store.consumers.sweep_all()

    def rows() -> dict[int, tuple[str, int]]:
        found = store.database.read(
            lambda c: c.execute(
                "SELECT id, coalesce(message.body, body.content), state FROM message"
                " LEFT JOIN body ON body.message_id = message.id"
            ).fetchall()
        )
        return {one: (bytes(body).decode(), state) for one, body, state in found}

    there = rows()
    lost = published.keys() - there.keys()
    assert not lost, f"acknowledged and lost: {lost}"
    other = [one for one, body in published.items() if there[one][0] != body]
    assert not other, f"acknowledged, and something else is there: {other}"
    while deliveries := store.claim(["q"], 100, lease_s=60).deliveries:
        again = settled & {one.message_id for one in deliveries}
        assert not again, f"settled and run again: {again}"
        done = [Settlement(one.message_id, one.delivery, Outcome.done()) for one in deliveries]
        assert store.settle(done) == []
    assert {state for _, state in rows().values()} <= {_done_state()}, rows()
    assert list(store.reading.damage(full=True)) == []
    assert store.reading.broken_invariants(full=True) == {}
    store.close()


def _done_state() -> Any:
    from sqlqueue_transport.lifecycle import State

    return State.DONE.value
