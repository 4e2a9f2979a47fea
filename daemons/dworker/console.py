"""`python -m dworker.console TERMINAL...`: what a machine that is only a worker shows on its screen, for as long as it runs.

Owns the screen: name, network, coordinator, and joined, the words to compare, or which step failed and what to do. It
asks the system and systemd, changes nothing, and takes no input. Linux with systemd only.
"""

import argparse
import contextlib
import ipaddress
import os
import socket
import subprocess
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from dworker import standing

LOOK_S: Final = 1.0
CALM_S: Final = 5.0
"""How often it is looked once the worker has joined."""
WIDTH: Final = 76
LINE_CHARS_MAX: Final = 400
SAID_MAX: Final = 3
ADDRESSES_MAX: Final = 6
_ETHERNET: Final = "1"
_ENDED: Final = ("failed", "inactive", "deactivating", "auto-restart")
_LINK_CLASS: Final = Path("/sys/class/net")
_BOLD, _REVERSE, _PLAIN, _CLEAR = "\x1b[1m", "\x1b[1;7m", "\x1b[0m", "\x1b[2J\x1b[H"

_HINTS: Final = (
    ("certificate seems not to be accepted", "start this machine again: it joins as a new worker"),
    ("belongs to no cluster", "start this machine with a token or the cluster's id: see os/README.md"),
    ("is not found by mDNS", "is dcoord running, on this very network? Compare the id with: dctl status"),
    ("waiting for the cluster", "is dcoord running, on this very network? Compare the id with: dctl status"),
    ("another cluster", "the token or id is another cluster's: make one there, with: dctl token create worker"),
    ("token", "on the coordinator: dctl token create worker; start this machine again with that token"),
    ("sent away", "it was revoked by: dctl worker revoke. To have it back start it with a new token"),
)
"""What a worker says while it has not joined -> what to do, the first that is found."""


class Link(NamedTuple):
    """A network interface. `is_up`: there is a cable and somebody at its other end."""

    name: str
    mac: str
    is_up: bool
    addresses: tuple[str, ...]


class Facts(NamedTuple):
    """All that the screen is made of. `unit`: systemd's state of the worker; `said`: the last of its log."""

    name: str
    links: tuple[Link, ...]
    unit: str
    status: str
    said: tuple[str, ...] = ()


class Block(NamedTuple):
    """A line of the screen with its label; `is_loud`: to be seen from across the room."""

    label: str
    text: str
    is_loud: bool = False


# ---- what to show ----


def blocks(facts: Facts) -> list[Block]:
    """The screen's lines."""
    found = standing.read(facts.status)
    shown = [Block("name", facts.name), *_network(facts.links)]
    shown.append(Block("coordinator", " at ".join(filter(None, (found.name, found.place))) or "not found yet"))
    if facts.unit in _ENDED:
        shown += [Block("NOT JOINED", f"the worker does not run ({facts.unit})", True)]
        shown += [Block("it said", text) for text in facts.said]
        return [*shown, Block("what to do", "correct the image's settings, then start this machine again")]
    if not facts.status:
        return [*shown, Block("STARTING", "the worker is being started", True)]
    if found.state == "joined":
        return [*shown, Block("JOINED", f"this machine works for {found.name}", True)]
    if found.state == "pending":
        return [
            *shown,
            Block("PENDING", "waits to be let in by a person", True),
            Block("its words", found.words, True),
            Block("what to do", "on the coordinator's machine compare these words with: dctl worker list"),
            Block("", f"if they are the same: dctl worker approve {facts.name}"),
        ]
    step, text, hint = _trouble(facts)
    said = [Block("it said", line) for line in facts.said if line != text]
    return [*shown, Block("NOT JOINED", step, True), Block("because", text), *said, Block("what to do", hint)]


def _network(links: Sequence[Link]) -> list[Block]:
    if not links:
        return [Block("network", "no network card")]
    shown = []
    for link in links:
        addresses = "  ".join(link.addresses) if link.is_up else "no cable, or nobody at its other end"
        shown.append(Block("network", f"{link.name}  {addresses or 'no address yet'}  ({link.mac})"))
    return shown


def _trouble(facts: Facts) -> tuple[str, str, str]:
    """Which step has not been done, why, and what to do about it."""
    if not facts.links:
        return (
            "step 1, network: no card",
            "this system has no driver for a network card of this machine",
            "use the image without SMALL=1, or another card",
        )
    if not any(link.is_up for link in facts.links):
        return "step 1, network: no cable", "no network card has a connection", "plug a network cable in"
    if not any(link.addresses for link in facts.links):
        return "step 1, network: no address", "the network gives this machine no address yet", "wait some seconds"
    said = " ".join([facts.status, *reversed(facts.said)])
    hint = next((hint for part, hint in _HINTS if part in facts.status), None)
    hint = hint or next((hint for part, hint in _HINTS if part in said), "wait: it goes on trying")
    is_found = "not found" not in facts.status and ("refused" in said or "refuses" in said or "not enrolled" in said)
    if "belongs to no cluster" in facts.status:
        return "step 2, trust: no token and no cluster's id", facts.status, hint
    return ("step 4, enrolment: refused" if is_found else "step 3, finding the coordinator"), facts.status, hint


