"""`sqlqueue config validate`: every mistake at once, and nothing made by looking."""

from __future__ import annotations

import sqlite3

import pytest


def mistakes(result) -> list[str]:
    """Return the mistakes of a document that says so with exit code 2."""
    assert result.code == 2, result
    assert result.json["valid"] is False
    return result.json["mistakes"]


def test_what_is_right_is_ok_and_nothing_is_made(cli, tmp_path, shop):
    before = {one.name for one in tmp_path.iterdir()}
    result = cli("-A", shop, "config", "validate")
    assert (result.code, result.err) == (0, "")
    assert (
        result.out
        == f"ok: settings, 2 tasks of {shop}, 0 schedule entries, 2 queues, sqlqueue:///queue.db\n"
    )
    assert {one.name for one in tmp_path.iterdir()} - before <= {"__pycache__"}
    document = cli("config", "validate", "--json").json
    assert document["valid"] is True
    assert document["mistakes"] == document["warnings"] == []


def test_every_mistake_of_every_place_is_told(cli, tmp_path, monkeypatch):
    (tmp_path / "sqlqueue.toml").write_text(
        'visibility_timout = 3\ntask_max_attempts = "many"\n[transport_options]\nx = 1\n'
    )
    monkeypatch.setenv("SQLQUEUE_WORKER_GRACE", "soon")
    monkeypatch.setenv("SQLQUEUE_VISIBILTY_TIMEOUT", "1h")
    monkeypatch.setenv("SQLQUEUE_LOG_LEVL", "info")
    result = cli("config", "validate")
    assert (result.code, result.out) == (2, "")
    assert "5 mistakes in the configuration:" in result.err
    found = mistakes(cli("config", "validate", "--json"))
    for text in (
        "Did you mean 'visibility_timeout'?",
        "task_max_attempts = 'many'",
        "(from: env SQLQUEUE_WORKER_GRACE)",
        "Did you mean 'SQLQUEUE_VISIBILITY_TIMEOUT'?",
        "Did you mean 'SQLQUEUE_LOG_LEVEL'?",
    ):
        assert sum(text in one for one in found) == 1, text


def test_keys_that_cannot_be_used_are_mistakes_and_are_not_shown(cli, tmp_path, monkeypatch, shop):
    monkeypatch.setenv("SQLQUEUE_SIGNING_KEY", "too-short-a-secret")
    for more in ([], ["-A", shop]):
        [found] = mistakes(cli("config", "validate", "--json", *more))
        assert "signing_key is no key" in found
        assert "too-short" not in found
    monkeypatch.delenv("SQLQUEUE_SIGNING_KEY")
    monkeypatch.setenv("SQLQUEUE_SIGNING_KEY_FILE", str(tmp_path / "keys"))
    for more in ([], ["-A", shop]):
        [found] = mistakes(cli("config", "validate", "--json", *more))
        assert "cannot read signing_key_file" in found


def test_a_file_that_cannot_be_read_hides_no_variable(cli, tmp_path, monkeypatch):
    (tmp_path / "sqlqueue.toml").write_text("visibility_timeout = ")
    monkeypatch.setenv("SQLQUEUE_WORKER_GRACE", "soon")
    found = mistakes(cli("config", "validate", "--json"))
    assert len(found) == 2
    assert "is not valid TOML" in found[0]


def test_mistakes_of_the_applications_code_are_among_them(cli, tmp_path):
    (tmp_path / "wrong_code.py").write_text(
        "from sqlqueue import SqlQueue\napp = SqlQueue('x', visibilty_timeout=3, timezone='Mars')\n"
    )
    found = mistakes(cli("-A", "wrong_code:app", "config", "validate", "--json"))
    assert len(found) == 2
    assert all("code" in one for one in found)


def test_an_application_that_cannot_be_imported_is_one_mistake_beside_the_settings(cli, tmp_path):
    (tmp_path / "sqlqueue.toml").write_text("nonsense = 1\n")
    found = mistakes(cli("-A", "no_such_module:app", "config", "validate", "--json"))
    assert len(found) == 2
    assert "cannot import app" in found[0]
    assert "'nonsense' is no setting" in found[1]


def test_every_entry_of_the_schedule_is_looked_at(cli, tmp_path, shop):
    (tmp_path / "sqlqueue.toml").write_text(
        """
        [beat.one]
        task = "shop.add"
        every = "never"
        [beat.two]
        task = "shop.add"
        evry = "1h"
        [beat.three]
        task = "shop.add"
        cron = "61 * * * *"
        [beat.right]
        task = "shop.add"
        every = "1h"
        """
    )
    found = mistakes(cli("-A", shop, "config", "validate", "--json"))
    assert len(found) == 3
    for name in ("one", "two", "three"):
        assert sum(f"[beat.{name}]" in one for one in found) == 1, found


def test_a_task_of_an_entry_that_nobody_here_has_is_warned_of(cli, tmp_path, shop):
    (tmp_path / "sqlqueue.toml").write_text('[beat.tidy]\ntask = "shop.ad"\nevery = "1h"\n')
    result = cli("-A", shop, "config", "validate")
    assert result.code == 0
    assert "no task is named 'shop.ad' here. Did you mean 'shop.add'?" in result.err
    assert "1 schedule entry" in result.out


def test_a_queue_name_that_the_file_would_refuse_is_a_mistake(cli, tmp_path):
    (tmp_path / "sqlqueue.toml").write_text(f'task_default_queue = "{"ü" * 150}"\n')
    [found] = mistakes(cli("config", "validate", "--json"))
    assert "is too long; 255 are allowed" in found


@pytest.mark.parametrize(
    ("db", "text"),
    [
        ("missing/queue.db", "does not exist"),
        ("a-directory", "is a directory"),
        ("text.db", "is not a SQLite database"),
        ("newer.db", "has schema version 99"),
        ("sqlqueue:///q.db?durabilty=full", "durability is meant?"),
        ("nosuch://host", "cannot use the broker"),
    ],
)
def test_a_broker_that_can_be_neither_opened_nor_made_is_a_mistake(cli, filled, tmp_path, db, text):
    filled.close()
    (tmp_path / "a-directory").mkdir()
    (tmp_path / "text.db").write_text("no database at all " * 100)
    (tmp_path / "queue.db").rename(tmp_path / "newer.db")
    newer = sqlite3.connect(tmp_path / "newer.db")
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    [found] = mistakes(cli("config", "validate", "--json", "--db", db))
    assert text in found


def test_a_queue_that_is_there_and_a_broker_that_answers_are_in_order(cli, filled):
    filled.publish()
    filled.close()
    assert cli("config", "validate").code == 0
    result = cli("config", "validate", "--db", "memory://")
    assert result.code == 0
    assert result.out == "ok: settings, memory://\n"


def test_passwords_of_a_broker_are_not_shown(cli, tmp_path):
    result = cli("config", "validate", "--db", "nosuch://me:s3cret@host")
    assert result.code == 2
    assert "s3cret" not in result.out + result.err
