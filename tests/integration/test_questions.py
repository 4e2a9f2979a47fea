"""Whoever asks more than is answered meanwhile does not grow the coordinator, and hears of every question."""

from bench.machine import rss_mb
from dcoord.sessions import LIST_WEIGHT, PARKED_MAX
from districomp.messages import Query, Refused, Reply
from tests.integration.daemonlab import Lab, lab

__all__ = ["lab"]

TASKS = 2_000_000
LISTS = PARKED_MAX // LIST_WEIGHT


def coordinators_memory_mb(lab: Lab) -> float:
    assert lab.cluster.coordinator is not None
    return rss_mb(lab.cluster.coordinator.pid)


def test_lists_of_tasks_under_way_at_once_have_a_limit(lab: Lab) -> None:
    job = lab.submit(TASKS)
    before = coordinators_memory_mb(lab)
    with lab.client() as client:
        client.send(*(Query(number, "tasks", job) for number in range(8 * LISTS)))
        assert [client.expect(Refused).request for _ in range(7 * LISTS)] == list(range(LISTS, 8 * LISTS))
        # Each takes as many bytes as its job has tasks.
        assert coordinators_memory_mb(lab) - before < 2 * LISTS * TASKS / 1e6


def test_whoever_has_what_was_asked_may_ask_again(lab: Lab) -> None:
    job = lab.submit(1)
    with lab.client() as client:
        for number in range(2 * LISTS):
            client.send(Query(number, "tasks", job))
            while not client.expect(Reply).last:
                pass
        client.send(*(Query(number, "task", job) for number in range(PARKED_MAX)))
        answers = [client.expect(Reply).request for _ in range(PARKED_MAX)]
        client.send(*(Query(number, "task", job) for number in range(PARKED_MAX)))
        answers += [client.expect(Reply).request for _ in range(PARKED_MAX)]
    assert answers == list(range(PARKED_MAX)) * 2


def test_questions_that_wait_for_the_journal_have_a_limit(lab: Lab) -> None:
    job = lab.submit(1)
    with lab.client() as client:
        client.send(*(Query(number, "task", job) for number in range(4 * PARKED_MAX)))
        assert "already waits" in client.expect(Refused).text
