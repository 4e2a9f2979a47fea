"""A coordinator's core that is not insecure, and who comes to it: guests, workers, submitters, an admin."""

import hashlib

import msgspec

from dcoord.core.effects import Effect, Sign
from dcoord.core.events import AuthoritiesChanged, Received
from dcoord.core.records import Restored
from dcoord.core.rights import GUEST, Principal
from districomp.documents import TokenDocument
from districomp.messages import (
    PROTOCOL_VERSION,
    CreateToken,
    Enrol,
    HelloClient,
    HelloGuest,
    HelloWorker,
    Inventory,
    Message,
    Refused,
    Reply,
    Welcome,
)
from districomp.model import Machine
from districomp.tokens import cluster_id, parse_token
from tests.unit.corelab import Lab

OLD, NEW = b"the certificate of an authority", b"that of another one"
KEY = b"k" * 32
LIFETIME_S = 3000.0
FAR = 1e10
ADMIN = Principal("admin", user="root", name="root")


def trusting(restored: Restored | None = None, now: float = 1_000_000.0) -> Lab:
    """A coordinator that is not insecure."""
    lab = Lab(restored, now, insecure=False, grant_key=KEY, certificate_s=LIFETIME_S)
    lab.feed(AuthoritiesChanged([OLD], [FAR], KEY))
    return lab


def others(lab: Lab, kind: type[Effect]) -> list[Effect]:
    """The effects of a kind so far, taken out."""
    found = [effect for effect in lab.others if isinstance(effect, kind)]
    lab.others = [effect for effect in lab.others if not isinstance(effect, kind)]
    return found


def say(lab: Lab, peer: int, message: Message, *, address: str = "10.0.0.1:5", spki: bytes = b"key") -> None:
    """A guest's message, with what the driver adds to it."""
    entropy = hashlib.sha256(b"%d %d" % (peer, len(lab.sent))).digest()[:16]
    lab.feed(Received(peer, message, lab.now, address, None, GUEST, entropy, spki))  # type: ignore[arg-type]


def enrol(lab: Lab, peer: int, secret: bytes = b"", role: str = "worker", **keys: str | bytes) -> Sign | None:
    """A guest comes and asks; the certificate that it is given, if any."""
    own = {"address": str(keys.pop("address", "10.0.0.1:5")), "spki": bytes(keys.pop("spki", b"key"))}  # type: ignore[arg-type]
    say(lab, peer, HelloGuest(PROTOCOL_VERSION, "test"), **own)  # type: ignore[arg-type]
    fields = {"worker": "w1" if role == "worker" else "", "name": "pc"} | keys
    say(lab, peer, Enrol(1, role, b"csr", secret, **fields), **own)  # type: ignore[arg-type]
    signs = others(lab, Sign)
    assert len(signs) <= 1
    return signs[0] if signs else None  # type: ignore[return-value]


def admin(lab: Lab, message: Message, peer: int = 900) -> None:
    """An admin's message, by the control socket."""
    if peer not in lab.core.principals:
        lab.receive(peer, HelloClient(PROTOCOL_VERSION, "test"), principal=ADMIN)
    lab.feed(Received(peer, message, lab.now, "local", None, None, b"entropy %8d" % len(lab.records)))  # type: ignore[arg-type]


def token(lab: Lab, role: str = "worker", expires_s: float = 1000.0, **keys: object) -> TokenDocument:
    """A new token."""
    admin(lab, CreateToken(1, role, expires_s, **keys))  # type: ignore[arg-type]
    return msgspec.msgpack.decode(lab.take(Reply)[-1].documents[0], type=TokenDocument)


def secret_of(document: TokenDocument) -> bytes:
    assert isinstance(document.token, str)
    return parse_token(document.token).secret


def refusal(lab: Lab, peer: int) -> str:
    """The code of the last refusal of a peer."""
    return lab.take(Refused, peer)[-1].code


def certified(
    role: str, identity: str, lab: Lab, *, authority: bytes = OLD, expires_s: float = LIFETIME_S
) -> Principal:
    """The holder of a certificate."""
    return Principal(role, identity, f"pc/{identity}", "pc", lab.now + expires_s, cluster_id(authority))


def come(lab: Lab, peer: int, worker: str = "w1", principal: Principal | None = None, slots: int = 1) -> None:
    """A worker connects with its certificate, and holds nothing."""
    who = principal or certified("worker", worker, lab)
    lab.receive(peer, HelloWorker(PROTOCOL_VERSION, "", worker, "pc", slots, Machine(), 1), principal=who)
    if peer in lab.core.principals:
        lab.receive(peer, Inventory(0, [], [], [], [], True))


def submitter(lab: Lab, peer: int, identity: str) -> Principal:
    """A client of role submit connects."""
    sign = enrol(lab, peer + 5000, secret_of(token(lab, "submit")), "submit", spki=identity.encode(), name=identity)
    assert sign is not None
    who = certified("submit", sign.identity, lab)
    lab.receive(peer, HelloClient(PROTOCOL_VERSION, "test"), principal=who)
    lab.take(Welcome)
    return who
