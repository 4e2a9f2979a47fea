"""joblib's backend `districomp`, there once this module is imported: `joblib.parallel_config(backend="districomp")`.

Owns what joblib asks of a backend; calls are an `Executor`'s. Nothing of ours imports this: joblib is no dependency.
"""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, ClassVar

from joblib import register_parallel_backend
from joblib._parallel_backends import AutoBatchingMixin, ParallelBackendBase, SequentialBackend

from districomp.client import Client
from districomp.executor import Executor


class DistricompBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """Runs joblib's batches on the cluster; `client` as `Executor` takes it. The workers need joblib, too."""

    supports_retrieve_callback: ClassVar[bool] = True
    default_n_jobs: ClassVar[int] = -1
    """All slots, unless somebody says how many."""

    def __init__(self, client: Client | str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._given = client
        self._executor: Executor | None = None
        self._running: dict[Future[Any], None] = {}

    @property
    def executor(self) -> Executor:
        """The executor of all calls of this backend; it ends with the backend."""
        if self._executor is None:
            self._executor = Executor(self._given)
        return self._executor

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """joblib: how many calls run side by side. Negative: all slots but (-1 - n_jobs)."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is not None and n_jobs > 0:
            return n_jobs
        slots = self.executor.client.status().slots
        return max(1, slots + 1 + (-1 if n_jobs is None else n_jobs))

    def submit(self, func: Callable[[], Any], callback: Callable[[Future[Any]], Any] | None = None) -> Future[Any]:
        """joblib: have a batch run."""
        future = self.executor.submit(func)
        self._running[future] = None
        future.add_done_callback(self._forget)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """joblib: what a batch returned, or raised."""
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """joblib: a call failed, the others are not wanted."""
        for future in list(self._running):
            future.cancel()

    def stop_call(self) -> None:
        """joblib: the end of one `Parallel(...)(...)`."""
        self.reset_batch_stats()

    def get_nested_backend(self) -> tuple[Any, int | None]:
        """joblib: for a `Parallel` within a call. A slot is one processor."""
        return SequentialBackend(nesting_level=(self.nesting_level or 0) + 1), None

    def _forget(self, future: Future[Any]) -> None:
        self._running.pop(future, None)


register_parallel_backend("districomp", DistricompBackend)
