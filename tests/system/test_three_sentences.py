"""What the project is for, in three sentences, once and for good: `systemctl start dcoord` on one machine, a YAML file
dropped in, another machine booted from the image; and the result is read on the first.

Machine A boots systemd in a container and gets the packages. Machine B boots the image in QEMU, on a bridge without
DHCP. Machine C is a plain `dworker` on a network of its own on that bridge.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from . import netlab
from .imagelab import BUILD_S, Pc, Site, built_image, built_packages, wait_until
from .machinelab import Bridge, Machine, machine

pytestmark = [pytest.mark.system, pytest.mark.timeout(2 * BUILD_S + 500)]

A_ADDRESS: Final = "169.254.1.2/16"
C_ADDRESS: Final = "169.254.1.3/16"
MAC: Final = "52:54:00:0b:0b:0b"
B: Final = "dworker-0b0b0b"
MIB: Final = 1 << 20
JOIN_S: Final = 60.0

TABLE_YAML: Final = """\
version: 1
description: A table's row, by a program that is shipped beside this file
command: [sh, table.sh, "{item}"]
bundle: table/
isolation: cgroup
limits: {memory: 48MiB}
retries: {max: 0}
"""
TABLE_SH: Final = """\
read -r item
case $item in
  big) exec python3 -c 'print(len(bytearray(96 << 20)))' ;;
  *) echo "$item times $(cat factor.txt) is $((item * $(cat factor.txt))) by $(uname -n)" ;;
esac
"""
SLOW_YAML: Final = """\
version: 1
description: A while, and who it was that waited
command: [sh, -c, "sleep 12; uname -n"]
isolation: [rlimit]
"""


class Room(Site):
    """The bridge, and on it A as the coordinator's machine."""

    def _start_coordinator(self) -> None:
        """It is on A, and systemd's."""

    @property
    def bridge(self) -> Bridge:
        return Bridge(self._machine.pid, "br0")

    def plug_in(self, other: netlab.Machine) -> None:
        """Give another machine an interface `eth0` on the bridge."""
        run = self._machine.run
        run("ip", "link", "add", "to-c", "type", "veth", "peer", "name", "eth0", "netns", str(other.pid))
        run("ip", "link", "set", "to-c", "master", "br0", "up")
        other.run("ip", "addr", "add", C_ADDRESS, "dev", "eth0")
        other.run("ip", "link", "set", "eth0", "up")


class Coordinator:
    """Machine A, and `dctl` on it."""

    def __init__(self, on: Machine) -> None:
        self.on = on

    def dctl(self, *arguments: str) -> Any:
        """The document that a command prints. One that says that a task failed exits with 1."""
        return json.loads(self.on.run("dctl", *arguments, "--json", check=False).stdout)

    def token(self) -> str:
        return self.on.run("dctl", "token", "create", "worker", "-q").stdout.strip()

    def state(self, name: str) -> str:
        """What `dctl worker list` says of a worker; '' if it has none of that name."""
        return next((str(one["state"]) for one in self.dctl("worker", "list") if one["name"] == name), "")

    def attempts(self, job: int, count: int) -> list[list[dict[str, Any]]]:
        """The attempts of each task of a job."""
        return [self.dctl("task", "show", f"{job}.{index}")["attempts"] for index in range(count)]

    def running_on(self, name: str, count: int) -> None:
        """Wait until a worker runs so many tasks."""

        def runs() -> bool:
            return any(one["name"] == name and one["running"] >= count for one in self.dctl("worker", "list"))

        wait_until(runs, JOIN_S, f"{name} does not run {count} tasks")


@pytest.fixture(scope="module")
def debs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_packages(tmp_path_factory.mktemp("debs"))


