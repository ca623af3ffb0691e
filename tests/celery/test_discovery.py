"""Installing is enough: Celery and its command line know the URL without an import of ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from kombu import Queue

from tests.celery.conftest import Arena, ours_only
from tests.support import finish, run_python, wait_until

pytestmark = [pytest.mark.slow, ours_only]

COMMAND = Path(sys.executable).with_name("celery")


def test_a_celery_application_publishes_and_gets_results_without_an_import_of_ours(
    arena: Arena,
) -> None:
    arena.worker()
    script = """
        import sys
        from celery import Celery
        app = Celery("elsewhere", broker=sys.argv[1], backend=sys.argv[1])
        assert not any(name.startswith("sqlqueue_transport") for name in sys.modules)
        print(app.send_task("add", [1, 2]).get(timeout=30))
    """
    program = arena.python("elsewhere", script, arena.broker)
    assert program.wait() == 0, program.text
    assert program.text.strip() == "3"


def test_celerys_command_line_works_on_the_url(arena: Arena) -> None:
    arena.worker()

    def celery(*arguments: str) -> str:
        ran = subprocess.run(
            [COMMAND, "-b", arena.broker, "--result-backend", arena.broker, *arguments],
            cwd=arena.directory,
            env=arena.environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    job = celery("call", "add", "--args", "[1, 2]").strip()
    assert arena.app.AsyncResult(job).get(timeout=30) == 3
    assert celery("result", job).strip() == "3"
    assert "worker@arena: OK" in celery("status")
    assert "pong" in celery("inspect", "ping", "-d", "worker@arena")
    arena.app.control.cancel_consumer(
        "celery", reply=True, timeout=10, destination=["worker@arena"]
    )
    # The worker answers before it has done so.
    with arena.app.connection_for_read() as connection:
        queue = Queue("celery")(connection.default_channel)
        wait_until(lambda: queue.queue_declare(passive=True).consumer_count == 0)
    arena.tasks.stamp.delay()
    assert "Purged 1 message" in celery("purge", "--force")


# What a Kombu of tomorrow, or a damaged one, might do to the module that Kombu loads from us.
BROKEN = {
    "no table of aliases": """
        import kombu.transport
        del kombu.transport.TRANSPORT_ALIASES
    """,
    "a table that takes no entries": """
        import kombu.transport
        from types import MappingProxyType
        kombu.transport.TRANSPORT_ALIASES = MappingProxyType(kombu.transport.TRANSPORT_ALIASES)
    """,
    "no module of that name": """
        import sys
        sys.modules["kombu.transport"] = None
    """,
}


@pytest.mark.parametrize("broken", BROKEN)
def test_celery_can_be_imported_although_the_discovery_fails(tmp_path: Path, broken: str) -> None:
    restored = "sys.modules.pop('kombu.transport')" if "no module" in broken else "pass"
    script = f"""
        import sys
        import kombu.serialization
        assert "sqlqueue_discovery" in sys.modules, "it is loaded with Kombu's serializers"
        assert kombu.serialization.loads(*[
            kombu.serialization.dumps([1], "json")[place] for place in (2, 0, 1)
        ]) == [1]
        {restored}
        import celery
        celery.Celery("program")
        print("alive")
    """
    from textwrap import dedent

    (tmp_path / "sitecustomize.py").write_text(dedent(BROKEN[broken]))
    process = run_python(script, env={"PYTHONPATH": str(tmp_path)}, cwd=tmp_path)
    assert finish(process).strip() == "alive"


def test_nothing_can_be_written_in_the_private_content_type_and_no_consumer_accepts_it() -> None:
    script = """
        import kombu.serialization as serialization
        try:
            serialization.dumps({}, "sqlqueue")
        except serialization.SerializerNotInstalled:
            print("not written")
        try:
            serialization.loads(b"{}", "application/x-sqlqueue-discovery", "utf-8", {"application/json"})
        except serialization.ContentDisallowed:
            print("not accepted")
    """
    assert finish(run_python(script)).splitlines() == ["not written", "not accepted"]
