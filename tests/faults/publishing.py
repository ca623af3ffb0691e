"""Two programs that publish without a pause while a test breaks things: one of ours, one of plain Kombu."""

from __future__ import annotations

from pathlib import Path

from tests.crash.conftest import Arena
from tests.support import finish, run_python, say, wait_until

# Publishes until a line comes; says of each call what became of it.
OWN = """
    import select, sys, time
    from sqlqueue import SqlQueue
    from sqlqueue.errors import BrokerUnavailable
    app = SqlQueue("publisher", broker_url=f"sqlqueue:///{sys.argv[1]}")
    with open(sys.argv[2], "w", buffering=1) as said:
        while not select.select([sys.stdin], [], [], 0.02)[0]:
            try:
                print("ok", app.send_task("ran", ["x" * 2000]).id, file=said)
            except Exception as error:
                print("refused", type(error).__name__, str(error).replace("\\n", " "), file=said)
    app.close()
"""
PLAIN = """
    import itertools, select, sys
    import kombu, sqlqueue_transport
    queue = kombu.Queue("plain", kombu.Exchange(""), routing_key="plain")
    with open(sys.argv[2], "w", buffering=1) as said:
        numbers = itertools.count()
        with kombu.Connection(f"sqlqueue:///{sys.argv[1]}") as connection:
            producer = kombu.Producer(connection.channel())
            while not select.select([sys.stdin], [], [], 0.02)[0]:
                number = next(numbers)
                try:
                    producer.publish({"n": number, "x": "x" * 2000}, routing_key="plain")
                    print("ok", number, file=said)
                except connection.connection_errors as error:
                    print("refused", type(error).__name__, str(error), file=said)
"""
CONSUME = """
    import socket, sys
    import kombu, sqlqueue_transport
    with kombu.Connection(f"sqlqueue:///{sys.argv[1]}") as connection:
        queue = kombu.Queue("plain", kombu.Exchange(""), routing_key="plain", channel=connection)
        simple = connection.SimpleQueue(queue)
        try:
            while True:
                message = simple.get(timeout=0.5)
                print(message.payload["n"])
                message.ack()
        except simple.Empty:
            simple.close()
"""


class Publishers:
    """Be two programs that publish, and what each was told."""

    def __init__(self, arena: Arena, path: Path, env: dict[str, str]) -> None:
        self._said = {name: arena.directory / f"{name}.said" for name in ("own", "plain")}
        self._processes = [
            run_python(code, path, self._said[name], env=env, stderr=None)
            for name, code in (("own", OWN), ("plain", PLAIN))
        ]

    def answers(self, name: str, answer: str) -> list[str]:
        """Return what one was told so far, of one kind: "ok" or "refused"."""
        return [line.partition(" ")[2] for line in self.everything(name) if line.startswith(answer)]

    def everything(self, name: str) -> list[str]:
        """Return all that one was told so far, in order."""
        text = self._said[name].read_text() if self._said[name].exists() else ""
        return text.rpartition("\n")[0].splitlines()

    def wait_for_more(self, answer: str) -> None:
        """Wait until both got this answer once more."""
        for name in self._said:
            before = len(self.answers(name, answer))
            wait_until(
                lambda name=name, before=before: len(self.answers(name, answer)) > before,
                deadline_s=60,
                what=f"{name} to be told {answer}",
            )

    def end(self) -> None:
        """Have both end in order."""
        for process in self._processes:
            say(process)
        for process in self._processes:
            finish(process)


def plain_messages(path: Path) -> list[int]:
    """Take all messages of the plain Kombu program from the queue and return their numbers."""
    return [int(line) for line in finish(run_python(CONSUME, path)).split()]
