"""`dworker` on another kind of machine, as far as this one can be made to look like it: `other_machine.py KIND ARGUMENT...`.

Takes away, before anything of ours is imported, what that system lacks: modules, functions, constants, /proc, kinds of
sockets, what the event loop can watch, and on Android system calls. Where ours then asks for what Windows has instead
(`msvcrt`, `_winapi`, Ctrl+Break), there are stand-ins of the same behaviour. What the tasks are is this machine's own.
What this cannot show is in docs/platforms.md.
"""

# ruff: noqa: PTH100, PTH112 -- the functions that are changed here are those of os

import asyncio
import ctypes
import fcntl
import os
import platform
import runpy
import select
import selectors
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

MISSING: Final = ("uvloop", "sdnotify", "apsw", "httptools", "bottle", "cloudpickle", "prometheus_client")
"""Not to be had, or not needed, elsewhere: the worker must not want them."""
HIDDEN: Final = ("/proc", "/sys", "/dev/shm", "/run")
NOT_HERE: Final = NotImplementedError
"""What Python says of what a system has not."""
KEPT: Final = (platform, ssl, tempfile)
"""Imported before the system changes: on the real one they come with its own branches."""


def without(module: Any, *names: str) -> None:
    for name in names:
        if hasattr(module, name):
            delattr(module, name)


def without_modules(*names: str) -> None:
    for name in names:
        sys.modules[name] = None  # type: ignore[assignment]


def hide_files() -> None:
    """There is no /proc: whoever opens or lists something in there is told so."""

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], str | bytes):
            path = os.fsdecode(arguments[0])
            if path.startswith(HIDDEN):
                raise FileNotFoundError(2, "No such file or directory", path)

    sys.addaudithook(look)


def without_linux() -> None:
    without(os, "memfd_create", "pidfd_open", "eventfd", "sched_getaffinity", "pipe2", "splice", "getxattr", "setxattr", "O_PATH",
            "waitid", "posix_fadvise", "sched_setaffinity", "unshare", "setns")  # fmt: skip
    os.process_cpu_count = os.cpu_count  # type: ignore[attr-defined, unused-ignore]  # of Python 3.13
    without(socket, "SO_PEERCRED", "AF_NETLINK", "AF_VSOCK", "TCP_KEEPIDLE", "MSG_CMSG_CLOEXEC")
    without(select, "epoll")
    selectors.DefaultSelector = selectors.PollSelector  # type: ignore[misc, assignment]
    without_modules(*MISSING)
    hide_files()


# ---- macOS ----


def darwin() -> None:
    """A Mac: a Unix with fcntl and pwd; without /proc, epoll, waitid and what Linux adds."""
    without_linux()
    sys.platform = "darwin"
    os.uname = lambda: os.uname_result(("Darwin", "mac", "24.0.0", "Darwin Kernel", "arm64"))
    platform.uname.cache_clear() if hasattr(platform.uname, "cache_clear") else None
    resource = __import__("resource")
    without(resource, "prlimit")


# ---- Android ----

_TRAPPED: Final = (444, 445, 446, 438, 434)
"""landlock_*, pidfd_getfd, pidfd_open."""


def android() -> None:
    """Termux on a phone: Linux without what bionic 24 has not, and a filter that ends whoever makes a call it does not know."""
    without(os, "memfd_create", "posix_spawn", "posix_spawnp", "pidfd_open", "waitid")
    sys.getandroidapilevel = lambda: 24  # type: ignore[attr-defined]
    without_modules(*MISSING, "pwd", "grp")
    filter_calls()


def android_as_of_python_3_13() -> None:
    """The same, where Python says so: until then it took Android for Linux."""
    android()
    sys.platform = "android"


