"""The isolation level `sandbox`, by real bubblewraps: what a task finds in one, and that it runs and ends as elsewhere."""

import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from districomp.model import Blob
from districomp.taskdef import Limits
from dworker.runners.sandbox import Sandbox
from dworker.runners.spawn import Request, SpawnServer
from tests.integration.spawnlab import Starter, with_starter
from tests.integration.workerlab import Lab, children, command_line, in_lab, is_alive

pytestmark = pytest.mark.system

Body = Callable[[Lab], Coroutine[Any, Any, None]]
KEY = "state/dworker/identity/key"


def say(script: str) -> list[str]:
    return ["sh", "-c", script]


def lay_out_keys(lab: Lab) -> None:
    """What no task may read: the worker's key, others' keys, the configuration, a socket's place."""
    for name in (KEY, "state/dcoord/trust/key", "state/client/key", "config/token", "run/secret"):
        path = lab.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("SECRET")


async def said(lab: Lab, script: str, isolation: str = "sandbox", **definition: Any) -> str:
    """What a shell script prints, on both its outputs, as a task."""
    (row,) = await lab.run(say(f"exec 2>&1; {script}\ntrue"), isolation=[isolation], network=False, **definition)
    assert row.reason == "done", row
    assert isinstance(row.result, bytes)
    return row.result.decode()


def test_a_task_reads_no_key_and_does_not_see_the_daemon(tmp_path: Path) -> None:
    """Below this level: test_worker_landlock.py."""

    @in_lab
    async def body(lab: Lab) -> None:
        lay_out_keys(lab)
        worker = await lab.join()
        assert lab.hellos[0].machine.isolation == ["none", "rlimit", "sandbox"]
        for name in (KEY, "state/dcoord/trust/key", "state/client/key", "config/token", "run/secret"):
            text = await said(lab, f"cat {lab.folder / name}; echo x >> {lab.folder / name}")
            assert text.count("No such file") == 1
            assert (lab.folder / name).read_text() == "SECRET"
        text = await said(lab, f"ls /proc/{worker.pid} /proc/{worker.spawn_server()}")
        assert text.count("No such file") == 2

    body(tmp_path)


def test_what_is_there_and_what_is_not(tmp_path: Path) -> None:
    @in_lab
    async def body(lab: Lab) -> None:
        lay_out_keys(lab)
        await lab.join()
        text = await said(
            lab, "ls /tmp /run; find / -xdev -name key -o -name token -o -name secret 2>/dev/null | grep -v ^/usr"
        )
        top = lab.folder.parts[2]
        assert text.split() == ["/run:", "/tmp:", top], "of /tmp it sees the way to its own folder"
        text = await said(lab, f"ls {lab.folder} {lab.folder}/state/dworker; ls -d /home /sys /root /srv")
        assert f"{lab.folder}:\nstate\n" in text
        assert "dworker:\nrun\n" in text
        assert text.count("No such file") == 4
        text = await said(lab, "touch /x /usr/x /etc/x /tmp/yes /run/yes mine /dev/shm/yes; ls /tmp mine /run")
        assert text.count("Read-only file system") == 3
        assert "yes" in text
        assert "mine" in text
        text = await said(lab, "ls /tmp mine")
        assert "yes" not in text
        assert "'mine'" in text, "the next task finds none of it"
        text = await said(
            lab, "cd /proc; echo [0-9]*; ls -l /proc/self/fd | wc -l; cat /proc/self/status | grep CapEff; id -u"
        )
        lines = text.splitlines()
        assert len(lines[0].split()) <= 4
        # 0, 1, 2, and the one of ls; a line of ls itself.
        assert lines[1:] == ["5", "CapEff:\t0000000000000000", str(os.getuid())]

    body(tmp_path)