@pytest.fixture(scope="module")
def image(debs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_image(tmp_path_factory.mktemp("image"), f"DEBS={debs}")


@contextmanager
def coordinator(room: Room, debs: Path) -> Iterator[Coordinator]:
    """The first sentence."""
    with machine("a", binds=[(debs, "/packages")], bridge=room.bridge) as on:
        on.sh(f"ip addr add {A_ADDRESS} dev host0; ip link set host0 up")
        on.sh("apt-get install --yes --no-install-recommends /packages/*.deb")
        # It would take the tasks that B is to have.
        on.run("systemctl", "disable", "--now", "dworker")
        on.run("systemctl", "start", "dcoord")
        yield Coordinator(on)


@contextmanager
def plain_worker(room: Room, folder: Path, token: str) -> Iterator[str]:
    """Machine C: joined by one string; its name."""
    with ExitStack() as stack:
        c = netlab.Machine(stack)
        room.plug_in(c)
        (folder / "config").mkdir(parents=True)
        (folder / "config" / "dworker.yaml").write_text("name: machine-c\nslots: 2\n")
        environment = {**os.environ} | {
            f"DISTRICOMP_{key}_DIR": str(folder / key.lower()) for key in ("STATE", "CONFIG", "RUNTIME")
        }
        log = stack.enter_context((folder / "log").open("w"))
        worker = stack.enter_context(
            subprocess.Popen(
                [*c.enter, sys.executable, "-m", "dworker"], stdin=subprocess.DEVNULL, stderr=log, env=environment
            )
        )
        stack.callback(worker.terminate)
        joined = subprocess.run(
            [*c.enter, sys.executable, "-m", "dctl", "join", "-"],
            input=token, text=True, capture_output=True, env=environment, timeout=60,
        )  # fmt: skip
        assert joined.returncode == 0, joined.stderr
        yield "machine-c"


def test_three_sentences(debs: Path, image: Path, tmp_path: Path) -> None:
    # A socket's path is short.
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        room = Room(stack, Path(folder))
        a = stack.enter_context(coordinator(room, debs))
        drop_in(a)
        token = a.token()
        with room.boot(image, "--mac", MAC, token=token) as b:
            b.until("JOINED")
            wait_until(lambda: a.state(B) == "idle", JOIN_S, "A does not see B")
            a_limit_bites_and_the_result_is_read(a)
            a_restart_ends_no_task(a)
            name = stack.enter_context(plain_worker(room, tmp_path, token))
            wait_until(lambda: a.state(name) == "idle", JOIN_S, "A does not see C")
            what_a_dead_machine_had_goes_to_another(a, b)


def drop_in(a: Coordinator) -> None:
    """The second sentence: definitions, one with a folder of its own, live without a restart."""
    folder = "/etc/districomp/tasks.d"
    a.on.sh(f"mkdir {folder}/table; printf 7 > {folder}/table/factor.txt")
    for name, text in (("table/table.sh", TABLE_SH), ("table.yaml", TABLE_YAML), ("slow.yaml", SLOW_YAML)):
        a.on.sh(f"cat > {folder}/{name} <<'END'\n{text}END")
    a.on.wait("dctl def show table && dctl def show slow")


def a_limit_bites_and_the_result_is_read(a: Coordinator) -> None:
    """The third sentence, with a memory limit that is the kernel's."""
    a.on.sh("printf '6\\nbig\\n' > /tmp/rows")
    job = int(a.on.run("dctl", "submit", "table", "--each-line", "/tmp/rows").stdout)
    a.on.run("dctl", "wait", str(job), "--timeout", "100s", check=False)
    (good,), (big,) = a.attempts(job, 2)
    assert good["reason"] == "done", good
    assert big["reason"] == "memory", big
    (row, _) = a.dctl("results", str(job))
    assert row["result"].strip() == f"6 times 7 is 42 by {B}"


def a_restart_ends_no_task(a: Coordinator) -> None:
    job = int(a.on.run("dctl", "submit", "slow", "--range", "1..2").stdout)
    a.running_on(B, 1)
    before = a.dctl("status")["epoch"]
    a.on.run("systemctl", "restart", "dcoord")
    a.on.wait(f"dctl wait {job} --timeout 40s", limit_s=90)
    assert a.dctl("status")["epoch"] == before + 1
    for attempts in a.attempts(job, 2):
        assert [attempt["reason"] for attempt in attempts] == ["done"]
    assert {row["result"].strip() for row in a.dctl("results", str(job))} == {B}


def what_a_dead_machine_had_goes_to_another(a: Coordinator, b: Pc) -> None:
    job = int(a.on.run("dctl", "submit", "slow", "--range", "1..6").stdout)
    a.running_on(B, 1)
    os.kill(b.pid, signal.SIGKILL)
    a.on.wait(f"dctl wait {job} --timeout 50s", limit_s=180)
    tried = a.attempts(job, 6)
    assert all(attempts[-1]["reason"] == "done" for attempts in tried)
    assert any(attempts[0]["reason"] == "worker_lost" for attempts in tried), "B had begun none"
    assert a.state(B) == "lost"
