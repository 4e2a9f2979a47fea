"""Celery's application: the module that its workers and its client import."""

import os
from typing import Final

import celery

from bench.peers.driver import noop, run_true

URL: Final = os.environ["BENCH_REDIS"]

app = celery.Celery("bench", broker=URL, backend=URL)
app.conf.update(
    worker_prefetch_multiplier=64, broker_connection_retry_on_startup=True, worker_send_task_events=False
)  # fmt: skip


def true(number: int) -> str:
    """A result must be JSON."""
    return run_true(number).decode()


remote_noop = app.task(name="noop")(noop)
remote_true = app.task(name="true")(true)
