"""Our Kombu message: made from a row, decoded only when somebody looks."""

from __future__ import annotations

import json
import sys
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kombu.compression import decompress
from kombu.message import Message as KombuMessage

if TYPE_CHECKING:
    from sqlqueue_transport.channel import Channel
    from sqlqueue_transport.messages import Delivery


class Message(KombuMessage):  # type: ignore[misc]  # kombu has no types
    """Be one delivery, as Kombu's consumers expect it.

    Beyond Kombu's attributes it has `delivery`, the row it came from. A body that cannot be
    decompressed is reported through `errors`, as Kombu does.
    """

    def __init__(self, delivery: Delivery, channel: Channel, consumer_tag: str | None = None) -> None:
        """Wrap a delivery; costs no decoding."""
        # Not calling Kombu's __init__: it would decode headers and properties at once.
        self.errors: list[Any] = []
        self.delivery = delivery
        self.channel = channel
        self.delivery_tag = delivery.tag
        self.content_type = delivery.content_type
        self.content_encoding = delivery.content_encoding
        self._decoded_cache = None
        self._state = "RECEIVED"
        self.accept = None
        self.delivery_info = {
            "exchange": delivery.exchange,
            "routing_key": delivery.routing_key,
            "redelivered": delivery.delivery > 1,
            "priority": delivery.priority,
        }
        if consumer_tag is not None:
            self.delivery_info["consumer_tag"] = consumer_tag
        if '"compression"' in delivery.headers:
            _ = self.body  # Kombu's consumers look at `errors` before they decode

    @cached_property
    def headers(self) -> dict[str, Any]:
        """Return the application headers."""
        found: dict[str, Any] = json.loads(self.delivery.headers)
        return found

    @cached_property
    def properties(self) -> dict[str, Any]:
        """Return the message properties, Kombu's own bookkeeping included."""
        found: dict[str, Any] = json.loads(self.delivery.properties)
        found["delivery_tag"] = self.delivery_tag
        found["delivery_info"] = self.delivery_info
        return found

    @cached_property
    def body(self) -> bytes:
        """Return the body, decompressed."""
        body = self.delivery.body
        compression = self.headers.get("compression")
        if compression:
            try:
                body = decompress(body, compression)
            except Exception:  # noqa: BLE001 - whatever a codec raises is the message's fault
                self.errors.append(sys.exc_info())
        return body
