"""What the fuzz proof holds each input to: a documented error that helps, or all that was promised.

A target opens a place to work in, for some hundred examples, and yields a function that tries one. It
raises AssertionError, or lets through whatever was not documented, when a promise is broken.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import kombu
from hypothesis import strategies as st
from kombu.exceptions import EncodeError

from sqlqueue import SqlQueue, config, envelope
from sqlqueue.cli import documents, main
from sqlqueue.consoles.admin.view import View
from sqlqueue.errors import ConfigError, EnvelopeError, UndecodableMessage
from sqlqueue.inspection import Inspection
from sqlqueue_transport import NewMessage, Store
from sqlqueue_transport.errors import InvalidMessage
from sqlqueue_transport.lifecycle import State
from sqlqueue_transport.transport import Transport, split_url
from tests.cli.tree import LEAVES
from tests.proofs import fuzz_inputs as inputs

Check = Callable[[Any], None]
LONGEST_ERROR = 12_000  # characters: it may name a path of 5,000 twice


@dataclass(frozen=True)
class Target:
    """Be one thing to feed: which examples, and where they are tried."""

    name: str
    examples: st.SearchStrategy[Any]
    opened: Callable[[Path, Corpus], AbstractContextManager[Check]]
    at_once: int = 100  # examples a place is used for


@dataclass
class Corpus:
    """Keep what was accepted, for a real worker to run in the end, and count what was refused."""

    most: int = 600
    accepted: list[NewMessage] = field(default_factory=list)
    refused: int = 0
    tried: int = 0

    @contextlib.contextmanager
    def refusing(self, *documented: type[BaseException]) -> Iterator[None]:
        """Accept these errors, as long as they say something that can be shown."""
        try:
            yield
        except Exception as error:
            if not isinstance(error, documented):
                if _is_of_kombu(error):
                    return
                raise
            _hold_to_form(error)
            self.refused += 1


def _hold_to_form(error: Exception) -> None:
    text = str(error)
    assert 15 <= len(text) <= LONGEST_ERROR, f"{type(error).__name__} says {len(text)} characters"
    text.encode()  # a half surrogate pair would end whoever prints it


def _is_of_kombu(error: Exception) -> bool:
    """Say whether Kombu itself refused a value, before our transport saw it."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and "/site-packages/kombu/" in frame.tb_frame.f_code.co_filename


# -- reading a message --------------------------------------------------------------------------------


@contextlib.contextmanager
def _reading(_: Path, corpus: Corpus) -> Iterator[Check]:
    def check(wire: inputs.Wire) -> None:
        with corpus.refusing(UndecodableMessage):
            call = envelope.parse(
                wire.headers,
                wire.body,
                content_type=wire.content_type,
                content_encoding=wire.content_encoding,
            )
            # Whatever was read can be passed on, and is the same again.
            again = envelope.build(call.task, call.args, call.kwargs, job_id=call.id)
            assert envelope.parse(again.headers, again.body).args == call.args

    yield check


# -- messages and calls, to their end -------------------------------------------------------------------


