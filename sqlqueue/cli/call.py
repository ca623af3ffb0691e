"""`sqlqueue call TASK`: enqueue one job from the shell."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final

import click

from sqlqueue.cli import documents
from sqlqueue.cli.completing import queue_names, task_names
from sqlqueue.cli.failures import CommandFailed, ExitCode
from sqlqueue.cli.filters import moment_ms
from sqlqueue.cli.invocation import Command, Invocation, duration, pass_invocation
from sqlqueue.cli.opening import apply_command_line, load
from sqlqueue.cli.output import Output, dumped
from sqlqueue.errors import ConfigError, UnknownTask
from sqlqueue.text import did_you_mean, quoted

if TYPE_CHECKING:
    from sqlqueue.app import SqlQueue
    from sqlqueue.inspection import Job

__all__ = ["application", "call", "read_json", "refuse_more"]

_FIRST_PAUSE_S: Final = 0.01
_LONGEST_PAUSE_S: Final = 0.2


@click.command(cls=Command, context_settings={"allow_extra_args": True})
@click.argument("task", shell_complete=task_names)
@click.argument("args", required=False, metavar="[JSON_ARGS]")
@click.option("--kwargs", metavar="JSON", help="""Keyword arguments: '{"name": "a"}'.""")
@click.option("--queue", help="Default: the task's own queue.", shell_complete=queue_names)
@click.option("--countdown", type=duration, help="Start no sooner than in 10m.")
@click.option("--eta", metavar="TIME", help="Start no sooner than at this ISO time.")
@click.option("--expires", type=duration, help="Do not start later than in 1h.")
@click.option("--priority", type=click.IntRange(0, 9), help="9 goes first; default: the task's.")
@click.option("--job-id", help="An id of your own: stored once, however often it is called.")
@click.option("--wait", is_flag=True, help="Wait for the job to end and print its result.")
@click.option("--timeout", type=duration, help="Wait no longer than 30s; default: for ever.")
@click.option("--force", is_flag=True, help="Enqueue a task that the application does not have.")
@pass_invocation
def call(
    invocation: Invocation,
    /,
    *,
    task: str,
    args: str | None,
    kwargs: str | None,
    wait: bool,
    timeout: float | None,
    force: bool,
    eta: str | None,
    **options: Any,
) -> int:
    """Enqueue a job and print its id.

    JSON_ARGS are the positional arguments as a JSON list: sqlqueue call tasks.add '[2, 3]'. With -A
    the task's queue and attempts count, and a task that the application does not have is an error.

    With --wait the exit code is 1 when the job did not end well.
    """
    refuse_more(click.get_current_context())
    if timeout is not None and not wait:
        raise click.UsageError("--timeout goes with --wait")
    if eta is not None and options["countdown"] is not None:
        raise click.UsageError("give either --countdown or --eta, not both")
    if eta is not None:
        at_ms = moment_ms(eta, name="--eta")
        try:
            options["eta"] = datetime.fromtimestamp(at_ms / 1000, tz=timezone.utc)
        except (ValueError, OverflowError, OSError):
            raise click.UsageError(
                f"--eta {quoted(eta)} is beyond the years of a calendar"
            ) from None
    positional = read_json(args, list, what="JSON_ARGS", example="'[1, \"a\"]'")
    named = read_json(kwargs, dict, what="--kwargs", example="""'{"name": "a"}'""")
    output = Output(invocation)
    apply_command_line(invocation)
    app = application(invocation, task, force=force)
    try:
        job_id = app.send_task(task, positional, named, **options).id
        if not wait:
            _tell_id(output, job_id)
            return ExitCode.OK
        if output.is_table:
            click.echo(job_id)
        return _told_end(output, _ended(app, job_id, timeout))
    finally:
        app.close()


def application(invocation: Invocation, task: str, *, force: bool) -> SqlQueue:
    """Return the application of `-A`, or one without tasks. Raises ConfigError for an unknown task."""
    app = load(invocation)
    if app is None:
        from sqlqueue.app import SqlQueue

        return SqlQueue("sqlqueue call")
    if task not in app.tasks and not force:
        error = UnknownTask(task)
        names = sorted(app.tasks)
        known = f" It has: {', '.join(names[:10])}." if names else " It has none."
        raise ConfigError(
            f"no task named {quoted(error.task)} in {quoted(invocation.app)}."
            f"{did_you_mean(task, names) or known} Say --force to enqueue it all the same."
        )
    return app


def refuse_more(context: click.Context) -> None:
    """Raise UsageError for words after JSON_ARGS, without repeating them: they may be secret.

    For a command with `allow_extra_args`; click itself would repeat them.
    """
    if context.args:
        raise click.UsageError(
            "there is more after JSON_ARGS. All positional arguments go into one JSON list, keyword"
            """ arguments with --kwargs: '[1, "a"]' --kwargs '{"name": "a"}'."""
        )


def read_json(text: str | None, kind: type[Any], *, what: str, example: str) -> Any:
    """Return what JSON text means, under the rules of a message's body."""
    from sqlqueue import plain_json

    if text is None:
        return kind()
    try:
        value = plain_json.read(text.encode(errors="surrogatepass"))
    except plain_json.Unreadable as error:
        raise click.UsageError(f"{what} {error}. Write it as {example}.") from None
    if not isinstance(value, kind):
        name = "list" if kind is list else "object"
        is_named = kind is list and isinstance(value, dict)
        hint = " Keyword arguments go with --kwargs." if is_named else ""
        raise click.UsageError(f"{what} is no JSON {name}. Write it as {example}.{hint}")
    return value


def _tell_id(output: Output, job_id: str) -> None:
    if output.is_table:
        click.echo(job_id)
    else:
        output.document({"id": job_id})


def _ended(app: SqlQueue, job_id: str, timeout_s: float | None) -> Job:
    """Wait for the job to end and return it. Raises CommandFailed when the time is over."""
    from sqlqueue.inspection import Inspection
    from sqlqueue_transport.lifecycle import FINISHED

    inspection = Inspection(app.backend, settings=app.conf)
    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
    pause_s = _FIRST_PAUSE_S
    while True:
        job = inspection.job(job_id)
        if job.row.state in FINISHED:
            return job
        left_s = pause_s if deadline_s is None else deadline_s - time.monotonic()
        if left_s <= 0:
            raise CommandFailed(
                f"job {job_id} is {job.row.state.value} after {timeout_s:g} s; it goes on. Does a"
                f" worker serve the queue {quoted(job.row.queue)}? See 'sqlqueue inspect queues'."
            )
        time.sleep(min(pause_s, left_s))
        pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)


def _told_end(output: Output, job: Job) -> int:
    is_done = job.row.state.value == "done"
    if not output.is_table:
        output.document(documents.job_document(job))
    elif is_done and job.is_sensitive:
        output.note("Its result is not shown, because the task is sensitive.")
    elif is_done:
        click.echo(dumped(job.result))
    if is_done:
        return ExitCode.OK
    why = f": {job.error.type}: {job.error.message}" if job.error else ""
    raise CommandFailed(
        f"job {job.row.job_id} ended {job.row.state.value}{why}. See 'sqlqueue inspect job"
        f" {job.row.job_id}'."
    )
