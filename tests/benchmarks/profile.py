"""Show where a message's microseconds go, layer by layer and statement by statement.

    python -m tests.benchmarks.profile publish     task.delay(), as a program calls it
    python -m tests.benchmarks.profile produce     Kombu's Producer on our transport, alone
    python -m tests.benchmarks.profile consume     Kombu's Consumer on our transport, with ack
    python -m tests.benchmarks.profile claim       our store alone: settle + claim, one at a time
    python -m tests.benchmarks.profile worker      a real child process with jobs that do nothing

All figures are processor time, which other programs disturb least; what one waits for, the disk
above all, is the difference to the time by the clock. SQLite's statements and the flushes are timed one
by one, in rounds of their own. The rest is told apart by cProfile, in rounds that take turns with
rounds without it. What cProfile adds to each call is measured and taken off. It also makes the
interpreter slow (CPython 3.11 runs no specialized bytecode while it is on), so that the parts in
Python are scaled by the one factor that makes all parts add up to the time of a round without it.
Python's own modules and C functions count for whoever called them. Of all rounds the faster half
counts.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kombu

from sqlqueue_transport import Store
from sqlqueue_transport import statements as sql
from sqlqueue_transport.messages import NewMessage, Outcome, Settlement
from tests.benchmarks import profiled_app
from tests.benchmarks.meter import FLUSH, LONG, Meter, per_call_ns, time_statements
from tests.support import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

SIZE = 1000  # messages of a round: enough for several checkpoints of the log
ROUNDS = 10
BODY = "x" * 300
_CHUNK = 500
REST = "around it, and not seen"

# The first that fits. What fits nowhere counts for its callers.
LAYERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("disk: fdatasync", ("posix.fdatasync",)),
    ("SQLite", ("sqlite3.Connection", "sqlite3.Cursor")),
    (
        "our transaction: writer lock, checks, flush",
        tuple(
            f"sqlqueue_transport/{name}.py"
            for name in (
                *("database", "writer_lock", "flushing", "mutexes", "handles", "mapping", "room"),
                *("migrations", "opening", "files", "forking", "sqlite_errors"),
            )
        ),
    ),
    (
        "who is awake, who runs what",
        tuple(
            f"sqlqueue_transport/{name}.py"
            for name in ("wakeup", "sleepers", "consumers", "presence", "running", "keeper")
        ),
    ),
    (
        "transport: Kombu's channel on our store",
        tuple(
            f"sqlqueue_transport/{name}.py"
            for name in ("channel", "message", "publishing", "transport", "event_loop", "topology")
        ),
    ),
    ("store: rows of messages", ("/sqlqueue_transport/",)),
    ("Kombu", ("/kombu/", "/amqp/", "/vine/")),
    (
        "envelope: a call as text, and back",
        tuple(f"sqlqueue/{name}.py" for name in ("envelope", "plain_json", "signing", "text")),
    ),
    ("log", ("/sqlqueue/log", "/structlog/", "/logging/", "/sqlqueue/task_log.py")),
    (
        "running the task: limits, context, outcome",
        tuple(f"sqlqueue/{name}.py" for name in ("execute", "worker/attempt", "worker/limits"))
        + tuple(f"sqlqueue/worker/{name}.py" for name in ("interrupts", "runners"))
        + tuple(f"sqlqueue/{name}.py" for name in ("progress", "retry", "forks")),
    ),
    ("worker's loop", ("/sqlqueue/worker/", "/sqlqueue/stopping.py")),
    ("the call: task, app, backend", ("/sqlqueue/",)),
    ("what is measured with", ("/tests/benchmarks/",)),
)


def main() -> None:
    """Profile what was chosen and print its tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=sorted(SCENES))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        *("--durability",),
        choices=("publish", "full", "process"),
        default="process",
        help="what is on the disk when a call returns; default: nothing, which measures us alone",
    )
    parser.add_argument("--functions", type=int, default=4, help="how many to name of each layer")
    chosen = parser.parse_args()
    print(profiled(chosen.what, chosen.durability, chosen.rounds, chosen.functions))


