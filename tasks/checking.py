"""The check `stamped files`: what `sqlqueue doctor -A tasks.app:app` says of the job's files.

It stands behind the queue and compares what the jobs say with what their files carry: a done job
has its stamp, no job has two, a job that is still to run has its file. Reads only; mends nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from sqlqueue.text import escaped, quoted

from .app import app, job_settings
from .stamping import STAMP_TASK, RefusedFile, read_job_file, stamped_jobs, written_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = ["file_problems", "stamped_files"]

# Whoever put a job into one of these knows that it will not run; its file may go.
_GIVEN_UP = frozenset({"cancelled", "expired"})


def file_problems(directory: Path, jobs: Iterable[tuple[str, str, object]]) -> Iterator[str]:
    """Yield a sentence for each stamping job whose file does not say what it should.

    `jobs` are (job id, state, name of the file). A missing or unreadable jobs directory is one
    problem, with no word on each job. A name that stamping refused is told by its dead letter
    already, so `permanently_failed` jobs are looked at only as far as their file can be opened or
    is missing.
    """
    for job_id, state, name in jobs:
        if state in _GIVEN_UP:
            continue
        try:
            complaint = _complaint(directory, job_id, state=state, name=name)
        except OSError as error:
            if not directory.is_dir():
                yield f"the jobs directory {quoted(str(directory))} cannot be read: {error.strerror}"
                return
            complaint = f"its file {quoted(name)} cannot be read: {error.strerror}"
        if complaint:
            yield f"job {escaped(job_id)} ({state}): {complaint}"


def _complaint(directory: Path, job_id: str, *, state: str, name: object) -> str:
    """Return what is wrong with one job's file, "" if nothing is; raise OSError."""
    try:
        stamps = stamped_jobs(read_job_file(directory, name)).count(written_id(job_id))
    except RefusedFile as refusal:
        if refusal.is_missing:
            return f"its file {quoted(name)} is missing"
        return "" if state == "permanently_failed" else str(refusal)
    if stamps > 1:
        return f"its file {quoted(name)} carries {stamps} stamps of it"
    if state == "done" and not stamps:
        return f"its file {quoted(name)} carries no stamp of it"
    return ""


@app.check("stamped files")
def stamped_files(inspection: StampingJobs) -> Iterator[str]:
    """Yield what is wrong between the stamping jobs in the file and their job files."""
    return file_problems(job_settings().directory, _stamping_jobs(inspection))


class StampingJobs(Protocol):
    """Name what is needed of an inspection."""

    def jobs_with_arguments(self, *, task: str) -> Iterable[ListedJob]:
        """Return every job of a task, page by page."""


class ListedJob(Protocol):
    """Name what is needed of a listed job."""

    id: str
    state: str
    args: Sequence[object]
    kwargs: Mapping[str, object]


def _stamping_jobs(inspection: StampingJobs) -> Iterator[tuple[str, str, object]]:
    for job in inspection.jobs_with_arguments(task=STAMP_TASK):
        yield job.id, job.state, job.args[0] if job.args else job.kwargs.get("name")
