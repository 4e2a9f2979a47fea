"""`districomp.Executor` while coordinators and workers die, and below joblib."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from joblib import Parallel, delayed, parallel_config

import districomp.joblib_backend
from demo.cluster import wait_until
from districomp import CallFailedError
from tests.integration import executorlab
from tests.integration.executorlab import ExecutorLab, is_gone, running, writes_its_pid_and_sleeps
from tests.patience import PATIENCE_S

BOUND_S = PATIENCE_S


@pytest.fixture
def own(tmp_path: Path) -> Iterator[ExecutorLab]:
    """A cluster of a test's own, to break."""
    cloudpickle.register_pickle_by_value(executorlab)
    with running(tmp_path, lease="2s") as lab:
        yield lab
    cloudpickle.unregister_pickle_by_value(executorlab)


def test_a_coordinator_that_is_killed_twice_loses_no_call(own: ExecutorLab) -> None:
    def work(k: int) -> int:
        time.sleep(0.001)
        return -k

    calls = 3000
    with own.executor() as executor:
        made = [executor.submit(work, k) for k in range(calls)]
        results = executor.map(work, range(calls))
        taken: list[int] = []
        for fraction in (1, 2):
            while len(taken) < fraction * calls // 4:
                taken.append(next(results))
            assert own.cluster.coordinator is not None
            own.cluster.coordinator.kill()
            own.cluster.start_coordinator()
        more = [executor.submit(work, k) for k in range(10)]
        assert [*taken, *results] == [-k for k in range(calls)]
        assert [one.result(BOUND_S) for one in [*made, *more]] == [-k for k in [*range(calls), *range(10)]]
    with own.client() as client:
        documents = client.jobs()
    assert sum(document.tasks for document in documents) == 2 * calls + 10, "no call was submitted twice"


def test_a_call_whose_worker_is_killed_runs_again(own: ExecutorLab) -> None:
    def work(path: str) -> str:
        if not os.path.exists(path):  # noqa: PTH110 - the workers have this alone
            writes_its_pid_and_sleeps(path)
        return "again"

    with own.executor() as executor:
        path = own.notes / "pid"
        one = executor.submit(work, str(path))
        pid = int(own.wait_for(path))
        busy = next(
            process
            for process in own.cluster.workers.values()
            if str(process.pid) in ancestors(pid)
        )  # fmt: skip
        busy.kill()
        assert one.result(BOUND_S) == "again"
        wait_until(lambda: is_gone(pid), "the worker's children to go with it")


def ancestors(pid: int) -> list[str]:
    """The process ids of a process' parents."""
    found: list[str] = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(str(pid))
    return found


def test_a_lost_cluster_fails_what_waits_and_breaks_the_executor(
    own: ExecutorLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    from districomp.client import Client
    from districomp.errors import TrustError

    with own.executor() as executor:
        assert executor.submit(abs, -1).result(BOUND_S) == 1
        one = executor.submit(writes_its_pid_and_sleeps, str(own.notes / "pid"))
        mapped = executor.map(writes_its_pid_and_sleeps, [str(own.notes / "mapped")])
        own.wait_for(own.notes / "mapped")

        def refused(*_: Any) -> None:
            raise TrustError("it is another cluster by now")

        monkeypatch.setattr(Client, "take_link", refused)
        assert own.cluster.coordinator is not None
        own.cluster.coordinator.kill()
        with pytest.raises(TrustError):
            one.result(BOUND_S)
        with pytest.raises(TrustError):
            next(mapped)
        with pytest.raises(RuntimeError, match="has lost its cluster: it is another"):
            executor.submit(abs, -1)


def test_an_executor_that_waits_for_nothing_needs_no_coordinator(own: ExecutorLab) -> None:
    idle, other = own.executor(), own.executor()
    assert idle.submit(abs, -1).result(BOUND_S) == other.submit(abs, -2).result(BOUND_S) - 1
    assert own.cluster.coordinator is not None
    own.cluster.coordinator.kill()
    idle.shutdown()
    own.cluster.start_coordinator()
    assert other.submit(abs, -3).result(BOUND_S) == 3
    other.shutdown()


def test_joblib_runs_its_calls_on_the_cluster(own: ExecutorLab) -> None:
    here = os.getpid()
    backend = districomp.joblib_backend.DistricompBackend(own.socket)
    with parallel_config(backend=backend):
        assert Parallel()(delayed(pow)(k, 2) for k in range(300)) == [k * k for k in range(300)]
        pids = Parallel(n_jobs=2)(delayed(os.getpid)() for _ in range(20))
        assert here not in pids
        assert sorted(Parallel(return_as="generator_unordered")(delayed(abs)(-k) for k in range(50))) == [*range(50)]
        nested = Parallel()(
            delayed(lambda k: Parallel(n_jobs=2)(delayed(abs)(-j) for j in range(k)))(k) for k in (2, 3)
        )
        assert nested == [[0, 1], [0, 1, 2]]
        with pytest.raises(ZeroDivisionError):
            Parallel()(delayed(divmod)(1, k % 7) for k in range(20))
        path = own.notes / "pid"
        with pytest.raises(CallFailedError, match="signal"):
            Parallel()(
                delayed(lambda k: os.kill(os.getpid(), signal.SIGKILL) if k else writes_its_pid_and_sleeps(str(path)))(
                    k
                )
                for k in range(2)
            )
    with parallel_config(backend="districomp", client=own.socket, n_jobs=-1):
        assert Parallel()(delayed(abs)(-k) for k in range(3)) == [0, 1, 2]
    assert backend.effective_n_jobs(-1) == backend.effective_n_jobs(None) == 4
    assert (backend.effective_n_jobs(-2), backend.effective_n_jobs(7)) == (3, 7)
    with pytest.raises(ValueError, match="no meaning"):
        backend.effective_n_jobs(0)
