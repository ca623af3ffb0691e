"""Proof: whatever is fed in ends in an error that helps, or in all that was promised.

    prove(directory, seconds=60, seed=1)

Hypothesis feeds every door an input can come through (messages by Kombu's producer and as raw rows,
calls, names, settings, URLs, consoles' addresses, the command line) with values made to hurt and with
Celery's own messages, damaged. For each: no error that is not documented, none that says nothing, no
hang; nothing that was accepted is missing, or ends without a reason; its neighbours run once. In the
end a real worker runs everything that was accepted.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import structlog
from hypothesis import HealthCheck, Phase, Verbosity
from hypothesis.errors import HypothesisWarning

from sqlqueue import log
from sqlqueue.config import set_command_line
from sqlqueue_transport import NewMessage, Store
from sqlqueue_transport.lifecycle import State
from sqlqueue_transport.reading import JobFilter
from tests.proofs import fuzz_inputs as inputs
from tests.proofs.fuzz_targets import TARGETS, Check, Corpus, Target, assert_ended, is_no_job
from tests.support import ROOT, wait_until

LONGEST_EXAMPLE_S = 20.0  # none takes a tenth of a second on an idle machine
SHRINKING_S = 20.0  # an input that failed is made smaller for so long
WORKER_S = 120.0  # for the real worker to run the corpus
_SAY_EVERY_S = 3.0

WORKER = ["worker", "-A", "fuzzapp:app", "-c", "2", "-Q", ",".join(inputs.QUEUES)]
APP = f"""
from sqlqueue import SqlQueue

app = SqlQueue("fuzzapp", broker_url="sqlqueue:///queue.db")


@app.task(name="good", bind=True)
def good(self, number):
    with open("ran.txt", "a") as file:
        file.write(f"{{number}}\\n")


@app.task(name={inputs.TASK!r}, max_attempts=1)
def captured(*args, **kwargs):
    return [args, kwargs]
