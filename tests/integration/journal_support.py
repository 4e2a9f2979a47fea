"""Helpers of test_journal: drawn histories of records, and a plain model of what a journal must then remember."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import apsw
import msgspec
from hypothesis import strategies as st
from msgspec.structs import replace

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
    RestoredJob,
    ResumeRecord,
    TokenRecord,
    WorkerRecord,
)
from districomp.model import CANCELLED, DONE, FAILED, QUEUED, Blob, File, Item, Payload
from districomp.outcome import Outcome

TEXTS = st.text(max_size=6)
TIMES = st.floats(0, 2e9)
PAYLOADS: st.SearchStrategy[Payload] = st.binary(max_size=40) | st.builds(
    Blob, sha256=st.binary(min_size=32, max_size=32), size=st.integers(65_537, 2**40)
)
ITEMS: st.SearchStrategy[Item] = PAYLOADS | st.builds(File, path=TEXTS, content=PAYLOADS)
LABELS = st.lists(TEXTS, max_size=2)
TOKENS = st.builds(
    TokenRecord,
    id=st.sampled_from(["0a1b2c3d", "ffffffff"]),
    hash=st.binary(min_size=32, max_size=32),
    role=st.sampled_from(["worker", "admin"]),
    created=TIMES,
    expires=TIMES | st.just(float("inf")),
    uses_left=st.none() | st.integers(0, 2**40),
    used=st.integers(0, 2**40),
    labels=LABELS,
    revoked=st.booleans(),
)
IDENTITIES = st.builds(
    IdentityRecord,
    id=st.sampled_from(["w1", "w2", "person"]),
    role=st.sampled_from(["worker", "submit"]),
    name=TEXTS,
    token=st.sampled_from(["0a1b2c3d", ""]),
    labels=LABELS,
    since=TIMES,
    expires=TIMES,
    revoked=st.booleans(),
    removed=st.booleans(),
)
STATES = st.sampled_from([QUEUED, DONE, FAILED, CANCELLED])


def job(number: int, count: int = 1, numbers: tuple[int, int] | None = (0, 1)) -> JobRecord:
    return JobRecord(number, f"r{number}", "me", "", "digest", "shell", {}, count, numbers, None, 1.0)


def outcome(number: int, serial: int, indexes: list[int], size: int = 4) -> OutcomeRecord:
    return OutcomeRecord(Outcome(number, serial, "w", indexes, results=[b"r" * size for _ in indexes]))


def serials(rows: list[bytes]) -> list[int]:
    return [msgspec.msgpack.decode(row, type=Outcome).serial for row in rows]


def statements_of(connection: apsw.Connection) -> list[str]:
    """A list that fills with what the connection executes."""
    statements: list[str] = []

    def note(cursor: apsw.Cursor, sql: str, bindings: object) -> bool:
        statements.append(sql)
        return True

    connection.exec_trace = note
    return statements


class Model(msgspec.Struct):
    """What was written, as plain lists in the order of writing."""

    definitions: dict[str, bytes] = {}
    jobs: dict[int, RestoredJob] = {}
    items: dict[int, list[Item]] = {}
    outcomes: dict[int, list[Outcome]] = {}
    workers: dict[str, WorkerRecord] = {}
    tokens: dict[str, TokenRecord] = {}
    identities: dict[str, IdentityRecord] = {}
    last_job: int = 0

    def remember(self, record: Record) -> None:
        """Take one record in."""
        match record:
            case DefinitionRecord():
                self.definitions.setdefault(record.digest, record.body)
            case PayloadRecord():
                self.items.setdefault(record.job, []).extend(record.items)
                self.last_job = max(self.last_job, record.job)
            case DropRecord():
                self.items.pop(record.job, None)
                self.last_job = max(self.last_job, record.job)
            case JobRecord():
                self.jobs[record.job] = RestoredJob(record, 0, None, [], [], 0, None)
                self.outcomes[record.job] = []
                self.last_job = max(self.last_job, record.job)
            case FrontierRecord():
                self.jobs[record.job].frontier = record.frontier
                self.jobs[record.job].started = record.started
            case OutcomeRecord(outcome):
                self.outcomes[outcome.job].append(outcome)
            case JobEndRecord():
                self.jobs[record.job].end = record
            case ResumeRecord():
                self.jobs[record.job].end = None
            case WorkerRecord():
                self.workers.pop(record.worker, None)
                if record.present:
                    self.workers[record.worker] = record
            case TokenRecord():
                self.tokens[record.id] = record
            case IdentityRecord():
                self.identities[record.id] = record

    def restored_jobs(self, chunks: dict[int, list[int]], with_heads: bool) -> list[RestoredJob]:
        """The jobs as a restart must find them; `chunks`: where each job's chunks begin."""
        jobs = []
        for number, job in sorted(self.jobs.items()):
            outcomes = self.outcomes[number]
            shown = outcomes if with_heads and job.end is None else []
            record, begins = job.record, chunks[number]
            if with_heads and job.end is not None:
                record, begins = replace(record, params={}, numbers=None, max_fails=None, matrix=[]), []
            heads = [Head(o.serial, _restored_indexes(o.indexes), o.states, o.reasons, o.sweep) for o in shown]
            last = outcomes[-1].serial if outcomes else 0
            jobs.append(RestoredJob(record, job.frontier, job.started, begins, heads, last, job.end))
        return jobs

    def used_definitions(self) -> dict[str, bytes]:
        """Those that a complete submission names."""
        used = {job.record.definition for job in self.jobs.values()}
        return {digest: body for digest, body in self.definitions.items() if digest in used}

    def item(self, job: int, index: int) -> Item:
        """What a task of a complete job was given."""
        numbers = self.jobs[job].record.numbers
        if numbers is not None:
            return str(numbers[0] + index * numbers[1]).encode()
        return self.items[job][index] if job in self.items else b""

    def story(self, job: int, index: int) -> tuple[int, Payload | None, list[tuple[int, int]]]:
        """A task's state, its result if done, and the (serial, state) of each ended attempt."""
        state, result = QUEUED, None
        ended = []
        for outcome in self.outcomes[job]:
            for position, named in enumerate(outcome.indexes):
                if named == index:
                    state = outcome.states[position] if outcome.states else DONE
                    result = outcome.results[position] if outcome.results else None
                    ended.append((outcome.serial, state))
            swept = outcome.states if outcome.sweep == QUEUED else [QUEUED]
            if outcome.sweep is not None and state in swept:
                state = outcome.sweep
        return state, result, ended


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[list[Record]], dict[int, list[int]]]:
    """Batches of records as a core could write them, and where each complete job's chunks begin."""
    records: list[Record] = []
    chunks: dict[int, list[int]] = {}
    open_jobs: dict[int, list[int]] = {}  # job -> indices not yet ended for good
    serials: dict[int, int] = {}
    ended: list[int] = []
    number = 0
    steps = draw(st.permutations("jjjpdffoooosseeewwwrrtttiii"))  # not a list of drawn length: those are mostly short
    for step in "jj" + "".join(steps):
        job = draw(st.sampled_from(sorted(open_jobs))) if open_jobs else None
        if step in "jp":
            number += draw(st.integers(1, 3))
            submission, count, begins = draw(_submissions(number))
            records += submission if step == "j" else submission[:-1]
            if step == "j":
                open_jobs[number], serials[number], chunks[number] = list(range(count)), 0, begins
        elif step == "d":
            number += 1
            records += [PayloadRecord(number, 0, draw(st.lists(ITEMS, min_size=1, max_size=3))), DropRecord(number)]
        elif step == "w":
            records.append(WorkerRecord(draw(st.sampled_from("xyz")), draw(TEXTS), draw(st.booleans()), draw(TIMES)))
        elif step in "ti":
            records.append(draw(TOKENS if step == "t" else IDENTITIES))
        elif step == "r" and ended:
            again = ended.pop()
            serials[again] += 1
            retried = Outcome(again, serials[again], "", [], states=[FAILED, CANCELLED], sweep=QUEUED)
            records += [ResumeRecord(again), OutcomeRecord(retried)]
            open_jobs[again] = []
        elif job is None:
            continue
        elif step == "f":
            records.append(FrontierRecord(job, draw(st.integers(0, 2**32)), draw(TIMES)))
        elif step in "os":
            serials[job] += 1
            records.append(OutcomeRecord(draw(_outcomes(job, serials[job], open_jobs[job], sweep=step == "s"))))
        elif step == "e":
            del open_jobs[job]
            ended.append(job)
            counts = draw(st.lists(st.integers(0, 2**32), min_size=6, max_size=6))
            records.append(JobEndRecord(job, draw(st.sampled_from(["done", "failed"])), counts, draw(TIMES)))
    return _cut(draw, records), chunks


