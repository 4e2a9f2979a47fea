"""What a submitter gives, cut into frames' worth: lines, files, data; never a whole input in memory.

Owns reading inputs, the cut at BATCH_BYTES, and repeating a submission from its start. Must not know
connections; payloads above 64 KiB go to the `upload` it is given.
"""

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

import msgspec

from districomp.errors import UsageError
from districomp.messages import BATCH_BYTES
from districomp.model import INLINE_BYTES_MAX, Blob, File, Item

FRAME_ITEMS_MAX: Final = 4096
NUMBER_MAX: Final = 2**62 - 1
PATH_BYTES_MAX: Final = 4096
CHUNK_BYTES: Final = 1024 * 1024
SPOOL_BYTES: Final = 4 * 1024 * 1024
"""What of an input that cannot be read twice is kept in memory, before it goes to a temporary file."""

Upload = Callable[[IO[bytes]], Blob]


class Large:
    """Content above 64 KiB, or of unknown size, as an open file at its start; closed once it is uploaded."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file


class FileItem:
    """A file to be sent with its path as the item's text, read when its turn comes."""

    def __init__(self, path: str) -> None:
        self.path = path


GivenItem = bytes | str | File | FileItem | Large | os.PathLike[str]
"""One item as a caller may give it: bytes, text (UTF-8), a `File`, or a path whose content is the item."""


