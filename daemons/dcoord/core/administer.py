"""What an admin does to trust: tokens made and revoked, workers let in and revoked, a new authority."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec.structs import replace

from dcoord.core import enrol, join
from dcoord.core.effects import RefusedChanged, Rotate, Send
from dcoord.core.events import AuthoritiesChanged, Received
from dcoord.core.records import IdentityRecord, TokenRecord
from dcoord.core.trust import TOKEN_ID_CHARS, TOKENS_MAX, PendingWorker
from districomp.documents import AuthorityDocument, EnrolmentDocument, TokenDocument, WorkerDocument, iso_time
from districomp.messages import (
    Admit,
    CreateToken,
    OpenEnrolment,
    Refused,
    Reply,
    Revoke,
    RevokeToken,
    RotateAuthority,
)
from districomp.tokens import ROLES, JoinToken, authority_hash, format_token, secret_hash

if TYPE_CHECKING:
    from dcoord.core.core import Core

TOKEN_S_MAX: Final = 3650 * 86400.0
USES_MAX: Final = 1_000_000_000
LABELS_MAX: Final = 64
LABEL_CHARS_MAX: Final = 63
OVERLAP_S_MAX: Final = 3650 * 86400.0
WINDOW_S_MAX: Final = 7 * 86400.0

Command = CreateToken | RevokeToken | Admit | Revoke | OpenEnrolment | RotateAuthority


class _RefusalError(Exception):
    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


def on_command(core: "Core", event: Received, message: Command) -> None:
    """Carry a command out: Reply or Refused."""
    try:
        if core.trust.insecure:
            raise _RefusalError("insecure", "this coordinator is insecure: it has no tokens and no authority")
        if core.degraded:
            raise _RefusalError("degraded", core.degraded)
        documents = _carry_out(core, event, message)
    except _RefusalError as refusal:
        core.effects.append(Send(event.peer, Refused(message.request, refusal.code, str(refusal))))
        return
    if documents is not None:
        _reply(core, event.peer, message.request, documents)


def _carry_out(core: "Core", event: Received, message: Command) -> Iterable[msgspec.Struct] | None:
    match message:
        case CreateToken():
            return [_create_token(core, message, event.entropy)]
        case RevokeToken():
            return [_revoke_token(core, message)]
        case Admit():
            return [_admit(core, message)]
        case Revoke():
            return [_revoke(core, message)]
        case OpenEnrolment():
            return [_open(core, message)]
        case RotateAuthority():
            if not 0 <= message.overlap_s <= OVERLAP_S_MAX:
                raise _RefusalError("bad_request", "an overlap is from 0s to 3650d")
            core.effects.append(Rotate(event.peer, message.request, message.overlap_s))
            return None


# ---- tokens ----


def token_documents(core: "Core") -> list[TokenDocument]:
    """`dctl token list`."""
    return [_token_document(core, token) for token in core.trust.tokens.values()]


def _token_document(core: "Core", token: TokenRecord) -> TokenDocument:
    return TokenDocument(
        id=token.id,
        role=token.role,
        created=iso_time(token.created) or "",
        expires=iso_time(token.expires) or "",
        uses_left=token.uses_left,
        used=token.used,
        labels=token.labels,
        state=core.trust.token_state(token, core.now),
    )


def _create_token(core: "Core", message: CreateToken, secret: bytes) -> TokenDocument:
    if message.role not in ROLES.values():
        raise _RefusalError(
            "bad_request", f"there is no role {message.role!r:.40}; those are {', '.join(ROLES.values())}"
        )
    if not 0 < message.expires_s <= TOKEN_S_MAX:
        raise _RefusalError("bad_request", "a token is good for more than 0s and at most 3650d")
    if message.uses is not None and not 1 <= message.uses <= USES_MAX:
        raise _RefusalError("bad_request", f"a token can be used from 1 to {USES_MAX} times")
    if len(message.labels) > LABELS_MAX or any(
        not 0 < len(label) <= LABEL_CHARS_MAX or not label.isprintable() for label in message.labels
    ):
        raise _RefusalError("bad_request", f"labels are at most {LABELS_MAX}, of 1 to {LABEL_CHARS_MAX} characters")
    _make_room(core)
    digest = secret_hash(secret)
    identifier = digest.hex()[:TOKEN_ID_CHARS]
    if identifier in core.trust.tokens:
        raise _RefusalError("busy", "the new token's id is taken by chance; create it again")
    token = TokenRecord(
        identifier, digest, message.role, core.now, core.now + message.expires_s, message.uses, 0, list(message.labels)
    )
    core.trust.tokens[token.id] = token
    core.effects.append(token)
    document = _token_document(core, token)
    document.token = format_token(JoinToken(message.role, authority_hash(core.trust.authorities[0]), secret))
    return document


def _make_room(core: "Core") -> None:
    """Refuse to grow for ever. Only those count that can still be used."""
    valid = sum(core.trust.token_state(token, core.now) == "valid" for token in core.trust.tokens.values())
    if valid >= TOKENS_MAX:
        raise _RefusalError("busy", f"there are {TOKENS_MAX} valid tokens already; revoke some first")


def _revoke_token(core: "Core", message: RevokeToken) -> TokenDocument:
    token = core.trust.tokens.get(message.token)
    if token is None:
        raise _RefusalError("unknown_token", f"there is no token {message.token!r:.40}; see: dctl token list")
    token = replace(token, revoked=True)
    core.trust.tokens[token.id] = token
    core.effects.append(token)
    for identity in [one for one in core.trust.identities.values() if one.token == token.id]:
        _refuse_identity(core, identity, removed=identity.removed)
    core.effects.append(RefusedChanged())
    return _token_document(core, token)


# ---- workers ----


def _admit(core: "Core", message: Admit) -> WorkerDocument:
    found = core.trust.pending_called(message.worker)
    if not found:
        raise _RefusalError("unknown_worker", f"no worker {message.worker!r:.80} is pending; see: dctl worker list")
    matching = [one for one in found if one.words == message.words]
    if not matching:
        words = ", ".join(one.words for one in found[:10])
        raise _RefusalError(
            "bad_words",
            f"the words of {message.worker!r:.80} are {words}; compare them with those on the machine itself",
        )
    pending = matching[0]
    enrol.admit_pending(core, pending)
    return pending_document(pending, core.now)


def pending_document(pending: PendingWorker, now: float) -> WorkerDocument:
    """A pending worker's entry of `dctl worker list`."""
    asked = pending.asked.enrol
    return WorkerDocument(
        worker=asked.worker,
        name=asked.name,
        state="pending",
        slots=asked.slots,
        running=0,
        arch=asked.machine.arch,
        memory_bytes=asked.machine.memory_bytes,
        address=pending.address,
        last_seen_s=round(max(0.0, now - pending.since), 3),
        words=pending.words,
    )


