"""Journal before acknowledgement: when the commit of a batch fails, nothing of that batch has been said."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from districomp.messages import Accepted, Ack, Assign, Goodbye, Submit

from .daemonlab import Lab, lab

__all__ = ["lab"]


@contextmanager
def unwritable_journal(lab: Lab) -> Iterator[None]:
    """The coordinator may not make any file longer, as on a full disk."""
    coordinator = lab.cluster.coordinator
    assert coordinator is not None
    limit = resource.prlimit(coordinator.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.prlimit(coordinator.pid, resource.RLIMIT_FSIZE, limit)


def test_a_report_that_is_not_on_disk_is_not_acknowledged(lab: Lab) -> None:
    lab.submit(1)
    with lab.worker() as worker:
        report = lab.report(worker.expect(Assign), [b"kept"])
        with unwritable_journal(lab):
            worker.send(report)
            assert worker.expect(Goodbye).code == "degraded"
            with pytest.raises((AssertionError, ConnectionError)):
                worker.expect(Ack)


def test_a_submission_that_is_not_on_disk_is_not_acknowledged(lab: Lab) -> None:
    with lab.client() as client, unwritable_journal(lab):
        client.send(Submit(1, "", "shell", {"argv": ["true"]}, numbers=(0, 1), count=1))
        assert client.expect(Goodbye).code == "degraded"
        with pytest.raises((AssertionError, ConnectionError)):
            client.expect(Accepted)
