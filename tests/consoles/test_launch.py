"""`sqlqueue console`: what it refuses, what it says, and how it ends."""

from __future__ import annotations

import contextlib
import http.client
import re
import signal
import socket
import time

import pytest

from sqlqueue.cli import main
from sqlqueue.consoles import launch
from sqlqueue_transport import Store, close_store
from tests.cli.conftest import Result, program
from tests.support import free_port, kill, run_python, wait_until

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def db(tmp_path):
    store = Store(tmp_path / "queue.db")
    close_store(store)
    store.close()
    return tmp_path / "queue.db"


@pytest.fixture
def refused(tmp_path):
    """Run `sqlqueue console …` to its end, which comes at once."""

    def call(*arguments, **popen) -> Result:
        process = program("console", *arguments, "--no-browser", cwd=tmp_path, **popen)
        try:
            out, err = process.communicate(timeout=60)
        finally:
            kill(process)
        return Result(process.returncode, out, err)

    return call


# ---------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "queue.example"])
def test_console_without_a_token_is_for_this_machine_only(refused, db, host):
    result = refused("admin", "--auth", "none", "--host", host)
    assert (result.code, result.out) == (2, "")
    assert "leave out --auth none" in result.err
    assert "Traceback" not in result.err


def test_busy_port_is_told_and_another_one_named(refused, db):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        result = refused("ops", "--port", port)
    assert (result.code, result.out) == (2, "")
    assert f"cannot listen on 127.0.0.1:{port}" in result.err
    assert "--port takes another" in result.err


def test_address_of_another_machine_is_told(refused, db):
    result = refused("ops", "--host", "192.0.2.1", "--port", free_port())
    assert (result.code, result.out) == (2, "")
    assert "cannot listen on 192.0.2.1" in result.err


def test_missing_file_is_an_error_and_is_not_made(refused, tmp_path):
    result = refused("admin", "--port", free_port())
    assert (result.code, result.out) == (2, "")
    assert "no database at ./queue.db" in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("token", ["short", "with spaces in between", "fünfzehn-und-mehr"])
def test_token_that_could_be_guessed_is_refused_and_not_repeated(refused, db, token):
    for result in (
        refused("ops", "--port", free_port(), "--token", token),
        refused("ops", "--port", free_port(), env={"SQLQUEUE_CONSOLE_TOKEN": token}),
    ):
        assert (result.code, result.out) == (2, "")
        assert "at least 16 characters" in result.err
        assert token not in result.err


def test_token_that_others_can_read_is_refused(refused, db):
    token = db.with_name("queue.db-run") / "console-ops.token"
    token.write_text("a-token-of-a-good-length\n")
    token.chmod(0o644)
    result = refused("ops", "--port", free_port())
    assert (result.code, result.out) == (2, "")
    assert f"{token} can be read by others" in result.err


def test_host_that_is_no_name_of_one_is_refused(refused, db):
    result = refused("ops", "--host", "a" * 80)
    assert (result.code, result.out) == (2, "")
    assert f"--host '{'a' * 80}' is no name of a host" in result.err


@pytest.mark.parametrize("port", ["0", "65536", "http"])
def test_port_that_is_none_is_refused(refused, db, port):
    assert refused("ops", "--port", port).code == 2


def test_unknown_console_is_refused(refused, db):
    assert refused("root").code == 2


def test_missing_extra_is_told_with_what_to_install(tmp_path, db):
    hidden = """
        import sys
        sys.modules["streamlit"] = None
        from sqlqueue.cli import main
        sys.exit(main(["console", "ops", "--db", sys.argv[1]]))
    """
    process = run_python(hidden, db, cwd=tmp_path)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert "pip install 'sqlqueue[consoles]'" in error
    assert "Traceback" not in error


# --------------------------------------------------------------------------------- what is served


