"""What a service manager is told, and by whom: the protocol, on a real socket."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile

import pytest

from sqlqueue.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request):
    """Be a socket that listens, and the environment that names it."""
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening,
        tempfile.TemporaryDirectory() as directory,  # the test's own has too long a name
    ):
        name = f"{directory}/notify"
        if request.param == "path":
            listening.bind(name)
            yield listening, {"NOTIFY_SOCKET": name}
        else:
            listening.bind(f"\0{name}")
            yield listening, {"NOTIFY_SOCKET": f"@{name}"}


def heard(listening):
    """Return everything that was said up to now."""
    found = []
    listening.setblocking(False)
    try:
        while True:
            found.append(listening.recv(4096).decode())
    except BlockingIOError:
        return found


def test_each_state_is_one_datagram_as_sd_notify_writes_it(manager):
    listening, environ = manager
    notifier = Notifier(environ)
    notifier.ready()
    notifier.ready()
    notifier.status("two jobs run")
    notifier.status("two jobs run")
    notifier.status("none")
    notifier.stopping(30.0)
    assert heard(listening) == [
        "READY=1",
        "STATUS=two jobs run",
        "STATUS=none",
        "STOPPING=1\nEXTEND_TIMEOUT_USEC=45000000",
    ]


def test_a_reload_is_told_with_its_time_and_only_of_a_service_that_was_ready(manager):
    listening, environ = manager
    notifier = Notifier(environ)
    notifier.reloaded()
    assert heard(listening) == []
    notifier.ready()
    notifier.reloaded()
    ready, reloading, again = heard(listening)
    assert (ready, again) == ("READY=1", "READY=1")
    assert reloading.startswith("RELOADING=1\nMONOTONIC_USEC=")


def test_the_variables_are_gone_for_whoever_is_started_later(manager):
    _, environ = manager
    everything = {**environ, "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1", "OTHER": "x"}
    Notifier(everything)
    assert everything == {"OTHER": "x"}


@pytest.mark.parametrize(
    ("variables", "every_s"),
    [
        ({"WATCHDOG_USEC": "3000000"}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, float("inf")),
        ({"WATCHDOG_USEC": "0"}, float("inf")),
        ({"WATCHDOG_USEC": "often"}, float("inf")),
        ({}, float("inf")),
    ],
)
def test_the_watchdog_is_fed_twice_as_often_as_it_bites_if_it_means_us(manager, variables, every_s):
    listening, environ = manager
    notifier = Notifier({**environ, **variables})
    assert notifier.watchdog_every_s == every_s
    notifier.alive()
    notifier.alive()  # not yet
    assert heard(listening) == (["WATCHDOG=1"] if every_s < 10 else [])


def test_without_a_manager_nothing_is_said_and_nothing_fails():
    notifier = Notifier({"WATCHDOG_USEC": "1000"})
    assert notifier.watchdog_every_s == float("inf")
    notifier.ready()
    notifier.alive()
    notifier.status("x")
    notifier.reloaded()
    notifier.stopping(1.0)


@pytest.mark.parametrize("address", ["/nowhere/at/all", "/" + "x" * 200, "@", "@nobody-listens"])
def test_a_manager_that_cannot_be_reached_is_told_of_once_and_fails_nobody(address, events):
    notifier = Notifier({"NOTIFY_SOCKET": address})
    for _ in range(3):
        notifier.ready()
        notifier.status("x")
    assert len(events("notify_failed")) == 1


@pytest.mark.parametrize("address", ["vsock:2:1234", "relative", ""])
def test_an_address_of_another_kind_is_none(address, events):
    Notifier({"NOTIFY_SOCKET": address}).ready()
    assert events("notify_failed") == []


def test_the_real_environment_is_emptied_too():
    code = (
        "import os; from sqlqueue.notify import Notifier; Notifier();"
        " assert 'NOTIFY_SOCKET' not in os.environ;"
        " import subprocess; print(subprocess.check_output('env').decode())"
    )
    said = subprocess.check_output(
        [sys.executable, "-c", code], env={**os.environ, "NOTIFY_SOCKET": "/run/x"}, text=True
    )
    assert "NOTIFY_SOCKET" not in said