class Ledger:
    """Compare what an application's test file holds with what it has accepted."""

    def __init__(self, directory: Path, corpus: Corpus) -> None:
        self.ran: list[int] = []
        self.passing = 0  # messages stored since the last look that are no jobs
        self._numbers = itertools.count()
        self._corpus = corpus
        self._stack = contextlib.ExitStack()
        self.app = SqlQueue("fuzz", broker_url=f"sqlqueue:///{directory}/unused.db")

        @self.app.task(name="good")
        def good(number: int) -> None:
            self.ran.append(number)

        @self.app.task(name=inputs.TASK, max_attempts=1)
        def captured(*args: Any, **kwargs: Any) -> Any:
            return [args, kwargs]

    def __enter__(self) -> Ledger:  # noqa: PYI034 - Self is not in Python 3.10
        self.testing = self._stack.enter_context(self.app.testing())
        self.store: Store = self.app.backend.store  # type: ignore[attr-defined]
        url = f"sqlqueue:///{self.testing.path}"
        self.connection = self._stack.enter_context(kombu.Connection(url))
        self.producer = kombu.Producer(self.connection.default_channel)
        for queue in inputs.QUEUES:
            self.connection.default_channel.queue_declare(queue)
        self.inspection = Inspection(
            self.app.backend, settings=self.app.conf, clock=self.testing.clock
        )
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()
        self.app.close()

    @contextlib.contextmanager
    def neighbours(self) -> Iterator[None]:
        """Put a good job before and one behind the block; then run all, and look what became of it."""
        first = next(self._numbers), next(self._numbers)
        before = self._newest()
        jobs = [self.app.send_task("good", (first[0],))]
        yield
        jobs.append(self.app.send_task("good", (first[1],)))
        ran = self.testing.drain(reraise=False, max_jobs=10_000)
        for job, number in zip(jobs, first, strict=True):
            assert self.ran.count(number) == 1, f"neighbour ran {self.ran.count(number)} times"
            assert State(job.state) is State.DONE, f"a neighbour is {job.state}"
        self._look_at_all(before, done=sum(one.state == "done" for one in ran))

    def publish(self, wire: inputs.Wire) -> None:
        """Publish a message one way or the other; what was accepted must be there."""
        before = self._newest()
        was_accepted = False
        with self._corpus.refusing(InvalidMessage, EncodeError):
            self._publish(wire)
            was_accepted = True
        rows = self._rows(before)
        self.passing += sum(is_no_job(row) for row in rows)
        known = wire.properties.get("sqlqueue_job_id")
        if was_accepted and not rows and known is not None:
            rows = self._rows_of_key(known)
            self.passing += 1  # it was there already; the id that it would have had is used up
        assert len(rows) == was_accepted, f"accepted: {was_accepted}, stored: {len(rows)}"
        if rows and len(self._corpus.accepted) < self._corpus.most:
            self._corpus.accepted += rows

    def _publish(self, wire: inputs.Wire) -> None:
        if not wire.raw:
            self.producer.publish(
                wire.body,
                exchange="",
                routing_key=wire.queue,
                headers=wire.headers,
                content_type=wire.content_type or "application/data",
                content_encoding=wire.content_encoding or "binary",
                **wire.properties,
            )
            return
        named = {
            "priority": wire.properties.get("priority") or 0,
            "unique_key": wire.properties.get("sqlqueue_job_id"),
            "max_attempts": wire.properties.get("sqlqueue_max_attempts"),
        }
        task, job_id = wire.headers.get("task"), wire.headers.get("id")
        message = NewMessage(
            wire.body,
            wire.queue,
            routing_key=wire.queue,
            content_type=wire.content_type,
            content_encoding=wire.content_encoding,
            headers=wire.headers_text or "",
            job_id=job_id if isinstance(job_id, str) else None,
            task=task if isinstance(task, str) else None,
            **named,
        )
        self.store.publish([message])

    def _newest(self) -> int:
        found: int = self.store.database.read(
            lambda c: c.execute("SELECT coalesce(max(id), 0) FROM message").fetchone()[0]
        )
        return found

    def _rows(self, above: int) -> list[NewMessage]:
        return self._stored("m.id > :value", above)

    def _rows_of_key(self, key: Any) -> list[NewMessage]:
        return self._stored("m.unique_key = :value", key)

    def _stored(self, condition: str, value: Any) -> list[NewMessage]:
        sql = f"""
        SELECT coalesce(m.body, (SELECT content FROM body AS b WHERE b.message_id = m.id)), m.queue,
               m.exchange, m.routing_key, m.content_type, m.content_encoding, m.headers, m.properties,
               m.priority, m.job_id, m.task, m.unique_key, m.due_at_ms, m.expires_at_ms, m.max_attempts
        FROM message AS m WHERE {condition} ORDER BY m.id
        """
        rows = self.store.database.read(lambda c: c.execute(sql, {"value": value}).fetchall())
        return [NewMessage(*row) for row in rows]

    def _look_at_all(self, before: int, *, done: int) -> None:
        ids = [
            row[0]
            for row in self.store.database.read(
                lambda c: c.execute("SELECT id FROM message WHERE id > ?", (before,)).fetchall()
            )
        ]
        count = self._newest() - before
        gone, passing, self.passing = count - len(ids), self.passing, 0
        assert gone <= passing, f"{gone} of {count} messages are missing"
        for message_id in ids:
            job = self.inspection.job(f"#{message_id}")
            done -= job.row.state is State.DONE
            assert_ended(job.row, self.testing.clock.wall_ms())
            # As operators and their programs see it.
            json.dumps(documents.job_document(job), allow_nan=False).encode()
        assert done >= 0, "done, and did not run"


def is_no_job(row: NewMessage) -> bool:
    """Say whether nobody can ask for it by name: then its row goes when it is done or expires."""
    return row.job_id is None or row.task is None


