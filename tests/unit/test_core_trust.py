"""Who is let in, by what, and for how long: the core's trust, without cryptography."""

import hashlib
from typing import get_args

import msgspec
import pytest

from dcoord.core import grants
from dcoord.core.effects import Effect, RefusedChanged, Rotate, Sign
from dcoord.core.events import AuthoritiesChanged, Received
from dcoord.core.records import IdentityRecord, OutcomeRecord, Restored, TokenRecord
from dcoord.core.rights import GUEST, MAY, Principal
from dcoord.core.trust import GUESS_S, GUESSES_MAX, PENDING_PER_ADDRESS_MAX
from districomp.documents import TokenDocument
from districomp.messages import (
    PROTOCOL_VERSION,
    Accepted,
    Admit,
    AnyMessage,
    AskGrant,
    Assign,
    Authorities,
    Cancel,
    CreateToken,
    Enrol,
    Granted,
    Heartbeat,
    HelloClient,
    HelloGuest,
    HelloWorker,
    Inventory,
    Machine,
    Message,
    OpenEnrolment,
    Pending,
    Refused,
    Renew,
    Reply,
    Reports,
    Retry,
    Revoke,
    RevokeToken,
    RotateAuthority,
    Submit,
    Welcome,
)
from districomp.model import Blob
from districomp.tokens import authority_hash, cluster_id, pairing_words, parse_token
from tests.unit.corelab import Lab, principal_of

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


# ---- the table ----

MINIMAL: dict[str, object] = {
    "version": PROTOCOL_VERSION, "program": "x", "machine": Machine(), "params": {}, "items": [], "request": 3,
    "role": "worker", "csr": b"x", "verb": "GET", "path": "/", "expires_s": 1.0, "for_s": 1.0, "overlap_s": 1.0,
    "slots": 1, "pid": 1, "job": 1, "index": 0, "serial": 1, "lease": 1, "epoch": 1, "lease_s": 1.0, "now": 0.0,
    "nonce": b"", "grant": "", "renew_s": 1.0, "certificate": b"", "key": b"", "grant_key": b"", "wait": False,
    "after": 0, "ended": False, "last": True, "numbers": None, "tasks": 1, "body": b"", "noun": "status",
}  # fmt: skip
LISTS = {
    "programs", "found", "leases", "times", "indexes", "attempts", "started", "jobs", "authorities", "chain", "refused",
    "documents", "rows", "serials",
}  # fmt: skip


def made(kind: type[Message]) -> Message:
    """A message of a kind, with whatever it needs."""
    fields = {
        field.encode_name: [] if field.encode_name in LISTS else MINIMAL.get(field.encode_name, "x")
        for field in msgspec.structs.fields(kind)
        if field.required
    }
    return kind(**fields)


@pytest.mark.parametrize("role", sorted(MAY))
def test_every_role_may_send_what_the_table_says_and_nothing_else(role: str) -> None:
    kinds: tuple[type[Message], ...] = get_args(AnyMessage)
    assert len(kinds) > 40
    for kind in kinds:
        if kind in MAY[role]:
            continue
        lab = trusting()
        lab.submit()
        message, before = made(kind), len(lab.records)
        identity = "w1" if role in ("worker", "submit", "read", "admin") else ""
        if identity:
            lab.core.trust.identities["w1"] = IdentityRecord("w1", role, "pc", "", [], 0.0, FAR)
        lab.core.principals[7] = Principal(role, identity, "u", "pc")
        lab.receive(7, message, principal=lab.core.principals[7])
        if hasattr(message, "request"):
            assert refusal(lab, 7) == "not_allowed", kind
        else:
            assert [(close.peer, close.code) for close in lab.closed] == [(7, "not_allowed")], kind
            assert 7 not in lab.core.principals
        assert len(lab.records) == before, kind
        assert not lab.others, kind


def test_whoever_has_proved_nothing_is_not_heard() -> None:
    lab = trusting()
    for message in (Submit(1, "", "work", {}, count=1), made(Reports), CreateToken(2, "admin", 1.0)):
        lab.feed(Received(5, message, lab.now))  # type: ignore[arg-type]
    lab.feed(Received(6, HelloClient(PROTOCOL_VERSION, "x"), lab.now))
    lab.feed(Received(6, Submit(1, "", "work", {}, count=1), lab.now))
    assert not lab.records
    assert not [message for _, message in lab.sent if isinstance(message, Accepted | Reply | Welcome)]


