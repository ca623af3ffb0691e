"""The gate in front of a console, asked directly: who gets in, and what of a request is believed."""

from __future__ import annotations

import asyncio
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlencode

import pytest

from sqlqueue.consoles.gate import HEALTH, Entry, Gate, host_name
from sqlqueue.consoles.tokens import cookie_value

TOKEN = "a-token-of-a-good-length"
HOST = "localhost:8501"
NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
ADMIN = Entry(role="admin", port=8501, hosts=NAMES, token=TOKEN)
FREE = Entry(role="admin", port=8501, hosts=NAMES, token=None)
COOKIE = f"{ADMIN.cookie}={cookie_value(TOKEN, role='admin')}"


class Answer:
    """What came back: from the console behind the gate (`passed`), or from the gate."""

    def __init__(self) -> None:
        self.passed = False
        self.read = 0  # bytes of the form
        self.messages: list[dict[str, Any]] = []

    @property
    def status(self) -> int:
        return self.messages[0]["status"]

    @property
    def body(self) -> str:
        return b"".join(message.get("body", b"") for message in self.messages).decode()

    @property
    def is_closed(self) -> bool:
        """Say whether a socket was closed before it was accepted."""
        return [message["type"] for message in self.messages] == ["websocket.close"]

    def headers(self, name: str) -> list[str]:
        return [
            value.decode() for key, value in self.messages[0]["headers"] if key.decode() == name
        ]


def ask(
    path: str = "/",
    *,
    entry: Entry = ADMIN,
    kind: str = "http",
    method: str = "GET",
    query: str = "",
    body: bytes = b"",
    host: str | None = HOST,
    more: tuple[tuple[str, str], ...] = (),
    **headers: str,
) -> Answer:
    """Send one request, as an ASGI server hands it over; `path` is decoded, as it does."""
    answer = Answer()

    async def console(scope: Any, receive: Any, send: Any) -> None:
        answer.passed = True
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"the console"})

    sent = [("host", host)] if host is not None else []
    sent += [(name.replace("_", "-"), value) for name, value in headers.items()]
    scope: dict[str, Any] = {
        "type": kind,
        "path": path,
        "query_string": query.encode("latin-1"),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in (*sent, *more)],
    }
    if kind == "http":
        scope["method"] = method
    parts = iter([body[start : start + 1000] for start in range(0, len(body), 1000)])

    async def receive() -> dict[str, Any]:
        part = next(parts, None)
        if part is None:
            return {"type": "http.disconnect"}
        answer.read += len(part)
        return {"type": "http.request", "body": part, "more_body": True}

    async def send(message: dict[str, Any]) -> None:
        answer.messages.append(message)

    asyncio.run(Gate(console, entry)(scope, receive, send))
    return answer


def log_in(**form: str) -> Answer:
    """Send the form."""
    return ask("/login", method="POST", body=urlencode(form).encode(), origin=f"http://{HOST}")


# ------------------------------------------------------------------------------------- the token


def test_who_shows_nothing_gets_the_form_and_nothing_else():
    answer = ask("/")
    assert (answer.status, answer.passed) == (401, False)
    assert 'name="token" type="password"' in answer.body
    assert answer.headers("cache-control") == ["no-store"]


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/",
            "/job",
            "/index.html",
            "/static/js/index.js",
            "/media/abc.png",
            "//",
            "/favicon.png",
        ),
        *(
            "/_stcore/stream",
            "/_stcore/host-config",
            "/_stcore/metrics",
            "/_stcore/upload_file/a/b",
        ),
        *("/_stcore/agent/interact", "/_stcore/agent/openapi.json", "/_stcore/agent/mcp"),
        *("/auth/login", "/oauth2callback", "/component/x/y", "/_stcore/bidi-components/x"),
        *("//_stcore/health", "/_stcore/health/", "/_stcore/health/../stream", "/_STCORE/health"),
        *("/_stcore/health\0", "/_stcore/health?x", "/_stcore/health;x", "/x/../_stcore/health"),
        *("http://localhost/_stcore/health", "/_stcore//health", "*", "", "/_stcore/health "),
        "/_stcore/script-health-check",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "get"])
def test_no_path_and_no_method_leads_around_the_token(path, method):
    assert not ask(path, method=method).passed


def test_health_is_told_without_a_token_and_only_by_http():
    assert ask(HEALTH).passed
    assert ask(HEALTH, query="token=wrong").passed
    assert not ask(HEALTH, kind="websocket").passed
    assert not ask(HEALTH, host="evil.example").passed


