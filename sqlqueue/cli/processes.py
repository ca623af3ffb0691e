"""`sqlqueue worker` and `sqlqueue beat`: the processes that do the work.

What is typed here becomes settings of the command line's layer before the application is imported:
the worker's children and the application itself resolve them later. This module starts the
processes and greets; how they work is `worker` and `beat`.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from sqlqueue.cli.invocation import Command, Invocation, duration, pass_invocation, size
from sqlqueue.cli.opening import apply_command_line, load
from sqlqueue.cli.output import is_colored
from sqlqueue.formats import took
from sqlqueue.notify import Notifier
from sqlqueue.text import escaped, quoted, without_passwords

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlqueue.config import Settings

__all__ = ["beat", "worker"]

_LEVELS: Final = ["debug", "info", "warning", "error", "critical"]


# Between two looks at a disk that is full.
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 5.0
# Options that are settings of another name; the rest of the options here are no settings.
_FIELDS: Final = {
    "concurrency": "worker_concurrency",
    "queues": "worker_queues",
    "weights": "worker_queue_weights",
    "visibility_timeout": "visibility_timeout",
    "time_limit": "task_time_limit",
    "soft_time_limit": "task_soft_time_limit",
    "grace": "worker_grace",
    "max_jobs_per_child": "worker_max_jobs_per_child",
    "max_memory_per_child": "worker_max_memory_per_child",
    "max_interval": "beat_max_interval",
    "log_level": "log_level",
    "log_format": "log_format",
}


def _setting(*names: str, **settings: Any) -> Callable[..., Any]:
    """Make an option that is a setting, and name the variable by which the settings know it.

    click would read SQLQUEUE_<COMMAND>_<OPTION>. Where that is the setting's own name, it is left to
    the settings, which can tell where a value came from.
    """
    field = _FIELDS[names[-1].removeprefix("--").replace("-", "_")]
    settings["help"] = f"{settings['help']} [SQLQUEUE_{field.upper()}]"
    is_a_setting_for_click_too = field.startswith(("worker_", "beat_"))
    return click.option(*names, allow_from_autoenv=not is_a_setting_for_click_too, **settings)


def _log_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(
        (
            _setting(
                "--log-level",
                type=click.Choice(_LEVELS, case_sensitive=False),
                help="Default: info, or debug with -v.",
            ),
            click.option(
                "--log-file", metavar="FILE", help="Write there instead of standard error."
            ),
            _setting(
                "--log-format",
                type=click.Choice(["auto", "console", "json"]),
                help="auto: console on a terminal, JSON elsewhere.",
            ),
        )
    ):
        function = option(function)
    return function


@click.command(cls=Command)
@_setting(
    "-c",
    "--concurrency",
    type=click.IntRange(1, 1000),
    help="Jobs it runs at once; default: one a CPU.",
)
@_setting(
    "-Q",
    "--queues",
    metavar="A,B",
    help="Queues it serves, the first one first; default: those of the tasks.",
)
@_setting(
    "--weights",
    metavar="A=6,B=1",
    help="How often each queue is asked first; default: always the first one.",
)
@click.option("-n", "--name", help="Default: worker-<process id>.")
@click.option(
    "-P",
    "--pool",
    type=click.Choice(["processes", "threads", "solo"]),
    default="processes",
    show_default=True,
    help="threads runs many jobs in one process, async ones on its event loop; solo one at a time in"
    " the worker itself.",
)
@click.option("--burst", is_flag=True, help="Stop when nothing is left to do.")
@click.option("--max-jobs", type=click.IntRange(1), help="Stop after so many jobs.")
@click.option("--beat", "with_beat", is_flag=True, help="Run a beat, too, as one more child.")
@_setting(
    "--visibility-timeout",
    type=duration,
    help="How long a job may be held without a sign of life; default 1h.",
)
@_setting(
    "--time-limit",
    type=duration,
    help="Jobs that run longer are ended; 0: never; default 1h.",
)
@_setting(
    "--soft-time-limit",
    type=duration,
    help="Jobs that run longer get SoftTimeLimitExceeded raised; 0: never, the default.",
)
@_setting(
    "--grace",
    type=duration,
    help="How long running jobs may finish when it is stopped; default 30s.",
)
@_setting(
    "--max-jobs-per-child",
    type=click.IntRange(0),
    help="A process that has run so many is replaced by a fresh one; 0: never.",
)
@_setting(
    "--max-memory-per-child",
    type=size,
    metavar="SIZE",
    help="The same for one that takes more memory after a job, such as 200MB.",
)
@click.option(
    "--reload/--no-reload",
    help="For development: start anew whenever a Python file of the application changes.",
)
@_log_options
@pass_invocation
def worker(
    invocation: Invocation,
    /,
    *,
    name: str | None,
    pool: str,
    burst: bool,
    max_jobs: int | None,
    reload: bool,
    with_beat: bool,
    **settings: Any,
) -> int:
    """Run jobs: a supervisor and its children.

    SIGTERM or ctrl-c lets running jobs finish, hands back the rest, and exits 0. A second one stops
    at once, exit 130. SIGHUP opens its log anew, SIGQUIT prints what each process does.
    """
    path = _app_path(invocation)
    _check_name(name)
    if with_beat and (burst or max_jobs is not None):
        raise click.UsageError(
            "--beat is for a worker that stays: leave out --burst and --max-jobs, or start"
            " 'sqlqueue beat' beside it"
        )
    if with_beat and pool == "solo":
        raise click.UsageError(
            "--beat needs a supervisor, which the pool 'solo' has not: start 'sqlqueue beat' beside"
            " it"
        )
    if reload:
        from sqlqueue.worker.reload import run_reloading

        return run_reloading(path, [*invocation.arguments, "--no-reload"])
    notifier = Notifier()
    log_file = _apply(invocation, settings)
    from sqlqueue.worker.facts import ask_app
    from sqlqueue.worker.start import run_worker
    from sqlqueue.worker.supervisor import WorkerOptions

    facts = ask_app(path)
    logs = _log_to(facts.settings, log_file, _file_name("worker", name))
    name = name or f"worker-{os.getpid()}"
    if _is_watched(invocation):
        _greet(
            invocation,
            f"worker {name}, process {os.getpid()}",
            [
                ("app", f"{path}: {_some(facts.tasks, 'task', 'tasks')}"),
                ("broker", without_passwords(facts.settings.broker_url)),
                ("queues", _queues(facts.queues, facts.settings)),
                ("pool", _pool(pool, facts.settings)),
                ("jobs", _limits(facts.settings)),
                ("logs", logs),
                ("ctrl-c", f"finishes what runs, {took(facts.settings.worker_grace)} at most"),
            ],
        )
    _wait_for_room(facts.settings, notifier)
    options = WorkerOptions(
        app_path=path, name=name, pool=pool, burst=burst, max_jobs=max_jobs, beat=with_beat
    )
    return run_worker(options, facts, notifier=notifier)


@click.command(cls=Command)
@_setting(
    "--max-interval",
    type=duration,
    help="Its longest sleep; default 5s.",
)
@click.option("-n", "--name", help="Default: beat-<process id>.")
@click.option("--max-ticks", type=click.IntRange(1), hidden=True)
@_log_options
@pass_invocation
def beat(
    invocation: Invocation, /, *, name: str | None, max_ticks: int | None, **settings: Any
) -> int:
    """Enqueue what the schedule says. Any number may run: each tick is enqueued once.

    SIGTERM or ctrl-c stops it, exit 0.
    """
    _app_path(invocation)
    _check_name(name)
    notifier = Notifier()
    log_file = _apply(invocation, settings)
    from sqlqueue.beat.service import run_beat

    app = load(invocation)
    if app is None:  # _app_path has seen to that
        raise AssertionError
    logs = _log_to(app.conf, log_file, _file_name("beat", name))
    name = name or f"beat-{os.getpid()}"
    if _is_watched(invocation):
        _greet(
            invocation,
            f"beat {name}, process {os.getpid()}",
            [
                ("app", f"{invocation.app}: {_some(tuple(app.entries), 'entry', 'entries')}"),
                ("broker", without_passwords(app.conf.broker_url)),
                ("logs", logs),
                ("ctrl-c", "stops it"),
            ],
        )
    _wait_for_room(app.conf, notifier)
    return run_beat(app, name=name, max_ticks=max_ticks, notifier=notifier)


def _wait_for_room(settings: Settings, notifier: Notifier) -> None:
    """Wait while the disk is too full for the file to be opened, as those do that run already.

    Ended at once it would be started anew at once, until the service manager gives it up; and then it
    would not run when there is room. A signal ends the process, which holds nothing yet.
    """
    from sqlqueue import log
    from sqlqueue.backend import database_path
    from sqlqueue_transport import files

    path = database_path(settings.broker_url)
    pause_s = _FIRST_PAUSE_S
    while path is not None and files.is_full(path):
        free = files.free_bytes(path.parent)
        text = f"the disk of {path} is full ({free} bytes free); free some space"
        log.get_logger(__name__).warning("store_busy", error=text, retry_in_s=pause_s)
        notifier.status("waiting for room on the disk")
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)


def _app_path(invocation: Invocation) -> str:
    if invocation.app is None:
        raise click.UsageError(
            "which application? Give -A module:attribute, such as -A tasks.app:app, or set"
            " SQLQUEUE_APP"
        )
    return invocation.app


def _apply(invocation: Invocation, settings: dict[str, Any]) -> str | None:
    """Hand the options to the settings, and return what is none of them: the log file."""
    log_file: str | None = settings.pop("log_file")
    if settings["log_level"] is None and invocation.verbose:
        settings["log_level"] = "debug"
    apply_command_line(invocation, {_FIELDS[key]: value for key, value in settings.items()})
    return log_file


def _log_to(settings: Settings, log_file: str | None, usual_name: str) -> str:
    """Open the log, and say where it is."""
    from sqlqueue import log

    file = None
    if log_file:
        file = Path(log_file)
    elif settings.log_dir:
        file = Path(settings.log_dir) / usual_name
    log.configure(
        level=settings.log_level,
        format=settings.log_format,  # type: ignore[arg-type] # one of three: the settings checked
        file=file,
    )
    return "here" if file is None else str(file)


def _file_name(kind: str, name: str | None) -> str:
    """Return the log's name in the log directory: a named worker has one of its own."""
    if name is None:
        return f"{kind}.log"
    return f"{name}.log" if name.startswith(kind) else f"{kind}-{name}.log"


