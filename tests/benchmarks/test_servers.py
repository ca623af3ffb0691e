"""The servers of the peers end with their measurement, and leave no process behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from pathlib import Path

import pytest
from kombu import Connection

from tests.benchmarks import servers
from tests.benchmarks.levels import Unavailable
from tests.support import ROOT, start_logged, wait_until


def processes_of(directory):
    """Return the processes that work in this directory, or were told of it when they started."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            with contextlib.suppress(OSError):
                told = f"{(process / 'cwd').readlink()} {(process / 'environ').read_bytes()}"
                if str(directory) in told:
                    found.append((process / "cmdline").read_bytes())
    return found


def use(server, tmp_path):
    with Connection(server.url) as connection:
        queue = connection.SimpleQueue("tried")
        queue.put({"number": 1})
        message = queue.get(timeout=10)
        message.ack()
        assert message.payload == {"number": 1}
        queue.close()
    assert processes_of(tmp_path)


@pytest.mark.debian("redis-server")
@pytest.mark.parametrize("synced", [False, True])
def test_redis_keeps_what_it_was_asked_to_and_ends(tmp_path, synced):
    with servers.redis(tmp_path, synced=synced) as server:
        use(server, tmp_path)
    assert not processes_of(tmp_path)
    assert any(tmp_path.rglob("*.aof")) is synced


@pytest.mark.debian("redis-server")
def test_redis_ends_also_when_a_measurement_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), servers.redis(tmp_path):
        raise ZeroDivisionError
    assert not processes_of(tmp_path)


@pytest.mark.debian("redis-server")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_benchmark_that_is_stopped_ends_its_servers_and_programs(tmp_path, sent):
    log = tmp_path.with_name(tmp_path.name + ".log")
    program = start_logged(
        [
            *("-m", "tests.benchmarks", "broker", "--scale", 50),
            *("--subjects", "redis", "--directory", tmp_path),
        ],
        log=log,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    wait_until(
        lambda: any(b"through_kombu" in one for one in processes_of(tmp_path)),
        deadline_s=60,
        what="a publishing program",
    )
    program.send_signal(sent)
    assert program.wait(timeout=60) == 130, log.read_text()
    assert not processes_of(tmp_path)
    assert not list(tmp_path.iterdir())
    assert "stopped: this is what there is" in log.read_text()


@pytest.mark.slow
@pytest.mark.debian("rabbitmq-server")
def test_rabbitmq_ends_with_all_its_processes(tmp_path):
    with servers.rabbitmq(tmp_path) as server:
        use(server, tmp_path)
    assert not processes_of(tmp_path)


def test_what_is_not_installed_is_unavailable_and_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(Unavailable, match="apt-get install redis-server"), servers.redis(tmp_path):
        pass
    monkeypatch.setattr(servers, "_RABBITMQ", tmp_path / "absent")
    with (
        pytest.raises(Unavailable, match="apt-get install rabbitmq-server"),
        servers.rabbitmq(tmp_path),
    ):
        pass
