"""Every command and every option, used for real, on a real file, where there is no terminal.

Each row is a command line and what must come of it. `test_no_option_is_without_a_row` compares the
rows with the command tree: who adds an option adds a row. The options that every command has are
tried on every command, in the second half; `everything.LINES` has a line for each of them to be tried
with, `MEANINGLESS` where one of them says nothing, and `TRIED_IN` where else something is tried.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest

from sqlqueue_transport import Store
from sqlqueue_transport.reading import JobFilter
from tests.cli.conftest import program
from tests.cli.everything import (
    MEANINGLESS,
    OF_PROCESSES,
    TRIED_IN,
    UNHEALTHY,
    WITHOUT_FILE,
    Queue,
    is_apart,
    wrong_line,
)
from tests.cli.tree import COMMANDS, LEAVES, options_of
from tests.support import ROOT, wait_until


@dataclass(frozen=True)
class Seen:
    """What a line has said and done."""

    code: int
    out: str
    err: str
    queue: Queue

    @property
    def document(self) -> Any:
        return json.loads(self.out)


Check = Callable[[Seen], None]


@dataclass(frozen=True)
class Row:
    """A command, what follows it (`{app}` is an application), and what must come of it."""

    command: str
    line: str
    check: Check
    before: str = ""  # a command line that comes first

    @property
    def options(self) -> set[str]:
        """Return the options of the command that the line uses, by their first names."""
        words = {*shlex.split(self.line)}
        own = names_of(options_of(COMMANDS[self.command], shared=False))
        return {names[0] for names in own if words & {*names}}


def names_of(options: list[click.Option]) -> list[list[str]]:
    """Return the names of each option; `--no-reload` is one of its own."""
    return [names for one in options for names in (one.opts, one.secondary_opts) if names]


def long_names(command: str, *, shared: bool) -> list[str]:
    """Return the names with two dashes of a command's options."""
    names = names_of(options_of(COMMANDS[command], shared=shared))
    return [name for some in names for name in some if name.startswith("--")]


# -- what may come of it ------------------------------------------------------------------------------


def lists(*ids: str) -> Check:
    """Expect a list of exactly these jobs."""

    def check(seen: Seen) -> None:
        assert (seen.code, seen.err) == (0, "")
        assert {item["id"] for item in seen.document["items"]} == set(ids)

    return check


def changes(state: str, *ids: str) -> Check:
    """Expect that these jobs come into a state, and no other changes."""

    def check(seen: Seen) -> None:
        assert (seen.code, seen.err) == (0, "")
        assert seen.queue.states() == {**seen.queue.before, **dict.fromkeys(ids, state)}

    return check


def deletes(*ids: str) -> Check:
    """Expect that these jobs are gone, and no other changed."""

    def check(seen: Seen) -> None:
        assert (seen.code, seen.err) == (0, "")
        left = {one: state for one, state in seen.queue.before.items() if one not in ids}
        assert seen.queue.states() == left

    return check


def copies_to(file: str) -> Check:
    """Expect a queue file in which the same jobs are."""

    def check(seen: Seen) -> None:
        assert (seen.code, seen.err) == (0, "")
        copy = Store(seen.queue.directory / file)
        rows = copy.reading.jobs(JobFilter(), limit=1000)
        copy.close()
        assert {row.job_id for row in rows} == {*seen.queue.before}

    return check


def shows(*texts: str, code: int = 0, without: tuple[str, ...] = ()) -> Check:
    """Expect patterns in what is said, on standard output or error."""

    def check(seen: Seen) -> None:
        assert seen.code == code, seen.err
        for text in texts:
            assert re.search(text, seen.out + seen.err), text
        for text in without:
            assert not re.search(text, seen.out + seen.err), text

    return check


def only_shows(*ids: str) -> Check:
    """Expect these ids, and no change."""

    def check(seen: Seen) -> None:
        assert seen.code == 0
        assert all(job_id in seen.out for job_id in ids)
        assert "nothing was changed" in seen.err.lower()
        assert seen.queue.states() == seen.queue.before

    return check


