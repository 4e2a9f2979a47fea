"""Joining a cluster with a token: as this machine's worker, or as this user."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import msgspec

from dctl import output
from dctl.options import output_options
from dctl.output import Mode, message
from districomp.errors import ConfigError, TokenError, UsageError

if TYPE_CHECKING:
    from districomp.identity import Identity, IdentityFolder
    from districomp.tokens import JoinToken

INPUT_BYTES_MAX: Final = 4096
SYSTEM_STATE: Final = Path("/var/lib/districomp/dworker")


class JoinDocument(msgspec.Struct):
    """`dctl join --json`."""

    cluster: str
    name: str
    role: str
    identity: str
    folder: str


@click.command(
    epilog="\b\nExamples:\n  dctl join                         (asks for the token, and does not show it)\n"
    "  ssh room-12-pc-3 dctl join - < token\n  DISTRICOMP_COORDINATOR=192.0.2.7 dctl join"
)
@click.argument("token", metavar="[TOKEN|-]", required=False)
@output_options
def join(token: str | None, mode: Mode = "text") -> None:
    """Join a cluster, with a token made there by `dctl token create ROLE`.

    With one for workers this machine's dworker joins; with any other, you do. The cluster is found by mDNS, or at
    DISTRICOMP_COORDINATOR; only the right one can know the token, and only that one is told it. `-` reads standard input.
    """
    from districomp.tokens import parse_token

    parsed = parse_token(_given(token))
    document = _join_worker(parsed, mode) if parsed.role == "worker" else _join_user(parsed, mode)
    if mode != "text":
        output.print_card(mode, document, document.identity, [])


def _given(text: str | None) -> str:
    """The token: as given, of standard input, or asked for without echo. UsageError, TokenError."""
    if text == "-":
        data = sys.stdin.buffer.read(INPUT_BYTES_MAX)
        if not data.strip():
            raise UsageError("standard input is empty; it should be a join token")
        return data.decode("ascii", "replace")
    if text is not None:
        return text
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError("there is no terminal to ask for the token on; give it on standard input: dctl join -")
    from getpass import getpass

    try:
        return getpass("Token (it is not shown): ", stream=sys.stderr)
    except EOFError:
        raise TokenError("no token was given") from None


def _join_worker(token: "JoinToken", mode: Mode) -> JoinDocument:
    """Give this machine's worker its identity."""
    from districomp.client_enrol import joined, worker_folder
    from districomp.config import Paths, load_worker
    from districomp.identity import IdentityFolder

    paths = Paths.from_environment()
    config = load_worker(None, paths)
    folder = IdentityFolder(worker_folder(paths))
    _check_writable(folder.path)
    before = _before(folder)
    identity = joined(
        token,
        _addresses(config.coordinator),
        worker=before.identity if before else _worker_id(paths.worker_state),
        name=config.name,
        slots=config.slots or os.cpu_count() or 1,
        interfaces=config.discovery.interfaces or None,
    )
    folder.save(identity)
    if mode == "text":
        runs = _runs(paths.worker_state)
        going_on = "its dworker, which runs, goes on by itself" if runs else "start it: dworker"
        if runs is None:
            going_on = "its dworker goes on by itself if it runs"
        message(f"{config.name}, this machine's worker, has joined {_named(identity)}; {going_on}")
        _tell_before(before, identity)
        if SYSTEM_STATE.is_dir() and paths.worker_state != SYSTEM_STATE:
            message(f"it is your own worker, in {paths.worker_state}; the system's joins by: sudo dctl join")
    return _document(identity, folder)


def _join_user(token: "JoinToken", mode: Mode) -> JoinDocument:
    """Give this user an identity."""
    from districomp.client_address import identity_folder, local_sockets
    from districomp.client_enrol import joined
    from districomp.identity import IdentityFolder

    folder = IdentityFolder(identity_folder())
    _check_writable(folder.path)
    before = _before(folder)
    identity = joined(token, _addresses(""))
    folder.save(identity)
    if mode == "text":
        message(f"you have joined {_named(identity)} with the role {identity.role}; look: dctl status")
        _tell_before(before, identity)
        if any(path.exists() for path in local_sockets()):
            message("a coordinator runs on this machine as well, and dctl uses that one first")
    return _document(identity, folder)


def _addresses(configured: str) -> list[tuple[str, int]]:
    """Where the coordinator is, if somebody said so; [] is for mDNS. UsageError."""
    from districomp.client_address import parse_address

    named = os.environ.get("DISTRICOMP_COORDINATOR") or configured
    if not named:
        return []
    address = parse_address(named, "DISTRICOMP_COORDINATOR")
    if not address.is_tls:
        raise UsageError(
            f"DISTRICOMP_COORDINATOR is {named!r}, where nobody needs a token; write HOST:PORT, or unset it"
        )
    return [(address.host, address.port)]


def _before(folder: "IdentityFolder") -> "Identity | None":
    """What is there already; one that is damaged is as good as none, for it is replaced."""
    try:
        return folder.load()
    except ConfigError:
        return None


def _check_writable(path: Path) -> None:
    """Before a token is used up for nothing. UsageError."""
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"{there} cannot be written, so an identity cannot be kept; run this as its owner or as root")


def _worker_id(state: Path) -> str:
    """The id by which the worker of this folder is known already; '' if it never ran."""
    try:
        text = (state / "id").read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
    return text if text.isalnum() and len(text) <= 64 else ""


def _runs(state: Path) -> bool | None:
    """Whether the worker of this folder runs: it holds the lock. None if we cannot see."""
    try:
        import fcntl

        with (state / "lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        return None
    return False


def _tell_before(before: "Identity | None", identity: "Identity") -> None:
    if before is not None and not set(before.clusters) & set(identity.clusters):
        message(f"it had belonged to the cluster {_named(before)}, and does so no longer")


def _named(identity: "Identity") -> str:
    return f"{identity.name} ({identity.clusters[0]})"


def _document(identity: "Identity", folder: "IdentityFolder") -> JoinDocument:
    return JoinDocument(identity.clusters[0], identity.name, identity.role, identity.identity, str(folder.path))
