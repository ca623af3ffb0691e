"""Errors raised inside of running tasks: only in user code, once, and never in the next task."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import threading
import time

import pytest

from sqlqueue import execute
from sqlqueue.errors import SoftTimeLimitExceeded, TimeLimitExceeded
from sqlqueue.worker import interrupts
from sqlqueue.worker.interrupts import LoopInterrupt, ThreadInterrupt
from tests.support import wait_until


@pytest.fixture
def listening():
    before = signal.getsignal(signal.SIGUSR1)
    interrupts.listen()
    yield
    signal.signal(signal.SIGUSR1, before)


def throw_soon(interrupt, error=SoftTimeLimitExceeded, after_s=0.05):
    timer = threading.Timer(after_s, interrupt.throw, (error,))
    timer.start()
    return timer


def in_python_for_ever():
    while True:
        time.sleep(0.001)


def in_a_thread(work):
    """Run `work` in a thread and return what it returned; fail if it raised."""
    found = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join(30)
    assert found, "it raised, or hangs"
    return found[0]


# --- the main thread ------------------------------------------------------------------------------


def test_in_the_main_thread_a_sleep_is_cut_short(listening):
    interrupt = ThreadInterrupt()
    throw_soon(interrupt)
    began_s = time.monotonic()
    with pytest.raises(SoftTimeLimitExceeded), interrupt:
        time.sleep(60)
    interrupt.close()
    assert time.monotonic() - began_s < 30


def test_what_is_thrown_before_or_after_user_code_is_not_raised(listening):
    interrupt = ThreadInterrupt()
    interrupt.throw(SoftTimeLimitExceeded)
    interrupt.insist()
    with interrupt:
        pass
    interrupt.insist()
    interrupt.close()
    interrupt.throw(SoftTimeLimitExceeded)
    assert not interrupt.is_waiting


def test_a_task_that_took_the_signal_is_reached_all_the_same(listening):
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    interrupt = ThreadInterrupt()
    throw_soon(interrupt)
    with pytest.raises(SoftTimeLimitExceeded), interrupt:
        in_python_for_ever()
    interrupt.close()


# --- another thread -------------------------------------------------------------------------------


def test_in_another_thread_python_code_is_interrupted():
    def work():
        interrupt = ThreadInterrupt()
        throw_soon(interrupt, TimeLimitExceeded)
        try:
            with interrupt:
                in_python_for_ever()
        except TimeLimitExceeded:
            interrupt.close()
            return True

    assert in_a_thread(work)


def test_an_error_that_was_set_and_not_raised_yet_does_not_hit_the_next_task():
    """It is set while the thread sleeps in C, and the gate is closed before Python code runs again."""
    for _ in range(300):
        interrupt = ThreadInterrupt()
        begun, may_end = threading.Event(), threading.Event()

        def work(interrupt=interrupt, begun=begun, may_end=may_end):
            came = False
            while True:
                try:
                    with interrupt:
                        begun.set()
                        may_end.wait()
                    interrupt.close()
                except SoftTimeLimitExceeded:
                    came = True
                    continue
                break
            # The next task: nothing may come here.
            for _ in range(200):
                len("x")
            return came

        def throw(interrupt=interrupt, begun=begun, may_end=may_end):
            begun.wait()
            may_end.set()
            interrupt.throw(SoftTimeLimitExceeded)

        thrower = threading.Thread(target=throw)
        thrower.start()
        in_a_thread(work)
        thrower.join()


# --- never in the store ---------------------------------------------------------------------------


class FakeStore:
    """User code's call into the store, for as long as the test wants."""

    def __init__(self, module):
        self.went_in, self.may_leave, self.left = (threading.Event() for _ in range(3))
        names = {"__name__": module, "store": self}
        source = (
            "def call():\n"
            "    store.went_in.set()\n"
            "    while not store.may_leave.is_set(): store.may_leave.wait(0.001)\n"
            "    store.left.set()\n"
        )
        exec(source, names)
        self.call = names["call"]


@pytest.mark.parametrize(
    "module", ["sqlqueue_transport.database", "kombu.messaging", "sqlqueue.log"]
)
@pytest.mark.parametrize("where", ["main thread", "thread"])
def test_inside_of_the_store_nothing_is_raised_until_it_is_left(listening, module, where):
    store, interrupt = FakeStore(module), ThreadInterrupt()

    def user_code():
        store.call()
        in_python_for_ever()

    def throw():
        store.went_in.wait()
        interrupt.throw(SoftTimeLimitExceeded)
        for _ in range(20):
            interrupt.insist()
        assert interrupt.is_waiting
        store.may_leave.set()
        while interrupt.is_waiting:
            interrupt.insist()
            time.sleep(0.001)

    thrower = threading.Thread(target=throw)
    thrower.start()

    def work():
        with contextlib.suppress(SoftTimeLimitExceeded), interrupt:
            user_code()
        interrupt.close()
        return store.left.is_set()

    assert work() if where == "main thread" else in_a_thread(work)
    thrower.join()


# --- an event loop --------------------------------------------------------------------------------


def steered(function, error=SoftTimeLimitExceeded):
    """Run an async function, throw an error into it when it says so, and return what came of it."""

    async def main():
        interrupt = LoopInterrupt(asyncio.get_running_loop())
        throw = lambda: interrupt.throw(error)  # noqa: E731
        try:
            return await interrupt.steer(function(throw)), None
        except BaseException as raised:  # noqa: BLE001 - asyncio would make another error of it
            return None, raised

    result, raised = asyncio.run(main())
    if raised is not None:
        raise raised
    return result