def _cut(draw: st.DrawFn, records: Sequence[Record]) -> list[list[Record]]:
    """Commit after some records: a batch may begin in the middle of a submission."""
    cuts = sorted(draw(st.sets(st.integers(0, len(records)), max_size=5)) | {0, len(records)})
    return [list(records[start:end]) for start, end in pairwise(cuts)]


@st.composite
def _submissions(draw: st.DrawFn, number: int) -> tuple[list[Record], int, list[int]]:
    """The records of one submission, how many tasks it has, and where its chunks begin."""
    digest = draw(st.sampled_from(["d1", "d2"]))
    records: list[Record] = [DefinitionRecord(digest, "name", digest.encode() * 3)]
    begins: list[int] = []
    numbers = None
    count = 1
    form = draw(st.sampled_from(["numbers", "items", "none"]))
    if form == "numbers":
        numbers = draw(st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(-5, 5)))
        count = draw(st.integers(1, 12))
    elif form == "items":
        count = 0
        for chunk in draw(st.lists(st.lists(ITEMS, min_size=1, max_size=4), min_size=1, max_size=3)):
            records.append(PayloadRecord(number, count, chunk))
            begins.append(count)
            count += len(chunk)
    params = draw(st.dictionaries(TEXTS, st.integers(-(2**63), 2**64 - 1) | TEXTS | st.booleans(), max_size=2))
    max_fails = draw(st.none() | st.integers(0, 9))
    texts = draw(st.tuples(TEXTS, TEXTS, TEXTS))
    matrix: list[tuple[str, list[Any]]] = [("size", [1, 2]), ("name", ["a"])] if draw(st.booleans()) else []
    records.append(JobRecord(number, *texts, digest, "name", params, count, numbers, max_fails, draw(TIMES), matrix))
    return records, count, begins


