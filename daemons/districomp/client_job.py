"""A submission, as the one who made it holds it: wait for it, read it, cancel it.

Owns nothing but a number; every call is the client's. Must not know messages or connections.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from districomp.client_results import Requeued, TaskResult
from districomp.client_shelf import in_task_order
from districomp.documents import JobDocument

if TYPE_CHECKING:
    from districomp.client import Client

WATCH_S: Final = 0.2
"""How often a job's document is sent at most while it changes."""


class Job:
    """A submission: `number`, and how to wait for it and read it."""

    def __init__(self, client: "Client", number: int, tasks: int | None = None) -> None:
        self.number = number
        self._client = client
        self._tasks = tasks

    def __repr__(self) -> str:
        return f"<Job {self.number}>"

    @property
    def tasks(self) -> int:
        """How many tasks it has."""
        if self._tasks is None:
            self._tasks = self.document().tasks
        return self._tasks

    def document(self) -> JobDocument:
        """Its state and counts now."""
        return self._client.document(self.number)

    def watch(self, interval_s: float = WATCH_S, timeout: float | None = None) -> Iterator[JobDocument]:
        """Its document now and after each change until it has ended. TimeoutError after `timeout` seconds."""
        for documents in self._client.watch([self.number], interval_s, timeout):
            yield from documents

    def wait(self, timeout: float | None = None) -> JobDocument:
        """Its document once it has ended. TimeoutError after `timeout` seconds; the job goes on then."""
        return self._client.wait([self.number], timeout)[0]

    def as_completed(self, *, wait: bool = True, timeout: float | None = None) -> Iterator[TaskResult]:
        """Its tasks as they end, whichever way. Without `wait` those that have ended by now."""
        for record in self._client.records(self.number, wait=wait, timeout=timeout, tasks=self._tasks):
            if not isinstance(record, Requeued):
                yield TaskResult(record, self._client.download)

    def results(self, *, wait: bool = True, timeout: float | None = None) -> Iterator[TaskResult]:
        """Its tasks in task order, each as soon as it and all before it have ended."""
        records = self._client.records(self.number, wait=wait, timeout=timeout, tasks=self._tasks)
        for record in in_task_order(records):
            yield TaskResult(record, self._client.download)

    def cancel(self) -> JobDocument:
        """Cancel what has not ended of it; recorded when this returns."""
        return self._client.cancel(self.number)
