"""`sqlqueue requeue | cancel | fail`: changing jobs, by id or by filter.

First the jobs are found, then shown or asked about, then exactly those are changed that are still
as they were seen. Nothing here waits for an answer that nobody can give: without a terminal, more
than one job needs `--yes`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import click

from sqlqueue.actor import actor
from sqlqueue.cli import documents, showing
from sqlqueue.cli.failures import CommandFailed, ExitCode
from sqlqueue.cli.filters import filter_options, job_filter
from sqlqueue.cli.gauge import Gauge
from sqlqueue.cli.invocation import Command, Invocation, duration, pass_invocation
from sqlqueue.cli.opening import inspecting
from sqlqueue.cli.output import Output
from sqlqueue.formats import number

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlqueue.operations import Action, Choice, Report

__all__ = ["actor", "cancel", "fail", "requeue"]

_PAST: Final = {
    "requeue": "requeued",
    "cancel": "cancelled",
    "terminate": "cancelled",
    "fail": "marked as failed",
}
_PRESENT: Final = {
    "requeue": "requeueing",
    "cancel": "cancelling",
    "terminate": "cancelling",
    "fail": "failing",
}
_MOST_SHOWN: Final = 50


def _acting(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add what the three commands have in common."""
    for option in reversed(
        (
            click.argument("ids", nargs=-1, metavar="[ID]..."),
            filter_options,
            click.option("--reason", help="Why; kept in the audit table."),
            click.option("--dry-run", is_flag=True, help="Show which jobs, and change nothing."),
            click.option("--yes", "-y", is_flag=True, help="Do not ask."),
        )
    ):
        function = option(function)
    return function


@click.command(cls=Command)
@_acting
@pass_invocation
def requeue(invocation: Invocation, /, **options: Any) -> int:
    """Run jobs again: back to pending, with their history kept and attempts counted anew.

    Name jobs by their IDs, or choose them by filters. A filter without --state means dead letters
    (permanently_failed) only; done, failed, cancelled and expired jobs are requeued by ID, or with
    --state.
    """
    return _act("requeue", invocation, **options)


@click.command(cls=Command)
@_acting
@click.option("--terminate", is_flag=True, help="Also running jobs: their tasks are asked to stop.")
@click.option(
    "--force-after",
    type=duration,
    metavar="DURATION",
    help="Ask them to stop, and after so long kill the process of what still runs.",
)
@pass_invocation
def cancel(
    invocation: Invocation, /, *, terminate: bool, force_after: float | None, **options: Any
) -> int:
    """Give up jobs that have not ended: pending, scheduled and failed ones.

    Name jobs by their IDs, or choose them by filters. With --terminate running jobs are asked to stop:
    a task that heeds it ends as cancelled, and so does one that fails or whose worker dies; one that
    completes all the same is done. --force-after kills those that do not stop in time.
    """
    if force_after is None and not terminate:
        return _act("cancel", invocation, **options)
    return _act("terminate", invocation, force_after_s=force_after, **options)


@click.command(cls=Command)
@_acting
@pass_invocation
def fail(invocation: Invocation, /, **options: Any) -> int:
    """Put jobs to the dead letters: permanently_failed, with your reason as their error.

    Name jobs by their IDs, or choose them by filters. A filter without --state leaves running jobs
    alone; failing a running job takes its lease away, so that its worker's result is refused.
    """
    return _act("fail", invocation, **options)


def _act(
    name: str,
    invocation: Invocation,
    *,
    ids: tuple[str, ...],
    reason: str | None,
    dry_run: bool,
    yes: bool,
    force_after_s: float | None = None,
    **filters: Any,
) -> int:
    given = {key: value for key, value in filters.items() if value}
    if ids and given:
        raise click.UsageError("give either IDs or filters, not both")
    if not ids and not given:
        raise click.UsageError(
            f"which jobs? Give IDs, or filters such as --task or --error; to {name} all of a state,"
            " say --state"
        )
    output = Output(invocation)
    with inspecting(invocation) as inspection:
        from sqlqueue.operations import Action, Operations

        action = Action(name)
        operations = Operations(inspection)
        chosen = None if ids else job_filter(**filters)
        if chosen is not None:
            _refuse_illegal_states(action, [state.value for state in chosen.states], chosen.stalled)
        choice = operations.choose(action, names=ids, chosen=chosen)
        _refuse_nothing(action, choice, ids)
        report = None
        if not dry_run:
            _agree(output, action, choice, yes=yes)
            with Gauge(invocation, _PRESENT[name]) as gauge:
                report = operations.apply(
                    action,
                    choice.targets,
                    actor=actor("cli"),
                    reason=reason,
                    force_after_s=force_after_s,
                    tell=lambda done: gauge.count(done, len(choice.targets)),
                )
    _tell(output, action, choice, report, force_after_s)
    is_partial = choice.unfit or choice.unknown or (report is not None and report.skipped)
    return ExitCode.PARTLY if is_partial else ExitCode.OK


