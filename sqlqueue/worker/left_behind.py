"""What jobs leave behind on an event loop, and what is told of it when it fails.

A task that nobody awaits, a callback that raises: asyncio tells the loop's exception handler, whose
default logs what was raised, and the callback with its arguments. After a sensitive job that may be
what nobody is to see. Whose it was cannot be told: asyncio says so from Python 3.12 on, and then a
pool of connections that one job has made still fails with what another one gave it. So from the
first sensitive job on, type and code alone are logged of everything left on that loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlqueue.execute import fault_of
from sqlqueue.log import get_logger
from sqlqueue.text import HIDDEN

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

__all__ = ["new_loop"]

log = get_logger(__name__)

_KINDS: Final = {"task": "task", "future": "future", "handle": "callback", "asyncgen": "generator"}


def new_loop(*, hides: Callable[[], bool]) -> asyncio.AbstractEventLoop:
    """Make an event loop that asks `hides` whether what it has to tell may be told as it is.

    It is asked in the loop's own thread, also after the loop was closed: what is left may be found
    by the garbage collector only. A job that sets an exception handler of its own tells by that.
    """

    def tell(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if hides():
            _tell_without_text(context)
        else:
            loop.default_exception_handler(context)

    import asyncio  # noqa: PLC0415 - late: few workers run async tasks

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(tell)
    return loop


def _tell_without_text(context: dict[str, Any]) -> None:
    """Log what is left of asyncio's account without a repr or a message. Never raises.

    asyncio would log the whole account, if it did.
    """
    import asyncio  # noqa: PLC0415 - late: few workers run async tasks

    error = context.get("exception")
    what = next((name for key, name in _KINDS.items() if key in context), "something")
    if isinstance(context.get("future"), asyncio.Task):
        what = "task"
    if isinstance(error, BaseException):
        fault = fault_of(error, hide=True)
        log.error(
            "leftover_failed",
            what=what,
            error=f"{fault.type}: {fault.message}",
            traceback=fault.traceback,
        )
    else:
        log.error("leftover_failed", what=what, error=HIDDEN)
