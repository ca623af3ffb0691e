"""Whoever can write to the queue can move no terminal, forge no line and hide no text.

Every command, on a queue in which every text is hostile: as a table, in JSON, on a terminal with
colours and without, with an error and its traceback; and the logs of a worker that runs such jobs.
"""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess

import pytest

from sqlqueue_transport.schedules import Described
from tests.cli.conftest import COLORS, program
from tests.cli.everything import OF_PROCESSES
from tests.cli.filling import Filled
from tests.cli.tree import LEAVES

# Blink (5) and the like are no colours of ours, so a trace of them is theirs.
TRICKS = {
    "ansi": "\x1b[5;7mblink\x1b[2J\x1b[H",
    "osc 8": "\x1b]8;;http://evil.example\x1b\\here\x1b]8;;\x07",
    "osc 52": "\x1b]52;c;cm0gLXJmIH4=\x07",
    "bidi": "\u202egnp.exe\u202c\u2066a\u2069\u200f\u061c",
    "markup": "[bold red]x[/] [link=http://x]y[/link] :smile: [/nothing]",
    "lines": "one\r\ntwo\n{'level': 'ok'}\rthree\x0b\x0c\x85\u2028\u2029end",
    "c1": "\x9b5m\x9d0;title\x9c\x90",
    "zero width": "in\u200bvis\u200cib\ufeffle\u00ad\u2060",
    "tags": "\U000e0041\U000e007f\ufff9",
    "csv": '=HYPERLINK("http://evil.example")',
    "control": "".join(map(chr, [*range(1, 32), 127])),
    "long": "x" * 300,
}
HOSTILE = "evil" + "".join(TRICKS.values())
# SQLite stores no halves of pairs, but JSON inside of a body or a result may spell them.
HALVES = "\ud800\udfff"

FORBIDDEN = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff"
    "\ufff9-\ufffb\U000e0000-\U000e0fff]"
)
OUR_COLORS = re.compile(r"\x1b\[(?:0|1|2|22|3[0-9]|39|(?:1;|2;)?38;[25](?:;\d+)+|1;3\d)?m")


def assert_harmless(text: str, *, colored: bool = False) -> None:
    """Fail when a text could do anything but be read; `colored` allows the colours we send."""
    rest = OUR_COLORS.sub("", text) if colored else text
    found = FORBIDDEN.search(rest)
    assert found is None, f"{found[0]!r} in {rest[max(0, found.start() - 60) : found.end() + 20]!r}"


@pytest.fixture
def hostile(filled) -> Filled:
    """Give a queue in which everything that takes a text has a hostile one."""
    one = {"job_id": "one", "task": HOSTILE, "args": (HOSTILE,), "kwargs": {HOSTILE: HOSTILE}}
    consumers, store = filled.store.consumers, filled.store
    consumers.register(name=HOSTILE, kind="worker", queues=["default", HOSTILE], slots=1)
    filled.dead(HOSTILE, HOSTILE, **one)
    filled.dead(HOSTILE, HOSTILE, **{**one, "job_id": HOSTILE})
    filled.done({HOSTILE: HOSTILE}, **{**one, "job_id": "done"})
    filled.failed(HOSTILE, HOSTILE, **{**one, "job_id": "failed"})
    filled.publish(**{**one, "job_id": "running"})
    running = filled.claim()
    store.running.note_progress(running.message_id, running.delivery, done=1, total=2, note=HOSTILE)
    filled.publish(**{**one, "job_id": "waiting"}, queue=HOSTILE)
    filled.publish(**{**one, "job_id": HOSTILE}, queue=HOSTILE)
    halves = json.dumps([[HALVES], {HALVES: HALVES}, {}]).encode()
    filled.publish(job_id="halves", task=HOSTILE, body=halves)
    store.pausing.pause(HOSTILE, actor=HOSTILE, reason=HOSTILE)
    store.schedules.describe(
        [
            Described(HOSTILE, HOSTILE, HOSTILE, next_due_ms=1, definition=HOSTILE),
            Described("tidy", HOSTILE, HOSTILE, next_due_ms=1, definition='{"every": 5}'),
        ]
    )
    store.schedules.set_error(HOSTILE, HOSTILE)
    for job_id in ("one", "done"):
        for_celery = {"exc_type": HOSTILE, "exc_message": [HOSTILE, HALVES], "exc_module": HOSTILE}
        value = {"status": HOSTILE, "result": for_celery, "traceback": HOSTILE}
        key = f"celery-task-meta-{job_id}"
        store.results.store(key, HOSTILE, json.dumps(value).encode(), expires_s=None)
    store.database.write(
        lambda c: (
            c.execute(
                "INSERT INTO audit (at_ms, actor, action, message_id, job_id, reason, before, after)"
                " SELECT 1, :text, 'requeue', id, job_id, :text, 'done', 'pending' FROM message",
                {"text": HOSTILE},
            ).rowcount
        )
    )
    return filled


