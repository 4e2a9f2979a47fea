"""The authority's file: `trust/authority.json`, replaced whole or not at all, readable by its owner alone.

Owns the folder, the modes and the owner of what is in it, and the form of the file. Knows nothing of cryptography: what
it keeps it neither makes nor checks. One file holds everything, so that a rotation is one rename.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from districomp.errors import ConfigError

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None  # type: ignore[assignment]

FILE_BYTES_MAX: Final = 64 * 1024
VERSION: Final = 1
_NAME: Final = "authority.json"
_UNFINISHED: Final = "authority.json.new"


class KeptAuthority(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An authority. `certificate`: its own (DER), signed by itself; `until`: its end, in Unix seconds.

    `cross`: a certificate (DER) of its name and key, signed by the authority before it; b'' for the oldest.
    """

    certificate: bytes
    until: float
    cross: bytes = b""


class Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that is kept. `key`: of the newest authority (PEM); those before it have none any more. The newest comes first."""

    version: int
    key: str
    grant_key: bytes
    authorities: list[KeptAuthority]

    def __repr__(self) -> str:
        # A key must not get into a log by way of a traceback.
        return f"Kept({len(self.authorities)} authorities, key=...)"

    def __rich_repr__(self) -> list[tuple[str, int]]:
        # msgspec's own names every field, the key too.
        return [("authorities", len(self.authorities))]


class AuthorityFile:
    """The file in its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / _NAME

    @contextlib.contextmanager
    def opened(self) -> Iterator[int]:
        """A descriptor of the folder, made if need be, locked against other coordinators. ConfigError."""
        try:
            above = _make(self.folder)
            folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(f"{self.folder}: the authority's folder cannot be used: {error.strerror}") from error
        try:
            _belong(folder, above)
            status = os.fstat(folder)
            self._check_owner(status, status, self.folder)
            if status.st_mode & 0o077:
                os.fchmod(folder, 0o700)
            if fcntl is not None:
                fcntl.flock(folder, fcntl.LOCK_EX)
            yield folder
        except OSError as error:
            raise ConfigError(f"{self.folder}: the authority's folder cannot be used: {error.strerror}") from error
        finally:
            os.close(folder)

    def read(self, folder: int) -> Kept | None:
        """What is there; None at the first start. ConfigError if others can read the file, or it is damaged."""
        with contextlib.suppress(FileNotFoundError):
            # A start or a rotation that was killed left it; it may hold a key.
            os.unlink(_UNFINISHED, dir_fd=folder)
        try:
            file = os.open(_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        except FileNotFoundError:
            return None
        except OSError as error:
            words = "it is a link" if error.errno == errno.ELOOP else error.strerror
            raise ConfigError(f"{self.path}: the authority cannot be read: {words}") from error
        with os.fdopen(file, "rb") as opened:
            status = os.fstat(file)
            self._check_owner(status, os.fstat(folder), self.path)
            if status.st_mode & 0o077:
                raise ConfigError(
                    f"{self.path} holds the cluster's private key and others than its owner may read it (mode"
                    f" {status.st_mode & 0o777:o}): chmod 600 {self.path}; if somebody did read it, then also: "
                    "dctl ca rotate --overlap 0s, and let every machine join again"
                )
            data = opened.read(FILE_BYTES_MAX + 1)
        try:
            kept = msgspec.json.decode(data, type=Kept) if len(data) <= FILE_BYTES_MAX else None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            kept = None
        if kept is None:
            # Nothing of its content may be repeated: the key is in it.
            raise self.damaged()
        if kept.version != VERSION:
            raise ConfigError(f"{self.path} is of version {kept.version}, not {VERSION}: install a newer districomp")
        return kept

    def damaged(self) -> ConfigError:
        """What to say of a file whose content is no authority."""
        return ConfigError(
            f"{self.path} is damaged: restore it from a backup. Without one remove the folder {self.folder}: the next "
            "start makes a new cluster, and every worker and client must join again"
        )

    def write(self, folder: int, kept: Kept) -> None:
        """Replace the file, so that it is the old one or the new one when the power fails. ConfigError."""
        try:
            owner = os.fstat(folder)
            file = os.open(
                _UNFINISHED, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder
            )
            try:
                # Whatever the umask is: 0777 would leave a file that nobody can read at the next start.
                os.fchmod(file, 0o600)
                _belong(file, owner)
                view = memoryview(msgspec.json.encode(kept))
                while view:
                    view = view[os.write(file, view) :]
                os.fsync(file)
            finally:
                os.close(file)
            os.replace(_UNFINISHED, _NAME, src_dir_fd=folder, dst_dir_fd=folder)
            os.fsync(folder)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(_UNFINISHED, dir_fd=folder)
            raise ConfigError(f"{self.path}: the authority cannot be written: {error.strerror}") from error

    def _check_owner(self, status: os.stat_result, folder: os.stat_result, path: Path) -> None:
        """Whoever owns it could have put a key of their own there: it must be us, or whom root keeps the folder for."""
        owners = (0, folder.st_uid) if os.geteuid() == 0 else (os.geteuid(),)
        if status.st_uid not in owners:
            raise ConfigError(
                f"{path} belongs to user {status.st_uid}, and this coordinator runs as user {os.geteuid()}: if it is "
                f"yours, then: chown -R {os.geteuid()} {self.folder}"
            )


def _make(folder: Path) -> os.stat_result:
    """Make the folder if it is missing; the status of the one around it."""
    above = folder.parent
    above.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        folder.chmod(0o700)  # whatever the umask is
        # Durable with what is written into it: a power failure must not take the authority and leave the journal.
        _sync(above)
    return above.stat()


def _sync(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _belong(file: int, owner: os.stat_result) -> None:
    """Give what root has just made to the owner of the folder around it, so that a daemon of that user can use it."""
    status = os.fstat(file)
    if os.geteuid() == 0 and status.st_uid == 0 and owner.st_uid != 0:
        os.fchown(file, owner.st_uid, owner.st_gid)