def test_at_an_await_the_task_sees_the_error_itself():
    async def task(throw):
        throw()
        try:
            await asyncio.sleep(60)
        except SoftTimeLimitExceeded:
            await asyncio.sleep(0)  # it may await on, to clean up
            return "cleaned up"

    assert steered(task) == "cleaned up"


def test_what_the_task_does_not_catch_comes_out():
    async def task(throw):
        throw()
        await asyncio.gather(asyncio.sleep(60), asyncio.sleep(60))

    with pytest.raises(TimeLimitExceeded):
        steered(task, TimeLimitExceeded)


def test_a_timeout_around_it_does_not_take_it_for_its_own():
    async def task(throw):
        throw()
        try:
            await asyncio.wait_for(asyncio.sleep(60), timeout=30)
        except SoftTimeLimitExceeded:
            if sys.version_info >= (3, 11):  # or a task group after it would give up, too
                assert asyncio.current_task().cancelling() == 0
            return await asyncio.wait_for(asyncio.sleep(0, "on"), timeout=30)

    assert steered(task) == "on"


def test_a_cancellation_of_the_tasks_own_stays_one():
    async def task(_):
        inner = asyncio.ensure_future(asyncio.sleep(60))
        asyncio.get_running_loop().call_soon(inner.cancel)
        try:
            await inner
        except asyncio.CancelledError:
            return "cancelled"

    assert steered(task) == "cancelled"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="there are no task groups")
def test_a_task_group_that_waits_ends_its_tasks():
    done = []

    async def sub():
        try:
            await asyncio.sleep(60)
        finally:
            done.append("sub")

    async def task(throw):
        async with asyncio.TaskGroup() as group:
            group.create_task(sub())
            asyncio.get_running_loop().call_later(0.01, throw)

    with pytest.raises(SoftTimeLimitExceeded) as caught:
        steered(task)
    assert done == ["sub"]
    assert type(caught.value).__name__ == "SoftTimeLimitExceeded"


def test_a_semaphore_gets_back_what_it_had_just_given():
    async def main():
        semaphore = asyncio.Semaphore(1)
        interrupt = LoopInterrupt(asyncio.get_running_loop())
        await semaphore.acquire()

        async def task():
            async with semaphore:
                pass

        async def wait():
            with contextlib.suppress(SoftTimeLimitExceeded):
                await interrupt.steer(task())

        waiter = asyncio.ensure_future(wait())
        await asyncio.sleep(0.01)
        # Granted and interrupted in the same turn of the loop.
        interrupt.throw(SoftTimeLimitExceeded)
        semaphore.release()
        await waiter
        await asyncio.wait_for(semaphore.acquire(), timeout=30)

    asyncio.run(main())


def test_what_is_awaited_may_swallow_a_cancelling_but_not_the_error():
    async def deaf():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)

    async def task(throw):
        asyncio.get_running_loop().call_later(0.01, throw)
        try:
            await asyncio.create_task(deaf())
        except SoftTimeLimitExceeded:
            return "seen"

    assert steered(task) == "seen"


def test_what_is_thrown_before_it_begins_keeps_it_from_beginning():
    async def main():
        interrupt = LoopInterrupt(asyncio.get_running_loop())
        interrupt.throw(SoftTimeLimitExceeded)
        await asyncio.sleep(0)
        begun = []

        async def task():
            begun.append(True)

        with pytest.raises(SoftTimeLimitExceeded):
            await interrupt.steer(task())
        return begun

    assert asyncio.run(main()) == []


def test_the_result_of_the_task_is_that_of_the_steering():
    async def task(_):
        await asyncio.sleep(0)
        return [await asyncio.sleep(0, number) for number in range(3)]

    assert steered(task) == [0, 1, 2]


# --- where both meet ------------------------------------------------------------------------------


def test_a_limit_that_comes_as_the_task_ends_is_caught_and_counts(app_task):
    """However close to the end of user code it comes, `run` returns an outcome and never raises."""
    prepared = app_task(lambda: None)
    events = set()
    for _ in range(400):
        interrupt = ThreadInterrupt()
        go = threading.Event()

        def throw(interrupt=interrupt, go=go):
            go.wait()
            interrupt.throw(SoftTimeLimitExceeded)
            while interrupt.is_waiting:
                interrupt.insist()

        thrower = threading.Thread(target=throw)
        thrower.start()
        go.set()
        outcome = in_a_thread(lambda interrupt=interrupt: execute.run(prepared, interrupt))
        thrower.join()
        events.add(outcome.event.value)
    assert events <= {"complete", "retry"}


@pytest.fixture
def app_task(app):
    from sqlqueue import envelope
    from sqlqueue.backend import Taken

    def make(function):
        app.task(name="t")(function)
        written = envelope.build("t", (), {}, job_id="job-1")
        taken = Taken(
            tag=1,
            headers=written.headers,
            body=written.body.encode(),
            content_type=envelope.CONTENT_TYPE,
            content_encoding=envelope.CONTENT_ENCODING,
            queue="default",
            attempts=0,
            max_attempts=None,
            delivery=1,
        )
        prepared = execute.prepare(app, taken, worker="w")
        assert isinstance(prepared, execute.Prepared)
        return prepared

    yield make
    wait_until(lambda: threading.active_count() < 50)
