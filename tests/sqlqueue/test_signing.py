"""With a signing key only what somebody with the key has made is run; see docs/decisions.md."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import os
import sqlite3
import struct
import subprocess

import kombu
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlqueue import ConfigError, SqlQueue, envelope, execute, signing
from sqlqueue.backend import Taken, open_backend
from sqlqueue.beat.service import run_beat
from sqlqueue.beat.ticking import Beat
from sqlqueue.config import Settings
from sqlqueue.execute import Prepared, prepare
from sqlqueue.inspection import Inspection
from sqlqueue.operations import Action, Operations
from sqlqueue.schedules import stored_entry
from sqlqueue.signing import HEADER, Keys
from sqlqueue.task import Signature
from sqlqueue.worker.solo import run_solo
from sqlqueue_transport.lifecycle import State
from sqlqueue_transport.reading import JobFilter

KEY = "k" * 16 + "0123456789abcdef"
OLD = "o" * 16 + "0123456789abcdef"


@pytest.fixture
def app(make_app):
    app = make_app(signing_key=KEY)
    app.task(name="t")(lambda *args, **kwargs: [args, kwargs])
    return app


def taken(app, *args, **options):
    """Return a call as a worker has claimed it, by way of JSON as the file keeps it."""
    one = app.publication(Signature("t", args, {}, options))
    return Taken(
        tag=1,
        headers=json.loads(json.dumps(one.envelope.headers)),
        body=one.envelope.body.encode(),
        content_type=envelope.CONTENT_TYPE,
        content_encoding=envelope.CONTENT_ENCODING,
        queue=one.queue,
        attempts=0,
        max_attempts=None,
        delivery=1,
    )


def changed(message, **fields):
    return dataclasses.replace(message, **fields)


def refusal(app, message):
    """Return why a message is not run: the type of the dead letter's error, and its text."""
    outcome = prepare(app, message, worker="w")
    assert not isinstance(outcome, Prepared), "it would be run"
    assert outcome.cause == "rejected"
    return outcome.fault.type, outcome.fault.message


# --- what is run ----------------------------------------------------------------------------------


def test_what_the_application_signs_it_runs(app):
    for options in ({}, {"time_limit": 2.5, "expires": 60}, {"sensitive": True}, {"countdown": 3}):
        assert isinstance(prepare(app, taken(app, 1, "é", **options), worker="w"), Prepared)


def test_unsigned_message_is_refused_whoever_made_it(app, make_app):
    make = make_app()
    kind, text = refusal(app, taken(make, 1))
    assert kind == "Unsigned"
    assert "signing_key" in text
    assert "publish it anew; to requeue it does not help: docs/operations.md#signatures" in text


@pytest.mark.parametrize("body", [b"\xff", b"", b"[" * 100_000, b"\x80\x04pickle", b"{}"])
def test_body_is_not_decoded_before_the_signature_is_right(app, body):
    unsigned = changed(taken(app), body=body)
    assert refusal(app, unsigned)[0] == "BadSignature"
    unsigned.headers.pop(HEADER)
    assert refusal(app, unsigned)[0] == "Unsigned"


