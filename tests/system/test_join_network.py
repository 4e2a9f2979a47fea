"""Joining from another machine: one string, or a person; whoever knows neither keeps quiet; and what clocks say does not matter.

Two network namespaces with a cable between them. Nothing is configured but what the test is about: the coordinator
listens on every interface at its usual ports, and is found by mDNS.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from demo.cluster import script, wait_until
from tests.patience import PATIENCE_S
from tests.priority import Took, ahead_of_others, timed

from .netlab import Machine, plug_in

pytestmark = pytest.mark.system

LIMIT_S = PATIENCE_S
JOIN_S = 2.0
"""From the command that a person types to a worker that may be given tasks."""
ADVICE = "run: dctl join TOKEN"
SHORT_S = 10
"""The shortest life of a certificate that can be configured."""


class Host:
    """A machine of ours: folders of its own, our commands and daemons."""

    def __init__(self, stack: ExitStack, folder: Path, machine: Machine | None = None) -> None:
        self.machine = machine or Machine(stack)
        self.folder = folder
        (folder / "config").mkdir(parents=True)
        folders = {"STATE": "state", "CONFIG": "config", "RUNTIME": "run"}
        self._environment = [f"DISTRICOMP_{key}_DIR={folder / name}" for key, name in folders.items()]

    def configure(self, daemon: str, text: str) -> None:
        (self.folder / "config" / f"{daemon}.yaml").write_text(text)

    def start(self, daemon: str, *variables: str) -> "subprocess.Popen[str]":
        """A daemon; its log is a file."""
        into = f"LOG={self.log_file(daemon)}"
        run = ("sh", "-c", 'exec "$0" "$@" 2>>"$LOG"', script(daemon), "-v")
        return self.machine.start("env", *self._environment, into, *variables, *run)

    def dctl(self, *arguments: str, variables: Sequence[str] = ()) -> Any:
        """What `dctl ... --json` prints."""
        done = subprocess.run(
            [*self.machine.enter, "env", *self._environment, *variables, script("dctl"), *arguments, "--json"],
            capture_output=True, timeout=LIMIT_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    def log_file(self, daemon: str) -> Path:
        return self.folder / f"{daemon}.log"

    def log(self, daemon: str) -> str:
        file = self.log_file(daemon)
        return file.read_text() if file.exists() else ""

    def sent(self) -> dict[str, int]:
        """What this machine has sent, or tried to, since it exists."""
        counts = self.machine.counters()
        return {name: counts[name] for name in ("TcpActiveOpens", "TcpOutSegs", "UdpOutDatagrams", "Udp6OutDatagrams")}


class Network:
    """Machine A with a coordinator, and machine B."""

    def __init__(self, stack: ExitStack, folder: Path, settings: str = "", *, has_ipv4: bool = True) -> None:
        self.a, self.b = Host(stack, folder / "a"), Host(stack, folder / "b")
        plug_in(self.a.machine, self.b.machine)
        for host, address in ((self.a, "10.99.0.1/24"), (self.b, "10.99.0.2/24")):
            if has_ipv4:
                host.machine.run("ip", "addr", "add", address, "dev", "eth0")
            host.machine.run("ip", "link", "set", "eth0", "up")
        self.a.configure("dcoord", f"name: lab\n{settings}")
        self.a.start("dcoord")
        wait_until((self.a.folder / "run" / "endpoint.json").exists, "the coordinator", LIMIT_S)

    @property
    def id(self) -> str:
        return str(json.loads((self.a.folder / "run" / "endpoint.json").read_bytes())["cluster"])

    def state(self, name: str) -> str:
        return next((one["state"] for one in self.a.dctl("worker", "list") if one["name"] == name), "")

    def token(self) -> str:
        return str(self.a.dctl("token", "create", "worker")["token"])

    def submit(self, *argv: str, data: bytes = b"") -> int:
        file = self.a.folder / "data"
        file.write_bytes(data)
        params = [word for argument in argv for word in ("--param", f"argv={argument}")]
        return int(self.a.dctl("submit", "shell", *params, "--data-file", str(file))["job"])

    def job_state(self, job: int) -> str:
        return str(self.a.dctl("job", "show", str(job))["state"])


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    with ExitStack() as stack:
        yield Network(stack, tmp_path)


def welcomed(host: Host) -> bool:
    return "joined lab" in host.log("dworker")


# ---- one string ----


@pytest.fixture
def before_all_others() -> Iterator[None]:
    """The times are those of what the test starts, and not its neighbours'."""
    with ahead_of_others():
        yield


