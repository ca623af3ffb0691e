"""`sqlqueue demo`: the founding job, running, in one terminal.

A beat and a worker are started as processes of their own, exactly as an operator would start them,
and watched through `inspection`. They lead sessions of their own, so ctrl-c reaches this process
alone, which then lets them finish.

The demo brings an application of its own into whatever directory it is called in. So it does not
read a settings file that belongs to somebody else's application, and refuses a queue with jobs in
it that its worker could not run: it would send them to the dead letters.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from sqlqueue import config
from sqlqueue.cli.demo_processes import Processes
from sqlqueue.cli.demo_progress import STAMP_TASK, Progress, Seen
from sqlqueue.cli.demo_view import LiveView, PlainView, View, place
from sqlqueue.cli.failures import CommandFailed, ExitCode
from sqlqueue.cli.invocation import Command, Invocation, duration, pass_invocation
from sqlqueue.cli.output import Output, dumped
from sqlqueue.errors import ConfigError
from sqlqueue.formats import number, took
from sqlqueue.text import escaped, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlqueue.config import Resolved
    from sqlqueue.inspection import Inspection

__all__ = ["Plan", "demo"]

APP: Final = "sqlqueue.demo_tasks.app:app"
_KEYS: Final = frozenset({"directory", "every", "min_seconds", "max_seconds", "producers"})
_LOOK_EVERY_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Plan:
    """Be what this demo is going to do. Times are seconds; `count` None runs until it is stopped."""

    broker_url: str
    directory: Path
    logs: Path
    every_s: float
    min_s: float
    max_s: float
    grace_s: float
    concurrency: int
    count: int | None
    environment: Mapping[str, str]


@click.command(cls=Command)
@click.option("--count", type=click.IntRange(1), help="Make exactly so many files, then stop.")
@click.option("--every", type=duration, help="How often a file is made; default 5s.")
@click.option("--min-seconds", type=duration, help="The least a job takes; default 7.")
@click.option("--max-seconds", type=duration, help="The most a job takes; default 15.")
@click.option("--concurrency", type=click.IntRange(1, 1000), help="Jobs at once; default 4.")
@click.option("--producers", type=click.IntRange(1, 1000), help="Producers of files; default 1.")
@click.option("--dir", "directory", metavar="DIR", help="Where the files are; default jobs/.")
@pass_invocation
def demo(invocation: Invocation, /, **options: Any) -> int:
    """Watch it work: a beat that makes files, and a worker that stamps them.

    Every 5 s a file is written to jobs/ and enqueued; a worker appends a line to it 7 to 15 s later.
    ctrl-c lets running jobs finish and stops; twice stops at once. The queue is queue.db (--db), the
    logs are in logs/.
    """
    plan = _planned(invocation, **options)
    from sqlqueue.backend import open_backend
    from sqlqueue.inspection import Inspection

    settings = config.resolve({}, environ=plan.environment, command_line={}).settings
    backend = open_backend(settings)
    try:
        inspection = Inspection(backend, settings=settings)
        _refuse_strangers(inspection, plan)
        if others := inspection.stats().alive:
            Output(invocation).note(
                f"demo: {others} other worker{'' if others == 1 else 's'} on {place(plan)} will take"
                " jobs, too"
            )
        return _Demo(invocation, plan, inspection).run()
    finally:
        backend.close()


# -- before it starts --------------------------------------------------------------------------------


def _planned(
    invocation: Invocation,
    *,
    count: int | None,
    every: float | None,
    min_seconds: float | None,
    max_seconds: float | None,
    concurrency: int | None,
    producers: int | None,
    directory: str | None,
) -> Plan:
    given = {
        "DIRECTORY": directory,
        "EVERY": every,
        "MIN_SECONDS": min_seconds,
        "MAX_SECONDS": max_seconds,
        "PRODUCERS": producers,
    }
    environment = _environment(invocation)
    environment.update(
        (f"SQLQUEUE_APP_{key}", str(value)) for key, value in given.items() if value is not None
    )
    if invocation.db is not None:
        environment["SQLQUEUE_DB"] = invocation.db
    found = config.resolve({}, environ=environment, command_line={})
    # From here on there is one answer, whatever the processes read besides.
    environment["SQLQUEUE_DB"] = found.settings.broker_url
    if not found.settings.broker_url.startswith("sqlqueue://"):
        raise ConfigError("the demo runs on a queue file; give one with --db ./queue.db")
    max_s = _seconds(found, "max_seconds", 15.0)
    plan = Plan(
        broker_url=found.settings.broker_url,
        directory=Path(str(found.settings.app.get("directory", "jobs"))),
        logs=Path(found.settings.log_dir or "logs"),
        every_s=_seconds(found, "every", 5.0),
        min_s=_seconds(found, "min_seconds", 7.0),
        max_s=max_s,
        # Enough for the longest job: ctrl-c promises to let them finish.
        grace_s=max(found.settings.worker_grace, max_s + 5),
        concurrency=_concurrency(found, concurrency),
        count=count,
        environment=environment,
    )
    if plan.every_s < 0.001:
        raise click.UsageError("--every is shorter than a millisecond")
    if plan.min_s > plan.max_s:
        raise click.UsageError(
            f"--min-seconds {plan.min_s:g} is above --max-seconds {plan.max_s:g}; set both"
        )
    return plan


def _seconds(found: Resolved, key: str, default: float) -> float:
    return config.duration_s(found.settings.app.get(key, default), name=f"app.{key}")


def _concurrency(found: Resolved, given: int | None) -> int:
    if given is not None:
        return given
    is_set = found.origins["worker_concurrency"] != "default"
    return found.settings.worker_concurrency if is_set else 4


def _environment(invocation: Invocation) -> dict[str, str]:
    """Return the environment of the demo's processes: this one's, without other applications' words.

    A settings file is read if it was asked for by name, or is the demo's own: one whose [app] table
    has keys of the demo and no others.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if not (name.startswith("SQLQUEUE_APP_") and name[13:].lower() not in _KEYS)
        and name not in {"SQLQUEUE_APP", "SQLQUEUE_BROKER_URL", "SQLQUEUE_WORKER_QUEUES"}
    }
    # A module in this directory may be called like one of the standard library's (Python 3.11).
    environment["PYTHONSAFEPATH"] = "1"
    if invocation.config is not None:
        environment["SQLQUEUE_CONFIG"] = str(invocation.config)
    if not environment.get("SQLQUEUE_CONFIG"):
        nobodys = {"SQLQUEUE_CONFIG": os.devnull}  # an empty file: nothing is looked up
        with contextlib.suppress(ConfigError):
            found = config.resolve({}, environ={}, command_line={}).settings
            if found.app and set(found.app) <= _KEYS and not found.beat:
                nobodys = {}
        environment.update(nobodys)
    return environment


