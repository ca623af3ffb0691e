"""What the admin console shows of a stamping job besides the job: the end of its file. Reads only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .app import app, job_settings
from .stamping import STAMP_TASK, RefusedFile, read_job_file

if TYPE_CHECKING:
    from sqlqueue.inspection import Call

__all__ = ["stamped_file"]


@app.job_view("Stamped file", task=STAMP_TASK)
def stamped_file(call: Call) -> str:
    """Return what the job's file says; why it cannot be shown, where it cannot.

    Opened by the rules of stamping, so that a job whose name leads elsewhere shows nothing of it.
    """
    name = call.args[0] if call.args else call.kwargs.get("name")
    try:
        return read_job_file(job_settings().directory, name).decode("utf-8", "replace")
    except RefusedFile as refusal:
        return str(refusal)
    except OSError as error:
        return f"the file cannot be read: {error.strerror}"