@pytest.mark.usefixtures("before_all_others")
@pytest.mark.parametrize("started", ["before", "after"])
def test_one_string_makes_a_worker_of_a_machine(tmp_path: Path, started: str) -> None:
    """Three times: each one is quick."""
    with ExitStack() as stack:
        network = Network(stack, tmp_path)
        took: list[Took] = []
        for name in ("first", "second", "third"):
            host = Host(stack, tmp_path / name, network.b.machine)
            took.append(time_to_join(network, host, name, started))
            print(f"joined {took[-1].s:.2f} s after `dctl join` was typed, dworker started {started}")
            wait_until(lambda name=name: network.state(name) == "idle", "it to be there", LIMIT_S)  # type: ignore[misc]
        assert max(one.alone_s for one in took) < JOIN_S
        job = network.submit("wc", "-c", data=b"x" * 200_000)
        wait_until(lambda: network.job_state(job) == "done", "a task with large data", LIMIT_S)


def time_to_join(network: Network, host: Host, name: str, started: str) -> Took:
    """From `dctl join` to the coordinator's welcome, dworker started before or after that."""
    host.configure("dworker", f"name: {name}\nslots: 1\n")
    token = network.token()
    if started == "before":
        host.start("dworker")
        wait_until(lambda: ADVICE in host.log("dworker"), "its advice", LIMIT_S)
    with timed() as took:
        joined = host.dctl("join", token)
        if started == "after":
            host.start("dworker")
        wait_until(lambda: welcomed(host), "it to join", LIMIT_S)
    assert joined["cluster"] == network.id
    return took


def test_link_local_addresses_are_enough_for_data_too(tmp_path: Path) -> None:
    """They mean nothing without their interface, which a data port's URL does not know."""
    with ExitStack() as stack:
        network = Network(stack, tmp_path, has_ipv4=False)
        alice = Host(stack, tmp_path / "alice", network.b.machine)
        network.b.configure("dworker", "name: b\nslots: 1\n")
        network.b.dctl("join", network.token())
        alice.dctl("join", str(network.a.dctl("token", "create", "submit")["token"]))
        network.b.start("dworker")
        file = tmp_path / "large"
        file.write_bytes(b"x" * 200_000)
        done = alice.dctl("submit", "shell", "--param", "argv=cat", "--data-file", str(file), "--wait")
        assert network.job_state(done["job"]) == "done", done
        assert "[fe80:" in network.b.log("dworker")


# ---- no string ----


def test_whoever_knows_the_authority_waits_for_a_person(network: Network, tmp_path: Path) -> None:
    evidence = tmp_path / "of" / "it"
    evidence.parent.mkdir()
    job = network.submit("touch", str(evidence), data=b"of the cluster" * 10_000)
    network.b.configure("dworker", f"name: b\nslots: 1\ncluster: {network.id}\n")
    network.b.start("dworker")
    wait_until(lambda: network.state("b") == "pending", "it to be pending", LIMIT_S)
    (listed,) = network.a.dctl("worker", "list")
    wait_until(
        lambda: f"its words are: {listed['words']};" in network.b.log("dworker"), "the same words there", LIMIT_S
    )
    # It beats every five seconds; after the second beat it has been given every opportunity.
    before = network.b.sent()["TcpOutSegs"]
    wait_until(lambda: network.b.sent()["TcpOutSegs"] >= before + 2, "signs of life", LIMIT_S)
    assert network.job_state(job) == "queued"
    assert not evidence.exists()
    assert not welcomed(network.b)
    kept = b"".join(path.read_bytes() for path in (network.b.folder / "state").rglob("*") if path.is_file())
    assert b"of the cluster" not in kept
    assert b"touch" not in kept
    assert not (network.b.folder / "state" / "dworker" / "identity").exists()

    network.a.dctl("worker", "approve", "b", "--words", listed["words"])
    wait_until(lambda: network.job_state(job) == "done", "its work, now that it is let in", LIMIT_S)
    assert evidence.exists()