def test_what_is_for_root_alone_is_not_for_its_tasks(tmp_path: Path) -> None:
    @in_lab
    async def body(lab: Lab) -> None:
        await lab.join()
        text = await said(lab, "cat /etc/shadow /etc/passwd; ls /etc/ssl/private")
        assert "root:*" not in text
        assert "root:x:" in text
        # What is there already, so that nothing happens if it can be written.
        name = "/proc/sys/kernel/core_pattern"
        text = await said(lab, f'pattern=$(cat {name}); echo "$pattern" > {name}')
        assert "Read-only file system" in text

    body(tmp_path)


def test_the_network_is_there_if_it_is_said(tmp_path: Path) -> None:
    @in_lab
    async def body(lab: Lab) -> None:
        await lab.join()
        # A python function finds the worker's interpreter; a command only the system's.
        bundle = lab.data.add_bundle(
            {
                "m.py": (
                    0o644,
                    f"import socket\ndef f(data):\n    socket.create_connection(('127.0.0.1', {lab.port})).close()\n    return 'connected'\n".encode(),
                )
            }
        )
        options: dict[str, Any] = {"runner": "python", "bundle": bundle, "isolation": ["sandbox"]}
        (row,) = await lab.run(["m:f"], network=True, **options)
        assert row.result == b"connected", row
        (row,) = await lab.run(["m:f"], network=False, **options)
        assert (row.reason, b"ConnectionRefused" in row.stderr) == ("exit", True)
        text = await said(lab, "cat /proc/net/dev")
        assert [line.split(":")[0].strip() for line in text.splitlines()[2:]] == ["lo"]

    body(tmp_path)


def test_each_runner_and_its_bundle(tmp_path: Path) -> None:
    @in_lab
    async def body(lab: Lab) -> None:
        await lab.join()
        files = {
            "upper.sh": (0o755, b"#!/bin/sh\ncat data/add; cat | tr a-z A-Z; chmod u+w upper.sh; echo x > mine\n"),
            "data/add": (0o644, b"before "),
            "lines.sh": (0o755, b'#!/bin/sh\nwhile read -r line; do echo "$line $(cat data/add)"; done\n'),
            "mod.py": (
                0o644,
                b"import os\nimport msgspec\ndef f(data, n):\n    return data * n + os.getcwd().encode()\n",
            ),
        }
        bundle = lab.data.add_bundle(files)
        options: dict[str, Any] = {"bundle": bundle, "isolation": ["rlimit", "sandbox"], "network": False}
        large = lab.data.add_blob(b"x" * 100_000)
        job = lab.define(["./upper.sh"], **options)
        lab.data.files[f"/tasks/{job}.1"] = b"x" * 100_000
        small, big = await lab.ended(lab.assign(job, [b"abc", large]))
        assert small.result == b"before ABC"
        assert b"Read-only file system" in small.stderr
        assert isinstance(big.result, Blob)
        assert big.result.size == 100_007
        rows = await lab.run(["./lines.sh"], [b"1", b"2", b"3"], runner="stream", **options)
        assert [row.result for row in rows] == [b"1 before ", b"2 before ", b"3 before "]
        rows = await lab.run(["mod:f"], [b"ab", b"c"], runner="python", values={"n": 2}, **options)
        assert [str(row.result)[:6] for row in rows] == ["b'abab", "b'cc/t"]

    body(tmp_path)


