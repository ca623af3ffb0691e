"""Tables and links of the documentation are compared with what they are about."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import pytest

from sqlqueue import SqlQueue, health
from sqlqueue.config import Settings, duration_s
from sqlqueue.inspection import Inspection
from sqlqueue.log import EVENTS
from sqlqueue_transport.errors import TransportError
from sqlqueue_transport.lifecycle import State
from sqlqueue_transport.options import Options

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
        *(ROOT / "docs").glob("*.md"),
    ]
)


def table(page: str, name: str) -> list[list[str]]:
    """Return the rows of the table behind `<!-- table: NAME -->`, without its head."""
    text = (ROOT / "docs" / page).read_text().partition(f"<!-- table: {name} -->\n")[2]
    lines = text.partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def fields_with_defaults(kind: type) -> dict[str, object]:
    found = {}
    for one in dataclasses.fields(kind):
        made = one.default_factory() if one.default is dataclasses.MISSING else one.default
        found[one.name] = made
    return found


def test_the_table_of_settings_has_every_setting_with_its_default():
    shown = {row[0].strip("`"): row[1] for row in table("configuration.md", "settings")}
    settings = fields_with_defaults(Settings)

    assert set(shown) == set(settings)
    for name, default in settings.items():
        if name == "worker_concurrency":
            assert shown[name] == "processors"
            assert default == os.cpu_count()
        elif isinstance(default, float):
            number, unit = shown[name].split()
            assert duration_s(f"{number}{unit[0]}", name=name) == default, name
        else:
            assert shown[name].strip("`").strip('"') == str(default), name


def test_the_table_of_transport_options_has_every_option_with_its_default():
    shown = {row[0].strip("`"): row[1].strip("`") for row in table("transport.md", "options")}

    assert shown == {
        name: f'"{default}"' if isinstance(default, str) else str(default)
        for name, default in fields_with_defaults(Options).items()
    }


def test_the_table_of_the_demos_settings_has_every_key():
    app_module = pytest.importorskip("tasks.app")
    shown = re.findall(r"`([a-z_]+)`", " ".join(row[0] for row in table("configuration.md", "app")))

    assert set(shown) == {one.name for one in dataclasses.fields(app_module.JobSettings)}


def test_the_pages_name_every_state_and_every_error_of_the_transport():
    lifecycle = (ROOT / "docs" / "lifecycle.md").read_text()
    transport = (ROOT / "docs" / "transport.md").read_text()

    assert [state.value for state in State if f"| `{state.value}` |" not in lifecycle] == []
    assert [kind.__name__ for kind in every(TransportError) if kind.__name__ not in transport] == []


def test_the_table_of_events_has_every_event():
    worker = (ROOT / "docs" / "worker.md").read_text()
    rows = re.findall(r"^\| (`[a-z_`, ]+)(?: \(debug\))? \|", worker, re.MULTILINE)

    assert [event for event in EVENTS if f"`{event}`" not in " ".join(rows)] == []


def test_the_table_of_the_doctors_checks_has_every_check(tmp_path):
    app = SqlQueue("x", broker_url=f"sqlqueue:///{tmp_path}/queue.db")
    operations = (ROOT / "docs" / "operations.md").read_text()
    shown = re.findall(r"^\| ([a-zA-Z -]+) \| ", operations, re.MULTILINE)
    try:
        names = [check.name for check in health.examine(Inspection(app.backend))]
    finally:
        app.close()

    assert [name for name in names if name not in shown] == []


def every(base: type) -> list[type]:
    return [base, *(kind for child in base.__subclasses__() for kind in every(child))]


def test_the_classes_that_pages_name_occur_in_the_code():
    code = "\n".join(
        path.read_text()
        for directory in ("sqlqueue", "sqlqueue_transport", "tasks", "conf")
        for path in sorted((ROOT / directory).rglob("*.*"))
        if path.suffix in {".py", ".service"}
    )
    words = {
        word
        for page in PAGES
        for word in re.findall(r"`([A-Z][a-z]+(?:[A-Z][A-Za-z]*)+)", page.read_text())
    }

    assert len(words) > 10
    assert sorted(word for word in words if not re.search(rf"\b{word}\b", code)) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match("[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name} links to {target}"


def anchors(page: Path) -> set[str]:
    """Return what the page's headings are linked by, as GitHub makes it."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower().replace("`", "")).replace(" ", "-")
        for heading in headings
    }