def _check_name(name: str | None) -> None:
    """Refuse a name that is not simple: it stands in file names, log lines and stamps."""
    if name is None or re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._@:-]{0,99}", name):
        return
    raise click.UsageError(
        f"--name {quoted(name)}: use 1 to 100 of A-Z a-z 0-9 . _ @ : - and begin with a letter or"
        " a digit"
    )


def _is_watched(invocation: Invocation) -> bool:
    return sys.stderr.isatty() and not invocation.quiet


def _greet(invocation: Invocation, title: str, lines: Sequence[tuple[str, str]]) -> None:
    """Say on the terminal what was started: for whoever has just typed it."""
    color = is_colored(sys.stderr, invocation)
    heading = click.style(f"sqlqueue {title} on {socket.gethostname()}", bold=True)
    click.echo(heading, err=True, color=color)
    for key, value in lines:
        click.echo(f"  {click.style(f'{key:<8}', dim=True)}{escaped(value)}", err=True, color=color)


def _queues(names: Sequence[str], settings: Settings) -> str:
    weights = settings.worker_queue_weights
    if not weights:
        return ", ".join(names)
    return ", ".join(f"{name} ({weights.get(name, 1):g})" for name in names)


def _some(names: Sequence[str], one: str, many: str) -> str:
    shown = ", ".join(names[:6])
    more = f", and {len(names) - 6} more" if len(names) > 6 else ""
    return (
        f"{len(names)} {one if len(names) == 1 else many}: {shown}{more}" if names else f"no {many}"
    )


def _limits(settings: Settings) -> str:
    limit = took(settings.task_time_limit) if settings.task_time_limit else "none"
    attempts = settings.task_max_attempts or "any number of"
    return f"lease {took(settings.visibility_timeout)}, {attempts} attempts, time limit {limit}"


def _pool(pool: str, settings: Settings) -> str:
    if pool == "solo":
        return "solo: one job at a time, in this process"
    return f"{settings.worker_concurrency} {pool}"
