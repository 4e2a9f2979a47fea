"""Machines with a network of their own: processes in network namespaces, joined by a cable that is plugged in when the test says so."""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

from tests.patience import PATIENCE_S

BROWSE = """
import asyncio, sys, msgspec
from districomp.discovery import Browser

def tell(found):
    sys.stdout.write(msgspec.json.encode(found).decode() + "\\n")
    sys.stdout.flush()

async def main():
    browser = Browser(None, tell)
    await browser.start()
    tell([])
    await asyncio.Event().wait()

asyncio.run(main())
"""


class Machine:
    """A network namespace, held open by a process that ends with this one."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        keeper = stack.enter_context(ended_at_exit(["unshare", "-n", "sh", "-c", "echo up; exec cat"]))
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == "up\n"
        self.pid = keeper.pid
        self.run("ip", "link", "set", "lo", "up")

    @property
    def enter(self) -> list[str]:
        """What comes before a command that is to run on this machine."""
        return ["nsenter", "-t", str(self.pid), "-n"]

    def run(self, *command: str) -> None:
        """Run a command on this machine."""
        subprocess.run([*self.enter, *command], check=True, timeout=PATIENCE_S)

    def start(self, *command: str) -> "subprocess.Popen[str]":
        """Start a process on this machine, with pipes."""
        return self._stack.enter_context(ended_at_exit([*self.enter, *command]))

    def counters(self) -> dict[str, int]:
        """What the kernel has counted of its network (`/proc/net/snmp`, `snmp6`), by names like TcpOutSegs."""
        counts: dict[str, int] = {}
        lines = Path(f"/proc/{self.pid}/net/snmp").read_text().splitlines()
        for names, values in zip(lines[::2], lines[1::2], strict=True):
            kind = names.split(":")[0]
            pairs = zip(names.split()[1:], values.split()[1:], strict=True)
            counts |= {f"{kind}{name}": int(value) for name, value in pairs}
        for line in Path(f"/proc/{self.pid}/net/snmp6").read_text().splitlines():
            name, value = line.split()
            counts[name] = int(value)
        return counts

    def advertise(self, cluster: str, address: str) -> None:
        """Advertise a coordinator that listens on `address` port 8420."""
        process = self.start(sys.executable, "-m", "dcoord.advertise")
        assert process.stdin is not None
        assert process.stdout is not None
        what = {"cluster": cluster, "name": "lab", "address": address, "port": 8420}
        process.stdin.write(json.dumps(what) + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "registered\n"

    def browse(self) -> Callable[[Callable[[list[str]], bool], float], list[str]]:
        """Browse on all interfaces; the function waits until the addresses found satisfy a condition."""
        process = self.start(sys.executable, "-c", BROWSE)
        lines: queue.Queue[str] = queue.Queue()
        assert process.stdout is not None
        threading.Thread(target=_pump, args=(process.stdout, lines), daemon=True).start()
        assert json.loads(lines.get(timeout=PATIENCE_S)) == []

        def until(condition: Callable[[list[str]], bool], limit_s: float) -> list[str]:
            while True:
                found: list[dict[str, Any]] = json.loads(lines.get(timeout=limit_s))
                addresses = [address for one in found for address, _ in one["addresses"]]
                if condition(addresses):
                    return addresses

        return until


def _pump(stream: TextIO, lines: "queue.Queue[str]") -> None:
    for line in stream:
        lines.put(line)


def plug_in(one: Machine, other: Machine) -> None:
    """Join two machines by a cable: an interface `eth0` on each, without an address and down."""
    one.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", str(other.pid))


@contextmanager
def ended_at_exit(command: list[str]) -> "Iterator[subprocess.Popen[str]]":
    """A process with pipes, killed in the end."""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    ) as process:
        try:
            yield process
        finally:
            process.kill()
