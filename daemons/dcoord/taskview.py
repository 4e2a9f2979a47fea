"""Documents of tasks, from the journal and from what the core says of those that run. Runs in the reading thread.

Must not touch the core: what it needs of it comes as plain values, taken at one moment.
"""

import hashlib
from collections.abc import Iterator
from typing import Final

import msgspec

from dcoord.core.job import apply_head
from dcoord.journal import Reader
from districomp.documents import AttemptDocument, TaskDocument, iso_time
from districomp.model import (
    DONE,
    STATE_NAMES,
    STDERR_TAIL_BYTES,
    Blob,
    Payload,
    item_content,
    payload_size,
    task_text,
)
from districomp.outcome import Outcome

TAILS_BYTES_MAX: Final = 256 * 1024
"""What all standard errors of one document may have together, before they are made text: it must fit into a frame."""


class Running(msgspec.Struct, frozen=True):
    """A started attempt of a leased task: its worker's id and when it started (Unix seconds)."""

    worker: str
    started: float


class JobSnapshot(msgspec.Struct, frozen=True):
    """What the core knows of a job's tasks at one moment. `states`, from the task `first` on, is empty when the job has ended."""

    job: int
    count: int
    states: bytes
    running: dict[int, Running]
    first: int = 0


def task_document(reader: Reader, snapshot: JobSnapshot, index: int) -> TaskDocument:
    """`dctl task show`."""
    outcomes = reader.attempts(snapshot.job, index)
    state = snapshot.states[index - snapshot.first] if snapshot.states else reader.state(snapshot.job, index)
    return _document(reader, snapshot, index, state, outcomes)


def task_documents(reader: Reader, snapshot: JobSnapshot, state: str) -> Iterator[TaskDocument]:
    """`dctl task list`: the tasks of a job in order, of one state if `state` names one."""
    states = snapshot.states or bytes(_states_of_ended(reader, snapshot))
    for index in _places(states, STATE_NAMES.index(state)) if state else range(len(states)):
        yield _document(reader, snapshot, index, states[index], reader.attempts(snapshot.job, index))


def _places(states: bytes, state: int) -> Iterator[int]:
    """Where a state is, without looking at the others one by one: there may be millions."""
    at = states.find(state)
    while at >= 0:
        yield at
        at = states.find(state, at + 1)


def _states_of_ended(reader: Reader, snapshot: JobSnapshot) -> bytearray:
    states = bytearray(snapshot.count)
    for head in reader.heads(snapshot.job):
        apply_head(states, head)
    return states


def _document(reader: Reader, snapshot: JobSnapshot, index: int, state: int, outcomes: list[Outcome]) -> TaskDocument:
    # Attempt 0 says that a task was cancelled before it had one.
    ended = [outcome for outcome in outcomes if outcome.attempts[0] > 0]
    tail_bytes = min(STDERR_TAIL_BYTES, TAILS_BYTES_MAX // max(1, len(ended)))
    attempts = [_attempt(outcome, tail_bytes) for outcome in ended]
    running = snapshot.running.get(index)
    if running is not None:
        attempts.append(
            AttemptDocument(running.worker, iso_time(running.started), None, None, None, None, None, None, "")
        )
    item = reader.item(snapshot.job, index)
    result = next((o.results[0] for o in reversed(outcomes) if o.states[0] == DONE), None) if state == DONE else None
    return TaskDocument(
        task=task_text(snapshot.job, index),
        state=STATE_NAMES[state],
        attempts=attempts,
        data_bytes=payload_size(item_content(item)) if item is not None else 0,
        result_bytes=payload_size(result) if state == DONE else None,
        sha256=_digest(result) if state == DONE else None,
    )


def _attempt(outcome: Outcome, tail_bytes: int) -> AttemptDocument:
    return AttemptDocument(
        worker=outcome.worker,
        started=iso_time(outcome.started[0]),
        ended=iso_time(outcome.ended[0]),
        reason=outcome.reasons[0],
        exit_code=outcome.exit_codes[0],
        signal=outcome.signals[0],
        cpu_s=outcome.cpu_s[0],
        memory_peak_bytes=outcome.memory_bytes[0],
        stderr_tail=outcome.stderr[0][-tail_bytes:].decode("utf-8", "replace"),
    )


def _digest(result: Payload | None) -> str:

    return result.sha256.hex() if isinstance(result, Blob) else hashlib.sha256(result or b"").hexdigest()
