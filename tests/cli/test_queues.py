"""`sqlqueue pause | resume`: what is told, and what others see of it."""

from __future__ import annotations

import getpass

from tests.cli.filling import HOSTILE, RAW


def test_a_queue_is_paused_and_resumed(cli, filled):
    filled.publish(queue="mail")
    filled.close()
    result = cli("pause", "mail", "--reason", "mail server is down")
    assert (result.code, result.out, result.err) == (0, "mail: paused\n", "")
    assert cli("pause", "mail").out == "mail: paused, as before\n"
    shown = cli("inspect", "queues").out
    assert f"by {getpass.getuser()}@" in shown
    assert "via cli: mail server is down" in shown
    (item,) = cli("inspect", "queues", "--json").json["items"]
    assert item["paused"]["reason"] == "mail server is down"
    assert item["paused"]["since"].endswith("Z")
    assert "paused          mail, with 1 message waiting" in cli("inspect", "stats").out
    assert cli("inspect", "stats", "--json").json["paused"] == {"mail": 1}
    assert "paused queues" in cli("doctor").out

    assert cli("resume", "mail").out == "mail: running\n"
    assert cli("resume", "mail").out == "mail: running, as before\n"
    (item,) = cli("inspect", "queues", "--json").json["items"]
    assert item["paused"] is None


def test_several_queues_are_one_command_and_json_for_programs(cli, filled):
    filled.publish(queue="a")
    filled.publish(queue="b")
    filled.close()
    assert cli("pause", "a", "b", "a", "--json").json == {
        "schema": 1,
        "action": "pause",
        "items": [{"queue": "a", "changed": True}, {"queue": "b", "changed": True}],
    }


def test_an_unknown_queue_is_an_error_with_a_suggestion_and_nothing_is_paused(cli, filled):
    filled.publish(queue="mail")
    filled.close()
    result = cli("pause", "mail", "mial")
    assert (result.code, result.out) == (3, "")
    assert "there is no queue 'mial'. Did you mean 'mail'?" in result.err
    assert cli("inspect", "stats", "--json").json["paused"] == {}


def test_the_mailbox_of_a_program_is_refused(cli, filled):
    filled.store.topology.declare_queue("celery@here.celery.pidbox", auto_delete=True)
    filled.close()
    result = cli("pause", "celery@here.celery.pidbox")
    assert result.code == 2
    assert "only queues of jobs can be paused" in result.err


def test_without_a_queue_it_is_a_usage_error(cli, filled):
    filled.close()
    assert cli("pause").code == 2


def test_hostile_names_and_reasons_are_spelled_out(cli, filled):
    filled.publish(queue="mail")
    filled.store.pausing.pause("mail", actor=HOSTILE, reason=HOSTILE)
    filled.close()
    shown = cli("inspect", "queues").out
    assert not [raw for raw in RAW if raw in shown]