"""


def prove(
    directory: Path, *, seconds: int, seed: int, say: Callable[[str], object] = print
) -> list[str]:
    """Feed every target for its share of `seconds`, then a real worker with all that was accepted.

    The worker's time comes on top, some seconds. Raises AssertionError with the input that broke a
    promise, made small; the same seed finds it again, on a machine that gets as far in the time.
    """
    corpus = Corpus()
    share_s = seconds / len(TARGETS)
    figures = []
    say(f"fuzz: seed {seed}, {share_s:.1f} s for each of {len(TARGETS)} targets")
    with _alone_in(directory):
        for target in TARGETS:
            tried = _feed(target, directory, corpus, seconds=share_s, seed=seed, say=say)
            figures.append(f"{target.name} {tried:,}")
    ran = _run_for_real(directory, corpus.accepted, say)
    return [
        f"{corpus.tried:,} inputs in {seconds} s ({', '.join(figures)})",
        f"{corpus.refused:,} refused; 0 crashes, 0 hangs, 0 lost, every neighbour run once",
        f"a real worker on {len(corpus.accepted):,} messages that were accepted: {ran}",
    ]


# -- feeding --------------------------------------------------------------------------------------------


class Hang(Exception):
    """An example took too long."""


def _feed(
    target: Target,
    directory: Path,
    corpus: Corpus,
    *,
    seconds: float,
    seed: int,
    say: Callable[[str], object],
) -> int:
    """Try examples for so long; return how many. Each round has a place of its own, and a seed."""
    until_s = time.monotonic() + seconds
    said_s, tried, number = time.monotonic(), 0, 0
    while time.monotonic() < until_s:
        place = Path(tempfile.mkdtemp(prefix=f"{target.name.replace(' ', '-')}-", dir=directory))
        os.chdir(place)
        with target.opened(place, corpus) as check:
            trial = _Trial(target.name, check, until_s, say)
            try:
                _round(target, trial, seed=seed * 1_000_003 + number)
            except Exception as error:  # noqa: BLE001 - the code under test's
                raise AssertionError(
                    f"fuzz target {target.name!r}, seed {seed}, round {number}:"
                    f" {type(trial.error).__name__}: {trial.error}\n  input: {shown(trial.failed)}"
                ) from (trial.error or error)
        tried, number = tried + trial.tried, number + 1
        if time.monotonic() - said_s > _SAY_EVERY_S:
            said_s = time.monotonic()
            say(f"fuzz: {target.name}: {tried:,} inputs")
    corpus.tried += tried
    return tried


class _Trial:
    """Try examples until the time is over, or one fails; then make that one small for some time."""

    def __init__(
        self, name: str, check: Check, until_s: float, say: Callable[[str], object]
    ) -> None:
        self.tried = 0
        self.failed: Any = None
        self.error: Exception | None = None
        self._name, self._check, self._until_s, self._say = name, check, until_s, say

    def __call__(self, example: Any) -> None:
        if time.monotonic() > self._until_s:
            return
        self.tried += 1
        try:
            with _watched(self._name, example, self._say):
                self._check(example)
        except Exception as error:
            if self.error is None:
                self._until_s = time.monotonic() + SHRINKING_S
            self.failed, self.error = example, error
            raise


def _round(target: Target, trial: _Trial, *, seed: int) -> None:
    @hypothesis.given(target.examples)
    def given(example: Any) -> None:
        trial(example)

    options = hypothesis.settings(
        max_examples=target.at_once,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,  # it cannot print some of these values; we do
        report_multiple_bugs=False,
    )
    with warnings.catch_warnings():
        # It spells its own strategies out, and finds that long.
        warnings.simplefilter("ignore", HypothesisWarning)
        hypothesis.seed(seed)(options(given))()


@contextlib.contextmanager
def _watched(name: str, example: Any, say: Callable[[str], object]) -> Iterator[None]:
    """End an example that takes too long, as far as Python code can be ended, and say which it was."""
    main = threading.get_ident()

    def end() -> None:
        say(f"fuzz: {name}: more than {LONGEST_EXAMPLE_S:g} s for {shown(example)}")
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(main), ctypes.py_object(Hang))

    timer = threading.Timer(LONGEST_EXAMPLE_S, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def shown(value: Any, *, depth: int = 0) -> str:
    """Return a value as text, also where its own repr raises; long texts are cut."""
    if depth < 6:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            of = {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
            return f"{type(value).__name__}{shown(of, depth=depth + 1)}"
        if type(value) is dict:
            pairs = (
                f"{shown(k, depth=depth + 1)}: {shown(v, depth=depth + 1)}"
                for k, v in value.items()
            )
            text = "{" + ", ".join(pairs) + "}"
            return text if len(text) < 6_000 else f"{text[:2_000]}…<{len(value)} keys>"
        if type(value) in {list, tuple}:
            return "[" + ", ".join(shown(one, depth=depth + 1) for one in value[:50]) + "]"
    if type(value) is int and value.bit_length() > 2_000:
        return f"<an integer of {value.bit_length()} bits>"
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - made to raise
        return f"<{type(value).__name__}>"
    return text if len(text) <= 300 else f"{text[:200]}…<{len(text)} characters>"


@contextlib.contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Work in a directory, without settings of this machine."""
    before, environment = Path.cwd(), dict(os.environ)
    for name in [name for name in os.environ if name.startswith("SQLQUEUE_")]:
        del os.environ[name]
    active = log._active
    try:
        os.chdir(directory)
        structlog.reset_defaults()
        log._active = None
        log.configure("debug", format="json", file=directory / "fuzz.log")
        yield
    finally:
        structlog.reset_defaults()
        log._active = active
        os.chdir(before)
        os.environ.clear()
        os.environ.update(environment)
        set_command_line({})


# -- for real -------------------------------------------------------------------------------------------


