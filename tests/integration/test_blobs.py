"""The blob store on a real file system: names, durability's visible side, space, leftovers."""

import hashlib
import os
from pathlib import Path

import pytest

from dcoord.blobs import BlobError, BlobStore, DigestMismatchError, NoSpaceError

NO_MARK = 1
ALL_THERE_IS = 1 << 60


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "state" / "blobs", low_water_bytes=NO_MARK)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def files(store: BlobStore) -> list[Path]:
    return sorted(path for path in store.root.rglob("*") if path.is_file())


def test_bytes_come_back_under_their_digest(store: BlobStore) -> None:
    data = os.urandom(300_000)
    blob = store.put_bytes(data)
    assert (blob.sha256.hex(), blob.size) == (sha256(data), len(data))
    assert store.path(sha256(data)) == store.root / sha256(data)[:2] / sha256(data)
    assert store.path(sha256(data)).read_bytes() == data == store.read_bytes(sha256(data))
    assert store.has(sha256(data))
    assert store.size(sha256(data)) == len(data)


def test_a_file_and_a_writer_give_the_same_blob_as_its_bytes(store: BlobStore, tmp_path: Path) -> None:
    data = os.urandom(3 * 1024 * 1024 + 17)
    source = tmp_path / "source"
    source.write_bytes(data)
    blob = store.put_file(source)
    first = store.path(sha256(data)).stat()
    with store.writer() as writer:
        for start in range(0, len(data), 70_000):
            writer.write(memoryview(data)[start : start + 70_000])
        assert writer.commit(sha256(data)) == blob
    assert store.put_bytes(data) == blob
    assert store.path(sha256(data)).stat().st_ino == first.st_ino, "the first file stays"
    assert files(store) == [store.path(sha256(data))], "one file, and nothing unfinished"


def test_an_empty_blob_is_a_blob(store: BlobStore) -> None:
    assert store.put_bytes(b"").size == 0
    assert store.size(sha256(b"")) == 0


def test_another_digest_than_promised_leaves_nothing(store: BlobStore) -> None:
    with store.writer() as writer:
        writer.write(b"one thing")
        with pytest.raises(DigestMismatchError, match=sha256(b"one thing")):
            writer.commit(sha256(b"another"))
    assert files(store) == []


def test_a_blob_has_no_name_before_its_commit(store: BlobStore) -> None:
    data = b"x" * 100_000
    writer = store.writer()
    writer.write(data)
    assert not store.has(sha256(data))
    assert writer.size == len(data)
    writer.abort()
    writer.abort()
    assert not store.has(sha256(data))
    assert files(store) == []


def test_an_exception_in_the_block_aborts(store: BlobStore) -> None:
    with pytest.raises(RuntimeError), store.writer() as writer:
        writer.write(b"half")
        raise RuntimeError
    assert files(store) == []


@pytest.mark.parametrize("name", ["", "abc", "A" * 64, "../" * 21 + "a", "g" * 64, "a" * 63, "a" * 65, "é" * 64])
def test_only_a_digest_is_a_name(store: BlobStore, name: str) -> None:
    with pytest.raises(BlobError, match="SHA-256"):
        store.path(name)
    with pytest.raises(BlobError, match="SHA-256"):
        store.has(name)


def test_below_the_low_water_mark_nothing_is_taken(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs", low_water_bytes=ALL_THERE_IS)
    with pytest.raises(NoSpaceError, match="free some"):
        store.put_bytes(b"anything")
    assert not store.root.exists()


def test_the_mark_is_looked_at_while_a_blob_grows(store: BlobStore) -> None:
    writer = store.writer()
    writer.write(b"a" * 1000)
    store.low_water_bytes = ALL_THERE_IS  # as if somebody else filled the disk
    with pytest.raises(NoSpaceError):
        for _ in range(17):
            writer.write(bytes(1024 * 1024))
    assert files(store) == []


def test_a_blob_that_is_there_already_needs_no_space(store: BlobStore) -> None:
    blob = store.put_bytes(b"kept")
    store.low_water_bytes = ALL_THERE_IS
    assert store.put_bytes(b"kept") == blob


def test_what_a_killed_process_left_is_swept_and_nothing_else(store: BlobStore) -> None:
    store.put_bytes(b"kept")
    old, young = store.unfinished / "old", store.unfinished / "young"
    old.write_bytes(b"half")
    young.write_bytes(b"half")
    os.utime(old, (1, 1))
    assert store.sweep_unfinished(older_than_s=3600) == 1
    assert files(store) == sorted([young, store.path(sha256(b"kept"))])


def test_a_folder_that_was_never_made_has_nothing_to_sweep(store: BlobStore) -> None:
    assert store.sweep_unfinished(older_than_s=0) == 0
    assert not store.has(sha256(b""))
    with pytest.raises(BlobError, match="upload it first"):
        store.read_bytes(sha256(b""))
