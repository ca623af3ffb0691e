"""Opening a backend: what the settings mean for it, and what a wrong one is told.

What every backend does is in tests/contract.
"""

from __future__ import annotations

import time

import pytest

from sqlqueue.backend import Publication, SqliteBackend, open_backend
from sqlqueue.config import resolve
from sqlqueue.envelope import build
from sqlqueue.kombu_backend import KombuBackend
from sqlqueue_transport.errors import CannotOpen, DatabaseMissing, Unavailable
from tests.support import finish, run_python


@pytest.fixture
def opened(here):
    """Open backends on settings; they are closed in the end."""
    made = []

    def open_one(*, create=True, keep_leases=False, **settings):
        settings = {"broker_url": "sqlqueue:///queue.db", **settings}
        backend = open_backend(resolve(settings).settings, create=create, keep_leases=keep_leases)
        made.append(backend)
        return backend

    yield open_one
    for backend in made:
        backend.close()


def test_the_url_decides_which_backend_it_is(opened):
    assert isinstance(opened(), SqliteBackend)
    assert isinstance(opened(broker_url="memory://"), KombuBackend)


def test_settings_reach_the_transport_and_its_own_options_win(opened):
    options = opened(
        visibility_timeout=7, durability="full", transport_options={"busy_timeout": 3}
    )._channel.options
    assert (options.visibility_timeout, options.durability) == (7, "full")
    assert (options.busy_timeout, options.keep_leases) == (3, False)
    assert (
        opened(transport_options={"visibility_timeout": 9})._channel.options.visibility_timeout == 9
    )
    # How the framework uses it is not the user's to choose.
    options = opened(keep_leases=True, transport_options={"keep_leases": False})._channel.options
    assert options.keep_leases is True


def test_a_missing_file_is_made_or_refused_as_the_caller_asks(opened, here):
    began_s = time.monotonic()
    with pytest.raises(DatabaseMissing) as caught:
        opened(create=False)
    assert isinstance(caught.value, CannotOpen)
    assert time.monotonic() - began_s < 1.5  # Kombu itself would try again, two seconds later
    assert list(here.glob("queue.db*")) == []
    opened()
    assert (here / "queue.db").exists()
    opened(create=False)


def test_a_file_that_cannot_be_a_queue_is_refused_with_a_connection_error(opened, here):
    (here / "queue.db").write_text("not a database at all, but a long text" * 100)
    (here / "queue.db").chmod(0o600)
    with pytest.raises(Unavailable):
        opened()


def test_two_backends_of_a_process_share_one_store(opened):
    assert opened().store is opened().store


def test_a_queue_is_declared_once_and_not_with_every_publish(opened):
    backend = opened()
    calls = [Publication(build("t", [], {}, job_id=f"j{n}"), "mail") for n in range(3)]
    backend.publish(calls[:1])
    database = backend.store.database
    writes, reads = database.write_transactions, database.read_transactions
    backend.publish(calls[1:2])
    backend.publish(calls[2:])
    assert (database.write_transactions - writes, database.read_transactions - reads) == (2, 0)
    (queue,) = backend.queues()
    assert (queue.name, queue.pending) == ("mail", 3)


def test_keeping_watch_gives_back_what_the_dead_held(opened, here):
    opened().publish([])
    program = """
        import os
        from sqlqueue import SqlQueue

        app = SqlQueue("dead", broker_url="sqlqueue:///queue.db")
        app.send_task("t")
        app.backend.register(name="dead", kind="worker", queues=["default"], slots=1)
        ((taken,), _) = app.backend.claim(["default"], 1, [])
        app.backend.note_start(0, taken, 0, 5)
        print(taken.message_id, flush=True)
        os._exit(1)
    """
    process = run_python(program, cwd=here)
    message_id = int(process.stdout.readline())
    process.communicate(timeout=30)
    backend = opened(keep_leases=True)
    assert backend.job(message_id).row.state.value == "processing"
    backend.keep_watch()
    detail = backend.job(message_id)
    assert (detail.row.attempts, [one.outcome for one in detail.attempts]) == (1, ["lost"])
    assert detail.row.state.value in {"failed", "pending"}


def test_importing_the_backend_of_our_own_broker_does_not_import_the_other(here):
    program = """
        import sys
        from sqlqueue import SqlQueue

        SqlQueue("own").send_task("t")
        print("sqlqueue.kombu_backend" in sys.modules)
    """
    assert finish(run_python(program, cwd=here)) == "False\n"