def profiled(what: str, durability: str, rounds: int, functions: int, size: int = SIZE) -> str:
    """Profile one scene and return its tables as text."""
    found: list[dict[str, Any]] = []
    for kind in ("whole", "statements"):
        with tempfile.TemporaryDirectory(prefix="sqlqueue-profile-") as name:
            figures = Path(name) / "figures"
            # A process each: who times statements has no plain rounds.
            scene = {
                "what": what,
                "kind": kind,
                "durability": durability,
                "rounds": rounds if kind == "whole" else max(rounds // 3, 2),
                "size": size,
                "directory": name,
                "figures": str(figures),
            }
            subprocess.run(
                [sys.executable, "-c", _CHILD, json.dumps(scene)],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                check=True,
            )
            found += map(json.loads, figures.read_text().splitlines())
    whole = Whole.of(found)
    title = (
        f"{what}, durability {durability}: {whole.cpu_us:.1f} µs of a processor a message;"
        f" {whole.wall_us:.1f} µs by the clock, {1e6 / whole.wall_us:,.0f} a second"
    )
    return "\n".join([title, "", *_layers(found, whole, functions), "", *_statements(found)])


_CHILD = """
import json, sys
from tests.benchmarks.profile import run_scene
run_scene(**json.loads(sys.argv[1]))
"""


@dataclass(frozen=True)
class Whole:
    """Be what a message takes when nobody looks."""

    wall_us: float
    cpu_us: float

    @classmethod
    def of(cls, rounds: Iterable[dict[str, Any]]) -> Whole:
        """Take the mean of the faster half of the plain rounds."""
        plain = _faster_half(rounds, "plain")
        return cls(
            statistics.fmean(one["wall_ns"] / one["messages"] / 1000 for one in plain),
            statistics.fmean(one["cpu_ns"] / one["messages"] / 1000 for one in plain),
        )


# -- what is profiled -------------------------------------------------------------------------------


@dataclass
class Scene:
    """Be a place to measure in: a directory, how many messages, and the meter to tick."""

    directory: Path
    durability: str
    messages: int
    meter: Meter
    environment: dict[str, str] = field(default_factory=dict)

    def connection(self) -> kombu.Connection:
        return kombu.Connection(
            f"sqlqueue:///{self.directory}/queue.db",
            transport_options={"durability": self.durability},
        )

    def app(self) -> Any:
        """Return the application; its settings are read when it is first used."""
        os.environ["SQLQUEUE_DB"] = f"{self.directory}/queue.db"
        os.environ["SQLQUEUE_DURABILITY"] = self.durability
        return profiled_app.app


def run_scene(
    *,
    what: str,
    kind: str,
    durability: str,
    rounds: int,
    size: int,
    directory: str,
    figures: str,
) -> None:
    """Run one scene in this process, which is its own, and leave the figures in a file."""
    if kind == "statements":
        time_statements()
    scene = Scene(
        Path(directory),
        durability,
        messages=(rounds * 3 // 2 + 3) * size + 1,
        meter=Meter(Path(figures), size, kind),
        environment={profiled_app.ENVIRONMENT: f"{figures}:{size}:{kind}"},
    )
    SCENES[what](scene)


def _publish(scene: Scene) -> None:
    task = scene.app().tasks["published"]
    for _ in range(scene.messages):
        task.delay(BODY)
        scene.meter.tick()
    task.app.close()


def _produce(scene: Scene) -> None:
    with scene.connection() as connection:
        _produce_some(connection, scene.messages, scene.meter.tick)


def _produce_some(
    connection: kombu.Connection, messages: int, tick: Callable[[], object] = lambda: None
) -> None:
    producer = kombu.Producer(connection.channel(), auto_declare=False)
    for number in range(messages):
        # With the headers that make it a job: what is none is deleted by its ack.
        producer.publish(
            BODY,
            routing_key="default",
            content_type="application/json",
            content_encoding="utf-8",
            headers={"id": str(number), "task": "nothing"},
        )
        tick()


def _consume(scene: Scene) -> None:
    with scene.connection() as connection:
        with connection.channel() as channel:
            kombu.Queue("default", channel=channel).declare()
        _produce_some(connection, scene.messages)
        left = scene.messages

        def on_message(message: Any) -> None:
            nonlocal left
            message.ack()
            left -= 1
            scene.meter.tick()

        queue = kombu.Queue("default")
        with connection.Consumer(queue, on_message=on_message, auto_declare=False):
            while left:
                connection.drain_events(timeout=5)


def _claim(scene: Scene) -> None:
    store = Store(scene.directory / "queue.db")
    message = NewMessage(body=BODY.encode(), queue="default", task="nothing", job_id="x")
    for _ in range(scene.messages // _CHUNK + 1):
        store.publish([message] * _CHUNK, durable=False)
    settlements: list[Settlement] = []
    durable = scene.durability == "full"
    for _ in range(scene.messages):
        claim = store.claim(["default"], 1, lease_s=60, settlements=settlements, durable=durable)
        settlements = [
            Settlement(one.message_id, one.delivery, Outcome.done()) for one in claim.deliveries
        ]
        scene.meter.tick()
    store.settle(settlements)
    store.close()


def _worker(scene: Scene) -> None:
    app = scene.app()
    call = profiled_app.nothing.s()
    app.publish_many(call for _ in range(scene.messages))
    app.close()
    subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "sqlqueue",
                "worker",
                "-A",
                "tests.benchmarks.profiled_app:app",
            ),
            *("-c", "1", "--burst", "--log-file", str(scene.directory / "worker.log")),
        ],
        cwd=ROOT,
        env={**os.environ, **scene.environment},
        check=True,
    )


