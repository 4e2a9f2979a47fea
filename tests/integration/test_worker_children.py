"""Lasting processes and fetched data in the worker's own hands: what is swept, what is left behind, what outlives its end."""

import asyncio
import errno
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from districomp.model import Item
from districomp.taskdef import Definition
from dworker.cache import Cache
from dworker.events import AttemptsEnded, Events, StartAttempts, StopAttempts
from dworker.grants import Grants, Place
from dworker.runners import pipes, stream
from dworker.runners.host import Host
from dworker.runners.stream import StreamRunner
from tests.integration.spawnlab import until
from tests.integration.workerlab import DataPort
from tests.patience import PATIENCE_S


class Gated(dict[str, bytes]):
    """A data port's files, of which none is given before `gate` is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.is_asked = threading.Event()

    def get(self, path: str, default: Any = None) -> Any:
        """As of a dict, later."""
        self.is_asked.set()
        self.gate.wait(PATIENCE_S)
        return super().get(path, default)


class Body:
    """A worker's body with the runner of streams, and nothing that decides."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = DataPort()
        # Connections of threads end with their process, which here goes on.
        self.data._server.RequestHandlerClass.protocol_version = "HTTP/1.0"  # type: ignore[attr-defined]
        self.files = self.data.files = Gated()
        self.cache = Cache(root, Grants(lambda _: False))
        self.cache.use(Place(self.data.url))
        self.host = Host(root, 2, self.cache, self._post)
        self.runner = StreamRunner(self.host)
        self.reasons: dict[int, str] = {}
        self._lease = 0

    def _post(self, event: Events) -> None:
        assert isinstance(event, AttemptsEnded)
        self.reasons.update(zip(event.leases, event.reasons or ["done"] * len(event.leases), strict=True))

    def start(self, slot: int, item: Item, digest: str = "d") -> int:
        """Have `cat` answer an item; the lease."""
        self._lease += 1
        definition = Definition("lab", digest, "", runner="stream", argv=["cat"])
        self.runner.start(StartAttempts(slot, 1, definition, {}, [self._lease], [self._lease], [], [item]))
        return self._lease

    async def close(self) -> None:
        self.files.gate.set()
        self.runner.close()
        self.cache.close()
        await self.host.close()
        self.data.close()


def with_body(root: Path, test: Callable[[Body], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        body = Body(root)
        try:
            await test(body)
        finally:
            await body.close()

    root.mkdir()
    asyncio.run(run())


def test_a_process_whose_data_is_being_fetched_is_not_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "IDLE_S", 0.1)

    async def test(body: Body) -> None:
        small = body.start(0, b"small")
        await until(lambda: small in body.reasons)
        large = body.start(0, body.data.add_blob(b"x" * 100_000))
        body.files[f"/tasks/1.{large}"] = b"x" * 100_000
        beside = body.start(1, b"small")
        await until(lambda: beside in body.reasons)
        await until(lambda: len(body.runner._children) < 2)
        assert [slot for slot, *_ in body.runner._children] == [0]
        body.files.gate.set()
        await until(lambda: large in body.reasons)
        assert body.reasons[large] == "done"

    with_body(tmp_path / "state", test)


def test_data_that_nobody_wants_any_more_leaves_no_file(tmp_path: Path) -> None:
    async def test(body: Body) -> None:
        large = body.start(0, body.data.add_blob(b"x" * 100_000))
        body.files[f"/tasks/1.{large}"] = b"x" * 100_000
        await until(body.files.is_asked.is_set)
        assert [*(body.root / "items").iterdir()]
        body.runner.stop(StopAttempts(0, [large], "cancelled"))
        body.files.gate.set()
        await until(lambda: not [*(body.root / "items").iterdir()])
        assert body.reasons == {large: "cancelled"}

    with_body(tmp_path / "state", test)


def test_a_process_that_cannot_have_its_pipes_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    async def test(body: Body) -> None:
        monkeypatch.setattr(pipes, "opened", none)
        for _ in range(5):
            lease = body.start(0, b"small")
            await until(lambda lease=lease: lease in body.reasons)  # type: ignore[misc]
            assert body.reasons[lease] == "not_started"
        assert len([*(body.root / "run").iterdir()]) <= 1, "one is kept for the next process"

    with_body(tmp_path / "state", test)