CHANGES = {
    "the body": lambda m: changed(m, body=m.body.replace(b"1", b"2")),
    "a byte behind the body": lambda m: changed(m, body=m.body + b" "),
    "the content type": lambda m: changed(m, content_type="application/JSON"),
    "the encoding": lambda m: changed(m, content_encoding="utf8"),
    "no encoding": lambda m: changed(m, content_encoding=None),
    "the task": lambda m: m.headers.update(task="t2"),
    "the id": lambda m: m.headers.update(id="other"),
    "the root": lambda m: m.headers.update(root_id="other"),
    "a parent": lambda m: m.headers.update(parent_id="other"),
    "when it expires": lambda m: m.headers.update(expires=None),
    "the limit": lambda m: m.headers.update(timelimit=[None, 2.0]),
    "a limit of text": lambda m: m.headers.update(timelimit=["7.0", 2.0]),
    "the mark of a sensitive call": lambda m: m.headers.pop("sqlqueue-sensitive"),
    "a parent that is left out": lambda m: m.headers.pop("parent_id"),
    "a header that is left out": lambda m: m.headers.pop("task"),
    "a header of another kind": lambda m: m.headers.update(task={"deep": [[[]]]}),
    "a header with half a surrogate pair": lambda m: m.headers.update(task="\ud800"),
    "a number beyond all floats": lambda m: m.headers.update(timelimit=[10**400, None]),
    "the signature's end": lambda m: m.headers.update({HEADER: m.headers[HEADER][:-1]}),
    "the signature's case": lambda m: m.headers.update({HEADER: m.headers[HEADER].upper()}),
    "more behind the signature": lambda m: m.headers.update({HEADER: m.headers[HEADER] + ".x"}),
    "a signature that is no text": lambda m: m.headers.update({HEADER: [1]}),
    "an empty signature": lambda m: m.headers.update({HEADER: ""}),
    "a signature that is no ASCII": lambda m: m.headers.update(
        {HEADER: m.headers[HEADER][:-1] + "\ud800é"}
    ),
    "another version": lambda m: m.headers.update({HEADER: "2" + m.headers[HEADER][1:]}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whoever_changes_what_is_signed_is_found_out(app, change):
    message = taken(app, 1, expires=60, time_limit=7, soft_time_limit=2, sensitive=True)
    assert isinstance(prepare(app, message, worker="w"), Prepared)
    other = change(message)
    kind, _ = refusal(app, other if isinstance(other, Taken) else message)
    assert kind == "BadSignature"


def test_mark_without_a_value_is_a_mark_that_nobody_signed(app):
    """Whoever looks at the queue would be shown nothing of the job any more."""
    message = taken(app, 1)
    message.headers["sqlqueue-sensitive"] = None
    assert refusal(app, message)[0] == "BadSignature"


@pytest.mark.parametrize(
    "headers",
    [
        {"eta": "2001-01-01T00:00:00+00:00", "retries": 3},  # another try on another broker
        {"origin": "somebody", "argsrepr": "x", "new": {"a": 1}, "group": "g", "stamps": {}},
    ],
)
def test_what_may_change_on_the_way_is_not_signed(app, headers):
    message = taken(app, 1, countdown=5)
    message.headers.update(headers)
    assert isinstance(prepare(app, changed(message, queue="other"), worker="w"), Prepared)


def test_signature_of_one_call_is_none_for_another(app):
    one, other = taken(app, 1), taken(app, 2)
    other.headers[HEADER] = one.headers[HEADER]
    assert refusal(app, other)[0] == "BadSignature"


def test_key_of_somebody_else_is_named_and_refused(app, make_app):
    kind, text = refusal(app, taken(make_app(signing_key=OLD)))
    assert kind == "BadSignature"
    assert Keys.of([OLD]).own.id in text
    assert KEY not in text
    assert OLD not in text


def test_signatures_are_compared_in_a_time_that_does_not_tell_them(app, monkeypatch):
    seen = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: seen.append((a, b)) or real(a, b))
    message = taken(app)
    message.headers[HEADER] = message.headers[HEADER][:-1] + "x"
    refusal(app, message)
    assert len(seen) == 1
    assert {len(each) for each in seen[0]} == {len(message.headers[HEADER])}


def test_signature_is_as_documented(app):
    message = taken(app, 1, time_limit=7)
    job_id = message.headers["id"].encode()

    def piece(kind, content):
        return kind + struct.pack(">Q", len(content)) + content

    signed = b"".join(
        [
            piece(b"t", b"message"),
            *(piece(b"t", b"application/json"), piece(b"t", b"utf-8")),
            *(piece(b"t", b"t"), piece(b"t", job_id), piece(b"t", job_id)),
            *(piece(b"0", b""), piece(b"0", b"")),  # no parent, never expires
            piece(b"l", piece(b"t", b"list") + piece(b"n", b"7.0") + piece(b"0", b"")),
            piece(b"-", b""),  # not sensitive: the header is not there
            piece(b"b", message.body),
        ]
    )
    key_id = hmac.new(KEY.encode(), b"sqlqueue key id", hashlib.sha256).hexdigest()[:8]
    mac = hmac.new(KEY.encode(), signed, hashlib.sha256).hexdigest()
    assert message.headers[HEADER] == f"1.{key_id}.{mac}"


VALUES = st.lists(
    st.none() | st.booleans() | st.text(max_size=4) | st.binary(max_size=4) | st.integers(-9, 9)
)


@given(VALUES | st.lists(VALUES, max_size=2), VALUES)
def test_no_two_lists_of_values_are_signed_alike(one, other):
    def exact(values):
        return repr([float(v) if type(v) is int else v for v in values])

    try:
        same = signing._encoded("message", one) == signing._encoded("message", other)
    except TypeError:  # a list in a list in a list
        return
    assert same == (exact(one) == exact(other)) or any(isinstance(each, list) for each in one)


def test_entry_and_message_are_signed_apart():
    assert signing._encoded("message", ["a", "b"]) != signing._encoded("entry", ["a", "b"])


# --- keys -----------------------------------------------------------------------------------------


def test_older_keys_are_accepted_while_the_new_one_signs(app, make_app):
    after = make_app(signing_key=OLD, signing_keys_accepted=[KEY])
    after.task(name="t")(lambda *args: None)
    assert isinstance(prepare(after, taken(app), worker="w"), Prepared)
    assert taken(after).headers[HEADER].split(".")[1] == Keys.of([OLD]).own.id
    assert refusal(app, taken(after))[0] == "BadSignature"


def test_file_has_a_key_a_line_and_the_first_signs(app, make_app, here):
    file = here / "keys"
    file.write_text(f"# of this year\n{OLD}\n\n{KEY}\n")
    file.chmod(0o600)
    other = make_app(signing_key_file=file)
    other.task(name="t")(lambda *args: None)
    assert isinstance(prepare(other, taken(app), worker="w"), Prepared)
    assert taken(other).headers[HEADER].split(".")[1] == Keys.of([OLD]).own.id


@pytest.mark.parametrize(
    "key", ["short", "x" * 31, "with spaces " * 4, "ü" * 40, "line\n" * 10, 5, ["x" * 40]]
)
@pytest.mark.parametrize("setting", ["signing_key", "signing_keys_accepted"])
def test_what_is_no_key_is_refused_and_not_repeated(here, setting, key):
    if setting == "signing_keys_accepted":
        key = [key]
    with pytest.raises(ConfigError, match=setting) as caught:
        _ = SqlQueue("x", **{setting: key}).conf
    shown = key[0] if isinstance(key, list) else key
    assert not isinstance(shown, str) or shown not in str(caught.value)


def test_accepted_keys_without_one_that_signs_are_a_mistake(make_app):
    with pytest.raises(ConfigError, match="signing_keys_accepted"):
        _ = make_app(signing_keys_accepted=[KEY]).keys


def test_key_and_file_are_one_too_many(make_app):
    with pytest.raises(ConfigError, match="choose one"):
        _ = make_app(signing_key=KEY, signing_key_file="keys").keys


def make_readable(path):
    path.write_text(KEY)
    path.chmod(0o640)


def make_link(path):
    path.with_name("real").write_text(KEY)
    path.with_name("real").chmod(0o600)
    path.symlink_to("real")


def make_empty(path):
    path.write_text("# nothing\n\n")
    path.chmod(0o600)


def make_short(path):
    path.write_text("secret-but-short\n")
    path.chmod(0o600)


def make_long(path):
    """Be cut where it ends in a key that is whole, and another one."""
    path.write_text("#" * (65_536 - 41) + "\n" + "k" * 60 + "\n")
    path.chmod(0o600)


def make_foreign(path):
    path.write_text(KEY)
    path.chmod(0o600)
    os.chown(path, 4242, -1)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: None,
        lambda path: path.mkdir(),
        lambda path: os.mkfifo(path, 0o600),
        *(make_readable, make_link, make_empty, make_short, make_long),
        pytest.param(
            make_foreign,
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away"),
        ),
    ],
)
def test_file_that_holds_no_secret_key_is_refused(make_app, here, make):
    make(here / "keys")
    with pytest.raises(ConfigError, match="signing_key_file") as caught:
        _ = make_app(signing_key_file="keys").keys
    assert "secret-but-short" not in str(caught.value)
    assert KEY not in str(caught.value)