def records(action: str, reason: str, job_id: str) -> Check:
    """Expect the reason in the audit of a job."""

    def check(seen: Seen) -> None:
        assert seen.code == 0
        found = [(one["action"], one["reason"]) for one in seen.queue.job(job_id)["audit"]]
        assert found == [(action, reason)]

    return check


def records_for_queue_or_entry(action: str, reason: str) -> Check:
    """Expect the reason in the newest audit record, which is about no job."""

    def check(seen: Seen) -> None:
        assert seen.code == 0, seen.err
        rows = seen.queue.filled.store.database.read(
            lambda c: c.execute("SELECT action, reason FROM audit ORDER BY id DESC").fetchall()
        )
        assert action in rows[0][0]
        assert rows[0][1] == reason

    return check


def groups(*kinds: str) -> Check:
    """Expect dead letters grouped by these errors."""

    def check(seen: Seen) -> None:
        assert {item["error"]["type"] for item in seen.document["items"]} == set(kinds)
        assert all("count" in item for item in seen.document["items"])

    return check


def enqueues(**wanted: Any) -> Check:
    """Expect a job whose document has these values."""

    def check(seen: Seen) -> None:
        assert (seen.code, seen.err) == (0, "")
        job = seen.queue.job(seen.out.split()[0])
        assert {key: job[key] for key in wanted} == wanted

    return check


def expires_in_s(seconds: float) -> Check:
    """Expect a job that must not start later than so long after it was enqueued."""

    def check(seen: Seen) -> None:
        rows = seen.queue.filled.store.database.read(
            lambda c: c.execute(
                "SELECT expires_at_ms - enqueued_at_ms FROM message WHERE job_id = ?",
                (seen.out.strip(),),
            ).fetchall()
        )
        assert rows[0][0] == pytest.approx(seconds * 1000, abs=1000)

    return check


def defines(**wanted: Any) -> Check:
    """Expect an entry `e` that is defined so in the file."""

    def check(seen: Seen) -> None:
        assert (seen.code, seen.out, seen.err) == (0, "e: added.\n", "")
        found = seen.queue.definition("e")
        flat = {**found, **found["options"]}
        assert {key: flat.get(key) for key in wanted} == wanted

    return check


def asks_to_stop(*, by_force: bool) -> Check:
    """Expect that the running job is asked to stop."""

    def check(seen: Seen) -> None:
        assert (seen.code, seen.out) == (0, "0 cancelled, 1 asked to stop.\n")
        job = seen.queue.job("running")
        assert job["state"] == "processing"
        assert job["stop_asked_at"]
        assert bool(job["kill_at"]) is by_force

    return check


def has_settings(**wanted: Any) -> Check:
    """Expect these settings in force where the application was imported."""

    def check(seen: Seen) -> None:
        assert seen.code == 0, seen.err
        lines = (seen.queue.directory / "asked.txt").read_text().splitlines()
        assert lines
        for line in lines:
            found = json.loads(line)
            assert {key: found[key] for key in wanted} == wanted

    return check


def leaves(count: int, state: str) -> Check:
    """Expect a worker that ended by itself, and left so many jobs in a state."""

    def check(seen: Seen) -> None:
        assert seen.code == 0, seen.err
        assert list(seen.queue.states().values()).count(state) == count

    return check


def says_event(name: str, **fields: Any) -> Check:
    """Expect an event with these fields in the log, which is JSON on standard error."""

    def check(seen: Seen) -> None:
        assert seen.code == 0, seen.err
        found = [json.loads(line) for line in seen.err.splitlines()]
        [first, *_] = [event for event in found if event["event"] == name]
        assert {key: first[key] for key in fields} == fields

    return check


def writes_log(file: str, *, first: str) -> Check:
    """Expect the log in a file, and nothing on standard error."""

    def check(seen: Seen) -> None:
        assert (seen.code, seen.err) == (0, "")
        line = (seen.queue.directory / file).read_text().splitlines()[0]
        assert json.loads(line)["event"] == first

    return check


def logs_for_people(event: str) -> Check:
    """Expect a log that is not JSON."""

    def check(seen: Seen) -> None:
        assert seen.code == 0
        [line, *_] = [line for line in seen.err.splitlines() if event in line]
        assert not line.startswith("{")

    return check


