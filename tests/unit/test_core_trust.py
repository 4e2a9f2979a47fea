"""Who is let in, by what, and for how long: the core's trust, without cryptography."""

import msgspec
import pytest

from dcoord.core.effects import RefusedChanged, Rotate, Sign
from dcoord.core.events import AuthoritiesChanged, Received
from dcoord.core.records import IdentityRecord, OutcomeRecord, Restored, TokenRecord
from dcoord.core.rights import GUEST
from dcoord.core.trust import GUESS_S, GUESSES_MAX, PENDING_MAX, PENDING_PER_ADDRESS_MAX
from districomp.messages import (
    PROTOCOL_VERSION,
    Admit,
    Assign,
    Authorities,
    CreateToken,
    Heartbeat,
    HelloClient,
    HelloGuest,
    HelloWorker,
    OpenEnrolment,
    Pending,
    Refused,
    Renew,
    Reply,
    Revoke,
    RevokeToken,
    RotateAuthority,
    Welcome,
)
from districomp.model import Machine
from districomp.tokens import authority_hash, cluster_id, pairing_words, parse_token
from tests.unit.corelab import Lab, principal_of
from tests.unit.trustlab import (
    FAR,
    KEY,
    LIFETIME_S,
    NEW,
    OLD,
    admin,
    certified,
    come,
    enrol,
    others,
    refusal,
    say,
    secret_of,
    token,
    trusting,
)

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


def test_a_crowd_of_one_address_does_not_keep_others_from_being_pending() -> None:
    lab = trusting()
    for peer in range(1, PENDING_MAX + 1):
        address = f"10.0.0.{peer % 4}:1"
        enrol(lab, peer, worker=f"w{peer}", spki=b"%d" % peer, address=address)
    lab.take(Refused)
    lab.closed.clear()
    enrol(lab, 5000, worker="real", spki=b"real", address="10.9.9.9:1")
    assert lab.take(Pending, 5000)
    assert len(lab.core.trust.pending) == PENDING_MAX
    (evicted,) = lab.closed
    assert (evicted.code, lab.take(Refused)[0].code) == ("busy", "busy")


def test_the_open_window_has_places_for_so_many() -> None:
    lab = trusting()
    admin(lab, OpenEnrolment(6, 60.0))
    lab.core.trust.open_places = 2
    assert enrol(lab, 1, worker="w1", spki=b"1")
    assert enrol(lab, 2, worker="w2", spki=b"2")
    assert enrol(lab, 3, worker="w3", spki=b"3") is None
    assert lab.take(Pending, 3)


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


def test_connections_that_come_and_go_leave_no_timer_behind() -> None:
    lab = trusting()
    enrol(lab, 1, secret_of(token(lab, "read")), "read", spki=b"r")
    identity = next(iter(lab.core.trust.identities))
    for peer in range(10, 200):
        who = certified("read", identity, lab)
        lab.receive(peer, HelloClient(PROTOCOL_VERSION, "x"), principal=who)
        lab.gone(peer)
        lab.advance(1.0)
    assert len(lab.core._timers) <= 2
    late, soon = certified("read", identity, lab), certified("read", identity, lab, expires_s=5.0)
    for peer, who in ((300, late), (301, soon), (302, late)):
        lab.receive(peer, HelloClient(PROTOCOL_VERSION, "x"), principal=who)
    lab.closed.clear()
    lab.advance(6.0)
    assert [close.peer for close in lab.closed] == [301]
    lab.advance(LIFETIME_S)
    assert [close.peer for close in lab.closed] == [301, 300, 302]


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


def test_an_insecure_coordinator_enrols_nobody() -> None:
    lab = Lab()
    say(lab, 1, HelloGuest(PROTOCOL_VERSION, "x"))
    assert lab.closed[-1].code == "insecure"
    assert principal_of(HelloGuest(PROTOCOL_VERSION, "x")) is GUEST
    admin(lab, CreateToken(1, "worker", 10.0))
    assert refusal(lab, 900) == "insecure"
