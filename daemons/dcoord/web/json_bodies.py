"""Bodies of writes, gathered whole on the event loop: each bounded in size and time, and all of them together.

Owns what must be true of a body before it is read at all: JSON by its headers, small enough, soon enough.
Must not know what it says.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from dcoord.web.http1 import PeerGoneError, Receive, Scope
from dcoord.web.problems import WebError

BODY_BYTES_MAX: Final = 16 * 1024 * 1024
TOGETHER_BYTES_MAX: Final = 2 * BODY_BYTES_MAX
"""Of all requests: decoded, a body of many short items takes several times its size."""
BODY_S: Final = 60.0


class JsonBodies:
    """The bodies under way. They count until their request has been answered."""

    def __init__(
        self, *, bytes_max: int = BODY_BYTES_MAX, together_max: int = TOGETHER_BYTES_MAX, time_s: float = BODY_S
    ) -> None:
        self._bytes_max = bytes_max
        self._together_max = together_max
        self._time_s = time_s
        self._held_bytes = 0

    @asynccontextmanager
    async def whole(self, scope: Scope, receive: Receive) -> AsyncIterator[bytes]:
        """A request's body. WebError says why it is not taken; PeerGoneError."""
        self._check_headers(scope)
        held: list[bytes] = []
        try:
            await self._gather(receive, held)
            held[:] = [b"".join(held)]
            yield held[0]
        finally:
            self._held_bytes -= sum(map(len, held))

    async def _gather(self, receive: Receive, held: list[bytes]) -> None:
        size = 0
        more = True
        try:
            async with asyncio.timeout(self._time_s):
                while more:
                    event = await receive()
                    if event["type"] == "http.disconnect":
                        raise PeerGoneError
                    more = event["more_body"]
                    held.append(event["body"])
                    size += len(event["body"])
                    self._held_bytes += len(event["body"])
                    self._check_sizes(size)
        except TimeoutError:
            raise WebError("request_timeout", f"the body did not arrive within {self._time_s:g} s") from None

    def _check_headers(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        kind = headers.get(b"content-type", b"").decode("latin-1")
        if kind.partition(";")[0].strip().lower() != "application/json":
            raise WebError("bad_content_type", f"send JSON, with Content-Type: application/json, not {kind!r:.60}")
        if b"content-encoding" in headers:
            raise WebError("bad_content_type", "the body is sent as it is; leave Content-Encoding out")
        length = headers.get(b"content-length", b"")
        # Said before a byte is read; what lies about its length is cut off by the HTTP parser.
        if length.isdigit() and int(length[:20]) > self._bytes_max:
            raise self._too_large()

    def _check_sizes(self, size: int) -> None:
        if size > self._bytes_max:
            raise self._too_large()
        if self._held_bytes > self._together_max:
            raise WebError("busy", "too many large requests are under way; try again in a moment")

    def _too_large(self) -> WebError:
        return WebError(
            "too_large",
            f"a body may have {self._bytes_max:,} bytes; PUT large data to /blobs, submit in parts, or use dctl, which streams",
        )
