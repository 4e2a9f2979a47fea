"""Writing a folder of secrets on a system without Unix's permissions and descriptors of folders (Windows).

Who can read it is what the folder above it says: `Paths` puts it into the user's own profile.
"""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from districomp import filelock


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Path]:
    """The folder, made if need be, locked against other writers. OSError."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        filelock.lock(lock, wait=True)
        yield path
    finally:
        os.close(lock)


def replace(folder: Path, name: str, data: bytes) -> None:
    """A file of the folder, whole or not at all. OSError."""
    unfinished = folder / f"{name}.{secrets.token_hex(4)}.new"
    try:
        with unfinished.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(folder / name)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
