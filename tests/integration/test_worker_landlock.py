"""No process started for a task reads or writes the worker's key, or looks into the worker; everything else is as ever."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from dworker.runners import landlock
from dworker.runners.landlock import Guard, names_of
from dworker.runners.spawn import SpawnServer
from tests.integration.spawnlab import PYTHON, Starter, code, until, with_starter
from tests.integration.workerlab import Lab, children, in_lab, is_alive

SECRET = b"a secret in memory"


def lay_out(folder: Path) -> tuple[Path, Path]:
    """A worker's folder with a key and a working directory; both."""
    state = folder / "state"
    for name in ("identity", "run/1", "bundles/b", "spool"):
        (state / name).mkdir(parents=True)
    (state / "identity/key").write_text("KEY")
    (state / "bundles/b/program").write_text("BUNDLE")
    return state, state / "run/1"


def guarded(state: Path, test: Callable[[Starter], Coroutine[Any, Any, None]]) -> None:
    """Run a test with a spawn server whose processes are kept away from `state`'s keys."""
    assert landlock.abi() > 0, "this kernel has no Landlock"
    hidden = [state / "identity", state / "spool", state.parent / "client"]
    with_starter(lambda on_end: SpawnServer(on_end, Guard(hidden, [state / "bundles"])), test)


async def tried(starter: Starter, script: str, folder: Path, *arguments: object) -> str:
    """What a Python script prints, started as a task is."""
    key = len(starter.ends) + 1
    program = f"import ctypes, os, shutil, sys\n{ATTEMPT}{script}"
    starter.start(key, [*PYTHON, program, *map(str, arguments)], folder=str(folder), program=sys.executable)
    (ending,) = await starter.ended(key)
    text = starter.output(key).decode()
    assert code(ending) == 0, text
    return text.strip()


ATTEMPT = """
def attempt(function, *arguments):
    try:
        result = function(*arguments)
    except OSError as error:
        print(type(error).__name__, end=" ")
    else:
        print("yes", end=" ")
        return result
"""


def test_a_key_is_neither_read_nor_written(tmp_path: Path) -> None:
    state, work = lay_out(tmp_path)
    script = """
key = sys.argv[1]
identity = os.path.dirname(key)
os.symlink(key, 'link')
attempt(open, key)
attempt(open, 'link')
attempt(open, f'/proc/self/cwd/../../identity/key')
attempt(open, key, 'r+')
attempt(open, key, 'w')
attempt(os.truncate, key, 0)
attempt(os.link, key, 'copy')
attempt(os.rename, key, 'moved')
attempt(os.rename, identity, identity + '.old')
attempt(os.rename, os.path.dirname(identity), os.path.dirname(identity) + '.old')
attempt(os.unlink, key)
attempt(shutil.rmtree, identity)
attempt(open, identity + '/new', 'w')
attempt(os.symlink, '/tmp/elsewhere', identity + '/new')
attempt(os.mkdir, identity + '/new')
"""

    async def test(starter: Starter) -> None:
        said = await tried(starter, script, work, state / "identity/key")
        assert set(said.split()) <= {"PermissionError", "OSError"}, said
        assert len(said.split()) == 15

    guarded(state, test)
    assert (state / "identity/key").read_text() == "KEY"
    assert os.listdir(state / "identity") == ["key"]  # noqa: PTH208 -- nothing else


# Since Linux 6.14 CAP_PERFMON, and with it CAP_SYS_ADMIN, is enough to see a process' environment and maps.
WITHOUT_PERFMON = """
import struct
libc = ctypes.CDLL(None, use_errno=True)
header = struct.pack('=Ii', 0x20080522, 0)
caps = ctypes.create_string_buffer(24)
libc.capget(header, caps)
words = list(struct.unpack('=6I', caps.raw))
for bit in (21, 38):
    words[3 * (bit // 32)] &= ~(1 << bit % 32)
    words[3 * (bit // 32) + 1] &= ~(1 << bit % 32)
assert libc.capset(header, struct.pack('=6I', *words)) == 0
"""


