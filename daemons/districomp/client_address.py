"""Where a client looks for its coordinator: addresses as people write them, and the places of this machine.

Owns the spelling of an address and the folders that the environment names. Connects to nothing, and imports nothing that
a command which only asks for the status would have to wait for.
"""

import ipaddress
import os
from pathlib import Path
from typing import Final

from districomp.errors import UsageError
from districomp.home import home_folder

CONTROL_PORT: Final = 8420
PLAIN: Final = "tcp://"
"""Written before an address: without TLS, to an insecure coordinator of this machine."""


class Address:
    """A Unix socket's path, or a host and a port, by TLS unless it is `plain`."""

    def __init__(self, path: Path | None = None, host: str = "", port: int = 0, *, plain: bool = False) -> None:
        self.path = path
        self.host = host
        self.port = port
        self.plain = plain

    @property
    def is_tls(self) -> bool:
        """Whether both sides have to prove who they are."""
        return self.path is None and not self.plain

    def __str__(self) -> str:
        if self.path is not None:
            return str(self.path)
        where = f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
        return f"{PLAIN}{where}" if self.plain else where


def parse_address(text: str, origin: str) -> Address:
    """Read HOST, HOST:PORT, [V6]:PORT, each by TLS; tcp://127.0.0.1:PORT without; or the path of a socket.

    `origin` says in the UsageError where it was written.
    """
    if text.startswith(PLAIN):
        host, port = _host_and_port(text.removeprefix(PLAIN), text, origin)
        return Address(host=_loopback(host, text, origin), port=port, plain=True)
    if "/" in text:
        return Address(path=Path(text))
    host, port = _host_and_port(text, text, origin)
    return Address(host=host, port=port)


def _host_and_port(text: str, whole: str, origin: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or (text.count(":") > 1 and not text.startswith("[")):
        host, port = text, str(CONTROL_PORT)
    if text.startswith("[") and text.endswith("]"):
        host, port = text, str(CONTROL_PORT)
    host = host.removeprefix("[").removesuffix("]")
    if not host or "/" in host or not (port.isascii() and port.isdigit() and 0 < int(port[:9]) < 65536):
        raise UsageError(f"{origin}: {whole!r} is not a coordinator's address; write HOST:PORT or a socket's path")
    return host, int(port)


def _loopback(host: str, whole: str, origin: str) -> str:
    """An address of this machine alone: what has no TLS must not leave it."""
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        address = None
    if address is None or not address.is_loopback or getattr(address, "ipv4_mapped", None) is not None:
        raise UsageError(
            f"{origin}: {whole!r} is a connection without TLS, which is only for an insecure coordinator of this machine: "
            f"write {PLAIN}127.0.0.1:PORT; to another machine it is HOST:PORT, after: dctl join TOKEN"
        )
    return str(address)


def local_sockets() -> list[Path]:
    """Where a local coordinator's control socket may be: our own runtime folder, then the system's.

    The same as `config.Paths`, whose YAML a command that only asks for the status must not load.
    """
    own = os.environ.get("DISTRICOMP_RUNTIME_DIR")
    if own:
        return [Path(own).absolute() / "control.sock"]
    system = Path("/run/districomp/control.sock")
    if not hasattr(os, "geteuid") or os.geteuid() == 0:
        return [system]
    runtime = _absolute("XDG_RUNTIME_DIR") or _state_folder() / "run"
    return [runtime / "districomp" / "control.sock", system]


def identity_folder() -> Path:
    """Where this user's identity lies: `client/` below the folder that `config.Paths` calls state."""
    own = os.environ.get("DISTRICOMP_STATE_DIR")
    if own:
        return Path(own).absolute() / "client"
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        return Path("/var/lib/districomp/client")
    return _state_folder() / "client"


def _state_folder() -> Path:
    return (_absolute("XDG_STATE_HOME") or home_folder() / ".local" / "state") / "districomp"


def _absolute(variable: str) -> Path | None:
    value = os.environ.get(variable, "")
    return Path(value) if value.startswith("/") else None


def given_addresses(coordinator: str | None) -> list[Address]:
    """The addresses that somebody has named, in order: the one given; else the local sockets, then DISTRICOMP_COORDINATOR."""
    if coordinator:
        return [parse_address(coordinator, "coordinator")]
    found = [Address(path=path) for path in local_sockets()]
    named = os.environ.get("DISTRICOMP_COORDINATOR")
    if named:
        found.append(parse_address(named, "DISTRICOMP_COORDINATOR"))
    return found