# -- the rows ------------------------------------------------------------------------------------------

LISTING = [
    ("--state done", ("done",)),
    ("--task tasks.mail", ("mail", "letter")),
    ("--queue mail", ("mail", "letter")),
    ("--error ValueError", ("old", "dead")),
    ("--since 1h", ("mail", "dead", "done", "failed", "running", "waiting", "letter")),
    ("--until 1h", ("old", "stale")),
    ("--search tasks.mail", ("mail", "letter")),
    ("--celery-state failure", ("dead",)),
    ("--worker w", ("dead", "done", "failed", "running")),
    ("--limit 1", ("stale",)),
    ("--cursor 3", ("old", "mail")),
]
ACTING = {
    "requeue": (
        "pending",
        [
            ("--state done", ("done",)),
            ("--task tasks.mail", ("mail",)),
            ("--queue mail", ("mail",)),
            ("--error OSError", ("mail",)),
            ("--since 1h --yes", ("mail", "dead")),
            ("--until 1h", ("old",)),
            ("--search dead", ("dead",)),
            ("--celery-state FAILURE", ("dead",)),
            ("--worker w", ("dead",)),
            ("--task tasks.add --yes", ("old", "dead")),
        ],
    ),
    "cancel": (
        "cancelled",
        [
            ("--state failed", ("failed",)),
            ("--task tasks.mail", ("letter",)),
            ("--queue mail", ("letter",)),
            ("--error OSError", ("failed",)),
            ("--since 1h --yes", ("failed", "waiting", "letter")),
            ("--until 1h", ("stale",)),
            ("--search waiting", ("waiting",)),
            ("--celery-state RETRY", ("failed",)),
            ("--worker w", ("failed",)),
            ("--task tasks.add --yes", ("failed", "waiting", "stale")),
        ],
    ),
    "fail": (
        "permanently_failed",
        [
            ("--state failed", ("failed",)),
            ("--task tasks.mail", ("letter",)),
            ("--queue mail", ("letter",)),
            ("--error OSError", ("failed",)),
            ("--since 1h --yes", ("failed", "waiting", "letter")),
            ("--until 1h", ("stale",)),
            ("--search waiting", ("waiting",)),
            ("--celery-state RETRY", ("failed",)),
            ("--worker w", ("failed",)),
            ("--task tasks.add --yes", ("failed", "waiting", "stale")),
        ],
    ),
}
ADD = "e shop.tidy --every 5s"

