"""The journal of the simulated coordinator: what is committed, in MessagePack, and a restore of its own.

Written without a look at the real one: both must give the core the same back. Survives crashes of the
coordinator, because only `commit` and `begin` change it.
"""

from collections.abc import Iterable

import msgspec

from dcoord.core.records import (
    DefinitionRecord,
    DropRecord,
    FrontierRecord,
    Head,
    IdentityRecord,
    JobEndRecord,
    JobRecord,
    OutcomeRecord,
    PayloadRecord,
    Record,
    Restored,
    RestoredJob,
    TokenRecord,
    WorkerRecord,
)
from districomp.model import Item

CLUSTER = "simulated"
SEAL_KEY = b"the seed of all seals"


class Rows:
    """A job's outcomes, packed, by serial from 1."""

    def __init__(self) -> None:
        self.packed: list[bytes] = []
        self.heads: list[Head] = []


class Journal:
    """Records are kept as bytes: a core that changes what it has handed over is found out."""

    def __init__(self) -> None:
        self.epoch = 0
        self.commits = 0
        self.rows: dict[int, Rows] = {}
        self.ends: dict[int, JobEndRecord] = {}
        self._definitions: dict[str, tuple[str, bytes]] = {}
        self._chunks: dict[int, dict[int, bytes]] = {}
        self._jobs: dict[int, bytes] = {}
        self._frontiers: dict[int, tuple[int, float]] = {}
        self._workers: dict[str, bytes] = {}
        self._tokens: dict[str, bytes] = {}
        self._identities: dict[str, bytes] = {}
        self._last_job = 0

    def begin(self) -> None:
        """The coordinator starts: a new epoch; chunks of submissions that never ended are forgotten."""
        self.epoch += 1
        self._last_job = max([self._last_job, *self._chunks, *self._jobs])
        self._chunks = {job: chunks for job, chunks in self._chunks.items() if job in self._jobs}

    def commit(self, records: Iterable[Record]) -> None:
        """All records of a batch."""
        self.commits += 1
        for record in records:
            self._put(record)

    def _put(self, record: Record) -> None:
        pack = msgspec.msgpack.encode
        match record:
            case OutcomeRecord(outcome=outcome):
                rows = self.rows[outcome.job]
                assert outcome.serial == len(rows.packed) + 1, f"job {outcome.job}: row {outcome.serial} out of turn"
                rows.packed.append(pack(outcome))
                head = Head(outcome.serial, outcome.indexes, outcome.states, outcome.reasons, outcome.sweep)
                rows.heads.append(msgspec.msgpack.decode(pack(head), type=Head))
            case FrontierRecord():
                self._frontiers[record.job] = record.frontier, record.started
            case PayloadRecord():
                chunks = self._chunks.setdefault(record.job, {})
                assert record.first not in chunks, f"job {record.job} has two chunks at {record.first}"
                chunks[record.first] = pack(record.items)
            case JobRecord():
                assert record.job not in self._jobs, f"job {record.job} was submitted twice"
                assert record.definition in self._definitions, f"job {record.job} came before its definition"
                self._jobs[record.job] = pack(record)
                self.rows[record.job] = Rows()
            case DropRecord():
                assert record.job not in self._jobs, f"job {record.job} was given up after its submission"
                self._chunks.pop(record.job, None)
            case JobEndRecord():
                assert record.job not in self.ends, f"job {record.job} ended twice"
                self.ends[record.job] = record
            case DefinitionRecord():
                self._definitions[record.digest] = record.name, record.body
            case WorkerRecord():
                self._workers[record.worker] = pack(record)
            case TokenRecord():
                self._tokens[record.id] = pack(record)
            case IdentityRecord():
                self._identities[record.id] = pack(record)
            case _:
                raise AssertionError(f"nobody knows the record {record}")

    def read_payload(self, job: int, first: int) -> list[Item]:
        """A chunk of a job's items."""
        return msgspec.msgpack.decode(self._chunks[job][first], type=list[Item])

    def frontier(self, job: int) -> int:
        """No index at or above it may have been leased."""
        return self._frontiers.get(job, (0, 0.0))[0]

    def has_job(self, job: int) -> bool:
        """Whether a submission is on disk."""
        return job in self._jobs

    def restore(self) -> Restored:
        """What a core starts from."""
        unpack = msgspec.msgpack.decode
        workers = [unpack(packed, type=WorkerRecord) for packed in self._workers.values()]
        return Restored(
            epoch=self.epoch,
            cluster=CLUSTER,
            definitions={digest: body for digest, (_, body) in self._definitions.items()},
            jobs=[self._restored_job(unpack(packed, type=JobRecord)) for packed in self._jobs.values()],
            workers=[record for record in workers if record.present],
            last_job=max([self._last_job, *self._chunks, *self._jobs]),
            tokens=[unpack(packed, type=TokenRecord) for packed in self._tokens.values()],
            identities=[unpack(packed, type=IdentityRecord) for packed in self._identities.values()],
            seal_key=SEAL_KEY,
        )

    def _restored_job(self, record: JobRecord) -> RestoredJob:
        frontier, started = self._frontiers.get(record.job, (0, None))
        rows, end = self.rows[record.job], self.ends.get(record.job)
        return RestoredJob(
            record=record,
            frontier=frontier,
            started=started,
            chunks=sorted(self._chunks.get(record.job, {})),
            heads=[] if end is not None else list(rows.heads),
            last_serial=len(rows.packed),
            end=end,
        )
