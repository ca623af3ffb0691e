"""Stop processes for longer than their leases, let them go on, and look whether the late are refused.

Five workers run jobs under leases of two seconds, one of them in threads, and one short ones in batches.
SIGSTOP hits a child, also in the middle of a batch, a supervisor, both, or a publisher; most stops last
longer than a lease, some shorter. Several are under way at once, in different workers. Now and then a process is stopped where it hurts most, inside of a
transaction, with the writer lock: a stranger's, which is let go on once `sqlqueue doctor` has named it,
and a worker's child, which its supervisor has to kill. At the end:

* each acknowledged job is there, once, and has ended,
* a job whose end was noted before its process was stopped is not delivered again,
* what was accepted of each is what its newest delivery returned; whatever an older one wanted to settle
  was refused, and logged as `lease_lost`,
* no lease was taken away before it was over, from anybody who was not dead,
* whoever was told to wait for the lock was told who holds it, and got an answer within its bound.
"""

from __future__ import annotations

import collections
import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sqlqueue_transport import Store
from sqlqueue_transport.errors import Busy
from sqlqueue_transport.writer_lock import read_holder
from tests.proofs.swarm import Swarm
from tests.support import is_running, read_line, run_python, wait_until

LEASE_S = 2.0
LOCK_LIMIT_S = 10.0  # how long a supervisor lets its child sit on the writer lock
MAX_ATTEMPTS = 5
SLACK_MS = 100  # two clocks are compared, which drift a little
WORKERS = ("w1", "w2", "w3", "wt", "wc")
PUBLISHERS = ("p1", "p2")
RATE = 6.0  # jobs a second, of each publisher
MEAN_MS = 300
CROWDS = 50  # of a hundred publishes
STOPS_A_LOCK = 25  # one in so many stops is one inside of the lock
TARGETS = {"batch": 20, "child": 30, "supervisor": 25, "both": 35, "publisher": 10}

_HELD = "SELECT id, delivery, lease_until_ms FROM message WHERE state = 'processing'"
_ATTEMPTS = """
SELECT a.message_id, a.delivery, a.outcome, a.error_type, a.ended_at_ms, m.job_id
FROM attempt AS a JOIN message AS m ON m.id = a.message_id
"""
_STRANGER = """
import os, signal, sys, time
from sqlqueue_transport import Store
def stop(_):
    print("inside", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(0.1)
Store(sys.argv[1]).database.write(stop)
print("went on", flush=True)
"""


def prove(
    directory: Path, *, stops: int, seed: int, say: Callable[[str], object] = print
) -> list[str]:
    """Stop so many times in an empty directory; return the figures.

    Takes about a second and a half a stop. Raises AssertionError for a broken promise.
    """
    swarm = Swarm(
        directory,
        seed,
        settings={
            "SQLQUEUE_VISIBILITY_TIMEOUT": str(LEASE_S),
            "PROOF_MEAN_MS": str(MEAN_MS),
            "PROOF_POISON": "0",
            "PROOF_CROWDS": str(CROWDS),
        },
    )
    stopper = Stopper(swarm, random.Random(seed))
    leases = Leases(swarm.path)
    began_s = said_s = time.monotonic()
    try:
        stopper.start_all()
        leases.start()
        while sum(stopper.stops.values()) < stops:
            assert time.monotonic() - began_s < 120 + 10 * stops, f"too slow: {stopper.told()}"
            stopper.turn()
            if time.monotonic() - said_s > 5:
                said_s = time.monotonic()
                say(f"{said_s - began_s:5.0f} s  {stopper.told()}")
        stopper.finish()
        swarm.stop(*PUBLISHERS)
        swarm.wait_drained(deadline_s=120)
        swarm.stop(*WORKERS)
        leases.stop()
        lines = judge(swarm, leases, stopper)
        swarm.check_file()
    finally:
        stopper.let_all_go_on()
        leases.stop()
        swarm.end()
    return [f"{stopper.told()} in {time.monotonic() - began_s:.0f} s", *lines]


# -- the stopper --------------------------------------------------------------------------------------