ROWS = [
    # inspect
    *(
        Row("inspect jobs", f"{line} --json", lists(*ids))
        for line, ids in LISTING
        if "--limit" not in line
    ),
    Row("inspect jobs", "--limit 1", shows(r"^ID.*\nstale .*\n", "--cursor 9")),
    Row("inspect dead", "--by error --json", groups("OSError", "ValueError")),
    Row("inspect dead", "--task tasks.mail --json", lists("mail")),
    Row("inspect dead", "--queue mail --json", lists("mail")),
    Row("inspect dead", "--error 'disk full' --json", lists("mail")),
    Row("inspect dead", "--since 1h --json", lists("mail", "dead")),
    Row("inspect dead", "--limit 1", shows(r"^ID.*\ndead ", without=("\nmail ",))),
    Row("inspect dead", "--cursor 2 --json", lists("old")),
    Row("inspect job", "dead --traceback none", shows("no such file", without=("Traceback",))),
    Row("inspect schedule", "--next 3", shows(r"(tidy .*\n){3}")),
    # acting
    *(
        Row(command, line, changes(state, *ids))
        for command, (state, lines) in ACTING.items()
        for line, ids in lines
    ),
    Row("requeue", "dead --reason 'it works again'", records("requeue", "it works again", "dead")),
    Row("cancel", "waiting --reason unwanted", records("cancel", "unwanted", "waiting")),
    Row("fail", "waiting --reason wrong", records("fail", "wrong", "waiting")),
    Row("requeue", "--task tasks.add --dry-run", only_shows("old", "dead")),
    Row("cancel", "--task tasks.add --dry-run", only_shows("failed", "waiting", "stale")),
    Row("fail", "waiting letter --dry-run", only_shows("waiting", "letter")),
    Row("purge", "mail --yes", deletes("letter")),
    Row("purge", "mail --dry-run", only_shows("mail: 1 message would be deleted")),
    Row("purge", "mail --yes --reason spring", records_for_queue_or_entry("purge", "spring")),
    Row("prune", "--older-than 1h --state permanently_failed --yes", deletes("old")),
    Row("prune", "--older-than 0s --yes", deletes("done")),
    Row("prune", "--older-than 0s --dry-run", only_shows("1 job in done that ended before")),
    Row(
        "prune",
        "--older-than 0s --yes --reason spring",
        records_for_queue_or_entry("prune", "spring"),
    ),
    Row("cancel", "running --terminate", asks_to_stop(by_force=False)),
    Row("cancel", "running --force-after 1h", asks_to_stop(by_force=True)),
    Row("pause", "mail --reason 'server down'", records_for_queue_or_entry("pause", "server down")),
    Row("resume", "mail --reason up", records_for_queue_or_entry("resume", "up"), "pause mail"),
    # call
    Row("call", """t --kwargs '{"a": 1}'""", enqueues(args=[], kwargs={"a": 1})),
    Row("call", "t --queue mail", enqueues(queue="mail", state="pending")),
    Row("call", "t --countdown 1h", enqueues(state="scheduled")),
    Row("call", "t --eta 2099-01-02T03:04Z", enqueues(due_at="2099-01-02T03:04:00.000Z")),
    Row("call", "t --expires 1h", expires_in_s(3600)),
    Row("call", "t --priority 7", enqueues(priority=7)),
    Row("call", "t --job-id mine", enqueues(id="mine")),
    Row("call", "t --wait --timeout 0.01s", shows("is pending after 0.01 s; it goes on", code=1)),
    Row("call", "shop.no_such -A {app} --force", enqueues(task="shop.no_such")),
    # schedule
    Row("schedule add", f"""{ADD} --kwargs '{{"a": 1}}'""", defines(kwargs={"a": 1})),
    Row("schedule add", "e t --every 10m", defines(every=600.0)),
    Row("schedule add", "e t --cron '30 2 * * *'", defines(cron="30 2 * * *")),
    Row("schedule add", "e t --at 2099-01-01T00:00Z", defines(at="2099-01-01T00:00:00Z")),
    Row(
        "schedule add",
        "e t --cron '0 0 * * *' --timezone Asia/Tokyo",
        defines(timezone="Asia/Tokyo"),
    ),
    Row("schedule add", f"{ADD} --catch-up 'all(3)'", defines(catch_up="all", catch_up_limit=3)),
    Row("schedule add", f"{ADD} --jitter 2s", defines(jitter=2.0)),
    Row("schedule add", f"{ADD} --overlap skip", defines(overlap="skip")),
    Row("schedule add", f"{ADD} --queue mail", defines(queue="mail")),
    Row("schedule add", f"{ADD} --expires 1h", defines(expires=3600.0)),
    Row("schedule add", f"{ADD} --priority 7", defines(priority=7)),
    Row("schedule add", "e shop.no --every 1s -A {app} --force", defines(task="shop.no")),
    Row("schedule list", "--next 3", shows(r"(tidy .*\n){3}")),
    *(
        Row(
            f"schedule {verb}",
            "tidy --reason spring",
            records_for_queue_or_entry(verb, "spring"),
            "schedule pause tidy" if verb == "resume" else "",
        )
        for verb in ("remove", "pause", "resume")
    ),
    # the rest
    Row("doctor", "--strict", shows("ok +integrity +integrity and", code=1)),
    Row("db check", "--full", shows("^Full check: in order.\n$")),
    Row("db backup", "copy.db --force", copies_to("copy.db"), "db backup copy.db"),
    Row(
        "console",
        "ops --auth none --host 0.0.0.0",
        shows("^error: .*leave out --auth none", code=2),
    ),
    Row("config show", "--origin", shows(r"^SETTING +VALUE +ORIGIN\n", r"durability.* default\n")),
]

