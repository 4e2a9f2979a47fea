"""What the worker fetches and brings: bundles, laid out once; large items; large results.

Owns `bundles/` and `items/` of the worker's folder, and when a request is tried again. Must not know
what runs.
"""

import asyncio
import contextlib
import logging
import random
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from districomp.model import Blob, task_text
from districomp.taskdef import BundleFile
from districomp.wire import UNREADABLE
from dworker.grants import GrantError, Grants, Need, Place
from dworker.runners.folders import emptied, remove_tree

if TYPE_CHECKING:
    from dworker.fetch import DataPort

log = logging.getLogger(__name__)

THREADS: Final = 4
FETCH_S: Final = 30.0
"""A download is tried again for so long; then the attempt is handed back."""
RETRY_FIRST_S: Final = 0.1
RETRY_MAX_S: Final = 5.0
BUNDLE_FILES_MAX: Final = 10_000
BUNDLE_BYTES_MAX: Final = 1024**3
MANIFEST_BYTES_MAX: Final = 8 * 1024 * 1024

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_STRANGE: Final = re.compile(r'[\\:*?"<>|]|^(con|prn|aux|nul|com\d|lpt\d)\s*(\.|$)', re.IGNORECASE)

T = TypeVar("T")


class CacheError(Exception):
    """A payload cannot be had; a sentence."""


class Bundle(msgspec.Struct, frozen=True):
    """A bundle on this disk: its folder, and its top-level entries."""

    folder: Path
    entries: list[str]


class Cache:
    """One for the daemon; to be made in a running event loop."""

    def __init__(self, root: Path, grants: Grants) -> None:
        self._loop = asyncio.get_running_loop()
        self._grants = grants
        self._bundles = root / "bundles"
        self._bundles.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._executor = ThreadPoolExecutor(THREADS, "data")
        self._items = emptied(root / "items", self._executor)
        self._item_next = 0
        self._ready: dict[str, Bundle] = {}
        self._laying: dict[str, asyncio.Task[Bundle]] = {}
        self._uploads: dict[int, asyncio.Task[None]] = {}
        self._moved = asyncio.Event()
        self._port: DataPort | None = None
        self._place = Place("")

    def use(self, place: Place) -> None:
        """Where the data port is from now on; what waits to be tried again is tried at once."""
        self._place = place
        if self._port is not None:
            self._port.place = place
        self._moved.set()
        self._moved = asyncio.Event()

    @property
    def port(self) -> "DataPort":
        """The data port; http.client is loaded when the first payload needs it."""
        if self._port is None:
            from dworker.fetch import DataPort

            self._port = DataPort()
            self._port.place = self._place
        return self._port

    # ---- bundles ----

    def bundle(self, digest: str) -> Bundle | None:
        """A bundle that is laid out already."""
        return self._ready.get(digest)

    async def lay_out(self, digest: str) -> Bundle:
        """Lay a bundle out, once however many ask. CacheError."""
        task = self._laying.get(digest)
        if task is None:
            task = self._laying[digest] = asyncio.create_task(self._lay_out(digest))
            task.add_done_callback(lambda task: self._laid(digest, task))
        return await asyncio.shield(task)

    async def _lay_out(self, digest: str) -> Bundle:
        folder = self._bundles / digest
        if not (len(digest) == 64 and digest.isalnum()):
            raise CacheError(f"The bundle's digest {digest[:80]!r} is not a SHA-256.")
        if not await self._run(folder.is_dir):
            await self._fetch(lambda: self._download_bundle(digest, folder), f"bundle {digest[:12]}")
        entries = await self._run(lambda: sorted(entry.name for entry in folder.iterdir()))
        bundle = self._ready[digest] = Bundle(folder, entries)
        return bundle

    def _laid(self, digest: str, task: "asyncio.Task[Bundle]") -> None:
        del self._laying[digest]
        if not task.cancelled():
            task.exception()  # whoever asked may be gone

    def _download_bundle(self, digest: str, folder: Path) -> None:
        """In a thread: manifest, then each file, into a temporary folder that gets its name when all is there."""
        from dworker.fetch import FetchError

        right = self._right(Need("GET", f"/bundles/{digest}"))
        body = self.port.read(f"/blobs/{digest}", right, digest, MANIFEST_BYTES_MAX)
        files = read_manifest(body)
        unfinished = folder.with_name(f"{digest}.new")
        remove_tree(str(unfinished))
        unfinished.mkdir(mode=0o755)
        for file in files:
            target = unfinished / file.path
            target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            try:
                self.port.download(f"/blobs/{file.sha256}", right, target, file.sha256, file.size)
            except FetchError as error:
                raise FetchError(f"{file.path!r} of the bundle: {error}", final=error.final) from error
            target.chmod(0o555 if file.mode & 0o111 else 0o444)
        for path in sorted(unfinished.rglob("*"), reverse=True):
            if path.is_dir():
                path.chmod(0o555)
        unfinished.rename(folder)

    # ---- items and results ----

    async def item(self, job: int, index: int, blob: Blob) -> Path:
        """A large item, as a file that the caller removes. CacheError."""
        self._item_next += 1
        target = self._items / str(self._item_next)
        path = f"/tasks/{task_text(job, index)}"
        right = self._right(Need("GET", path))
        is_given_up = False

        def download() -> None:
            self.port.download(path, right, target, blob.sha256.hex(), blob.size)
            if is_given_up:
                target.unlink(missing_ok=True)

        try:
            await self._fetch(download, f"the data of {path}")
        except asyncio.CancelledError:
            # The caller never hears of the file, and the thread goes on.
            is_given_up = True
            with contextlib.suppress(OSError):  # Windows: the thread still has it open
                target.unlink(missing_ok=True)
            raise
        finally:
            self._grants.done(path)
        return target

    def upload(self, lease: int, path: Path, blob: Blob, done: Callable[[int], None]) -> None:
        """Bring a result to the data port, for as long as it takes; then `done(lease)`."""
        task = asyncio.create_task(self._upload(lease, path, blob))
        self._uploads[lease] = task

        def ended(task: asyncio.Task[None]) -> None:
            self._uploads.pop(lease, None)
            if not task.cancelled():
                task.result()
                done(lease)

        task.add_done_callback(ended)

    def give_up(self, leases: list[int]) -> None:
        """End these uploads, if they are still under way."""
        for lease in leases:
            task = self._uploads.pop(lease, None)
            if task is not None:
                task.cancel()

    async def _upload(self, lease: int, path: Path, blob: Blob) -> None:
        target = f"/blobs/{blob.sha256.hex()}"
        right = self._right(Need("PUT", target, lease))
        try:
            await self._repeat(lambda: self.port.upload(target, right, path, blob.size), None, "the upload of a result")
        finally:
            self._grants.done(target)

    def _right(self, need: Need) -> Callable[[bool], str]:
        """Gives the right that a request needs, in whichever thread it is asked for."""
        from dworker.fetch import FetchError

        def right(fresh: bool) -> str:
            asking = asyncio.run_coroutine_threadsafe(self._grants.get(need, fresh=fresh), self._loop)
            try:
                return asking.result()
            except GrantError as error:
                raise FetchError(str(error), final=error.final) from error
            except CancelledError:
                raise FetchError("the worker stops") from None

        return right

    def close(self) -> None:
        """Let the threads end."""
        self._grants.lost()
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def _fetch(self, work: Callable[[], None], what: str) -> None:
        from dworker.fetch import FetchError

        try:
            await self._repeat(work, FETCH_S, what)
        except (FetchError, OSError) as error:
            raise CacheError(f"This worker could not fetch {what}: {error}.") from error

    async def _repeat(self, work: Callable[[], T], give_up_s: float | None, what: str) -> T:
        """Run it in a thread until it succeeds; FetchError only with `give_up_s`, when that is over or there is no hope."""
        from dworker.fetch import FetchError

        end = None if give_up_s is None else time.monotonic() + give_up_s
        wait_s = RETRY_FIRST_S
        while True:
            try:
                return await self._run(work)
            except FetchError as error:
                if end is not None and (error.final or time.monotonic() >= end):
                    raise
                log.debug("%s failed: %s; trying again", what, error)
            moved = self._moved
            try:
                async with asyncio.timeout(random.uniform(0.5, 1) * wait_s):
                    await moved.wait()
            except TimeoutError:
                wait_s = min(2 * wait_s, RETRY_MAX_S)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)


