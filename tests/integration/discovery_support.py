"""Helpers of test_discovery: an advertising process, and a browser whose news can be awaited."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

from districomp.discovery import Browser, Found

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
    """What a browser reported last."""

    def __init__(self) -> None:
        self.found: list[Found] = []
        self._changed = asyncio.Event()

    def put(self, found: list[Found]) -> None:
        self.found = found
        self._changed.set()

    async def until(self, condition: Callable[[dict[str, Found]], bool], limit_s: float = 10) -> dict[str, Found]:
        """Wait until the clusters found, by id, satisfy a condition."""
        async with asyncio.timeout(limit_s):
            while not condition(known := {found.cluster: found for found in self.found}):
                self._changed.clear()
                await self._changed.wait()
        return known


@asynccontextmanager
async def browsing(interfaces: list[str] | None = None) -> AsyncIterator[News]:
    news = News()
    browser = Browser(interfaces or LOOPBACK, news.put)
    await browser.start()
    try:
        yield news
    finally:
        await browser.close()