def headers_of(response) -> dict[str, str]:
    return {name.lower(): value for name, value in response.getheaders()}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_console_serves_its_link_and_ends_well_at_a_signal(start, db, number):
    console = start("admin")
    assert re.fullmatch(rf"http://localhost:{console.port}/\?token=[\w-]{{40,}}", console.link)
    console.wait()
    assert console.get("/").status == 401
    entered = console.get(f"/?token={console.token}")
    assert (entered.status, headers_of(entered)["location"]) == (303, "/")
    cookie = headers_of(entered)["set-cookie"].split(";")[0]
    page = console.get("/", Cookie=cookie)
    assert (page.status, "<title>" in page.text) == (200, True)
    code, error = console.stop(number)
    assert code == 0, error
    assert console.token not in error
    assert "Traceback" not in error
    assert error.splitlines() == ["The admin console is running. ctrl-c ends it."]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("after_s", [0, 0.1, 0.3, 0.6])
def test_console_that_is_stopped_while_it_starts_ends(start, db, number, after_s):
    """Whatever moment that is: before its server listens to signals, or after."""
    console = start("ops")
    time.sleep(after_s)  # the moment is what is tried
    code, error = console.stop(number)
    assert code == 0, error
    assert "Traceback" not in error


def test_token_stays_the_same_from_start_to_start_and_each_console_has_its_own(start, db):
    first = start("admin")
    second, other = start("admin"), start("ops")
    assert first.token == second.token != other.token
    kept = db.with_name("queue.db-run") / "console-admin.token"
    assert kept.read_text().strip() == first.token
    for console in (first, second, other):
        assert console.stop()[0] == 0


def test_token_of_the_environment_is_taken_and_printed_only_in_the_link(start, db):
    token = "a-token-of-a-good-length"
    console = start("ops", "-q", env={"SQLQUEUE_CONSOLE_TOKEN": token})
    assert console.token == token
    console.wait()
    assert console.stop() == (0, "")
    assert not db.with_name("queue.db-run").joinpath("console-ops.token").exists()


def test_console_on_another_loopback_address_is_known_by_it(start, db):
    console = start("ops", "--host", "127.0.0.2")
    assert console.url == f"http://127.0.0.2:{console.port}"

    def ask():
        connection = http.client.HTTPConnection("127.0.0.2", console.port, timeout=10)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status
        except OSError:
            return None
        finally:
            connection.close()

    assert wait_until(ask, deadline_s=30) == 401


def test_console_answers_to_the_names_it_was_given(start, db):
    console = start("ops", "--allow-host", "queue.example")
    console.wait()
    assert console.get("/", Host="queue.example").status == 401
    assert console.get("/", Host="other.example").status not in {200, 303, 401}


def test_browser_is_opened_where_it_is_wanted(start, db, tmp_path):
    script = tmp_path / "browser"
    script.write_text(f'#!/bin/sh\necho "$1" >> "{tmp_path}/opened.new"\n')
    script.chmod(0o700)
    opened = tmp_path / "opened.new"
    shy = start("ops", env={"BROWSER": f"{script} %s"})
    shy.wait()
    console = start("ops", "--browser", env={"BROWSER": f"{script} %s"})
    wait_until(lambda: opened.exists() and opened.read_text(), deadline_s=30)
    assert opened.read_text() == f"{console.link}\n"
    for one in (shy, console):
        assert one.stop()[0] == 0
    assert opened.read_text() == f"{console.link}\n"


def test_pages_are_told_to_show_times_in_utc(db, monkeypatch):
    told = []
    monkeypatch.setattr(launch, "serve", lambda console, chosen, **_: told.append(chosen.utc))
    for words in ([], ["--utc"]):
        assert main(["console", "ops", "--no-browser", "--db", str(db), *words]) == 0
    assert told == [False, True]


def test_settings_of_streamlit_in_the_working_directory_change_nothing_that_guards(start, db):
    settings = db.parent / ".streamlit"
    settings.mkdir()
    (settings / "config.toml").write_text(
        '[server]\nbaseUrlPath = "elsewhere"\nenableXsrfProtection = false\nenableCORS = false\n'
        'allowedHosts = ["*"]\naddress = "0.0.0.0"\nenableAgentApi = true\nenableStaticServing = true\n'
        '[client]\nshowErrorDetails = "full"\n'
    )
    console = start("ops")
    console.wait()
    entered = console.get(f"/?token={console.token}")
    cookie = headers_of(entered)["set-cookie"].split(";")[0]
    assert console.get("/", Cookie=cookie).status == 200
    agent = console.get("/_stcore/agent/openapi.json", Cookie=cookie)
    assert "the API is switched off" in agent.text
    with socket.socket() as own:
        # Nobody but 127.0.0.1 is listened on.
        assert own.connect_ex(("127.0.0.2", console.port)) != 0


