"""A submission's way to the coordinator: a connection of its own, so that what ends half-way leaves nothing behind.

Owns the order of its messages, how long each step may take, and that large items become blobs. Must not know
HTTP, nor what a submission means.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import IO, Any, Final

import msgspec

from dcoord.blobs import BlobError, BlobStore
from dcoord.web.problems import WebError
from districomp.client_items import cut
from districomp.errors import LocalProtocolError, RefusedError, UnreachableError
from districomp.messages import (
    PROTOCOL_VERSION,
    Accepted,
    AnyMessage,
    Goodbye,
    HelloClient,
    Items,
    Refused,
    Submit,
    Welcome,
)
from districomp.model import Blob, Item
from districomp.stream import Connection

WELCOME_S: Final = 5.0
"""The coordinator has so long to let us in,"""
STEP_S: Final = 30.0
"""and so long to take a piece, and to write the whole down."""


class Submitter:
    """Submits to the coordinator behind a control socket. `files` gives threads to write blobs in."""

    def __init__(self, control_socket: Path, store: BlobStore, files: Executor) -> None:
        self._socket = control_socket
        self._store = store
        self._files = files

    async def submit(self, message: Submit, items: Iterable[bytes | str] | None) -> Accepted:
        """Submit, and wait until it is on disk.

        Raises:
            RefusedError: by the coordinator; nothing was submitted.
            UnreachableError: it is away, or went away; the text says whether the job may have been made.
            WebError: `too_large`, or `no_space` for large items.
        """
        loop = asyncio.get_running_loop()
        exchange = _Exchange()
        pieces = _pieces(message, items, self._upload)
        try:
            await exchange.begin(self._socket)
            while (piece := await loop.run_in_executor(self._files, next, pieces, None)) is not None:
                if not await exchange.send(piece):
                    break
            return await exchange.accepted()
        except LocalProtocolError as error:
            raise WebError(
                "too_large", f"params and matrix do not fit into a message: {error}; give large data as items"
            ) from error
        except BlobError as error:
            raise WebError("no_space", str(error)) from error
        finally:
            exchange.end()

    def _upload(self, file: IO[bytes]) -> Blob:
        return self._store.put_bytes(file.read())


class _Exchange:
    """The connection of one submission. Implements `stream.Handler`."""

    def __init__(self) -> None:
        self._connection: Connection | None = None
        self._welcomed = asyncio.Event()
        self._is_whole = False
        self._answer: asyncio.Future[Accepted] = asyncio.get_running_loop().create_future()

    async def begin(self, control_socket: Path) -> None:
        """Connect, and be let in."""
        try:
            loop = asyncio.get_running_loop()
            await loop.create_unix_connection(lambda: Connection(self), str(control_socket))
        except OSError as error:
            raise UnreachableError(f"no coordinator answers at {control_socket}; start dcoord") from error
        await self._step(self._welcomed.wait(), WELCOME_S)

    async def send(self, message: Submit | Items) -> bool:
        """Send a piece at the coordinator's pace; False if it has answered already, early."""
        if self._answer.done() or self._connection is None:
            return False
        self._is_whole = message.last
        self._connection.send(message)
        await self._step(self._connection.drained())
        return True

    async def accepted(self) -> Accepted:
        """The answer, once the submission is on disk. RefusedError, UnreachableError."""
        await self._step(asyncio.wait([self._answer]))
        return self._answer.result()

    def end(self) -> None:
        """Close; the coordinator forgets what is not whole."""
        self._answer.cancel()
        if self._connection is not None:
            self._connection.close()

    async def _step(self, work: Coroutine[Any, Any, object], time_s: float = STEP_S) -> None:
        try:
            async with asyncio.timeout(time_s):
                await work
        except TimeoutError:
            raise UnreachableError(self._unsure(f"the coordinator did not answer within {time_s:g} s")) from None

    # ---- stream.Handler ----

    def opened(self, connection: Connection) -> None:
        """stream: connected."""
        self._connection = connection
        connection.send(HelloClient(PROTOCOL_VERSION, "dcoord-web"))

    def received(self, connection: Connection, messages: Sequence[AnyMessage], at: float) -> None:
        """stream: messages."""
        for message in messages:
            match message:
                case Welcome():
                    self._welcomed.set()
                case Accepted():
                    self._settle(message)
                case Refused(_, code, text):
                    self._settle(RefusedError(code, text))
                case Goodbye("degraded", text):
                    self._settle(RefusedError("degraded", self._unsure(text)))
                case Goodbye(_, text):
                    self._settle(UnreachableError(self._unsure(text)))
                case _:
                    pass  # where the data port is, and the like

    def closed(self, connection: Connection, reason: str) -> None:
        """stream: gone."""
        self._settle(UnreachableError(self._unsure(f"the coordinator went away: {reason}")))

    def _settle(self, answer: Accepted | Exception) -> None:
        self._welcomed.set()
        if self._answer.done():
            return
        if isinstance(answer, Accepted):
            self._answer.set_result(answer)
        else:
            self._answer.set_exception(answer)
            self._answer.exception()  # nobody may be left to ask for it

    def _unsure(self, text: str) -> str:
        if not self._is_whole:
            return f"{text}; nothing was submitted, try again"
        return (
            f"{text}; the job may have been made all the same: the same request_id again is sure to make no second one"
        )


def _pieces(
    message: Submit, items: Iterable[bytes | str] | None, upload: Callable[[IO[bytes]], Blob]
) -> Iterator[Submit | Items]:
    """The submission's messages; the last one says so."""
    batches: Iterator[list[Item]] = cut(items or (), upload)
    batch = next(batches, [])
    ahead = next(batches, None)
    yield msgspec.structs.replace(message, items=batch, last=ahead is None)
    while ahead is not None:
        batch, ahead = ahead, next(batches, None)
        yield Items(message.request, batch, last=ahead is None)
