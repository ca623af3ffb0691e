"""The application that is recorded for the power cuts: its jobs say what will become of them."""

from __future__ import annotations

from sqlqueue import SqlQueue, Task
from tests.proofs.recording import note

app = SqlQueue("proofs", broker_url="sqlqueue:///queue.db")


@app.task(name="echo", bind=True, retry_backoff=0)
def echo(self: Task[..., str], token: str) -> str:
    """Return the token; those that end in 1 fail once before."""
    if token.split("-")[1].endswith("1") and self.request.attempt == 1:
        note("settling", token=token, to="retry")
        raise ValueError(token)
    note("settling", token=token, to="done")
    return token
