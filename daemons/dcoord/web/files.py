"""Parts of files as HTTP bodies: conditions, ranges, and sending without blocking the event loop.

Owns what `ETag`, `If-None-Match`, `If-Range` and `Range` mean here (RFC 9110; one range a request, several are
answered whole). Must not know where a payload comes from.
"""

import asyncio
import os
import re
from concurrent.futures import Executor
from pathlib import Path
from typing import Final, NamedTuple

from dcoord.web.http1 import Send

CHUNK_BYTES: Final = 256 * 1024
"""What a stalled reader holds of memory, about twice."""
_RANGE: Final = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")

Headers = list[tuple[str, str]]


class Part(NamedTuple):
    """What of a body is to be sent: `size` bytes from `offset`, with this status and these headers."""

    status: int
    headers: Headers
    offset: int
    size: int


class FileSlice:
    """`size` bytes of a file from `offset`, as a WSGI body that the bridge sends by itself."""

    def __init__(self, path: Path, offset: int, size: int) -> None:
        self.path = path
        self.offset = offset
        self.size = size

    def read(self) -> bytes:
        """The bytes at once: only a server that does not know FileSlice calls this."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def choose_part(size: int, sha256_hex: str, if_none_match: str, range_: str, if_range: str) -> Part:
    """What to answer for a payload of `size` bytes, from a request's headers ('' for an absent one)."""
    etag = f'"{sha256_hex}"'
    headers = [("ETag", etag), ("Accept-Ranges", "bytes")]
    if if_none_match and etag_matches(if_none_match, etag):
        return Part(304, headers, 0, 0)
    window = _window(range_, size) if not if_range or if_range.strip() == etag else None
    if window is None:
        return Part(200, [*headers, ("Content-Length", str(size))], 0, size)
    first, end = window
    if first >= end:
        return Part(416, [*headers, ("Content-Range", f"bytes */{size}")], 0, 0)
    headers += [("Content-Range", f"bytes {first}-{end - 1}/{size}"), ("Content-Length", str(end - first))]
    return Part(206, headers, first, end - first)


def etag_matches(condition: str, etag: str) -> bool:
    """Whether an `If-None-Match` names this entity tag, by the weak comparison."""
    return condition.strip() == "*" or any(each.strip().removeprefix("W/") == etag for each in condition.split(","))


def _window(range_: str, size: int) -> tuple[int, int] | None:
    """First byte and end of a `Range`; None if it asks for everything or is not understood."""
    match = _RANGE.fullmatch(range_.strip())
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        return max(0, size - int(match[2])), size
    first = int(match[1])
    if match[2] and int(match[2]) < first:
        return None
    return first, min(int(match[2]) + 1 if match[2] else size, size)


async def send_slice(send: Send, part: FileSlice, executor: Executor) -> None:
    """Send a file's part as the rest of an answer, a chunk at a time, at the peer's pace."""
    loop = asyncio.get_running_loop()
    handle = await loop.run_in_executor(executor, os.open, part.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        at, end = part.offset, part.offset + part.size
        while at < end:
            chunk = await loop.run_in_executor(executor, os.pread, handle, min(CHUNK_BYTES, end - at), at)
            if not chunk:
                raise OSError(f"{part.path} became shorter while it was sent")
            at += len(chunk)
            await send({"type": "http.response.body", "body": chunk, "more_body": at < end})
        if part.size == 0:
            await send({"type": "http.response.body", "body": b""})
    finally:
        os.close(handle)