def assert_ended(row: Any, now_ms: int) -> None:
    """Fail unless a message has run, is a dead letter that says why, or waits for its time."""
    if row.state is State.PERMANENTLY_FAILED:
        assert row.error_type, "a dead letter without a reason"
        assert row.error_message, f"a dead letter that says only {row.error_type}"
    elif row.state in {State.SCHEDULED, State.FAILED}:
        assert row.due_at_ms is not None
        assert row.due_at_ms > now_ms, "due, and not run"
    else:
        assert row.state in {State.DONE, State.EXPIRED}, f"left {row.state.value}"


@contextlib.contextmanager
def _messages(directory: Path, corpus: Corpus) -> Iterator[Check]:
    with Ledger(directory, corpus) as ledger:

        def check(wires: Sequence[inputs.Wire]) -> None:
            with ledger.neighbours():
                for wire in wires:
                    ledger.publish(wire)

        yield check


@contextlib.contextmanager
def _calls(directory: Path, corpus: Corpus) -> Iterator[Check]:
    with Ledger(directory, corpus) as ledger:

        def check(call: tuple[Any, Any, Any, dict[str, Any]]) -> None:
            name, args, kwargs, options = call
            with ledger.neighbours():
                before = ledger._newest()
                was_accepted = False
                with corpus.refusing(EnvelopeError, TypeError):
                    job = ledger.app.send_task(name, args, kwargs, **options)
                    was_accepted = True
                rows = ledger._rows(before)
                if was_accepted and not rows:
                    rows = ledger._rows_of_key(job.id)
                assert len(rows) == was_accepted, f"accepted: {was_accepted}, stored: {len(rows)}"
                if len(corpus.accepted) < corpus.most:
                    served = inputs.QUEUES[0]  # by the worker at the end
                    corpus.accepted += [replace(row, queue=served) for row in rows]

        yield check


# -- names ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _names(directory: Path, corpus: Corpus) -> Iterator[Check]:
    path = directory / "names.db"
    with contextlib.closing(kombu.Connection(f"sqlqueue:///{path}")) as connection:

        def check(steps: Sequence[tuple[str, Any, Any, Any, dict[str, Any]]]) -> None:
            # What AMQP calls a channel error closes the channel there.
            channel: Any = connection.channel()
            documented = (InvalidMessage, *connection.channel_errors)
            try:
                for step in steps:
                    with corpus.refusing(*documented):
                        _topology(channel, *step)
            finally:
                channel.close()
            store = channel.store
            # Others see it, and can count and list it.
            for row in store.reading.queues():
                row.name.encode()
            store.topology.declare_queue("healthy")
            store.publish([NewMessage(b"x", "healthy")])
            assert store.topology.purge("healthy") == 1

        yield check


def _topology(
    channel: Any, verb: str, name: Any, other: Any, kind: Any, arguments: dict[str, Any]
) -> None:
    if verb == "queue":
        channel.queue_declare(name, arguments=arguments)
    elif verb == "exchange":
        channel.exchange_declare(name, kind, arguments=arguments)
    elif verb in {"bind", "unbind"}:
        getattr(channel, f"queue_{verb}")(name, exchange=other, routing_key=kind)
    elif verb == "publish":
        message = channel.prepare_message("x", 0, "text/plain", "utf-8", {}, {})
        channel.basic_publish(message, name, other)
    elif verb == "get":
        channel.basic_get(name)
    elif verb == "purge":
        channel.queue_purge(name)
    else:
        channel.queue_delete(name)


# -- settings, URLs ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def _settings(directory: Path, corpus: Corpus) -> Iterator[Check]:
    file = directory / "fuzz.toml"

    def check(example: tuple[bytes, dict[str, str], dict[str, Any]]) -> None:
        content, environment, code = example
        file.write_bytes(content)
        with corpus.refusing(ConfigError):
            config.resolve(code, config_file=file, environ=environment, command_line={})
        with corpus.refusing(ConfigError):
            config.set_command_line({}, file)
            app = SqlQueue("fuzz")
            for said in app.mistakes:
                said.encode()
            for entry in app.entries.values():
                entry.when.next_after(1_800_000_000_000)

    yield check
    config.set_command_line({})


@contextlib.contextmanager
def _urls(directory: Path, corpus: Corpus) -> Iterator[Check]:
    documented = (InvalidMessage, *Transport.connection_errors)

    def check(example: tuple[str, dict[str, Any]]) -> None:
        text, options = example
        with corpus.refusing(ConfigError):
            config.database_url(text)
        url = f"sqlqueue:///{text}"
        with corpus.refusing(*documented):
            path, _ = split_url(url.partition(";")[0])
            if not _is_beneath(directory, path):
                return
            connection = kombu.Connection(url, transport_options=options)
            with contextlib.closing(connection):
                opened = connection.transport.establish_connection()
                opened.close_connection(opened)

    yield check