# Each of these starts processes. The application writes down the settings it finds.
OFF = "-A asked:app --burst -P solo"
PROCESSES = [
    Row("worker", f"{OFF} --concurrency 7", has_settings(worker_concurrency=7)),
    Row("worker", f"{OFF} --queues a,b", has_settings(worker_queues=["a", "b"])),
    Row("worker", f"{OFF} -Q a,b --weights a=6", has_settings(worker_queue_weights={"a": 6.0})),
    Row("worker", f"{OFF} --visibility-timeout 10m", has_settings(visibility_timeout=600.0)),
    Row("worker", f"{OFF} --time-limit 90", has_settings(task_time_limit=90.0)),
    Row("worker", f"{OFF} --soft-time-limit 60", has_settings(task_soft_time_limit=60.0)),
    Row("worker", f"{OFF} --grace 1m", has_settings(worker_grace=60.0)),
    Row("worker", f"{OFF} --max-jobs-per-child 9", has_settings(worker_max_jobs_per_child=9)),
    Row(
        "worker",
        f"{OFF} --max-memory-per-child 200MB",
        has_settings(worker_max_memory_per_child=200_000_000),
    ),
    Row("worker", f"{OFF} --log-level error", has_settings(log_level="error")),
    Row("worker", f"{OFF} --name red", says_event("worker_started", worker="red")),
    Row("worker", f"{OFF} --log-file w.log", writes_log("w.log", first="worker_started")),
    Row("worker", f"{OFF} --log-format console", logs_for_people("worker_started")),
    Row("worker", "-A asked:app --burst --pool solo", says_event("worker_started", pool="solo")),
    Row("worker", "-A asked:app --burst", leaves(0, "pending")),
    Row("worker", "-A asked:app --max-jobs 1 -P solo", leaves(2, "pending")),
    Row("worker", f"{OFF} --reload --no-reload", leaves(0, "pending")),
    Row("worker", "-A asked:app --reload", shows("--reload needs watchfiles", code=2)),
    Row(
        "beat", "-A asked:app --max-ticks 1 --max-interval 2s", has_settings(beat_max_interval=2.0)
    ),
    Row("beat", "-A asked:app --max-ticks 1 -n blue", says_event("beat_started", beat="blue")),
    Row("beat", "-A asked:app --max-ticks 1 --log-level debug", has_settings(log_level="debug")),
    Row("beat", "-A asked:app --max-ticks 1 --log-format console", logs_for_people("beat_started")),
    Row(
        "beat",
        "-A asked:app --max-ticks 1 --log-file b.log",
        writes_log("b.log", first="beat_started"),
    ),
]
ASKED = """
import dataclasses, json, pathlib
from sqlqueue import Signature, SqlQueue

app = SqlQueue("asked")
found = dataclasses.asdict(app.conf)
with pathlib.Path("asked.txt").open("a") as file:
    file.write(json.dumps(found, default=lambda one: dict(one)) + "\\n")


@app.task(name="tasks.add")
def add(*args):
    pass


@app.task(name="tasks.mail", queue="mail")
def mail(*args):
    pass


@app.producer(every=0.05, name="fast")
def produce(tick):
    yield Signature("tasks.add")
"""
DEMO = {
    "--count": "2",
    "--every": "0.1s",
    "--min-seconds": "0.3s",
    "--max-seconds": "0.4s",
    "--concurrency": "3",
    "--producers": "2",
    "--dir": "files",
}


@pytest.fixture
def waiting(filled, cli) -> Queue:
    """Give a queue with three jobs that the application below knows, and write that down."""
    for _ in range(3):
        filled.publish(task="tasks.add")
    (filled.path.parent / "asked.py").write_text(ASKED)
    # Instead of the installed one, which a test of its own is about.
    (filled.path.parent / "watchfiles.py").write_text("raise ImportError('not here')")
    return Queue(filled, cli)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.command} {row.line}")
def test_option_does_what_it_says(cli, queue, shop, row):
    if row.before:
        assert cli(*row.before.split()).code == 0
    result = cli(*row.command.split(), *shlex.split(row.line.replace("{app}", shop)))
    row.check(Seen(result.code, result.out, result.err, queue))


