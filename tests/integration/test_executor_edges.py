"""`districomp.Executor` in the hands of those who do what nobody thought of: functions that carry data, callbacks that
shut down or exit, executors that are forgotten or forked, Ctrl-C, and the end of the program.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from demo.cluster import wait_until
from districomp import Executor
from tests.integration import executorlab
from tests.integration.executorlab import ExecutorLab, executor, lab, notes, writes_its_pid_and_sleeps

__all__ = ["executor", "lab", "notes"]

BOUND_S = 30
ROOT = Path(__file__).resolve().parents[2]
FORKED = """
import os, sys
from districomp import Executor

executor = Executor()
assert executor.submit(abs, -1).result() == executor.client.status().workers - 1
child = os.fork()
for _ in range(200):
    assert executor.client.status().slots == 4 if child else executor.client.definitions()
if not child:
    try:
        executor.submit(abs, -2)
    except RuntimeError as error:
        print(error, flush=True)
    sys.exit()
assert os.wait()[1] == 0
print(executor.submit(abs, -3).result())
"""
ENDING = """
import time
from districomp import Executor

def work(size):
    time.sleep(0.5)
    return bytes(size)

executor = Executor()
for size in [100_000, 1, 100_000]:
    executor.submit(work, size).add_done_callback(lambda future: print(len(future.result())))
"""


@pytest.fixture(autouse=True)
def by_value() -> Iterator[None]:
    """The workers have no tests to import."""
    cloudpickle.register_pickle_by_value(executorlab)
    yield
    cloudpickle.unregister_pickle_by_value(executorlab)


def run(lab: ExecutorLab, program: str) -> list[str]:
    """The lines of a program of its own."""
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env=lab.cluster.environment | {"PYTHONPATH": str(ROOT / "daemons")},
        capture_output=True,
        text=True,
        timeout=BOUND_S,
    )
    assert (ran.stderr, ran.returncode) == ("", 0)
    return ran.stdout.splitlines()


def test_functions_that_carry_data_are_sent_in_as_many_messages_as_it_takes(executor: Executor) -> None:
    made = [executor.submit(lambda data=bytes([k]) * 30_000: len(data) + data[0]) for k in range(100)]
    assert [one.result(BOUND_S) for one in made] == [30_000 + k for k in range(100)]


def test_functions_called_a_few_times_each_go_into_few_jobs(lab: ExecutorLab, executor: Executor) -> None:
    with lab.client() as client:
        before = len(client.jobs())
        functions = [lambda x, k=k: x + k for k in range(300)]
        made = [executor.submit(function, x) for function in functions for x in (1, 2)]
        assert [one.result(BOUND_S) for one in made] == [k + x for k in range(300) for x in (1, 2)]
        assert len(client.jobs()) - before < 60


def test_shutdown_cancels_what_waits_for_its_turn_to_be_submitted(
    lab: ExecutorLab, executor: Executor, notes: Path
) -> None:
    gate = threading.Event()

    class Gate:
        def __reduce__(self) -> Any:
            gate.wait(BOUND_S)
            return int, ()

    assert executor.submit(abs, -1).result(BOUND_S) == 1
    assert lab.cluster.coordinator is not None
    os.kill(lab.cluster.coordinator.pid, signal.SIGSTOP)
    try:
        first = Gate()
        made: list[futures.Future[Any]] = [executor.submit(lambda: first)]
        for k in range(10):  # functions, of which each becomes a job while two of them wait for the coordinator
            function = lambda path, k=k: writes_its_pid_and_sleeps(path)  # noqa: E731 - each is another
            made += [executor.submit(function, str(notes / f"{k}")) for _ in range(8)]
        gate.set()
        wait_until(lambda: not executor._submitted.pending, "all to be made into jobs")
        executor.shutdown(wait=False, cancel_futures=True)
    finally:
        os.kill(lab.cluster.coordinator.pid, signal.SIGCONT)
    assert not futures.wait(made, BOUND_S).not_done
    assert all(one.cancelled() for one in made)


def test_a_callback_may_shut_down(executor: Executor) -> None:
    stream = sys.stdout
    one = executor.submit(lambda: stream)  # cannot be pickled, which is told while a job is made
    one.add_done_callback(lambda _: executor.shutdown(wait=True, cancel_futures=True))
    assert isinstance(one.exception(BOUND_S), TypeError)
    executor.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(abs, -1)


def test_a_callback_that_exits_ends_nothing_else(executor: Executor, caplog: pytest.LogCaptureFixture) -> None:
    one = executor.submit(abs, -1)
    one.add_done_callback(lambda _: sys.exit(3))
    assert one.result(BOUND_S) == 1
    assert executor.submit(abs, -2).result(BOUND_S) == 2
    assert "SystemExit: 3" in caplog.text


def test_what_the_call_raised_may_be_unchangeable(executor: Executor) -> None:
    class FrozenError(Exception):
        def __setattr__(self, name: str, value: object) -> None:
            raise TypeError("frozen")

    def fail() -> None:
        raise FrozenError

    one, other = executor.submit(fail), executor.submit(abs, -1)
    assert isinstance(one.exception(BOUND_S), FrozenError)
    assert "in fail" in str(one.exception(BOUND_S).__cause__)  # type: ignore[union-attr]
    assert other.result(BOUND_S) == 1


def test_map_goes_on_when_its_executor_is_forgotten(lab: ExecutorLab) -> None:
    assert list(lab.executor().map(abs, range(25_000))) == [*range(25_000)]


def test_an_input_that_ends_at_the_end_of_the_buffer_was_read_to_its_end(lab: ExecutorLab) -> None:
    with lab.executor() as executor:
        results = executor.map(abs, range(4), buffersize=4)
    assert list(results) == [0, 1, 2, 3]


def test_large_results_are_fetched_after_the_shutdown_too_and_no_connection_is_left(lab: ExecutorLab) -> None:
    with lab.executor() as executor:
        results = executor.map(bytes, [100_000, 200_000])
    assert [len(result) for result in results] == [100_000, 200_000]
    assert not executor.client._pool._idle
    with lab.executor() as executor:
        results = executor.map(bytes, [100_000, 200_000])
        next(results)
    assert executor.client._pool._idle
    del results
    assert not executor.client._pool._idle


def test_interrupting_map_while_it_reads_cancels_what_it_has_read(executor: Executor, notes: Path) -> None:
    def paths() -> Iterator[str]:
        for k in range(8):
            yield str(notes / str(k))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        executor.map(writes_its_pid_and_sleeps, paths())
    executor.shutdown()


def test_a_fork_is_told_to_make_its_own(lab: ExecutorLab) -> None:
    said, three = run(lab, FORKED)
    assert "make another one here" in said
    assert three == "3"


def test_large_results_are_waited_for_at_the_end_of_the_program(lab: ExecutorLab) -> None:
    assert sorted(run(lab, ENDING)) == ["1", "100000", "100000"]
