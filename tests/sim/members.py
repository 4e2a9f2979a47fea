"""Who may belong to the cluster, by what is on disk: what the coordinator does for others is found out.

A part of the oracle. Keeps its own books of tokens and identities, by the rules of docs/protocol.md and not by the core's code.
"""

from typing import Final

from dcoord.core.core import Core
from dcoord.core.records import IdentityRecord, Record, TokenRecord, WorkerRecord
from dcoord.core.rights import Principal
from districomp.outcome import Outcome
from tests.sim.faults import Tally
from tests.sim.promise import promise

LOST_REASONS: Final = ("worker_lost", "crash_limit", "outcome_unknown")
"""What the coordinator itself says of an attempt whose worker it has lost."""


class Members:
    """Tokens and identities as they were last committed."""

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        self.tokens: dict[str, TokenRecord] = {}
        self.identities: dict[str, IdentityRecord] = {}
        self.refused: dict[str, None] = {}
        """Identities that were revoked, from the record on."""
        self._refused_before: dict[str, None] = {}
        """Those of earlier commits."""
        self._revoked_now: list[str] = []
        self._given: dict[str, int] = {}

    def begin_commit(self) -> None:
        """Another commit: what was refused until now is refused for good."""
        self._refused_before = dict(self.refused)
        self._revoked_now.clear()

    def committed(self, record: Record) -> None:
        """A record is on disk."""
        match record:
            case TokenRecord():
                self._on_token(record)
            case IdentityRecord():
                self._on_identity(record)
            case WorkerRecord(present=True):
                promise(record.worker not in self.refused, f"{record.worker} was revoked, and joined")
                promise(record.worker in self.identities, f"{record.worker} joined, and has no identity")

    def _on_token(self, record: TokenRecord) -> None:
        old = self.tokens.get(record.id)
        self.tokens[record.id] = record
        if old is None:
            promise(record.used == 0 and not record.revoked, f"token {record.id} begins as {record}")
            return
        promise(record.revoked or not old.revoked, f"token {record.id} was revoked, and is valid again")
        if record.used != old.used:
            promise(record.used == old.used + 1, f"token {record.id} was used {record.used - old.used} times at once")
            promise(not old.revoked, f"token {record.id} was revoked, and used")
            promise(old.uses_left != 0, f"token {record.id} was used up, and used again")
        if old.uses_left is not None:
            promise(record.uses_left == old.uses_left - (record.used - old.used), f"token {record.id} is miscounted")
        if record.revoked and not old.revoked:
            self.tally.count("token revoked")
            self._revoked_now.append(record.id)

    def _on_identity(self, record: IdentityRecord) -> None:
        old = self.identities.get(record.id)
        self.identities[record.id] = record
        if record.revoked and old is not None and not old.revoked:
            self.refused[record.id] = None
            self.tally.count("worker revoked")
            return
        promise(record.revoked or record.id not in self.refused, f"{record.id} was revoked, and is good again")
        if old is not None and old.since == record.since:
            self.tally.count("certificate renewed", record.expires != old.expires)
            return
        self.tally.count("worker enrolled")
        promise(old is None or old.key == record.key, f"{record.id} was given away to another key")
        if record.token:
            token = self.tokens[record.token]
            self._given[token.id] = self._given.get(token.id, 0) + 1
            promise(self._given[token.id] <= token.used, f"token {token.id} gave more certificates than it was used")
            promise(not token.revoked, f"token {token.id} was revoked, and gave a certificate")
            promise(record.role == token.role, f"{record.id} became {record.role} by a token for {token.role}")

    def end_commit(self) -> None:
        """The commit is whole: with a token goes everybody who came by it."""
        for token in self._revoked_now:
            left = [one.id for one in self.identities.values() if one.token == token and one.id not in self.refused]
            promise(not left, f"token {token} was revoked, and not {left}, who came by it")

    def check_outcome(self, outcome: Outcome) -> None:
        """Nothing that a revoked worker says counts; what it held is taken from it in the very commit that revokes it."""
        worker = outcome.worker
        promise(
            worker not in self._refused_before,
            f"{worker} was revoked, and something of it is recorded later: {outcome}",
        )
        if worker in self.refused:
            lost = all(reason in LOST_REASONS for reason in outcome.reasons)
            promise(
                lost and len(outcome.reasons) == len(outcome.indexes),
                f"{worker} was revoked, and is believed: {outcome}",
            )

    def signed(self, identity: str, role: str) -> None:
        """A certificate is made."""
        known = self.identities.get(identity)
        promise(
            known is not None and known.role == role, f"a certificate for {identity}, of whom the disk knows nothing"
        )

    def check_heard(self, core: Core) -> None:
        """Whoever is heard after a turn may be."""
        for principal in core.principals.values():
            if not principal.identity:
                continue
            name = f"{principal.identity} is heard"
            promise(core.degraded != "" or principal.expires > core.now, f"{name}, and its certificate has ended")
            promise(principal.authority in core.trust.clusters, f"{name}, and its authority has ended")
            promise(not core.trust.identities[principal.identity].revoked, f"{name}, and was revoked")

    def assigned(self, principal: Principal, core: Core) -> None:
        """A worker that has proved to be this one, as far as its driver knows, is given leases."""
        identity = principal.identity
        promise(principal.expires > core.now, f"the certificate of {identity} has ended, and it is given work")
        promise(
            principal.authority in core.trust.clusters, f"the authority of {identity} has ended, and it is given work"
        )
        promise(identity in self.identities, f"{identity} is given work, and has no identity")
        promise(identity not in self.refused, f"{identity} was revoked, and is given work")

    def dismissed(self, identity: str, code: str, *, is_current: bool) -> None:
        """A worker was told that it does not belong here."""
        if code == "revoked":
            promise(identity in self.refused, f"{identity} is told that it was revoked, and was not")
        promise(
            code != "not_allowed" or not is_current,
            f"{identity} is told that it is not allowed here, and has a certificate",
        )

    def compare(self, core: Core) -> None:
        """A core that starts from the journal knows whom to refuse, and what tokens are left."""
        promise(core.trust.tokens == self.tokens, "tokens came back otherwise")
        promise(core.trust.identities == self.identities, "identities came back otherwise")
        promise(sorted(core.trust.refused()) == sorted(self.refused), "others are refused than were revoked")
        present = [worker for worker in core.fleet.by_id if worker in self.refused]
        promise(not present, f"{present} were revoked, and are in the fleet")