@pytest.mark.parametrize("place", ["environ", "mem", "maps", "fd/2", "cwd", "root"])
def test_the_worker_is_not_looked_into(tmp_path: Path, place: str) -> None:
    state, work = lay_out(tmp_path)
    look = "attempt(os.stat if sys.argv[1].endswith(('fd/2', 'cwd', 'root')) else open, sys.argv[1])"

    async def said(starter: Starter) -> str:
        return await tried(starter, WITHOUT_PERFMON + look, work, f"/proc/{os.getpid()}/{place}")

    async def plain(starter: Starter) -> None:
        assert await said(starter) == "yes", "the test itself works"

    async def test(starter: Starter) -> None:
        assert await said(starter) == "PermissionError"

    with_starter(SpawnServer, plain)
    guarded(state, test)


TRACE = """
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long] * 4
PTRACE_ATTACH, PTRACE_DETACH, WALL = 16, 17, 0x40000000
def trace(pid):
    if libc.ptrace(PTRACE_ATTACH, pid, 0, 0):
        raise OSError(ctypes.get_errno(), 'ptrace')
    os.waitpid(pid, WALL)
    libc.ptrace(PTRACE_DETACH, pid, 0, 0)
for pid in map(int, sys.argv[1:]):
    attempt(trace, pid)
"""


def threads_of(pid: int) -> list[str]:
    return [path.name for path in Path(f"/proc/{pid}/task").iterdir()]


def test_the_worker_is_not_traced(tmp_path: Path) -> None:
    state, work = lay_out(tmp_path)

    async def said(starter: Starter) -> list[str]:
        starter.start(100, ["sleep", "1000"])
        assert isinstance(starter.spawner, SpawnServer)
        server = starter.spawner.pid
        await until(lambda: children(server))
        threads = threads_of(server)
        (task,) = children(server)
        return (await tried(starter, TRACE, work, task, os.getpid(), server, *threads)).split()

    async def plain(starter: Starter) -> None:
        assert (await said(starter))[:2] == ["yes", "yes"], "the test itself works"

    async def test(starter: Starter) -> None:
        own, *others = await said(starter)
        assert own == "yes", "a task may trace what is in the same domain"
        assert set(others) == {"PermissionError"}
        assert len(others) >= 4

    with_starter(SpawnServer, plain)
    guarded(state, test)


def test_the_server_cannot_be_looked_into_by_its_own_user(tmp_path: Path) -> None:
    """Its threads share their memory with one that is not restricted. What cannot be dumped is root's in /proc."""
    state, _ = lay_out(tmp_path)

    async def test(starter: Starter) -> None:
        starter.start(1, ["sleep", "1000"])
        assert isinstance(starter.spawner, SpawnServer)
        server = starter.spawner.pid
        await until(lambda: children(server))
        (task,) = children(server)
        await until(lambda: owner(task) == (os.getuid(), os.getgid()))
        assert owner(server) == (0, 0)

    # Root's are root's anyway, so here a group tells.
    before = os.getresgid()
    if os.getuid() == 0:
        os.setresgid(65534, 65534, 0)
    try:
        guarded(state, test)
    finally:
        os.setresgid(*before)


def owner(pid: int) -> tuple[int, int]:
    status = Path(f"/proc/{pid}/environ").stat()
    return status.st_uid, status.st_gid


def test_two_changes_within_a_tick_are_two(tmp_path: Path) -> None:
    """The tick is one that does not end while the test runs, however slowly it does.

    Often, since the folder of all temporary files is on the way, and others may change it at any time.
    """
    state, _ = lay_out(tmp_path)
    guard = Guard([state / "identity"])

    def renewed() -> bool:
        ruleset = guard.renewed()
        if ruleset is not None:
            os.close(ruleset)
        return ruleset is not None

    tick = time.time_ns() + 3600 * 10**9
    os.utime(tmp_path, ns=(tick, tick))
    assert renewed()
    for number in range(50):
        (tmp_path / f"new{number}").mkdir()
        os.utime(tmp_path, ns=(tick, tick))
        assert renewed(), number
    guard.close()


