"""Calls on their way: a job of them, which is told what became of each, and where they come from.

Owns what a job's rows mean to calls, and the sizes of jobs. Must not know connections; futures and `map` are for those who derive.
"""

import uuid
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from districomp.client_results import TaskRecord
from districomp.errors import RemoteProtocolError
from districomp.model import DONE, QUEUED, Item, Payload
from districomp.wire import UNREADABLE

if TYPE_CHECKING:
    from districomp.executor_engine import Engine

BATCH_CALLS_MAX: Final = 2048
BATCH_ITEMS_BYTES: Final = 256 * 1024
"""A job's items fit into one message, with its function."""
ITEM_OVERHEAD_BYTES: Final = 64
"""What an item costs beside its bytes, generously."""


def item_cost(item: Item) -> int:
    """About how many bytes an item takes in a message and in memory."""
    return ITEM_OVERHEAD_BYTES + len(item) if isinstance(item, bytes) else 2 * ITEM_OVERHEAD_BYTES


class Row(msgspec.Struct, array_like=True, gc=False):
    """An `outcome.Outcome` of which only that is decoded what a call's end needs."""

    job: int
    serial: int
    worker: msgspec.Raw
    indexes: list[int]
    states: list[int] = []
    attempts: msgspec.Raw = msgspec.Raw()
    reasons: list[str] = []
    exit_codes: list[int | None] = []
    signals: list[int | None] = []
    started: msgspec.Raw = msgspec.Raw()
    ended: msgspec.Raw = msgspec.Raw()
    cpu_s: msgspec.Raw = msgspec.Raw()
    memory_bytes: msgspec.Raw = msgspec.Raw()
    stderr: list[bytes] = []
    results: list[Payload | None] = []
    sweep: int | None = None


_rows: msgspec.msgpack.Decoder[Row] = msgspec.msgpack.Decoder(Row)


class Batch(ABC):
    """One job of calls. Told by the engine's thread what became of them; each call hears of one end at most."""

    __slots__ = ("after", "cancels", "engine", "items", "job", "name", "params", "request_id", "size")

    def __init__(self, name: str, params: dict[str, str], items: list[Item]) -> None:
        self.name = name
        self.params = params
        self.items = items
        """Until the job is accepted."""
        self.size = len(items)
        self.request_id = str(uuid.uuid4())
        self.job = 0
        self.after = 0
        self.cancels: dict[int, None] = {}
        self.engine: Engine | None = None

    def cancel(self, indexes: Iterable[int] | None = None) -> None:
        """Have these calls cancelled, wherever they are by now; None: all. For any thread."""
        self.cancels.update(dict.fromkeys(range(self.size) if indexes is None else indexes))
        # Noted before anybody looks: without an engine yet, it is found when the job is accepted.
        if self.engine is not None:
            self.engine.cancel(self)

    @abstractmethod
    def done(self, indexes: list[int], results: Sequence[Payload | None]) -> None:
        """These calls returned."""

    @abstractmethod
    def failed(self, index: int, record: TaskRecord) -> None:
        """This call has no result."""

    @abstractmethod
    def rest(self, error: BaseException | None) -> None:
        """All others end with this error; None: they were cancelled."""

    def take(self, body: bytes) -> None:
        """A row of the job's. RemoteProtocolError if it makes no sense."""
        try:
            row = _rows.decode(body)
        except UNREADABLE as error:
            raise RemoteProtocolError(f"the coordinator sent a row that cannot be read: {error}") from error
        if row.sweep is not None:
            return  # nothing is known of these calls but that they will not run: see `rest`
        if row.indexes and not (min(row.indexes) >= 0 and max(row.indexes) < self.size):
            raise RemoteProtocolError(f"the coordinator sent a result of a task that job {self.job} does not have")
        try:
            if not row.states:
                self.done(row.indexes, row.results or [None] * len(row.indexes))
            else:
                self._take_each(row)
        except IndexError as error:
            raise RemoteProtocolError(f"the coordinator sent a row that cannot be read: {error}") from error

    def _take_each(self, row: Row) -> None:
        good = [place for place, state in enumerate(row.states) if state == DONE]
        if good:
            self.done([row.indexes[k] for k in good], [row.results[k] if row.results else None for k in good])
        for place, state in enumerate(row.states):
            if state not in (DONE, QUEUED):
                record = TaskRecord(self.job, row.indexes[place], state)
                record.reason = row.reasons[place] if row.reasons else ""
                record.exit_code = row.exit_codes[place] if row.exit_codes else None
                record.signal = row.signals[place] if row.signals else None
                record.stderr = row.stderr[place] if row.stderr else b""
                self.failed(record.index, record)


class Source(Protocol):
    """Where calls come from."""

    pending: deque[Any]
    uses_client: bool
    """Whether it needs the client even when all of its calls have ended: it fetches large results itself."""

    def seal(self) -> list[Batch]:
        """Some of what is pending, as no more than 300 jobs; what cannot be sent has been told so. For the engine's thread."""

    def reject(self, error: BaseException | None) -> None:
        """End all that is pending with this error; None: it was cancelled. For any thread, while another seals."""
