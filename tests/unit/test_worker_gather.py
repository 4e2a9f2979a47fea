"""When a worker reports what ended: in company, unless somebody may wait for just that."""

from collections.abc import Iterator

import pytest

from districomp.messages import BATCH_TASKS, Assign, Reports
from dworker.gather import GATHER_S, LAST_S, SLACK_S
from tests.unit.workerlab import Lab


@pytest.fixture
def lab() -> Iterator[Lab]:
    made = Lab(slots=1)
    made.connect()
    made.define()
    yield made
    made.core.check()


def reported(lab: Lab) -> list[int]:
    return [lease for message in lab.sent if isinstance(message, Reports) for lease in message.leases]


def test_what_ended_is_reported_together(lab: Lab) -> None:
    lab.hear(Assign(1, 1, list(range(100))))
    for _ in range(3):
        lab.end(lab.starts[0])
        assert lab.sent == []
        lab.now += GATHER_S / 8
    assert lab.core.deadline() == pytest.approx(100.0 + GATHER_S + SLACK_S), "nothing wakes us just for that before"
    lab.wait(GATHER_S)
    assert reported(lab) == [1, 2, 3]


def test_the_first_that_ended_says_when(lab: Lab) -> None:
    lab.hear(Assign(1, 1, list(range(100))))
    lab.end(lab.starts[0])
    due = lab.core.deadline()
    lab.now += GATHER_S / 2
    lab.end(lab.starts[0])
    assert lab.core.deadline() == due


def test_once_more_has_ended_than_waits_it_is_reported(lab: Lab) -> None:
    lab.hear(Assign(1, 1, list(range(6))))
    counts = []
    for _ in range(6):
        lab.end(lab.starts[0])
        counts.append(len(reported(lab)))
    assert counts == [0, 0, 3, 0, 2, 1], "and nothing that is the last one waits"


def test_the_last_of_a_job_waits_less_for_those_of_others(lab: Lab) -> None:
    lab.define(2)
    lab.hear(Assign(1, 1, [0]), Assign(2, 2, list(range(100))))
    lab.end(lab.starts[0])
    assert lab.sent == []
    assert lab.core.deadline() == pytest.approx(100.0 + LAST_S)
    lab.wait(LAST_S)
    assert reported(lab) == [1]


def test_a_whole_message_does_not_wait(lab: Lab) -> None:
    lab.define(2, isolation=["sandbox"])
    lab.hear(Assign(1, 1, list(range(2 * BATCH_TASKS))))
    lab.hear(Assign(2, 10_000, list(range(BATCH_TASKS - 1))))
    assert lab.sent == []
    lab.hear(Assign(2, 20_000, [0]))
    assert len(reported(lab)) == BATCH_TASKS
