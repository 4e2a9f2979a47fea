"""Starting one process, as the spawn server does it. Must import next to nothing.

Usually by `posix_spawn`, which copies nothing of this process. Who is to be in a control group has to be in it before
it can start anything itself, and that only a copy of this process can do, between fork and exec: it costs
about a millisecond. Whether that one became the program is known when it has ended.
"""

# ruff: noqa: SIM105 -- contextlib would cost more than the rest of that process
import _signal as signal  # type: ignore[import-not-found]  # the C module, for the same reason
import errno
import marshal
import os

# What the interpreter ignores and what the spawn server does must not be inherited.
DEFAULT_SIGNALS = [
    getattr(signal, name) for name in ("SIGPIPE", "SIGXFSZ", "SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
_FAILURE_BYTES = 4096  # a pipe takes so much at once


def start(folder: str, program: str, argv: list[str], env: dict[str, str], fds: list[int]) -> int:
    """Start a process with these descriptors as 0, 1 and 2; the pid."""
    os.chdir(folder)
    return os.posix_spawn(
        program,
        argv,
        env,
        file_actions=[(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate(fds)],
        setpgroup=0,
        setsigmask=(),
        setsigdef=DEFAULT_SIGNALS,
    )


def start_in_group(  # noqa: PLR0917 -- as above, and the group
    folder: str, program: str, argv: list[str], env: dict[str, str], fds: list[int], group: int
) -> tuple[int, int]:
    """The same in a control group, `group` being its `cgroup.procs`; the pid, and a descriptor for `failure`."""
    os.chdir(folder)
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    # A signal that comes meanwhile waits until the new process treats it as programs do; and none of ours gets there.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _become(program, argv, env, fds, group, writing)
    except OSError:
        os.close(reading)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(writing)
    try:
        os.setpgid(pid, pid)  # the child does it too: whoever is first
    except OSError:
        pass
    return pid, reading


def _become(  # noqa: PLR0917 -- as above
    program: str, argv: list[str], env: dict[str, str], fds: list[int], group: int, failed: int
) -> None:
    """In the copy: be that process. Never returns."""
    try:
        os.setpgid(0, 0)
        for target, fd in enumerate(fds):
            os.dup2(fd, target)
        for number in DEFAULT_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        os.write(group, b"0")
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execve(program, argv, env)
    except BaseException as error:  # noqa: BLE001 -- there is nobody above us
        code = getattr(error, "errno", None) or errno.EINVAL
        os.write(failed, marshal.dumps((code, str(error)[: _FAILURE_BYTES // 8])))
    finally:
        os._exit(127)


def failure(reading: int) -> tuple[int, str] | None:
    """Why a process that has ended never became the program: errno and text; closes the descriptor."""
    try:
        said = os.read(reading, _FAILURE_BYTES)
    except BlockingIOError:
        return None  # what it has left behind holds the other end
    finally:
        os.close(reading)
    return marshal.loads(said) if said else None
