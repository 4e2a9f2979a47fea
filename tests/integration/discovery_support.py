"""Helpers of test_discovery: an advertising process, and a browser whose news can be awaited."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from districomp.discovery import SERVICE_TYPE, Browser, Found
from tests.patience import PATIENCE_S

if TYPE_CHECKING:
    from zeroconf import ServiceStateChange, Zeroconf

LOOPBACK = ["127.0.0.1"]


@contextmanager
def advertising(
    cluster: str, port: int, name: str = "lab", former: Sequence[str] = (), address: str = "127.0.0.1"
) -> Iterator[subprocess.Popen[str]]:
    """A `python -m dcoord.advertise` that has announced itself."""
    what = {"cluster": cluster, "name": name, "address": address, "port": port, "interfaces": LOOPBACK}
    what["former"] = list(former)
    with subprocess.Popen(
        [sys.executable, "-m", "dcoord.advertise"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(what) + "\n")
            process.stdin.flush()
            assert process.stdout.readline() == "registered\n"
            yield process
        finally:
            process.kill()


class News:
    """What a browser reported last. `quick`: whose answer to the one-shot question has come, by the label."""

    def __init__(self) -> None:
        self.found: list[Found] = []
        self.quick: set[str] = set()
        self._changed = asyncio.Event()

    def put(self, found: list[Found]) -> None:
        self.found = found
        self._changed.set()

    def wake(self) -> None:
        self._changed.set()

    async def until(
        self, condition: Callable[[dict[str, Found]], bool], limit_s: float = PATIENCE_S
    ) -> dict[str, Found]:
        """Wait until the clusters found, by id, satisfy a condition."""
        async with asyncio.timeout(limit_s):
            while not condition(known := {found.cluster: found for found in self.found}):
                self._changed.clear()
                await self._changed.wait()
        return known


class Watched(Browser):
    """A browser that notes what its one-shot question was answered."""

    def __init__(self, interfaces: list[str], news: News) -> None:
        super().__init__(interfaces, news.put)
        self._news = news

    def _state_changed(
        self, zeroconf: "Zeroconf", service_type: str, name: str, state_change: "ServiceStateChange"
    ) -> None:
        if self._zeroconf is not None and zeroconf is not self._zeroconf.zeroconf:
            self._news.quick.add(name.removesuffix(f".{SERVICE_TYPE}"))
            self._news.wake()
        super()._state_changed(zeroconf, service_type, name, state_change)


@asynccontextmanager
async def browsing(interfaces: list[str] | None = None) -> AsyncIterator[News]:
    news = News()
    browser = Watched(interfaces or LOOPBACK, news)
    await browser.start()
    try:
        yield news
    finally:
        await browser.close()
