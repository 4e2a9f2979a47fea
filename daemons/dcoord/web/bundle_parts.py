"""Which blobs belong to a bundle: its manifest and the files that this names.

Owns reading manifests from the blob store, and remembering some. Must not know who asks, nor why.
"""

import asyncio
from collections import OrderedDict
from concurrent.futures import Executor
from typing import Final

import msgspec

from dcoord.blobs import BlobStore, is_sha256_hex
from districomp.bundle import BUNDLE_FILES_MAX
from districomp.taskdef import BundleFile

MANIFEST_BYTES_MAX: Final = 16 * 1024 * 1024
KEPT_FILES_MAX: Final = 4 * BUNDLE_FILES_MAX
"""Of all remembered manifests together; the newest is kept whatever its size."""
_DECODER: Final = msgspec.msgpack.Decoder(list[BundleFile])


class BundleParts:
    """Knows the parts of bundles by their digests. For the event loop; files are read in `executor`'s threads."""

    def __init__(self, store: BlobStore, executor: Executor) -> None:
        self._store = store
        self._executor = executor
        self._kept: OrderedDict[str, frozenset[bytes]] = OrderedDict()
        self._kept_files = 0

    async def has(self, bundle: str, blob: str) -> bool:
        """Whether a blob is the manifest of a bundle or one of its files (both SHA-256 in hex). False if it is not here."""
        if not is_sha256_hex(bundle) or not is_sha256_hex(blob):
            return False
        if bundle == blob:
            return True
        parts = self._kept.get(bundle)
        if parts is None:
            loop = asyncio.get_running_loop()
            parts = await loop.run_in_executor(self._executor, self._read, bundle)
            if parts is None:
                return False
            self._keep(bundle, parts)
        else:
            self._kept.move_to_end(bundle)
        return bytes.fromhex(blob) in parts

    def _read(self, bundle: str) -> frozenset[bytes] | None:
        size = self._store.size(bundle)
        if size is None or size > MANIFEST_BYTES_MAX:
            return None
        try:
            files = _DECODER.decode(self._store.path(bundle).read_bytes())
            return frozenset(bytes.fromhex(file.sha256) for file in files)
        except (
            OSError,
            ValueError,
        ):  # msgspec's errors are ValueErrors; a grant's digest is a manifest's, or it gives nothing
            return None

    def _keep(self, bundle: str, parts: frozenset[bytes]) -> None:
        if bundle not in self._kept:
            self._kept[bundle] = parts
            self._kept_files += len(parts)
        while self._kept_files > KEPT_FILES_MAX and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._kept_files -= len(oldest)
