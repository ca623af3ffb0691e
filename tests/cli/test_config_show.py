"""`sqlqueue config show`: every setting, where it came from, and no passwords."""

from __future__ import annotations


def items(result):
    return {item["name"]: item for item in result.json["items"]}


def test_every_setting_is_there_with_its_origin(cli, tmp_path, monkeypatch, shop):
    (tmp_path / "sqlqueue.toml").write_text(
        'visibility_timeout = "10m"\n[app]\ncolor = "red"\n[beat.tidy]\ntask = "t"\nevery = "1h"\n'
    )
    monkeypatch.setenv("SQLQUEUE_TASK_MAX_ATTEMPTS", "3")
    found = items(cli("-A", shop, "--db", "x.db", "config", "show", "--json"))
    assert (found["visibility_timeout"]["value"], found["visibility_timeout"]["origin"]) == (
        600.0,
        "file sqlqueue.toml",
    )
    assert found["task_max_attempts"]["origin"] == "env SQLQUEUE_TASK_MAX_ATTEMPTS"
    assert found["broker_url"] == {
        "name": "broker_url",
        "value": "sqlqueue:///x.db",
        "origin": "command line",
    }
    assert found["durability"]["origin"] == "default"
    assert found["app.color"]["value"] == "red"
    assert found["beat.tidy"]["value"] == {"task": "t", "every": "1h"}


def test_table_tells_origins_when_asked(cli):
    assert "ORIGIN" not in cli("config", "show").out
    out = cli("config", "show", "--origin").out
    assert out.splitlines()[0].split() == ["SETTING", "VALUE", "ORIGIN"]
    assert "default" in out


def test_passwords_are_not_shown(cli, tmp_path):
    (tmp_path / "sqlqueue.toml").write_text(
        """
        broker_url = "redis://user:s3cret@host/0"
        [transport_options]
        ssl_password = "s3cret"
        nested = { api_key = "s3cret", port = 1 }
        [app]
        token = "s3cret"
        url = "https://me:s3cret@host"
        harmless = "seen"
        """
    )
    for extra in ([], ["--json"]):
        result = cli("config", "show", *extra)
        assert result.code == 0
        assert "s3cret" not in result.out
        assert "redis://user:**@host/0" in result.out
        assert "seen" in result.out


def test_keys_that_sign_are_not_shown(cli, tmp_path):
    key, older = "k" * 40, "o" * 40
    (tmp_path / "sqlqueue.toml").write_text(
        f'signing_key = "{key}"\nsigning_keys_accepted = ["{older}"]\n'
    )
    for extra in ([], ["--json"], ["--origin"]):
        result = cli("config", "show", *extra)
        assert result.code == 0
        assert "signing_key" in result.out
        assert key not in result.out
        assert older not in result.out
    (tmp_path / "sqlqueue.toml").write_text('signing_key_file = "/etc/sqlqueue/keys"\n')
    assert "/etc/sqlqueue/keys" in cli("config", "show").out


def test_key_that_stands_where_its_file_should_is_not_shown(cli, tmp_path, monkeypatch, shop):
    key = "0123456789abcdef" * 4
    monkeypatch.setenv("SQLQUEUE_SIGNING_KEY_FILE", key)
    for words in (
        *(("config", "show", *more) for more in ((), ("--json",), ("--origin",))),
        *(("config", "validate", *more) for more in ((), ("--json",))),
        ("-A", shop, "call", "shop.add", "[1, 2]"),
        ("-A", shop, "worker", "--burst", "-P", "solo"),
        ("-A", shop, "beat", "--max-ticks", "1"),
        ("doctor",),
    ):
        result = cli(*words)
        assert key[:12] not in result.out + result.err, words
        if "show" in words:
            assert result.code == 0
        elif "doctor" not in words:
            assert "looks like a key" in result.out + result.err, words


def test_broken_settings_are_one_line_and_exit_2(cli, tmp_path):
    (tmp_path / "sqlqueue.toml").write_text("visibility_timout = 3\n")
    result = cli("config", "show")
    assert (result.code, result.out) == (2, "")
    assert "Did you mean 'visibility_timeout'?" in result.err
    assert result.err.count("\n") == 1


def test_file_of_another_name_is_read(cli, tmp_path):
    (tmp_path / "my.toml").write_text("task_max_attempts = 9\n")
    found = items(cli("config", "show", "--config", "my.toml", "--json"))
    assert found["task_max_attempts"]["value"] == 9
    assert found["task_max_attempts"]["origin"] == "file my.toml"
