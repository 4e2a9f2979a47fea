"""Which jobs have something to lease: taken in turn, so that a small job never waits behind a huge one.

Knows jobs as wholes only; their indices are `job.py`'s.
"""

from dcoord.core.job import Job


class Backlog:
    """The jobs that may have a leasable task, in the order in which they are served next."""

    def __init__(self) -> None:
        self._jobs: dict[int, Job] = {}

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def add(self, job: Job) -> None:
        """The job may have something to lease (again); its place in the order stays if it has one."""
        if not job.is_ended and job.leasable:
            self._jobs.setdefault(job.id, job)

    def remove(self, job: Job) -> None:
        """The job has nothing to lease until somebody adds it again."""
        self._jobs.pop(job.id, None)

    def first(self) -> Job:
        """The job whose turn it is."""
        return next(iter(self._jobs.values()))

    def rotate(self, job: Job) -> None:
        """The job has had its turn."""
        del self._jobs[job.id]
        self._jobs[job.id] = job

    def __contains__(self, job: Job) -> bool:
        return job.id in self._jobs