class Lines:
    """The lines of a file, without their LF; read anew at each iteration."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __iter__(self) -> Iterator[bytes | Large]:
        with open_input(self.path) as file:
            yield from read_lines(file)


def given_items(
    data: bytes | str | os.PathLike[str] | None,
    items: Iterable[GivenItem] | None,
    files: Iterable[str | os.PathLike[str]] | None,
) -> Iterable[GivenItem] | None:
    """The items of a submission, None if it has none."""
    if data is not None:
        return [data]
    if isinstance(items, str | bytes):
        raise UsageError("items is one text, not several; use data= for a single item, or a list")
    if files is not None:
        return [FileItem(os.fspath(path)) for path in files]
    return items


def start_and_step(numbers: range) -> tuple[int, int]:
    """A range as the protocol carries it. UsageError if it is empty or leaves the integers that can be sent."""
    if not numbers:
        raise UsageError(f"nothing to submit: {numbers!r} is empty, and a job needs at least one item")
    if max(abs(numbers.start), abs(numbers[-1]), abs(numbers.step)) > NUMBER_MAX:
        raise UsageError(f"{numbers!r} reaches 2^62, which no task can be told; use smaller numbers")
    return numbers.start, numbers.step


def combinations(matrix: Mapping[str, Sequence[Any]]) -> list[tuple[str, list[Any]]]:
    """A matrix as the protocol carries it. UsageError if it has no combination."""
    if not matrix or not all(matrix.values()):
        raise UsageError("nothing to submit: the matrix has no combination; give each of its params at least one value")
    return [(name, list(values)) for name, values in matrix.items()]


def open_input(path: str) -> IO[bytes]:
    """Open a file to read. UsageError, saying what to do, if that cannot be done."""
    try:
        # Buffered by the size of our reads: the default of 8 KiB costs a system call for each few lines.
        file = open(path, "rb", buffering=CHUNK_BYTES)  # noqa: PTH123, SIM115 - a path as given, closed by the caller
    except IsADirectoryError as error:
        raise UsageError(f"{path} is a folder; name the files in it, for example {path.rstrip('/')}/*") from error
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file; check the path (now in {Path.cwd()})") from error
    except PermissionError as error:
        raise UsageError(f"{path}: you may not read it; change its mode or become another user") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{path!r} cannot be read: {error}; check the path") from error
    return file


def read_lines(file: IO[bytes]) -> Iterator[bytes | Large]:
    """The lines of an open file without their LF; one above 64 KiB comes as a temporary file."""
    while True:
        line = file.readline(INLINE_BYTES_MAX + 1)
        if line.endswith(b"\n"):
            yield line[:-1]
        elif len(line) > INLINE_BYTES_MAX:
            yield _long_line(line, file)
        elif line:
            yield line
        else:
            return


def cut(items: Iterable[GivenItem], upload: Upload) -> Iterator[list[Item]]:
    """Batches of items, each of about BATCH_BYTES and at most FRAME_ITEMS_MAX, with large payloads uploaded."""
    batch: list[Item] = []
    size = 0
    for given in items:
        item: Item
        if type(given) is bytes and len(given) <= INLINE_BYTES_MAX:  # the common case, a million times over
            item = given
            cost = len(given) + 5
        else:
            item = _item(given, upload)
            cost = _cost(item)
        if batch and (size + cost > BATCH_BYTES or len(batch) == FRAME_ITEMS_MAX):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += cost
    if batch:
        yield batch


class Batches:
    """The batches of one submission, from the start as often as asked: it is repeated when a connection breaks.

    A source that can be read only once (a pipe, a generator) is kept in a temporary file as it goes by.
    """

    def __init__(self, items: Iterable[GivenItem], upload: Upload) -> None:
        self._items = items
        self._upload = upload
        self._rest: Iterator[list[Item]] | None = None
        self._spool: IO[bytes] | None = None
        self._sizes: list[int] = []
        if isinstance(items, Iterator):
            from tempfile import SpooledTemporaryFile

            self._rest = cut(items, upload)
            self._spool = SpooledTemporaryFile(max_size=SPOOL_BYTES)  # noqa: SIM115 - closed by close()

    def close(self) -> None:
        """Forget what was kept."""
        if self._spool is not None:
            self._spool.close()

    def __iter__(self) -> Iterator[list[Item]]:
        if self._spool is None or self._rest is None:
            yield from cut(self._items, self._upload)
            return
        start = 0
        for size in list(self._sizes):
            self._spool.seek(start)
            yield _batch_decoder.decode(self._spool.read(size))
            start += size
        for batch in self._rest:
            kept = msgspec.msgpack.encode(batch)
            self._spool.seek(0, io.SEEK_END)
            self._spool.write(kept)
            self._sizes.append(len(kept))
            yield batch


_batch_decoder: msgspec.msgpack.Decoder[list[Item]] = msgspec.msgpack.Decoder(list[Item])


def digest_file(file: IO[bytes]) -> tuple[bytes, int]:
    """SHA-256 (32 bytes) and size of an open file from where it stands; it is left there."""
    start = file.tell()
    digest = hashlib.sha256()
    size = 0
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
        size += len(chunk)
    file.seek(start)
    return digest.digest(), size


def _item(given: GivenItem, upload: Upload) -> Item:
    """An item as the protocol carries it."""
    if isinstance(given, str):
        given = given.encode()
    if isinstance(given, bytes):
        return given if len(given) <= INLINE_BYTES_MAX else upload(io.BytesIO(given))
    if isinstance(given, File):
        if isinstance(given.content, Blob) or len(given.content) <= INLINE_BYTES_MAX:
            return given
        return File(given.path, upload(io.BytesIO(given.content)))
    if isinstance(given, Large):
        with given.file:
            return _content(given.file, upload)
    path = given.path if isinstance(given, FileItem) else os.fspath(given)
    with open_input(path) as file:
        content = _content(file, upload)
    return File(_item_path(path), content) if isinstance(given, FileItem) else content


def _content(file: IO[bytes], upload: Upload) -> bytes | Blob:
    """What an open file holds: inline up to 64 KiB."""
    try:
        head = file.read(INLINE_BYTES_MAX + 1)
        if len(head) <= INLINE_BYTES_MAX:
            return head
        if not file.seekable():
            return upload(_spooled(head, file))
        file.seek(0)
    except OSError as error:
        raise UsageError(f"{getattr(file, 'name', 'input')} cannot be read: {error}; check the path") from error
    return upload(file)


def _spooled(head: bytes, file: IO[bytes]) -> IO[bytes]:
    """All of a file that cannot be read twice, as a temporary one at its start."""
    from tempfile import TemporaryFile

    kept = TemporaryFile()  # noqa: SIM115 - handed on, and gone with its last reference
    kept.write(head)
    while chunk := file.read(CHUNK_BYTES):
        kept.write(chunk)
    kept.seek(0)
    return kept


def _long_line(start: bytes, file: IO[bytes]) -> Large:
    """A line that does not fit into a message, in a temporary file."""
    from tempfile import TemporaryFile

    kept = TemporaryFile()  # noqa: SIM115 - closed once uploaded
    part = start
    while part:
        ended = part.endswith(b"\n")
        kept.write(part[:-1] if ended else part)
        if ended:
            break
        part = file.readline(CHUNK_BYTES)
    kept.seek(0)
    return Large(kept)


def _item_path(path: str) -> str:
    """A path as an item's text. UsageError if it cannot be one."""
    try:
        size = len(path.encode())
    except UnicodeEncodeError as error:
        raise UsageError(f"the path {path!r} is not UTF-8, so it cannot name an item; rename the file") from error
    if size > PATH_BYTES_MAX:
        raise UsageError(f"the path {path[:60]}... is longer than {PATH_BYTES_MAX} bytes; use a shorter one")
    return path


def _cost(item: Item) -> int:
    """About how many bytes an item takes in a frame."""
    if isinstance(item, bytes):
        return len(item) + 5
    if isinstance(item, Blob):
        return 48
    return _cost(item.content) + 4 * len(item.path) + 8
