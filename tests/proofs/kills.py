"""Kill everything at random moments for as long as it takes, and look whether a promise breaks.

Publishers put short jobs into the file: single ones and batches, with and without a countdown, some
that fail once, some that kill whoever runs them; and crowds of jobs so short that one process takes
many of them at once. Four workers with the pool `processes`, of which one takes the crowds, and one with
`threads` run them, and two beats enqueue the ticks of two entries. SIGKILL hits children,
supervisors, whole workers, publishers, beats, and now and then all of them at once; what died is
started anew at once. At the end everything is drained, and the file is compared with what the
processes left behind of themselves:

* each acknowledged job is there, once, and has ended; nothing is there that nobody has published,
* a delivery counts an attempt if its task had begun, and none unless its start was noted by a process
  that was killed after; no job, ever, counted more attempts than it may have,
* a job whose end was noted before it was settled is not run again,
* no two deliveries of a job ran at the same time,
* no job stayed with a dead process while a worker lived,
* each tick was enqueued once, and none is missing,
* the file is sound, its counts are right, and no process and no lock is left.
"""

from __future__ import annotations

import collections
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sqlqueue_transport import Store
from tests.proofs.swarm import Line, Swarm
from tests.proofs.swarm_app import TICK_MS
from tests.support import is_running

PROMISED_S = 2.0  # until what a dead process held is given back
DEADLINE_S = 5 * PROMISED_S
MAX_ATTEMPTS = 5
CHILDREN = {"w1": 8, "w2": 8, "w3": 8}
CROWD_CHILDREN = 6
CROWDS = 12  # of a hundred publishes
YOUNG_S = 2.2
PUBLISHERS = ("p1", "p2", "p3")
RATE = 25.0  # jobs a second, of each publisher
PAUSE_S = (0.02, 0.14)  # between two kills
# How often what is hit, of a thousand times; and everything at once after so many kills.
TARGETS = {"child": 823, "batch": 100, "worker": 30, "tree": 15, "publisher": 20, "beat": 12}
ALL_EVERY = 400

_HELD = """
SELECT m.id, m.delivery, w.pid FROM message AS m JOIN worker AS w ON w.id = m.worker_id
WHERE m.state = 'processing'
"""
_SUPERVISORS = "SELECT pid FROM worker WHERE kind = 'worker' AND ended_at_ms IS NULL"
_TOO_OFTEN = f"SELECT count(*) FROM message WHERE attempts > {MAX_ATTEMPTS}"
_ATTEMPTS = "SELECT message_id, delivery, outcome FROM attempt"