def test_it_ends_as_elsewhere(tmp_path: Path) -> None:
    @in_lab
    async def body(lab: Lab) -> None:
        worker = await lab.join()
        # From here on the spawn server serves in a thread in which no bubblewrap could mount anything.
        await lab.run(["true"])
        options: dict[str, Any] = {"isolation": ["sandbox"], "network": False}

        async def ended(script: str, **rest: Any) -> tuple[str, int | None, int | None]:
            (row,) = await lab.run(say(script), **options, **rest)
            return row.reason, row.exit_code, row.signal

        assert await ended("exit 7") == ("exit", 7, None)
        assert await ended("kill -SEGV $$") == ("signal", None, signal.SIGSEGV)
        assert await ended("exit 128") == ("exit", 128, None)
        assert await ended("kill -TERM $$") == ("signal", None, signal.SIGTERM)
        # Time enough on any machine for the sandbox and the trap to be there.
        assert await ended("trap 'exit 3' TERM; sleep 1000 & wait", limits=Limits(5.0)) == ("timeout", 3, None)
        assert await ended("sleep 1000", limits=Limits(0.3)) == ("timeout", None, signal.SIGTERM)
        assert await ended("setsid sleep 1000 >/dev/null 2>&1 & sleep 0.1") == ("done", 0, None)
        server = worker.spawn_server()
        await lab.until(lambda: not children(server))
        (row,) = await lab.run(
            say("echo out; echo err >&2; i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done"), **options
        )
        assert (row.result, row.stderr) == (b"out\n", b"err\n")
        assert row.cpu_s is not None
        assert row.cpu_s > 0.1
        (row,) = await lab.run(["no-such-program"], **options)
        assert (row.reason, b"not installed" in row.stderr) == ("not_started", True)
        (row,) = await lab.run([str(tmp_path / "elsewhere")], **options)
        assert (row.reason, b"does not exist in the sandbox" in row.stderr) == ("not_started", True)
        (row,) = await lab.run(["/etc/passwd"], **options)
        assert (row.reason, b"not executable" in row.stderr) == ("not_started", True)
        (row,) = await lab.run(["/etc/passwd"], [b"x"], runner="stream", **options)
        assert (row.reason, b"not executable" in row.stderr) == ("not_started", True)

    body(tmp_path)


def test_the_worker_s_end_is_the_end_of_all_within(tmp_path: Path) -> None:
    @in_lab
    async def body(lab: Lab) -> None:
        worker = await lab.join()
        job = lab.define(say("sleep 987654"), isolation=["sandbox"], network=False)
        (lease,) = lab.assign(job, 1)
        await lab.started(lease)

        def sleepers() -> list[int]:
            names = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
            return [pid for pid in names if command_line(pid).startswith("sleep 987654") and is_alive(pid)]

        await lab.until(sleepers)
        worker.process.kill()
        await lab.until(lambda: not sleepers())

    body(tmp_path)


def test_folders_of_the_daemons_are_hidden_wherever_they_lie(tmp_path: Path) -> None:
    """Here below a folder that is shown."""
    for name in ("etc/districomp/token", "etc/other", "lib/state/run/1/own"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("SECRET" if name != "etc/other" else "fine")
    work = tmp_path / "lib/state/run/1"
    hidden = [tmp_path / "etc/districomp", tmp_path / "lib/state", tmp_path / "none"]
    system = ["/usr", "/bin", "/lib", "/lib64", str(tmp_path / "etc"), str(tmp_path / "lib")]
    sandbox = Sandbox("/usr/bin/bwrap", hidden, system)

    async def test(starter: Starter) -> None:
        script = f"cat {tmp_path}/etc/other; ls {tmp_path}/etc/districomp {tmp_path}/lib/state {tmp_path}/lib/state/run; cat own"
        request = Request(str(work), "/bin/sh", ["sh", "-c", script], {"PATH": "/usr/bin"}, ())
        starter.start_as(1, sandbox.box(request, network=False, bundle=None), errors=True)
        await starter.ended(1)
        text = starter.output(1).decode()
        assert text.startswith("fine")
        assert "token" not in text
        assert text.endswith("run:\n1\nSECRET")

    with_starter(SpawnServer, test)


def test_a_machine_that_cannot_is_not_offered(tmp_path: Path) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create a new namespace' >&2\nexit 1\n")
    fake.chmod(0o755)
    assert "No permissions" in Sandbox(str(fake), []).problem()
    assert Sandbox("/nowhere/bwrap", []).problem()

    @in_lab
    async def body(lab: Lab) -> None:
        await lab.join(path=f"{tmp_path}:{os.environ['PATH']}")
        assert lab.hellos[0].machine.isolation == ["none", "rlimit"]
        assert "No permissions" in lab.logs()
        (row,) = await lab.run(["true"], isolation=["sandbox"])
        assert (row.reason, b"isolation 'sandbox'" in row.stderr) == ("not_started", True)

    (tmp_path / "lab").mkdir()
    body(tmp_path / "lab")
