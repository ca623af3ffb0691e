"""What stands in front of a console: every request and every socket passes here first.

Refuses, before a line of the console runs, a Host that is not this console's name (a web page that
has its own name point to this machine: DNS rebinding), a request or a socket that another web page
sends (Origin, Sec-Fetch-Site), and whoever has not shown the token. The token comes once, in the
link that the console prints or typed into the form here; after that a cookie tells, and the link
without the token is what stands in the address bar.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from html import escape
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from sqlqueue.consoles.tokens import cookie_value

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, MutableMapping

    Scope = MutableMapping[str, Any]
    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    Application = Callable[[Scope, Receive, Send], Awaitable[None]]

__all__ = ["Entry", "Gate", "host_name"]

TOKEN: Final = "token"  # noqa: S105 - the name of a parameter
HEALTH: Final = "/_stcore/health"  # says "ok", to supervisors, without a token
_LOGIN: Final = "/login"
_COOKIE_AGE_S: Final = 30 * 86_400
_LONGEST_FORM: Final = 4096
# Of every answer: no other page may frame a console, and no link tells another site where it came
# from. Not "no-referrer": with that browsers send the form here with "Origin: null" (Fetch, "append
# a request Origin header"), which is what a stranger's form looks like.
_HEADERS: Final = (
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"frame-ancestors 'none'"),
    (b"referrer-policy", b"same-origin"),
    (b"x-content-type-options", b"nosniff"),
)
# Of what the gate answers itself, besides: it loads nothing, and runs nothing.
_OWN_POLICY: Final = (
    b"content-security-policy",
    b"default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'self'",
)


@dataclass(frozen=True, slots=True)
class Entry:
    """Be who may come in.

    `hosts` are the names, in lower case and without ports (a tunnel has its own), under which the
    console is asked for. `token` None asks for none.
    """

    role: str
    port: int
    hosts: frozenset[str]
    token: str | None

    @property
    def cookie(self) -> str:
        """Return the name of its cookie; cookies know no ports, so that the name has to."""
        return f"sqlqueue_{self.role}_{self.port}"


class Gate:
    """Be an ASGI middleware that lets in what an Entry allows."""

    def __init__(self, app: Application, entry: Entry) -> None:
        """Stand in front of `app`."""
        self._app = app
        self._entry = entry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request or socket pass, or answer it here."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        headers = _headers(scope)
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await _refuse(scope, send, refusal)
            return
        is_open = self._is_open(scope, headers)
        if is_open and not self._is_login(scope):
            await self._app(scope, receive, _guarded(send))
        elif scope["type"] == "websocket":
            await _refuse(scope, send, "this console wants its token first: load its page")
        else:
            await self._ask(scope, receive, send, is_open=is_open)

    def _refusal(self, scope: Scope, headers: Mapping[str, str]) -> str | None:
        """Say why a request is refused whoever sends it; None when it is not."""
        host = headers.get("host", "")
        name = host_name(host)
        if name not in self._entry.hosts:
            return "this console is not known by that name: see --allow-host"
        changes = scope["type"] == "websocket" or scope["method"] not in {"GET", "HEAD"}
        # What a link on another page leads to may be looked at; no page may fetch, send or connect.
        if headers.get("sec-fetch-mode") == "navigate" and not changes:
            return None
        # A browser sends Origin with every socket, every form and every fetch from another page;
        # what is no browser needs the token.
        origin = headers.get("origin")
        if origin is not None and _netloc(origin) != host.lower():
            return "another web page sent this"
        if headers.get("sec-fetch-site", "none") not in {"none", "same-origin"}:
            return "another web page sent this"
        return None

    def _is_open(self, scope: Scope, headers: Mapping[str, str]) -> bool:
        token = self._entry.token
        if token is None or (scope["type"] == "http" and scope["path"] == HEALTH):
            return True
        wanted = cookie_value(token, role=self._entry.role)
        shown = _cookies(headers.get("cookie", ""), self._entry.cookie)
        return any(_same(value, wanted) for value in shown)

    def _is_login(self, scope: Scope) -> bool:
        """Say whether somebody shows a token here, in the link that was printed or in the form.

        That is taken, and taken out of the address bar, also of who is in already.
        """
        if self._entry.token is None or scope["type"] != "http" or scope["path"] == HEALTH:
            return False
        if scope["method"] == "POST":
            return bool(scope["path"] == _LOGIN)
        return any(name == TOKEN for name, _ in _query(scope))

    async def _ask(self, scope: Scope, receive: Receive, send: Send, *, is_open: bool) -> None:
        """Take the token from the link or the form; show the form when it is missing or wrong."""
        if scope["method"] == "POST" and scope["path"] == _LOGIN:
            form = dict(parse_qsl(await _body(receive)))
            given, back = form.get(TOKEN, ""), form.get("back", "/")
        else:
            pairs = _query(scope)
            given = next((value for name, value in pairs if name == TOKEN), "")
            rest = urlencode([(name, value) for name, value in pairs if name != TOKEN])
            # Which the server had decoded. Who looks for the form by its name wants what is behind it.
            path = "/" if scope["path"] == _LOGIN else quote(scope["path"])
            back = f"{path}?{rest}" if rest else path
        token = self._entry.token or ""
        if not is_open and not _same(given, token):
            why = "That is not this console’s token." if given else ""
            page = _form(self._entry.role, back, why)
            await _answer(
                send,
                HTTPStatus.UNAUTHORIZED,
                page.encode("utf-8", "replace"),
                kind="text/html",
                extra=(_OWN_POLICY,),
            )
            return
        cookie = (
            f"{self._entry.cookie}={cookie_value(token, role=self._entry.role)}; Path=/;"
            f" Max-Age={_COOKIE_AGE_S}; HttpOnly; SameSite=Lax"
        )
        extra = ((b"location", _local(back)), (b"set-cookie", cookie.encode()))
        await _answer(send, HTTPStatus.SEE_OTHER, b"", extra=extra)


def host_name(host: str) -> str:
    """Return the name in a Host header, without its port, in lower case; "" for what is none."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port  # raises for one that is no number
    except ValueError:
        return ""
    # Nothing but name and port: no browser sends a user, a path or a query in it.
    return (parts.hostname or "") if parts.netloc == host and "@" not in host else ""