LINES = [
    ["inspect", "stats"],
    ["inspect", "jobs"],
    ["inspect", "jobs", "--error", HOSTILE],
    ["inspect", "dead"],
    ["inspect", "dead", "--by", "error"],
    *(["inspect", "job", job_id] for job_id in ("one", "done", "failed", "running", "halves")),
    ["inspect", "job", "one", "--traceback", "all", "--utc"],
    ["inspect", "job", HOSTILE],
    ["inspect", "queues"],
    ["inspect", "workers"],
    ["inspect", "schedule"],
    ["inspect", "schedule", "--next", "2"],
    ["inspect", "ping"],
    ["schedule", "list"],
    ["requeue", "--state", "permanently_failed", "--dry-run"],
    ["requeue", "one", "waiting", HOSTILE, "--yes", "--reason", HOSTILE],
    ["cancel", "waiting", "--reason", HOSTILE],
    ["cancel", "--task", HOSTILE, "--terminate", "--yes"],
    ["fail", "--queue", HOSTILE, "--yes", "--reason", HOSTILE],
    ["pause", HOSTILE, "--reason", HOSTILE],
    ["resume", HOSTILE],
    ["schedule", "pause", HOSTILE, "--reason", HOSTILE],
    ["schedule", "resume", HOSTILE],
    ["schedule", "remove", HOSTILE],
    ["purge", HOSTILE, "--dry-run"],
    ["purge", HOSTILE, "--yes", "--reason", HOSTILE],
    ["prune", "--older-than", "0s", "--dry-run"],
    ["prune", "--older-than", "0s", "--yes", "--reason", HOSTILE],
    ["doctor"],
    ["doctor", "--strict"],
    ["db", "path"],
    ["db", "path", "--db", HOSTILE],
    ["db", "check"],
    ["db", "backup", HOSTILE],
    ["db", "migrate"],
    ["db", "recount"],
    ["config", "validate"],
    ["config", "validate", "-A", HOSTILE],
    ["init", HOSTILE],
    ["config", "show", "--origin"],
    # what is wrong with a line is told with the line's own words
    ["inspect", "job", HOSTILE + "?"],
    ["inspect", "jobs", "--state", HOSTILE],
    ["inspect", "jobs", "--since", HOSTILE],
    ["inspect", "jobs", "--cursor", HOSTILE],
    ["inspect", "jobs", "--limit", HOSTILE],
    ["inspect", "dead", "--by", HOSTILE],
    ["inspect", HOSTILE],
    [HOSTILE],
    [f"--{HOSTILE}"],
    ["inspect", "stats", HOSTILE],
    ["inspect", "stats", "-A", HOSTILE],
    ["inspect", "stats", "--db", HOSTILE],
    ["inspect", "stats", "--db", f"{HOSTILE[:40]}/q.db"],
    ["inspect", "stats", "--db", f"redis+{HOSTILE}://x"],
    ["inspect", "stats", "--config", HOSTILE],
    ["inspect", "stats", "-o", HOSTILE],
    ["requeue", HOSTILE + "?"],
    ["cancel", "done", HOSTILE + "?"],
    ["pause", HOSTILE + "?"],
    ["schedule", "remove", HOSTILE + "?"],
    ["schedule", "add", HOSTILE, "t", "--every", "5s"],
    ["schedule", "add", "e", HOSTILE, "--every", HOSTILE],
    ["schedule", "add", "e", HOSTILE, "--cron", HOSTILE],
    ["schedule", "add", "e", HOSTILE, "--at", HOSTILE],
    ["schedule", "add", "e", HOSTILE, "--every", "1s", "--timezone", HOSTILE],
    ["schedule", "add", "e", HOSTILE, "--every", "1s", "--catch-up", HOSTILE],
    ["call", HOSTILE],
    ["call", "t", HOSTILE],
    ["call", "t", "--kwargs", HOSTILE],
    ["call", "t", "--queue", HOSTILE],
    ["call", "t", "--eta", HOSTILE],
    ["call", "t", "--countdown", HOSTILE],
    ["call", "t", "--job-id", HOSTILE],
    ["call", "t", "--job-id", "mine\x1b[5m", "--wait", "--timeout", "0.01"],
    ["worker", "-A", HOSTILE],
    ["worker", "-A", "x", "--name", HOSTILE],
    ["worker", "-A", "x", "--max-memory-per-child", HOSTILE],
    ["worker", "-A", "x", "--log-level", HOSTILE],
    ["beat", "-A", "x", "--name", HOSTILE],
    ["demo", "--dir", HOSTILE, "--every", HOSTILE],
    ["purge", HOSTILE + "?"],
    ["prune", "--older-than", HOSTILE],
    ["prune", "--older-than", "0s", "--state", HOSTILE],
    ["db", "backup", HOSTILE[:40] + "/copy.db"],
    ["console", HOSTILE],
    ["console", "ops", "--host", HOSTILE],
    ["console", "ops", "--token", HOSTILE],
    ["console", "ops", "--allow-host", HOSTILE, "--auth", "none", "--host", "0.0.0.0"],
    ["init", HOSTILE[:40] + "/b"],
    ["bench", "--dir", HOSTILE],
    ["bench", "--payload", HOSTILE],
    ["completion", HOSTILE],
]
# A name of bytes that are no UTF-8 comes from the shell like this.
LINES += [["inspect", "job", "\udcff"], ["requeue", "\udcff"], ["call", "t", "--job-id", "\udcff"]]


