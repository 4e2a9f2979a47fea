"""What a worker has been told of: definitions of this connection, and the jobs that its leases may be of. Pure."""

from collections.abc import Iterator, Mapping
from typing import Final

from districomp.messages import Define, JobSpec
from districomp.taskdef import Definition, decode_definition
from districomp.wire import UNREADABLE
from dworker.hold import Work, problem

WORKS_MAX: Final = 10_000
"""So many jobs are remembered; the oldest that nothing is held of are forgotten."""


class Known:
    """Definitions by digest and jobs by number. `isolation`, `lacking` and `can_queue`: as in the core's settings."""

    def __init__(self, isolation: tuple[str, ...], lacking: Mapping[str, str], *, can_queue: bool = False) -> None:
        self._can_queue = can_queue
        self._isolation = isolation
        self._lacking = lacking
        self._definitions: dict[str, Definition | None] = {}
        self._works: dict[int, Work] = {}

    def __iter__(self) -> Iterator[Work]:
        return iter(self._works.values())

    def define(self, message: Define) -> None:
        """Take a definition, even one that is not understood: its tasks will say so."""
        try:
            self._definitions[message.digest] = decode_definition(message.body)
        except UNREADABLE:
            self._definitions[message.digest] = None

    def introduce(self, spec: JobSpec) -> str:
        """Take a job; what is wrong with the message, '' if nothing is."""
        if spec.job in self._works:
            return ""
        if spec.definition not in self._definitions:
            return f"job {spec.job} uses a definition that was not sent"
        definition = self._definitions[spec.definition]
        why_not = problem(definition, self._isolation, self._lacking)
        self._works[spec.job] = Work(spec, definition, why_not, can_queue=self._can_queue)
        if len(self._works) > WORKS_MAX:
            idle = next((job for job, work in self._works.items() if not work.held and job != spec.job), None)
            if idle is not None:
                del self._works[idle]
        return ""

    def get(self, job: int) -> Work | None:
        """A job that was introduced and is remembered."""
        return self._works.get(job)

    def start_anew(self) -> None:
        """A new connection: the coordinator sends again what it needs known, but for jobs of which something is held."""
        self._definitions.clear()
        self._works = {job: work for job, work in self._works.items() if work.held}

    def clear(self) -> None:
        """Forget all jobs."""
        self._works.clear()
