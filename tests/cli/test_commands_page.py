"""docs/commands.md is what the command line says of itself, made by tools/commands_page.py."""

from __future__ import annotations

import runpy

import click

from tests.cli.schemas import SCHEMAS
from tests.cli.tree import COMMANDS
from tests.support import ROOT

PAGE = (ROOT / "docs" / "commands.md").read_text()


def test_the_page_is_fresh():
    page = runpy.run_path(str(ROOT / "tools" / "commands_page.py"))["page"]()
    assert page == PAGE, "docs/commands.md is stale: run 'make docs' and commit what it writes"


def test_the_page_has_every_command_and_every_option():
    for path, command in COMMANDS.items():
        if not path or command.hidden:
            continue
        section = PAGE.partition(f"\n## sqlqueue {path}\n")[2].partition("\n## ")[0]
        assert section, path
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden and option.expose_value:
                assert f"| `{option.opts[0]}" in section, (path, option.opts)


def test_the_page_links_every_schema():
    assert [name for name in SCHEMAS if f"(json-schema/{name}.json)" not in PAGE] == []
