"""`districomp.Executor` on a real cluster: what a caller gets back, in which order, and what cancelling does."""

import asyncio
import functools
import operator
import os
import re
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
from tqdm import tqdm

from demo.cluster import wait_until
from districomp import CallFailedError, Executor, RemoteTraceback, executor_calls, executor_engine
from tests.integration import executorlab
from tests.integration.executorlab import ExecutorLab, executor, is_gone, lab, notes, writes_its_pid_and_sleeps
from tests.patience import PATIENCE_S

__all__ = ["executor", "lab", "notes"]

BOUND_S = PATIENCE_S
ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
class Mine(Exception):
    pass

def raises(x):
    raise Mine(x)

executor = Executor()
error = executor.submit(raises, 3).exception()
last = executor.submit(abs, -3)
last.add_done_callback(lambda future: print("done", future.result(), type(error) is Mine))
# Not shut down: what was submitted is waited for at the end.
"""


@pytest.fixture(autouse=True)
def by_value() -> Iterator[None]:
    """The workers have no tests to import."""
    with_us = (__import__(__name__, fromlist=["_"]), executorlab)
    for module in with_us:
        cloudpickle.register_pickle_by_value(module)
    yield
    for module in with_us:
        cloudpickle.unregister_pickle_by_value(module)


class Point:
    """A class of the caller's."""

    def __init__(self, x: int) -> None:
        self.x = x

    def moved(self, by: int) -> "Point":
        return Point(self.x + by)


class LabError(Exception):
    """An exception with more in it than its arguments."""

    def __init__(self, number: int) -> None:
        super().__init__(f"number {number}")
        self.number = number

    def __reduce__(self) -> Any:
        return LabError, (self.number,)


