"""Control groups: what is written where, in a folder that looks like the kernel's, and how a process gets into one.

The kernel's own limits: tests/system/test_cgroup.py.
"""

import asyncio
import os
import re
import signal
import subprocess
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from districomp.taskdef import Limits
from dworker.cache import Cache
from dworker.grants import Grants
from dworker.runners.cgroups import Group, NoGroupsError, Tree, Usage, locate
from dworker.runners.host import Host, make_guard
from dworker.runners.spawn import Ending, Exit, NotStarted, Request, SpawnServer
from tests.patience import PATIENCE_S

from .spawnlab import Starter, code, until, with_starter
from .workerlab import Lab, in_lab

MIB = 1 << 20


def door(path: Path) -> int:
    """An ordinary file in the place of a group's `cgroup.procs`: one sees what is written there."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A group that was delegated, with a process in it."""
    folder = tmp_path / "system.slice" / "dworker.service"
    folder.mkdir(parents=True)
    (folder / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    (folder / "cgroup.procs").write_text("")
    (folder / "cgroup.subtree_control").write_text("")
    return folder


def settled(base: Path) -> Tree:
    tree = Tree(base)
    tree.settle(base)
    return tree


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


# ---- which group is ours ----

MOUNTS = "25 20 0:23 / {point} rw,nosuid - cgroup2 cgroup2 rw\n31 20 0:24 / / rw - ext4 /dev/sda rw\n"


def lay_out(tmp_path: Path, *marked: str) -> tuple[Path, str]:
    """A mounted hierarchy in which these groups are marked; where, and what mountinfo says."""
    point = tmp_path / "a mount"
    for name in ("", "system.slice", "system.slice/dworker.service", "system.slice/dworker.service/main"):
        (point / name).mkdir(parents=True, exist_ok=True)
        (point / name / "cgroup.procs").write_text("")
    for name in marked:
        os.setxattr(point / name, "user.delegate", b"1")
    return point, MOUNTS.format(point=str(point).replace(" ", r"\040"))


def test_the_group_that_was_delegated_is_found(tmp_path: Path) -> None:
    point, mounts = lay_out(tmp_path, "system.slice/dworker.service")
    base = point / "system.slice/dworker.service"
    assert locate("1:cpu:/x\n0::/system.slice/dworker.service\n", mounts) == (base, base)
    # systemd 254 and newer can put the daemon one below by themselves: DelegateSubgroup=
    assert locate("0::/system.slice/dworker.service/main\n", mounts) == (base / "main", base)


def test_of_a_mount_that_shows_a_part_the_part_counts(tmp_path: Path) -> None:
    point, mounts = lay_out(tmp_path, "system.slice/dworker.service")
    mounts = mounts.replace("0:23 /", "0:23 /machine")
    name = "system.slice/dworker.service"
    assert locate(f"0::/machine/{name}\n", mounts)[0] == point / name
    with pytest.raises(NoGroupsError, match="outside"):
        locate(f"0::/{name}\n", mounts)


def test_what_was_given_to_nobody_is_left_alone(tmp_path: Path) -> None:
    """Everything is writable for root, and in a person's session all groups belong to that person."""
    _, mounts = lay_out(tmp_path)
    with pytest.raises(NoGroupsError, match=r"dworker\.service is not delegated .*Delegate=yes"):
        locate("0::/system.slice/dworker.service\n", mounts)


@pytest.mark.parametrize(
    ("cgroups", "mounts"), [("1:memory:/x\n", MOUNTS), ("0::/x\n", "31 20 0:24 / / rw - ext4 a rw\n")]
)
def test_without_version_2_it_says_so(cgroups: str, mounts: str) -> None:
    with pytest.raises(NoGroupsError, match="no control groups of version 2"):
        locate(cgroups, mounts)


# ---- taking it over ----


def test_the_daemon_goes_into_a_group_of_its_own_and_hands_controllers_on(base: Path) -> None:
    settled(base)
    assert (base / "daemon" / "cgroup.procs").read_text() == "0"
    assert (base / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    assert (base / "tasks" / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"


def test_a_daemon_that_was_put_below_stays_there(base: Path) -> None:
    Tree(base).settle(base / "main")
    assert not (base / "daemon").exists()


def test_without_the_controllers_it_is_no_use(base: Path) -> None:
    (base / "cgroup.controllers").write_text("cpu pids\n")
    with pytest.raises(NoGroupsError, match="has no controller memory"):
        settled(base)
    (base / "cgroup.controllers").write_text("\n")
    with pytest.raises(NoGroupsError, match="memory and no pids"):
        settled(base)


def test_other_processes_in_it_are_named(base: Path) -> None:
    (base / "cgroup.procs").write_text("17\n23\n")
    (base / "cgroup.subtree_control").unlink()
    (base / "cgroup.subtree_control").mkdir()  # which refuses like the kernel
    with pytest.raises(NoGroupsError, match="other processes in it: 17 23"):
        settled(base)


def test_two_workers_never_share_one(base: Path) -> None:
    """The second would end the tasks of the first, as those of a worker that was killed."""
    first = settled(base)
    group = first.make(Limits())
    with pytest.raises(NoGroupsError, match="another worker"):
        settled(base)
    assert not (group.folder / "cgroup.kill").exists()


def test_what_a_killed_worker_left_is_ended_and_its_numbers_are_not_used_again(base: Path) -> None:
    left = base / "tasks" / "1"
    left.mkdir(parents=True)
    tree = settled(base)
    assert (left / "cgroup.kill").read_text() == "1"
    assert tree.make(Limits()).folder.name == "2", "something still dies in the first"
    (left / "cgroup.kill").unlink()  # a folder with a file in it cannot be removed, nor a group with a process
    (left / "inner").mkdir()
    assert tree.make(Limits()).folder.name == "3"
    assert not left.exists(), "removed as soon as that can be"


# ---- a group ----


def test_limits_are_written_as_the_kernel_reads_them(base: Path) -> None:
    tree = settled(base)
    assert texts(tree.make(Limits()).folder) == {"memory.oom.group": "1"}
    limits = Limits(memory_bytes=100 * MIB, processes=7, cpus=3)
    assert texts(tree.make(limits).folder) == {
        "memory.max": str(100 * MIB), "memory.swap.max": "0", "memory.oom.group": "1", "pids.max": "7", "cpu.weight": "300",
    }  # fmt: skip
    assert (tree.make(Limits(processes=7), 2).folder / "pids.max").read_text() == "9"
    assert (tree.make(Limits(cpus=4096)).folder / "cpu.weight").read_text() == "10000"


def test_what_a_group_tells(tmp_path: Path) -> None:
    group = Group(tmp_path)
    assert group.usage() == Usage("", None, None)
    assert group.is_empty()
    (tmp_path / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    assert not group.is_empty()
    (tmp_path / "memory.events").write_text("low 0\nhigh 0\nmax 12\noom 0\noom_kill 0\noom_group_kill 0\n")
    (tmp_path / "pids.events").write_text("max 0\n")
    (tmp_path / "cpu.stat").write_text("usage_usec 1500000\nuser_usec 1000000\n")
    (tmp_path / "memory.peak").write_text("10485760\n")
    assert group.usage() == Usage("", 1.5, 10 * MIB)
    (tmp_path / "pids.events").write_text("max 3\n")
    assert group.usage().over == "processes"
    (tmp_path / "memory.events").write_text("max 12\noom 1\noom_kill 2\n")
    assert group.usage().over == "memory"


def test_killing_is_the_kernels_work_and_ours_on_old_ones(tmp_path: Path) -> None:
    group = Group(tmp_path)
    (tmp_path / "inner").mkdir()
    with subprocess.Popen(["sleep", "100"]) as one, subprocess.Popen(["sleep", "100"]) as other:
        (tmp_path / "cgroup.procs").write_text(f"{one.pid}\n0\n")  # 0: somebody whom we cannot see
        (tmp_path / "inner" / "cgroup.procs").write_text(f"{other.pid}\n")
        group.kill()
        assert (tmp_path / "cgroup.kill").read_text() == "1"
        (tmp_path / "cgroup.kill").unlink()
        (tmp_path / "cgroup.kill").mkdir()  # before Linux 5.14 there is no such file
        assert one.poll() is None
        group.kill()
        assert one.wait() == other.wait() == -signal.SIGKILL
    assert (tmp_path / "pids.max").read_text() == "0", "it starts nothing meanwhile"


# ---- getting in ----


def in_group(argv: list[str], path: Path, folder: str = "/", program: str = "") -> Request:
    env = {"PATH": os.environ["PATH"], "HOME": folder, "TMPDIR": folder, "KEY": "7"}
    return Request(folder, program or f"/bin/{argv[0]}", argv, env, (door(path),), group=Group(path.parent))


def test_a_process_is_in_its_group_before_it_is_the_program(tmp_path: Path) -> None:
    async def body(starter: Starter) -> None:
        starter.start_as(1, in_group(["cat", str(tmp_path / "door")], tmp_path / "door"))
        (ended,) = await starter.ended(1)
        assert isinstance(ended, Exit)
        assert (code(ended), starter.output(1)) == (0, b"0")

    with_starter(SpawnServer, body)


LOOK = """\
env | sort
pwd
cat
ps -o pgid= -p $$ | tr -d ' ' | grep -qx $$ && echo leads
ls /proc/self/fd
grep Sig[BI] /proc/self/status
"""


def without_the_librarys_signals(text: bytes) -> bytes:
    """posix_spawn, ours or that of whoever started us, lets two signals be ignored that the C library keeps for itself: 32 and 33."""

    def masked(match: "re.Match[bytes]") -> bytes:
        return b"SigIgn:\t%016x" % (int(match[1], 16) & ~(0b11 << 31))

    return re.sub(rb"SigIgn:\t([0-9a-f]+)", masked, text)


def test_it_finds_all_that_a_process_without_a_group_finds(tmp_path: Path) -> None:
    """Environment, folder, descriptors, process group, signals."""

    async def body(starter: Starter) -> None:
        request = in_group(["sh", "-c", LOOK, "a'b"], tmp_path / "door", str(tmp_path))
        starter.start_as(1, request, b"data\n", errors=True)
        plain = request._replace(fds=(), group=None)
        await starter.ended(1)
        starter.start_as(2, plain, b"data\n", errors=True)
        await starter.ended(2)
        said = without_the_librarys_signals(starter.output(1))
        assert said == without_the_librarys_signals(starter.output(2))
        assert b"leads" in said
        assert b"data" in said

    with_starter(SpawnServer, body)


@pytest.mark.parametrize(
    ("program", "number"), [("/nowhere/at/all", "No such file"), ("/etc/passwd", "Permission denied")]
)
def test_what_cannot_be_started_is_told_with_its_cause(tmp_path: Path, program: str, number: str) -> None:
    async def body(starter: Starter) -> None:
        starter.start_as(1, in_group(["x"], tmp_path / "door", program=program))
        (ended,) = await starter.ended(1)
        assert isinstance(ended, NotStarted)
        assert number in os.strerror(ended.errno)

    with_starter(SpawnServer, body)


def test_a_group_that_is_gone_is_a_process_that_is_not_started(tmp_path: Path) -> None:
    async def body(starter: Starter) -> None:
        request = in_group(["true"], tmp_path / "door")
        os.close(request.fds[0])
        # Like the door of a group that was removed, this refuses what is written there.
        starter.start_as(1, request._replace(fds=(os.open("/dev/full", os.O_WRONLY),)))
        (ended,) = await starter.ended(1)
        assert isinstance(ended, NotStarted)

    with_starter(SpawnServer, body)


def test_a_signal_that_comes_at_once_is_not_lost(tmp_path: Path) -> None:
    async def body(starter: Starter) -> None:
        for key in range(30):
            starter.start_as(key, in_group(["sleep", "100"], tmp_path / "door"))
            starter.spawner.kill(key, signal.SIGTERM)
        for ended in await starter.ended(*range(30)):
            assert code(ended) == -signal.SIGTERM

    with_starter(SpawnServer, body)


# ---- its end ----


def with_host(tmp_path: Path, tree: Tree, test: Callable[[Host], Coroutine[Any, Any, None]]) -> None:
    async def body() -> None:
        cache = Cache(tmp_path / "state", Grants(lambda _: False))
        host = Host(tmp_path / "state", 1, cache, lambda _: None)
        host.groups = tree
        try:
            await test(host)
        finally:
            await host.close()
            cache.close()

    asyncio.run(body())


def start(host: Host, tree: Tree, argv: list[str]) -> tuple[Group, "asyncio.Future[Ending]"]:
    """Start a process in a group that is said to have another one in it; the group, and the end."""
    group = tree.make(Limits())
    (group.folder / "cgroup.events").write_text("populated 1\n")
    ended: asyncio.Future[Ending] = host.loop.create_future()
    fds = *(os.open(os.devnull, os.O_RDWR) for _ in range(3)), door(group.folder / "cgroup.procs")
    request = Request("/", f"/bin/{argv[0]}", argv, {"PATH": os.environ["PATH"]}, fds, group=group)
    host.start(request, ended.set_result)
    return group, ended


def test_its_end_is_told_when_nothing_of_it_is_left(base: Path, tmp_path: Path) -> None:
    """And with what all of it has used, and why it ended."""
    tree = settled(base)

    async def body(host: Host) -> None:
        group, ended = start(host, tree, ["false"])
        await until((group.folder / "cgroup.kill").exists)
        assert not ended.done()
        (group.folder / "cpu.stat").write_text("usage_usec 2500000\n")
        (group.folder / "memory.peak").write_text("4096\n")
        (group.folder / "pids.events").write_text("max 1\n")
        (group.folder / "cgroup.events").write_text("populated 0\n")
        assert await asyncio.wait_for(ended, PATIENCE_S) == Exit(0x100, 2.5, 4096, "processes")

    with_host(tmp_path, tree, body)


def test_who_was_refused_a_process_and_did_well_has_done_well(base: Path, tmp_path: Path) -> None:
    tree = settled(base)

    async def body(host: Host) -> None:
        group, ended = start(host, tree, ["true"])
        (group.folder / "pids.events").write_text("max 1\n")
        (group.folder / "cgroup.events").write_text("populated 0\n")
        ending = await asyncio.wait_for(ended, PATIENCE_S)
        assert isinstance(ending, Exit)
        assert (ending.status, ending.over) == (0, "")

    with_host(tmp_path, tree, body)


def test_a_kill_takes_the_whole_group(base: Path, tmp_path: Path) -> None:
    tree = settled(base)

    async def body(host: Host) -> None:
        group, ended = start(host, tree, ["sleep", "100"])
        host.kill(1, signal.SIGTERM)
        assert not (group.folder / "cgroup.kill").exists()
        host.kill(1, signal.SIGKILL)
        assert (group.folder / "cgroup.kill").read_text() == "1"
        (group.folder / "cgroup.events").write_text("populated 0\n")
        await asyncio.wait_for(ended, PATIENCE_S)

    with_host(tmp_path, tree, body)


# ---- what tasks may do there ----


def test_a_task_reads_its_limits_and_does_not_change_them(base: Path, tmp_path: Path) -> None:
    """Of whatever level: it runs as the user to whom all of this belongs."""
    tree = settled(base)
    group = tree.make(Limits(memory_bytes=100 * MIB))
    (tmp_path / "state" / "dworker").mkdir(parents=True)
    script = f"cd {group.folder}; cat memory.max; echo max > memory.max; echo 1 > {base}/daemon/cgroup.procs; mkdir inner; rmdir ."

    async def body(starter: Starter) -> None:
        starter.start_as(
            1, Request("/", "/bin/sh", ["sh", "-c", script], {"PATH": os.environ["PATH"]}, ()), errors=True
        )
        await starter.ended(1)
        said = starter.output(1)
        assert said.startswith(b"104857600")
        assert said.count(b"ermission denied") == 3
        assert (group.folder / "memory.max").read_text() == str(100 * MIB)
        assert (base / "daemon" / "cgroup.procs").read_text() == "0"

    with_starter(lambda on_end: SpawnServer(on_end, make_guard(tmp_path / "state" / "dworker", tree)), body)


def test_a_worker_without_groups_says_why_it_does_not_start_a_task(tmp_path: Path) -> None:
    @in_lab
    async def body(lab: Lab) -> None:
        worker = await lab.join()
        assert "cgroup" not in lab.hellos[0].machine.isolation, "this test is not for a worker of its own unit"
        (row,) = await lab.run(["true"], isolation=["cgroup"])
        assert row.reason == "not_started"
        assert b"isolation 'cgroup'; this worker has none, rlimit" in row.stderr
        assert b"It has no cgroup: " in row.stderr
        assert "no isolation level cgroup: " in worker.log_text()

    body(tmp_path)