@pytest.mark.parametrize("row", PROCESSES, ids=lambda row: f"{row.command} {row.line}")
def test_option_of_a_process_does_what_it_says(run, waiting, row):
    result = run(*row.command.split(), *shlex.split(row.line), within_s=30)
    row.check(Seen(result.code, result.out, result.err, waiting))


def test_a_worker_with_beat_runs_what_its_beat_enqueues(cli, waiting, tmp_path):
    process = program("worker", "-A", "asked:app", "--beat", "-c", 1, cwd=tmp_path)
    try:
        wait_until(lambda: list(waiting.states().values()).count("done") > 5, deadline_s=30)
    finally:
        process.terminate()
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err


def test_the_demo_heeds_each_of_its_options(run, tmp_path):
    pytest.importorskip("sqlqueue.demo_tasks", reason="sqlqueue is not installed: make setup")
    words = [word for pair in DEMO.items() for word in pair]
    result = run("demo", *words, "--json")
    assert result.code == 0, result.err
    assert result.json["done"] == 2
    assert result.err.startswith("demo: 2 files, one every 0.1s in files/")
    files = [*(tmp_path / "files").iterdir()]
    assert {file.name[:14] for file in files} == {"job-producer-1", "job-producer-2"}
    took = [float(re.findall(r"duration_s=([\d.]+)", file.read_text())[0]) for file in files]
    assert all(0.3 <= each < 0.6 for each in took), took
    log = (tmp_path / "logs" / "worker-demo.log").read_text().splitlines()
    assert json.loads(log[0])["concurrency"] == 3


def test_no_option_is_without_a_row():
    tried = {(row.command, option) for row in [*ROWS, *PROCESSES] for option in row.options}
    tried |= {(command, option) for command, those in TRIED_IN.items() for option in those}
    missing = [
        f"{path} {names[0]}"
        for path, command in LEAVES.items()
        for names in names_of(
            [option for option in options_of(command, shared=False) if not option.hidden]
        )
        if not {(path, name) for name in names} & tried
    ]
    assert not missing, f"add a row to ROWS in {Path(__file__).name} for: {', '.join(missing)}"


def test_what_is_tried_elsewhere_is_an_option_and_a_test():
    for command, those in TRIED_IN.items():
        names = {name for shared in (True, False) for name in long_names(command, shared=shared)}
        for option, where in those.items():
            assert option in names, (command, option)
            file, _, test = where.partition("::")
            assert f"\ndef {test}" in (ROOT / file).read_text(), where


def test_what_means_nothing_is_a_shared_option_and_tried_nowhere():
    for command, those in MEANINGLESS.items():
        assert {*those} <= {*long_names(command, shared=True)}
        assert not {*those} & {*TRIED_IN.get(command, {})}


# -- what every command understands ---------------------------------------------------------------------

every_command = pytest.mark.parametrize("command", LEAVES)


@every_command
def test_help_shows_the_usage_and_does_nothing(cli, queue, line, command):
    for option in ("--help", "-h"):
        result = cli(*line(command, option))
        assert (result.code, result.err) == (0, "")
        assert result.out.startswith(f"Usage: sqlqueue {command} [OPTIONS]")
    assert queue.states() == queue.before


@every_command
def test_version_is_told_and_nothing_done(cli, queue, line, command):
    result = cli(*line(command, "--version"))
    assert (result.code, result.err) == (0, "")
    assert re.fullmatch(r"sqlqueue .+\n", result.out)
    assert queue.states() == queue.before


def without_sense(option: str) -> list[str]:
    """Return the commands to which a shared option says nothing, and which end by themselves."""
    return [path for path, those in MEANINGLESS.items() if option in those and path not in SLOW]


# A test of each says elsewhere that it goes by nothing of others: TRIED_IN, and test_demo.
SLOW = {"bench", "demo", "console", "worker", "beat"}


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (command, words)
        for words in ("-A no_such_module:app", "--db missing/other.db", "--config nope.toml")
        for command in without_sense({"-A": "--app"}.get(words.split()[0], words.split()[0]))
    ]
    + [(command, form) for form in ("--json", "-o jsonl") for command in without_sense("--output")],
)
def test_option_that_means_nothing_to_a_command_changes_nothing(cli, queue, line, command, words):
    with_it = cli(*line(command, *words.split()))
    assert (with_it.code, with_it.err) == (0, "")
    assert with_it.out
    assert not (queue.directory / "missing").exists()
    if command != "init":  # which has nothing to do a second time
        assert with_it == cli(*line(command))
    assert queue.states() == queue.before