@st.composite
def _outcomes(draw: st.DrawFn, job: int, serial: int, unended: list[int], sweep: bool) -> Outcome:
    """An outcome of some unended tasks, which it takes out of `unended` unless they are to be retried."""
    indexes = draw(st.lists(st.sampled_from(unended), unique=True)) if unended else []
    n = len(indexes)
    states = draw(st.just([]) | st.lists(STATES, min_size=n, max_size=n))
    for position, index in enumerate(indexes):
        if not states or states[position] != QUEUED:
            unended.remove(index)
    if sweep:
        unended.clear()
    return Outcome(
        job=job,
        serial=serial,
        worker="w",
        indexes=indexes,
        states=states,
        reasons=draw(st.just([]) | st.lists(st.sampled_from(["done", "exit", "timeout"]), min_size=n, max_size=n)),
        ended=draw(st.lists(TIMES, min_size=n, max_size=n)),
        results=draw(st.just([]) | st.lists(st.none() | PAYLOADS, min_size=n, max_size=n)),
        sweep=CANCELLED if sweep else None,
    )


def _restored_indexes(indexes: list[int]) -> list[int] | range:
    """Those in order come back as a range."""
    in_order = range(indexes[0], indexes[0] + len(indexes)) if indexes else range(0)
    return in_order if indexes and indexes == list(in_order) else indexes
