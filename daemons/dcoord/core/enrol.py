"""Guests become workers and clients: enrolment, renewal, and the end of a certificate.

A guest says once what it wants, is answered, and its connection ends; only a pending worker's stays, until a person
lets it in. A token's use is written down before the certificate leaves.
"""

from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from dcoord.core.effects import Close, Send, Sign
from dcoord.core.events import AuthoritiesChanged, Received
from dcoord.core.join import NAME_CHARS_MAX, on_gone, refuse_version
from dcoord.core.records import IdentityRecord, TokenRecord
from dcoord.core.rights import Principal
from dcoord.core.trust import Asked, PendingWorker, key_hash
from districomp.addresses import address_group, host_of
from districomp.errors import RemoteProtocolError
from districomp.messages import Authorities, Enrol, HelloGuest, Pending, Refused, Renew
from districomp.tokens import ROLES, SECRET_BYTES

if TYPE_CHECKING:
    from dcoord.core.core import Core

_STATE_TEXTS: Final = {
    "expired": "this token has expired",
    "used_up": "this token has been used as often as it may be",
    "revoked": "this token was revoked",
}


def on_hello_guest(core: "Core", peer: int, hello: HelloGuest) -> None:
    """Somebody without a certificate: tell it who we are; it cannot believe that yet."""
    refusal = refuse_version(hello.version)
    if refusal is None and core.trust.insecure:
        refusal = "insecure", "this coordinator is insecure: nobody needs to enrol, and nobody can"
    if refusal is not None:
        core.effects.append(Close(peer, *refusal))
        return
    settings = core.settings
    core.effects.append(Send(peer, Authorities(settings.cluster, settings.name, core.trust.authorities)))


def on_enrol(core: "Core", event: Received, principal: Principal, message: Enrol) -> None:
    """A guest wants a certificate: Sign, Pending, or Refused with the reason; never silence."""
    if event.peer in core.trust.pending:
        raise RemoteProtocolError("Enrol: this connection is pending already")
    refusal = _refuse(core, event, message)
    token: TokenRecord | None = None
    if refusal is None and principal.role != "guest":
        # By the control socket: the system says who that is.
        if message.role != "worker":
            refusal = "not_allowed", "the control socket needs no certificate; only a worker asks for one there"
    elif refusal is None and message.secret:
        token, refusal = _redeem(core, event, message)
    elif refusal is None and message.role != "worker":
        refusal = "need_token", f"a client needs a token; ask for one made by: dctl token create {message.role}"
    elif refusal is None and not core.trust.admits_all(core.now):
        refusal = _await_person(core, event, message)
        if refusal is None:
            return
    if refusal is not None:
        refuse_guest(core, event.peer, message.request, *refusal)
        return
    _admit(core, event.peer, Asked(message, event.spki, event.entropy), token)


def _refuse(core: "Core", event: Received, message: Enrol) -> tuple[str, str] | None:
    """What is wrong with the request itself."""
    if core.trust.insecure:
        return "insecure", "this coordinator is insecure: nobody needs to enrol, and nobody can"
    if core.degraded:
        return "degraded", core.degraded
    if event.fault is not None:
        return event.fault
    if message.role not in ROLES.values():
        return "bad_request", f"there is no role {message.role!r:.40}; those are {', '.join(ROLES.values())}"
    if not 0 < len(message.name) <= NAME_CHARS_MAX or not message.name.isprintable():
        return "bad_request", f"a name is 1 to {NAME_CHARS_MAX} printable characters"
    worker = message.worker
    if len(worker) > 64 or not worker.isascii() or (worker and not worker.isalnum()):
        return "bad_request", "a worker's id is at most 64 letters and digits"
    if len(message.secret) not in (0, SECRET_BYTES):
        return "bad_token", "this token is damaged: copy it whole"
    return None


def _redeem(core: "Core", event: Received, message: Enrol) -> tuple[TokenRecord | None, tuple[str, str] | None]:
    """Use a token. Too many wrong ones of an address, and it has to wait; others do not."""
    group = address_group(host_of(event.address))
    if not core.trust.may_guess(group, core.now):
        return None, ("too_many", "too many wrong tokens came from your address; try again in a minute")
    token = core.trust.token_of(message.secret)
    if token is None:
        core.trust.guessed_wrong(group, core.now)
        return None, ("bad_token", "this coordinator does not know this token; make one with: dctl token create")
    state = core.trust.token_state(token, core.now)
    if state != "valid":
        return None, (f"token_{state}", f"{_STATE_TEXTS[state]}; make a new one with: dctl token create {token.role}")
    if token.role != message.role:
        return None, ("bad_token", f"this token is for the role {token.role}, not {message.role}")
    left = None if token.uses_left is None else token.uses_left - 1
    token = core.trust.tokens[token.id] = replace(token, uses_left=left, used=token.used + 1)
    core.effects.append(token)
    return token, None