def _is_strange(path: str) -> bool:
    """Whether a path means something else to Windows: a drive, a stream of a file, a folder further up, a device."""
    return sys.platform == "win32" and any(
        _STRANGE.search(part) or part != part.rstrip(" .") for part in path.split("/")
    )


def read_manifest(body: bytes) -> list[BundleFile]:
    """A bundle's manifest, checked: nothing in it may lead out of the bundle's folder. CacheError."""
    try:
        files = msgspec.msgpack.decode(body, type=list[BundleFile])
    except UNREADABLE as error:
        raise CacheError(f"The bundle's manifest is not one: {error}.") from error
    if len(files) > BUNDLE_FILES_MAX or sum(file.size for file in files) > BUNDLE_BYTES_MAX:
        raise CacheError("The bundle has more than 10,000 files or 1 GiB.")
    for file in files:
        path = PurePosixPath(file.path)
        clean = (
            str(path) == file.path and not _is_strange(file.path) and "\0" not in file.path and not path.is_absolute()
        )
        if not clean or not path.parts or ".." in path.parts or file.path == "." or file.size < 0:
            raise CacheError(f"The bundle's manifest has a path that is not allowed: {file.path[:80]!r}.")
        if not _DIGEST.fullmatch(file.sha256):
            raise CacheError(f"The bundle's manifest has a digest that is none, of {file.path[:80]!r}.")
    if len({file.path for file in files}) != len(files):
        raise CacheError("The bundle's manifest names a file twice.")
    return files