def test_file_that_is_too_long_is_not_cut_to_another_key(make_app, here):
    make_long(here / "keys")
    with pytest.raises(ConfigError, match="more than 65536 bytes"):
        _ = make_app(signing_key_file="keys").keys
    (here / "keys").write_text("#" * (65_536 - 42) + "\n" + "k" * 40 + "\n")
    assert make_app(signing_key_file="keys").keys.own == Keys.of(["k" * 40]).own


BASE64 = "tq3Zk/8nVb+X0cQ2m/LrWy7sHd1eJ5uAoGfPiT9xK4w="


@pytest.mark.parametrize(
    "text", ["0123456789abcdef" * 4, BASE64, f" {BASE64}\n", f"# of today\n{'k' * 40}\n{BASE64}\n"]
)
def test_key_in_the_place_of_its_file_is_told_and_not_repeated(make_app, here, text):
    app = make_app(signing_key_file=text)
    with pytest.raises(ConfigError, match="belongs into signing_key;") as caught:
        _ = app.keys
    for word in text.split()[-1:]:
        assert word[:12] not in f"{caught.value} {app.conf!r} {app.resolved!r}"


@pytest.mark.parametrize("value", [[BASE64], f"{BASE64}\0", {"key": BASE64}])
def test_key_file_of_another_kind_is_refused_and_not_repeated(make_app, value):
    with pytest.raises(ConfigError, match="signing_key_file is no text") as caught:
        _ = make_app(signing_key_file=value).conf
    assert BASE64[:12] not in str(caught.value)