# ---- tokens ----


def test_a_token_lets_a_worker_in() -> None:
    lab = trusting()
    made_token = token(lab, uses=2, labels=["room-12"])
    assert isinstance(made_token.token, str)
    parsed = parse_token(made_token.token)
    assert (parsed.role, parsed.authority) == ("worker", authority_hash(OLD))
    assert secret_of(made_token) not in b"".join(msgspec.msgpack.encode(record) for record in lab.records)
    sign = enrol(lab, 1, secret_of(made_token))
    assert sign is not None
    assert (sign.peer, sign.role, sign.identity, sign.csr) == (1, "worker", "w1", b"csr")
    assert lab.take(Authorities, 1)[0].authorities == [OLD]
    come(lab, 2)
    (welcome,) = lab.take(Welcome, 2)
    assert (welcome.role, welcome.authorities, welcome.renew_s) == ("worker", [OLD], LIFETIME_S * 2 / 3)
    assert lab.core.fleet.by_id["w1"].machine.labels == ["room-12"]


def test_a_token_is_used_as_often_as_it_may_be_also_across_a_restart() -> None:
    lab = trusting()
    secret = secret_of(token(lab, uses=2))
    assert enrol(lab, 1, secret)
    tokens = {record.id: record for record in lab.recorded(TokenRecord)}
    identities = lab.recorded(IdentityRecord)
    lab = trusting(Restored(2, "x", {}, [], [], 0, list(tokens.values()), identities), lab.now)
    assert enrol(lab, 2, secret, worker="w2", spki=b"other")
    assert enrol(lab, 3, secret, worker="w3", spki=b"third") is None
    assert refusal(lab, 3) == "token_used_up"
    come(lab, 9)
    assert lab.take(Welcome, 9)


@pytest.mark.parametrize(("after_s", "code"), [(999.9, ""), (1000.0, "token_expired")])
def test_a_token_expires(after_s: float, code: str) -> None:
    lab = trusting()
    secret = secret_of(token(lab, expires_s=1000.0))
    lab.advance(after_s)
    assert (enrol(lab, 1, secret) is None) == bool(code)
    if code:
        assert refusal(lab, 1) == code


def test_a_token_is_for_its_role_alone() -> None:
    lab = trusting()
    secret = secret_of(token(lab, "submit"))
    for peer, role in enumerate(("worker", "admin", "read"), 1):
        assert enrol(lab, peer, secret, role) is None
        assert refusal(lab, peer) == "bad_token"
    assert enrol(lab, 8, secret, "submit")


def test_a_revoked_token_lets_nobody_in_and_cuts_off_whom_it_let_in() -> None:
    lab = trusting()
    made_token = token(lab)
    enrol(lab, 1, secret_of(made_token))
    come(lab, 2)
    lab.submit()
    assert lab.leases(2)
    lab.closed.clear()
    admin(lab, RevokeToken(5, made_token.id))
    assert [(close.peer, close.code) for close in lab.closed] == [(2, "revoked")]
    assert others(lab, RefusedChanged)
    assert enrol(lab, 3, secret_of(made_token), worker="w3", spki=b"x") is None
    assert refusal(lab, 3) == "token_revoked"


def test_guesses_are_limited_by_address_and_a_right_token_works_from_elsewhere() -> None:
    lab = trusting()
    secret = secret_of(token(lab))
    for count, peer in enumerate(range(1000, 2000), 1):
        assert enrol(lab, peer, peer.to_bytes(16, "big")) is None
        assert refusal(lab, peer) == ("bad_token" if count <= GUESSES_MAX else "too_many")
    assert enrol(lab, 2000, secret) is None
    assert refusal(lab, 2000) == "too_many"
    assert enrol(lab, 2001, secret, address="10.0.0.2:5")
    lab.advance(GUESS_S)
    assert enrol(lab, 2002, secret, worker="w2", spki=b"2")


