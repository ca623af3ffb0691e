"""Capture what real Celery puts on the wire, into fixtures/celery_v2.json.

Run it by hand when a new Celery is supported: ``python tests/sqlqueue/capture_celery.py``. It
publishes on Kombu's memory transport, at a frozen time, and reads the raw messages back before
anything decodes them.
"""

import base64
import json
import sys
from importlib.metadata import version
from pathlib import Path

from celery import Celery
from freezegun import freeze_time

FIXTURE = Path(__file__).parent / "fixtures" / "celery_v2.json"
PUBLISHED_AT = "2026-11-22T05:11:07.123000+00:00"
ARGS = ["job-1.txt", 7, 1.5, None, True, {"deep": ["ä", 2]}]
KWARGS = {"colour": "grün", "times": 3}
CALLS = {
    "delay": {},
    "one_argument": {},
    "no_arguments": {},
    "countdown_and_expires": {"countdown": 90, "expires": 3600},
    "time_limits": {"time_limit": 30, "soft_time_limit": 20.5},
}


def capture():
    app = Celery("captured", broker="memory://")
    app.conf.task_default_queue = "captured"

    @app.task(name="captured.task", typing=False)
    def task(*args, **kwargs):
        pass

    messages = {}
    with app.connection_for_write() as connection, freeze_time(PUBLISHED_AT):
        channel = connection.default_channel
        app.amqp.queues["captured"](channel).declare()
        for name, options in CALLS.items():
            args, kwargs = ARGS, KWARGS
            if name == "one_argument":
                args, kwargs = ["alone"], {}
            if name == "no_arguments":
                args, kwargs = [], {}
            # A tuple, as task.delay(*args) makes one; argsrepr shows it.
            task.apply_async(tuple(args), kwargs, task_id=f"id-of-{name}", **options)
            raw = channel._get("captured")
            raw["headers"]["origin"] = "gen4242@somewhere"  # pid and host of whoever ran this
            messages[name] = {
                "called_with": {"args": args, "kwargs": kwargs, "options": options},
                "headers": raw["headers"],
                "properties": raw["properties"],
                "content_type": raw["content-type"],
                "content_encoding": raw["content-encoding"],
                "body": base64.b64decode(raw["body"]).decode(),
            }
    versions = {name: version(name) for name in ("celery", "kombu")}
    return {"versions": versions, "published_at": PUBLISHED_AT, "messages": messages}


if __name__ == "__main__":
    FIXTURE.write_text(json.dumps(capture(), indent=1, ensure_ascii=False, sort_keys=True) + "\n")
    sys.stdout.write(f"wrote {FIXTURE}\n")
