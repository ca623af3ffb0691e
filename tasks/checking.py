"""The check `stamped files`: what `sqlqueue doctor -A tasks.app:app` says of the job's files.

It stands behind the queue and compares what the jobs say with what their files carry: a done job
has its stamp, no job has two, a job that is still to run has its file. Reads only; mends nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlqueue.text import escaped, quoted

from .app import app, job_settings
from .stamping import STAMP_TASK, RefusedFile, read_job_file, stamped_jobs, written_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from sqlqueue.inspection import Call, Inspection

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
def stamped_files(inspection: Inspection) -> Iterator[str]:
    """Yield what is wrong between the stamping jobs in the file and their job files."""
    calls = inspection.jobs_with_arguments(task=STAMP_TASK)
    jobs = ((call.id, call.state, _name_in(call)) for call in calls)
    return file_problems(job_settings().directory, jobs)


def _name_in(call: Call) -> object:
    """Return the file's name as the job has it; None where its arguments have none."""
    return call.args[0] if call.args else call.kwargs.get("name")