def filter_calls() -> None:
    """As Android's own (SECCOMP_RET_TRAP)."""
    load, equal, answer = 0x20, 0x15, 0x06
    lines = [(load, 0, 0, 0)]
    for i, number in enumerate(_TRAPPED):
        lines.append((equal, len(_TRAPPED) - i, 0, number))
    lines += [(answer, 0, 0, 0x7FFF0000), (answer, 0, 0, 0x00030000)]
    code = b"".join(struct.pack("=HBBI", *line) for line in lines)
    buffer = ctypes.create_string_buffer(code)
    program = struct.pack("@HP", len(lines), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, set_filter = 38, 22
    if libc.prctl(no_new_privileges, 1, 0, 0, 0) or libc.prctl(set_filter, 2, program, 0, 0):
        raise OSError(ctypes.get_errno(), "no filter of system calls")


# ---- Windows ----


class Proactor(asyncio.SelectorEventLoop):
    """Does what Windows' loop does, and nothing that it does not."""

    def __init__(self) -> None:
        super().__init__()
        signal.set_wakeup_fd(self._csock.fileno())  # type: ignore[attr-defined]

    def _not_here(self, *_: Any, **__: Any) -> Any:
        raise NOT_HERE

    def remove_writer(self, fd: Any) -> Any:
        """What this loop is made of calls it for its own sockets."""
        if sys._getframe(1).f_globals["__name__"] != "asyncio.selector_events":
            raise NOT_HERE
        return self._remove_writer(fd)  # type: ignore[attr-defined]


for _name in ("add_reader", "remove_reader", "add_writer", "add_signal_handler", "remove_signal_handler", "create_unix_connection",
              "create_unix_server", "connect_read_pipe", "connect_write_pipe"):  # fmt: skip
    setattr(Proactor, _name, Proactor._not_here)


class Policy(asyncio.DefaultEventLoopPolicy):
    _loop_factory = Proactor


def windows() -> None:
    """Windows: no signals, groups, users, links, folders to open, Unix sockets; open files cannot be moved or removed."""
    stand_ins()
    without_linux()
    without_modules("fcntl", "termios", "resource", "pwd", "grp", "pty", "tty", "syslog", "readline", "curses")
    windows_files()
    windows_processes()
    windows_sockets()
    without(
        signal,
        "SIGKILL",
        "SIGHUP",
        "SIGUSR2",
        "SIGQUIT",
        "SIGCHLD",
        "SIGPIPE",
        "pthread_kill",
        "sigwait",
        "pthread_sigmask",
    )
    signal.SIGBREAK = signal.SIGUSR1  # type: ignore[attr-defined]
    signal.CTRL_BREAK_EVENT = signal.SIGTERM  # type: ignore[attr-defined]
    asyncio.set_event_loop_policy(Policy())
    sys.executable = shutil.which("python.exe") or ""
    sys.platform = "win32"


def stand_ins() -> None:
    """`msvcrt` and `_winapi`: a handle is a descriptor here."""

    def locking(file: int, mode: int, count: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if mode == 2 else 0))

    def peek(handle: int, size: int) -> tuple[int, int]:
        count = bytearray(4)
        fcntl.ioctl(handle, termios.FIONREAD, count)
        available = int.from_bytes(count, sys.byteorder)
        poll = poll_class()
        poll.register(handle, select.POLLIN)
        if not available and any(what & select.POLLHUP for _, what in poll.poll(0)):
            raise BrokenPipeError(109, "The pipe has been ended")
        return available, 0

    poll_class = select.poll
    msvcrt, winapi = ModuleType("msvcrt"), ModuleType("_winapi")
    pipe = os.pipe
    for name, value in {"locking": locking, "LK_LOCK": 1, "LK_NBLCK": 2, "get_osfhandle": int}.items():
        setattr(msvcrt, name, value)
    msvcrt.open_osfhandle = lambda handle, _: handle  # type: ignore[attr-defined]
    winapi.CreatePipe = lambda _, size: pipe()  # type: ignore[attr-defined]
    winapi.PeekNamedPipe = peek  # type: ignore[attr-defined]
    sys.modules |= {"msvcrt": msvcrt, "_winapi": winapi}