def name_of(words: list[str]) -> str:
    return " ".join(re.sub(r"[^\w.:=-]+", "…", word[:30]) for word in words)


@pytest.mark.parametrize("words", LINES, ids=name_of)
@pytest.mark.parametrize("output", ["table", "json", "jsonl"])
def test_output_without_a_terminal_is_harmless(cli, hostile, words, output):
    result = cli(*words, "-o", output)
    assert_harmless(result.out)
    assert_harmless(result.err)
    assert "this is a bug" not in result.err
    if output != "table":
        for line in result.out.splitlines():
            json.loads(line)


@pytest.mark.parametrize("words", LINES, ids=name_of)
def test_output_on_a_terminal_is_harmless(screen, hostile, words):
    colored = screen(*words)
    assert_harmless(colored.text, colored=True)
    plain = screen(*words, "--no-color", columns=60)
    assert_harmless(plain.text, colored=True)
    assert not re.search(r"\x1b\[[0-9;]*[34]\d", plain.text)


def test_a_question_on_a_terminal_is_harmless(screen, hostile):
    asked = screen("cancel", "--task", HOSTILE, answer="n\n")
    assert "such as " in asked.text
    assert "evil\\x1b[5;7mblink" in asked.words
    assert "nothing was changed" in asked.text
    assert_harmless(asked.text, colored=True)
    asked = screen("purge", HOSTILE, answer="another\n")
    assert "evil\\x1b[5;7mblink" in asked.words
    assert "nothing was deleted" in asked.text
    assert_harmless(asked.text, colored=True)


@pytest.mark.parametrize("words", LINES, ids=name_of)
def test_traceback_of_an_error_is_harmless(cli, hostile, words):
    result = cli(*words, "-v")
    assert_harmless(result.out)
    assert_harmless(result.err)