def test_the_addresses_of_one_ipv6_network_guess_together() -> None:
    lab = trusting()
    for peer in range(1, GUESSES_MAX + 2):
        enrol(lab, peer, b"x" * 16, address=f"[2001:db8::{peer:x}]:5")
    assert refusal(lab, GUESSES_MAX + 1) == "too_many"


# ---- pending ----


def test_without_a_token_a_worker_is_pending_and_gets_nothing() -> None:
    lab = trusting()
    lab.submit(3)
    assert enrol(lab, 1) is None
    (pending,) = lab.take(Pending, 1)
    lab.advance(100)
    assert {type(message) for peer, message in lab.sent if peer == 1} == {Authorities}
    words = pairing_words(OLD, b"key", pending.nonce)
    admin(lab, Admit(4, "pc", "lusab-babad-gutih"))
    assert refusal(lab, 900) == "bad_words"
    assert not others(lab, Sign)
    admin(lab, Admit(5, "pc", words))
    (sign,) = others(lab, Sign)
    assert (sign.peer, sign.request, sign.identity) == (1, 1, "w1")  # type: ignore[attr-defined]
    come(lab, 2)
    assert lab.take(Assign, 2)


def test_only_workers_can_be_pending() -> None:
    lab = trusting()
    for peer, role in enumerate(("submit", "read", "admin"), 1):
        assert enrol(lab, peer, role=role) is None
        assert refusal(lab, peer) == "need_token"


def test_the_open_window_lets_pending_workers_in_and_closes() -> None:
    lab = trusting()
    enrol(lab, 1)
    admin(lab, OpenEnrolment(6, 60.0))
    assert len(others(lab, Sign)) == 1
    assert enrol(lab, 2, worker="w2", spki=b"2")
    assert enrol(lab, 3, role="admin") is None
    lab.advance(60)
    assert enrol(lab, 4, worker="w4", spki=b"4") is None
    assert lab.take(Pending, 4)


def test_pending_workers_are_bounded_and_one_key_is_pending_once() -> None:
    lab = trusting()
    for peer in range(1, PENDING_PER_ADDRESS_MAX + 2):
        enrol(lab, peer, worker=f"w{peer}", spki=b"%d" % peer)
    assert refusal(lab, PENDING_PER_ADDRESS_MAX + 1) == "busy"
    enrol(lab, 5000, spki=b"1", address="10.0.0.9:1")
    assert (lab.closed[-1].peer, lab.closed[-1].code) == (1, "replaced")
    lab.gone(5000)
    lab.gone(2)
    assert len(lab.core.trust.pending) == PENDING_PER_ADDRESS_MAX - 2


# ---- identities ----


def test_nobody_becomes_another_by_naming_its_id() -> None:
    lab = trusting()
    secret = secret_of(token(lab))
    assert enrol(lab, 1, secret).identity == "w1"  # type: ignore[union-attr]
    thief = enrol(lab, 2, secret, spki=b"another key")
    assert thief is not None
    assert thief.identity != "w1"
    assert enrol(lab, 3, secret).identity == "w1", "its own key is itself again"  # type: ignore[union-attr]
    come(lab, 4, "w1", certified("worker", thief.identity, lab))
    assert lab.closed[-1].code == "not_allowed"
    assert 4 not in lab.core.fleet.by_peer


def test_certificates_that_are_not_good_here() -> None:
    lab = trusting()
    enrol(lab, 1, secret_of(token(lab)))
    wrong = {
        "unknown": certified("worker", "w9", lab),
        "other role": certified("admin", "w1", lab),
        "other cluster": certified("worker", "w1", lab, authority=NEW),
    }
    for peer, (_what, principal) in enumerate(wrong.items(), 10):
        lab.receive(peer, HelloWorker(PROTOCOL_VERSION, "", "w1", "pc", 1, Machine(), 1), principal=principal)
        lab.receive(peer, HelloClient(PROTOCOL_VERSION, "x"), principal=principal)
        assert (lab.closed[-1].peer, lab.closed[-1].code) == (peer, "not_allowed")
        assert not lab.take(Welcome, peer)