def test_what_is_beside_is_as_ever(tmp_path: Path) -> None:
    """Siblings along the way, and those that are made later, in each of the folders."""
    state, work = lay_out(tmp_path)
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside/file").write_text("old")
    (tmp_path / "file").write_text("old")
    script = """
for path in sys.argv[1:]:
    attempt(open, path, 'r+')
    folder = os.path.dirname(path)
    attempt(os.listdir, folder)
attempt(os.rename, sys.argv[1], 'taken')
attempt(os.rename, 'taken', sys.argv[1])
attempt(os.link, sys.argv[1], 'linked')
attempt(os.mkdir, sys.argv[2] + '.folder')
attempt(open, '/dev/null', 'w')
attempt(open, '/proc/self/environ')
attempt(open, '/dev/shm/' + str(os.getpid()), 'w')
os.unlink('/dev/shm/' + str(os.getpid()))
"""

    async def test(starter: Starter) -> None:
        said = await tried(starter, script, work, tmp_path / "beside/file", tmp_path / "beside/file")
        assert set(said.split()) == {"yes"}, said
        assert await tried(starter, "attempt(open, sys.argv[1], 'r+')", work, tmp_path / "file") == "yes"
        for number in range(20):
            # At once after it: the kernel's clock need not have moved on.
            for folder in (tmp_path, state):
                new = folder / f"new{number}"
                new.mkdir()
                said = await tried(starter, "attempt(open, sys.argv[1], 'w')", work, new / "file")
                assert said == "yes", (number, folder)
        assert await tried(starter, "attempt(open, sys.argv[1])", work, state / "identity/key") == "PermissionError"

    guarded(state, test)


def test_a_bundle_is_read_and_not_changed(tmp_path: Path) -> None:
    state, work = lay_out(tmp_path)
    program = state / "bundles/b/program"

    async def test(starter: Starter) -> None:
        script = "attempt(open, sys.argv[1]); attempt(open, sys.argv[1], 'r+'); attempt(os.unlink, sys.argv[1])"
        assert await tried(starter, script, work, program) == "yes PermissionError PermissionError"

    guarded(state, test)


def test_a_hidden_folder_made_later_is_hidden(tmp_path: Path) -> None:
    state, work = lay_out(tmp_path)
    key = tmp_path / "client/key"

    async def test(starter: Starter) -> None:
        await tried(starter, "", work)
        key.parent.mkdir()
        key.write_text("KEY")
        assert await tried(starter, "attempt(open, sys.argv[1])", work, key) == "PermissionError"

    guarded(state, test)


def test_what_older_rulesets_have_started_lives_on_and_ends_as_ever(tmp_path: Path) -> None:
    """A thread that retires ends after what it has started, and processes of all of them are waited for and killed."""
    state, work = lay_out(tmp_path)
    other = state / "run/2"
    other.mkdir()
    # PR_SET_PDEATHSIG: the thread that has started it ends.
    mortal = "import ctypes, signal, time\nctypes.CDLL(None).prctl(1, signal.SIGKILL)\nprint('up', flush=True)\ntime.sleep(1000)"

    async def test(starter: Starter) -> None:
        starter.start(100, [*PYTHON, mortal], folder=str(work), program=sys.executable)
        assert await asyncio.to_thread(os.read, starter.outputs[100], 100) == b"up\n"
        starter.start(101, ["sh", "-c", "(cd /; setsid sleep 1000 & echo $!); exec sleep 1000"], folder=str(other))
        left = int(await asyncio.to_thread(os.read, starter.outputs[101], 100))
        for number in range(5):
            (tmp_path / f"new{number}").mkdir()
            await tried(starter, "", work)
        assert 100 not in starter.ends
        # What an older task leaves is known by its environment, though only the main thread may look at it.
        starter.spawner.kill(101, signal.SIGTERM)
        await starter.ended(101)
        await until(lambda: not is_alive(left))
        starter.spawner.kill(100, signal.SIGTERM)
        (ending,) = await starter.ended(100)
        assert code(ending) == -signal.SIGTERM
        assert isinstance(starter.spawner, SpawnServer)
        pid = starter.spawner.pid
        await tried(starter, "", work)
        # The main thread, and the one that serves.
        await until(lambda: len(threads_of(pid)) == 2)

    guarded(state, test)


