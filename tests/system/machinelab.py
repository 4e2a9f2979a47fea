"""Machines that boot a real systemd: a Debian root under systemd-nspawn, everything written to it forgotten in the end.

Owns the root (built once, see `scripts/debian_root.py`), starting, running commands inside, stopping. The machine has
a network of its own with loopback alone. Needs root, systemd-container and mmdebstrap.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from scripts.debian_root import debian_root

BOOT_S: Final = 60.0
COMMAND_S: Final = 60.0
_POLL_S: Final = 0.05
_ENVIRONMENT: Final = ("env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8",
                       "HOME=/root", "DEBIAN_FRONTEND=noninteractive")  # fmt: skip


class Machine:
    """A running machine. `pid` is its first process, as this machine sees it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def run(self, *command: str, user: str = "", check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run a command on it; AssertionError with its output if it fails and `check`."""
        if user:
            command = ("runuser", "-u", user, "--", *command)
        done = subprocess.run(
            ["nsenter", "-t", str(self.pid), "--all", "--", *_ENVIRONMENT, *command],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=COMMAND_S,
        )
        assert not check or done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        return done

    def sh(self, script: str, *, user: str = "", check: bool = True) -> str:
        """What a shell script prints on it."""
        return self.run("sh", "-ec", script, user=user, check=check).stdout

    def wait(self, script: str, *, limit_s: float = 20.0, user: str = "") -> str:
        """Wait until a shell script succeeds; what it prints then. AssertionError with its last words."""
        end = time.monotonic() + limit_s
        while True:
            done = self.run("sh", "-ec", script, user=user, check=False)
            if done.returncode == 0:
                return done.stdout
            assert time.monotonic() < end, f"still not after {limit_s} s: {script}\n{done.stdout}{done.stderr}"
            time.sleep(_POLL_S * 4)

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Properties of a unit."""
        text = self.run("systemctl", "show", unit, f"--property={','.join(properties)}").stdout
        return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


@contextlib.contextmanager
def machine(
    name: str, *, packages: Sequence[str] = (), binds: Sequence[tuple[Path, str]] = (), options: Sequence[str] = ()
) -> Iterator[Machine]:
    """Boot a machine. `packages`: beside what every root has; `binds`: folders to see inside, read-only; more `options`."""
    root = debian_root(packages)
    command = ["systemd-nspawn", "--quiet", f"--directory={root}", f"--machine={name}", f"--hostname={name}"]
    command += ["--volatile=overlay", "--register=no", "--keep-unit", "--private-network", "--console=pipe"]
    command += [f"--bind-ro={folder}:{inside}" for folder, inside in binds]
    # No locking: several machines may use one root, which none of them writes to.
    environment = {**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1", "SYSTEMD_NSPAWN_LOCK": "0"}
    with subprocess.Popen(
        [*command, *options, "--boot"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
    ) as nspawn:
        try:
            yield _booted(nspawn)
        finally:
            nspawn.send_signal(signal.SIGTERM)
            try:
                nspawn.wait(10)
            except subprocess.TimeoutExpired:
                nspawn.kill()


def _booted(nspawn: "subprocess.Popen[bytes]") -> Machine:
    children = Path(f"/proc/{nspawn.pid}/task/{nspawn.pid}/children")
    end = time.monotonic() + BOOT_S
    while time.monotonic() < end:
        if nspawn.poll() is not None:
            assert nspawn.stdout is not None
            raise AssertionError(f"systemd-nspawn ended: {nspawn.stdout.read().decode(errors='replace')}")
        for pid in children.read_text().split():
            found = Machine(int(pid))
            state = found.run("systemctl", "is-system-running", check=False).stdout.strip()
            if state in ("running", "degraded"):
                return found
        time.sleep(_POLL_S)
    raise AssertionError(f"no boot within {BOOT_S} s")