def _netloc(origin: str) -> str:
    """Return host and port of an Origin; "" for "null" and for what is none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _query(scope: Scope) -> list[tuple[str, str]]:
    return parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)


def _cookies(header: str, name: str) -> list[str]:
    """Return the values of all cookies of that name.

    Not by http.cookies: it gives up on the whole header when another program on this host has set
    a cookie that is not as it should be (Python 3.11), and would lock its people out.
    """
    pairs = (part.strip().partition("=") for part in header.split(";"))
    return [value for found, _, value in pairs if found == name]


def _headers(scope: Scope) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        key = name.decode("latin-1").lower()
        # A second Host or Origin would be one that somebody smuggled in: both together match nothing.
        text = value.decode("latin-1")
        separator = "; " if key == "cookie" else ", "
        found[key] = f"{found[key]}{separator}{text}" if key in found else text
    return found


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), wanted.encode())


def _local(back: str) -> bytes:
    """Return a path of this console to go on to: never another site's, never a second header.

    Whatever a browser would read otherwise than it stands there (tabs, NUL, back slashes, letters
    beyond ASCII) is written as %XX, so that nothing has to be left out, and two slashes cannot come
    together.
    """
    path = quote(back, safe="/?%:@!$&'()*+,;=-._~", errors="replace")
    return path.encode() if path.startswith("/") and not path.startswith("//") else b"/"


async def _body(receive: Receive) -> str:
    body = b""
    while len(body) <= _LONGEST_FORM:
        message = await receive()
        body += message.get("body", b"")
        if message["type"] != "http.request" or not message.get("more_body", False):
            break
    return body[:_LONGEST_FORM].decode("utf-8", "replace")


def _guarded(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *_HEADERS]
        await send(message)

    return sending


async def _refuse(scope: Scope, send: Send, why: str) -> None:
    if scope["type"] == "websocket":
        # Closed before it was accepted: the server answers 403 (asgi.readthedocs.io, WebSocket).
        await send({"type": "websocket.close", "code": 1008, "reason": why})
    else:
        await _answer(send, HTTPStatus.FORBIDDEN, f"{why}\n".encode())


async def _answer(
    send: Send,
    status: HTTPStatus,
    body: bytes,
    *,
    kind: str = "text/plain",
    extra: tuple[tuple[bytes, bytes], ...] = (),
) -> None:
    headers = [
        (b"content-type", f"{kind}; charset=utf-8".encode()),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        *_HEADERS,
        *extra,
    ]
    await send({"type": "http.response.start", "status": status.value, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _form(role: str, back: str, why: str) -> str:
    """Return the page that asks for the token; it needs no script and loads nothing."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>sqlqueue {escape(role)}</title>
<style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }}
body {{ display: grid; place-items: center; min-height: 90vh; margin: 0 1rem; }}
form {{ width: min(24rem, 100%); display: grid; gap: .75rem; }}
h1 {{ font-size: 1.25rem; margin: 0; }}
p {{ margin: 0; }}
.why {{ color: #d9484b; }}
input, button {{ font: inherit; padding: .5rem .75rem; border-radius: .5rem;
  border: 1px solid #8c919b; }}
button {{ background: #2f6fb3; color: #fff; border-color: transparent; cursor: pointer; }}
code {{ font-size: .875em; }}
</style></head><body>
<form method="post" action="{_LOGIN}">
<h1>sqlqueue {escape(role)}</h1>
<p>This console wants its token. It stands in the link that
<code>sqlqueue console {escape(role)}</code> printed.</p>
{f'<p class="why" role="alert">{escape(why)}</p>' if why else ""}
<label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="current-password" autofocus required>
<input type="hidden" name="back" value="{escape(back)}">
<button>Open</button>
</form></body></html>
"""
