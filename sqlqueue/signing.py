"""Sign what is to be run, and refuse what nobody with the key has signed: HMAC-SHA256.

An option for files (or brokers) that more people may write to than may choose what workers run.
`calls` signs each message it makes, `execute` looks at the signature before the body is read, and
`schedules` signs the entries that live in the queue file, because a beat would sign their calls.

Signed is what says which call this is: body, content type and encoding, and the headers in
`SIGNED_HEADERS`. Not signed is what others must be able to change: `eta` and `retries` (another try
on a broker that is no file is a new message with other ones), the queue, priority and attempts (a
dead letter exchange or an operator moves a message). So this does not prevent what can be done with
a signed message as it is: to run it again, earlier, later, elsewhere or not at all.

Nothing here decodes a body, and no key is ever shown, not even in a repr.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sqlqueue.errors import BadSignature, ConfigError, Unsigned
from sqlqueue.text import quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["HEADER", "SHORTEST", "SIGNED_HEADERS", "Key", "Keys", "is_key_for_path", "keys_of"]

HEADER: Final = "sqlqueue-signature"
SHORTEST: Final = 32  # characters of a key; 32 random bytes are 43 of them in base64
SIGNED_HEADERS: Final = (
    *("task", "id", "root_id", "parent_id", "expires", "timelimit", "sqlqueue-sensitive"),
)

_VERSION: Final = "1"
_ABSENT: Final = object()  # a header that is not there says something else than one without a value
_MOST_FILE_BYTES: Final = 65_536
_IN_BASE64: Final = re.compile(r"[A-Za-z0-9+/]{40,}={0,2}")


@dataclass(frozen=True, slots=True)
class Key:
    """Be one key. `id` tells keys apart, and does not tell the key."""

    id: str
    secret: bytes = field(repr=False)

    @classmethod
    def of(cls, text: str) -> Key:
        """Make a key of the text somebody chose."""
        import hmac  # noqa: PLC0415 - late: it loads OpenSSL, and most sign nothing

        secret = text.encode()
        return cls(hmac.digest(secret, b"sqlqueue key id", "sha256").hex()[:8], secret)


@dataclass(frozen=True, slots=True)
class Keys:
    """Be the keys of an application: `own` signs, and each of `accepted` opens. False without any."""

    own: Key | None = None
    accepted: Mapping[str, Key] = field(default_factory=dict)

    @classmethod
    def of(cls, texts: Iterable[str]) -> Keys:
        """Make keys of texts, of which the first signs."""
        keys = [Key.of(text) for text in texts]
        return cls(keys[0], {key.id: key for key in keys}) if keys else cls()

    def __bool__(self) -> bool:
        """Say whether anything is signed and verified at all."""
        return self.own is not None

    def of_message(
        self, headers: Mapping[str, object], body: bytes, content_type: str, content_encoding: str
    ) -> str | None:
        """Return the signature of a message that is to be published; None without a key."""
        if self.own is None:
            return None
        return _signature(self.own, _message(headers, body, content_type, content_encoding))

    def of_entry(self, name: str, definition: str) -> str | None:
        """Return the signature of a schedule entry that is to live in the file; None without a key."""
        return None if self.own is None else _signature(self.own, _entry(name, definition))

    def check_message(
        self,
        headers: Mapping[str, object],
        body: bytes,
        content_type: object,
        content_encoding: object,
    ) -> None:
        """Raise Unsigned or BadSignature for a message that a holder of the keys did not make.

        Anybody may have written it: nothing else is raised. Without keys nothing is looked at.
        """
        if self:
            try:
                signed = _message(headers, body, content_type, content_encoding)
            except (ValueError, OverflowError, TypeError):  # a header of a kind that we never sign
                signed = b""
            self._check(headers.get(HEADER), signed, what="message")

    def check_entry(self, name: str, definition: str, signature: object) -> None:
        """Raise Unsigned or BadSignature for a schedule entry, as `check_message` does."""
        if self:
            self._check(signature, _entry(name, definition), what="schedule entry")

    def _check(self, signature: object, signed: bytes, *, what: str) -> None:
        if signature is None:
            raise Unsigned(
                f"the {what} is not signed, and this application runs only what is (signing_key)."
                f" Whoever made it has no key. {_ANEW}"
            )
        import hmac  # noqa: PLC0415 - late: see `Key.of`

        version, _, rest = signature.partition(".") if isinstance(signature, str) else ("", "", "")
        key_id, _, _ = rest.partition(".")
        key = self.accepted.get(key_id)
        if version != _VERSION or key is None:
            raise BadSignature(
                f"the {what} is signed with a key that this application does not have:"
                f" {quoted(key_id)}. It has {', '.join(self.accepted)}. {_ANEW}"
            )
        # Compared as bytes, because text that is not ASCII would raise.
        if not signed or not hmac.compare_digest(
            _signature(key, signed).encode(), str(signature).encode("utf-8", "surrogatepass")
        ):
            raise BadSignature(
                f"the signature of the {what} does not fit: body or headers were changed after it was"
                f" signed. {_ANEW}"
            )


_ANEW: Final = (
    "Give the producer a key of this application, and publish it anew; to requeue it does not help:"
    " docs/operations.md#signatures"
)


def keys_of(signing_key: str, accepted: Sequence[str], file: str) -> Keys:
    """Return the keys that the settings name. Raises ConfigError, which never shows one.

    A file has a key a line: the first signs. It must be the owner's alone, and no link.
    """
    if signing_key and file:
        raise ConfigError("signing_key and signing_key_file are both given; choose one")
    texts = [signing_key] if signing_key else _read(file) if file else []
    if accepted and not texts:
        raise ConfigError(
            "signing_keys_accepted is given without signing_key: what is published here would not be"
            " signed, and be refused here. Give the key that signs"
        )
    return Keys.of([*texts, *accepted])


def checked(text: str, *, name: str) -> str:
    """Return a key; raises ConfigError for one that is too short, without showing it."""
    if len(text) < SHORTEST or not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigError(
            f"{name} is no key: it has {len(text)} characters. Give at least {SHORTEST} of printable"
            " ASCII without spaces, such as python -c 'import secrets; print(secrets.token_hex(32))'"
            " makes."
        )
    return text


def is_key_for_path(path: str) -> bool:
    """Say whether a path of a key file is a key that was given in its place: it is not to be shown.

    It names no file, and a word of it would pass as a key. A slash makes a path of it, unless all of
    it is base64, which has slashes of its own, with digits and letters of both cases.
    """
    return not os.path.lexists(path) and any(map(_looks_like_a_key, path.split()))


def _looks_like_a_key(word: str) -> bool:
    try:
        checked(word, name="")
    except ConfigError:
        return False
    return "/" not in word or (
        _IN_BASE64.fullmatch(word) is not None
        and all(re.search(kind, word) for kind in ("[a-z]", "[A-Z]", "[0-9]"))
    )


# --- what is signed -------------------------------------------------------------------------------


def _signature(key: Key, signed: bytes) -> str:
    import hmac  # noqa: PLC0415 - late: see `Key.of`

    code = hmac.digest(key.secret, signed, "sha256").hex()
    return f"{_VERSION}.{key.id}.{code}"


def _message(
    headers: Mapping[str, object], body: bytes, content_type: object, content_encoding: object
) -> bytes:
    values = [headers.get(name, _ABSENT) for name in SIGNED_HEADERS]
    return _encoded("message", [content_type, content_encoding, *values, body])


def _entry(name: str, definition: str) -> bytes:
    return _encoded("entry", [name, definition])


def _encoded(kind: str, values: Sequence[object]) -> bytes:
    """Return values as bytes which no other values have: each with its kind and its length.

    Numbers as floats, because brokers may turn 2.0 into 2. Raises ValueError, TypeError or
    OverflowError for what is none of the kinds that headers of ours have.
    """
    pieces: list[bytes] = []
    for value in (kind, *values):
        tag, content = _piece(value)
        pieces += (tag, len(content).to_bytes(8, "big"), content)
    return b"".join(pieces)


def _piece(value: object) -> tuple[bytes, bytes]:
    if value is _ABSENT:
        return b"-", b""
    if value is None:
        return b"0", b""
    if isinstance(value, str):
        return b"t", value.encode()  # half a surrogate pair raises a ValueError
    if isinstance(value, bytes):
        return b"b", value
    if isinstance(value, bool):
        return b"?", b"1" if value else b"0"
    if isinstance(value, (int, float)):
        return b"n", repr(float(value)).encode()
    if isinstance(value, (list, tuple)) and not any(
        isinstance(one, (list, tuple)) for one in value
    ):
        return b"l", _encoded(
            "list", value
        )  # the two time limits; no deeper, or it might never end
    raise TypeError


def _read(path: str) -> list[str]:
    if is_key_for_path(path):
        raise ConfigError(
            "signing_key_file names no file, and looks like a key, so it is not shown. A key itself"
            " belongs into signing_key; signing_key_file is the path of a file with a key a line."
        )
    shown = quoted(path, limit=300)
    try:
        # O_NONBLOCK: of a FIFO there is nothing to read, and nobody to wait for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(
            f"cannot read signing_key_file {shown}: {error.strerror}. Make it a file, no link, that"
            " this user may read."
        ) from None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"signing_key_file {shown} is no regular file")
        if found.st_mode & 0o077 or found.st_uid not in {os.geteuid(), 0}:
            raise ConfigError(
                f"signing_key_file {shown} is open to other users, so its keys are no secret any more,"
                " and chmod alone does not make them secret again. Make a new file of this user's with"
                " a new key: umask 077; python -c 'import secrets; print(secrets.token_hex(32))' > NEW"
            )
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(_MOST_FILE_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(content) > _MOST_FILE_BYTES:  # cut, the last key would be another one
        raise ConfigError(
            f"signing_key_file {shown} has more than {_MOST_FILE_BYTES} bytes, so it is no file of keys."
            " Write a key a line, and nothing else, into a file of its own."
        )
    lines = [line.strip() for line in content.decode("utf-8", "replace").splitlines()]
    texts = [line for line in lines if line and not line.startswith("#")]
    if not texts:
        raise ConfigError(
            f"signing_key_file {shown} holds no key. Write one into it, a key a line."
        )
    return [checked(text, name=f"a line of signing_key_file {shown}") for text in texts]