def test_hundreds_while_folders_come_and_go(tmp_path: Path) -> None:
    """Nearly every start is by a thread of its own."""
    state, work = lay_out(tmp_path)

    async def test(starter: Starter) -> None:
        keys = range(300)
        for key in keys:
            (tmp_path / f"new{key % 7}").mkdir()
            starter.start(key, ["sh", "-c", f"sleep 0.0{key % 5}; echo {key}"], folder=str(work))
            (tmp_path / f"new{key % 7}").rmdir()
            if key % 50 == 49:
                await starter.ended(*range(key - 49, key + 1))
        for key in keys:
            assert (code(starter.ends[key]), starter.output(key)) == (0, b"%d\n" % key)
        assert isinstance(starter.spawner, SpawnServer)
        server = starter.spawner.pid
        await until(lambda: len(threads_of(server)) == 2)

    guarded(state, test)


def test_a_new_server_is_guarded_too(tmp_path: Path) -> None:
    state, work = lay_out(tmp_path)
    key = state / "identity/key"

    async def test(starter: Starter) -> None:
        server = starter.spawner
        assert isinstance(server, SpawnServer)
        # Often, since a folder on the way that others change has a new ruleset made anyway.
        for _ in range(10):
            await tried(starter, "", work)
            first = server.pid
            os.kill(first, signal.SIGKILL)
            await until(lambda: server.pid != first)  # noqa: B023 -- it is awaited here
            assert await tried(starter, "attempt(open, sys.argv[1])", work, key) == "PermissionError"

    guarded(state, test)


@pytest.mark.parametrize("isolation", ["none", "rlimit"])
@pytest.mark.parametrize("runner", ["command", "python"])
def test_no_task_of_a_worker_reads_a_key(isolation: str, runner: str, tmp_path: Path) -> None:
    names = ["dworker/identity/key", "dcoord/trust/key", "client/key"]
    paths = [tmp_path / "state" / name for name in names]

    @in_lab
    async def body(lab: Lab) -> None:
        for path in paths:
            path.parent.mkdir(parents=True)
            path.write_text("SECRET")
        worker = await lab.join()
        looked = [*paths, f"/proc/{worker.pid}/mem", f"/proc/{worker.pid}/fd/2"]
        words = f"for path in {[str(path) for path in looked]}:\n  try: print(open(path, 'r+b').read())\n  except OSError as error: print(type(error).__name__, end=' ')\n"
        if runner == "command":
            (row,) = await lab.run([*PYTHON, words], isolation=[isolation])
        else:
            code = "import sys\ndef f(data):\n sys.stdout = sys.stderr\n exec(data)\n raise SystemExit(1)\n"
            bundle = lab.data.add_bundle({"m.py": (0o644, code.encode())})
            (row,) = await lab.run(["m:f"], [words.encode()], isolation=[isolation], runner="python", bundle=bundle)
        text = row.result if runner == "command" else row.stderr
        assert isinstance(text, bytes)
        assert text.decode().split() == ["PermissionError"] * len(looked), row

    body(tmp_path)
    assert [path.read_text() for path in paths] == ["SECRET"] * 3


MOUNTS = """\
22 1 254:0 / / rw - ext4 /dev/root rw
25 22 0:23 / /proc rw - proc proc rw
26 22 254:0 /var/lib /mnt/lib rw - ext4 /dev/root rw
27 22 254:0 /var/lib/w/identity/deep /mnt/two\\040words rw - ext4 /dev/root rw
28 22 0:30 / /home rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("/var/lib/w/identity", ["/var/lib/w/identity", "/mnt/lib/w/identity", "/mnt/two words"]),
        ("/mnt/lib/w/identity", ["/mnt/lib/w/identity", "/var/lib/w/identity", "/mnt/two words"]),
        ("/home/w/identity", ["/home/w/identity"]),
        ("/etc/w", ["/etc/w"]),
        ("/", ["/", "/mnt/lib", "/mnt/two words"]),
    ],
)
def test_other_names_of_a_folder(path: str, names: list[str]) -> None:
    assert names_of(path, MOUNTS) == names
