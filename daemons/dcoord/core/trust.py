"""Who may be let in: tokens, identities, pending workers, the open window, and how often a guess may be made.

Owns that state and its rules. What is answered to whom is `enrol.py`'s and `administer.py`'s; cryptography is
the driver's: here a secret is its hash, and a key is bytes.
"""

import hashlib
import hmac
from collections import Counter
from typing import Final, NamedTuple

from dcoord.core.records import IdentityRecord, TokenRecord
from dcoord.core.rights import Principal
from districomp.messages import Enrol
from districomp.tokens import cluster_id, pairing_words, secret_hash

TOKEN_ID_CHARS: Final = 8
TOKENS_MAX: Final = 10_000
PENDING_MAX: Final = 1024
PENDING_PER_ADDRESS_MAX: Final = 256
WINDOW_WORKERS_MAX: Final = 4096
"""So many an open window lets in: somebody who makes keys without end must not fill the journal."""
GUESSES_MAX: Final = 10
"""Wrong secrets of one address within GUESS_S; after that its guesses are not even looked at."""
GUESS_S: Final = 60.0
GUESSERS_MAX: Final = 4096


class Asked(NamedTuple):
    """What was asked for, the public key (SubjectPublicKeyInfo, DER) of it, and 16 random bytes of our own."""

    enrol: Enrol
    spki: bytes
    entropy: bytes


class PendingWorker(NamedTuple):
    """A worker without a token, which a person has to let in; `since` in Unix seconds."""

    peer: int
    asked: Asked
    words: str
    address: str
    group: str
    since: float


class Trust:
    """Everything that is known of who may come in. `authorities` (DER): the newest first."""

    def __init__(self, tokens: list[TokenRecord], identities: list[IdentityRecord], *, insecure: bool = False) -> None:
        self.insecure = insecure
        self.authorities: list[bytes] = []
        self.until: list[float] = []
        self.clusters: list[str] = []
        """The cluster ids that are ours: those of the authorities."""
        self.tokens = {token.id: token for token in tokens}
        self.identities = {identity.id: identity for identity in identities}
        self.pending: dict[int, PendingWorker] = {}
        self.open_until = 0.0
        self.open_places = 0
        self._guesses: dict[str, list[float]] = {}

    def set_authorities(self, authorities: list[bytes], until: list[float]) -> None:
        """These are ours from now on."""
        self.authorities, self.until = authorities, until
        self.clusters = [cluster_id(authority) for authority in authorities]

    # ---- tokens ----

    def token_of(self, secret: bytes) -> TokenRecord | None:
        """The token with this secret; the comparison takes the same time whatever is wrong with it."""
        digest = secret_hash(secret)
        token = self.tokens.get(digest.hex()[:TOKEN_ID_CHARS])
        return token if token is not None and hmac.compare_digest(token.hash, digest) else None

    def token_state(self, token: TokenRecord, now: float) -> str:
        """valid, expired, used_up or revoked."""
        if token.revoked:
            return "revoked"
        if token.expires <= now:
            return "expired"
        return "used_up" if token.uses_left == 0 else "valid"

    # ---- the window ----

    def open(self, until: float) -> None:
        """Let pending workers in by themselves until then (Unix seconds)."""
        self.open_until, self.open_places = until, WINDOW_WORKERS_MAX

    def admits_all(self, now: float) -> bool:
        """Whether a worker without a token is let in; each takes a place of the window's."""
        if self.open_until <= now or not self.open_places:
            return False
        self.open_places -= 1
        return True

    # ---- guesses ----

    def may_guess(self, group: str, now: float) -> bool:
        """Whether an address may still try a secret."""
        times = self._guesses.get(group)
        return times is None or sum(time > now - GUESS_S for time in times) < GUESSES_MAX

    def guessed_wrong(self, group: str, now: float) -> None:
        """Count a wrong secret."""
        times = self._guesses.pop(group, [])
        while len(self._guesses) >= GUESSERS_MAX:
            del self._guesses[next(iter(self._guesses))]
        self._guesses[group] = [*times[-GUESSES_MAX + 1 :], now]

    # ---- identities ----

    def refusal(self, principal: Principal) -> tuple[str, str] | None:
        """Why the holder of a certificate is refused, as Goodbye's code and text; None if it is not, or has none."""
        if not principal.identity or self.insecure:
            return None
        if principal.authority not in self.clusters:
            return "not_allowed", "your certificate is not of this cluster; run: dctl join TOKEN"
        identity = self.identities.get(principal.identity)
        if identity is None or identity.role != principal.role:
            return "not_allowed", "this coordinator does not know your certificate; run: dctl join TOKEN"
        if identity.revoked or identity.removed:
            return (
                "revoked",
                "your certificate was revoked; ask who runs the cluster for a token, then: dctl join TOKEN",
            )
        return None

    def refused(self) -> list[str]:
        """The identities that are refused although their certificates are good."""
        return [one.id for one in self.identities.values() if one.revoked or one.removed]

    def choose_identity(self, wanted: str, spki: bytes, entropy: bytes) -> str:
        """The id under which a key is known: the wanted one if that is free or was this key's own, else a new one.

        Nobody becomes another by naming its id, whatever token it has.
        """
        known = self.identities.get(wanted)
        key = key_hash(spki)
        if wanted and (known is None or (hmac.compare_digest(known.key, key) and not (known.revoked or known.removed))):
            return wanted
        return hashlib.sha256(b"districomp identity 1" + entropy + key).hexdigest()[:16]

    def workers_called(self, text: str) -> list[IdentityRecord]:
        """The workers, not removed, that are meant by a name or an id."""
        own = self.identities.get(text)
        if own is not None and own.role == "worker" and not own.removed:
            return [own]
        return [
            one for one in self.identities.values() if one.role == "worker" and one.name == text and not one.removed
        ]

    # ---- pending workers ----

    def room_for(self, group: str) -> PendingWorker | bool:
        """Whether one more of an address may be pending; or who has to make room: the newest of the largest crowd."""
        crowds = Counter(one.group for one in self.pending.values())
        if crowds[group] >= PENDING_PER_ADDRESS_MAX:
            return False
        if len(self.pending) < PENDING_MAX:
            return True
        largest, size = crowds.most_common(1)[0]
        if size <= crowds[group] + 1:
            return False
        return next(one for one in reversed(self.pending.values()) if one.group == largest)

    def words(self, spki: bytes, nonce: bytes) -> str:
        """What the pending machine shows too."""
        return pairing_words(self.authorities[0], spki, nonce)

    def pending_called(self, text: str) -> list[PendingWorker]:
        """The pending workers that are meant by a name or an id."""
        return [one for one in self.pending.values() if text in (one.asked.enrol.name, one.asked.enrol.worker)]


def key_hash(spki: bytes) -> bytes:
    """What is kept of a public key (SubjectPublicKeyInfo, DER)."""
    return hashlib.sha256(spki).digest()
