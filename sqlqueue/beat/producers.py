"""Producer functions run in processes of their own, one for each entry, so that none stops the beat.

A producer is user code. It may hang, never yield an end, call `os._exit`, or crash the interpreter,
and no thread can be kept from taking the others with it. So the beat forks a process at an entry's
first tick, and asks it for the calls of each tick from then on: what the function keeps in its
module stays there. The calls come back as JSON, a line each, ready to be published; nothing is
published here. A process that takes too long, says too much or ends is killed with its whole
session and made anew for the next try.

It is forked, not started anew, because the application is imported already; by the beat's only
thread, with no connection open (the transport's fork hook closes it). It dies with the beat.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NoReturn

from sqlqueue.backend import Publication
from sqlqueue.beat.schedule import Tick
from sqlqueue.envelope import Envelope
from sqlqueue.errors import SqlQueueError
from sqlqueue.execute import fault_of
from sqlqueue.forks import die_with, end_stray_copy, flush_output, kill_session
from sqlqueue.task import Signature
from sqlqueue_transport.messages import Fault

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlqueue.app import SqlQueue
    from sqlqueue.beat.schedule import Entry
    from sqlqueue_transport.clock import Clock

__all__ = ["Produced", "Producer", "publications"]

MOST_BYTES: Final = 64 << 20  # of the calls of one tick: they become one transaction
_CHUNK: Final = 1 << 16
_LOOK: Final = os.WEXITED | os.WNOHANG | os.WNOWAIT  # at a child's end, without reaping it
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, slots=True)
class Produced:
    """Be what a producer made of a tick: calls, or the fault that it is to be tried again for."""

    tick: Tick
    publications: list[Publication]
    fault: Fault | None = None


@dataclass(slots=True)
class _Process:
    """Be a producer's process. `orders` and `answers` are our ends of its two pipes.

    `is_mute` says that the pipe is closed on its side. An ended process is left to be reaped by
    `Producer.end`: until then its number is nobody else's, and its session can be found by it.
    """

    pid: int
    orders: int
    answers: int
    is_mute: bool = False


class Producer:
    """Run one entry's producer function. Belongs to the beat's thread, as `others` do."""

    _all: Final[set[Producer]] = set()  # to close their pipes in a fork of one

    def __init__(
        self, app: SqlQueue, entry: Entry[Signature], *, limit_s: float, clock: Clock
    ) -> None:
        """Prepare; a process is made by the first tick. `limit_s` is how long one tick may take."""
        self._app = app
        self._entry = entry
        self._limit_s = limit_s
        self._clock = clock
        self._process: _Process | None = None
        self._said = bytearray()
        self._deadline_ms = 0
        self.tick: Tick | None = None
        """The tick that is being produced, None when none is."""

    @property
    def descriptor(self) -> int | None:
        """Return what becomes readable when the process says something; None: nothing will.

        Its end is told by SIGCHLD.
        """
        process = self._process
        return None if process is None or self.tick is None or process.is_mute else process.answers

    @property
    def left_s(self) -> float:
        """Return how long the tick may still take."""
        return (self._deadline_ms - self._clock.lease_ms()) / 1000

    def start(self, tick: Tick) -> None:
        """Begin to produce a tick. Raises OSError when no process is to be had."""
        order = f"{tick.due_ms}\n".encode()
        if self._process is None or not _told(self._process, order):
            self.end()
            self._process = self._forked()
            _told(self._process, order)
        self._said.clear()
        self._deadline_ms = self._clock.lease_ms() + round(self._limit_s * 1000)
        self.tick = tick

    def finished(self) -> Produced | None:
        """Return what became of the tick, None while it runs; does not wait."""
        tick, process = self.tick, self._process
        if tick is None or process is None:
            return None
        # Asked before the pipe is read: what an ended process has said is all there by then.
        ending = _ending(process.pid)
        self._listen(process)
        if self._has_end:
            try:
                produced = _read(tick, bytes(self._said))
            except (ValueError, LookupError, TypeError, RecursionError) as error:
                # Whoever writes to our pipe may do so in any way, and there may be more of it.
                why = (
                    "something beside its calls was written to its pipe to the beat, which now"
                    f" cannot read them ({type(error).__name__}: {error}), and it was ended. Does it"
                    " write to a descriptor that is not its own?"
                )
                return self._failed(tick, "ProducerGarbled", why)
            self.tick = None
            return produced
        if ending is not None:
            return self._failed(tick, "ProducerEnded", f"it ended its process ({ending})")
        if len(self._said) > MOST_BYTES:
            why = f"it yielded more than {MOST_BYTES >> 20} MiB of calls, and was ended"
            return self._failed(tick, "ProducerEndless", why)
        if self.left_s <= 0:
            why = f"it had not ended after {self._limit_s:g} s, and was ended by force"
            return self._failed(tick, "ProducerTimeout", why)
        return None

    def stopped(self, *, after_s: float) -> Produced | None:
        """End the process, because the beat was told to stop so long ago; None: no tick ran."""
        if self.tick is None:
            return None
        why = f"it had not ended {after_s:g} s after the beat was told to stop, and was ended by force"
        return self._failed(self.tick, "ProducerStopped", why)

    def end(self) -> None:
        """Kill the process and all in its session; harmless when there is none."""
        process, self._process, self.tick = self._process, None, None
        self._all.discard(self)
        if process is None:
            return
        with contextlib.suppress(ChildProcessError):  # then its number may be another's by now
            os.waitid(os.P_PID, process.pid, _LOOK)
            kill_session(process.pid)
            os.waitpid(process.pid, 0)
        for descriptor in (process.orders, process.answers):
            os.close(descriptor)

    def _failed(self, tick: Tick, kind: str, why: str) -> Produced:
        self.end()
        return Produced(tick, [], Fault(kind, why))

    @property
    def _has_end(self) -> bool:
        """Say whether the last line is there. Looked for in place: this is asked for every chunk."""
        said = self._said
        if not said.endswith(b"\n"):
            return False
        return said.startswith(b'{"end"', said.rfind(b"\n", 0, -1) + 1)

    def _listen(self, process: _Process) -> None:
        """Take what was said so far."""
        while len(self._said) <= MOST_BYTES and not process.is_mute:
            try:
                heard = os.read(process.answers, _CHUNK)
            except BlockingIOError:
                return
            self._said += heard
            process.is_mute = not heard

    def _forked(self) -> _Process:
        order_reading, order_writing = os.pipe()
        answer_reading, answer_writing = os.pipe()
        flush_output()
        parent_pid = os.getpid()
        try:
            pid = os.fork()
        except OSError:
            for descriptor in (order_reading, order_writing, answer_reading, answer_writing):
                os.close(descriptor)
            raise
        if not pid:
            self._become(parent_pid, order_reading, answer_writing, (order_writing, answer_reading))
        os.close(order_reading)
        os.close(answer_writing)
        os.set_blocking(answer_reading, False)
        self._all.add(self)
        return _Process(pid, order_writing, answer_reading)

    def _become(
        self, parent_pid: int, orders: int, answers: int, parents: tuple[int, int]
    ) -> NoReturn:
        """Be the forked process: answer orders until the beat is gone. Nothing else may run here."""
        code = 1
        try:
            os.setsid()
            die_with(parent_pid)
            signal.set_wakeup_fd(-1)
            for number in _SIGNALS:
                # A stop of the whole service reaches us, too; the beat waits for us, and then ends
                # us. Not ignored, because what we start would inherit that.
                signal.signal(number, lambda *_: None)
            for descriptor in (*parents, *self._others()):
                os.close(descriptor)
            self._serve(orders, answers)
            code = 0
        except BaseException:  # noqa: BLE001 - the beat is gone, or a signal handler raised
            code = 1
        finally:
            with contextlib.suppress(Exception):
                self._app.close()
            try:
                flush_output()
            finally:
                os._exit(code)

    def _others(self) -> Iterator[int]:
        for other in self._all:
            if other._process is not None:  # noqa: SLF001 - of our own kind
                yield from (other._process.orders, other._process.answers)  # noqa: SLF001

    def _serve(self, orders: int, answers: int) -> None:
        pid = os.getpid()
        with os.fdopen(orders, "rb") as lines, os.fdopen(answers, "wb") as said:
            for line in lines:
                tick = Tick(self._entry.name, int(line))
                for answer in self._answers(tick, pid):
                    said.write(json.dumps(answer).encode() + b"\n")
                said.flush()

    def _answers(self, tick: Tick, pid: int) -> Iterator[dict[str, Any]]:
        fault = None
        try:
            for one in publications(self._app, self._entry, tick):
                end_stray_copy(pid, None)  # it has our pipe, and what is not written to it yet
                yield dataclasses.asdict(one)
        except BaseException as error:  # noqa: BLE001 - a producer is user code, and may sys.exit()
            end_stray_copy(pid, error)
            fault = fault_of(error)
            if isinstance(error, SqlQueueError):  # the sentence says all; the traceback is ours
                fault = dataclasses.replace(fault, traceback=None)
        end_stray_copy(pid, None)
        yield {"end": None if fault is None else dataclasses.asdict(fault)}


def publications(app: SqlQueue, entry: Entry[Signature], tick: Tick) -> Iterator[Publication]:
    """Yield what an entry's tick enqueues, as late as its jitter says.

    Raises EnvelopeError kinds for what cannot be published, and whatever a producer raises.
    """
    delay_ms = entry.delay_ms(tick.due_ms)
    for call in _calls(entry, tick):
        is_late = entry.jitter_ms and isinstance(call, Signature)  # what is none is refused below
        yield app.publication(_later(call, tick, delay_ms) if is_late else call)


def _calls(entry: Entry[Signature], tick: Tick) -> Iterable[Signature]:
    if entry.produce is None:
        return [entry.signature] if entry.signature is not None else []
    calls = entry.produce(tick)
    if calls is None:
        raise TypeError("the producer returned None; yield calls, such as task.s(...)")
    return calls


def _later(call: Signature, tick: Tick, delay_ms: int) -> Signature:
    """Return a call that is due so much after its tick, or after its own time; all moves along."""
    options: dict[str, Any] = dict(call.options)
    delay = timedelta(milliseconds=delay_ms)
    eta, countdown, expires = (options.get(key) for key in ("eta", "countdown", "expires"))
    if isinstance(eta, datetime):
        options["eta"] = eta + delay
    elif isinstance(countdown, (int, float)):
        options["countdown"] = countdown + delay.total_seconds()
    elif eta is None and countdown is None:
        options["eta"] = tick.due + delay
    if isinstance(expires, datetime):
        options["expires"] = expires + delay
    elif isinstance(expires, (int, float)):
        options["expires"] = expires + delay.total_seconds()
    return dataclasses.replace(call, options=options)


def _ending(pid: int) -> str | None:
    """Return in words how a child has ended, None while it runs; it is left to be reaped.

    Not told by the pipe: that may stay open in a process which the producer has started.
    """
    try:
        ended = os.waitid(os.P_PID, pid, _LOOK)
    except ChildProcessError:
        return "how is not known: other code of the application has waited for it"
    if ended is None:
        return None
    how = "exit code" if ended.si_code == os.CLD_EXITED else "signal"
    return f"{how} {ended.si_status}"


def _told(process: _Process, order: bytes) -> bool:
    """Write an order; False when the process has ended."""
    try:
        os.write(process.orders, order)
    except BrokenPipeError:
        return False
    return True


def _read(tick: Tick, said: bytes) -> Produced:
    *calls, end = said.splitlines()
    fault = json.loads(end)["end"]
    if fault is not None:
        return Produced(tick, [], Fault(**fault))
    found = []
    for line in calls:
        values = json.loads(line)
        values["envelope"] = Envelope(**values["envelope"])
        found.append(Publication(**values))
    return Produced(tick, found)