def _await_person(core: "Core", event: Received, message: Enrol) -> tuple[str, str] | None:
    """Make it pending, or say why not."""
    group = address_group(host_of(event.address))
    for other in list(core.trust.pending.values()):
        if other.asked.spki == event.spki:
            end_pending(core, other.peer)
            core.effects.append(Close(other.peer, "replaced", "the same key asks again on a newer connection"))
    room = core.trust.room_for(group)
    if room is False:
        return "busy", "too many workers are pending; let some in with: dctl worker approve NAME"
    if isinstance(room, PendingWorker):
        end_pending(core, room.peer)
        refuse_guest(
            core, room.peer, room.asked.enrol.request, "busy", "too many of your address are pending; try again later"
        )
    words = core.trust.words(event.spki, event.entropy)
    core.trust.pending[event.peer] = PendingWorker(
        event.peer, Asked(message, event.spki, event.entropy), words, event.address, group, core.now
    )
    core.effects.append(Send(event.peer, Pending(message.request, event.entropy)))
    return None


def admit_pending(core: "Core", pending: PendingWorker) -> None:
    """A person, or the open window, lets it in."""
    end_pending(core, pending.peer)
    _admit(core, pending.peer, pending.asked, None)


def admit_all(core: "Core") -> None:
    """Let every pending worker in."""
    for pending in list(core.trust.pending.values()):
        admit_pending(core, pending)


def end_pending(core: "Core", peer: int) -> None:
    """It is pending no longer."""
    core.trust.pending.pop(peer, None)


def _admit(core: "Core", peer: int, asked: Asked, token: TokenRecord | None) -> None:
    """Write the identity down, and have its certificate made after that."""
    message = asked.enrol
    wanted = message.worker if message.role == "worker" else ""
    chosen = core.trust.choose_identity(wanted, asked.spki, asked.entropy)
    identity = IdentityRecord(
        chosen,
        message.role,
        message.name,
        token.id if token is not None else "",
        list(token.labels) if token is not None else [],
        core.now,
        core.now + core.settings.certificate_s,
        key=key_hash(asked.spki),
    )
    core.trust.identities[chosen] = identity
    core.effects.append(identity)
    core.effects.append(Sign(peer, message.request, message.csr, message.role, chosen, message.name))
    # It is answered, and has to come again as who it is now.
    core.principals.pop(peer, None)


def on_renew(core: "Core", event: Received, principal: Principal, message: Renew) -> None:
    """A new certificate for a new key, over the connection of the old one, which lives on by the new one."""
    identity = core.trust.identities.get(principal.identity)
    if identity is None:
        refusal: tuple[str, str] | None = ("not_allowed", "you have no certificate to renew")
    else:
        refusal = ("degraded", core.degraded) if core.degraded else event.fault
    if refusal is not None or identity is None:
        assert refusal is not None
        core.effects.append(Send(event.peer, Refused(message.request, *refusal)))
        return
    expires = core.now + core.settings.certificate_s
    renewed = replace(identity, expires=expires, key=key_hash(event.spki))
    core.trust.identities[identity.id] = renewed
    core.effects.append(renewed)
    core.effects.append(Sign(event.peer, message.request, message.csr, identity.role, identity.id, identity.name))
    core.principals[event.peer] = replace(principal, expires=expires, authority=core.settings.cluster)
    watch_end(core, expires)


def watch_end(core: "Core", expires: float) -> None:
    """See that a connection is cut when its certificate ends (Unix seconds; 0: it has none).

    One timer for all, at the next end: a client that connects every second must not leave one behind each time.
    """
    if not expires or (core.certificates_due is not None and core.certificates_due <= expires):
        return
    core.certificates_due = expires

    def look(now: float) -> None:
        if core.certificates_due != expires:
            return  # a sooner one has looked already
        core.certificates_due = None
        for peer, principal in list(core.principals.items()):
            if principal.expires and principal.expires <= now:
                cut(core, peer, "expired", "your certificate has expired; it can be had anew with: dctl join TOKEN")
        ends = [principal.expires for principal in core.principals.values() if principal.expires]
        watch_end(core, min(ends, default=0.0))

    core.schedule(max(0.0, expires - core.now), look)


def cut(core: "Core", peer: int, code: str, text: str) -> None:
    """Close a connection; from now on nothing of it is heard."""
    core.principals.pop(peer, None)
    on_gone(core, peer)
    core.effects.append(Close(peer, code, text))


def refuse_guest(core: "Core", peer: int, request: int, code: str, text: str) -> None:
    """Answer, and end the connection: a guest has one try each."""
    core.effects.append(Send(peer, Refused(request, code, text)))
    core.principals.pop(peer, None)
    core.effects.append(Close(peer, code, text))


def on_authorities_changed(core: "Core", event: AuthoritiesChanged) -> None:
    """There is a new authority, or an old one has ended: who is known by that alone has to go."""
    core.trust.set_authorities(event.authorities, event.until)
    core.settings = replace(core.settings, cluster=core.trust.clusters[0], grant_key=event.grant_key)
    for peer, principal in list(core.principals.items()):
        if principal.authority and principal.authority not in core.trust.clusters:
            cut(core, peer, "expired", "your certificate's authority has ended; run: dctl join TOKEN")