def test_link_with_the_token_gives_a_cookie_and_leads_on_without_the_token():
    answer = ask("/job", query=f"id=42&token={TOKEN}&q=a%26b")
    assert (answer.status, answer.passed) == (303, False)
    assert answer.headers("location") == ["/job?id=42&q=a%26b"]
    [cookie] = answer.headers("set-cookie")
    assert cookie.startswith(f"{COOKIE}; ")
    assert {"HttpOnly", "SameSite=Lax", "Path=/"} <= set(cookie.split("; "))
    assert TOKEN not in cookie
    assert ask("/job", query="id=42&q=a%26b", cookie=COOKIE).passed


def test_token_leaves_the_address_bar_of_who_is_in_already():
    for token in (TOKEN, "an-old-one-from-a-bookmark"):
        answer = ask("/", query=f"token={token}", cookie=COOKIE)
        assert (answer.status, answer.headers("location")) == (303, ["/"])


def test_form_of_a_second_tab_leads_on_when_the_first_has_let_one_in():
    answer = ask("/login", method="POST", body=b"token=&back=/job", cookie=COOKIE)
    assert (answer.status, answer.headers("location")) == (303, ["/job"])


def test_form_takes_the_token_and_leads_back():
    answer = log_in(token=TOKEN, back="/job?id=42")
    assert (answer.status, answer.headers("location")) == (303, ["/job?id=42"])
    assert answer.headers("set-cookie")


def test_form_asked_for_by_its_name_leads_to_the_console():
    assert 'name="back" value="/"' in ask("/login").body


@pytest.mark.parametrize(
    "token",
    [
        *("", " ", "wrong", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), f" {TOKEN}", f"{TOKEN}\0"),
        *("ü" * 20, "\ud800", "x" * 1_000_000, cookie_value(TOKEN, role="admin")),
    ],
    ids=range(12),
)
def test_wrong_token_is_refused_in_form_and_link(token):
    body = urlencode({"token": token}, errors="surrogatepass").encode()
    for answer in (
        ask("/login", method="POST", body=body),
        ask("/", query=body.decode()),
    ):
        assert (answer.status, answer.passed, answer.headers("set-cookie")) == (401, False, [])


def test_huge_form_is_not_read_to_its_end():
    body = urlencode({"filler": "x" * 100_000, "token": TOKEN}).encode()
    answer = ask("/login", method="POST", body=body)
    assert (answer.status, answer.read) == (401, 5000)


def test_second_token_of_a_link_does_not_help():
    assert ask("/", query=f"token=wrong&token={TOKEN}").status == 401


def test_form_says_that_a_token_was_wrong_and_only_then():
    assert "not this console" in log_in(token="wrong").body
    assert "not this console" not in ask("/").body


@pytest.mark.parametrize(
    "cookie",
    [
        f"{ADMIN.cookie}=",
        f"{ADMIN.cookie}={TOKEN}",
        f"{ADMIN.cookie}={cookie_value(TOKEN, role='ops')}",
        f"{ADMIN.cookie}={cookie_value('another-token-altogether', role='admin')}",
        f"sqlqueue_ops_8501={cookie_value(TOKEN, role='admin')}",
        f"sqlqueue_admin_8502={cookie_value(TOKEN, role='admin')}",
        f"x{COOKIE}",
        f'{ADMIN.cookie}="{"x" * 100_000}"',
        "\xff\xfe;;;=;=",
    ],
    ids=range(9),
)
def test_cookie_of_another_console_is_none(cookie):
    assert ask("/", cookie=cookie).status == 401
    assert ask("/_stcore/stream", kind="websocket", cookie=cookie).is_closed


@pytest.mark.parametrize(
    "others",
    [
        'a={"x": 1, "y": [2]}',
        "broken",
        "=;;",
        'q="never closed',
        "naïve=\xe9",
        "$Version=1",
        "a b=c",
    ],
)
def test_cookies_of_other_programs_on_this_host_lock_nobody_out(others):
    assert ask("/", cookie=f"{others}; {COOKIE}").passed
    assert ask("/", cookie=f"{COOKIE}; {others}").passed
    assert ask("/", cookie=others, more=(("cookie", COOKIE),)).passed


def test_cookie_of_an_older_token_beside_the_new_one_locks_nobody_out():
    assert ask("/", cookie=f"{ADMIN.cookie}=old; {COOKIE}").passed


def test_socket_needs_the_cookie_whatever_it_says_besides():
    for more in (
        {},
        {"sec_websocket_protocol": f"streamlit, {TOKEN}, {TOKEN}"},
        {"authorization": f"Bearer {TOKEN}"},
        {"origin": f"http://{HOST}"},
    ):
        assert ask("/_stcore/stream", kind="websocket", **more).is_closed
        assert ask("/_stcore/stream", kind="websocket", query=f"token={TOKEN}", **more).is_closed
    assert ask("/_stcore/stream", kind="websocket", cookie=COOKIE).passed