def _refuse_strangers(inspection: Inspection, plan: Plan) -> None:
    """Refuse a queue with jobs that the demo's worker would take and could not run."""
    from sqlqueue.inspection import JobFilter, State

    waiting = JobFilter(states=(State.PENDING, State.SCHEDULED, State.FAILED, State.PROCESSING))
    for row in inspection.every_job(waiting):
        if row.task != STAMP_TASK:
            raise ConfigError(
                f"{place(plan)} holds jobs of another application, such as {quoted(row.task)};"
                " the demo's worker cannot run them. Give the demo a file of its own: --db demo.db"
            )


# -- while it runs ------------------------------------------------------------------------------------


class _Demo:
    """Start the processes, watch, and stop them in order; `run` returns the exit code."""

    def __init__(self, invocation: Invocation, plan: Plan, inspection: Inspection) -> None:
        self._output = Output(invocation)
        self._plan = plan
        self._progress = Progress(inspection, plan.directory)
        self._processes = Processes(plan.logs, plan.environment, of="the demo")
        self._verbosely = ["-v"] if invocation.verbose else []
        self._signals = 0
        self._view = _view(invocation, plan)
        self._began_s = time.monotonic()

    def run(self) -> int:
        """Run to the end. If this process is killed, beat and worker get a SIGTERM (Linux)."""
        before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
        for each in before:
            signal.signal(each, self._on_signal)
        try:
            self._start()
            with self._view as view:
                self._watch(view)
                self._stop(view)
                seen = self._look(view, stopping=True)
        finally:
            self._processes.bury()
            for each, handler in before.items():
                signal.signal(each, handler)
        return self._summary(seen)

    def _start(self) -> None:
        plan = self._plan
        ticks = [] if plan.count is None else ["--max-ticks", str(plan.count)]
        self._processes.start(
            "worker",
            [
                *("worker", "-A", APP, "--name", "worker-demo", "-c", str(plan.concurrency)),
                *("--grace", f"{plan.grace_s:g}", *self._verbosely),
            ],
            log="worker-demo.log",
        )
        self._processes.start(
            "beat",
            ["beat", "-A", APP, "--name", "producer", *ticks, *self._verbosely],
            log="producer.log",
        )

    def _watch(self, view: View) -> None:
        """Look on until all is done, or somebody wants it to end."""
        while not self._signals:
            self._processes.refuse_dead("worker")
            if self._plan.count is None or self._processes.exit_code("beat") not in {None, 0}:
                self._processes.refuse_dead("beat")
            # Asked before the look: what the beat enqueued last is then sure to be seen.
            all_made = self._plan.count is not None and self._processes.exit_code("beat") == 0
            seen = self._look(view)
            if all_made and not seen.unfinished:
                return
            self._pause()

    def _stop(self, view: View) -> None:
        """Let the worker finish what runs; each further signal is passed on."""
        passed_on = 0
        self._processes.tell_to_stop()
        while self._processes.are_running:
            if self._signals > max(passed_on, 1):
                passed_on = self._signals
                if passed_on > 2:
                    self._processes.kill()
                self._processes.tell_to_stop()
            self._look(view, stopping=True)
            self._pause()

    def _look(self, view: View, *, stopping: bool = False) -> Seen:
        seen = self._progress.look()
        view.show(seen, stopping=stopping, running_s=time.monotonic() - self._began_s)
        return seen

    def _pause(self) -> None:
        before = self._signals
        until_s = time.monotonic() + _LOOK_EVERY_S
        while self._signals == before and (left_s := until_s - time.monotonic()) > 0:
            time.sleep(min(left_s, 0.05))

    def _on_signal(self, *_: object) -> None:
        self._signals += 1

    def _summary(self, seen: Seen) -> int:
        plan, made = self._plan, seen.of_this_run
        seconds = time.monotonic() - self._began_s
        done = made.get("done", 0)
        failed, dead = made.get("failed", 0), made.get("permanently_failed", 0)
        if self._output.is_table:
            open_ = sum(made.values()) - done - dead
            parts = [f"{number(done)} done"]
            parts += [f"{number(dead)} permanently failed"] if dead else []
            parts += [f"{number(open_)} left for the next worker"] if open_ else []
            click.echo(
                f"{', '.join(parts)} in {took(seconds)}."
                f" Files: {escaped(str(plan.directory))}/, logs: {escaped(str(plan.logs))}/"
            )
        else:
            click.echo(
                dumped(
                    {
                        "schema": 1,
                        "done": done,
                        "failed": failed,
                        "permanently_failed": dead,
                        "seconds": round(seconds, 3),
                    }
                )
            )
        if self._signals > 1:
            return ExitCode.INTERRUPTED
        if plan.count is not None and not self._signals and done < plan.count:
            raise CommandFailed(
                f"{plan.count - done} of {plan.count} jobs did not end well."
                " See 'sqlqueue inspect dead'."
            )
        return ExitCode.OK


@contextlib.contextmanager
def _view(invocation: Invocation, plan: Plan) -> Iterator[View]:
    if sys.stderr.isatty() and not invocation.quiet:
        with LiveView(invocation, plan) as view:
            yield view
    else:
        yield PlainView(invocation, plan)
