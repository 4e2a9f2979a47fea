"""How a record looks as a row of the journal, and back. Owns the packing; must not know SQL, files or connections.

A row is (kind, a ... k), the columns of the view `batch` in `schema.sql`, whose triggers (there
and in the schemas that follow) say what each kind's columns are. What a restart must read of an outcome (its head) is apart from the rest (its body).
"""

import contextlib
import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

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
    ResumeRecord,
    TokenRecord,
    WorkerRecord,
)
from districomp.model import DONE, Item
from districomp.outcome import Outcome

Value = int | float | str | bytes | None
Row = tuple[Value, ...]

COLUMNS: Final = 12
"""Columns of the view `batch`, its kind included."""
INDEX_BITS: Final = 32
"""An index, a chunk's first index and a serial are below 2 ** 32: they share a 64-bit key with the job."""
LOW_MASK: Final = (1 << INDEX_BITS) - 1

_WIDTHS: Final = ((1 << 8, "B"), (1 << 16, "H"), (1 << 32, "I"))
_T = TypeVar("_T")

_encoder = msgspec.msgpack.Encoder()
_outcomes = msgspec.msgpack.Decoder(Outcome)
_items = msgspec.msgpack.Decoder(list[Item])
_reasons = msgspec.msgpack.Decoder(tuple[list[str], list[int]])
_details = msgspec.msgpack.Decoder(
    tuple[dict[str, Any], tuple[int, int] | None, int | None, list[tuple[str, list[Any]]]]
)
_counts = msgspec.msgpack.Decoder(list[int])
_labels = msgspec.msgpack.Decoder(list[str])


def key(job: int, low: int) -> int:
    """The rowid of a job's payload chunk (`low`: its first index) or outcome (`low`: its serial)."""
    assert 0 <= low <= LOW_MASK, low
    return job << INDEX_BITS | low


def pack_outcome(outcome: Outcome) -> bytes:
    """An outcome as the journal keeps it and as ResultRows carries it."""
    return _encoder.encode(outcome)


def unpack_outcome(body: bytes) -> Outcome:
    """The reverse of `pack_outcome`; msgspec.ValidationError or DecodeError if it is not one."""
    return _outcomes.decode(body)


def unpack_items(packed: bytes) -> list[Item]:
    """A payload chunk's items."""
    return _items.decode(packed)


def node(first: int, last: int) -> int:
    """The number with the most trailing zeros in first + 1 ... last + 1, under which a row of these indices is kept.

    Any range that holds an index has its node among that index's `nodes_over`: the fork node of a
    relational interval tree (Kriegel, Poetke, Seidl: Managing Intervals Efficiently in
    Object-Relational Databases, VLDB 2000).
    """
    low, high = first, last + 1  # the open lower end, so that one xor finds the highest differing bit
    return high & -(1 << (low ^ high).bit_length() - 1)


def nodes_over(index: int) -> list[int]:
    """All nodes that a row which names the index can be kept under: one a bit of an index."""
    number = index + 1
    return [number & -(1 << bit) | 1 << bit for bit in range(INDEX_BITS + 1)]


def pack_offsets(indexes: Sequence[int], first: int, last: int) -> bytes | None:
    """The indices less `first`, in 1, 2 or 4 bytes each, little-endian; None if they are first ... last in order."""
    if last - first + 1 == len(indexes) and (len(indexes) == 1 or list(indexes) == list(range(first, last + 1))):
        return None
    code = next(code for limit, code in _WIDTHS if last - first < limit)
    return _little_endian(array(code, [index - first for index in indexes])).tobytes()


def unpack_offsets(offsets: bytes | None, first: int, count: int) -> list[int] | range:
    """The indices of a row: the reverse of `pack_offsets`; a range if they are in order."""
    if offsets is None:
        return range(first, first + count)
    width = len(offsets) // count
    values = array({1: "B", 2: "H", 4: "I"}[width], offsets)
    return [first + offset for offset in _little_endian(values)]


def _little_endian(values: "array[int]") -> "array[int]":
    if sys.byteorder == "big":
        values.byteswap()
    return values


def _pack_reasons(reasons: list[str]) -> bytes | None:
    if not reasons:
        return None
    positions = {name: position for position, name in enumerate(dict.fromkeys(reasons))}
    return _encoder.encode((list(positions), [positions[name] for name in reasons]))


def unpack_head(columns: tuple[Any, ...]) -> Head:
    """A head of the columns serial, first, count, offsets, states, reasons, sweep of the table `heads`."""
    serial, first, count, offsets, states, reasons, sweep = columns
    named: list[str] = []
    if reasons is not None:
        names, positions = _reasons.decode(reasons)
        named = [names[position] for position in positions]
    indexes = unpack_offsets(offsets, first, count) if count else []
    return Head(serial, indexes, list(states or b""), named, sweep)


def _definition_row(record: DefinitionRecord) -> Row:
    return _padded(1, record.digest, record.name, record.body)


def _payload_row(record: PayloadRecord) -> Row:
    assert record.items and record.first + len(record.items) <= LOW_MASK + 1
    return _padded(2, record.job, record.first, len(record.items), _encoder.encode(record.items))


def _job_row(record: JobRecord) -> Row:
    details = _encoder.encode((record.params, record.numbers, record.max_fails, record.matrix))
    return _padded(
        3,
        record.job,
        record.request_id,
        record.user,
        record.name,
        record.definition,
        record.definition_name,
        record.count,
        details,
        record.submitted,
    )


