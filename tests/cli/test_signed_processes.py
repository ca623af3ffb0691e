"""A key in the environment: worker, beat and command line as programs, and one that has none."""

from __future__ import annotations

import pytest

from tests.cli.conftest import program

APP = """
from sqlqueue import SqlQueue

app = SqlQueue("signed", broker_url="sqlqueue:///queue.db")


@app.task(name="note")
def note(text):
    with open("notes", "a") as file:
        print(text, file=file)


app.periodic("from code", note.s("beaten"), every="1s")
"""
KEY = {"SQLQUEUE_SIGNING_KEY": "0123456789abcdef" * 2}


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["processes", "threads"])
def test_worker_with_a_key_runs_what_programs_with_the_key_have_made(tmp_path, cli, pool):
    (tmp_path / "signed_app.py").write_text(APP)

    def run(*words: str, env: dict[str, str] | None = None) -> None:
        process = program(*words, "-A", "signed_app:app", cwd=tmp_path, env=env)
        out, error = process.communicate(timeout=60)
        assert process.returncode == 0, f"{words}: {out}{error}"
        assert KEY["SQLQUEUE_SIGNING_KEY"] not in out + error

    run("call", "note", '["signed"]', env=KEY)
    run("call", "note", '["forged"]')
    run("schedule", "add", "forged entry", "note", '["forged"]', "--every", "1s")
    run("schedule", "add", "signed entry", "note", '["added"]', "--every", "1s", env=KEY)
    run("beat", "--max-ticks", "2", env=KEY)
    run("worker", "--burst", "-P", pool, "-c", "2", env=KEY)

    assert sorted((tmp_path / "notes").read_text().split()) == ["added", "beaten", "signed"]
    db = ("--db", tmp_path / "queue.db", "--json")
    [dead] = cli("inspect", "jobs", "--state", "permanently_failed", *db).json["items"]
    assert dead["error"]["type"] == "Unsigned"
    [entry] = [
        one
        for one in cli("inspect", "schedule", *db).json["items"]
        if one["entry"] == "forged entry"
    ]
    assert "is not signed" in entry["error"]
