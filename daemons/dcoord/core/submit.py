"""Submissions: checked, written down in chunks as they come, acknowledged when complete.

A submission that never ends leaves nothing behind. Items are checked by the definition's own rules.
"""

from itertools import chain
from math import prod
from typing import TYPE_CHECKING

import msgspec

from dcoord.core.effects import Send
from dcoord.core.job import Job
from dcoord.core.payload import KEPT_BYTES_MAX, items_bytes
from dcoord.core.records import DefinitionRecord, DropRecord, JobRecord, PayloadRecord
from districomp.arguments import ItemError, ItemRules
from districomp.messages import FRAME_BYTES_MAX, Accepted, Items, JobSpec, Refused, Submit
from districomp.model import Item
from districomp.taskdef import (
    Definition,
    ParamsError,
    check_matrix,
    check_params,
    encode_definition,
)

if TYPE_CHECKING:
    from dcoord.core.core import Core

TASKS_MAX = 1_000_000_000
"""A state is a byte of memory a task, so a job can not be larger than a machine."""
NAME_CHARS_MAX = 255
DRAFTS_MAX = 64
"""Submissions that one connection may have under way at once."""


class Draft:
    """A submission under way: everything but the items that have been written down."""

    __slots__ = ("count", "definition", "first_items", "firsts", "job", "rules", "submit")

    def __init__(self, job: int, submit: Submit, definition: Definition) -> None:
        self.job = job
        self.submit = submit
        self.definition = definition
        first = {name: values[0] for name, values in submit.matrix}
        self.rules = ItemRules(definition, submit.params | first)
        self.firsts: list[int] = []
        self.count = 0
        self.first_items: list[Item] = []


class _Refusal(Exception):
    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


def on_submit(core: "Core", peer: int, message: Submit, fault: tuple[str, str] | None) -> None:
    """A submission, or the beginning of one. Accepted or Refused, never neither."""
    try:
        if core.degraded:
            raise _Refusal("degraded", core.degraded)
        if fault is not None:
            raise _Refusal(*fault)
        known = core.request_ids.get(message.request_id) if message.request_id else None
        if known is not None and core.jobs[known].record.user != message.user:
            raise _Refusal("bad_request", "this request id belongs to somebody else's job; use a new UUID")
        if known is not None and message.last:
            core.effects.append(Send(peer, Accepted(message.request, known, core.jobs[known].record.count)))
            return
        key = peer, message.request
        if key in core.drafts or key in core.repeats:
            raise _Refusal("bad_request", f"request {message.request} of this connection is a submission under way")
        if sum(other == peer for other, _ in chain(core.drafts, core.repeats)) >= DRAFTS_MAX:
            raise _Refusal("bad_request", f"this connection has {DRAFTS_MAX} submissions under way; end one first")
        if known is not None:
            core.repeats[key] = known
            return
        draft = _begin(core, message)
        core.drafts[key] = draft
        _add_items(core, draft, message.items)
        if message.last:
            _finish(core, peer, message.request)
    except _Refusal as refusal:
        _drop(core, (peer, message.request))
        core.effects.append(Send(peer, Refused(message.request, refusal.code, str(refusal))))


def on_items(core: "Core", peer: int, message: Items, fault: tuple[str, str] | None) -> None:
    """More items of a submission. Those of one that was refused meanwhile are passed over."""
    known = core.repeats.get((peer, message.request))
    if known is not None:
        if message.last:
            del core.repeats[peer, message.request]
            core.effects.append(Send(peer, Accepted(message.request, known, core.jobs[known].record.count)))
        return
    draft = core.drafts.get((peer, message.request))
    if draft is None:
        return
    try:
        if fault is not None:
            raise _Refusal(*fault)
        _add_items(core, draft, message.items)
        if message.last:
            _finish(core, peer, message.request)
    except _Refusal as refusal:
        _drop(core, (peer, message.request))
        core.effects.append(Send(peer, Refused(message.request, refusal.code, str(refusal))))


def drop_drafts(core: "Core", peer: int) -> None:
    """A client is gone: its unfinished submissions leave nothing behind."""
    for key in [key for key in core.drafts if key[0] == peer]:
        _drop(core, key)
    for key in [key for key in core.repeats if key[0] == peer]:
        del core.repeats[key]


def _drop(core: "Core", key: tuple[int, int]) -> None:
    draft = core.drafts.pop(key, None)
    if draft is not None and draft.firsts:
        core.effects.append(DropRecord(draft.job))