def test_every_command_is_tried():
    tried = {" ".join(words[: size + 1]) for words in LINES for size in range(2)}
    assert set(LEAVES) <= tried | OF_PROCESSES


def test_hostile_text_is_shown_and_not_left_out(cli, hostile):
    for command in ("inspect jobs", "inspect job one", "inspect dead --by error", "doctor"):
        assert "evil\\x1b[5;7mblink" in cli(*command.split()).out
    shown = cli("inspect", "job", "one").out
    assert "[bold red]x[/] [link=http://x]y[/link] :smile: [/nothing]" in shown
    assert "\\u202egnp.exe" in shown
    assert cli("inspect", "job", HOSTILE, "--json").json["id"] == HOSTILE


@pytest.mark.parametrize("trick", TRICKS)
def test_each_trick_alone_leaves_no_trace(cli, filled, trick):
    text = TRICKS[trick]
    filled.dead(text[:200], text, task=text, job_id="one", args=(text,))
    filled.publish(task=text, queue=text, job_id=text)
    filled.close()
    for command in ("inspect jobs", "inspect job one", "inspect dead --by error", "inspect queues"):
        for output in ("table", "json"):
            assert_harmless(cli(*command.split(), "-o", output).out)


# -- the logs of a worker ------------------------------------------------------------------------------

APP = f"""
from sqlqueue import SqlQueue, get_task_logger

app = SqlQueue("shop")
HOSTILE = {HOSTILE!r}
log = get_task_logger("shop")


@app.task(name="shop.fail", max_attempts=1)
def fail(text):
    log.warning(text + "%s", text, extra={{"more": text}})
    try:
        raise KeyError(text)
    except KeyError as error:
        raise type("Evil", (ValueError,), {{}})(text + {HALVES!r}) from error


@app.task(name="shop.retry", max_attempts=2, retry_backoff=0.01)
def again(text):
    raise OSError(text)
"""


@pytest.fixture
def work(tmp_path):
    """Put jobs of all kinds with hostile texts into a queue that a worker may empty."""
    (tmp_path / "evil.py").write_text(APP)
    filled = Filled(tmp_path / "queue.db")
    filled.publish("shop.fail", (HOSTILE,), job_id=HOSTILE)
    filled.publish("shop.fail", (HOSTILE,), job_id="plain")
    filled.publish("shop.retry", (HOSTILE,), job_id=HOSTILE + "2")
    filled.publish(HOSTILE, (HOSTILE,), job_id="unknown")
    filled.publish("shop.fail", body=HOSTILE.encode(), job_id="torn")
    filled.publish(
        "shop.fail", headers=json.dumps({"id": HOSTILE, "task": HOSTILE, "eta": HOSTILE})
    )
    filled.close()
    return ["worker", "-A", "evil:app", "--burst", "-c", "1"]


def test_a_log_for_programs_is_harmless_and_a_line_is_an_event(run, work):
    result = run(*work, "--log-format", "json")
    assert result.code == 0
    assert_harmless(result.err)
    events = [json.loads(line)["event"] for line in result.err.splitlines()]
    assert events.count("job_permanently_failed") == 6
    assert "evil\\\\x1b[5;7mblink" in result.err


def test_a_log_for_people_is_harmless_also_without_a_terminal(run, work):
    result = run(*work, "--log-format", "console")
    assert result.code == 0
    assert_harmless(result.err)
    assert "evil\\x1b[5;7mblink" in result.err


def test_a_log_on_a_terminal_is_harmless(work, tmp_path):
    ours, theirs = pty.openpty()
    process = program(
        *work,
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        text=False,
        env={"TERM": "xterm-256color", "COLUMNS": "120"},
    )
    os.close(theirs)
    said = b""
    try:
        while piece := os.read(ours, 65_536):
            said += piece
    except OSError:  # Linux: nobody has the other end any more
        pass
    os.close(ours)
    assert process.wait(timeout=30) == 0
    text = said.decode().replace("\r\n", "\n")
    assert "evil\\x1b[5;7mblink" in COLORS.sub("", text)
    assert_harmless(text, colored=True)