def windows_files() -> None:
    is_open, real_open, remove = open_files(), os.open, os.unlink

    def opening(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if dir_fd is not None:
            raise NOT_HERE
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", path)
        return real_open(path, flags, mode)

    def guarded(function: Callable[..., None]) -> Callable[..., None]:
        def call(path: Any, *rest: Any, **options: Any) -> None:
            if is_open(path) or (rest and is_open(rest[0])):
                raise PermissionError(13, "The process cannot access the file", path)
            function(path, *rest, **options)

        return call

    def no_link(*_: Any, **__: Any) -> None:
        raise OSError(1314, "A required privilege is not held by the client")

    def temporary(**options: Any) -> Any:
        # As one that its last descriptor removes.
        fd, name = tempfile.mkstemp()
        remove(name)
        return os.fdopen(fd, "w+b", **options)

    os.open, os.symlink = opening, no_link
    tempfile.TemporaryFile = temporary  # type: ignore[assignment]
    for name in ("unlink", "remove", "rename", "replace"):
        setattr(os, name, guarded(getattr(os, name)))
    os.supports_dir_fd.clear()
    os.supports_fd.clear()
    os.supports_follow_symlinks.discard(os.chmod)
    shutil._use_fd_functions = shutil._USE_CP_SENDFILE = False  # type: ignore[attr-defined]
    without(os, "O_CLOEXEC", "O_NONBLOCK", "O_DIRECTORY", "O_NOFOLLOW", "O_NOCTTY", "fchmod", "fchown", "chown", "lchown", "pread",
            "pwrite", "mkfifo", "mknod", "set_blocking", "get_blocking", "uname", "sysconf", "statvfs", "getloadavg")  # fmt: skip


def open_files() -> Callable[[Any], bool]:
    """Whether this process has a file open, as Windows would know it."""
    folder, readlink = "/proc/self/fd", os.readlink

    def is_open(path: Any) -> bool:
        wanted = os.path.abspath(os.fsdecode(path))
        for number in range(3, 256):
            try:
                if readlink(f"{folder}/{number}") == wanted and not os.path.isdir(wanted):
                    return True
            except OSError:
                continue
        return False

    return is_open


def windows_processes() -> None:
    without(os, "fork", "forkpty", "killpg", "getpgid", "getpgrp", "setpgid", "setpgrp", "setsid", "getsid", "wait", "wait3", "wait4",
            "posix_spawn", "posix_spawnp", "getuid", "geteuid", "getgid", "getegid", "getgroups", "setuid", "setgid", "nice",
            "register_at_fork", "getpriority", "initgroups", "tcgetpgrp", "getresuid")  # fmt: skip
    os.waitstatus_to_exitcode = lambda status: status >> 8
    subprocess.CREATE_NEW_PROCESS_GROUP = 0x200  # type: ignore[attr-defined]
    make, kill = subprocess.Popen.__init__, os.kill

    def start(self: Any, *arguments: Any, creationflags: int = 0, **options: Any) -> None:
        assert "process_group" not in options and "start_new_session" not in options and "pass_fds" not in options
        make(self, *arguments, **options)

    def end(self: Any) -> None:
        if self.poll() is None:
            kill(self.pid, 9)

    subprocess.Popen.__init__ = start  # type: ignore[method-assign]
    subprocess.Popen.kill = subprocess.Popen.terminate = end  # type: ignore[method-assign]


def windows_sockets() -> None:
    without(socket, "AF_UNIX", "send_fds", "recv_fds", "CMSG_SPACE", "CMSG_LEN", "fromfd")

    def pair() -> tuple[socket.socket, socket.socket]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            one = socket.create_connection(server.getsockname())
            other, _ = server.accept()
            return one, other

    socket.socketpair = pair  # type: ignore[assignment]
    without(select, "poll")


def main() -> None:
    """Become the other machine, then the worker."""
    kind = sys.argv.pop(1)
    setattr(subprocess, "_USE_POSIX_SPAWN", False)  # noqa: B010 -- final, says its type
    {"darwin": darwin, "android": android, "android-3.13": android_as_of_python_3_13, "windows": windows}[kind]()
    runpy.run_module("dworker", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