def test_a_revoked_worker_is_cut_off_its_tasks_go_elsewhere_and_it_is_not_heard() -> None:
    lab = trusting()
    secret = secret_of(token(lab))
    for peer, worker in ((1, "w1"), (2, "w2")):
        enrol(lab, peer + 100, secret, worker=worker, spki=worker.encode(), name=worker)
        come(lab, peer, worker)
    lab.submit(2)
    held = lab.leases(1)
    assert len(held) == 1
    lab.closed.clear()
    admin(lab, Revoke(7, "w1"))
    assert [(close.peer, close.code) for close in lab.closed] == [(1, "revoked")]
    before = len(lab.recorded(OutcomeRecord))
    lab.report(1, held)
    assert len(lab.recorded(OutcomeRecord)) == before
    lab.report(2, lab.leases(2))
    lab.report(2, lab.leases(2))
    assert lab.core.jobs[1].is_ended
    come(lab, 11, "w1")
    assert lab.closed[-1].code == "revoked"
    again = enrol(lab, 12, secret, spki=b"w1")
    assert again is not None
    assert again.identity != "w1", "revoked is for good, whoever has a token is somebody new"


def test_a_certificate_that_ends_on_a_live_connection_cuts_it_off() -> None:
    lab = trusting()
    enrol(lab, 1, secret_of(token(lab)))
    come(lab, 2, principal=certified("worker", "w1", lab, expires_s=10.0))
    lab.closed.clear()
    for _ in range(9):
        lab.advance(1.0)
        lab.receive(2, Heartbeat())
    assert not lab.closed
    lab.advance(1.1)
    assert [(close.peer, close.code) for close in lab.closed] == [(2, "expired")]


def test_a_renewed_certificate_does_not() -> None:
    lab = trusting()
    enrol(lab, 1, secret_of(token(lab)))
    come(lab, 2, principal=certified("worker", "w1", lab, expires_s=10.0))
    lab.closed.clear()
    lab.feed(Received(2, Renew(3, b"csr2"), lab.now, "", None, None, b"e" * 16, b"key2"))
    (sign,) = others(lab, Sign)
    assert (sign.identity, sign.csr) == ("w1", b"csr2")  # type: ignore[attr-defined]
    assert lab.recorded(IdentityRecord)[-1].expires == lab.now + LIFETIME_S
    lab.advance(12.0)
    assert not [close for close in lab.closed if close.code == "expired"]
    assert enrol(lab, 5, secret_of(token(lab)), spki=b"key2").identity == "w1"  # type: ignore[union-attr]


def test_an_authority_that_has_ended_cuts_off_whom_it_signed() -> None:
    lab = trusting()
    enrol(lab, 1, secret_of(token(lab)))
    come(lab, 2)
    lab.feed(AuthoritiesChanged([NEW, OLD], [FAR, lab.now + 100], KEY))
    assert lab.core.settings.cluster == cluster_id(NEW)
    assert 2 in lab.core.principals
    come(lab, 3)
    assert lab.take(Welcome, 3)
    lab.closed.clear()
    lab.feed(AuthoritiesChanged([NEW], [FAR], KEY))
    assert [(close.peer, close.code) for close in lab.closed] == [(3, "expired")]
    come(lab, 4)
    assert lab.closed[-1].code == "not_allowed"


def test_a_rotation_is_answered_when_it_is_done() -> None:
    lab = trusting()
    admin(lab, RotateAuthority(8, 3600.0))
    assert others(lab, Rotate) == [Rotate(900, 8, 3600.0)]
    assert not lab.take(Reply, 900)
    lab.feed(AuthoritiesChanged([NEW, OLD], [FAR, lab.now + 3600], KEY, (900, 8)))
    (reply,) = lab.take(Reply, 900)
    assert list(msgspec.msgpack.decode(reply.documents[0])["former"]) == [cluster_id(OLD)]


# ---- jobs of others ----


