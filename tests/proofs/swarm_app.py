"""The application of the proofs that kill and stop: jobs that leave a trace, and who publishes them.

Run as a program it is a publisher: `python -m tests.proofs.swarm_app NAME RATE`. Whatever is to be
known of a process after it was killed goes to a file in one write of one line, which a kill does
not tear: what a job did to `trace.txt`, what is about to be published to `attempted.txt`, and what
was acknowledged to `acknowledged.txt`.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from sqlqueue import SqlQueue
from sqlqueue.backend import SqliteBackend, Taken
from sqlqueue.task import Signature
from sqlqueue_transport.errors import Busy
from sqlqueue_transport.messages import Outcome

DIRECTORY = Path(os.environ.get("PROOF_DIRECTORY", "."))
# How long jobs take on average; most are much shorter, so that the store is busy, too.
MEAN_MS = int(os.environ.get("PROOF_MEAN_MS", "100"))
KINDS = {"short": 70.0, "retried": 12.0, "later": 8.0, "threads": 9.7}
POISON = float(os.environ.get("PROOF_POISON", "0.3"))  # of a hundred jobs, so many kill
POISON_ATTEMPTS = 3
# Of a hundred publishes, so many are of a crowd: jobs so short that workers take them in batches.
CROWDS = float(os.environ.get("PROOF_CROWDS", "0"))
CROWD = 40
# Some take longer: meanwhile the others of their batch have ended, which is noted and not settled.
CROWD_KINDS = {"quick": 93.0, "slowish": 5.0, "quickretried": 2.0}
SLOWISH_MS = (10, 45)
TICK_MS = 500

app = SqlQueue("swarm", broker_url=f"sqlqueue:///{DIRECTORY}/queue.db")


def append(name: str, *lines: str) -> None:
    """Append whole lines to a file of the directory in one write."""
    descriptor = os.open(DIRECTORY / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, "".join(f"{line}\n" for line in lines).encode())
    finally:
        os.close(descriptor)


def trace(event: str, job: str, delivery: int) -> None:
    """Tell what happens to a delivery, where and when."""
    now_s = time.monotonic()
    append("trace.txt", f"{event} {job} {delivery} {os.getpid()} {os.getppid()} {now_s:.6f}")


# A start is counted from its note on. The line before it shows every start that may be counted, the
# line of the task every one that must be.
_note_start = SqliteBackend.note_start


def _trace_and_note_start(
    backend: SqliteBackend, place: int, taken: Taken, time_limit_s: float, max_attempts: int
) -> None:
    job_id = str(taken.headers["id"])
    if not job_id.startswith(tuple(CROWD_KINDS)) and random.random() < 0.1:
        time.sleep(0.05)  # or hardly a kill would ever come between claim and start
    trace("noting", job_id, taken.delivery)
    _note_start(backend, place, taken, time_limit_s, max_attempts)


# From the line on it is certain that the end was noted.
_note_ended = SqliteBackend.note_ended


def _note_ended_and_trace(
    backend: SqliteBackend, place: int, number: int, taken: Taken, outcome: Outcome
) -> bool:
    is_noted = _note_ended(backend, place, number, taken, outcome)
    if is_noted:
        trace("ended", str(taken.headers["id"]), taken.delivery)
    return is_noted


if "PROOF_DIRECTORY" in os.environ:  # in a process of a proof, and not where one is only imported
    SqliteBackend.note_start = _trace_and_note_start  # type: ignore[method-assign]
    SqliteBackend.note_ended = _note_ended_and_trace  # type: ignore[method-assign]


@app.task(name="short", bind=True)
def short(self, seconds: float) -> int:
    """Take a moment, and return which delivery this was."""
    trace("start", self.request.id, self.request.delivery)
    time.sleep(seconds)
    trace("end", self.request.id, self.request.delivery)
    return self.request.delivery


@app.task(name="retried", bind=True, retry_backoff=0.1, max_attempts=5)
def retried(self, seconds: float) -> int:
    """Fail in the first attempt, whatever became of it."""
    if self.request.attempt == 1:
        trace("start", self.request.id, self.request.delivery)
        time.sleep(seconds)
        trace("fail", self.request.id, self.request.delivery)
        raise OSError("failed, as the first attempt always does")
    return short.function(self, seconds)


@app.task(name="poison", bind=True, max_attempts=POISON_ATTEMPTS)
def poison(self, seconds: float) -> None:
    """Kill the process that runs it, every time."""
    trace("start", self.request.id, self.request.delivery)
    time.sleep(seconds)
    trace("suicide", self.request.id, self.request.delivery)
    os.kill(os.getpid(), signal.SIGKILL)


def _stop_here(_: object) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(0.1)  # another thread may take the signal, and this one run on for a moment


@app.task(name="stops_in_the_lock", bind=True)
def stops_in_the_lock(self, seconds: float) -> int:
    """Stop this very process in a transaction, which keeps everybody from writing; once."""
    trace("start", self.request.id, self.request.delivery)
    if self.request.attempt == 1:
        backend = app.backend
        assert isinstance(backend, SqliteBackend)
        backend.store.database.write(_stop_here)
    trace("end", self.request.id, self.request.delivery)
    return self.request.delivery


@app.task(name="tock")
def tock(due_ms: int = 0) -> int:
    """Be what a tick enqueues."""
    return due_ms


@app.producer(name="ticks", every=TICK_MS / 1000, catch_up="all")
def ticks(tick):
    """Yield a call that names its tick."""
    yield Signature("tock", (tick.due_ms,), {}, {"queue": "ticks"})


app.periodic(
    "plain",
    Signature("tock", (), {}, {"queue": "plain"}),
    every=TICK_MS / 1000,
    catch_up="all",
)


def call_of(job_id: str) -> Signature:
    """Return the call a job id stands for: its kind, its length in milliseconds, and whose it is."""
    kind, length_ms, *_ = job_id.split("-")
    seconds = int(length_ms) / 1000
    if kind == "threads":
        return Signature("short", (seconds,), {}, {"job_id": job_id, "queue": "threads"})
    if kind in CROWD_KINDS:
        task = "retried" if kind == "quickretried" else "short"
        return Signature(task, (seconds,), {}, {"job_id": job_id, "queue": "crowd"})
    if kind == "later":
        return Signature(
            "short", (seconds,), {}, {"job_id": job_id, "countdown": min(5 * seconds, 3.0)}
        )
    return Signature(kind, (seconds,), {}, {"job_id": job_id})


def send(ids: list[str]) -> None:
    """Publish jobs, and note their ids before and after. While the file is busy, try again."""
    append("attempted.txt", *ids)
    while True:
        try:
            if len(ids) == 1:
                call = call_of(ids[0])
                app.send_task(call.task, call.args, **call.options)
            else:
                app.publish_many(map(call_of, ids))
        except Busy:  # with ids of our own, nothing is stored twice
            continue
        break
    append("acknowledged.txt", *ids)


def publish(name: str, rate: float) -> None:
    """Publish `rate` jobs a second until SIGTERM; first what a killed one of this name left open."""
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    chance = random.Random()
    attempted, acknowledged = (
        {line for line in read(file) if line.split("-")[2] == name}
        for file in ("attempted.txt", "acknowledged.txt")
    )
    life, count = os.getpid(), 0

    if attempted - acknowledged:
        send(sorted(attempted - acknowledged))
    began_s = time.monotonic()
    while not told:
        size = chance.choice((1, 1, 1, 1, 12))
        ids = []
        for _ in range(size):
            count += 1
            (kind,) = chance.choices([*KINDS, "poison"], [*KINDS.values(), POISON])
            mean_ms = chance.choice((MEAN_MS / 20, 2 * MEAN_MS))
            length_ms = min(round(chance.expovariate(1 / mean_ms)), 6 * MEAN_MS)
            ids.append(f"{kind}-{length_ms}-{name}-{life}-{count}")
        send(ids)
        if 100 * chance.random() < CROWDS:
            send(crowd(chance, name, life, count))
        time.sleep(max(began_s + count / rate - time.monotonic(), 0.0))
    app.close()


def crowd(chance: random.Random, name: str, life: int, number: int) -> list[str]:
    """Return the ids of many jobs that take next to nothing, but for a few."""
    ids = []
    for kind in chance.choices([*CROWD_KINDS], [*CROWD_KINDS.values()], k=CROWD):
        length_ms = chance.randint(*SLOWISH_MS) if kind == "slowish" else 0
        ids.append(f"{kind}-{length_ms}-{name}-{life}-{number}-{len(ids)}")
    return ids


def read(name: str) -> list[str]:
    """Return the whole lines of a file of the directory; none when there is no such file yet."""
    path = DIRECTORY / name
    return path.read_text().split("\n")[:-1] if path.exists() else []


if __name__ == "__main__":
    publish(sys.argv[1], float(sys.argv[2]))
