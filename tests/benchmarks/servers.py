"""The servers that peers need: started for one measurement, alone, on loopback, and ended after it.

Everything of a server lies in the directory it is given, nothing is read from `/etc`, and nothing
that was not started here is touched. What is not installed raises `levels.Unavailable`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.benchmarks.levels import Unavailable
from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["Server", "free_port", "rabbitmq", "rabbitmq_version", "redis", "redis_version"]

# Debian's own /usr/sbin/rabbitmq-server changes the user first, and with it the directories.
_RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
_START_S = 60.0
_STOP_S = 30.0


@dataclass(frozen=True, slots=True)
class Server:
    """Be a running server. `pid` is the process that does its work (`tests.support.cpu_s`)."""

    url: str  # Kombu's and Celery's
    port: int
    pid: int


@contextlib.contextmanager
def redis(directory: Path, *, synced: bool = False) -> Iterator[Server]:
    """Run Redis with nothing on the disk, or, with `synced`, each write flushed before its answer."""
    program = _program("redis-server", "redis-server")
    port = free_port()
    kept = ("--appendonly", "yes", "--appendfsync", "always") if synced else ("--appendonly", "no")
    arguments = [
        *(program, "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", directory),
        *kept,
    ]

    def answers() -> bool:
        return _asked(port, b"PING\r\n").startswith(b"+PONG")

    with _started(arguments, directory / "redis.log", {**os.environ}) as process:
        _wait_for(answers, process, directory / "redis.log", "redis-server")
        yield Server(f"redis://127.0.0.1:{port}/0", port, process.pid)


@contextlib.contextmanager
def rabbitmq(directory: Path) -> Iterator[Server]:
    """Run a node of RabbitMQ, and Erlang's name server for it alone, without plugins."""
    if not _RABBITMQ.exists():
        message = "rabbitmq-server is not installed: apt-get install rabbitmq-server"
        raise Unavailable(message)
    epmd = _program("epmd", "erlang-base")
    port, name_port, between_nodes = free_port(), free_port(), free_port()
    pid_file, log = directory / "rabbitmq.pid", directory / "rabbitmq.log"
    (directory / "enabled_plugins").write_text("[].\n")
    (directory / "rabbitmq.conf").write_text(
        # By default it stops publishers when less of the disk is free than a measurement needs.
        "disk_free_limit.absolute = 50MB\nlog.console.level = warning\nlog.file = false\n"
        "log.console = true\n"
    )
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "LANG": "C.UTF-8",
        "HOME": str(directory),  # the cookie that lets nodes talk is made there
        "ERL_EPMD_PORT": str(name_port),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODENAME": f"bench{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(between_nodes),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        "RABBITMQ_MNESIA_BASE": str(directory / "mnesia"),
        "RABBITMQ_MNESIA_DIR": str(directory / "mnesia" / "node"),
        "RABBITMQ_LOG_BASE": str(directory),
        "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(directory / "advanced.config"),
        "RABBITMQ_CONF_ENV_FILE": str(directory / "rabbitmq-env.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
        "RABBITMQ_PID_FILE": str(pid_file),
    }

    def answers() -> bool:
        return _asked(port, b"AMQP\x00\x00\x09\x01").startswith(b"\x01\x00\x00")

    names = [epmd, "-port", str(name_port), "-address", "127.0.0.1"]
    with (
        _started(names, directory / "epmd.log", environment),
        _started([_RABBITMQ], log, environment) as process,
    ):
        _wait_for(answers, process, log, "rabbitmq-server")
        node = int(pid_file.read_text())
        try:
            yield Server(f"amqp://guest:guest@127.0.0.1:{port}//", port, node)
        finally:
            # The shell around it would start a second Erlang to ask for the same.
            with contextlib.suppress(ProcessLookupError):
                os.kill(node, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=_STOP_S)


def redis_version() -> str | None:
    """Return the version of Redis here; None when there is none."""
    return _version_of("redis-server", "--version", pattern=rb"v=([\d.]+)")


def rabbitmq_version() -> str | None:
    """Return the version of RabbitMQ here; None when there is none."""
    found = sorted(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*"))
    return found[-1].name.partition("-")[2] if found else None


def free_port() -> int:
    """Return a loopback port that nobody listens on just now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _program(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        message = f"{name} is not installed: apt-get install {package}"
        raise Unavailable(message)
    return found


def _version_of(*arguments: str, pattern: bytes) -> str | None:
    if shutil.which(arguments[0]) is None:
        return None
    told = subprocess.run(arguments, capture_output=True, check=False).stdout
    found = re.search(pattern, told)
    return found[1].decode() if found else None


@contextlib.contextmanager
def _started(
    arguments: Sequence[object], log: Path, environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program in a session of its own; end it, and what is left of the session, afterwards."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [str(argument) for argument in arguments],
            cwd=log.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_STOP_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=_STOP_S)


def _wait_for(
    answers: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, what: str
) -> None:
    """Wait until a server answers; say what it said when it ends instead."""

    def answers_or_ended() -> bool:
        return process.poll() is not None or answers()

    wait_until(answers_or_ended, deadline_s=_START_S, what=f"an answer of {what}", every_s=0.02)
    if process.poll() is not None:
        message = f"{what} ended with {process.returncode}: {log.read_text(errors='replace')}"
        raise RuntimeError(message)


def _asked(port: int, question: bytes) -> bytes:
    """Return the beginning of what a port answers to a question; nothing when it does not."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(question)
            return connection.recv(64)
    except OSError:
        return b""
