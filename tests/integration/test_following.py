"""Results pushed to clients as they are recorded: each row once and in order, whoever is slow, gone or late."""

import os
from collections.abc import Callable, Iterator

import msgspec
import pytest

from bench.machine import rss_mb
from dcoord.following import FOLLOWED_MAX, RECENT_BYTES
from demo.cluster import wait_until
from districomp.messages import Ack, Assign, Cancel, Query, Refused, Reply, ResultRows, Results
from districomp.model import CANCELLED
from districomp.outcome import Outcome
from tests.integration.daemonlab import Lab, Peer, lab

__all__ = ["lab"]

MEBI = 1024 * 1024


class Reader:
    """A client that follows one job; `rows` are the outcomes that it has been sent."""

    def __init__(self, lab: Lab, job: int, after: int = 0, request: int = 7) -> None:
        self.peer = lab.client()
        self.request = request
        self.after = after
        self.rows: list[Outcome] = []
        self.indexes: list[int] = []
        self.is_ended = False
        self.peer.send(Results(request, job, after, wait=True, follow=True))

    def read(self, until: Callable[["Reader"], bool]) -> None:
        """Take what comes until something holds; every row must be the next one."""
        while not until(self):
            message = self.peer.expect(ResultRows)
            assert message.request == self.request
            assert not self.is_ended, "something came after the last word"
            for body in message.rows:
                row = msgspec.msgpack.decode(body, type=Outcome)
                assert row.serial == self.after + 1, f"row {row.serial} came after {self.after}"
                self.after = row.serial
                self.rows.append(row)
                self.indexes += row.indexes
            assert message.after == self.after
            self.is_ended = message.ended

    def read_all(self) -> list[int]:
        """The indices of all tasks that ended, when the job has."""
        self.read(lambda reader: reader.is_ended)
        return self.indexes


