"""Who this machine's worker, or this user's client, is: its certificate and key on disk, and whom it trusts.

Owns the files of an identity's folder: `identity.json` is the truth; `identity.pem` and `authorities.pem` are made
from it for other programs (curl). Knows nothing of connections, and verifies no certificate.
"""

import contextlib
import errno
import functools
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal

import msgspec

from districomp import filelock, plainfolder
from districomp.errors import ConfigError
from districomp.tokens import cluster_id

FILE_BYTES_MAX: Final = 256 * 1024
ADDRESSES_MAX: Final = 16
AUTHORITIES_MAX: Final = 16
_MAIN: Final = "identity.json"
_PAIR: Final = "identity.pem"
_AUTHORITIES: Final = "authorities.pem"
_BY_DESCRIPTOR: Final = os.open in os.supports_dir_fd and hasattr(os, "fchmod")
"""Folders can be opened, and files in them by their names alone (Unix)."""

Source = Literal["token", "local", "person"]
"""What let it in: a join token, the control socket of its own machine, or a person who compared words."""
Stamp = tuple[int, int, int]
_Put = Callable[[str, bytes], None]


class Identity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A certificate and what belongs to it.

    `cluster`: its id, that of the newest of `authorities` (DER, newest first), which are those to believe. `certificate`:
    PEM, its chain after it. `key`: PEM. `addresses`: where the coordinator was reached, newest first. `pin`: the id that
    it was enrolled by, which a configuration or image may name long after another authority has taken its place.
    """

    cluster: str
    name: str
    role: str
    identity: str
    authorities: list[bytes]
    certificate: bytes
    key: bytes
    source: Source
    addresses: list[tuple[str, int]] = []
    pin: str = ""

    @property
    def clusters(self) -> list[str]:
        """Every id by which the cluster may be known just now: one, or two and more while authorities overlap."""
        return [cluster_id(authority) for authority in self.authorities]

    def __repr__(self) -> str:
        # A key must not get into a log by way of a traceback.
        return f"Identity(cluster={self.cluster!r}, role={self.role!r}, identity={self.identity!r}, key=...)"

    def __rich_repr__(self) -> list[tuple[str, str]]:
        # msgspec's own names every field, the key too.
        return [("cluster", self.cluster), ("role", self.role), ("identity", self.identity)]


class IdentityFolder:
    """A folder for one identity, readable by its owner alone.

    When root writes into another user's folder (`dctl join` for the daemon's user), what is written belongs to that user.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> Identity | None:
        """The identity, None if there is none. ConfigError if it cannot be read or is damaged."""
        file = self.path / _MAIN
        try:
            with file.open("rb") as opened:
                data = opened.read(FILE_BYTES_MAX + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise ConfigError(f"{file}: the identity cannot be read: {error.strerror}") from error
        try:
            identity = msgspec.json.decode(data[:FILE_BYTES_MAX], type=Identity)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            identity = None
        if identity is None or not _is_sound(identity):
            # Nothing of its content may be repeated: the key is in it.
            raise ConfigError(f"{file} is damaged; remove the folder {self.path}, then join again: dctl join TOKEN")
        return identity

    def save(self, identity: Identity) -> None:
        """Replace what is there, at once or not at all, also when the power fails. ConfigError."""
        with self._opened() as put:
            self._write(put, identity)

    def update(self, identity: Identity, stamp: Stamp | None) -> bool:
        """`save`, unless somebody has written since `stamp`: then False, and nothing is changed. ConfigError."""
        with self._opened() as put:
            if self.stamp() != stamp:
                return False
            self._write(put, identity)
        return True

    def stamp(self) -> Stamp | None:
        """Differs when the identity was written anew; None if there is none (or we may not look)."""
        try:
            status = (self.path / _MAIN).stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size

    @contextlib.contextmanager
    def _opened(self) -> Iterator[_Put]:
        """How to replace files of the folder, which is made if need be, and locked against other writers."""
        if not _BY_DESCRIPTOR:
            try:
                with plainfolder.opened(self.path) as path:
                    yield functools.partial(plainfolder.replace, path)
            except OSError as error:
                raise ConfigError(f"{self.path}: the identity cannot be written: {_words(error)}") from error
            return
        try:
            uid, gid = _make(self.path)
            # All by descriptor and without following links: root writes here in a folder that another user owns.
            folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(f"{self.path}: an identity cannot be kept here: {_words(error)}") from error
        try:
            _belong(folder, uid, gid)
            os.fchmod(folder, 0o700)
            filelock.lock(folder, wait=True)
            yield functools.partial(_replace, folder)
        except OSError as error:
            raise ConfigError(f"{self.path}: the identity cannot be written: {_words(error)}") from error
        finally:
            os.close(folder)

    def _write(self, put: _Put, identity: Identity) -> None:
        from districomp.tls import to_pem

        # The truth first: the others can always be made again from it.
        put(_MAIN, msgspec.json.encode(identity))
        put(_PAIR, identity.key + identity.certificate)
        put(_AUTHORITIES, to_pem(identity.authorities))


def _is_sound(identity: Identity) -> bool:
    if not 0 < len(identity.authorities) <= AUTHORITIES_MAX or len(identity.addresses) > ADDRESSES_MAX:
        return False
    return identity.certificate.startswith(b"-----BEGIN CERTIFICATE") and identity.key.startswith(b"-----BEGIN")


def _make(path: Path) -> tuple[int, int]:
    """Make the folder and those above it that are missing; whose it is to be: the owner of what was there."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    above = missing[-1].parent if missing else path.parent
    owner = above.stat()
    for folder in reversed(missing):
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        if folder != path:
            opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                _belong(opened, owner.st_uid, owner.st_gid)
            finally:
                os.close(opened)
    return owner.st_uid, owner.st_gid


def _belong(file: int, uid: int, gid: int) -> None:
    """Give an open file to its owner; only root has to, and only what is root's is given away."""
    status = os.fstat(file)
    if os.geteuid() == 0 and status.st_uid == 0 and status.st_uid != uid:
        os.fchown(file, uid, gid)


def _replace(folder: int, name: str, data: bytes) -> None:
    """A file of the folder, whole or not at all."""
    owner = os.fstat(folder)
    unfinished = f"{name}.{secrets.token_hex(4)}.new"
    file = os.open(
        unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder
    )
    try:
        try:
            _belong(file, owner.st_uid, owner.st_gid)
            view = memoryview(data)
            while view:
                view = view[os.write(file, view) :]
            os.fsync(file)
        finally:
            os.close(file)
        os.replace(unfinished, name, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(unfinished, dir_fd=folder)
        raise


def _words(error: OSError) -> str:
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return "it, or a folder above it, is a link or a file"
    return error.strerror or str(error)