@pytest.mark.parametrize("settings", ["", "cluster: lab\n", "coordinator: 10.99.0.1\n"])
def test_whoever_knows_neither_contacts_nobody(network: Network, settings: str) -> None:
    network.b.configure("dworker", f"name: b\n{settings}")
    before = network.b.sent(), network.a.sent()
    network.b.start("dworker")
    wait_until(lambda: ADVICE in network.b.log("dworker"), "its advice", LIMIT_S)
    # A second is four looks at the disk and ten announcements' time.
    time.sleep(1.0)
    assert network.b.sent() == before[0]
    assert network.a.sent()["TcpOutSegs"] == before[1]["TcpOutSegs"], "nobody called"
    assert network.b.log("dworker").count(ADVICE) == 1
    # And it was able to.
    network.b.dctl("join", network.token())
    wait_until(lambda: welcomed(network.b), "it to join", LIMIT_S)
    assert network.b.sent()["TcpActiveOpens"] > before[0]["TcpActiveOpens"]


# ---- clocks ----


# Debian's libfaketime will not do: it breaks waiting by the monotonic clock, and with it CPython's threads and sleep().
WRONG_CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

int clock_gettime(clockid_t which, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real)
        real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(which, now);
    const char *off = getenv("CLOCK_OFF_S");
    if (!failed && off && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE))
        now->tv_sec += atol(off);
    return failed;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out)
        *out = now.tv_sec;
    return now.tv_sec;
}

int gettimeofday(struct timeval *out, void *zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    out->tv_sec = now.tv_sec;
    out->tv_usec = now.tv_nsec / 1000;
    return 0;
}
"""
YEAR_S = 31_557_600


def wrong_clock(folder: Path) -> Path:
    """A library to be preloaded: the calendar is off by CLOCK_OFF_S seconds, and the stopwatch right, as with a flat battery."""
    library = folder / "wrong_clock.so"
    compile_it = ["gcc", "-shared", "-fPIC", "-O2", "-x", "c", "-", "-o", str(library), "-ldl"]
    subprocess.run(compile_it, input=WRONG_CLOCK.encode(), check=True, timeout=LIMIT_S)
    return library


def test_clocks_three_years_off_join_and_renew(tmp_path: Path) -> None:
    with ExitStack() as stack:
        network = Network(stack, tmp_path, f"certificates: {{lifetime: {SHORT_S}s}}\n")
        library = wrong_clock(tmp_path)
        off_s = {"behind": -3 * YEAR_S, "ahead": 3 * YEAR_S}
        clocks = {name: [f"LD_PRELOAD={library}", f"CLOCK_OFF_S={off}"] for name, off in off_s.items()}
        hosts = {name: Host(stack, tmp_path / name, network.b.machine) for name in clocks}
        for name, host in hosts.items():
            variables = clocks[name]
            host.configure("dworker", f"name: {name}\nslots: 1\n")
            host.dctl("join", network.token(), variables=variables)
            host.start("dworker", *variables)
        for name in hosts:
            wait_until(lambda name=name: network.state(name) == "idle", f"{name} to join", LIMIT_S)  # type: ignore[misc]
        for name, variables in clocks.items():
            ask = ["env", *variables, sys.executable, "-c", "import time; print(time.time())"]
            said = float(subprocess.run(ask, capture_output=True, check=True).stdout)
            assert abs(said - time.time() - off_s[name]) < YEAR_S, "its clock is right: nothing is tried here"
        begun = time.monotonic()
        job = network.submit("sh", "-c", "cat | wc -c; date +%Y", data=b"x" * 200_000)
        wait_until(lambda: network.job_state(job) == "done", "a task with large data", LIMIT_S)
        for name, host in hosts.items():
            wait_until(
                lambda host=host: host.log("dworker").count("the certificate is renewed") >= 2,  # type: ignore[misc]
                f"two renewals of {name}",
                LIMIT_S,
            )
            assert "lost the coordinator" not in host.log("dworker")
        print(f"renewed twice within {time.monotonic() - begun:.0f} s of a lifetime of {SHORT_S} s each")
        (attempt,) = network.a.dctl("task", "show", f"{job}.0")["attempts"]
        assert attempt["ended"].startswith(time.strftime("%Y-", time.gmtime())), "times are the coordinator's"
