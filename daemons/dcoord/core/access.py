"""What may be fetched from and brought to the data port: grants, for exactly what is needed."""

from typing import TYPE_CHECKING, Final

from dcoord.core import grants
from dcoord.core.effects import Send
from dcoord.core.fleet import Worker
from dcoord.core.rights import Principal, sees
from dcoord.core.task import Lease
from districomp.messages import AskGrant, Granted, Refused
from districomp.model import parse_task, task_text

if TYPE_CHECKING:
    from dcoord.core.core import Core

_BLOBS: Final = "/blobs/"
_DIGEST_CHARS: Final = 64


def on_ask_grant(core: "Core", peer: int, principal: Principal, message: AskGrant) -> None:
    """Mint what is asked for if the asker may have it."""
    worker = core.fleet.by_peer.get(peer)
    allowed = _worker_needs(worker, message) if worker is not None else _client_may(core, principal, message)
    if not allowed:
        text = f"you may not {message.verb:.10} {message.path:.100}"
        core.effects.append(Send(peer, Refused(message.request, "not_allowed", text)))
        return
    grant = mint(core, principal, message.verb, message.path, message.lease)
    core.effects.append(Send(peer, Granted(message.request, grant, grants.GRANT_S)))


def mint(core: "Core", principal: Principal, verb: str, path: str, lease: int) -> str:
    """A grant's text; '' if the coordinator is insecure, where none is needed."""
    if core.settings.insecure:
        return ""
    grant = grants.Grant(
        verb, path, principal.identity, principal.role, principal.user, lease, core.now + grants.GRANT_S
    )
    return grants.mint(core.settings.grant_key, grant)


def item_grant(core: "Core", worker: Worker, lease: int, job: int, index: int) -> str:
    """The grant that a lease with a large item brings along."""
    return mint(core, core.principals[worker.peer], "GET", f"/tasks/{task_text(job, index)}", lease)


def _worker_needs(worker: Worker, message: AskGrant) -> bool:
    lease = worker.leases.get(message.lease)
    if lease is None:
        return False
    if message.verb == "PUT":
        return _is_blob(message.path)
    return message.verb == "GET" and message.path in _readable(lease)


def _readable(lease: Lease) -> list[str]:
    """What a lease needs to read."""
    paths = [f"/tasks/{task_text(lease.job.id, lease.index)}"]
    bundle = lease.job.definition.bundle
    return [*paths, f"/bundles/{bundle}"] if bundle else paths


def _client_may(core: "Core", principal: Principal, message: AskGrant) -> bool:
    if message.verb == "SESSION":
        return message.path == ""
    if message.verb == "PUT":
        return principal.role in ("submit", "admin") and _is_blob(message.path)
    noun, _, task = message.path[1:].partition("/")
    if message.verb != "GET" or noun not in ("tasks", "results") or not message.path.startswith("/"):
        return False
    try:
        number, _index = parse_task(task)
    except ValueError:
        return False
    job = core.jobs.get(number)
    return job is not None and sees(principal, job.record.user)


def _is_blob(path: str) -> bool:
    digest = path.removeprefix(_BLOBS)
    return path.startswith(_BLOBS) and len(digest) == _DIGEST_CHARS and all(c in "0123456789abcdef" for c in digest)