def _revoke(core: "Core", message: Revoke) -> WorkerDocument:
    found = core.trust.workers_called(message.worker)
    if not found:
        raise _RefusalError("unknown_worker", f"there is no worker {message.worker!r:.80}; see: dctl worker list")
    if len(found) > 1:
        ids = ", ".join(one.id for one in found[:10])
        raise _RefusalError(
            "ambiguous", f"{len(found)} workers are called {message.worker!r:.80}: {ids}; name one by its id"
        )
    identity = _refuse_identity(core, found[0], removed=message.remove)
    core.effects.append(RefusedChanged())
    return revoked_document(identity, core.now)


def revoked_document(identity: IdentityRecord, now: float) -> WorkerDocument:
    """A revoked worker's entry of `dctl worker list`."""
    return WorkerDocument(
        worker=identity.id,
        name=identity.name,
        state="revoked",
        slots=0,
        running=0,
        arch="",
        memory_bytes=0,
        address="",
        last_seen_s=round(max(0.0, now - identity.since), 3),
    )


def _refuse_identity(core: "Core", identity: IdentityRecord, *, removed: bool) -> IdentityRecord:
    """Refuse a holder for good: written down, cut off, and what it holds goes to others at once."""
    refused = replace(identity, revoked=True, removed=removed)
    core.trust.identities[identity.id] = refused
    core.effects.append(refused)
    for peer, principal in list(core.principals.items()):
        if principal.identity == identity.id:
            enrol.cut(core, peer, "revoked", "your certificate was revoked")
    worker = core.fleet.by_id.get(identity.id)
    if worker is not None:
        join.lose(core, worker)
    core.fleet.lost.pop(identity.id, None)
    return refused


# ---- the window and the authority ----


def _open(core: "Core", message: OpenEnrolment) -> EnrolmentDocument:
    if not 0 <= message.for_s <= WINDOW_S_MAX:
        raise _RefusalError("bad_request", "enrolment can be open for 0s (closed) to 7d")
    core.trust.open(core.now + message.for_s if message.for_s else 0.0)
    if message.for_s:
        enrol.admit_all(core)
    return EnrolmentDocument(iso_time(core.trust.open_until) if message.for_s else None)


def on_authorities_changed(core: "Core", event: AuthoritiesChanged) -> None:
    """The driver has made, or ended, an authority."""
    enrol.on_authorities_changed(core, event)
    if event.rotated is not None:
        former = {
            cluster: iso_time(until) or ""
            for cluster, until in zip(core.trust.clusters[1:], core.trust.until[1:], strict=True)
        }
        _reply(core, *event.rotated, [AuthorityDocument(core.settings.cluster, former)])


def _reply(core: "Core", peer: int, request: int, documents: Iterable[msgspec.Struct]) -> None:
    core.effects.append(Send(peer, Reply(request, [msgspec.msgpack.encode(document) for document in documents])))
