"""Tell systemd what becomes of a service: sd_notify(3), and the watchdog of sd_watchdog_enabled(3).

The protocol is a line or two of text in one datagram to the socket that NOTIFY_SOCKET names, so it
needs no library. Without that variable every method does nothing. No method raises: a service must
not fail because its manager does not listen.
"""

from __future__ import annotations

import math
import os
import socket
import time
from typing import TYPE_CHECKING, Final

from sqlqueue.log import get_logger

if TYPE_CHECKING:
    from collections.abc import MutableMapping

__all__ = ["Notifier"]

log = get_logger(__name__)

_SEND_S: Final = 1.0
# Beyond the grace time: what the last settlements and the closing of the file may take.
_STOP_MARGIN_S: Final = 15.0


class Notifier:
    """Speak to the service manager of this process, if it has one. From any thread.

    Made once, before anything is forked: it takes NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID out
    of the environment, so that neither children nor what a task starts speak for the service.
    """

    def __init__(self, environ: MutableMapping[str, str] | None = None) -> None:
        """Read the variables; `environ` None is that of the process."""
        environ = os.environ if environ is None else environ
        self._address = _address(environ.pop("NOTIFY_SOCKET", ""))
        wanted = environ.pop("WATCHDOG_USEC", "")
        of_process = environ.pop("WATCHDOG_PID", "") or str(os.getpid())
        bites_after_us = int(wanted) if wanted.isdecimal() else 0
        is_ours = bites_after_us and self._address and of_process == str(os.getpid())
        # Half of the time, as sd_watchdog_enabled(3) recommends; for ever where there is none.
        self.watchdog_every_s = bites_after_us / 2e6 if is_ours else math.inf
        self._due_s = 0.0 if is_ours else math.inf
        self._status = ""
        self._is_ready = False
        self._has_complained = False

    def ready(self) -> None:
        """Say that the service does its work; it counts as started from now on. Once is enough."""
        if not self._is_ready:
            self._is_ready = self._send("READY=1")

    def status(self, text: str) -> None:
        """Show a line in `systemctl status`. Said again only if it is another."""
        if text != self._status and self._send(f"STATUS={text.splitlines()[0]}"):
            self._status = text

    def alive(self) -> None:
        """Say that the main loop goes round, twice as often as the watchdog bites."""
        now_s = time.monotonic()
        if now_s >= self._due_s:
            self._due_s = now_s + self.watchdog_every_s
            self._send("WATCHDOG=1")

    def reloaded(self) -> None:
        """Say that what can be reloaded was: the log. It happens at once, so begin and end are one."""
        if self._is_ready:
            since_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            self._send(f"RELOADING=1\nMONOTONIC_USEC={since_us}")
            self._send("READY=1")

    def stopping(self, within_s: float) -> None:
        """Say that the service ends by itself within so many seconds, and ask for that much time.

        So that a TimeoutStopSec shorter than the grace time kills no job.
        """
        within_us = round((within_s + _STOP_MARGIN_S) * 1e6)
        self._send(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={within_us}")

    def _send(self, text: str) -> bool:
        if not self._address:
            return False
        try:
            # A socket each time: none crosses a fork, and a manager may bind its own anew.
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(_SEND_S)
                sender.sendto(text.encode(), self._address)
        except OSError as error:
            if not self._has_complained:
                self._has_complained = True
                log.warning("notify_failed", socket=self._address, error=str(error))
            return False
        return True


def _address(name: str) -> str:
    """Return what the kernel knows a socket by: a path, or after "@" a name in no directory."""
    if name.startswith("@"):
        return f"\0{name[1:]}"
    return name if name.startswith("/") else ""
