"""What every command understands, wherever it is said."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from sqlqueue import config
from sqlqueue.cli.invocation import Invocation, variable_of
from tests.cli.tree import COMMANDS
from tests.support import ROOT


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_the_shared_options(cli, name):
    result = cli(*name.split(), "--help")
    assert result.code == 0
    assert "Usage: sqlqueue" in result.out
    for option in ("-A, --app", "--db", "--config", "-o, --output", "--json", "-q, --quiet"):
        assert option in result.out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_line_of_help(name):
    for param in COMMANDS[name].params:
        if isinstance(param, click.Option) and not param.hidden:
            assert param.help, param.name


@pytest.mark.parametrize(
    "line",
    [
        "--db other.db --json inspect stats",
        "inspect --db other.db stats --json",
        "inspect stats --json --db other.db",
        "-o json inspect stats --db other.db",
        "--db wrong.db -o table inspect --db wrong.db stats --db other.db -o json",
        "-o jsonl inspect stats --db sqlqueue:///other.db",
    ],
)
def test_shared_options_work_in_every_place_and_the_later_wins(cli, filled, tmp_path, line):
    filled.close()
    (tmp_path / "queue.db").rename(tmp_path / "other.db")
    (tmp_path / "queue.db-run").rename(tmp_path / "other.db-run")
    result = cli(*line.split())
    assert (result.code, result.err) == (0, "")
    assert result.json["schema"] == 1


@pytest.mark.parametrize(
    ("variables", "arguments"),
    [
        ({"SQLQUEUE_DB": "q.db", "SQLQUEUE_OUTPUT": "json"}, ""),
        ({"SQLQUEUE_DB": "wrong.db", "SQLQUEUE_OUTPUT": "table"}, "--db q.db -o json"),
        ({"SQLQUEUE_OUTPUT": "table"}, "-o json --db q.db"),
    ],
)
def test_environment_is_weaker_than_what_is_typed_before_the_command(
    cli, filled, monkeypatch, variables, arguments
):
    filled.close()
    filled.path.rename(filled.path.with_name("q.db"))
    filled.store.database.run_directory.rename(filled.path.with_name("q.db-run"))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    result = cli(*arguments.split(), "inspect", "stats")
    assert result.code == 0
    assert result.json["schema"] == 1


def test_application_can_come_from_the_environment(cli, filled, monkeypatch, shop):
    filled.publish(task="shop.add")
    filled.close()
    monkeypatch.setenv("SQLQUEUE_APP", shop)
    monkeypatch.setenv("SQLQUEUE_APP_COLOR", "red")  # a key of the application's own table
    [item] = cli("inspect", "jobs", "--json").json["items"]
    assert item["max_attempts"] == 3
    shown = cli("config", "show", "--json", "--origin").json["items"]
    assert {"name": "app.color", "value": "red", "origin": "env SQLQUEUE_APP_COLOR"} in shown


def test_typed_application_wins_over_the_environment(cli, filled, monkeypatch, shop):
    filled.close()
    monkeypatch.setenv("SQLQUEUE_APP", "no_such_module")
    assert cli("-A", shop, "inspect", "stats").code == 0
    assert cli("inspect", "stats", "-A", shop).code == 0
    assert cli("inspect", "stats").code == 2


def test_options_of_commands_can_come_from_the_environment(cli, filled, monkeypatch):
    for _ in range(3):
        filled.publish()
    filled.close()
    monkeypatch.setenv("SQLQUEUE_INSPECT_JOBS_LIMIT", "2")
    assert len(cli("inspect", "jobs", "--json").json["items"]) == 2
    assert len(cli("inspect", "jobs", "--json", "--limit", "1").json["items"]) == 1


def test_a_variable_is_named_after_what_is_typed(cli, filled, monkeypatch):
    filled.done(job_id="done")
    filled.publish()
    filled.close()
    monkeypatch.setenv("SQLQUEUE_INSPECT_JOBS_STATE", "done")
    [item] = cli("inspect", "jobs", "--json").json["items"]
    assert item["id"] == "done"
    assert {"SQLQUEUE_DEMO_DIR", "SQLQUEUE_WORKER_BEAT"} < set(variables())


def variables():
    """Return every environment variable that click reads for an option of ours."""
    found = set()
    for path, command in COMMANDS.items():
        for param in command.params:
            if not isinstance(param, click.Option):
                continue
            if param.envvar:
                found.add(param.envvar)
            elif param.allow_from_autoenv and param.name != "help":
                found.add(variable_of(param, "_".join(["sqlqueue", *path.split()])))
    return sorted(found)


def test_no_option_fights_with_a_setting_for_its_variable(monkeypatch):
    fields = {f"SQLQUEUE_{name.upper()}" for name in config.Settings.__dataclass_fields__}
    # SQLQUEUE_APP is -A; the table [app] is set key by key, as SQLQUEUE_APP_<KEY>.
    assert fields & set(variables()) == {"SQLQUEUE_APP"}
    assert "SQLQUEUE_DEMO_COUNT" in variables()
    # The settings take a name that is nearly one of theirs for a mistake.
    for name in variables():
        config.resolve({}, environ={name: "1"}, command_line={})


@pytest.mark.parametrize(
    ("name", "variable", "field"),
    [
        ("worker", "SQLQUEUE_WORKER_CONCURRENCY", "worker_concurrency"),
        ("worker", "SQLQUEUE_WORKER_QUEUES", "worker_queues"),
        ("worker", "SQLQUEUE_WORKER_GRACE", "worker_grace"),
        ("worker", "SQLQUEUE_WORKER_QUEUE_WEIGHTS", "worker_queue_weights"),
        ("beat", "SQLQUEUE_BEAT_MAX_INTERVAL", "beat_max_interval"),
        ("worker", "SQLQUEUE_VISIBILITY_TIMEOUT", "visibility_timeout"),
        ("worker", "SQLQUEUE_TASK_TIME_LIMIT", "task_time_limit"),
    ],
)
def test_option_that_is_a_setting_names_the_settings_variable(cli, name, variable, field):
    # Long names are wrapped within the help's columns, never within a word.
    value = "a=7" if variable.endswith("_WEIGHTS") else "7"
    assert f"[{variable}]" in cli(name, "--help").out.replace("\n", " ")
    assert config.resolve({}, environ={variable: value}, command_line={}).origins[field] == (
        f"env {variable}"
    )


@pytest.mark.parametrize("arguments", [["--version"], ["inspect", "stats", "--version"]])
def test_version_is_told_in_every_place(cli, arguments):
    result = cli(*arguments)
    assert result.code == 0
    assert result.out.startswith("sqlqueue ")


@pytest.mark.parametrize("arguments", [["--help"], ["inspect", "--help"], ["demo", "-h"]])
def test_help_loads_nothing_slow(arguments):
    code = f"""