def prove(
    directory: Path, *, kills: int, seed: int, say: Callable[[str], object] = print
) -> list[str]:
    """Kill so many times in an empty directory; return the figures.

    Takes about a sixth of a second a kill on two cores. Raises AssertionError for a broken promise.
    """
    swarm = Swarm(directory, seed, settings={"PROOF_CROWDS": str(CROWDS)})
    watch = Watch(swarm)
    began_s = time.monotonic()
    try:
        killer = Killer(swarm, random.Random(seed))
        killer.start_all()
        watch.start()
        said_s = began_s
        while sum(killer.kills.values()) < kills:
            assert time.monotonic() - began_s < 60 + 2 * kills, f"too slow: {killer.told()}"
            time.sleep(killer.chance.uniform(*PAUSE_S))
            killer.kill_one()
            watch.check()
            if time.monotonic() - said_s > 5:
                said_s = time.monotonic()
                say(
                    f"{said_s - began_s:5.0f} s  {killer.told()}  "
                    f"{len(watch.worst_s)} orphans, worst {watch.worst:.2f} s"
                )
        killed_in_s = time.monotonic() - began_s
        swarm.stop(*PUBLISHERS)
        swarm.stop(*swarm.named("b"))
        swarm.wait_drained(deadline_s=120, meanwhile=watch.check)
        swarm.stop(*swarm.named("w"))
        watch.stop()
        watch.check()
        lines = judge(swarm, ends_at_least=kills // 50)
        swarm.check_file()
    finally:
        watch.stop()
        swarm.end()
    return [
        f"{killer.told()} in {killed_in_s:.0f} s",
        *lines,
        (
            f"{len(watch.worst_s)} jobs seen with a dead process: given back after {watch.worst:.2f} s"
            f" at worst (promised {PROMISED_S:g} s), median {watch.median:.2f} s"
        ),
    ]


# -- the killer ---------------------------------------------------------------------------------------


@dataclass
class Killer:
    """Start everything, and kill it again and again."""

    swarm: Swarm
    chance: random.Random
    kills: collections.Counter[str] = field(default_factory=collections.Counter)
    at_once: int = 1  # the next time that everything is killed at once
    seen_s: dict[int, float] = field(default_factory=dict)  # when each child was first seen
    just_hit: set[int] = field(default_factory=set)

    def told(self) -> str:
        """Return how many of what were killed."""
        by_kind = ", ".join(f"{count} {kind}" for kind, count in self.kills.most_common())
        return f"{sum(self.kills.values()):,} kills ({by_kind})"

    def start_all(self) -> None:
        """Start the workers, beats and publishers."""
        for name, count in CHILDREN.items():
            self.swarm.start_worker(name, "-Q", "default,ticks,plain", "-c", str(count))
        self.swarm.start_worker("wt", "-Q", "threads,default", "-P", "threads", "-c", "8")
        self.swarm.start_worker("wc", "-Q", "crowd", "-c", str(CROWD_CHILDREN))
        for name in ("b1", "b2"):
            self.swarm.start_beat(name)
        for name in PUBLISHERS:
            self.swarm.start_publisher(name, RATE)

    def kill_one(self) -> None:
        """Kill something, and start anew what nobody else does."""
        self.just_hit.clear()
        (target,) = self.chance.choices(list(TARGETS), list(TARGETS.values()))
        if sum(self.kills.values()) // ALL_EVERY >= self.at_once:
            target, self.at_once = "all", self.at_once + 1
        match target:
            case "child":
                self.kill_child()
            case "batch":
                self.kill_in_batch()
            case "worker" | "tree":
                name = self.chance.choice(self.swarm.named("w"))
                if target == "tree":
                    self.hit(self.swarm.children(name), "child")
                self.hit([self.swarm.running[name].pid], "supervisor")
            case "publisher" | "beat":
                name = self.chance.choice(self.swarm.named(target[0]))
                self.hit([self.swarm.running[name].pid], target)
            case _:
                for name in self.swarm.running:
                    self.hit(self.swarm.children(name) if name.startswith("w") else [], "child")
                    kind = {"w": "supervisor", "b": "beat", "p": "publisher"}[name[0]]
                    self.hit([self.swarm.running[name].pid], kind)
        for name, process in self.swarm.running.items():
            if process.pid in self.just_hit:
                process.wait()
            if process.poll() is not None:
                # A worker whose application it asks for in a child, and that child was killed, says
                # so and ends.
                assert process.returncode == -9 or "the import ended" in self.swarm.log(name), (
                    f"{name} ended by itself: {self.swarm.log(name)}"
                )
                self.swarm.start(name)

    def kill_child(self) -> None:
        """Kill a child: mostly one that has lived for a while, now and then any.

        Supervisors wait longer and longer before they replace a child whose forerunners all died
        young.
        """
        children = [pid for name in self.swarm.named("w") for pid in self.swarm.children(name)]
        now_s = time.monotonic()
        self.seen_s = {pid: self.seen_s.get(pid, now_s) for pid in children}
        if self.chance.random() < 0.85:
            children = [pid for pid in children if now_s - self.seen_s[pid] > YOUNG_S]
        if children:
            self.hit([self.chance.choice(children)], "child")

    def kill_in_batch(self) -> None:
        """Kill a child that has noted ends which it has not settled; any, when there is none."""
        if pid := self.swarm.find_in_batch():
            self.hit([pid], "child")
            return
        self.kill_child()

    def hit(self, pids: list[int], kind: str) -> None:
        """Kill these."""
        for pid in pids:
            self.swarm.kill(pid)
            self.just_hit.add(pid)
            self.kills[kind] += 1


# -- the watcher --------------------------------------------------------------------------------------


class Watch(threading.Thread):
    """Look at the file twenty times a second while everything is killed.

    `worst_s` says for each delivery that a dead process held how long it was seen to hold it, while a
    worker lived.
    """

    def __init__(self, swarm: Swarm) -> None:
        """Prepare to look at the queue of a swarm through a store of our own."""
        super().__init__(daemon=True, name="watch")
        self.worst_s: dict[tuple[int, int], float] = {}
        self._swarm = swarm
        self._store = Store(swarm.path)
        self._ended = threading.Event()
        self._failure: BaseException | None = None
        self._served_since_s: float | None = None  # since when a worker has been alive all the time
        self._dead_since_s: dict[int, float] = {}
        self._looked_s = 0.0

    @property
    def worst(self) -> float:
        """Return the longest, in seconds."""
        return max([*self.worst_s.copy().values(), 0.0])

    @property
    def median(self) -> float:
        """Return the usual, in seconds."""
        found = sorted(self.worst_s.values())
        return found[len(found) // 2] if found else 0.0

    def run(self) -> None:
        """Look until stopped, or until something is wrong."""
        try:
            while not self._ended.wait(0.05):
                self._look()
        except BaseException as error:  # noqa: BLE001 - `check` raises it where it is seen
            self._failure = error

    def stop(self) -> None:
        """End, and close the store."""
        self._ended.set()
        if self.is_alive():
            self.join()
        self._store.close()

    def check(self) -> None:
        """Raise what the watcher has found wrong."""
        if self._failure is not None:
            raise AssertionError(f"seed {self._swarm.seed}") from self._failure

    def _look(self) -> None:
        read = self._store.database.read
        held, supervisors, too_often = read(
            lambda c: (
                c.execute(_HELD).fetchall(),
                c.execute(_SUPERVISORS).fetchall(),
                c.execute(_TOO_OFTEN).fetchone()[0],
            )
        )
        now_s = time.monotonic()
        assert not too_often, f"{too_often} jobs with more than {MAX_ATTEMPTS} attempts"
        if not any(is_running(pid) for (pid,) in supervisors):
            self._served_since_s = None
        elif self._served_since_s is None:
            self._served_since_s = now_s
        dead = {pid for _, _, pid in held if not is_running(pid)}
        # A kill before our last look was that of another process, which had the id earlier.
        self._dead_since_s = {
            pid: self._dead_since_s.get(
                pid, next(_after(self._swarm.killed_s, pid, self._looked_s), now_s)
            )
            for pid in dead
        }
        self._looked_s = now_s
        if self._served_since_s is None:
            return
        for message_id, delivery, pid in held:
            if pid in dead:
                since_s = max(self._dead_since_s[pid], self._served_since_s)
                self.worst_s[message_id, delivery] = now_s - since_s
                assert now_s - since_s < DEADLINE_S, (
                    f"message {message_id} has been with the dead process {pid} for"
                    f" {now_s - since_s:.1f} s"
                )


# -- the judge ----------------------------------------------------------------------------------------


def judge(swarm: Swarm, *, ends_at_least: int) -> list[str]:
    """Compare the file with what the processes left; return the figures.

    So many ends at least must have been noted by a process that was killed before it settled them.
    """
    boot_s = time.time() - time.monotonic()
    jobs = swarm.jobs()
    wrong = swarm.lost_or_strange(jobs)
    trace = collections.defaultdict(list)
    deaths = {pid: list(killed_s) for pid, killed_s in swarm.killed_s.items()}
    for line in swarm.trace():
        trace[line.job].append(line)
        if line.event == "suicide":  # with all its neighbours, in threads
            deaths.setdefault(line.pid, []).append(line.at_s)
    lost_of = collections.defaultdict(set)
    for message_id, delivery, outcome in swarm.rows(_ATTEMPTS):
        if outcome == "lost":
            lost_of[message_id].add(delivery)
    states: collections.Counter[str] = collections.Counter()
    doubles = runs = lost = noted = kept = 0
    for job in jobs:
        lines, lost_here = trace[job.job_id], lost_of[job.message_id]
        states[f"{job.state} poison" if job.task == "poison" else job.state] += 1
        lost += len(lost_here)
        runs += sum(line.event == "start" for line in lines)
        doubles += max(sum(line.event == "end" for line in lines) - 1, 0)
        for line in lines:
            if line.event == "ended":
                noted += 1
                died_s = _died_s(deaths, line)
                finished_s = (job.finished_ms or 0) / 1000 - boot_s
                kept += line.delivery == job.delivery and died_s is not None and finished_s > died_s
        wrong += [
            f"{job.job_id} (message {job.message_id}, {job.state}): {what}"
            for what in (
                *job.wrong_end(lines, max_attempts=MAX_ATTEMPTS),
                *_wrong_counts(deaths, job.attempts, lost_here, lines),
                *_overlaps(deaths, lines),
                *_run_again(lines),
            )
        ]
    wrong += _wrong_ticks(swarm)
    assert not wrong, f"seed {swarm.seed}: {len(wrong)} promises broken: " + "; ".join(wrong[:20])
    assert kept >= ends_at_least, f"seed {swarm.seed}: only {kept} of {noted} noted ends were left"
    ticks = swarm.rows("SELECT count(*) FROM tick")[0][0]
    return [
        f"{len(jobs):,} jobs stored, {len(swarm.read('acknowledged.txt')):,} acknowledged:"
        " 0 lost, 0 unexpected, "
        + ", ".join(f"{count:,} {state}" for state, count in states.most_common()),
        (
            f"{runs:,} runs, {lost:,} of them lost and counted; {doubles:,} jobs had their effect twice"
            " (killed between effect and settlement), 0 deliveries overlapped"
        ),
        (
            f"{noted:,} ends noted before they were settled; {kept:,} of them left behind by a kill,"
            " settled by others, and not run again"
        ),
        f"{ticks:,} ticks of two beats, each enqueued once",
    ]


def _wrong_counts(
    deaths: Mapping[int, list[float]], attempts: int, lost: set[int], lines: list[Line]
) -> list[str]:
    """Return what is wrong with the attempts that were counted."""
    noted = {line.delivery: line for line in lines if line.event == "noting"}
    began = {line.delivery for line in lines if line.event == "start"}
    wrong = []
    if not len(began) <= attempts <= len(noted):
        wrong.append(f"{len(noted)} starts noted and {len(began)} begun, but {attempts} counted")
    for delivery in lost:
        line = noted.get(delivery)
        if line is None:
            wrong.append(f"delivery {delivery} was never started, and counted as lost")
        elif _died_s(deaths, line) is None:
            wrong.append(f"delivery {delivery} was counted as lost, but nobody killed {line.pid}")
    return wrong


def _run_again(lines: list[Line]) -> list[str]:
    """Return deliveries that began although an earlier one of the same job had noted its end."""
    ended = min((line.delivery for line in lines if line.event == "ended"), default=None)
    return [
        f"delivery {line.delivery} began although {ended} had noted its end"
        for line in lines
        if line.event == "start" and ended is not None and line.delivery > ended
    ]


def _overlaps(deaths: Mapping[int, list[float]], lines: list[Line]) -> list[str]:
    """Return deliveries that began while an earlier one of the same job still ran."""
    wrong = []
    begun: list[Line] = []
    over = {(line.delivery, line.event): line.at_s for line in lines}
    for line in sorted(lines, key=lambda line: line.at_s):
        if line.event != "start":
            continue
        for earlier in begun:
            ended_s = [over.get((earlier.delivery, event)) for event in ("end", "fail", "suicide")]
            ended_s.append(_died_s(deaths, earlier))
            if not any(at_s is not None and at_s <= line.at_s for at_s in ended_s):
                wrong.append(f"delivery {line.delivery} began while {earlier.delivery} ran")
        begun.append(line)
    return wrong


def _died_s(deaths: Mapping[int, list[float]], line: Line) -> float | None:
    """Return when the process of a line was killed, or its supervisor; None when nobody did."""
    # A kill is noted before it is sent, and a line may be written in between.
    known = [at_s for pid in (line.pid, line.parent) for at_s in _after(deaths, pid, line.at_s - 1)]
    return min(known, default=None)


def _after(deaths: Mapping[int, list[float]], pid: int, after_s: float) -> Iterator[float]:
    """Yield when processes with an id were killed after a moment: ids are used again."""
    yield from (at_s for at_s in tuple(deaths.get(pid, ())) if at_s > after_s)


def _wrong_ticks(swarm: Swarm) -> list[str]:
    """Return ticks that are missing, and such as were enqueued twice or not at all."""
    wrong = []
    for entry in ("ticks", "plain"):
        found = swarm.rows(
            "SELECT due_ms, jobs, first_message_id, last_message_id FROM tick"
            f" WHERE entry = '{entry}' ORDER BY due_ms"
        )
        jobs = swarm.rows(f"SELECT id, result FROM message WHERE queue = '{entry}' ORDER BY id")
        dues = [due for due, *_ in found]
        if dues != list(range(dues[0], dues[-1] + 1, TICK_MS)):
            wrong.append(f"ticks of {entry!r} are missing among {len(dues)}")
        if [count for _, count, *_ in found] != [1] * len(found) or len(jobs) != len(found):
            wrong.append(f"{len(found)} ticks of {entry!r} enqueued {len(jobs)} jobs")
        if entry == "ticks" and sorted(int(result) for _, result in jobs) != dues:
            wrong.append(f"the jobs of {entry!r} are not those of its ticks")
    return wrong