def test_console_without_a_token_asks_for_none_but_knows_its_name_and_its_pages():
    assert ask("/", entry=FREE).passed
    assert ask("/_stcore/stream", entry=FREE, kind="websocket", origin=f"http://{HOST}").passed
    assert not ask("/", entry=FREE, host="evil.example").passed
    assert not ask("/x", entry=FREE, method="POST", origin="http://evil.example").passed
    assert ask(
        "/_stcore/stream", entry=FREE, kind="websocket", origin="http://evil.example"
    ).is_closed


# ------------------------------------------------------------------------- where one is led back to


@pytest.mark.parametrize(
    "back",
    [
        *(
            "//evil.example",
            "///evil.example",
            "/\\evil.example",
            "\\\\evil.example",
            "http://evil",
        ),
        *(
            "https:evil.example",
            "javascript:alert(1)",
            "data:text/html,x",
            "evil.example",
            "",
            "?x",
        ),
        *("/\t/evil.example", "/\n/evil.example", "/\0/evil.example", "/é/evil.example"),
        *(
            "\t//evil.example",
            " //evil.example",
            "/\r\nset-cookie: a=b",
            "/\u2028/evil",
            "/\ud800/e",
        ),
    ],
)
def test_form_leads_to_no_other_site_and_into_no_second_header(back):
    body = urlencode({"token": TOKEN, "back": back}, errors="surrogatepass").encode()
    answer = ask("/login", method="POST", body=body)
    [location] = answer.headers("location")
    assert answer.status == 303
    assert location.isprintable()
    assert location.isascii()
    assert location.startswith("/")
    # A browser drops tabs and ends of line, and takes a back slash for a slash.
    assert not location.startswith("//")
    assert "\\" not in location


@pytest.mark.parametrize(
    "path", ["//evil.example", "/\\evil.example", "/\t/evil", "/é/evil", "/\0/e"]
)
def test_link_leads_to_no_other_site(path):
    [location] = ask(path, query=f"token={TOKEN}").headers("location")
    assert location.isascii()
    assert location.isprintable()
    assert not location.startswith("//")
    assert location.startswith("/")
    assert "\\" not in location


def test_path_with_a_question_mark_in_it_stays_one():
    [location] = ask("/a?b#c%", query=f"token={TOKEN}").headers("location")
    assert location == "/a%3Fb%23c%25"


class Attributes(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_form_shows_no_markup_of_a_stranger():
    hostile = "/'\"><script>alert(1)</script>"
    for answer in (ask(hostile, query="a=<b>'\""), log_in(token="wrong", back=hostile)):
        page = Attributes()
        page.feed(answer.body)
        assert "script" not in [tag for tag, _ in page.tags]
        assert [tag for tag, _ in page.tags].count("input") == 2
        assert "default-src 'none'" in " ".join(answer.headers("content-security-policy"))


def test_form_copes_with_halves_of_surrogate_pairs():
    body = urlencode({"token": "wrong", "back": "/\ud800"}, errors="surrogatepass").encode()
    assert ask("/login", method="POST", body=body).status == 401


# ----------------------------------------------------------------------- hosts, and other web pages


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:8501", "LOCALHOST:9000", "127.0.0.1:1", "[::1]:8501", "[::1]"],
)
def test_console_is_known_by_its_names_whatever_the_port_of_a_tunnel(host):
    assert ask("/", host=host, cookie=COOKIE).passed
    assert ask(
        "/_stcore/stream", kind="websocket", host=host, cookie=COOKIE, origin=f"http://{host}"
    ).passed


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "localhost.evil.example", "evil.example:8501", "evil@localhost", "", " "),
        *("localhost@evil.example", "localhost/x", "localhost?x", "localhost#x", "localhost:x"),
        *(
            "[::1",
            "::1",
            "[::2]",
            "localhost, localhost",
            "local\thost",
            "127.0.0.1.evil",
            "0.0.0.0",
        ),
        *("localhost:8501:8501", "localhost\\evil", "127.1", "2130706433", "localhost:-1", "\xff"),
    ],
)
def test_forged_host_is_refused_before_the_token_is_looked_at(host):
    answer = ask("/", host=host, cookie=COOKIE)
    assert (answer.passed, answer.status) == (False, 403)
    assert ask("/_stcore/stream", kind="websocket", host=host, cookie=COOKIE).is_closed
    assert ask("/", host=host, query=f"token={TOKEN}").headers("set-cookie") == []