# ------------------------------------------------------------------- the gate, in front of the server


def raw(console, text: bytes) -> bytes:
    """Send bytes as they are and return all that comes back."""
    with socket.create_connection(("127.0.0.1", console.port), timeout=20) as connection:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(text)
            connection.shutdown(socket.SHUT_WR)
        found = b""
        # Of what is too long the server does not read the end, and resets.
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65536):
                found += part
        return found


UPGRADE = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


def test_no_request_however_it_is_written_gets_past_the_gate(start, db):
    console = start("admin")
    console.wait()
    host = f"Host: localhost:{console.port}\r\n".encode()
    asked = {
        "http/1.0 without a host": b"GET / HTTP/1.0\r\n\r\n",
        "http/1.0 without a host, health": b"GET /_stcore/health HTTP/1.0\r\n\r\n",
        "no version": b"GET /\r\n\r\n",
        "two hosts": b"GET / HTTP/1.1\r\n" + host + b"Host: evil\r\n\r\n",
        "absolute form": b"GET http://localhost/_stcore/health HTTP/1.1\r\n" + host + b"\r\n",
        "absolute form of another": b"GET http://evil/ HTTP/1.1\r\n" + host + b"\r\n",
        "connect": b"CONNECT localhost:80 HTTP/1.1\r\n" + host + b"\r\n",
        "asterisk": b"OPTIONS * HTTP/1.1\r\n" + host + b"\r\n",
        "two slashes": b"GET //_stcore/stream HTTP/1.1\r\n" + host + b"\r\n",
        "encoded": b"GET /%5Fstcore%2Fhost-config HTTP/1.1\r\n" + host + b"\r\n",
        "dots": b"GET /_stcore/health/../host-config HTTP/1.1\r\n" + host + b"\r\n",
        "encoded dots": b"GET /_stcore/health/%2e%2e/host-config HTTP/1.1\r\n" + host + b"\r\n",
        "static": b"GET /static/../index.html HTTP/1.1\r\n" + host + b"\r\n",
        "files": b"GET /static/..%2f..%2f..%2fetc/passwd HTTP/1.1\r\n" + host + b"\r\n",
        "fragment": b"GET /_stcore/host-config#/_stcore/health HTTP/1.1\r\n" + host + b"\r\n",
        "forwarded": b"GET / HTTP/1.1\r\nHost: evil\r\nX-Forwarded-Host: localhost\r\n\r\n",
        "folded header": b"GET / HTTP/1.1\r\n" + host + b"X: y\r\n Host: localhost\r\n\r\n",
        "socket": b"GET /_stcore/stream HTTP/1.1\r\n" + host + UPGRADE + b"\r\n",
        "socket of health": b"GET /_stcore/health HTTP/1.1\r\n" + host + UPGRADE + b"\r\n",
        "socket, its protocol": b"GET /_stcore/stream HTTP/1.1\r\n"
        + host
        + UPGRADE
        + b"Sec-WebSocket-Protocol: streamlit, a, b\r\n\r\n",
        "socket, no host": b"GET /_stcore/stream HTTP/1.0\r\n" + UPGRADE + b"\r\n",
        "two requests, one length": b"POST / HTTP/1.1\r\n"
        + host
        + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        "http/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "long": b"GET /" + b"x" * 200_000 + b" HTTP/1.1\r\n" + host + b"\r\n",
    }
    answers = {name: raw(console, text) for name, text in asked.items()}
    for name, answer in answers.items():
        status = answer.split(b" ", 2)[1][:3] if answer.startswith(b"HTTP/") else b""
        assert status in {b"401", b"403", b"400", b"405", b""}, (name, answer[:300])
        assert b"streamlit" not in answer.lower(), (name, answer[:300])
        assert b"101 Switching" not in answer, name
    # ... and one that may: else nothing would be proved by the others.
    answer = raw(console, b"GET /_stcore/health HTTP/1.1\r\n" + host + b"Connection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK")
    code, error = console.stop()
    assert code == 0
    assert "Traceback" not in error
