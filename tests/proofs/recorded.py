"""What is recorded for the power cuts: small programs that use a queue and say what they were told.

`python -m tests.proofs.recorded PROGRAM ARGUMENT…`, in the directory of the queue. A note is written
*before* something is asked for (it may be in the file from then on) and *after* it returned (from
then on it is promised). A job's id is its token, which says what its body is.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from sqlqueue_transport import Fault, NewMessage, Outcome, Settlement, Store, pruning
from sqlqueue_transport.backup import back_up
from sqlqueue_transport.lifecycle import Event, State
from sqlqueue_transport.messages import Delivery, TickAnswer, TickOf
from sqlqueue_transport.pruning import Policy
from sqlqueue_transport.recounting import recount
from tests.proofs import broken
from tests.proofs.recording import note

QUEUE = "default"
DATABASE = Path("queue.db")
FAULT = Fault("ValueError", "no such file")
SMALL, MIDDLE, LARGE = 20, 9_000, 120_000
IDLE_S = 15


def body_of(token: str) -> bytes:
    """Return the body that belongs to a token: its own text again and again, as long as it says.

    Those of an application are calls with the token as the only argument.
    """
    if token.startswith("app-"):
        nothing = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
        return json.dumps([[token], {}, nothing], separators=(",", ":")).encode()
    size = int(token.rpartition("-")[2])
    return (f"{token}|".encode() * (size // len(token) + 1))[:size]


def message(token: str, *, queue: str = QUEUE, unique: bool = False) -> NewMessage:
    """Make the message of a token."""
    return NewMessage(
        body_of(token), queue, job_id=token, task="t", unique_key=token if unique else None
    )


def publish(store: Store, tokens: list[str], *, durable: bool = True, unique: bool = False) -> None:
    """Publish the messages of some tokens in one transaction."""
    note("publishing", tokens=tokens)
    store.publish([message(token, unique=unique) for token in tokens], durable=durable)
    note("published", tokens=tokens, durable=durable)


# -- programs -----------------------------------------------------------------------------------------


def publisher(name: str, count: int) -> None:
    """Publish single jobs, small and large, batches, jobs of an own id, and from two threads."""
    store, rng = Store(DATABASE), random.Random(name)
    numbers = itertools.count()

    def token(size: int) -> str:
        return f"{name}-{next(numbers)}-{size}"

    def some() -> None:
        for _ in range(3):
            publish(store, [token(SMALL)])

    for _ in range(count):
        how = rng.choice(("small", "small", "middle", "large", "batch", "own id", "threads", "lax"))
        if how == "batch":
            publish(store, [token(rng.choice((SMALL, MIDDLE))) for _ in range(rng.randint(2, 8))])
        elif how == "own id":
            one = token(SMALL)
            publish(store, [one], unique=True)
            publish(store, [one], unique=True)
        elif how == "threads":
            threads = [threading.Thread(target=some) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        else:
            size = {"small": SMALL, "middle": MIDDLE, "large": LARGE, "lax": SMALL}[how]
            publish(store, [token(size)], durable=how != "lax")
    os._exit(0)  # its log and shared memory stay as they are


def worker(name: str, count: int, durability: str) -> None:
    """Claim and settle: done, a retry now and then, seldom a dead letter; alone or with a claim.

    End after `count`, or when nothing has come for a while: others were faster.
    """
    store, rng = Store(DATABASE), random.Random(name)
    store.consumers.register(name=name, kind="worker")
    waiting: list[tuple[Delivery, str]] = []
    settled, last_s = 0, time.monotonic()
    while settled < count and time.monotonic() - last_s < IDLE_S:
        settlements = [Settlement(d.message_id, d.delivery, _outcome(d, to)) for d, to in waiting]
        for delivery, to in waiting:
            note("settling", token=delivery.job_id, to=to)
        durable = durability == "full"
        if rng.random() < 0.5:
            claim = store.claim(
                [QUEUE], rng.choice((1, 1, 4)), lease_s=60, settlements=settlements, durable=durable
            )
            refused, deliveries = claim.refused, claim.deliveries
        else:
            refused = store.settle(settlements, durable=durable) if settlements else []
            deliveries = store.claim([QUEUE], rng.choice((1, 1, 4)), lease_s=60).deliveries
        assert refused == []
        for delivery, to in waiting:
            note("settled", token=delivery.job_id, to=to, durable=durable)
        settled += len(waiting)
        waiting = [
            (d, rng.choice(("done", "done", "done", "done", "retry", "dead"))) for d in deliveries
        ]
        if waiting:
            last_s = time.monotonic()
        else:
            time.sleep(0.001)  # the publishers have not come so far
    os._exit(0)


def _outcome(delivery: Delivery, to: str) -> Outcome:
    if to == "retry":
        return Outcome.retry(FAULT, in_s=0)
    if to == "dead":
        return Outcome.dead(FAULT)
    return Outcome.done(f'"{delivery.job_id}"')


def creator(name: str) -> None:
    """Make the file, if nobody has yet, publish and close."""
    store = Store(DATABASE)
    for number in range(3):
        publish(store, [f"{name}-{number}-{SMALL}"])
    store.close()
    store = Store(DATABASE)
    publish(store, [f"{name}-3-{MIDDLE}"])
    store.close()


def keeper(name: str, rounds: int) -> None:
    """Open, publish, empty the log, claim, settle and close; the last to close deletes the log.

    Now and then a reader was there first, and made the log.
    """
    for number in range(rounds):
        looking = Store(DATABASE, read_only=True) if number % 3 == 1 else None
        store = Store(DATABASE)
        tokens = [f"{name}-{number}-{i}-{size}" for i, size in enumerate((SMALL, MIDDLE))]
        publish(store, tokens[:1])
        if number % 2:
            store.database.empty_log()
        publish(store, tokens[1:])
        claim = store.claim([QUEUE], 1, lease_s=60)
        for delivery in claim.deliveries:
            note("settling", token=delivery.job_id, to="done")
            durable = number % 3 == 0
            store.settle(
                [Settlement(delivery.message_id, delivery.delivery, _outcome(delivery, "done"))],
                durable=durable,
            )
            note("settled", token=delivery.job_id, to="done", durable=durable)
        store.close()
        if looking is not None:
            looking.close()


def saver(count: int) -> None:
    """Back the file up, under new names and over an older backup."""
    for number in range(count):
        name = f"copy-{number}.db" if number % 2 else "newest.db"
        note("backing up", name=name)
        back_up(Path.cwd() / DATABASE, Path.cwd() / name, force=name == "newest.db")
        note("backed up", name=name)


def pruner() -> None:
    """Delete what has ended and what waits, recount, and give pages back to the filesystem."""
    pruning._FREE_PAGES = 50  # a small file, too, has something to give back
    store = Store(DATABASE)
    ended = [State.DONE, State.PERMANENTLY_FAILED]
    note("deleting", ended=True, queue=None)
    store.deleting.prune(older_than_s=0, states=ended, actor="test")
    note("deleting", ended=True, queue="other")
    store.deleting.purge("other", actor="test")
    recount(store.database)
    give_up_s = time.monotonic() + 60
    freed = 0
    while not freed and time.monotonic() < give_up_s:
        # One store remembers when its next turn is; a new one asks again at once.
        freed += store.housekeeping.turn(Policy(0, 0, 0)).removed.get("pages", 0)
    assert freed, "no page was given back"
    store.close()


def beat(name: str, count: int) -> None:
    """Take ticks, each with two jobs, at the same time as another beat does."""
    store = Store(DATABASE)
    for due in range(1, count + 1):
        tokens = [f"entry-{due}-{i}-{SMALL}" for i in range(2)]
        note("publishing", tokens=tokens, tick=due)
        tick = TickOf("entry", due * 1000, name)
        answer = store.publish_tick([message(token) for token in tokens], tick)
        if answer is TickAnswer.TAKEN:
            note("published", tokens=tokens, durable=True)
    store.close()


def mortals(name: str, count: int) -> None:
    """Publish and settle in one process after the other, each killed at one of its writes.

    The later ones live longer, so that all of them together come far.
    """
    rng = random.Random(name)
    for number in range(count):
        pid = os.fork()
        if not pid:
            ctypes.CDLL(None).recorder_die_after(rng.randint(1, 100 * number + 100))
            _live(f"{name}{number}")
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def _live(name: str) -> NoReturn:
    """Use the queue until death."""
    store = Store(DATABASE)
    for number in itertools.count():
        publish(store, [f"{name}-{number}{i}-{SMALL}" for i in range(2)])
        publish(store, [f"{name}-{number}3-{MIDDLE}"])
        (delivery,) = store.claim([QUEUE], 1, lease_s=60).deliveries
        note("settling", token=delivery.job_id, to="done")
        done = _outcome(delivery, "done")
        store.settle([Settlement(delivery.message_id, delivery.delivery, done)], durable=True)
        note("settled", token=delivery.job_id, to="done", durable=True)


def forking(name: str, count: int) -> None:
    """Publish in two threads while a third forks, for which all is closed and opened again."""
    store = Store(DATABASE)
    numbers = itertools.count()
    is_over = threading.Event()

    def publishing() -> None:
        while not is_over.is_set():
            publish(store, [f"{name}-{next(numbers)}-{SMALL}"])

    threads = [threading.Thread(target=publishing) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(count):
        pid = os.fork()
        if not pid:
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    is_over.set()
    for thread in threads:
        thread.join()


def operator() -> None:
    """Do what operators do, all of it promised once it has returned."""
    store = Store(DATABASE)
    found = store.database.read(
        lambda c: c.execute("SELECT id, job_id, state FROM message").fetchall()
    )
    done = [row for row in found if row[2] == "done"]
    pending = [row for row in found if row[2] == "pending"]
    plan = [(Event.REQUEUE, row, "pending") for row in done[:8]]
    plan += [(Event.CANCEL, row, "cancelled") for row in pending[:8]]
    plan += [(Event.FAIL, row, "permanently_failed") for row in pending[8:16]]
    random.Random(0).shuffle(plan)
    for number, (event, (message_id, token, state), after) in enumerate(plan):
        note("acting", token=token)
        query = f"SELECT state FROM message WHERE job_id = '{token}'"
        with _changing(query, after, before=state):
            store.acting.act(event, [(message_id, State(state))], actor="test")
        is_paused = int(number % 2 == 0)
        change = store.pausing.pause if is_paused else store.pausing.resume
        with _changing(
            "SELECT paused_at_ms > 0 FROM queue WHERE name = 'other'", is_paused or None
        ):
            change("other", actor="test")
        with _changing(f"SELECT description FROM schedule WHERE entry = 'e{number}'", "every 5 s"):
            store.schedules.add(
                f"e{number}",
                description="every 5 s",
                target="t",
                definition="{}",
                next_due_ms=None,
                actor="test",
            )
    store.close()


@contextlib.contextmanager
def _changing(query: str, value: object, *, before: object = None) -> Iterator[None]:
    """Note what a query may find from now on, and must find once the block is over."""
    note("changing", query=query, value=value, before=before)
    yield
    note("changed", query=query, value=value)


def caller(count: int) -> None:
    """Call a task of an application, one by one and many at once."""
    from tests.proofs.recorded_app import echo

    for number in range(count):
        tokens = [f"app-{number}{i}-{SMALL}" for i in range(3)]
        note("publishing", tokens=tokens[:1])
        echo.apply_async((tokens[0],), job_id=tokens[0])
        note("published", tokens=tokens[:1], durable=True)
        note("publishing", tokens=tokens[1:])
        echo.map(tokens[1:], job_id=str)
        note("published", tokens=tokens[1:], durable=True)


def served(count: int) -> None:
    """Become a worker of that application, with two children, for so many jobs."""
    command = [sys.executable, "-m", "sqlqueue", "-A", "tests.proofs.recorded_app", "worker"]
    os.execv(sys.executable, [*command, "-c", "2", "--max-jobs", str(count)])


PROGRAMS = {
    one.__name__: one
    for one in (
        publisher,
        worker,
        creator,
        keeper,
        saver,
        pruner,
        beat,
        mortals,
        forking,
        operator,
        caller,
        served,
    )
}

if __name__ == "__main__":
    broken.apply(os.environ.get("BREAK", ""))
    PROGRAMS[sys.argv[1]](*(int(a) if a.isdigit() else a for a in sys.argv[2:]))
