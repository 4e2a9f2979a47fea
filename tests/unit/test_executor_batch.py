"""How calls become jobs: no job is larger than a message, and there are few of them."""

from typing import Any, cast

from districomp.executor import CallFuture, Submitted, _Call
from districomp.executor_batch import BATCH_ITEMS_BYTES, item_cost
from districomp.executor_calls import pack_args
from districomp.executor_map import MapBatch
from districomp.model import INLINE_BYTES_MAX

NOBODY: Any = None


def submitted(functions: int, times: int, size: int) -> Submitted:
    """Calls of functions that carry data."""
    source = Submitted(NOBODY)
    for k in range(functions):
        function = lambda x, data=bytes([k % 256]) * size: (x, data)  # noqa: E731 - each is another
        for x in range(times):
            source.pending.append(_Call(CallFuture(), function, "args", pack_args((x,))))
    return source


def test_calls_of_many_functions_make_few_jobs_that_fit_into_messages() -> None:
    for functions, times, size in (
        (3000, 1, 0),
        (1024, 2, 0),
        (300, 7, 0),
        (300, 8, 0),
        (40, 7, 50_000),
        (60, 8, 50_000),
    ):
        source = submitted(functions, times, size)
        calls = 0
        while source.pending:
            batches = source.seal()
            assert len(batches) <= 300
            for batch in batches:
                calls += batch.size
                carried = sum(map(item_cost, batch.items)) + len(batch.params["function"])
                assert carried <= BATCH_ITEMS_BYTES + 2 * INLINE_BYTES_MAX
        assert calls == functions * times


def test_what_a_job_takes_of_the_buffer_is_given_back_to_the_last_byte() -> None:
    batch = MapBatch(cast("Any", None), "", {}, [b"x" * 10, b"y", b"", b"z" * 500])
    whole = batch.bytes
    assert sum(batch.share() for _ in range(batch.size)) == whole
