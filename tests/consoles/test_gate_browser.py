"""The gate before a console, met by a real browser, and by web pages that mean no good."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.consoles import filling
from tests.support import wait_until

pytestmark = [pytest.mark.debian("chromium"), pytest.mark.timeout(300)]


@pytest.fixture(params=["admin", "ops"])
def console(request, tmp_path, start):
    filling.working_day(tmp_path / "queue.db", jobs=30).close()
    return start(request.param)


@pytest.fixture
def elsewhere():
    """Serve a page of another origin: `elsewhere(html)` returns its address."""
    pages: dict[str, str] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            page = pages.get(self.path, "").encode()
            self.send_response(200 if page else 404)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()

    def serve(html):
        pages["/evil"] = html
        return f"http://localhost:{server.server_port}/evil"

    yield serve
    server.shutdown()
    thread.join()
    server.server_close()


def test_link_opens_the_console_and_its_token_does_not_stay_in_the_address_bar(console, open_tab):
    tab = open_tab(console).enter()
    assert console.token not in tab.url
    assert tab.url == f"{console.url}/"
    # Nor can a script read what opens the console.
    assert tab.page.evaluate("document.cookie").find("sqlqueue") == -1
    assert console.token not in tab.page.content()
    tab.page.reload()
    tab.settled()


def test_form_opens_the_console_with_the_token_only(console, open_tab):
    tab = open_tab(console)
    console.wait()
    tab.page.goto(f"{console.url}/?state=done")
    tab.page.fill("#token", "a-token-of-somebody-else")
    tab.page.click("button")
    tab.page.get_by_role("alert").get_by_text("not this console").wait_for()
    assert "stApp" not in tab.page.content()
    tab.page.fill("#token", console.token)
    tab.page.click("button")
    tab.settled()
    assert tab.url.startswith(f"{console.url}/?")
    assert "state=done" in tab.url
    tab.errors.clear()


def test_wrong_token_in_a_link_shows_the_form(console, open_tab):
    tab = open_tab(console)
    console.wait()
    tab.page.goto(f"{console.url}/?token=not-the-token-of-this")
    assert tab.page.locator("#token").is_visible()
    assert "stApp" not in tab.page.content()
    tab.errors.clear()


def test_name_that_somebody_let_point_here_is_refused(console, chromium, open_tab):
    # What DNS rebinding looks like to a browser: another name, the console's address.
    own = chromium.browser_type.launch(
        executable_path=_program(),
        args=["--no-sandbox", "--host-resolver-rules=MAP evil.example 127.0.0.1"],
    )
    try:
        console.wait()
        page = own.new_page()
        answer = page.goto(f"http://evil.example:{console.port}/?token={console.token}")
        assert answer is not None
        assert answer.status == 403
        assert "not known by that name" in page.content()
    finally:
        own.close()


EVIL = """
<!doctype html><title>evil</title><body><script>
const console_ = "URL";
const found = {};
const done = [];
function note(name, promise) {
  done.push(promise.then(v => found[name] = v, e => found[name] = "refused"));
}
note("socket", new Promise((yes, no) => {
  const s = new WebSocket(console_.replace("http", "ws") + "/_stcore/stream", ["streamlit"]);
  s.onopen = () => yes("open"); s.onerror = no;
}));
note("fetch", fetch(console_ + "/", {credentials: "include"}).then(r => r.text()));
note("blind fetch", fetch(console_ + "/", {credentials: "include", mode: "no-cors"}).then(r => "sent"));
note("post", fetch(console_ + "/login", {method: "POST", credentials: "include", body: "token=x"}).then(r => r.text()));
note("upload", fetch(console_ + "/_stcore/upload_file/a/b", {method: "PUT", credentials: "include"}).then(r => r.text()));
note("script", new Promise((yes, no) => {
  const s = document.createElement("script");
  s.src = console_ + "/_stcore/host-config"; s.onload = () => yes("loaded"); s.onerror = no;
  document.body.append(s);
}));
note("picture", new Promise((yes, no) => {
  const i = new Image(); i.src = console_ + "/favicon.png?not-from-the-cache"; i.onload = () => yes("loaded"); i.onerror = no;
}));
note("frame", new Promise((yes, no) => {
  const f = document.createElement("iframe"); f.name = "framed"; f.src = console_ + "/";
  f.onload = () => yes("tried"); document.body.append(f);
}));
Promise.all(done).then(() => window.found = found);
</script></body>
"""


def test_page_of_another_origin_gets_neither_socket_nor_answer_nor_frame(
    console, open_tab, elsewhere
):
    # In the very browser that has the cookie; localhost with another port is the same site to it, so
    # that the cookie is sent along.
    tab = open_tab(console).enter()
    evil = tab.context.new_page()
    evil.goto(elsewhere(EVIL.replace("URL", console.url)))
    evil.wait_for_function("window.found")
    found = evil.evaluate("window.found")
    # That it was sent tells nothing: the answer cannot be read, and was a refusal.
    assert found.pop("blind fetch") == "sent"
    assert found.pop("frame") == "tried"
    assert {*found.values()} == {"refused"}, found
    assert {*found} == {"socket", "fetch", "post", "upload", "script", "picture"}
    [frame] = [one for one in evil.frames if one.name == "framed"]
    assert "stApp" not in frame.content()
    evil.close()


def test_same_attempts_of_the_consoles_own_page_succeed(console, open_tab):
    # Else the test above would prove nothing.
    tab = open_tab(console).enter()
    opened = tab.page.evaluate(
        """() => new Promise((yes, no) => {
             const s = new WebSocket(location.origin.replace("http", "ws") + "/_stcore/stream", ["streamlit"]);
             s.onopen = () => { s.close(); yes("open"); }; s.onerror = () => no("refused");
           })"""
    )
    assert opened == "open"
    status = tab.page.evaluate("fetch('/_stcore/host-config').then(r => r.status)")
    assert status == 200


def test_cookie_of_one_console_does_not_open_the_other(tmp_path, start, open_tab):
    filling.working_day(tmp_path / "queue.db", jobs=30).close()
    admin, ops = start("admin"), start("ops")
    tab = open_tab(ops).enter()
    admin.wait()
    tab.page.goto(f"{admin.url}/")
    assert tab.page.locator("#token").is_visible()
    assert "stApp" not in tab.page.content()
    tab.errors.clear()


def test_page_says_so_and_comes_back_when_its_console_was_started_anew(tmp_path, start, open_tab):
    filling.working_day(tmp_path / "queue.db", jobs=30).close()
    first = start("ops")
    tab = open_tab(first).enter()
    first.stop()
    wait_until(
        lambda: tab.page.locator("[data-test-connection-state=CONNECTED]").count() == 0,
        deadline_s=30,
    )
    start("ops", "--port", first.port).wait()
    tab.page.locator("[data-test-connection-state=CONNECTED]").wait_for(timeout=60_000)
    tab.settled()
    tab.errors.clear()  # of the time between


def _program():
    import shutil

    return shutil.which("chromium")