def _is_beneath(directory: Path, name: str) -> bool:
    """Say whether it is safe to make a file of that name: this proof must not litter the machine."""
    try:
        return (directory / name).resolve().is_relative_to(directory.resolve())
    except (ValueError, OSError):
        return True  # no file at all


# -- looking ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _looking(directory: Path, corpus: Corpus) -> Iterator[Check]:
    with Ledger(directory, corpus) as ledger:
        with ledger.neighbours():
            for wire in inputs.celery_messages():
                ledger.publish(wire)
        inspection, now_ms = ledger.inspection, ledger.testing.clock.wall_ms()

        def check(query: dict[str, str]) -> None:
            view = View.read(query)
            assert View.read(view.params()) == view
            view.described().encode("utf-8", "surrogatepass")
            chosen = view.chosen(now_ms)
            cursor = query.get("cursor")
            with corpus.refusing(ValueError):
                page = inspection.jobs(chosen, cursor=cursor, limit=3)
                items = [documents.job_item(row, inspection) for row in page.items]
                json.dumps(items, allow_nan=False)
            with corpus.refusing(ValueError):
                inspection.audit(cursor=cursor)
            assert inspection.count(chosen).count >= 0

        yield check


# -- the command line -------------------------------------------------------------------------------------

# Those that run until they are stopped, make a project, or measure.
_LONG = {"worker", "beat", "demo", "bench", "init", "console admin", "console ops"}
# Endless, or naming code to import.
_NOT_GIVEN = {"--watch", "--app", "--help", "--version", "--wait", "--log-dir"}
_COMMANDS = {path: command for path, command in LEAVES.items() if path not in _LONG}


@st.composite
def _lines(draw: st.DrawFn) -> list[str]:
    path = draw(st.sampled_from(sorted(_COMMANDS)))
    words = path.split()
    given = [one for one in _COMMANDS[path].params if not _NOT_GIVEN & set(one.opts)]
    for param in draw(st.lists(st.sampled_from(given), max_size=4, unique=True)) if given else []:
        word = _tame(draw(inputs.WORDS))
        if isinstance(param, click.Argument):
            words.append(word)
        elif param.is_flag or param.count:  # type: ignore[attr-defined]
            words.append(param.opts[0])
        else:
            words += [param.opts[0], word]
    return words


def _tame(word: str) -> str:
    """Keep what a command may write beneath the working directory."""
    return word.replace("..", "").lstrip("/~") or "x"


@contextlib.contextmanager
def _command_line(directory: Path, corpus: Corpus) -> Iterator[Check]:
    with Ledger(directory, corpus) as ledger:
        with ledger.neighbours():
            for wire in inputs.celery_messages():
                ledger.publish(wire)
        path = str(ledger.testing.path)

        def check(words: Sequence[str]) -> None:
            given = list(words) if "--db" in words else [*words, "--db", path]
            code, said = _run(given)
            assert code in {0, 1, 2, 3, 4, 5, 6, 130}, f"exit code {code}"
            assert "this is a bug" not in said, said[-2_000:]
            assert not any(letter in said for letter in "\x1b\x07\u202e\x9b"), (
                "raw text of strangers"
            )
            corpus.refused += code == 2
            config.set_command_line({})

        yield check


def _run(words: Sequence[str]) -> tuple[int, str]:
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    stdin = sys.stdin
    try:
        sys.stdin = io.TextIOWrapper(io.BytesIO())
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(list(words))
    finally:
        sys.stdin = stdin
    said = out.buffer.getvalue() + err.buffer.getvalue()  # type: ignore[attr-defined]
    return code, said.decode()


TARGETS = (
    Target("reading", inputs.wires(), _reading, at_once=500),
    Target("messages", st.lists(inputs.wires(), min_size=1, max_size=6), _messages),
    Target("calls", inputs.CALLS, _calls),
    Target("names", inputs.TOPOLOGY, _names),
    Target("settings", st.tuples(inputs.toml(), inputs.ENVIRONMENTS, inputs.CODE), _settings),
    Target("urls", st.tuples(inputs.URLS, inputs.TRANSPORT_OPTIONS), _urls),
    Target("looking", inputs.QUERIES, _looking),
    Target("command line", _lines(), _command_line, at_once=60),
)

__all__ = ["TARGETS", "Check", "Corpus", "Target", "assert_ended", "is_no_job"]
