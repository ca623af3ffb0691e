"""Start a console: refuse what is not safe, say where it is, and serve until it is stopped."""

from __future__ import annotations

import ipaddress
import logging
import secrets
import signal
import socket
import sys
import webbrowser
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

from sqlqueue.backend import SqliteBackend
from sqlqueue.consoles import source, tokens
from sqlqueue.consoles.gate import TOKEN, Entry, Gate
from sqlqueue.errors import ConfigError
from sqlqueue.text import quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlqueue.consoles.source import Source

__all__ = ["PORTS", "Console", "prepared", "serve"]

PORTS: Final = {"admin": 8501, "ops": 8502}
_SCRIPTS: Final = {role: Path(__file__).with_name(role) / "main.py" for role in ("admin", "ops")}
_LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})
# Streamlit's settings (1.67), whatever a config.toml of the user's says.
_STREAMLIT: Final[dict[str, object]] = {
    "server.headless": True,  # it would open a browser and ask for an e-mail address
    "server.fileWatcherType": "none",
    "server.runOnSave": False,
    "server.enableXsrfProtection": True,
    "server.enableCORS": True,  # which is to refuse other origins
    "server.maxUploadSize": 1,  # nothing is uploaded
    "server.baseUrlPath": "",  # the link is to the root
    "server.enableStaticServing": False,
    "browser.gatherUsageStats": False,
    "client.showErrorDetails": "none",  # a traceback is for the log, not for whoever looks
    "client.toolbarMode": "minimal",
    "client.showSidebarNavigation": False,
    "runner.fastReruns": True,
    "runner.magicEnabled": False,
    "runner.postScriptGC": False,  # 90 ms of each refresh; Python collects by itself when it is time
    "logger.level": "warning",
    "logger.hideWelcomeMessage": True,
}


@dataclass(frozen=True, slots=True)
class Console:
    """Be a console about to be served. `url` opens it, with its token where it has one."""

    role: str
    host: str
    port: int
    entry: Entry
    url: str

    @property
    def is_local(self) -> bool:
        """Say whether it can be reached from this machine only."""
        return _is_loopback(self.host)


def prepared(
    role: str,
    *,
    host: str,
    port: int | None,
    auth: str,
    token: str | None,
    names: Sequence[str],
    chosen: Source,
) -> Console:
    """Check that a console may be served like this; nothing is served yet.

    `auth` is ``token`` or ``none``; `token` None means the one kept beside the queue file (with
    another broker a new one each time). `names` are more host names under which it may be asked for.
    Raises ConfigError for what is not safe, not installed, or an address that is taken, and the errors
    of opening the queue.
    """
    _need_streamlit()
    if auth == "none" and not _is_loopback(host):
        raise ConfigError(
            f"a console on {host} can be reached from other machines, and without a token everybody"
            " could use it: leave out --auth none, or bind to 127.0.0.1 and use a tunnel"
        )
    port = PORTS[role] if port is None else port
    with replace(chosen, read_only=role == "ops").opened() as inspection:
        run_directory = (
            inspection.backend.store.database.run_directory
            if isinstance(inspection.backend, SqliteBackend)
            else None
        )
    _check_free(host, port)
    if auth == "none":
        token = None
    elif token is not None:
        token = tokens.checked(token)
    elif run_directory is not None:
        token = tokens.kept_in(run_directory / f"console-{role}.token")
    else:
        token = secrets.token_urlsafe(32)
    entry = Entry(role=role, port=port, hosts=_hosts(host, names), token=token)
    shown = "localhost" if host in {"127.0.0.1", "0.0.0.0", "::1", "::"} else host  # noqa: S104 - told apart, not bound
    query = f"?{urlencode({TOKEN: token})}" if token else ""
    return Console(
        role=role,
        host=host,
        port=port,
        entry=entry,
        url=f"http://{_bracketed(shown)}:{port}/{query}",
    )


def serve(
    console: Console, chosen: Source, *, tell: Callable[[str], None], open_browser: bool
) -> None:
    """Serve a console until SIGTERM or ctrl-c; `tell` gets the link. Call it in the main thread."""
    import streamlit.config  # noqa: PLC0415
    from starlette.middleware import Middleware  # noqa: PLC0415 - takes a second, and is an extra
    from streamlit.starlette import App  # noqa: PLC0415

    from sqlqueue.consoles.look import streamlit_theme  # noqa: PLC0415

    source.choose(chosen)
    logging.getLogger("streamlit").setLevel(logging.WARNING)
    app = App(_SCRIPTS[console.role], middleware=[Middleware(Gate, entry=console.entry)])
    # To be stopped is no failure: neither before uvicorn listens to signals, nor after it has ended in
    # good order, when it raises the signal again.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end_well)
    tell(console.url)
    if open_browser:
        opening = Timer(1.0, webbrowser.open, [console.url])
        opening.daemon = True
        opening.start()
    # It takes what stands in argv for a script and its arguments, and looks for settings beside it.
    sys.argv = [str(_SCRIPTS[console.role])]
    settings = dict(_STREAMLIT)
    # Streamlit 1.65 has none. (Its public way to ask reads the settings, and then says they changed.)
    if "server.enableAgentApi" in streamlit.config._config_options_template:  # noqa: SLF001
        settings["server.enableAgentApi"] = False  # programs have the command line
    app.run(
        config={
            **settings,
            **streamlit_theme(),
            "server.address": console.host,
            "server.port": console.port,
            # The gate has looked at the Host before; this is the second lock on the same door.
            "server.allowedHosts": sorted(console.entry.hosts),
        }
    )


def _end_well(*_: object) -> None:
    raise SystemExit(0)


def _need_streamlit() -> None:
    try:
        import streamlit.starlette  # noqa: F401, PLC0415 - an extra
    except ImportError as error:
        raise ConfigError(
            f"the consoles need an extra that is not installed ({error.name}):"
            " pip install 'sqlqueue[consoles]'"
        ) from None


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _hosts(host: str, names: Sequence[str]) -> frozenset[str]:
    """Return the names a console is asked for by: of this machine, and those that were given."""
    found = {*_LOOPBACK_NAMES, host, *names}
    if not _is_loopback(host):
        found |= {socket.gethostname(), socket.getfqdn()}
    return frozenset(name.lower() for name in found)


def _check_free(host: str, port: int) -> None:
    """Raise ConfigError where the server could not listen."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except UnicodeError as error:  # what IDNA does not take, such as 64 characters without a dot
        raise ConfigError(f"--host {quoted(host)} is no name of a host: {error}") from None
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {_bracketed(host)}:{port}: {error.strerror or error}."
            " Is a console running there already? --port takes another."
        ) from None


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
