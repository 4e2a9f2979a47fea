"""The worker's folder: one daemon at a time, and an id that lasts."""

import os
import secrets
from pathlib import Path
from typing import Final

from districomp import filelock
from districomp.errors import ConfigError

ID_BYTES: Final = 8


class StateFolder:
    """`STATE_DIR/dworker`, locked as long as this object lives. ConfigError if it cannot be used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o600)  # not inheritable
        except OSError as error:
            raise ConfigError(f"{path}: the worker's folder cannot be used: {error.strerror}") from error
        try:
            filelock.lock(self._lock, wait=False)
        except OSError:
            raise ConfigError(
                f"{path} is used by another dworker that is running; "
                "a second worker needs a folder of its own: set DISTRICOMP_STATE_DIR"
            ) from None

    def worker_id(self) -> str:
        """This worker's id: random, made at the first start. ConfigError."""
        file = self.path / "id"
        try:
            if file.exists():
                text = file.read_text("ascii").strip()
                if len(text) == 2 * ID_BYTES and text.isalnum():
                    return text
                raise ConfigError(f"{file} does not hold a worker's id; remove it, and the next start makes a new one")
            text = secrets.token_hex(ID_BYTES)
            unfinished = file.with_suffix(".new")
            unfinished.write_text(text + "\n", "ascii")
            unfinished.replace(file)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: {error}") from error
        return text

    def close(self) -> None:
        """Unlock."""
        os.close(self._lock)
