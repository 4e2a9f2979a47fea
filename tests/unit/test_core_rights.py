"""Who may send what, and what may be had of others: every role against every message, jobs, and grants."""

from typing import get_args

import msgspec
import pytest

from dcoord.core import grants
from dcoord.core.events import Received
from dcoord.core.records import IdentityRecord
from dcoord.core.rights import MAY, Principal
from districomp.messages import (
    PROTOCOL_VERSION,
    Accepted,
    AnyMessage,
    AskGrant,
    Assign,
    Cancel,
    CreateToken,
    Granted,
    HelloClient,
    HelloGuest,
    Message,
    Reply,
    Reports,
    Retry,
    Submit,
    Welcome,
)
from districomp.model import Blob, Machine
from tests.unit.corelab import Lab
from tests.unit.trustlab import FAR, KEY, certified, come, enrol, refusal, say, secret_of, submitter, token, trusting

# ---- the table ----

MINIMAL: dict[str, object] = {
    "version": PROTOCOL_VERSION, "program": "x", "machine": Machine(), "params": {}, "items": [], "request": 3,
    "role": "worker", "csr": b"x", "verb": "GET", "path": "/", "expires_s": 1.0, "for_s": 1.0, "overlap_s": 1.0,
    "slots": 1, "pid": 1, "job": 1, "index": 0, "serial": 1, "lease": 1, "epoch": 1, "lease_s": 1.0, "now": 0.0,
    "nonce": b"", "seal": b"", "grant": "", "renew_s": 1.0, "certificate": b"", "key": b"", "grant_key": b"", "wait": False,
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