@pytest.mark.parametrize(
    "path",
    [
        "/etc/sqlqueue/keys-of-production-2024",
        "conf/keys/of/production/signing/key",
        "keys",
        "/srv/Queues2024/of/production/Signing/Keys/current.key",
    ],
)
def test_path_of_a_key_file_that_is_missing_is_shown(make_app, here, path):
    with pytest.raises(ConfigError, match="cannot read") as caught:
        _ = make_app(signing_key_file=path).keys
    assert path in str(caught.value)


def test_name_of_a_file_that_is_there_is_shown_whatever_it_looks_like(make_app, here):
    name = "k" * 40
    (here / name).write_text("")
    (here / name).chmod(0o600)
    with pytest.raises(ConfigError, match=name):
        _ = make_app(signing_key_file=name).keys


def test_who_follows_the_advice_for_a_key_that_others_could_read_gets_a_new_one(make_app, here):
    make_readable(here / "keys")
    with pytest.raises(ConfigError, match="chmod alone does not make them secret again") as caught:
        _ = make_app(signing_key_file="keys").keys
    command = str(caught.value).partition("a new key: ")[2].replace("NEW", "new")
    subprocess.run(["sh", "-c", command], check=True, cwd=here)
    assert make_app(signing_key_file="new").keys.own is not None
    assert KEY not in (here / "new").read_text()


