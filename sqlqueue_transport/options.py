"""Transport options: one frozen dataclass with units, defaults and validation.

Names are Celery's where Celery has the thing, and numbers are seconds. Unknown keys are ignored,
because Kombu writes keys of its own into the same dictionary (`Producer.publish(retry=True)`
leaves its retry policy there), unless they look like a misspelling.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from sqlqueue_transport.errors import InvalidMessage
from sqlqueue_transport.showing import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

DURABILITIES = ("publish", "full", "process")
_NEARLY = 0.85  # how alike a misspelt key is; Redis' own options are less so
SHORTEST_S, LONGEST_S = 0.001, 1e9  # a millisecond is what the file counts in; thirty years


@dataclass(frozen=True, slots=True)
class Options:
    """Be the options of one connection.

    visibility_timeout: seconds a consumer may hold a message without giving a sign of life.
    durability: "publish" (a publish that returned is on the disk; settlements may be lost to a
        power cut, so that a finished job runs again), "full" (settlements too), "process"
        (survives any kill, not a power cut).
    hold_eta: keep messages with an `eta` header in the file until they are due.
    busy_timeout: seconds to wait for the writer lock before a Busy error.
    create: make the file when it is missing.
    read_only: look, and be unable to write: whatever would write raises ReadOnlyStore. A missing
        file is not made, one of an older version not migrated.
    keep_leases: extend the leases of what this process holds, from a thread of its own.
    group_acks: commit what a program acknowledges while it drains together with its next claim,
        before it waits, and at the latest after about a second; see `acks`. Event loops do so
        without being told.
    max_prefetch: how many messages a consumer without a prefetch count may hold.
    max_deliveries: how often a message may come back from consumers that note no starts, because
        they died with it or handed it back; then it is a dead letter. 0 means no limit.
    retention_done: how long, in seconds, the consumers of this connection let done jobs be kept;
        0 keeps for ever.
    retention_dead: the same for dead letters, cancelled and expired jobs.
    retention_audit: the same for the records of what operators did.
    """

    visibility_timeout: float = 3600.0
    durability: str = "publish"
    hold_eta: bool = True
    busy_timeout: float = 30.0
    create: bool = True
    read_only: bool = False
    keep_leases: bool = True
    group_acks: bool = False
    max_prefetch: int = 100
    max_deliveries: int = 20
    retention_done: float = 7 * 86_400.0
    retention_dead: float = 30 * 86_400.0
    retention_audit: float = 180 * 86_400.0

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        for name in ("visibility_timeout", "busy_timeout"):
            value = getattr(self, name)
            if not SHORTEST_S <= value <= LONGEST_S:  # NaN is not, either
                _refuse(name, value, f"give {SHORTEST_S} to {LONGEST_S:.0f} seconds")
        if self.durability not in DURABILITIES:
            _refuse("durability", self.durability, "choose one of " + ", ".join(DURABILITIES))
        for name in ("retention_done", "retention_dead", "retention_audit"):
            value = getattr(self, name)
            if not 0 <= value <= LONGEST_S:
                _refuse(name, value, f"give 0 to {LONGEST_S:.0f} seconds")
        if not 0 <= self.max_deliveries < 2**31:
            _refuse("max_deliveries", self.max_deliveries, "give a whole number, 0 for no limit")
        if self.max_prefetch < 1:
            _refuse("max_prefetch", self.max_prefetch, "give a whole number above zero")

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Options:
        """Take what we know from Kombu's `transport_options` or a URL's query (text values).

        Raises InvalidMessage when a value cannot be understood, and for a key that is nearly one of
        ours: a misspelt `durability` must not go unnoticed.
        """
        chosen: dict[str, Any] = {}
        names = [one.name for one in fields(cls)]
        for key in given:
            for meant in difflib.get_close_matches(str(key), names, 1, _NEARLY):
                if key not in names:
                    _refuse(key, given[key], f"there is none of that name; {meant} is meant?")
        for one in fields(cls):
            if given.get(one.name) is None:
                continue
            value = given[one.name]
            try:
                chosen[one.name] = _READERS[one.type](value)
            except Exception:  # noqa: BLE001 - its own methods are asked, too
                _refuse(one.name, value, _HINTS[one.type])
        return cls(**chosen)

    @property
    def sync_publish(self) -> bool:
        """Say whether a publish must be on the disk before it returns."""
        return self.durability != "process"

    @property
    def sync_settle(self) -> bool:
        """Say whether a settlement must be on the disk before it returns."""
        return self.durability == "full"


def _flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[
        str(value).lower()
    ]


def _whole(value: object) -> int:
    if isinstance(value, float) and not value.is_integer():
        raise ValueError
    return int(str(value)) if isinstance(value, str) else int(value)  # type: ignore[call-overload]


_READERS: dict[Any, Any] = {"float": float, "int": _whole, "str": str, "bool": _flag}
_HINTS: dict[Any, str] = {
    "float": "give a number of seconds",
    "int": "give a whole number",
    "bool": "give true or false",
    "str": "give a text",
}


def _refuse(name: str, value: object, hint: str) -> None:
    message = f"transport option {name}={shown(value)} is not usable: {hint}"
    raise InvalidMessage(message)
