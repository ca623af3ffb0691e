"""Our Kombu message: made from a row, decoded only when somebody looks."""

from __future__ import annotations

import bz2
import json
import lzma
import sys
import zlib
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kombu.compression import decompress
from kombu.message import Message as KombuMessage

from sqlqueue_transport.errors import LeaseLost

if TYPE_CHECKING:
    from sqlqueue_transport.channel import Channel
    from sqlqueue_transport.messages import Delivery

# A few kilobytes can unpack to gigabytes. Kombu's codecs have no bound; these three have.
LARGEST_UNPACKED_BYTES = 64 * 1024 * 1024
_BOUNDED_CODECS: dict[str, Any] = {
    "application/x-gzip": zlib.decompressobj,
    "gzip": zlib.decompressobj,
    "zlib": zlib.decompressobj,
    "application/x-bz2": bz2.BZ2Decompressor,
    "bzip2": bz2.BZ2Decompressor,
    "bzip": bz2.BZ2Decompressor,
    "application/x-lzma": lzma.LZMADecompressor,
    "lzma": lzma.LZMADecompressor,
    "xz": lzma.LZMADecompressor,
}


class Message(KombuMessage):
    """Be one delivery, as Kombu's consumers expect it.

    Beyond Kombu's attributes it has `delivery`, the row it came from, and `is_settled`: whether
    it was done when it was claimed (`no_ack`). A body that cannot be decompressed is reported
    through `errors`, as Kombu does.
    """

    def __init__(
        self,
        delivery: Delivery,
        channel: Channel,
        consumer_tag: str | None = None,
        *,
        is_settled: bool = False,
    ) -> None:
        """Wrap a delivery; costs no decoding."""
        # Not calling Kombu's __init__: it would decode headers and properties at once.
        self._errors: list[Any] = []
        self.delivery = delivery
        self.is_settled = is_settled
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

    @property
    def errors(self) -> list[Any]:  # type: ignore[override]
        """Return what cannot be read or unpacked; Kombu's consumers look here before they decode."""
        if self.delivery.headers != "{}" and "compression" in self.headers:
            _ = self.body
        return self._errors

    @cached_property
    def headers(self) -> dict[str, Any]:  # type: ignore[override]  # read-only is enough
        """Return the application headers; none when another program wrote what cannot be read."""
        return self._read(self.delivery.headers)

    @cached_property
    def properties(self) -> dict[str, Any]:  # type: ignore[override]
        """Return the message properties, Kombu's own bookkeeping included."""
        found = self._read(self.delivery.properties)
        found["delivery_tag"] = self.delivery_tag
        found["delivery_info"] = self.delivery_info
        return found

    def _read(self, text: str) -> dict[str, Any]:
        try:
            return dict(json.loads(text).items())
        except (ValueError, AttributeError, RecursionError):  # no JSON, or no object
            self._errors.append(sys.exc_info())
            return {}

    @cached_property
    def body(self) -> bytes:
        """Return the body, decompressed."""
        body = self.delivery.body
        compression = self.headers.get("compression")
        if compression:
            try:
                body = _unpacked(body, compression)
            except Exception:  # noqa: BLE001 - whatever a codec raises is the message's fault
                self._errors.append(sys.exc_info())
        return body

    def ack_log_error(self, logger: Any, errors: Any, multiple: bool = False) -> None:  # noqa: FBT001, FBT002 - Kombu's signature
        """Acknowledge, and log what keeps it from that: how Celery's workers do it.

        That somebody else has the message by now is logged as a warning, not raised: it must not
        end the worker, which could do nothing about it.
        """
        try:
            super().ack_log_error(logger, errors, multiple)
        except LeaseLost as error:
            logger.warning("lease_lost: %s", error)

    def reject_log_error(self, logger: Any, errors: Any, requeue: bool = False) -> None:  # noqa: FBT001, FBT002 - as above
        """Reject, and log what keeps it from that; see `ack_log_error`."""
        try:
            super().reject_log_error(logger, errors, requeue)
        except LeaseLost as error:
            logger.warning("lease_lost: %s", error)

    def ack(self, multiple: bool = False) -> None:  # noqa: FBT001, FBT002 - Kombu's signature
        """Acknowledge; nothing is left to do for a message that was consumed with `no_ack`."""
        if self.is_settled:
            return
        if self._state != "RECEIVED":
            super().ack(multiple=multiple)  # raises, with Kombu's text
        self.channel.basic_ack(self.delivery_tag, multiple)
        self._state = "ACK"


def _unpacked(body: bytes, codec: str) -> bytes:
    """Decompress. Raises whatever the codec raises, ValueError when it would grow too large."""
    bounded = _BOUNDED_CODECS.get(codec)
    if bounded is None:
        unpacked: bytes = decompress(body, codec)  # a codec the user installed or registered
        return unpacked
    machine = bounded()
    found: bytes = machine.decompress(body, LARGEST_UNPACKED_BYTES)
    if not machine.eof:
        if len(found) >= LARGEST_UNPACKED_BYTES:
            message = f"the body unpacks to more than {LARGEST_UNPACKED_BYTES} bytes"
        else:
            message = "the compressed body ends too early"
        raise ValueError(message)
    return found