def _refuse_illegal_states(action: Action, names: list[str], stalled: bool) -> None:
    legal = [state.value for state in action.legal_states]
    wrong = [name for name in (["processing"] if stalled else names) if name not in legal]
    if wrong:
        raise click.UsageError(
            f"{action.value} cannot change jobs that are {' or '.join(wrong)}; it takes"
            f" {', '.join(legal)}{_hint(action, wrong)}"
        )


def _hint(action: Action, states: Sequence[str]) -> str:
    """Return what to say beside a refusal: how to cancel what runs."""
    if action.value == "cancel" and "processing" in states:
        return ". --terminate asks running jobs to stop"
    return ""


def _refuse_nothing(action: Action, choice: Choice, ids: tuple[str, ...]) -> None:
    """Raise when not a single job can be changed."""
    if choice.targets:
        return
    if choice.unfit:
        states = sorted({target.state.value for target in choice.unfit})
        who = f"job {choice.unfit[0].name} is" if len(choice.unfit) == 1 else "these jobs are"
        raise CommandFailed(
            f"{who} {' or '.join(states)}, and {action.value} takes"
            f" {', '.join(state.value for state in action.legal_states)}{_hint(action, states)}."
            " Nothing was changed.",
            ExitCode.NOT_FOUND,
        )
    if ids:
        names = ", ".join(f"'{name}'" for name in choice.unknown[:5])
        raise CommandFailed(
            f"no job has the id {names}. List jobs with 'sqlqueue inspect jobs'.",
            ExitCode.NOT_FOUND,
        )
    raise CommandFailed(
        "no job matches. Look with the same filters: 'sqlqueue inspect jobs …'.",
        ExitCode.NOT_FOUND,
    )


def _agree(output: Output, action: Action, choice: Choice, *, yes: bool) -> None:
    """Ask where more than one job would change; refuse where nobody could answer."""
    count = len(choice.targets)
    if yes or count == 1:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise CommandFailed(
            f"{_would(action, choice)}, and there is no terminal to ask on. Say --yes to do it, or"
            " --dry-run to look at them.",
            ExitCode.USAGE,
        )
    states: dict[str, int] = {}
    for target in choice.targets:
        states[target.state.value] = states.get(target.state.value, 0) + 1
    what = ", ".join(f"{number(many)} {state}" for state, many in states.items())
    samples = ", ".join(target.name for target in choice.targets[:3])
    output.note(f"{what}, such as {samples}")
    if not click.confirm(f"{action.value.capitalize()} {number(count)} jobs?", err=True):
        raise CommandFailed("nothing was changed", ExitCode.FAILED)


def _would(action: Action, choice: Choice) -> str:
    """Say what would become of the jobs."""
    asked = 0
    if action.value == "terminate":
        asked = sum(target.state.value == "processing" for target in choice.targets)
    parts = []
    if len(choice.targets) > asked or not asked:
        parts.append(f"{number(len(choice.targets) - asked, 'job')} would be {_PAST[action.value]}")
    if asked:
        parts.append(f"{number(asked, 'running job')} would be asked to stop")
    return ", ".join(parts)


def _tell(
    output: Output,
    action: Action,
    choice: Choice,
    report: Report | None,
    force_after_s: float | None,
) -> None:
    if not output.is_table:
        output.document(documents.action_document(action, choice, report))
    elif report is None:
        showing.targets(output, choice.targets[:_MOST_SHOWN])
        if len(choice.targets) > _MOST_SHOWN:
            output.line(f"… and {number(len(choice.targets) - _MOST_SHOWN)} more")
    if report is None:
        output.note(f"{_would(action, choice)}; nothing was changed.")
        return
    text = _summary(action, choice, report, force_after_s)
    if output.is_table:
        output.line(f"{text}.")
    else:
        output.note(f"{text}.")


def _summary(action: Action, choice: Choice, report: Report, force_after_s: float | None) -> str:
    """Return what became of the jobs, in one line."""
    text = f"{number(report.changed - report.asked)} {_PAST[action.value]}"
    if report.asked:
        text += f", {number(report.asked)} asked to stop"
    skipped = report.skipped + len(choice.unfit) - report.foreign
    if skipped:
        text += f", {number(skipped)} skipped: their state had changed"
        if choice.unfit:
            text += f" or was none of {', '.join(state.value for state in action.legal_states)}"
            text += _hint(action, [target.state.value for target in choice.unfit])
    if report.foreign:
        text += (
            f", {number(report.foreign)} not asked, as no worker of ours runs them: for Celery's use"
            " 'celery control revoke ID --terminate'"
        )
    unforced = sum(one.after is not None and one.holder == "worker" for one in report.changes)
    if force_after_s is not None and unforced:
        text += f"; {number(unforced)} cannot be killed for it: the pool solo has nobody who could"
    if choice.unknown:
        text += f"; {number(len(choice.unknown), 'id')} without a job"
    return text
