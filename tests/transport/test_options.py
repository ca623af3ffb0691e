"""Transport options: what is read, what is refused, and what is none of our business."""

from __future__ import annotations

from dataclasses import fields

import pytest

from sqlqueue_transport.errors import InvalidMessage
from sqlqueue_transport.options import Options


def test_nothing_given_means_the_documented_defaults() -> None:
    assert Options.read({}) == Options(
        visibility_timeout=3600.0,
        durability="publish",
        hold_eta=True,
        busy_timeout=30.0,
        create=True,
        keep_leases=True,
        max_prefetch=100,
    )


def test_numbers_keep_their_unit_of_seconds_and_text_is_read_as_in_a_url() -> None:
    options = Options.read(
        {
            "visibility_timeout": "2.5",
            "busy_timeout": 1,
            "hold_eta": "no",
            "create": "False",
            "keep_leases": "0",
            "max_prefetch": "7",
            "durability": "full",
        }
    )
    assert options == Options(
        visibility_timeout=2.5,
        busy_timeout=1.0,
        hold_eta=False,
        create=False,
        keep_leases=False,
        max_prefetch=7,
        durability="full",
    )


def test_unknown_keys_and_none_are_ignored() -> None:
    """Kombu writes its retry policy into the same dictionary."""
    given = {
        "max_retries": 3,
        "interval_start": 0,
        "errback": print,
        "polling_interval": 1,
        "visibility_timeout": None,
        # What an application that comes from Redis may still carry.
        **dict.fromkeys(
            ("fanout_prefix", "fanout_patterns", "priority_steps", "sep", "queue_order_strategy"), 1
        ),
        **dict.fromkeys(("socket_timeout", "socket_keepalive", "max_connections"), 1),
        **dict.fromkeys(("global_keyprefix", "retry_on_timeout", "health_check_interval"), 1),
    }
    assert Options.read(given) == Options()


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("visibilty_timeout", "visibility_timeout"),
        ("durabillity", "durability"),
        ("max_deliverys", "max_deliveries"),
        ("retention_dones", "retention_done"),
    ],
)
def test_a_misspelt_key_is_refused_with_what_is_meant(misspelt: str, meant: str) -> None:
    with pytest.raises(InvalidMessage, match=f"{misspelt}=1 is not usable.*{meant}"):
        Options.read({misspelt: 1})


class _Mute:
    def __repr__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("visibility_timeout", 0),
        ("visibility_timeout", -1),
        ("visibility_timeout", 0.0004),  # no millisecond: the lease would be over when it begins
        ("visibility_timeout", float("nan")),
        ("visibility_timeout", float("inf")),
        ("visibility_timeout", 1e300),
        ("visibility_timeout", "an hour"),
        ("visibility_timeout", []),
        ("retention_audit", -1),
        ("busy_timeout", 0),
        ("busy_timeout", 1e10),
        ("durability", "none"),
        ("durability", 1),
        ("hold_eta", "perhaps"),
        ("create", 7),
        ("max_prefetch", 0),
        ("max_prefetch", -1),
        ("max_prefetch", 1.5),
        ("max_prefetch", "many"),
        ("max_prefetch", float("inf")),
        # Whose own repr raises, or would fill the screen.
        ("visibility_timeout", 10**5000),
        ("durability", 10**5000),
        ("durability", _Mute()),
        ("create", _Mute()),
        ("durability", "x" * 100_000),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 40 else type(value).__name__,
)
def test_a_value_that_means_nothing_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InvalidMessage, match=f"transport option {name}=") as caught:
        Options.read({name: value})
    assert ": " in str(caught.value)
    assert len(str(caught.value)) < 300
    assert "give" in str(caught.value) or "choose" in str(caught.value)


@pytest.mark.parametrize(
    ("durability", "publish", "settle"),
    [("publish", True, False), ("full", True, True), ("process", False, False)],
)
def test_durability_says_what_must_be_on_the_disk(
    durability: str, publish: bool, settle: bool
) -> None:
    options = Options(durability=durability)
    assert (options.sync_publish, options.sync_settle) == (publish, settle)


def test_every_option_is_described_in_the_docstring() -> None:
    for one in fields(Options):
        assert f"{one.name}:" in (Options.__doc__ or "")
