"""Which jobs have something to lease: by what they require of a worker, and taken in turn within that.

A small job never waits behind a huge one, and one that nobody can run holds nobody up. Knows jobs as
wholes only; their indices are `job.py`'s.
"""

from dcoord.core.job import Job
from districomp.taskdef import Requires


class Backlog:
    """The jobs that may have a leasable task, by requirement, in the order in which they are served next."""

    def __init__(self) -> None:
        self.by_requires: dict[Requires, dict[int, Job]] = {}
        """Requirements with at least one job; the first is served next."""

    def __bool__(self) -> bool:
        return bool(self.by_requires)

    def add(self, job: Job) -> None:
        """The job may have something to lease (again); its place in the order stays if it has one."""
        if not job.is_ended and job.leasable:
            self.by_requires.setdefault(job.definition.requires, {}).setdefault(job.id, job)

    def remove(self, job: Job) -> None:
        """The job has nothing to lease until somebody adds it again."""
        jobs = self.by_requires.get(job.definition.requires)
        if jobs is not None and jobs.pop(job.id, None) is not None and not jobs:
            del self.by_requires[job.definition.requires]

    def first(self, requires: Requires) -> Job:
        """The job of a requirement whose turn it is."""
        return next(iter(self.by_requires[requires].values()))

    def rotate(self, job: Job) -> None:
        """The job has had its turn, and so has its requirement."""
        jobs = self.by_requires.pop(job.definition.requires)
        del jobs[job.id]
        jobs[job.id] = job
        self.by_requires[job.definition.requires] = jobs

    def __contains__(self, job: Job) -> bool:
        return job.id in self.by_requires.get(job.definition.requires, ())
