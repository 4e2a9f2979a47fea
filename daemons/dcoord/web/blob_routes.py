"""`GET|HEAD|PUT /blobs/SHA256`, on the ASGI side: bodies are streamed, never gathered.

Owns how a blob travels over HTTP. Where it lies and when it is durable is `dcoord.blobs`' matter.
"""

import asyncio
from concurrent.futures import Executor
from typing import Final

from dcoord.blobs import BlobError, BlobStore, BlobWriter, DigestMismatchError, NoSpaceError, is_sha256_hex
from dcoord.web.files import FileSlice, choose_part, send_slice
from dcoord.web.guard import send_problem
from dcoord.web.http1 import Receive, Scope, Send
from dcoord.web.problems import WebError
from dcoord.web.rights import BLOBS

GATHERED_BYTES: Final = 1024 * 1024
"""An upload's bytes go to disk in pieces of about this size."""
_PAYLOAD_HEADERS: Final = [
    (b"content-type", b"application/octet-stream"),
    (b"cache-control", b"private, max-age=31536000, immutable"),
]


class BlobRoutes:
    """An ASGI application below `/blobs/`."""

    def __init__(self, store: BlobStore, executor: Executor) -> None:
        self._store = store
        self._executor = executor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        name = scope["path"].removeprefix(BLOBS)
        try:
            if not is_sha256_hex(name):
                raise WebError("not_found", "a blob's name is a SHA-256: 64 lower-case hex digits")
            match scope["method"]:
                case "GET" | "HEAD":
                    await self._get(name, scope, send)
                case "PUT":
                    await self._put(name, scope, receive, send)
        except WebError as error:
            await send_problem(send, error)

    async def _get(self, name: str, scope: Scope, send: Send) -> None:
        loop = asyncio.get_running_loop()
        size = await loop.run_in_executor(self._executor, self._store.size, name)
        if size is None:
            raise WebError("blob_missing", f"blob {name} is not here; PUT it first")
        asked = {key: value.decode("latin-1") for key, value in scope["headers"]}
        part = choose_part(
            size, name, asked.get(b"if-none-match", ""), asked.get(b"range", ""), asked.get(b"if-range", "")
        )
        headers = [(key.lower().encode(), value.encode()) for key, value in part.headers]
        if part.status == 416:
            error = WebError("range", f"the blob has {size} bytes; ask for a range within them")
            await send_problem(send, error, headers)
            return
        await send({"type": "http.response.start", "status": part.status, "headers": [*_PAYLOAD_HEADERS, *headers]})
        if scope["method"] == "HEAD" or part.status == 304:
            await send({"type": "http.response.body", "body": b""})
            return
        await send_slice(send, FileSlice(self._store.path(name), part.offset, part.size), self._executor)

    async def _put(self, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        if any(key == b"content-range" for key, _ in scope["headers"]):
            raise WebError("bad_request", "a blob is sent whole; leave Content-Range out")
        if any(key == b"content-encoding" for key, _ in scope["headers"]):
            raise WebError("bad_request", "a blob is sent as it is; leave Content-Encoding out")
        is_new = not await loop.run_in_executor(self._executor, self._store.has, name)
        try:
            writer = await loop.run_in_executor(self._executor, self._store.writer)
            try:
                if not await self._gather(writer, receive):
                    return
                await loop.run_in_executor(self._executor, writer.commit, name)
            finally:
                await asyncio.shield(loop.run_in_executor(self._executor, writer.abort))
        except DigestMismatchError as error:
            raise WebError("digest_mismatch", str(error)) from error
        except (NoSpaceError, BlobError) as error:
            raise WebError("no_space", str(error)) from error
        headers = [(b"etag", b'"%b"' % name.encode()), (b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 201 if is_new else 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    async def _gather(self, writer: BlobWriter, receive: Receive) -> bool:
        """Write the body as it comes; False if the peer went away before its end."""
        loop = asyncio.get_running_loop()
        more = True
        pieces: list[bytes] = []
        size = 0
        while more:
            event = await receive()
            if event["type"] == "http.disconnect":
                return False
            more = event["more_body"]
            pieces.append(event["body"])
            size += len(event["body"])
            if size >= GATHERED_BYTES or not more:
                await loop.run_in_executor(self._executor, _write_all, writer, pieces)
                pieces, size = [], 0
        return True


def _write_all(writer: BlobWriter, pieces: list[bytes]) -> None:
    for piece in pieces:
        writer.write(piece)