class Follow:
    """Makes readers, whose connections are closed after the test."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.readers: list[Reader] = []

    def __call__(self, job: int, after: int = 0, request: int = 7) -> Reader:
        self.readers.append(Reader(self.lab, job, after, request))
        return self.readers[-1]


@pytest.fixture
def follow(lab: Lab) -> Iterator[Follow]:
    made = Follow(lab)
    yield made
    for reader in made.readers:
        reader.peer.close()


def run_tasks(lab: Lab, worker: Peer, count: int, result: bytes = b"r") -> None:
    """Take tasks one by one, each of a second, so that a worker of one slot is given no more; and report each."""
    for _ in range(count):
        report = lab.report(worker.expect(Assign), [result])
        report.started = [ended - 1.0 for ended in report.ended]
        worker.send(report)
        worker.expect(Ack)


def test_rows_come_by_themselves_to_all_who_follow(lab: Lab, follow: Follow) -> None:
    job = lab.submit(30)
    with lab.worker() as worker:
        readers = [follow(job)]
        run_tasks(lab, worker, 10)
        readers.append(follow(job))
        readers.append(follow(job, after=10))
        run_tasks(lab, worker, 10)
        readers[0].read(lambda reader: reader.after == 20)
        readers.append(follow(job, after=4))
        run_tasks(lab, worker, 10)
        late = follow(job)
    assert [reader.read_all() for reader in (*readers, late)] == [
        list(range(30)), list(range(30)), list(range(10, 30)), list(range(4, 30)), list(range(30)),
    ]  # fmt: skip


def test_several_jobs_are_followed_on_one_connection(lab: Lab) -> None:
    jobs = [lab.submit(3) for _ in range(5)]
    ended: dict[int, list[int]] = {number: [] for number in range(5)}
    with lab.client() as client, lab.worker() as worker:
        client.send(*(Results(number, job, 0, wait=True, follow=True) for number, job in enumerate(jobs)))
        run_tasks(lab, worker, 15)
        left = set(ended)
        while left:
            message = client.expect(ResultRows)
            for body in message.rows:
                ended[message.request] += msgspec.msgpack.decode(body, type=Outcome).indexes
            if message.ended:
                left.remove(message.request)
    assert ended == {number: [0, 1, 2] for number in range(5)}


def test_who_reads_slowly_holds_up_nobody_and_costs_no_memory(lab: Lab, follow: Follow) -> None:
    """The slow one is sent what fits into its socket, and the rest from the journal when it takes it."""
    count, result = 800, bytes(60_000)
    job = lab.submit(count)
    assert lab.cluster.coordinator is not None
    with lab.worker() as worker:
        slow = [follow(job, request=number) for number in range(8)]
        fast = follow(job)
        run_tasks(lab, worker, 50, result)
        fast.read(lambda reader: reader.after == 50)
        before = rss_mb(lab.cluster.coordinator.pid)
        run_tasks(lab, worker, count - 50, result)
        assert fast.read_all() == list(range(count))
        grown_mb = rss_mb(lab.cluster.coordinator.pid) - before
    assert count * len(result) > 5 * RECENT_BYTES
    assert grown_mb < count * len(result) / MEBI / 2, f"the coordinator has grown by {grown_mb:.0f} MB"
    for reader in slow:
        assert reader.read_all() == list(range(count))
        reader.peer.send(Results(99, job, 0, wait=False))
        assert reader.peer.expect(ResultRows).request == 99


def test_many_requests_of_one_slow_connection_are_one(lab: Lab, follow: Follow) -> None:
    """What waits for a connection is bounded by the connection, not by how many jobs it follows."""
    count, result, requests = 60, bytes(60_000), 64
    job = lab.submit(count)
    assert lab.cluster.coordinator is not None
    with lab.worker() as worker:
        run_tasks(lab, worker, 20, result)
        before = rss_mb(lab.cluster.coordinator.pid)
        with lab.client() as slow:
            slow.send(*(Results(number, job, 0, wait=True, follow=True) for number in range(requests)))
            run_tasks(lab, worker, count - 20, result)
            assert follow(job).read_all() == list(range(count))
            grown_mb = rss_mb(lab.cluster.coordinator.pid) - before
            assert grown_mb < requests * count * len(result) / MEBI / 8, f"it has grown by {grown_mb:.0f} MB"
            after = dict.fromkeys(range(requests), 0)
            ended: set[int] = set()
            while len(ended) < requests:
                message = slow.expect(ResultRows)
                assert message.after == after[message.request] + len(message.rows)
                after[message.request] = message.after
                if message.ended:
                    ended.add(message.request)
            assert set(after.values()) == {count}


def test_following_goes_on_after_kill_9(lab: Lab, follow: Follow) -> None:
    job = lab.submit(20)
    with lab.worker() as worker:
        reader = follow(job)
        run_tasks(lab, worker, 10)
        reader.read(lambda reader: reader.after >= 6)
        lab.kill_coordinator()
    lab.cluster.start_coordinator()
    again = follow(job, after=reader.after)
    with lab.worker() as worker:
        run_tasks(lab, worker, 10)
    assert reader.indexes + again.read_all() == list(range(20))


def test_a_job_that_has_ended_is_told_whole_and_at_once(lab: Lab, follow: Follow) -> None:
    job = lab.submit(5)
    with lab.worker() as worker:
        run_tasks(lab, worker, 5)
    assert follow(job).read_all() == list(range(5))
    nothing_more = follow(job, after=5)
    assert nothing_more.read_all() == []


def test_the_end_of_a_job_is_told_also_without_a_row_of_a_worker(lab: Lab, follow: Follow) -> None:
    job = lab.submit(5)
    reader = follow(job)
    with lab.client() as client:
        client.send(Cancel(1, job))
        assert reader.read_all() == []
    assert [row.sweep for row in reader.rows] == [CANCELLED]


def test_who_breaks_off_costs_nothing_any_more(lab: Lab) -> None:
    job = lab.submit(1)
    assert lab.cluster.coordinator is not None

    def come_and_go(times: int) -> float:
        for _ in range(times):
            with lab.client() as client:
                client.send(*(Results(number, job, 0, wait=True, follow=True) for number in range(FOLLOWED_MAX)))
                client.send(Query(FOLLOWED_MAX, "status"))
                client.expect(Reply)
        assert lab.cluster.coordinator is not None
        return rss_mb(lab.cluster.coordinator.pid)

    before = come_and_go(5)
    # As followers they would be 40 MB.
    assert come_and_go(100) - before < 10


def test_who_breaks_off_holds_up_nobody(lab: Lab, follow: Follow) -> None:
    job = lab.submit(40)
    with lab.worker() as worker:
        readers = [follow(job) for _ in range(6)]
        run_tasks(lab, worker, 10)
        for reader in readers[::2]:
            reader.peer.close()
        run_tasks(lab, worker, 30)
    for reader in readers[1::2]:
        assert reader.read_all() == list(range(40))


def test_a_connection_follows_only_so_much(lab: Lab) -> None:
    job = lab.submit(1)
    with lab.client() as client, lab.worker() as worker:
        client.send(*(Results(number, job, 0, wait=True, follow=True) for number in range(FOLLOWED_MAX + 1)))
        assert client.expect(Refused).request == FOLLOWED_MAX
        run_tasks(lab, worker, 1)
        for _ in range(FOLLOWED_MAX):
            assert client.expect(ResultRows).ended
        # And then as much again.
        client.send(Results(9999, job, 0, wait=True, follow=True))
        assert client.expect(ResultRows).request == 9999


def test_the_coordinator_stops_while_it_is_followed(lab: Lab, follow: Follow) -> None:
    job = lab.submit(400)
    readers = [follow(job) for _ in range(3)]
    with lab.worker() as worker:
        run_tasks(lab, worker, 100, bytes(60_000))
        readers[0].read(lambda reader: reader.after == 100)
    assert lab.cluster.coordinator is not None
    assert lab.cluster.coordinator.stop() == os.EX_OK
    wait_until(lambda: lab.cluster.coordinator is not None and lab.cluster.coordinator.returncode == 0, "its end")