def unpack_job(columns: tuple[Any, ...]) -> JobRecord:
    """A job of the columns of the table `jobs`, in their order; without its details if those are None."""
    job, request_id, user, name, definition, definition_name, count, details, submitted = columns
    params, numbers, max_fails, matrix = ({}, None, None, []) if details is None else _details.decode(details)
    return JobRecord(
        job, request_id, user, name, definition, definition_name, params, count, numbers, max_fails, submitted, matrix
    )


def _drop_row(record: DropRecord) -> Row:
    return _padded(4, record.job)


def _frontier_row(record: FrontierRecord) -> Row:
    return _padded(5, record.job, record.frontier, record.started)


def _outcome_row(record: OutcomeRecord) -> Row:
    outcome = record.outcome
    indexes = outcome.indexes
    first, last = (min(indexes), max(indexes)) if indexes else (0, 0)
    assert first >= 0 and last <= LOW_MASK and 0 < outcome.serial <= LOW_MASK
    record.body = _encoder.encode(outcome)
    return (
        6,
        outcome.job,
        outcome.serial,
        node(first, last) if indexes else 0,
        first,
        last,
        len(indexes),
        pack_offsets(indexes, first, last) if indexes else None,
        bytes(outcome.states) or None,
        _pack_reasons(outcome.reasons),
        outcome.sweep,
        record.body,
    )


def _end_row(record: JobEndRecord) -> Row:
    return _padded(7, record.job, record.state, _encoder.encode(record.counts), record.ended)


def unpack_end(job: int, state: str, counts: bytes, ended: float) -> JobEndRecord:
    """A row of the table `ends`, without its last serial."""
    return JobEndRecord(job, state, _counts.decode(counts), ended)


def _resume_row(record: ResumeRecord) -> Row:
    return _padded(10, record.job)


def _worker_row(record: WorkerRecord) -> Row:
    return _padded(8 if record.present else 9, record.worker, record.name, record.at)


def _token_row(record: TokenRecord) -> Row:
    return _padded(
        11,
        record.id,
        record.hash,
        record.role,
        record.created,
        record.expires,
        record.uses_left,
        record.used,
        _encoder.encode(record.labels),
        record.revoked,
    )


def unpack_token(columns: tuple[Any, ...]) -> TokenRecord:
    """A row of the table `tokens`."""
    identifier, digest, role, created, expires, uses_left, used, labels, revoked = columns
    return TokenRecord(
        identifier, digest, role, created, expires, uses_left, used, _labels.decode(labels), bool(revoked)
    )


def _identity_row(record: IdentityRecord) -> Row:
    return _padded(
        12,
        record.id,
        record.role,
        record.name,
        record.token,
        _encoder.encode(record.labels),
        record.since,
        record.expires,
        record.revoked,
        record.removed,
        record.key,
    )


def unpack_identity(columns: tuple[Any, ...]) -> IdentityRecord:
    """A row of the table `identities`."""
    identifier, role, name, token, labels, since, expires, revoked, removed, key = columns
    return IdentityRecord(
        identifier, role, name, token, _labels.decode(labels), since, expires, bool(revoked), bool(removed), key
    )


def _padded(*values: Value) -> Row:
    return values + (None,) * (COLUMNS - len(values))


_ROWS: Final[dict[type[Record], Callable[[Any], Row]]] = {
    DefinitionRecord: _definition_row,
    PayloadRecord: _payload_row,
    JobRecord: _job_row,
    DropRecord: _drop_row,
    FrontierRecord: _frontier_row,
    OutcomeRecord: _outcome_row,
    JobEndRecord: _end_row,
    ResumeRecord: _resume_row,
    WorkerRecord: _worker_row,
    TokenRecord: _token_row,
    IdentityRecord: _identity_row,
}


def row(record: Record) -> Row:
    """A record as the row of the view `batch` that stores it."""
    return _ROWS[type(record)](record)


def attempts_in(outcome: Outcome, index: int) -> list[Outcome]:
    """The entries of an outcome that are one task's, each as an outcome of its own with every column filled in."""

    def at(column: list[_T], position: int, default: _T) -> list[_T]:
        return [column[position] if column else default]

    return [
        Outcome(
            job=outcome.job,
            serial=outcome.serial,
            worker=outcome.worker,
            indexes=[index],
            states=at(outcome.states, position, DONE),
            attempts=at(outcome.attempts, position, 1),
            reasons=at(outcome.reasons, position, "done"),
            exit_codes=at(outcome.exit_codes, position, None),
            signals=at(outcome.signals, position, None),
            started=at(outcome.started, position, None),
            ended=at(outcome.ended, position, 0.0),
            cpu_s=at(outcome.cpu_s, position, None),
            memory_bytes=at(outcome.memory_bytes, position, None),
            stderr=at(outcome.stderr, position, b""),
            results=at(outcome.results, position, None),
        )
        for position in _positions(outcome.indexes, index)
    ]


def _positions(indexes: list[int], index: int) -> Iterator[int]:
    """Where an index is, mostly once, without looking at the others one by one."""
    at = -1
    with contextlib.suppress(ValueError):
        while True:
            at = indexes.index(index, at + 1)
            yield at
