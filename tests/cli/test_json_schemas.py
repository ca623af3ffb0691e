"""What is printed as JSON is what docs/json-schema promises, on a full file and on an empty one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from sqlqueue.cli.deleting import _ENDED
from sqlqueue.health import Level
from sqlqueue.operations import Action
from sqlqueue.scheduled import Standing
from sqlqueue_transport.lifecycle import State
from sqlqueue_transport.schedules import Described
from tests.cli import schemas
from tests.cli.everything import LINES, MEANINGLESS, UNHEALTHY, WITHOUT_FILE
from tests.cli.filling import HOSTILE
from tests.cli.schemas import OF_COMMANDS, SCHEMAS
from tests.cli.tree import LEAVES
from tests.support import ROOT

# Why is said there: a log, whose events docs/worker.md lists, a script, a link.
WITHOUT_JSON = {path for path, those in MEANINGLESS.items() if "--output" in those}
# They start processes; their documents are held against their schemas in test_demo and test_bench.
WITH_PROCESSES = {"bench", "demo"}
# `call --wait` needs a worker: see test_call.
BESIDES = {"inspect dead --by error", "call --wait"}
TRIED = sorted(set(OF_COMMANDS) - WITH_PROCESSES - {"call --wait"})

# More lines that come to other ends of a schema, each with its exit code.
MORE = [
    ("inspect jobs --limit 2", 0),
    ("inspect jobs --state stalled", 0),
    ("inspect job running", 0),
    ("inspect job failed", 0),
    ("inspect job done", 0),
    ("inspect job mail --traceback all", 0),
    ("inspect job torn", 0),
    ("inspect dead --limit 1", 0),
    ("inspect schedule --next 3", 0),
    ("requeue dead done waiting nope --yes", 4),
    ("requeue --task tasks.add --dry-run", 0),
    ("cancel --task tasks.add --yes", 0),
    ("cancel running --force-after 1h", 0),
    ("fail running --reason because", 0),
    ("pause mail default", 0),
    ("schedule resume tidy", 0),
    ("purge mail default --yes", 0),
    ("prune --older-than 1h --state done,expired --state permanently_failed --yes", 0),
    ("db path --db other.db", 0),
    ("db check --full", 0),
    ("init", 0),
    ("config validate --config nope.toml", 2),
    ("doctor --strict", 1),
    ("config show --origin", 0),
]


@pytest.fixture
def rich(queue, cli) -> Any:
    """Give a queue in which whatever can be told has happened."""
    filled = queue.filled
    filled.publish(job_id="torn", body=b"\xff")
    filled.publish(job_id=HOSTILE, task=HOSTILE, queue="odd")
    filled.publish(task=None, headers="{}")
    filled.store.schedules.describe([Described("bad", "?", "t", next_due_ms=1, definition="{")])
    filled.store.schedules.set_error("bad", "ValueError: no such thing")
    for line in (
        "cancel letter --reason unwanted",
        "requeue letter",
        "fail letter",
        "requeue mail",
        "cancel running --force-after 1h",
        "pause odd --reason odd",
        "schedule add nightly t --cron 0_0_*_*_* --timezone Asia/Tokyo --catch-up all(3)",
        "schedule pause tidy",
    ):
        words = [word.replace("_", " ") if "*" in word else word for word in line.split()]
        assert cli(*words).code == 0, line
    return queue


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema_is_one(name):
    Draft202012Validator.check_schema(SCHEMAS[name])
    assert SCHEMAS[name]["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert SCHEMAS[name]["title"]


def objects(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield every piece of a schema that describes an object with known keys."""
    if isinstance(schema, dict):
        if "properties" in schema:
            yield schema
        for inner in schema.values():
            yield from objects(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from objects(inner)


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema_names_every_key_and_lets_none_be_missing(name):
    found = [*objects({key: value for key, value in SCHEMAS[name].items() if key != "$defs"})]
    found += [*objects([*SCHEMAS[name].get("$defs", {}).values()])]
    assert found
    for each in found:
        assert each["additionalProperties"] is False, each
        assert each["required"] == [*each["properties"]], each


def test_every_command_that_prints_data_has_a_schema():
    missing = set(LEAVES) - set(OF_COMMANDS) - WITHOUT_JSON
    assert not missing, f"write docs/json-schema/….json, or name in its x-commands: {missing}"
    assert set(OF_COMMANDS) <= set(LEAVES) | BESIDES


def enum(name: str, *path: str) -> list[str]:
    found: Any = SCHEMAS[name]
    for key in path:
        found = found[key]
    values: list[str] = found["enum"]
    return values


def test_enumerations_are_those_of_the_code():
    sql = (ROOT / "sqlqueue_transport" / "schema.sql").read_text()

    def check_of(column: str) -> list[str]:
        found = re.search(rf"CHECK \({column} IN \(([^)]*)\)\)", sql)
        assert found is not None
        return re.findall(r"'(\w+)'", found[1])

    states = [state.value for state in State]
    for name in ("jobs", "job", "action"):
        assert enum(name, "$defs", "state") == states
    assert [*SCHEMAS["stats"]["properties"]["states"]["properties"]] == states
    outcomes = enum("job", "$defs", "attempt", "properties", "outcome")
    assert outcomes == check_of("outcome")
    actions = [action.value for action in Action]
    assert enum("action", "properties", "action") == actions
    assert enum("job", "$defs", "audit", "properties", "action") == actions
    entry = ("schedule", "$defs", "item", "properties")
    assert set(enum(*entry, "state")) == {standing.value for standing in Standing}
    assert enum(*entry, "origin") == check_of("origin")
    assert enum("doctor", "$defs", "item", "properties", "level") == [
        level.value for level in Level
    ]
    assert enum("prune", "properties", "states", "items") == [*_ENDED]
    durability = SCHEMAS["bench"]["properties"]["settings"]["properties"]["durability"]["enum"]
    [asked] = [one for one in LEAVES["bench"].params if one.name == "durability"]
    assert durability == [*asked.type.choices]
    assert enum("workers", "$defs", "item", "properties", "kind") == check_of("kind")


@pytest.mark.parametrize("command", TRIED)
def test_output_on_a_full_file_is_as_its_schema_says(cli, rich, line, command):
    name = OF_COMMANDS[command]
    words = line(command)
    result = cli(*words, "--json")
    assert result.code == UNHEALTHY.get(command, 0)
    assert result.out.count("\n") == 1
    schemas.check(name, result.json)
    if command != "schedule remove":
        lines = cli(*words, "-o", "jsonl", *(["--force"] if command == "call" else []))
        schemas.check_lines(name, lines.out)


@pytest.mark.parametrize(("text", "code"), MORE)
def test_other_output_is_as_its_schema_says(cli, rich, text, code):
    command = max((one for one in OF_COMMANDS if f"{text} ".startswith(f"{one} ")), key=len)
    result = cli(*text.split(), "--json")
    assert result.code == code
    schemas.check(OF_COMMANDS[command], result.json)


@pytest.mark.parametrize(
    "command",
    [one for one in TRIED if one.split(" --")[0] not in LINES and one not in WITHOUT_FILE],
)
def test_output_on_an_empty_file_is_as_its_schema_says(cli, filled, command):
    filled.close()
    name = OF_COMMANDS[command]
    schemas.check(name, cli(*command.split(), "--json").json)
    schemas.check_lines(name, cli(*command.split(), "-o", "jsonl").out)


def test_a_key_that_is_new_or_missing_would_be_found(cli, rich):
    document = cli("inspect", "jobs", "--json").json
    for change in ({"new": 1}, {"state": "dead"}, {"due_at": "2030-01-01T00:00:00Z"}):
        wrong = {**document, "items": [{**document["items"][0], **change}]}
        with pytest.raises(AssertionError, match=next(iter(change))):
            schemas.check("jobs", wrong)
    del document["items"][0]["progress"]
    with pytest.raises(AssertionError, match="'progress' is a required property"):
        schemas.check("jobs", document)
