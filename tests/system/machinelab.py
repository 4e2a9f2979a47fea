"""Machines that boot a real systemd: a Debian root under systemd-nspawn, everything written to it forgotten in the end.

Owns the root (built once, see `scripts/debian_root.py`), starting, running commands inside, stopping. The machine has
a network of its own with loopback alone or one end of a bridge, and a control group of its own, so that nothing of it outlives a test.
Needs root, systemd-container and mmdebstrap.
"""

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Final, NamedTuple

from scripts.debian_root import debian_root
from tests.patience import PATIENCE_S

BOOT_S: Final = 120.0
STOP_S: Final = 60.0
COMMAND_S: Final = 120.0
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
            errors="replace",
        )
        assert not check or done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        return done

    def sh(self, script: str, *, user: str = "", check: bool = True) -> str:
        """What a shell script prints on it."""
        return self.run("sh", "-ec", script, user=user, check=check).stdout

    def wait(self, script: str, *, limit_s: float = PATIENCE_S, user: str = "") -> str:
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


class Bridge(NamedTuple):
    """A bridge in the network namespace of the process `pid`."""

    pid: int
    name: str


@contextlib.contextmanager
def machine(
    name: str,
    *,
    packages: Sequence[str] = (),
    binds: Sequence[tuple[Path, str]] = (),
    options: Sequence[str] = (),
    bridge: Bridge | None = None,
) -> Iterator[Machine]:
    """Boot a machine. `packages`: beside what every root has; `binds`: folders to see inside, read-only; more `options`.

    On a `bridge` it has an interface `host0`, down and without an address.
    """
    root = debian_root(packages)
    command = ["systemd-nspawn", "--quiet", f"--directory={root}", f"--machine={name}", f"--hostname={name}"]
    command += ["--volatile=overlay", "--register=no", "--keep-unit", "--console=pipe"]
    if bridge is None:
        command.append("--private-network")
    else:
        command = ["nsenter", f"--net=/proc/{bridge.pid}/ns/net", *command, f"--network-bridge={bridge.name}"]
    # Which systemd-nspawn would keep from the machine, unlike a real one: Landlock.
    command += ["--system-call-filter=landlock_create_ruleset landlock_add_rule landlock_restrict_self"]
    command += [f"--bind-ro={folder}:{inside}" for folder, inside in binds]
    # No locking: several machines may use one root, which none of them writes to.
    environment = {**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1", "SYSTEMD_NSPAWN_LOCK": "0"}
    # In its group before it starts, because it makes that the machine's root.
    enter = ["sh", "-c", 'echo $$ > "$0" && exec "$@"']
    with _control_group(name) as group, tempfile.TemporaryFile() as console:
        nspawn = subprocess.Popen(
            [*enter, f"{group}/cgroup.procs", *command, *options, "--boot"],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        try:
            booted = _booted(nspawn, console)
            try:
                yield booted
            except BaseException:
                print(booted.run("journalctl", "--no-pager", "--lines=60", check=False).stdout)
                raise
        finally:
            (group / "cgroup.kill").write_text("1")
            nspawn.wait(STOP_S)


_KEEPER: Final = """\
cat > /dev/null
echo 1 > "$0/cgroup.kill"
for i in $(seq 200); do grep -q "populated 0" "$0/cgroup.events" && break; sleep 0.05; done
# systemd-nspawn makes one of the same name where systemd's own hierarchy of version 1 is.
mirror=/sys/fs/cgroup/systemd/${0##*/}
[ ! -d "$mirror" ] || find "$mirror" -depth -type d -exec rmdir {} \\;
exec find "$0" -depth -type d -exec rmdir {} \\;
"""


@contextlib.contextmanager
def _control_group(name: str) -> Iterator[Path]:
    """A new group of version 2, which need not have controllers; killed and removed in the end, also if we are killed."""
    with contextlib.ExitStack() as stack:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
        folder = next((Path(words[1]) for words in mounts if words[2] == "cgroup2"), None)
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            subprocess.run(["mount", "-t", "cgroup2", "none", str(folder)], check=True)
            stack.callback(subprocess.run, ["umount", str(folder)], check=True)
        group = Path(tempfile.mkdtemp(prefix=f"districomp-{name}-", dir=folder))
        # systemd-nspawn's machine outlives it when it is killed, so a process of its own waits for the end of this one.
        keeper = subprocess.Popen(["sh", "-c", _KEEPER, str(group)], stdin=subprocess.PIPE, start_new_session=True)
        try:
            yield group
        finally:
            assert keeper.stdin is not None
            keeper.stdin.close()
            assert keeper.wait(STOP_S) == 0, f"{group} cannot be removed"


def _booted(nspawn: "subprocess.Popen[bytes]", console: IO[bytes]) -> Machine:
    children = Path(f"/proc/{nspawn.pid}/task/{nspawn.pid}/children")
    end = time.monotonic() + BOOT_S
    while time.monotonic() < end:
        if nspawn.poll() is not None:
            console.seek(0)
            raise AssertionError(f"systemd-nspawn ended: {console.read().decode(errors='replace')}")
        for pid in children.read_text().split():
            found = Machine(int(pid))
            state = found.run("systemctl", "is-system-running", check=False).stdout.strip()
            if state in ("running", "degraded"):
                return found
        time.sleep(_POLL_S)
    raise AssertionError(f"no boot within {BOOT_S} s")