def test_keys_are_shown_nowhere(make_app, here):
    app = make_app(signing_key=KEY, signing_keys_accepted=[OLD])
    shown = [app.resolved, app.conf, app.keys, app.keys.own, app.publication(Signature("t"))]
    for secret in (KEY, OLD):
        assert secret not in repr(shown)
        assert secret.encode().hex() not in repr(shown)


def test_who_only_looks_needs_no_key(make_app, here):
    app = make_app(signing_key_file="/nowhere/keys")
    assert app.backend.jobs(JobFilter()) == []


def test_worker_and_beat_do_not_start_without_their_key(make_app):
    app = make_app(signing_key_file="/nowhere/keys")
    with pytest.raises(ConfigError, match="/nowhere/keys"):
        run_solo(app, name="w", burst=True, handle_signals=False)

    with pytest.raises(ConfigError, match="/nowhere/keys"):
        run_beat(app, name="b")


# --- in a file, and elsewhere ---------------------------------------------------------------------


def rows(app):
    return {row.job_id: row for row in app.backend.jobs(JobFilter())}


def test_row_changed_or_forged_by_another_program_is_a_dead_letter_and_the_others_run(app, here):
    """Whoever can write the file, and has no key, can have nothing run."""
    ran = []
    app.task(name="noted")(ran.append)
    for number in range(3):
        app.send_task("noted", [number], job_id=f"job-{number}")
    app.close()
    with sqlite3.connect(here / "queue.db") as other:
        (body,) = other.execute("SELECT body FROM message WHERE job_id = 'job-1'").fetchone()
        other.execute(
            "UPDATE message SET body = ? WHERE job_id = 'job-1'", (body.replace(b"1", b"666"),)
        )
        other.execute(
            "INSERT INTO message (queue, state, priority, job_id, task, enqueued_at_ms, headers,"
            " properties, body, exchange, routing_key, content_type, content_encoding)"
            " SELECT queue, state, priority, 'forged', task, enqueued_at_ms,"
            " json_set(headers, '$.id', 'forged'), properties, body, exchange, routing_key,"
            " content_type, content_encoding FROM message WHERE job_id = 'job-2'"
        )
    other.close()
    run_solo(app, name="w", burst=True, handle_signals=False)
    assert sorted(ran) == [0, 2]
    found = rows(app)
    for job_id in ("job-1", "forged"):
        assert found[job_id].state is State.PERMANENTLY_FAILED
        assert found[job_id].error_type == "BadSignature"
        error = Inspection(app.backend).job(job_id).error
        assert "publish it anew; to requeue it does not help" in error.message
        assert error.traceback is None, "lines of ours help nobody"


def test_retry_and_requeue_keep_the_signature_and_need_no_key(app, make_app):
    tries = []

    @app.task(name="twice", max_attempts=2, retry_backoff=0, retry_jitter=False)
    def twice():
        tries.append(1)
        if len(tries) < 4:
            raise ValueError

    job = twice.delay()
    run_solo(app, name="w", burst=True, handle_signals=False)
    assert rows(app)[job.id].error_type == "ValueError"
    operations = Operations(Inspection(make_app().backend))
    choice = operations.choose(Action.REQUEUE, names=[job.id])
    assert operations.apply(Action.REQUEUE, choice.targets, actor="op").changed == 1
    run_solo(app, name="w", burst=True, handle_signals=False)
    assert len(tries) == 4
    assert rows(app)[job.id].state is State.DONE


def test_calls_of_every_kind_are_signed(app):
    app.send_task("t", [1])
    app.tasks["t"].delay(2)
    app.tasks["t"].map([3, 4])
    app.publish_many([app.tasks["t"].s(5)])
    backend = app.backend
    for row in backend.jobs(JobFilter()):
        assert HEADER in json.loads(backend.job(row.message_id).headers)
    run_solo(app, name="w", burst=True, handle_signals=False)
    assert {row.state for row in rows(app).values()} == {State.DONE}