def render(shown: Sequence[Block], *, is_screen: bool) -> str:
    """The lines as text: for a screen, which is cleared, or for a serial line, which may be kept as a log."""
    heading = " districomp worker ".center(WIDTH, "=")
    lines = ["", f"{_REVERSE}{heading}{_PLAIN}" if is_screen else heading, ""]
    for block in shown:
        label = f"  {block.label:<12} "
        wrapped = textwrap.wrap(_plain(block.text), WIDTH - len(label), break_on_hyphens=False) or [""]
        if block.is_loud:
            lines.append("")
        for i, part in enumerate(wrapped):
            line = (label if i == 0 else " " * len(label)) + part
            lines.append(f"{_BOLD}{line}{_PLAIN}" if block.is_loud and is_screen else line)
        if block.is_loud:
            lines.append("")
    return (_CLEAR if is_screen else "") + "\r\n".join([*lines, "", "=" * WIDTH, ""])


def _plain(text: str) -> str:
    """Names and reasons come over the network: nothing in them may command a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text[:LINE_CHARS_MAX])


# ---- what there is ----


def look() -> Facts:
    """Ask the system."""
    unit, status = _unit()
    said: tuple[str, ...] = ()
    if unit in _ENDED:
        said = _log("info")
    elif standing.read(status).state == "apart":
        said = _log("warning")
    return Facts(socket.gethostname(), _links(), unit, status, said)


def _links() -> tuple[Link, ...]:
    import ifaddr

    addresses = {str(adapter.name): [ip.ip for ip in adapter.ips] for adapter in ifaddr.get_adapters()}
    links = []
    for folder in sorted(_LINK_CLASS.iterdir()):
        if folder.name == "lo" or _text(folder / "type") != _ETHERNET:
            continue
        own = [one if isinstance(one, str) else one[0] for one in addresses.get(folder.name, [])]
        own.sort(key=lambda one: ipaddress.ip_address(one.partition("%")[0]).is_link_local)
        is_up = _text(folder / "carrier") == "1"
        links.append(Link(folder.name, _text(folder / "address"), is_up, tuple(own[:ADDRESSES_MAX])))
    return tuple(links)


def _unit() -> tuple[str, str]:
    """systemd's state of the worker, and what the worker says of itself."""
    shown = _output("systemctl", "show", "dworker.service", "--property=ActiveState,SubState,StatusText")
    values = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    state = values.get("ActiveState", "unknown")
    return ("auto-restart" if values.get("SubState") == "auto-restart" else state), values.get("StatusText", "")


def _log(level: str) -> tuple[str, ...]:
    """The last things that the worker said, of this level or worse, the newest first."""
    wanted = ["--identifier=dworker", f"--priority={level}", f"--lines={SAID_MAX}", "--output=cat"]
    return tuple(dict.fromkeys(reversed(_output("journalctl", "--quiet", "--boot", *wanted).splitlines())))


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=20, errors="replace").stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""  # the carrier of an interface that is down cannot be read


# ---- the terminals ----


def show(text: str, terminal: Path) -> None:
    """Write to a terminal; one that is not there, or that nobody reads, is left alone."""
    with contextlib.suppress(OSError):
        opened = os.open(terminal, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            data = text.encode("utf-8", "replace")
            end = time.monotonic() + LOOK_S
            while data and time.monotonic() < end:
                with contextlib.suppress(BlockingIOError):
                    data = data[os.write(opened, data) :]
                    continue
                time.sleep(0.02)
        finally:
            os.close(opened)


def main() -> None:
    """Look and show, for ever."""
    parser = argparse.ArgumentParser(
        prog="dworker.console", description="Shows how far this machine's worker has come."
    )
    parser.add_argument("terminals", nargs="+", type=Path, metavar="TERMINAL", help="such as /dev/tty1")
    terminals = parser.parse_args().terminals
    before: list[Block] = []
    while True:
        facts = look()
        shown = blocks(facts)
        if shown != before:
            before = shown
            for terminal in terminals:
                is_screen = terminal.name.startswith("tty") and terminal.name[3:].isdecimal()
                show(render(shown, is_screen=is_screen), terminal)
        time.sleep(CALM_S if standing.read(facts.status).state == "joined" else LOOK_S)


if __name__ == "__main__":
    main()