def test_request_without_a_host_or_with_two_is_refused():
    assert ask("/", host=None, cookie=COOKIE).status == 403
    assert ask("/", more=(("host", "localhost"),), cookie=COOKIE).status == 403
    assert ask("/", more=(("Host", "evil.example"),), cookie=COOKIE).status == 403


@pytest.mark.parametrize("name", ["x-forwarded-host", "forwarded", "x-host", "x-original-url"])
def test_what_a_proxy_may_say_of_the_host_is_not_believed(name):
    assert not ask("/", host="evil.example", more=((name, "localhost"),), cookie=COOKIE).passed
    assert not ask("/job", more=((name, HEALTH),)).passed


def test_refusal_does_not_repeat_what_was_asked():
    assert "evil" not in ask("/evil", host="evil.example", query="evil").body


@pytest.mark.parametrize(
    "origin",
    [
        *("null", "http://evil.example", "http://localhost:3000", "http://localhost", "file://"),
        *("http://localhost:8501.evil.example", "http://evil@localhost:8501", "", "localhost:8501"),
        *("http://127.0.0.1:8501", "http://[::1", "http://localhost:8501, http://evil.example"),
    ],
)
def test_other_web_page_may_neither_send_nor_connect_nor_fetch(origin):
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "GET"):
        answer = ask("/_stcore/upload_file/a/b", method=method, origin=origin, cookie=COOKIE)
        assert (answer.passed, answer.status) == (False, 403)
    assert ask("/_stcore/stream", kind="websocket", origin=origin, cookie=COOKIE).is_closed
    body = urlencode({"token": TOKEN}).encode()
    assert ask("/login", method="POST", body=body, origin=origin).status == 403


def test_own_page_may_do_all_that():
    for method in ("POST", "PUT", "DELETE", "GET"):
        own = {"origin": "http://LOCALHOST:8501", "sec_fetch_site": "same-origin"}
        assert ask("/_stcore/upload_file/a/b", method=method, cookie=COOKIE, **own).passed
    assert ask("/_stcore/stream", kind="websocket", cookie=COOKIE, **own).passed


@pytest.mark.parametrize("site", ["cross-site", "same-site", "unheard-of"])
@pytest.mark.parametrize("mode", ["no-cors", "cors", "websocket", "same-origin", ""])
def test_pictures_scripts_and_fetches_of_other_pages_are_refused(site, mode):
    fetched = {"sec_fetch_site": site, "sec_fetch_mode": mode}
    assert ask("/media/x.png", cookie=COOKIE, **fetched).status == 403
    assert ask(HEALTH, **fetched).status == 403
    assert ask("/_stcore/stream", kind="websocket", cookie=COOKIE, **fetched).is_closed


def test_link_on_another_page_may_be_followed_but_its_form_is_refused():
    followed = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}
    assert ask("/job", cookie=COOKIE, **followed).passed
    assert ask("/job", cookie=COOKIE, origin="null", **followed).passed
    assert ask("/job", method="POST", cookie=COOKIE, **followed).status == 403
    assert ask("/_stcore/stream", kind="websocket", cookie=COOKIE, **followed).is_closed


def test_no_answer_lets_itself_be_framed_or_sniffed():
    for answer in (
        ask("/"),
        ask("/", cookie=COOKIE),
        ask("/", host="evil.example"),
        ask("/", query=f"token={TOKEN}"),
        ask(HEALTH),
    ):
        assert answer.headers("x-frame-options") == ["DENY"]
        assert "frame-ancestors 'none'" in answer.headers("content-security-policy")
        assert answer.headers("x-content-type-options") == ["nosniff"]
        # "no-referrer" would have browsers send the form with "Origin: null".
        assert answer.headers("referrer-policy") == ["same-origin"]


def test_start_and_end_of_the_server_pass():
    assert ask(kind="lifespan").passed


def test_tokens_are_compared_in_a_time_that_does_not_tell_them(monkeypatch):
    from sqlqueue.consoles import gate

    compared = []

    def watched(given: bytes, wanted: bytes) -> bool:
        compared.append((given, wanted))
        return False

    monkeypatch.setattr(gate.hmac, "compare_digest", watched)
    assert ask("/", query=f"token={TOKEN}").status == 401
    assert ask("/", cookie=COOKIE).status == 401
    wanted = {TOKEN.encode(), cookie_value(TOKEN, role="admin").encode()}
    assert {pair[1] for pair in compared} == wanted
    assert len(compared) >= 2


def test_name_of_a_host_is_read_without_its_port_and_in_lower_case():
    assert host_name("Queue.Example:80") == "queue.example"
    assert host_name("[::1]:8501") == "::1"
    assert host_name("queue.example/evil") == ""
