"""Celery with Redis as broker and as store of the results; two prefork workers of one process."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Final

from bench.peers.base import Peer, Place, Running, free_port, is_listening, wait_for
from bench.peers.driver import dispatch, serve
from bench.peers.installation import Installation

VERSION: Final = "5.7.0"
PIN: Final = f"celery[redis]=={VERSION}"
KEYS_AT_ONCE: Final = 1000
POLL_S: Final = 0.01


class Celery(Peer):
    """Functions of Python."""

    name: ClassVar[str] = "celery"
    title: ClassVar[str] = "Celery"
    durable: ClassVar[str] = "no (Redis without a log)"
    tasks: ClassVar[Mapping[str, int]] = {"noop": 2000, "true": 1200, "latency": 300, "queue": 10_000}

    def install(self, there: Installation) -> None:
        """A virtual environment, and Debian's Redis."""
        there.install_python(self.name, PIN)
        there.install_debian("redis-server")

    def missing(self, there: Installation) -> str:
        """Without either."""
        return there.missing_programs("redis-server") if there.has_python(self.name, PIN) else "not installed"

    def version(self, there: Installation) -> str:
        """Both."""
        return f"{VERSION} on Redis {there.debian_version('redis-server')}"

    def start(self, place: Place) -> Running:
        """Redis on a port of its own, nothing on disk."""
        port = free_port()
        options: list[str | Path] = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", place.folder]
        pid = place.start("redis", place.there.found("redis-server"), "--port", str(port), *options)
        wait_for(lambda: is_listening(port), "redis-server")
        place.environment["BENCH_REDIS"] = f"redis://127.0.0.1:{port}/0"
        for number in range(place.workers):
            command: list[str | Path] = [
                place.there.python(self.name),
                "-m",
                "celery",
                "-A",
                "bench.peers.celery_app",
                "worker",
            ]
            quiet: list[str | Path] = [
                "--without-gossip",
                "--without-mingle",
                "--without-heartbeat",
                "--loglevel",
                "error",
            ]
            place.start(f"worker{number}", *command, *quiet, "-c", "1", "-n", f"worker{number}@localhost")
        return Running(place.drive(self, venv=True), [pid])


def drive(workers: str) -> None:
    """The client. It reads results many at a time: the cheapest way there is."""
    from bench.peers.celery_app import app, remote_noop, remote_true

    store = app.backend.client

    def submit(task: object, tasks: int) -> list[str]:
        with app.producer_pool.acquire(block=True) as producer:
            return [task.apply_async((number,), producer=producer).id for number in range(tasks)]  # type: ignore[attr-defined]

    def finish(task: object, tasks: int) -> None:
        left = [app.backend.get_key_for_task(name) for name in submit(task, tasks)]
        while left:
            first, rest = left[:KEYS_AT_ONCE], left[KEYS_AT_ONCE:]
            absent = [key for key, value in zip(first, store.mget(first), strict=True) if value is None]
            if absent:
                time.sleep(POLL_S)
            left = absent + rest
        store.flushall()

    if int(workers):
        # Both must be there before anything is measured, and none of them says so in fewer words.
        while len(app.control.ping(timeout=0.2) or []) < int(workers):
            pass
        finish(remote_noop, 100)
    serve(
        {
            "noop": lambda tasks: finish(remote_noop, tasks),
            "true": lambda tasks: finish(remote_true, tasks),
            "once": lambda number: remote_noop.delay(number).get(),
            "queue": lambda tasks: submit(remote_noop, tasks),
        }
    )


if __name__ == "__main__":
    dispatch(drive)
