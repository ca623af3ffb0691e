"""Values reach SQL as bound parameters only: told by the source of every module that has SQL.

A statement is a constant. The few that are put together when they run stand here by name, each with
what it is put together of; who adds one has to say so here.
"""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import sqlqueue_transport
from sqlqueue_transport import NewMessage, Store
from sqlqueue_transport.errors import TransportError
from sqlqueue_transport.lifecycle import State
from sqlqueue_transport.reading import JobFilter

PACKAGE = Path(sqlqueue_transport.__file__).parent
MODULES = {path.stem: ast.parse(path.read_text()) for path in sorted(PACKAGE.glob("*.py"))}
RUN = {"execute", "executemany", "executescript"}
SQL = re.compile(
    r"\b(SELECT|INSERT INTO|UPDATE \w+ SET|DELETE FROM|PRAGMA|CREATE|ALTER|DROP|ATTACH|VACUUM|WHERE)\b"
)

# Functions that are handed a statement, which their callers are then held to: the argument's place.
TAKE_SQL = {
    "activity._by_bucket": 0,
    "counting._by_key": 1,
    "listing._ids": 1,
    "pausing._mark": 0,
    "pruning._Matching": 1,
    "topology._purge": 0,
}
NOT_CONSTANT = {
    "database._emptied_log: f'PRAGMA busy_timeout = {wait_ms}'": "a number of ours; PRAGMA binds none",
    "migrations._pragma: f'PRAGMA {name}'": "one of two names in the source",
    "migrations._run_script: f'BEGIN IMMEDIATE;\\n{script}\\nCOMMIT;'": "files of this package",
    "listing._blocks: query + ' ORDER BY block DESC'": "constants, and names by bind_each",
    "listing.count: query": "constants of _where and portions, and names by bind_each",
    "listing.look: query": "constants of _where and portions, and names by bind_each",
    "opening.connect: pragma": "a list of constants, of which one has a number of ours",
    "reading.work: query": "the values of the constant _INVARIANTS",
}
FORMATTED = {
    "database._emptied_log: f'PRAGMA busy_timeout = {wait_ms}'": "as above",
    "migrations._pragma: f'PRAGMA {name}'": "as above",
    "opening.connect: f'PRAGMA journal_size_limit = {JOURNAL_SIZE_LIMIT_BYTES}'": "a constant",
    "migrations._create_schema": "a file of this package, and numbers of ours",
    "migrations.migrate": "a file of this package, and a number of ours",
    "statements.": "a predicate that is written once, at import",
}


def functions(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Yield each function of a module with its name, and the module's own level as ""."""
    yield "", tree
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            yield node.name, node


def own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """Yield what is in a function, without what is in functions inside of it."""
    todo = [*ast.iter_child_nodes(function)]
    while todo:
        node = todo.pop()
        if not isinstance(node, ast.FunctionDef):
            yield node
            todo += ast.iter_child_nodes(node)


def is_constant(node: ast.AST, local: dict[str, list[ast.AST]]) -> bool:
    """Say whether an expression can be nothing but text of the source: literals and CONSTANTS.

    `local` are the values that the function gives its own names.
    """
    match node:
        case ast.Constant():
            return isinstance(node.value, str)
        case ast.Name() if node.id in local:
            return all(is_constant(each, {}) for each in local[node.id])
        case ast.Name():
            return node.id.isupper()
        case ast.Attribute(value=ast.Name(id="sql")):
            return node.attr.isupper()
        case ast.Subscript():  # a table of statements: _STATEMENT[event]
            return is_constant(node.value, {})
        case ast.IfExp():
            return is_constant(node.body, local) and is_constant(node.orelse, local)
        case ast.BinOp(op=ast.Add()):
            return is_constant(node.left, local) and is_constant(node.right, local)
    return False


def locals_of(function: ast.AST) -> dict[str, list[ast.AST]]:
    """Return what a function assigns to each of its names; what cannot be followed is no constant."""
    found: dict[str, list[ast.AST]] = {}

    def note(target: ast.AST, value: ast.AST) -> None:
        if isinstance(target, ast.Name):
            found.setdefault(target.id, []).append(value)
        elif isinstance(target, ast.Tuple):
            parts = value.elts if isinstance(value, ast.Tuple) else [value] * len(target.elts)
            for each, part in zip(target.elts, parts, strict=False):
                note(each, part)

    for node in own_nodes(function):
        match node:
            case ast.Assign():
                for target in node.targets:
                    note(target, node.value)
            case ast.AugAssign() | ast.AnnAssign(value=ast.AST()):
                note(node.target, node.value)
            case ast.For(iter=ast.Tuple()):
                for each in node.iter.elts:
                    note(node.target, each)
            case ast.For() | ast.comprehension():
                note(node.target, node.iter)
    return found


def sql_of(module: str, call: ast.Call) -> ast.AST | None:
    """Return the expression of a call that is run as SQL, None for any other call."""
    match call.func:
        case ast.Attribute(attr=name) if name in RUN:
            return call.args[0]
        case ast.Attribute(attr=name) | ast.Name(id=name) if f"{module}.{name}" in TAKE_SQL:
            return call.args[TAKE_SQL[f"{module}.{name}"]]
    return None


def is_parameter(node: ast.AST, module: str, path: list[str]) -> bool:
    """Say whether this is the statement that one of TAKE_SQL was handed."""
    return (
        isinstance(node, ast.Name)
        and node.id in {"query", "statement"}
        and any(f"{module}.{name}" in TAKE_SQL for name in path)
    )


def run_as_sql() -> set[str]:
    """Return what is run as SQL and is no constant, as "module.function: expression"."""
    found = set()
    for module, tree in MODULES.items():
        inside: dict[ast.AST, list[str]] = {}
        for outer in ast.walk(tree):
            if isinstance(outer, (ast.FunctionDef, ast.ClassDef)):
                for inner in ast.walk(outer):
                    inside.setdefault(inner, []).append(outer.name)
        for name, function in functions(tree):
            local = locals_of(function)
            for node in own_nodes(function):
                statement = sql_of(module, node) if isinstance(node, ast.Call) else None
                if (
                    statement is not None
                    and not is_constant(statement, local)
                    and not is_parameter(statement, module, inside.get(node, []))
                ):
                    found.add(f"{module}.{name}: {ast.unparse(statement)}")
    return found


def formatted() -> set[str]:
    """Return where text that looks like SQL is put together with something."""
    found = set()
    for module, tree in MODULES.items():
        for name, function in functions(tree):
            for node in own_nodes(function):
                match node:
                    case ast.JoinedStr() | ast.BinOp(op=ast.Mod()):
                        pass
                    case ast.Call(func=ast.Attribute(attr="format" | "format_map" | "replace")):
                        pass
                    case _:
                        continue
                texts = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant)]
                if SQL.search(" ".join(text for text in texts if isinstance(text, str))):
                    found.add(f"{module}.{name}: {ast.unparse(node)}")
    return found