SCENES: Mapping[str, Callable[[Scene], None]] = {
    "publish": _publish,
    "produce": _produce,
    "consume": _consume,
    "claim": _claim,
    "worker": _worker,
}


# -- which layer a function belongs to --------------------------------------------------------------


_EXECUTE = "C:<method 'execute' of 'sqlite3.Connection' objects>"
_FLUSH = "C:<built-in method posix.fdatasync>"


@dataclass
class Functions:
    """Be all functions of the profiled rounds."""

    raw_us: dict[str, float] = field(default_factory=dict)  # of one message, with cProfile's part
    added_us: dict[str, float] = field(default_factory=dict)  # that part, as in a tight loop
    # Of what was timed by itself, without cProfile.
    timed_us: dict[str, float] = field(default_factory=dict)
    # Of each function: who called it, and how much of its own time was for whom.
    callers: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    @classmethod
    def of(cls, rounds: Iterable[dict[str, Any]]) -> Functions:
        """Read the faster half of the profiled rounds, and of those that timed statements."""
        rounds = list(rounds)
        profiled = _faster_half(rounds, "profiled")
        cost = per_call_ns()
        raw: dict[str, list[float]] = defaultdict(list)
        added: dict[str, list[float]] = defaultdict(list)
        found = cls()
        for one in profiled:
            per_message = one["messages"] * 1000
            for key, count, inline_ns, called in one["functions"]:
                inside_ns = count * cost["c_in" if key.startswith("C:") else "py_in"]
                outside_ns = sum(
                    times * cost["c_out" if callee.startswith("C:") else "py_out"]
                    for callee, times, _ in called
                )
                raw[key].append(inline_ns / per_message)
                added[key].append((inside_ns + outside_ns) / per_message)
                for callee, _, callee_ns in called:
                    found.callers[callee][key] += callee_ns
        for key, values in raw.items():
            # What happens seldom, as a checkpoint of the log, has no median worth its name.
            is_seldom = len(values) < len(profiled)
            middle = statistics.fmean(values) if is_seldom else statistics.median(values)
            found.raw_us[key] = middle * len(values) / len(profiled)
            found.added_us[key] = statistics.fmean(added[key]) * len(values) / len(profiled)
        statements = _by_statement(rounds)
        flushed_us = statements.pop(FLUSH, (0.0, 0.0))[0]
        if _FLUSH in found.raw_us:
            found.timed_us[_FLUSH] = flushed_us
        found.timed_us[_EXECUTE] = sum(us for us, _ in statements.values())
        return found

    def own_us(self, factor: float) -> dict[str, float]:
        """Return the time of each function without cProfile, those in Python times a factor."""
        found = {
            key: max(raw_us - self.added_us[key], 0.0) * (1.0 if key.startswith("C:") else factor)
            for key, raw_us in self.raw_us.items()
        }
        return found | self.timed_us

    def factor_for(self, whole_us: float) -> float:
        """Return which factor makes the parts add up to the whole."""
        in_c_us = sum(self.own_us(0.0).values())
        in_python_us = sum(self.own_us(1.0).values()) - in_c_us
        return max(whole_us - in_c_us, 0.0) / in_python_us

    def by_layer(self, factor: float) -> dict[str, Counter[str]]:
        """Return the microseconds of each layer, by function."""
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for key, own_us in self.own_us(factor).items():
            for layer, share in self._shares(key, frozenset()).items():
                found[layer][key] += own_us * share
        return found

    def _shares(self, key: str, below: frozenset[str]) -> dict[str, float]:
        """Say how much of a function's own time is for which layer; the shares add up to one."""
        layer = layer_of(key)
        if layer is not None:
            return {layer: 1.0}
        callers = {one: ns for one, ns in self.callers[key].items() if one not in below}
        if not callers:
            return {REST: 1.0}
        total = sum(callers.values())
        found: Counter[str] = Counter()
        for caller, ns in callers.items():
            for name, share in self._shares(caller, below | {key, caller}).items():
                found[name] += share * ns / total
        return dict(found)


