"""What a console asks before it acts, and what it says afterwards. Knows no Streamlit.

Where a person ticks jobs or means all of a filter, `Choice` says which they are and in what state
they were seen; here that becomes words: how many, which, what becomes of them, and what the
operator has to type.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlqueue.formats import number
from sqlqueue.inspection import State
from sqlqueue.operations import Action, Choice, Target
from sqlqueue.palette import TITLES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlqueue.inspection import JobFilter
    from sqlqueue.operations import Report
    from sqlqueue_transport.reading import JobRow

__all__ = [
    "ICONS",
    "LABELS",
    "MOST_WITHOUT_TYPING",
    "Question",
    "choice_of",
    "legal_states",
    "narrowed",
    "question_of",
    "summary",
    "why_not",
]

MOST_WITHOUT_TYPING: Final = 20
_SAMPLES: Final = 5
LABELS: Final = {
    Action.REQUEUE: "Requeue",
    Action.FAIL: "Mark as failed",
    Action.CANCEL: "Cancel",
    Action.TERMINATE: "Terminate",
}
ICONS: Final = {
    Action.REQUEUE: ":material/replay:",
    Action.FAIL: ":material/report:",
    Action.CANCEL: ":material/block:",
    Action.TERMINATE: ":material/stop_circle:",
}
_WHAT_COMES: Final = {
    Action.REQUEUE: "Back to pending, to run again, with attempts counted anew.",
    Action.FAIL: "To the dead letters, with your reason as the error. A running job loses its lease,"
    " and its worker’s result is refused.",
    Action.CANCEL: "Given up: what waits will not run.",
    Action.TERMINATE: "Running tasks are asked to stop. What heeds it ends as cancelled; what"
    " completes all the same is done.",
}
_PAST: Final = {
    Action.REQUEUE: "requeued",
    Action.FAIL: "marked as failed",
    Action.CANCEL: "cancelled",
    Action.TERMINATE: "cancelled",
}


@dataclass(frozen=True, slots=True)
class Question:
    """Be what a dialog asks. All texts may be strangers’: whoever shows them escapes them.

    `typed` is what the operator has to type, "" for nothing, and `typed_label` says so.
    `asks_force` offers to end by force what does not stop.
    """

    title: str
    label: str
    lines: tuple[str, ...] = ()
    samples: tuple[str, ...] = ()
    typed: str = ""
    typed_label: str = ""
    asks_reason: bool = True
    asks_force: bool = False

    def is_answered_by(self, text: str) -> bool:
        """Say whether this is what had to be typed; thousands may be parted."""
        given = text.strip()
        return not self.typed or self.typed in {given, given.replace(",", "").replace("’", "")}


def legal_states(action: Action) -> tuple[State, ...]:
    """Return the states a console's button takes: Terminate is for what runs, Cancel for the rest."""
    return (State.PROCESSING,) if action is Action.TERMINATE else action.legal_states


def why_not(action: Action, states: Iterable[State]) -> str:
    """Return why a button cannot be used for jobs in these states; "" when it can for some."""
    seen = set(states)
    if not seen:
        return "Tick jobs first"
    legal = legal_states(action)
    if seen & set(legal):
        return ""
    takes = ", ".join(TITLES[state.value] for state in legal)
    there = " or ".join(TITLES[state.value] for state in State if state in seen)
    return f"{LABELS[action]} takes {takes}: what is ticked is {there}"


def choice_of(action: Action, rows: Iterable[JobRow]) -> Choice:
    """Return the jobs of these rows as a choice, each in the state it was shown in."""
    legal = legal_states(action)
    targets = [Target(row.message_id, row.job_id, row.task, row.queue, row.state) for row in rows]
    return Choice(
        targets=tuple(one for one in targets if one.state in legal),
        unfit=tuple(one for one in targets if one.state not in legal),
    )


def narrowed(action: Action, chosen: JobFilter) -> JobFilter | None:
    """Return the filter with the states that a button takes; None when there are none in it.

    A filter without states means those where nothing can be lost, as on the command line.
    """
    if chosen.stalled:
        return chosen if State.PROCESSING in legal_states(action) else None
    wanted = chosen.states or action.usual_states
    states = tuple(state for state in wanted if state in legal_states(action))
    return dataclasses.replace(chosen, states=states) if states else None


def question_of(action: Action, choice: Choice) -> Question:
    """Return what to ask before an action on these jobs."""
    count = len(choice.targets)
    lines = [_states(choice.targets), _WHAT_COMES[action]]
    if choice.unfit:
        lines.append(
            f"{number(len(choice.unfit), 'job')} left out, which"
            f" {'is' if len(choice.unfit) == 1 else 'are'} {_state_names(choice.unfit)}."
        )
    asks_typing = count > MOST_WITHOUT_TYPING
    return Question(
        title=f"{LABELS[action]}: {number(count, 'job')}",
        label=f"{LABELS[action]} {number(count, 'job')}",
        lines=tuple(lines),
        samples=tuple(one.name for one in choice.targets[:_SAMPLES]),
        typed=str(count) if asks_typing else "",
        typed_label=f"Type {number(count)} to confirm" if asks_typing else "",
        asks_force=action is Action.TERMINATE,
    )


def summary(action: Action, report: Report, *, force_after_s: float | None = None) -> str:
    """Return what became of the jobs, in a line or two."""
    parts = []
    if report.changed > report.asked or not report.asked:
        parts.append(f"{number(report.changed - report.asked)} {_PAST[action]}")
    if report.asked:
        parts.append(f"{number(report.asked)} asked to stop")
    if skipped := report.skipped - report.foreign:
        parts.append(f"{number(skipped)} skipped: their state had changed")
    if report.foreign:
        parts.append(
            f"{number(report.foreign)} not asked, as no worker of ours runs them: for Celery’s use"
            " 'celery control revoke ID --terminate'"
        )
    unforced = sum(one.after is not None and one.holder == "worker" for one in report.changes)
    if force_after_s is not None and unforced:
        parts.append(
            f"{number(unforced)} cannot be killed for it: the pool solo has nobody who could"
        )
    return f"{', '.join(parts)}."


def _states(targets: Sequence[Target]) -> str:
    counted = Counter(one.state for one in targets)
    return ", ".join(
        f"{number(counted[state])} {TITLES[state.value]}" for state in State if counted[state]
    )


def _state_names(targets: Sequence[Target]) -> str:
    seen = {one.state for one in targets}
    return " or ".join(TITLES[state.value] for state in State if state in seen)
