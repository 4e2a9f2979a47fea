"""Join tokens, cluster ids and the words that people compare: texts made of keys and hashes.

Pure: no file, no clock, no randomness, and no cryptography beyond hashing.
"""

import base64
import binascii
import hashlib
from typing import Final, NamedTuple

from districomp.errors import TokenError

SECRET_BYTES: Final = 16
AUTHORITY_BYTES: Final = 16
NONCE_BYTES: Final = 16
ROLES: Final = {"dcw": "worker", "dcs": "submit", "dca": "admin", "dcr": "read"}
"""What a token may be for, by its prefix."""
VERSION: Final = "1"
TOKEN_CHARS_MAX: Final = 128

_PREFIXES: Final = {role: prefix for prefix, role in ROLES.items()}
_BASE32_CHARS: Final = 26
_CONSONANTS: Final = "bdfghjklmnprstvz"
_VOWELS: Final = "aiou"


class JoinToken(NamedTuple):
    """A join token's parts. `authority`: the first 16 bytes of SHA-256 of the certificate (DER) of the cluster's CA."""

    role: str
    authority: bytes
    secret: bytes

    @property
    def cluster(self) -> str:
        """The id of the cluster."""
        return _base32(self.authority)

    def __repr__(self) -> str:
        # A token must not get into a log by way of a traceback.
        return f"JoinToken(role={self.role!r}, cluster={self.cluster!r}, secret=...)"


def format_token(token: JoinToken) -> str:
    """`dcw1-CLUSTER-SECRET`, both in base32 (RFC 4648, lower case, no padding)."""
    return f"{_PREFIXES[token.role]}{VERSION}-{_base32(token.authority)}-{_base32(token.secret)}"


def parse_token(text: str) -> JoinToken:
    """The inverse; upper case and surrounding blanks are taken too. TokenError never repeats what was given."""
    text = text.strip()
    parts = text.lower().split("-") if len(text) <= TOKEN_CHARS_MAX else []
    prefix = parts[0] if parts else ""
    if prefix[:3] not in ROLES or len(parts) != 3:
        raise TokenError(
            "this is not a join token; one looks like dcw1-...-... and comes from: dctl token create worker"
        )
    if prefix[3:] != VERSION:
        raise TokenError(f"a token of version {prefix[3:]!r:.10} is not known here; update districomp on this machine")
    try:
        authority, secret = (_from_base32(part) for part in parts[1:])
    except (binascii.Error, ValueError):
        raise TokenError("the token is damaged: copy it whole, without spaces or line breaks") from None
    return JoinToken(ROLES[prefix[:3]], authority, secret)


def authority_hash(certificate: bytes) -> bytes:
    """What tokens and ids know of a CA's certificate (DER)."""
    return hashlib.sha256(certificate).digest()[:AUTHORITY_BYTES]


def cluster_id(certificate: bytes) -> str:
    """The id of the cluster with this CA certificate (DER): 26 characters."""
    return _base32(authority_hash(certificate))


def is_cluster_id(text: str) -> bool:
    """Whether this is an id that pins a CA, rather than a cluster's name."""
    try:
        return len(_from_base32(text)) == AUTHORITY_BYTES
    except (binascii.Error, ValueError):
        return False


def secret_hash(secret: bytes) -> bytes:
    """What the coordinator keeps of a secret."""
    return hashlib.sha256(secret).digest()


def pairing_words(authority: bytes, key: bytes, nonce: bytes) -> str:
    """Three words that the pending machine and the coordinator show: of both keys, as both know them.

    authority: the CA's certificate (DER). key: the public key of the machine (SubjectPublicKeyInfo, DER). nonce: the
    coordinator's, made after it had seen the key, so that nobody can search for a key with another's words.
    Words are proquints (D. Wilkerson, arXiv:0901.4016), 48 bits in all.
    """
    digest = hashlib.sha256(b"districomp words 1" + _framed(authority) + _framed(key) + _framed(nonce)).digest()
    return "-".join(_proquint(int.from_bytes(digest[i : i + 2], "big")) for i in (0, 2, 4))


def _framed(part: bytes) -> bytes:
    return len(part).to_bytes(4, "big") + part


def _proquint(number: int) -> str:
    return (
        _CONSONANTS[number >> 12]
        + _VOWELS[number >> 10 & 3]
        + _CONSONANTS[number >> 6 & 15]
        + _VOWELS[number >> 4 & 3]
        + _CONSONANTS[number & 15]
    )


def _base32(data: bytes) -> str:
    return base64.b32encode(data).decode("ascii").rstrip("=").lower()


def _from_base32(text: str) -> bytes:
    """16 bytes. ValueError (binascii.Error is one) for anything else, and for spare bits that are set."""
    if len(text) != _BASE32_CHARS or not text.isascii():
        raise ValueError("26 characters of base32 are needed")
    data = base64.b32decode(text.upper() + "======")
    if _base32(data) != text.lower():
        raise ValueError("not as it is written")
    return data