def _run_for_real(directory: Path, messages: list[NewMessage], say: Callable[[str], object]) -> str:
    """Publish it all among good jobs, let a real worker run it, and look what became of each."""
    place = Path(tempfile.mkdtemp(prefix="worker-", dir=directory))
    (place / "fuzzapp.py").write_text(APP)
    store = Store(place / "queue.db")
    try:
        answers = store.publish([dataclasses.replace(one, unique_key=None) for one in messages])
        assert all(one.stored for one in answers)
        stored = {one.message_id: new for one, new in zip(answers, messages, strict=True)}
        good = _publish_good(store, len(messages) // 10 + 5)
        log = place / "worker.log"
        with log.open("wb") as output:
            worker = subprocess.Popen(
                [sys.executable, "-m", "sqlqueue", *WORKER],
                cwd=place,
                env={**_plain_environment(), "PYTHONPATH": f"{ROOT}:{place}"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            _wait_until_run(store, worker, log)
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(timeout=60) == 0, log.read_text()[-3_000:]
        finally:
            if worker.poll() is None:
                worker.kill()
                worker.wait(timeout=30)
        return _told(store, stored, good, place, log)
    finally:
        store.close()


def _plain_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if "SQLQUEUE" not in name}


def _publish_good(store: Store, count: int) -> dict[int, int]:
    """Publish good jobs to all queues; return which number each message has."""
    from sqlqueue import envelope

    found = {}
    for number in range(count):
        call = envelope.build("good", (number,), {}, job_id=f"good-{number}")
        message = NewMessage(
            call.body.encode(),
            inputs.QUEUES[0],
            content_type=envelope.CONTENT_TYPE,
            content_encoding=envelope.CONTENT_ENCODING,
            headers=json.dumps(call.headers),
            job_id=f"good-{number}",
            task="good",
        )
        found[store.publish([message])[0].message_id] = number
    return found


def _wait_until_run(store: Store, worker: subprocess.Popen[bytes], log: Path) -> None:
    def is_run() -> bool:
        assert worker.poll() is None, f"the worker has ended: {log.read_text()[-3_000:]}"
        states = store.reading.counts().states
        return not states.get(State.PENDING, 0) and not states.get(State.PROCESSING, 0)

    wait_until(is_run, deadline_s=WORKER_S, what="the corpus to be run", every_s=0.1)


def _told(
    store: Store, messages: dict[int, NewMessage], good: dict[int, int], place: Path, log: Path
) -> str:
    text = log.read_text()
    for event in ("child_crashed", "child_lost", "child_killed", "Traceback"):
        assert event not in text, text[text.index(event) - 500 :][:3_000]
    rows = {row.message_id: row for row in store.reading.jobs(JobFilter(), limit=1_000_000)}
    done = sum(json.loads(line)["event"] == "job_done" for line in text.splitlines())
    kept = sum(row.state is State.DONE for row in rows.values())
    missing = [one for number, one in messages.items() if number not in rows]
    gone = [one for one in missing if is_no_job(one)]
    assert kept <= done <= kept + len(gone), f"{done} done, {kept} kept, {len(gone)} no jobs"
    missing = [one for one in missing if one not in gone]
    assert not missing, f"{len(missing)} messages are missing, such as {shown(missing[0])}"
    assert set(good) <= set(rows), "neighbours are missing"
    now_ms = store.clock.wall_ms()
    counted: dict[str, int] = {}
    for message_id in messages.keys() & rows.keys():
        row = rows[message_id]
        assert_ended(row, now_ms)
        counted[row.state.value] = counted.get(row.state.value, 0) + 1
    ran = sorted(map(int, (place / "ran.txt").read_text().split()))
    assert ran == sorted(good.values()), "a neighbour did not run exactly once"
    assert all(rows[one].state is State.DONE and rows[one].attempts == 1 for one in good)
    return ", ".join(f"{count:,} {state}" for state, count in sorted(counted.items()))


__all__ = ["prove", "shown"]
