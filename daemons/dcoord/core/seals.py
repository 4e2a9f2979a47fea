"""Seals: proof of a lease that a worker keeps, for when the coordinator no longer knows who had it.

Leases are given without a write each, so after a restart the journal does not say which worker had a task;
the seal of its Assign does. Pure: one HMAC an Assign, nothing a task. The key is the journal's own
(`Restored.seal_key`), because a seal is good for exactly as long as that journal's leases are.
"""

import hashlib
import hmac
from typing import TYPE_CHECKING, Final

import msgspec

from dcoord.core.fleet import Worker
from districomp.errors import RemoteProtocolError
from districomp.messages import Sealed
from districomp.model import QUEUED

if TYPE_CHECKING:
    from dcoord.core.core import Core

SEAL_BYTES: Final = 16


def seal(key: bytes, worker: str, job: int, lease: int, indexes: list[int]) -> bytes:
    """The seal of leases lease, lease + 1, ... of these tasks of a job, held by the worker with this id."""
    body = msgspec.msgpack.encode((worker, job, lease, indexes))
    return hmac.digest(key, b"districomp lease 1" + body, hashlib.sha256)[:SEAL_BYTES]


def on_sealed(core: "Core", worker: Worker, message: Sealed) -> None:
    """Take note of leases of before a restart that a worker proves, until its inventory is complete.

    Only those of tasks that are still wanted, so that nobody makes the coordinator remember more than it has to do.
    RemoteProtocolError for one that comes too late. A seal of another journal is passed over: its leases are not ours.
    """
    if worker.is_ready:
        raise RemoteProtocolError("Sealed: comes before the inventory")
    expected = seal(core.seal_key, worker.id, message.job, message.lease, message.indexes)
    if not hmac.compare_digest(message.seal, expected):
        return
    job = core.active.get(message.job)
    if job is None or message.lease + len(message.indexes) > core.fence:
        return
    for place, index in enumerate(message.indexes):
        # Of a journal that is a copy of before, as people put one back, a job of this number may have been another.
        if index < job.leased_before and job.states[index] == QUEUED:
            worker.sealed[message.lease + place] = job.id, index
