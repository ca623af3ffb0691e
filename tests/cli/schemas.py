"""The JSON schemas in docs/json-schema, and how output is held against them."""

from __future__ import annotations

import json
from typing import Any

from jsonschema import Draft202012Validator

from tests.support import ROOT

DIRECTORY = ROOT / "docs" / "json-schema"
SCHEMAS: dict[str, Any] = {
    path.stem: json.loads(path.read_text()) for path in sorted(DIRECTORY.glob("*.json"))
}
# Which schema a command's output follows; "inspect dead --by error" stands for itself.
OF_COMMANDS: dict[str, str] = {
    command: name for name, schema in SCHEMAS.items() for command in schema["x-commands"]
}


def check(name: str, document: object) -> None:
    """Fail when a document is not as its schema says."""
    _fail(Draft202012Validator(SCHEMAS[name]), document)


def check_lines(name: str, text: str) -> None:
    """Fail when what `-o jsonl` printed is not: an item a line, or the document on one."""
    schema = SCHEMAS[name]
    if "item" in schema.get("$defs", {}):
        schema = {"$ref": "#/$defs/item", "$defs": schema["$defs"]}
    for line in text.splitlines():
        _fail(Draft202012Validator(schema), json.loads(line))


def _fail(validator: Draft202012Validator, document: object) -> None:
    errors = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]
    assert not errors, errors