class UnreadableError(Exception):
    """One that can be pickled, and read by nobody."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__("of two arguments")


def divide(a: int, b: int) -> float:
    return a / b


def fail(number: int) -> None:
    print("said before")
    raise LabError(number)


# ---- submit ----


def test_all_sorts_of_functions_can_be_submitted(executor: Executor) -> None:
    base = 100
    assert executor.submit(pow, 2, 10).result(BOUND_S) == 1024
    assert executor.submit(lambda x: x + base, 1).result(BOUND_S) == 101
    assert executor.submit(divide, b=4, a=1).result(BOUND_S) == 0.25
    assert executor.submit(functools.partial(operator.sub, 10), 3).result(BOUND_S) == 7
    assert executor.submit("a,b".split, ",").result(BOUND_S) == ["a", "b"]
    point = executor.submit(Point(1).moved, 2).result(BOUND_S)
    assert type(point) is Point and point.x == 3, "an object of the caller's own class comes back as one"
    assert executor.submit(Point, 5).result(BOUND_S).x == 5
    assert [executor.submit(str).result(BOUND_S), executor.submit(dict, a=None).result(BOUND_S)] == ["", {"a": None}]


def test_calls_of_many_functions_go_into_few_jobs(lab: ExecutorLab, executor: Executor) -> None:
    with lab.client() as client:
        before = len(client.jobs())
        made = [executor.submit(lambda x, k=k: x + k, 1) for k in range(500)]
        assert [one.result(BOUND_S) for one in made] == [k + 1 for k in range(500)]
        assert len(client.jobs()) - before < 100


def test_tens_of_thousands_of_futures_and_several_threads(executor: Executor) -> None:
    found: dict[int, list[int]] = {}

    def submit(thread: int) -> None:
        mine = [executor.submit(operator.add, thread * 100_000, k) for k in range(8000)]
        found[thread] = [one.result(BOUND_S) for one in mine]

    threads = [threading.Thread(target=submit, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {thread: list(range(thread * 100_000, thread * 100_000 + 8000)) for thread in range(4)}


def test_what_waits_for_futures_waits_for_these(executor: Executor) -> None:
    made = {executor.submit(pow, k, 2): k for k in range(200)}
    assert all(one.result() == made[one] ** 2 for one in futures.as_completed(made, BOUND_S))
    done, not_done = futures.wait([executor.submit(abs, -1), executor.submit(abs, -2)], BOUND_S)
    assert (len(done), len(not_done)) == (2, 0)
    told: list[Any] = []
    one = executor.submit(abs, -3)
    one.add_done_callback(told.append)
    wait_until(lambda: told == [one], "the callback")


def test_asyncio_waits_for_them_too(executor: Executor) -> None:
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        wrapped = [asyncio.wrap_future(executor.submit(abs, -k)) for k in range(10)]
        return [*await asyncio.gather(*wrapped), await loop.run_in_executor(executor, abs, -10)]

    assert asyncio.run(main()) == list(range(11))


def test_large_arguments_results_and_functions(executor: Executor) -> None:
    large = os.urandom(300_000)
    assert executor.submit(len, large).result(BOUND_S) == 300_000
    assert executor.submit(bytes, 300_000).result(BOUND_S) == bytes(300_000)
    assert executor.submit(lambda x: (x, large[:3]), 1).result(BOUND_S) == (1, large[:3])
    many = [executor.submit(lambda x, large=large: x + len(large), k) for k in range(3)]
    assert [one.result(BOUND_S) for one in many] == [300_000, 300_001, 300_002]
    assert list(executor.map(lambda x: x + len(large), range(100))) == list(range(300_000, 300_100))
    assert [len(body) for body in executor.map(bytes, [100_000, 3, 100_000])] == [100_000, 3, 100_000]
    assert [len(body) for body in executor.map(bytes, [100_000, 3], chunksize=2)] == [100_000, 3]
    assert list(executor.map(len, [large, b"abc"])) == [300_000, 3]


# ---- what calls raise ----


def test_an_exception_comes_back_as_itself_with_the_workers_traceback(executor: Executor) -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        executor.submit(divide, 1, 0).result(BOUND_S)
    assert isinstance(raised.value.__cause__, RemoteTraceback)
    text = str(raised.value.__cause__)
    assert "in divide" in text and "ZeroDivisionError: division by zero" in text
    assert "districomp_callable" not in text, "our own frames are nobody's business"
    error = executor.submit(fail, 7).exception(BOUND_S)
    assert type(error) is LabError and error.number == 7
    assert "said before" in str(error.__cause__)
    with pytest.raises(SystemExit):
        executor.submit(__import__("sys").exit, 3).result(BOUND_S)


def test_what_cannot_be_sent_says_so(executor: Executor) -> None:
    def raises_unreadable() -> None:
        raise UnreadableError(1, 2)

    with pytest.raises(CallFailedError, match=r"(?s)whose exception could not be sent.*UnreadableError: of two"):
        executor.submit(raises_unreadable).result(BOUND_S)
    with pytest.raises(TypeError, match="pickle"):
        executor.submit(abs, threading.Lock()).result(BOUND_S)
    lock = threading.Lock()
    with pytest.raises(TypeError, match="pickle"):
        executor.submit(lambda: lock).result(BOUND_S)
    with pytest.raises(TypeError, match="pickle") as raised:
        executor.submit(threading.Lock).result(BOUND_S)
    assert "The call returned lock, which cannot be sent back." in str(raised.value.__cause__)
    cloudpickle.unregister_pickle_by_value(executorlab)
    try:
        with pytest.raises(ModuleNotFoundError) as unknown:
            executor.submit(is_gone, 1).result(BOUND_S)
    finally:
        cloudpickle.register_pickle_by_value(executorlab)
    assert "register_pickle_by_value" in str(unknown.value.__cause__)
    assert executor.submit(abs, -1).result(BOUND_S) == 1, "and the executor goes on"


def test_a_call_that_kills_its_process_names_task_and_reason(executor: Executor) -> None:
    with pytest.raises(CallFailedError) as raised:
        executor.submit(lambda: os.kill(os.getpid(), signal.SIGSEGV)).result(BOUND_S)
    assert raised.value.reason == "signal" and "signal 11" in str(raised.value)
    assert raised.value.task.partition(".")[2] == "0"


def test_another_python_is_refused_before_anything_runs(
    executor: Executor, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = executor_calls.PYTHON
    monkeypatch.setattr(executor_calls, "PYTHON", "cpython-3.99")
    with pytest.raises(CallFailedError, match=f"Nothing was run: this worker has Python {ours}, .* has cpython-3.99"):
        executor.submit((notes / "ran").touch).result(BOUND_S)
    with pytest.raises(CallFailedError, match=r"cpython-3\.99"):
        list(executor.map(lambda _: (notes / "ran").touch(), [1]))
    assert not (notes / "ran").exists()


# ---- map ----


def test_map_is_as_the_built_in_one(executor: Executor) -> None:
    assert list(executor.map(abs, range(-5000, 5000))) == list(map(abs, range(-5000, 5000)))
    assert list(executor.map(pow, [1, 2, 3], [4, 5])) == [1, 32]
    assert list(executor.map(abs, [])) == []
    assert list(executor.map(lambda x: [x], range(1000), chunksize=64)) == [[x] for x in range(1000)]
    assert sorted(executor.map(abs, range(3000), ordered=False)) == list(range(3000))
    assert sorted(executor.map(abs, range(300), ordered=False, chunksize=7)) == list(range(300))
    assert list(tqdm(executor.map(abs, range(10)), total=10, disable=True)) == list(range(10))
    with pytest.raises(ValueError, match="chunksize"):
        executor.map(abs, [1], chunksize=0)
    with pytest.raises(ValueError, match="buffersize"):
        executor.map(abs, [1], buffersize=0)


def test_map_reads_an_endless_input_no_further_than_its_buffer(executor: Executor) -> None:
    read = 0

    def endless() -> Iterator[int]:
        nonlocal read
        while True:
            read += 1
            yield read

    results = executor.map(abs, endless(), buffersize=100)
    for taken in range(1, 2000):
        assert next(results) == taken
        assert read <= taken + 100
    unordered = executor.map(abs, endless(), buffersize=100, ordered=False)
    before = read
    for taken in range(1, 500):
        next(unordered)
        assert read <= before + taken + 100


def test_map_gives_what_came_before_an_error(executor: Executor) -> None:
    def until_seven() -> Iterator[int]:
        yield from range(7)
        raise LabError(7)

    given: list[int] = []
    with pytest.raises(LabError):
        given.extend(executor.map(abs, until_seven()))
    assert given == list(range(7))
    results = executor.map(lambda x: 6 // x, [3, 2, 0, 1])
    assert [next(results), next(results)] == [2, 3]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_map_runs_out_of_time(lab: ExecutorLab, executor: Executor, notes: Path) -> None:
    with pytest.raises(TimeoutError):
        list(executor.map(writes_its_pid_and_sleeps, [str(notes / "pid")], timeout=2))
    wait_until(lambda: is_gone(int(lab.wait_for(notes / "pid"))), "the call that nobody waits for to be ended")


def test_leaving_a_map_cancels_the_rest(lab: ExecutorLab, executor: Executor, notes: Path) -> None:
    for name in ("taken", "untouched"):
        path = notes / name

        def work(k: int, path: Path = path) -> int:
            if k:
                writes_its_pid_and_sleeps(str(path))
            return k

        results: Any = executor.map(work, [0, 1])
        pid = int(lab.wait_for(path))
        if name == "taken":
            assert next(results) == 0
            results.close()
        del results
        wait_until(lambda pid=pid: is_gone(pid), "the call that nobody waits for to be ended")  # type: ignore[misc]


# ---- cancelling and the end ----


def test_cancel_ends_what_runs_and_what_is_queued(lab: ExecutorLab, executor: Executor, notes: Path) -> None:
    slow = [executor.submit(writes_its_pid_and_sleeps, str(notes / f"{k}")) for k in range(4)]
    pids = [int(lab.wait_for(notes / f"{k}")) for k in range(4)]
    queued = executor.submit(writes_its_pid_and_sleeps, str(notes / "queued"))
    assert not any(one.done() for one in [*slow, queued])
    assert queued.cancel() and queued.cancel() and queued.cancelled()
    for one in slow:
        assert one.cancel()
    done, _ = futures.wait([*slow, queued], BOUND_S)
    assert len(done) == 5
    with pytest.raises(futures.CancelledError):
        slow[0].result()
    for pid in pids:
        wait_until(lambda pid=pid: is_gone(pid), "a cancelled call to end")  # type: ignore[misc]
    one = executor.submit(abs, -1)
    assert one.result(BOUND_S) == 1 and not one.cancel()
    assert not (notes / "queued").exists()


def test_a_person_who_cancels_the_job_cancels_the_futures(lab: ExecutorLab, executor: Executor, notes: Path) -> None:
    made = [executor.submit(writes_its_pid_and_sleeps, str(notes / f"{k}")) for k in range(50)]
    lab.wait_for(notes / "0")
    with lab.client() as client:
        for document in client.jobs():
            if document.state == "running":
                client.cancel(document.job)
        while not all(one.done() for one in made):
            for document in client.jobs():
                client.cancel(document.job)
    assert all(one.cancelled() for one in made)


def test_shutdown_waits_or_cancels(lab: ExecutorLab, notes: Path) -> None:
    with lab.executor() as executor:
        made = [executor.submit(abs, -k) for k in range(1000)]
        unread = executor.map(abs, range(100_000))
    assert all(one.done() for one in made)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(abs, 1)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.map(abs, [1])
    assert next(unread) == 0
    with pytest.raises(RuntimeError, match="inside the with block"):
        list(unread)
    executor = lab.executor()
    made = [executor.submit(writes_its_pid_and_sleeps, str(notes / f"{k}")) for k in range(100)]
    mapped = executor.map(writes_its_pid_and_sleeps, [str(notes / f"mapped-{k}") for k in range(10)])
    lab.wait_for(notes / "0")
    executor.shutdown(cancel_futures=True)
    assert all(one.cancelled() for one in made)
    with pytest.raises(futures.CancelledError):
        next(mapped)
    executor = lab.executor()
    one = executor.submit(abs, -1)
    executor.shutdown(wait=False)
    assert one.result(BOUND_S) == 1


def test_many_jobs_under_way_go_on_by_a_second_connection(
    lab: ExecutorLab, executor: Executor, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor_engine, "OPEN_MAX", 3)
    before = threads()
    slow = []
    for k in range(4):  # as many as there are slots: a job each
        slow.append(executor.submit(writes_its_pid_and_sleeps, str(notes / f"{k}")))
        lab.wait_for(notes / f"{k}")
    assert threads() == before + 2, "a connection has a thread"
    queued = [executor.submit(abs, -k) for k in range(10)]
    slow.pop().cancel()
    assert [one.result(BOUND_S) for one in queued] == list(range(10))
    for one in slow:
        one.cancel()


def threads() -> int:
    """How many serve executors."""
    return sum(thread.name == executorlab.THREAD for thread in threading.enumerate())


def test_the_document_is_true_of_a_program_of_its_own(lab: ExecutorLab, tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/python.md").read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 3
    program = tmp_path / "program.py"
    program.write_text("\n".join([*blocks, PROGRAM]))
    ran = subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        env=lab.cluster.environment | {"PYTHONPATH": str(ROOT / "daemons")},
        capture_output=True,
        text=True,
        timeout=BOUND_S,
    )
    assert (ran.stdout, ran.stderr, ran.returncode) == ("done 3 True\n", "", 0)


def test_masking_the_definition_forbids_callables(lab: ExecutorLab, executor: Executor) -> None:
    mask = lab.cluster.config / "tasks.d" / "callable.yaml"
    mask.symlink_to("/dev/null")
    try:

        def error() -> BaseException | None:
            return executor.submit(abs, 1).exception(BOUND_S)

        wait_until(lambda: error() is not None, "the mask to be seen")
        assert "runs no Python callables: its definition 'callable', which is live as shipped, is masked" in str(
            error()
        )
    finally:
        mask.unlink()
    wait_until(lambda: executor.submit(abs, 1).exception(BOUND_S) is None, "it to be live again")
