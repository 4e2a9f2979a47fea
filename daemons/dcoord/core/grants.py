"""Grants: signed, short-lived rights to one object for one verb, minted by the coordinator, checked by dcoord-web alone.

Pure: the key and the time are arguments. A grant is `base64url(fields as MessagePack) . base64url(HMAC-SHA256)`.
"""

import base64
import binascii
import hashlib
import hmac
from typing import Final

import msgspec

GRANT_S: Final = 600.0
"""How long a grant is good."""
GRANT_CHARS_MAX: Final = 1024


class Grant(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """`verb` GET, PUT or SESSION at `path` (messages.AskGrant), for the holder of certificate `identity` ('' local).

    `role` and `user` as in rights.Principal; `lease` is the one that needs it, 0 for clients; `expires` in Unix seconds.
    """

    verb: str
    path: str
    identity: str
    role: str
    user: str
    lease: int
    expires: float


class GrantError(Exception):
    """It is none of ours, or it has expired; the message may be told to the bearer."""


def mint(key: bytes, grant: Grant) -> str:
    """The text of a grant."""
    body = msgspec.msgpack.encode(grant)
    return f"{_text(body)}.{_text(_signature(key, body))}"


def check(key: bytes, text: str, now: float) -> Grant:
    """The grant of a text. GrantError if it was not minted with this key, or has expired."""
    if len(text) > GRANT_CHARS_MAX or text.count(".") != 1 or not text.isascii():
        raise GrantError("this is not a grant")
    body_text, _, signature_text = text.partition(".")
    try:
        body, signature = _bytes(body_text), _bytes(signature_text)
    except (binascii.Error, ValueError):
        raise GrantError("this is not a grant") from None
    # The signature first: nothing of a stranger's bytes is decoded.
    if not hmac.compare_digest(signature, _signature(key, body)):
        raise GrantError("this grant is not of this coordinator")
    grant = msgspec.msgpack.decode(body, type=Grant)
    if grant.expires <= now:
        raise GrantError("this grant has expired; ask for a new one")
    return grant


def _signature(key: bytes, body: bytes) -> bytes:
    return hmac.digest(key, b"districomp grant 1" + body, hashlib.sha256)


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