def test_on_another_broker_retries_are_verified_as_well(make_app):
    app = make_app(broker_url="memory://", signing_key=KEY, task_default_queue="signed")
    ran, dead = [], []

    @app.task(name="again", bind=True, retry_backoff=0, retry_jitter=False)
    def again(self, x):
        ran.append((x, self.request.attempt))
        if self.request.attempt == 1:
            raise ValueError

    again.delay(1)
    make_app(broker_url="memory://", task_default_queue="signed").send_task("again", [2])
    backend = open_backend(app.conf)
    real = backend.settle
    backend.settle = lambda some: (
        dead.extend(o.fault.type for _, o in some if o.fault) or real(some)
    )
    run_solo(app, name="w", burst=True, handle_signals=False, backend=backend)
    backend.close()
    assert ran == [(1, 1), (1, 2)]
    assert sorted(dead) == ["Unsigned", "ValueError"]


def test_job_of_a_celery_program_is_refused_with_the_reason(app, here):
    with kombu.Connection(f"sqlqueue:///{here}/queue.db") as connection:
        connection.SimpleQueue("default").put(
            [[1], {}, {}],
            serializer="json",
            headers={"task": "t", "id": "from-celery", "lang": "py", "retries": 0},
        )
    run_solo(app, name="w", burst=True, handle_signals=False)
    assert rows(app)["from-celery"].error_type == "Unsigned"


def test_without_a_key_signatures_are_looked_at_by_nobody(app, make_app):
    plain = make_app()
    plain.task(name="t")(lambda *args: None)
    message = taken(app, 1)
    message.headers[HEADER] = "nonsense"
    assert isinstance(prepare(plain, message, worker="w"), Prepared)
    assert execute.job_id_of(message)


# --- entries of the schedule that live in the file ------------------------------------------------


def definition_of(app, name):
    [row] = [row for row in app.backend.schedules.entries() if row.entry == name]
    return row.definition


def test_entry_that_was_added_with_the_key_is_beaten(app):
    app.schedules.add("mine", app.tasks["t"].s("x", y=1.5), every="10s")
    found = stored_entry(app, "mine", definition_of(app, "mine"))
    assert found.signature.args == ("x",)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda d: d.update(args=["y"]), "was signed"),
        (lambda d: d.update(every=2.0), "was signed"),
        (lambda d: d.update(more=1), "was signed"),
        (lambda d: d.pop("signature"), "is not signed"),
    ],
)
def test_beat_signs_nothing_that_somebody_without_the_key_wrote_into_the_file(
    app, here, change, kind
):
    """A beat would sign whatever an entry of the file enqueues: it must know who wrote the entry."""
    app.schedules.add("mine", app.tasks["t"].s("x"), every="1s")
    text = json.loads(definition_of(app, "mine"))
    change(text)
    with sqlite3.connect(here / "queue.db") as other:
        other.execute("UPDATE schedule SET definition = ?", (json.dumps(text),))
    other.close()
    beat = Beat(app, name="b")
    assert beat.entries == {}
    [row] = app.schedules.list()
    assert kind in row.error
    beat.turn()
    assert rows(app) == {}


def test_signed_entry_under_another_name_is_refused(app):
    app.schedules.add("mine", app.tasks["t"].s("x"), every="10s")
    with pytest.raises(ConfigError, match="was signed"):
        stored_entry(app, "other", definition_of(app, "mine"))


def test_settings_of_the_environment_sign(here, monkeypatch):
    monkeypatch.setenv("SQLQUEUE_SIGNING_KEY", KEY)
    monkeypatch.setenv("SQLQUEUE_SIGNING_KEYS_ACCEPTED", f"{OLD},{'n' * 40}")
    keys = SqlQueue("x").keys
    assert keys.own == Keys.of([KEY]).own
    assert len(keys.accepted) == 3
    assert Settings().signing_key == ""