def test_a_submitter_has_its_own_jobs_alone() -> None:
    lab = trusting()
    anna, bert = submitter(lab, 20, "anna"), submitter(lab, 21, "bert")
    request_id = "11111111-2222-3333-4444-555555555555"
    lab.receive(20, Submit(1, request_id, "work", {}, count=1, user="bert"))
    (accepted,) = lab.take(Accepted, 20)
    assert lab.core.jobs[accepted.job].record.user == anna.user != bert.user
    for message in (Cancel(2, accepted.job), Retry(3, accepted.job), AskGrant(4, "GET", f"/results/{accepted.job}.0")):
        lab.receive(21, message)
        assert refusal(lab, 21) == "not_allowed"
    lab.receive(21, Submit(5, request_id, "work", {}, count=1))
    assert refusal(lab, 21) == "bad_request"
    assert not lab.core.jobs[accepted.job].is_ended
    lab.receive(20, Cancel(6, accepted.job))
    assert lab.core.jobs[accepted.job].is_ended


# ---- grants ----


def granted(lab: Lab, peer: int, verb: str, path: str, lease: int = 0) -> grants.Grant | None:
    """What is granted, None if it is refused."""
    lab.receive(peer, AskGrant(9, verb, path, lease))
    found = lab.take(Granted, peer)
    if not found:
        assert refusal(lab, peer) == "not_allowed"
        return None
    return grants.check(KEY, found[0].grant, lab.now)


def test_a_worker_is_granted_what_its_leases_need_and_nothing_else() -> None:
    lab = trusting()
    secret = secret_of(token(lab))
    for peer, worker in ((1, "w1"), (2, "w2")):
        enrol(lab, peer + 100, secret, worker=worker, spki=worker.encode())
        come(lab, peer, worker)
    blob = Blob(b"s" * 32, 100_000)
    job = lab.submit(items=[blob, blob], params={})
    (first,) = lab.take(Assign, 1)
    (second,) = lab.take(Assign, 2)
    brought = grants.check(KEY, first.grants[0], lab.now)
    own = f"/tasks/{job}.{first.indexes[0]}"
    assert (brought.verb, brought.path, brought.identity, brought.lease) == ("GET", own, "w1", first.lease)
    assert granted(lab, 1, "GET", own, first.lease) is not None
    upload = granted(lab, 1, "PUT", f"/blobs/{'a' * 64}", first.lease)
    assert upload is not None
    assert upload.expires == lab.now + grants.GRANT_S
    other = f"/tasks/{job}.{second.indexes[0]}"
    for verb, path, lease in (
        ("GET", other, first.lease),
        ("GET", other, second.lease),
        ("GET", own, second.lease),
        ("GET", own, 0),
        ("GET", f"/results/{job}.0", first.lease),
        ("GET", f"/blobs/{'a' * 64}", first.lease),
        ("PUT", "/blobs/../tasks/1.0", first.lease),
        ("PUT", f"/blobs/{'A' * 64}", first.lease),
        ("SESSION", "", first.lease),
        ("DELETE", own, first.lease),
    ):
        assert granted(lab, 1, verb, path, lease) is None, (verb, path, lease)
    lab.report(1, [(first.lease, job, first.indexes[0])])
    assert granted(lab, 1, "GET", own, first.lease) is None


def test_readers_are_granted_reading_and_guests_nothing() -> None:
    lab = trusting()
    job = lab.submit()
    sign = enrol(lab, 50, secret_of(token(lab, "read")), "read", spki=b"r")
    assert sign is not None
    lab.receive(51, HelloClient(PROTOCOL_VERSION, "x"), principal=certified("read", sign.identity, lab))
    assert granted(lab, 51, "GET", f"/results/{job}.0") is not None
    assert granted(lab, 51, "PUT", f"/blobs/{'a' * 64}") is None
    assert granted(lab, 51, "GET", "/results/99.0") is None
    session = granted(lab, 51, "SESSION", "")
    assert session is not None
    assert session.role == "read"
    say(lab, 60, HelloGuest(PROTOCOL_VERSION, "x"))
    say(lab, 60, AskGrant(1, "SESSION", ""))
    assert refusal(lab, 60) == "not_allowed"


def test_an_insecure_coordinator_enrols_nobody() -> None:
    lab = Lab()
    say(lab, 1, HelloGuest(PROTOCOL_VERSION, "x"))
    assert lab.closed[-1].code == "insecure"
    assert principal_of(HelloGuest(PROTOCOL_VERSION, "x")) is GUEST
    admin(lab, CreateToken(1, "worker", 10.0))
    assert refusal(lab, 900) == "insecure"
