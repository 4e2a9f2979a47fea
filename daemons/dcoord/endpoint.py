"""`RUNTIME_DIR/endpoint.json`: where the running coordinator is, for scripts and clients on this machine."""

import contextlib
import os
from pathlib import Path

import msgspec


class Endpoint(msgspec.Struct):
    """The file's content, a contract: `docs/cli.md`."""

    cluster: str
    name: str
    pid: int
    control: tuple[str, int]
    web: str
    data: str
    web_pid: int


class EndpointFile:
    """Written when the coordinator is ready and when its web server moves, removed when it stops."""

    def __init__(self, path: Path, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._path = path

    def write(self) -> None:
        """Replace the file whole, so that nobody reads a half of it."""
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(self.endpoint), indent=2) + b"\n")
        temporary.replace(self._path)

    def remove(self) -> None:
        """The coordinator stops."""
        with contextlib.suppress(OSError):
            self._path.unlink()