def test_every_statement_that_is_run_is_a_constant_or_named_here():
    assert run_as_sql() == set(NOT_CONSTANT)


def test_no_sql_is_formatted_but_what_is_named_here():
    assert [
        one for one in formatted() if not any(one.startswith(known) for known in FORMATTED)
    ] == []


@pytest.mark.parametrize(
    "line",
    [
        'c.execute(f"SELECT {name}")',
        'c.execute("SELECT 1 FROM message WHERE id = %s" % name)',
        'c.execute("SELECT " + name)',
        'c.execute("SELECT {}".format(name))',
        'query = _A if name else "SELECT " + name\n    c.execute(query)',
        "query = _A\n    query += name\n    c.execute(query)",
        "for each in [name]:\n        c.execute(each)",
        "c.executemany(name, [])",
        "_ids(c, name, {})",
    ],
)
def test_the_look_at_the_source_sees_each_way_around_it(monkeypatch, line):
    monkeypatch.setitem(MODULES, "listing", ast.parse(f"def work(c, name):\n    {line}\n"))
    assert any(one.startswith("listing.work:") for one in run_as_sql())


HOSTILE = [
    "'; DELETE FROM message; --",
    '" OR 1=1 --',
    "default' OR 'a'='a",
    ":queue",
    "?1",
    "%",
    "\\",
    "' UNION SELECT * FROM message --",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_sql_in_a_filter_or_a_name_is_only_text(tmp_path, text):
    store = Store(tmp_path / "q.db")
    try:
        for task in ("plain", text):
            store.publish([NewMessage(b"{}", "default", task=task, job_id=f"job-{task}")])
        for name in ("queue", "worker", "error", "celery_state"):
            assert store.reading.jobs(JobFilter(**{name: text})) == []
        for chosen in (
            JobFilter(task=text),
            JobFilter(search=text),
            JobFilter(job_ids=(f"job-{text}",)),
        ):
            assert [row.task for row in store.reading.jobs(chosen)] == [text]
        assert store.reading.lists.count(JobFilter(queue=text), most=10) == (0, True)
        assert store.reading.message_ids_of(text) == []
        for act in (
            lambda: store.pausing.pause(text, actor=text, reason=text),
            lambda: store.deleting.purge(text, actor=text, reason=text),
            lambda: store.schedules.pause(text, actor=text, reason=text),
            lambda: store.schedules.remove(text, actor=text, reason=text),
            lambda: store.results.get(text),
        ):
            with contextlib.suppress(TransportError):  # there is none of that name, and so it says
                act()
        assert store.reading.counts().states[State.PENDING] == 2
    finally:
        store.close()
