"""Machines that boot the worker's image in QEMU, on a bridge beside a coordinator, without DHCP: all in a network of their own.

Owns that network, the coordinator's process, QEMU, and what it shows on its console. Needs root, iproute2, QEMU and
what `make -C os image` needs. Nothing of it touches the network of the machine that tests.
"""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from .netlab import Machine

ROOT: Final = Path(__file__).resolve().parents[2]
BOOT_S: Final = 150.0
"""Processors that are made of software, on a machine that others use too."""
BUILD_S: Final = 400.0
HOST_ADDRESS: Final = "169.254.1.1/16"
_POLL_S: Final = 0.2
_EPOCH: Final = "1700000000"
_HEADING: Final = "= districomp worker ="


def built_packages(output: Path) -> Path:
    """`make packages` into a folder, dated so that the same tree gives the same image whatever is committed."""
    _build([sys.executable, str(ROOT / "scripts" / "packages.py"), "--output", str(output)])
    return output


def built_image(output: Path, *settings: str) -> Path:
    """`make -C os image SMALL=1` into a folder; the big part is built once and kept, for all tests and runs."""
    _build(["make", "-C", str(ROOT / "os"), "image", "SMALL=1", f"OUT={output}", f"PYTHON={sys.executable}", *settings])
    return output


def _build(command: list[str]) -> None:
    environment = {**os.environ, "SOURCE_DATE_EPOCH": _EPOCH}
    done = subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=BUILD_S, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr


class Site:
    """A bridge `br0` with a coordinator on it, at link-local addresses (of IPv4 alone unless `has_ipv6`); mDNS finds it there."""

    def __init__(self, stack: ExitStack, folder: Path, *, has_ipv6: bool = True) -> None:
        self._machine = Machine(stack)
        self._stack = stack
        self._folder = folder
        run = self._machine.run
        run("ip", "link", "add", "br0", "type", "bridge", "forward_delay", "0", "mcast_snooping", "0")
        run("ip", "addr", "add", HOST_ADDRESS, "dev", "br0")
        if not has_ipv6:
            run("sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6")
        run("ip", "link", "set", "br0", "up")
        (folder / "config" / "tasks.d").mkdir(parents=True)
        (folder / "config" / "dcoord.yaml").write_text("name: lab\n")
        self._environment = {
            **os.environ,
            "DISTRICOMP_STATE_DIR": str(folder / "state"),
            "DISTRICOMP_CONFIG_DIR": str(folder / "config"),
            "DISTRICOMP_RUNTIME_DIR": str(folder / "run"),
        }
        self._start_coordinator()

    def _start_coordinator(self) -> None:
        log = self._stack.enter_context((self._folder / "dcoord.log").open("w"))
        process = self._stack.enter_context(
            subprocess.Popen(
                [*self._inside(), sys.executable, "-m", "dcoord"],
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=self._environment,
            )
        )
        self._stack.callback(process.terminate)
        wait_until((self._folder / "run" / "endpoint.json").exists, 30, "no coordinator")

    def _inside(self) -> list[str]:
        return ["nsenter", "-t", str(self._machine.pid), "-n", "setpriv", "--pdeathsig=KILL"]

    def define(self, name: str, definition: dict[str, Any]) -> None:
        """Drop a definition in (JSON is YAML)."""
        (self._folder / "config" / "tasks.d" / f"{name}.yaml").write_text(json.dumps(definition))
        self.wait(lambda: self.dctl("def", "show", name, check=False).returncode == 0, 20, f"{name} is not read")

    def dctl(self, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run `dctl` as the coordinator's own user."""
        done = subprocess.run(
            [*self._inside(), sys.executable, "-m", "dctl", *arguments],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=120,
            env=self._environment,
        )
        assert not check or done.returncode == 0, f"dctl {arguments}: {done.stdout}{done.stderr}"
        return done

    def json(self, *arguments: str) -> Any:
        """The document that a `dctl` command prints."""
        return json.loads(self.dctl(*arguments, "--json").stdout)

    def token(self) -> str:
        """A worker's join token."""
        return self.dctl("token", "create", "worker", "-q").stdout.strip()

    def worker(self, name: str) -> dict[str, Any] | None:
        """The newest worker of this name, as `dctl worker list` has it."""
        workers: list[dict[str, Any]] = self.json("worker", "list")
        return next((one for one in reversed(workers) if one["name"] == name), None)

    def wait(self, condition: Callable[[], Any], limit_s: float, otherwise: str) -> Any:
        """Wait until a condition holds; the coordinator's last words otherwise."""
        try:
            return wait_until(condition, limit_s, otherwise)
        except AssertionError:
            print((self._folder / "dcoord.log").read_text()[-4000:])
            raise

    @contextmanager
    def boot(self, image: Path, *options: str, token: str = "", more: tuple[str, ...] = ()) -> "Iterator[Pc]":
        """A machine that boots from the image, ended in the end. `options` of boot_image.py, `more` of QEMU."""
        command = [sys.executable, str(ROOT / "scripts" / "boot_image.py"), "--image", str(image), "--bridge", "br0"]
        environment = {**self._environment, "TOKEN": token}
        with subprocess.Popen(
            [*self._inside(), *command, *options, "--", *more],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
        ) as process:
            pc = Pc(process)
            try:
                yield pc
            except BaseException:
                print(pc.console()[-6000:])
                raise
            finally:
                process.kill()


class Pc:
    """A machine in QEMU. `pid` is QEMU's."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.pid = process.pid
        self._process = process
        self._heard = bytearray()
        self._begun = time.monotonic()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        while data := self._process.stdout.read1(65536):  # type: ignore[attr-defined]
            self._heard += data

    def console(self) -> str:
        """Everything that came over the serial line."""
        return bytes(self._heard).decode("utf-8", "replace").replace("\r", "")

    def screen(self) -> dict[str, str]:
        """What the screen says now, by its labels; {} before there is one."""
        whole = re.findall(f"{_HEADING}=*\n(.*?)\n=+\n", self.console(), re.DOTALL)
        shown: dict[str, str] = {}
        label = ""
        for line in whole[-1].splitlines() if whole else []:
            match = re.match(r"  (.{12}) (.*)", line)
            if match:
                label = match[1].strip() or label
                shown[label] = f"{shown.get(label, '')} {match[2].strip()}".strip()
        return shown

    def until(self, label: str, text: str = "") -> dict[str, str]:
        """The screen, as soon as it has this label with this text in it. AssertionError after BOOT_S."""

        def is_there() -> dict[str, str] | None:
            assert self._process.poll() is None, "QEMU has ended"
            shown = self.screen()
            return shown if label in shown and text in shown[label] else None

        shown: dict[str, str] = wait_until(is_there, BOOT_S, f"the screen never says {label} {text}")
        print(f"{label} {text}: {time.monotonic() - self._begun:.1f} s after QEMU's start")
        return shown


def wait_until(condition: Callable[[], Any], limit_s: float, otherwise: str) -> Any:
    """What a condition gives as soon as it is true. AssertionError."""
    end = time.monotonic() + limit_s
    while not (value := condition()):
        assert time.monotonic() < end, f"{otherwise} (within {limit_s} s)"
        time.sleep(_POLL_S)
    return value


@contextmanager
def site(folder: Path, *, has_ipv6: bool = True) -> Iterator[Site]:
    """A network with a coordinator, ended in the end."""
    with ExitStack() as stack:
        yield Site(stack, folder, has_ipv6=has_ipv6)
