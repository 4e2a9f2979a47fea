"""Bundles in the coordinator: a folder as a manifest and blobs.

Owns what is remembered of folders that did not change. What may be in a folder is `districomp.bundle`'s.
"""

import hashlib
import os
from pathlib import Path

import msgspec

from dcoord.blobs import BlobError, BlobStore, DigestMismatchError
from districomp.bundle import BundleError, ChangedError, Signature, chunks, walk_bundle
from districomp.taskdef import BundleFile


class BundleReader:
    """Reads bundles into a BlobStore, each file once as long as it does not change. Blocking; for one thread."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._files: dict[Path, dict[str, tuple[Signature, BundleFile]]] = {}
        self._manifests: dict[Path, tuple[list[BundleFile], str]] = {}

    def read(self, parent: int, root: Path, folder: str) -> str:
        """The SHA-256 (hex) of the manifest of `folder` below the open directory `parent`, whose path is `root`.

        The manifest and all files are in the store then.

        Raises:
            BundleError: something in the folder may not be there, or cannot be read or stored.
        """
        place = root / folder
        try:
            walk = walk_bundle(parent, folder, self._store, self._files.get(place))
        except BlobError as error:
            raise BundleError(f"{folder}: {error}") from error
        # Kept even when there are faults: the good files need not be read again.
        self._files[place] = walk.cache
        if walk.faults:
            raise BundleError(f"{folder}: {walk.text}")
        return self._manifest(place, walk.files)

    def files(self, root: Path, folder: str) -> list[BundleFile]:
        """The files of a bundle as it was last read."""
        known = self._manifests.get(root / folder)
        return known[0] if known else []

    def _manifest(self, place: Path, files: list[BundleFile]) -> str:
        known = self._manifests.get(place)
        if known is not None and known[0] == files:
            return known[1]
        try:
            blob = self._blobs.put_bytes(msgspec.msgpack.encode(files))
        except BlobError as error:
            raise BundleError(str(error)) from error
        self._manifests[place] = (files, blob.sha256.hex())
        return blob.sha256.hex()

    def _store(self, file: int, size: int) -> str:
        """The SHA-256 (hex) of an open file, its content in the store. Hashed first: mostly it is there already."""
        digest = hashlib.sha256()
        for chunk in chunks(file, size):
            digest.update(chunk)
        name = digest.hexdigest()
        if not self._blobs.has(name):
            os.lseek(file, 0, os.SEEK_SET)
            with self._blobs.writer() as writer:
                for chunk in chunks(file, size):
                    writer.write(chunk)
                try:
                    writer.commit(name)
                except DigestMismatchError as error:
                    raise ChangedError from error
        return name