@dataclass
class Stopper:
    """Stop processes, and let them go on again, several at a time: one of each worker at most."""

    swarm: Swarm
    chance: random.Random
    stops: collections.Counter[str] = field(default_factory=collections.Counter)
    # What is to be let go on when: (when, process, whose).
    due: list[tuple[float, int, str]] = field(default_factory=list)
    free_s: dict[str, float] = field(default_factory=dict)  # from when on one may be hit again
    stopped: set[int] = field(default_factory=set)
    figures: list[str] = field(default_factory=list)
    busy_s: list[float] = field(default_factory=list)
    killed_s: list[float] = field(default_factory=list)

    def told(self) -> str:
        """Return how many of what were stopped."""
        by_kind = ", ".join(f"{count} {kind}" for kind, count in self.stops.most_common())
        return f"{sum(self.stops.values()):,} stops ({by_kind})"

    def start_all(self) -> None:
        """Start workers and publishers, and wait for the workers."""
        for name in WORKERS[:3]:
            self.swarm.start_worker(name, "-Q", "default", "-c", "2")
        self.swarm.start_worker("wt", "-Q", "threads,default", "-P", "threads", "-c", "4")
        self.swarm.start_worker("wc", "-Q", "crowd", "-c", "2")
        for name in WORKERS:
            wait_until(
                lambda name=name: self.swarm.children(name) and self.swarm.is_up(name),
                deadline_s=60,
                every_s=0.05,
                what=f"{name}: {self.swarm.log(name)}",
            )
        for name in PUBLISHERS:
            self.swarm.start_publisher(name, RATE)

    def turn(self) -> None:
        """Let go on what is due, stop another one, and wait a little."""
        if sum(self.stops.values()) % STOPS_A_LOCK == STOPS_A_LOCK // 2:
            self.finish()
            kind = "in the lock"
            if self.stops[kind] % 2:
                self.stop_a_stranger()
            else:
                self.stop_a_child_in_the_lock()
            self.stops[kind] += 1
        (target,) = self.chance.choices(list(TARGETS), list(TARGETS.values()))
        names = {"publisher": PUBLISHERS, "batch": ("wc",)}.get(target, WORKERS)
        now_s = time.monotonic()
        idle = [name for name in names if self.free_s.get(name, 0.0) <= now_s]
        if idle:
            self.stop(self.chance.choice(idle), target)
        time.sleep(self.chance.uniform(0.05, 0.3))
        self.let_go_on(time.monotonic())

    def stop(self, name: str, target: str) -> None:
        """Stop processes of one name for a while."""
        children = self.swarm.children(name) if target != "publisher" else []
        in_batch = self.swarm.find_in_batch(1.0) if target == "batch" else None
        victims = {
            "batch": [in_batch, self.swarm.running[name].pid] if in_batch else [],
            "child": [self.chance.choice(children)] if children else [],
            "supervisor": [self.swarm.running[name].pid],
            "both": [self.swarm.running[name].pid, *children],
            "publisher": [self.swarm.running[name].pid],
        }[target]
        if not victims:
            return
        now_s = time.monotonic()
        for pid in victims:
            self.signal(pid, signal.SIGSTOP)
            # Most for longer than a lease; of several, each goes on at its own time.
            self.due.append((now_s + LEASE_S * self.chance.uniform(0.4, 2.2), pid, name))
        over_s = max(at_s for at_s, _, whose in self.due if whose == name)
        self.free_s[name] = over_s + self.chance.uniform(0.0, 1.0)
        self.stops[target] += 1

    def signal(self, pid: int, number: int) -> None:
        """Send a signal to a process that may be gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        (self.stopped.add if number == signal.SIGSTOP else self.stopped.discard)(pid)

    def let_go_on(self, until_s: float) -> None:
        """Let everybody go on whose time has come."""
        for at_s, pid, _ in sorted(self.due):
            if at_s <= until_s:
                self.signal(pid, signal.SIGCONT)
        self.due = [one for one in self.due if one[0] > until_s]

    def let_all_go_on(self) -> None:
        """Let everybody go on now."""
        for pid in list(self.stopped):
            self.signal(pid, signal.SIGCONT)
        self.due.clear()

    def finish(self) -> None:
        """Let everybody go on in time."""
        while self.due:
            time.sleep(max(min(self.due)[0] - time.monotonic(), 0.0))
            self.let_go_on(time.monotonic())

    # -- inside of the lock -----------------------------------------------------------------------

    def holder(self, for_s: float = 0.5) -> int | None:
        """Return who has held the lock for so long."""
        found = read_holder(self.swarm.directory / "queue.db-run" / "writer.lock")
        if found is None or found.since_s is None or time.monotonic() - found.since_s <= for_s:
            return None
        return found.pid

    def stop_a_stranger(self) -> None:
        """Stop a process of nobody's in a transaction until `sqlqueue doctor` names it."""
        stranger = run_python(_STRANGER, self.swarm.path)
        try:
            assert read_line(stranger) == "inside"
            wait_until(lambda: self.holder() == stranger.pid, deadline_s=30, what="the stop")
            self.check_busy(stranger.pid)
            wait_until(
                lambda: self.holder(LOCK_LIMIT_S) == stranger.pid, deadline_s=60, what="the limit"
            )
            said = wait_until(
                lambda: self.doctor_names(stranger.pid),
                deadline_s=5 * LOCK_LIMIT_S,
                every_s=0.5,
                what="doctor to name the holder",
            )
            assert f"kill -CONT {stranger.pid}" in said, said
            stranger.send_signal(signal.SIGCONT)
            assert read_line(stranger) == "went on"
        finally:
            stranger.kill()
            stranger.communicate()

    def check_busy(self, holder: int) -> None:
        """See that who wants to write is told within its bound who keeps it from that."""
        bound_s = 0.5
        began_s = time.monotonic()
        with pytest.raises(Busy) as caught:  # to open it for writing is a write
            Store(self.swarm.path, busy_timeout_s=bound_s).close()
        took_s = time.monotonic() - began_s
        assert caught.value.holder == holder, f"{caught.value}, but it is {holder}"
        assert took_s < 5 * bound_s, f"told after {took_s:.1f} s"
        self.busy_s.append(took_s)

    def doctor_names(self, holder: int) -> str:
        """Return what `sqlqueue doctor` says, if it names the holder."""
        done = subprocess.run(
            [sys.executable, "-m", "sqlqueue", "doctor"],
            cwd=self.swarm.directory,
            env=self.swarm.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.stdout if f"process {holder} has held it" in done.stdout else ""

    def stop_a_child_in_the_lock(self) -> None:
        """Have a child stop itself in a transaction, and see its supervisor end that."""
        job_id = f"stops_in_the_lock-0-lock-{self.stops['in the lock']}-0"
        self.swarm.start_publishing(job_id)  # whose own end waits for the lock, too
        holder = wait_until(self.holder, deadline_s=60, what="a child that stops in the lock")
        began_s = time.monotonic()
        self.check_busy(holder)
        wait_until(
            lambda: not is_running(holder),
            deadline_s=5 * LOCK_LIMIT_S,
            what=f"the supervisor to kill its child {holder}",
        )
        self.killed_s.append(time.monotonic() - began_s)
        assert self.swarm.running[f"once-{job_id}"].wait(timeout=60) == 0


# -- the watcher --------------------------------------------------------------------------------------


class Leases(threading.Thread):
    """Look at the leases in the file twenty times a second; `until_ms` keeps how long each lasted."""

    def __init__(self, path: Path) -> None:
        """Prepare to look through a store of our own."""
        super().__init__(daemon=True, name="leases")
        self.until_ms: dict[tuple[int, int], int] = {}
        self._store = Store(path)
        self._ended = threading.Event()

    def run(self) -> None:
        """Look until stopped."""
        while not self._ended.wait(0.05):
            for message_id, delivery, until_ms in self._store.database.read(
                lambda c: c.execute(_HELD).fetchall()
            ):
                known = self.until_ms.get((message_id, delivery), 0)
                self.until_ms[message_id, delivery] = max(known, until_ms)

    def stop(self) -> None:
        """End, and close the store."""
        self._ended.set()
        if self.is_alive():
            self.join()
        self._store.close()


# -- the judge ----------------------------------------------------------------------------------------


def judge(swarm: Swarm, leases: Leases, stopper: Stopper) -> list[str]:
    """Compare the file with what the processes left; return the figures."""
    jobs = swarm.jobs()
    wrong = swarm.lost_or_strange(jobs)
    trace = collections.defaultdict(list)
    for line in swarm.trace():
        trace[line.job].append(line)
    refused = {(one["job_id"], one["delivery"]) for one in swarm.events("lease_lost")}
    killed = {one["pid"] for one in swarm.events("child_killed")}
    attempts = {(row[0], row[1]): row for row in swarm.rows(_ATTEMPTS)}
    late = by_kill = begun_late = kept = 0
    for job in jobs:
        lines = trace[job.job_id]
        found = list(job.wrong_end(lines, max_attempts=MAX_ATTEMPTS))
        noted = {line.delivery for line in lines if line.event == "ended"}
        if (job.job_id, job.delivery) in refused and job.state == "done":
            if job.delivery in noted:
                kept += 1  # others settled it by its note, and then it came by itself
            else:
                found.append(f"delivery {job.delivery} was refused and accepted")
        if noted and job.delivery > min(noted):
            found.append(f"it was delivered again although {min(noted)} had noted its end")
        if job.attempts > len({line.delivery for line in lines if line.event == "noting"}):
            found.append(f"{job.attempts} attempts counted, more than were started")
        begun_late += sum(
            line.event == "start"
            and line.at_s * 1000
            > leases.until_ms.get((job.message_id, line.delivery), 1 << 62) + SLACK_MS
            for line in lines
        )
        for line in lines:
            if line.event not in {"end", "fail"} or line.delivery == job.delivery:
                continue
            record = attempts.get((job.message_id, line.delivery))
            if line.event == "fail" and record is not None and record[2] == "failed":
                continue  # it was in time
            late += 1
            if (job.job_id, line.delivery) in refused:
                continue
            if line.pid in killed:
                by_kill += 1
            else:
                found.append(f"what delivery {line.delivery} ended in was neither kept nor refused")
        wrong += [f"{job.job_id} (message {job.message_id}, {job.state}): {what}" for what in found]
    wrong += _leases_cut_short(attempts, leases, trace)
    assert not wrong, f"seed {swarm.seed}: {len(wrong)} promises broken: " + "; ".join(wrong[:20])
    assert len(refused) >= sum(stopper.stops.values()) / 20, (
        "too few came late: this proves nothing"
    )
    lost = sum(row[2] == "lost" for row in attempts.values())
    return [
        (
            f"{len(jobs):,} jobs, 0 lost; {lost:,} leases ended by others,"
            f" {len(refused):,} late settlements refused and logged, 0 accepted, of which {kept} had"
            " been noted in time and were settled by others"
            f" ({by_kill} of {late} were killed before they could be refused)"
        ),
        f"{begun_late} jobs begun when their lease was over; 0 leases overlapped, of {len(leases.until_ms):,} seen",
        (
            f"inside of the writer lock: others were told who holds it after"
            f" {max(stopper.busy_s, default=0):.2f} s at worst, with a bound of 0.5 s; a child was killed"
            f" for it after {max(stopper.killed_s, default=0):.1f} s at worst"
            f" (promised {LOCK_LIMIT_S:g} s)"
        ),
    ]


def _leases_cut_short(attempts, leases, trace) -> Iterator[str]:
    """Return deliveries that were given to others while their lease lasted and their process lived."""
    offset_ms = (time.time() - time.monotonic()) * 1000
    for (message_id, delivery), row in attempts.items():
        _, _, outcome, error, ended_at_ms, job_id = row
        if outcome != "lost":
            continue
        ended_ms = ended_at_ms - offset_ms
        if error == "LeaseOver":
            until_ms = leases.until_ms.get((message_id, delivery), 0)
            if until_ms > ended_ms + SLACK_MS:
                yield f"{job_id}: delivery {delivery} was ended {until_ms - ended_ms:.0f} ms early"
            continue
        # What else a process of that id says is no sign: ids are used again.
        said_s = [line.at_s for line in trace[job_id] if line.delivery == delivery]
        if max(said_s, default=0) * 1000 > ended_ms + SLACK_MS:
            yield f"{job_id}: delivery {delivery} was taken for lost while its process lived"