import sys
from sqlqueue.cli import main
assert main({arguments!r}) == 0
slow = ["kombu", "structlog", "rich", "sqlite3", "sqlqueue_transport", "ctypes.util", "asyncio"]
print([name for name in slow if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == "[]"
    assert "Usage: sqlqueue" in done.stdout


def test_json_needs_no_rich(filled, tmp_path):
    filled.close()
    code = """
import sys
from sqlqueue.cli import main
assert main(["--db", sys.argv[1], "inspect", "jobs", "--json"]) == 0
assert "rich" not in sys.modules and "structlog" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, tmp_path / "queue.db"], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "Usage: sqlqueue"),
        ("inspect", "Usage: sqlqueue inspect"),
        ("inspct stats", "error: no command 'inspct'. Did you mean 'inspect'?"),
        ("inspect stat", "error: no command 'stat'. Did you mean 'stats'?"),
        ("inspect jobs --stat done", "'--stat'"),
        ("inspect jobs --limit 0", "error: Invalid value for '--limit'"),
        ("inspect jobs --limit 1001", "error: Invalid value for '--limit'"),
        ("inspect jobs --state don", "there is no state 'don'. Did you mean 'done'?"),
        ("inspect jobs --since yesterday", "--since 'yesterday' is no time"),
        ("inspect jobs --db :memory:", "error: ':memory:' is no file"),
        ("-o yaml inspect jobs", "error: Invalid value for '-o'"),
        ("inspect jobs --config nope.toml", "error: no settings file at 'nope.toml'"),
        ("inspect stats --db redis+nope://h", "error: cannot use the broker redis+nope://h"),
        ("inspect jobs --cursor x", "error: --cursor: that is no cursor"),
        ("worker", "error: which application?"),
        ("worker -A nope_nope", "error: cannot import app 'nope_nope'"),
        ("worker -A x --grace soon", "'soon' is no duration"),
        ("worker -A x --name a/b", "error: --name 'a/b'"),
        ("demo --min-seconds 20", "error: --min-seconds 20 is above --max-seconds 15"),
        ("demo --count 0", "error: Invalid value for '--count'"),
        ("requeue", "error: which jobs?"),
        ("requeue a --task b", "error: give either IDs or filters, not both"),
        ("cancel --state done", "error: cancel cannot change jobs that are done"),
        ("call t 1", "error: JSON_ARGS is no JSON list"),
        ("call t [1", "error: JSON_ARGS is not JSON"),
        ("call t --kwargs []", "error: --kwargs is no JSON object"),
        ("call t --timeout 3", "error: --timeout goes with --wait"),
        ("call t --countdown 1 --eta 2030-01-01", "error: give either --countdown or --eta"),
        ("call t --priority 10", "error: Invalid value for '--priority'"),
    ],
)
def test_wrong_usage_is_one_line_on_stderr_and_exit_2(cli, filled, line, said):
    filled.close()
    result = cli(*line.split())
    assert result.code == 2
    assert result.out == ""
    assert said in result.err
    assert "Traceback" not in result.err
    if result.err.startswith("error:"):
        assert result.err.count("\n") == 1


def test_colours_are_for_terminals_only(run, filled):
    filled.done()
    filled.close()
    assert "\x1b" not in run("inspect", "jobs").out
    assert "\x1b" not in run("inspect", "nonsense").err


def test_invocation_starts_with_a_table():
    assert Invocation().output == "table"