def _begin(core: "Core", message: Submit) -> Draft:
    definition = core.definitions.get(message.definition)
    if definition is None:
        known = ", ".join(sorted(core.definitions)) or "none"
        raise _Refusal("unknown_definition", f"there is no definition {message.definition!r}; live are: {known}")
    if len(message.name) > NAME_CHARS_MAX or len(message.request_id) > NAME_CHARS_MAX:
        raise _Refusal("bad_request", f"a job's name and its request id have at most {NAME_CHARS_MAX} characters")
    if message.max_fails is not None and message.max_fails < 1:
        raise _Refusal("bad_request", f"max_fails is {message.max_fails}; it is a number of failed tasks, 1 or more")
    try:
        if message.matrix:
            message.params, message.matrix = check_matrix(definition, message.params, message.matrix)
        else:
            message.params = check_params(definition, message.params)
    except ParamsError as error:
        raise _Refusal(error.code, str(error)) from error
    core.last_job += 1
    return Draft(core.last_job, message, definition)


def _add_items(core: "Core", draft: Draft, items: list[Item]) -> None:
    if not items:
        return
    if draft.submit.numbers is not None or draft.submit.count or draft.submit.matrix:
        raise _Refusal("bad_request", "a submission has one of items, a range and a matrix")
    try:
        draft.rules.check_all(items, draft.count)
    except ItemError as error:
        raise _Refusal(error.code, str(error)) from error
    core.effects.append(PayloadRecord(draft.job, draft.count, items))
    draft.firsts.append(draft.count)
    if draft.count == 0:
        draft.first_items = items
    draft.count += len(items)
    if draft.count > TASKS_MAX:
        raise _Refusal("too_large", f"a job has at most {TASKS_MAX} tasks")


def _check_matrix_size(draft: Draft) -> None:
    """A matrix goes to workers whole, in a JobSpec, which must fit into a frame as the Submit did that brought it."""
    submit = draft.submit
    if not submit.matrix:
        return
    spec = JobSpec(draft.job, draft.definition.digest, submit.params, None, submit.matrix)
    size = len(msgspec.msgpack.encode(spec))
    if size > FRAME_BYTES_MAX:
        text = f"params and matrix have {size:,} bytes, {FRAME_BYTES_MAX:,} are allowed; give large data as items"
        raise _Refusal("too_large", text)


def _finish(core: "Core", peer: int, request: int) -> None:
    draft = core.drafts[peer, request]
    submit = draft.submit
    count = draft.count or submit.count
    if submit.matrix:
        if submit.numbers is not None or submit.count:
            raise _Refusal("bad_request", "a submission has one of items, a range and a matrix")
        count = prod(len(values) for _, values in submit.matrix)
    if count < 1:
        raise _Refusal("empty", "this submission has no task; give it at least one item")
    if count > TASKS_MAX:
        raise _Refusal("too_large", f"a job has at most {TASKS_MAX} tasks, this one has {count}")
    if submit.numbers is None and not draft.count and not submit.matrix and count > 1:
        raise _Refusal("bad_request", "several tasks need items or numbers")
    if submit.numbers is not None and max(abs(number) for number in submit.numbers) >= 1 << 62:
        raise _Refusal("too_large", "a range's start and step lie below 2^62")
    try:
        draft.rules.check_input(submit.numbers is not None or draft.count > 0)
    except ItemError as error:
        raise _Refusal(error.code, str(error)) from error
    _check_matrix_size(draft)
    repeated = core.request_ids.get(submit.request_id) if submit.request_id else None
    if repeated is not None:
        # The same submission came by two connections at once; the other one was complete first.
        _drop(core, (peer, request))
        core.effects.append(Send(peer, Accepted(request, repeated, core.jobs[repeated].record.count)))
        return
    del core.drafts[peer, request]
    definition = draft.definition
    if definition.digest not in core.recorded_definitions:
        core.recorded_definitions[definition.digest] = definition
        core.effects.append(DefinitionRecord(definition.digest, definition.name, encode_definition(definition)))
    record = JobRecord(
        job=draft.job,
        request_id=submit.request_id,
        user=submit.user,
        name=submit.name,
        definition=definition.digest,
        definition_name=definition.name,
        params=submit.params,
        count=count,
        numbers=submit.numbers,
        max_fails=submit.max_fails,
        submitted=core.now,
        matrix=submit.matrix,
    )
    core.effects.append(record)
    job = Job(record, definition, draft.firsts)
    core.add_job(job)
    if job.payloads is not None and core.kept_bytes + items_bytes(draft.first_items) <= KEPT_BYTES_MAX:
        job.payloads.keep(0, draft.first_items)
        core.kept_bytes += job.payloads.kept_bytes
    core.backlog.add(job)
    core.effects.append(Send(peer, Accepted(request, job.id, count)))