@functools.cache
def layer_of(key: str) -> str | None:
    """Return the layer of a function; None: it counts for its callers."""
    return next(
        (layer for layer, parts in LAYERS if any(part in key for part in parts)),
        None,
    )


def _name_of(key: str) -> str:
    if key.startswith("C:<method "):
        method, _, of = key.removeprefix("C:<method ").partition(" of ")
        return f"{of.split()[0].strip(chr(39)).rpartition('.')[2]}.{method.strip(chr(39))}"
    if key.startswith("C:"):
        return key.removeprefix("C:<built-in method ").removesuffix(">")
    path, _, name = key.rpartition(":")
    return f"{Path(path).stem}.{name.replace('.<locals>', '')}"


# -- tables -----------------------------------------------------------------------------------------


def _faster_half(rounds: Iterable[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    found = sorted((one for one in rounds if one["kind"] == kind), key=lambda one: one["cpu_ns"])
    return found[: max(len(found) // 2, 1)]


def _layers(rounds: list[dict[str, Any]], whole: Whole, most: int) -> list[str]:
    functions = Functions.of(rounds)
    factor = functions.factor_for(whole.cpu_us)
    found = functions.by_layer(factor)
    lines = [f"{'layer':<46}{'µs':>7}{'share':>8}   most of it in (µs)"]
    for layer, own_us in sorted(found.items(), key=lambda item: -item[1].total()):
        named = ", ".join(
            f"{_name_of(key)} {us:.1f}" for key, us in own_us.most_common(most) if us >= 0.05
        )
        share = own_us.total() / whole.cpu_us
        lines.append(f"{layer:<46}{own_us.total():7.1f}{share:8.0%}   {named}")
    together_us = sum(one.total() for one in found.values())
    taken_off = (
        f"(taken off for cProfile: {sum(functions.added_us.values()):.0f} µs of its own calls; what is"
        f" in Python after that × {factor:.2f})"
    )
    if factor < _LEAST_FACTOR:
        taken_off += "\nThe machine was too busy for this table: run it again."
    return [*lines, f"{'together':<46}{together_us:7.1f}", taken_off]


_LEAST_FACTOR = 0.15  # 0.25 to 0.45 is what CPython 3.11 shows


def _by_statement(rounds: Iterable[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Return of each SQL text, and of the flush, the microseconds and the calls of one message."""
    measured = _faster_half(rounds, "statements")
    messages = sum(one["messages"] for one in measured)
    us: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for one in measured:
        for text, count, took_ns in one["statements"]:
            us[text] += took_ns / 1000
            calls[text] += count
    return {text: (us[text] / messages, calls[text] / messages) for text in us}


def _statements(rounds: list[dict[str, Any]]) -> list[str]:
    found = sorted(_by_statement(rounds).items(), key=lambda item: -item[1][0])
    lines = [f"{'statement':<46}{'µs':>7}{'calls':>9}"]
    lines += [
        f"{_statement_name(text):<46}{us:7.2f}{calls:9.3f}"
        for text, (us, calls) in found
        if us >= 0.05
    ]
    return [
        *lines,
        f"{'together, without what fetches rows':<46}{sum(us for _, (us, _) in found):7.2f}",
    ]


def _statement_name(text: str) -> str:
    bare = text.removesuffix(LONG)
    named = next((name for name, value in vars(sql).items() if value == bare), None)
    return (named or " ".join(bare.split())[:44]) + text[len(bare) :]


if __name__ == "__main__":
    main()