def but_for(option: str) -> pytest.MarkDecorator:
    """Try every command to which a shared option says something that can be tried in a line."""
    those = [path for path in LEAVES if not is_apart(path, option)]
    return pytest.mark.parametrize("command", those)


@but_for("--app")
def test_app_is_imported_and_one_that_is_not_there_is_exit_2(cli, queue, line, command):
    for option in ("-A", "--app"):
        result = cli(*line(command, option, "no_such_module:app"))
        assert (result.code, result.out) == (2, "")
        assert result.err.startswith("error: ")
        assert "cannot import app 'no_such_module:app'" in result.err


@but_for("--db")
def test_db_is_the_file_that_is_used(cli, run, queue, line, command):
    call = run if command in OF_PROCESSES else cli
    result = call(*line(command, "--db", "missing/other.db"))
    if command in WITHOUT_FILE:
        assert "sqlqueue:///missing/other.db" in result.out
        return
    assert (result.code, result.out) == (2, "")
    assert "missing" in result.err


@but_for("--config")
def test_config_is_the_settings_file_that_is_read(cli, queue, line, command):
    result = cli(*line(command, "--config", "nope.toml"))
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ")
    assert "no settings file at 'nope.toml'" in result.err


@but_for("--output")
@pytest.mark.parametrize("option", ["-o json", "--output json", "--json", "-o jsonl"])
def test_output_is_json_where_it_is_asked_for(cli, queue, line, command, option):
    result = cli(*line(command, *option.split()))
    assert result.code == UNHEALTHY.get(command, 0)
    documents = [json.loads(text) for text in result.out.splitlines()]
    if option != "-o jsonl":
        assert [document["schema"] for document in documents] == [1]
    else:
        assert all(isinstance(document, dict) for document in documents)
    for wrong in ("yaml", ""):
        assert cli(*line(command, "-o", wrong)).code == 2


@but_for("--quiet")
@pytest.mark.parametrize("option", ["-q", "--quiet"])
def test_quiet_leaves_only_data_and_errors(cli, queue, line, command, option):
    result = cli(*line(command, option))
    assert result.code == UNHEALTHY.get(command, 0)
    assert not [text for text in result.err.splitlines() if not text.startswith("error: ")]


@every_command
@pytest.mark.parametrize("option", ["-v", "--verbose"])
def test_verbose_shows_where_an_error_comes_from(cli, queue, shop, command, option):
    words = wrong_line(command, app=shop)
    result = cli(*words, option)
    assert result.code == 2
    assert result.err.startswith("Traceback (most recent call last):\n")
    assert "Traceback" not in cli(*words).err


@every_command
def test_no_color_leaves_a_terminal_its_own(screen, queue, line, shop, command):
    if command not in OF_PROCESSES:
        plain = screen(*line(command, "--no-color"))
        assert plain.code == UNHEALTHY.get(command, 0)
        assert not re.search(r"\x1b\[[0-9;]*[34][0-9]", plain.text)
    words = wrong_line(command, app=shop)
    colored = screen(*words)
    plain = screen(*words, "--no-color")
    assert "\x1b[31m" in colored.text
    assert plain.text == colored.words


@but_for("--utc")
def test_utc_is_understood_and_marks_the_times_that_are_told(cli, queue, line, command):
    result = cli(*line(command, "--utc"))
    assert result.code == UNHEALTHY.get(command, 0)
    assert bool(re.search(r"\d UTC\b", result.out)) is (command in {"inspect job", "prune"})


def test_every_shared_option_is_tried_on_every_command():
    for path, command in LEAVES.items():
        names = {option.name for option in options_of(command, shared=True)}
        assert names == {
            *("app", "db", "config", "output", "as_json", "quiet", "verbose", "no_color", "utc"),
            "version",
        }, path
