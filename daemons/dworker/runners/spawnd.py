"""The spawn server: a small process that starts the tasks' processes for the worker, waits for them, and ends with it.

Run as a script, `python -I -S spawnd.py FD`, FD one end of a Unix stream socket. Imports only what it
needs, because its size is the floor of every memory figure (a process inherits the peak of whoever
started it) and because a start must not wait for anything else. One thread: `chdir` is the process's.

Requests and replies are frames: 4 bytes of length (native order), then a `marshal` of a tuple; both
sides are the same interpreter and trust each other. Requests:
    ("spawn", key, folder, program, argv, env)   with three descriptors (0, 1, 2) by SCM_RIGHTS, in order
    ("kill", key, signal)                        to the process group
Replies, several to a frame, each a tuple:
    ("pid", key, pid) ("failed", key, errno, text) ("exited", key, status, cpu_s, memory_bytes)

A process that ends takes its process group with it. This process is the reaper of all that descends
from it, so what left the group or session becomes our child when its parent ends. It is known by what it
was started with (a folder of its own as HOME, TMPDIR or working directory, the task and attempt in its
environment) and killed with its task; what has shaken all of that off is killed when no task runs any
more, and everything is when the socket closes, because then the worker is gone.
"""

# ruff: noqa: SIM105, PTH115, PTH123, PTH208 -- contextlib and pathlib would cost more than the rest of this process
import _signal as signal  # type: ignore[import-not-found]  # the C modules, for the same reason
import _socket
import _struct as struct
import errno
import marshal
import os
import select
import sys
import time

PID_S = 0.005
"""A reply that only names a pid waits so long for company: most tasks of a batch have ended by then."""
RECEIVE_BYTES = 256 * 1024
FDS_MAX = 253  # SCM_MAX_FD
KILL_ALL_S = 60.0
LINGER_S = 5.0
"""A process that was killed takes this long to die at most, and only then are its children ours."""
ENVIRON_BYTES_MAX = 4 * 1024 * 1024
PR_SET_CHILD_SUBREAPER = 36
_LENGTH = struct.Struct("=I")
# What the interpreter ignores and what this process does must not be inherited.
_DEFAULT_SIGNALS = [
    getattr(signal, name) for name in ("SIGPIPE", "SIGXFSZ", "SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


class Server:
    """The state: who runs under which key, what is still to be read and to be said."""

    def __init__(self, fd: int) -> None:
        self.socket = _socket.socket(fileno=fd)
        self.socket.setblocking(False)
        self.buffer = bytearray()
        self.fds: list[int] = []
        self.pids: dict[int, int] = {}  # key -> pid
        self.keys: dict[int, int] = {}  # pid -> key
        self.tokens: dict[int, list[bytes]] = {}  # pid -> what its descendants are known by
        try:
            self.listing: int | None = os.open("/proc/thread-self/children", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self.listing = None
        self.left: dict[bytes, float] = {}  # tokens of those that have ended -> when to forget them
        self.orphans: dict[int, list[bytes]] = {}  # pid of a child that we did not start -> its tokens
        self.killed: dict[int, list[bytes]] = {}  # those of them that are as good as dead
        self.replies: list[tuple[object, ...]] = []
        self.unsent = bytearray()
        self.urgent = False
        self.reply_at: float | None = None
        self.poll = select.poll()
        self.poll.register(fd, select.POLLIN)
        reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.wakeup = reading
        self.poll.register(reading, select.POLLIN)
        signal.set_wakeup_fd(writing)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def run(self) -> None:
        """Serve until the worker is gone."""
        socket_fd = self.socket.fileno()
        while True:
            wait_ms = None if self.reply_at is None else max(0.0, self.reply_at - time.monotonic()) * 1000
            for fd, _ in self.poll.poll(wait_ms):
                if fd == self.wakeup:
                    os.read(fd, 4096)
                elif fd == socket_fd and not self.receive():
                    return
            self.reap()
            self.flush()

    def receive(self) -> bool:
        """Take in requests; False when the worker is gone."""
        space = _socket.CMSG_SPACE(FDS_MAX * 4)
        try:
            data, ancillary, _, _ = self.socket.recvmsg(RECEIVE_BYTES, space, _socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return True
        except OSError:
            return False
        for _, _, raw in ancillary:
            self.fds += struct.unpack(f"={len(raw) // 4}i", raw)
        if not data:
            return False
        buffer = self.buffer
        buffer += data
        start = 0
        while len(buffer) - start >= 4:
            (size,) = _LENGTH.unpack_from(buffer, start)
            if len(buffer) - start - 4 < size:
                break
            request = marshal.loads(memoryview(buffer)[start + 4 : start + 4 + size])
            start += 4 + size
            if request[0] == "spawn":
                self.spawn(*request[1:])
            else:
                self.kill(*request[1:])
        del buffer[:start]
        return True

    def spawn(self, key: int, folder: str, program: str, argv: list[str], env: dict[str, str]) -> None:
        """Start one process; its descriptors are the next three."""
        fds, self.fds = self.fds[:3], self.fds[3:]
        try:
            os.chdir(folder)
            pid = os.posix_spawn(
                program,
                argv,
                env,
                file_actions=[(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate(fds)],
                setpgroup=0,
                setsigmask=(),
                setsigdef=_DEFAULT_SIGNALS,
            )
        except (OSError, ValueError) as error:
            code = getattr(error, "errno", None) or errno.EINVAL
            self.replies.append(("failed", key, code, str(error)))
            self.urgent = True
        else:
            self.pids[key] = pid
            self.keys[pid] = key
            tokens = self.tokens[pid] = own_tokens(folder, env)
            for token in tokens:
                self.left.pop(token, None)
            self.replies.append(("pid", key, pid))
        for fd in fds:
            os.close(fd)

    def kill(self, key: int, number: int) -> None:
        """Signal a task's process group; nothing happens if it has ended."""
        pid = self.pids.get(key)
        if pid is not None:
            try:
                os.killpg(pid, number)
            except OSError:
                pass

    def reap(self) -> None:
        """Collect whatever has ended, and kill what it leaves behind."""
        count = 0
        while True:
            try:
                # WNOWAIT: while the leader is a zombie its group's number cannot belong to anybody else.
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                break
            if ended is None:
                break
            count += 1
            pid = ended.si_pid
            key = self.keys.pop(pid, None)
            if key is not None:
                try:
                    os.killpg(pid, signal.SIGKILL)
                except OSError:
                    pass
            _, status, usage = os.wait4(pid, 0)
            if key is not None:
                self.expect_orphans(self.tokens.pop(pid))
                del self.pids[key]
                memory = usage.ru_maxrss * 1024
                self.replies.append(("exited", key, status, usage.ru_utime + usage.ru_stime, memory))
                self.urgent = True
            else:
                self.orphans.pop(pid, None)
                running = self.tokens.values()
                known_by = self.killed.pop(pid, [])
                self.expect_orphans([token for token in known_by if not any(token in one for one in running)])
        if not self.pids:
            self.left.clear()
            kill_children()
        elif count:
            self.kill_orphans()

    def expect_orphans(self, tokens: list[bytes]) -> None:
        """A process has ended: what is known by these is to be killed, for a while."""
        until = time.monotonic() + LINGER_S
        for token in tokens:
            self.left.pop(token, None)  # to the end: they are in the order of their times
            self.left[token] = until

    def kill_orphans(self) -> None:
        """Kill those of our children that come from processes that have ended."""
        now = time.monotonic()
        while self.left and next(iter(self.left.values())) < now:
            del self.left[next(iter(self.left))]
        for pid in self.known_children():
            if pid in self.keys or pid in self.killed:
                continue
            tokens = self.orphans.get(pid)
            if tokens is None:
                tokens = self.orphans[pid] = tokens_of(pid)
            known_by = [token for token in tokens if token in self.left]
            if known_by:
                self.killed[pid] = known_by
                try:
                    os.kill(pid, signal.SIGKILL)
                except OSError:
                    pass

    def known_children(self) -> list[int]:
        """The pids of our children, if the kernel has a list of them: going through all processes would take too long here."""
        if self.listing is None:
            return []
        os.lseek(self.listing, 0, os.SEEK_SET)
        chunks: list[bytes] = []
        while chunk := os.read(self.listing, 65536):
            chunks.append(chunk)
        return [int(word) for word in b"".join(chunks).split()]

    def flush(self) -> None:
        """Send replies when there are urgent ones, or when the others have waited long enough."""
        if self.replies:
            now = time.monotonic()
            if self.urgent or (self.reply_at is not None and now >= self.reply_at):
                body = marshal.dumps(self.replies)
                self.unsent += _LENGTH.pack(len(body)) + body
                self.replies, self.urgent, self.reply_at = [], False, None
            elif self.reply_at is None:
                self.reply_at = now + PID_S
        while self.unsent:
            try:
                del self.unsent[: self.socket.send(self.unsent)]
            except BlockingIOError:
                # The worker is behind by a whole socket buffer: wait for it alone.
                waiting = select.poll()
                waiting.register(self.socket.fileno(), select.POLLOUT)
                waiting.poll(1000)
            except OSError:
                self.unsent.clear()


def own_tokens(folder: str, env: dict[str, str]) -> list[bytes]:
    """What the descendants of a process will be known by."""
    task, attempt = env.get("DISTRICOMP_TASK"), env.get("DISTRICOMP_ATTEMPT")
    tokens = [os.fsencode(folder)]
    return tokens if task is None or attempt is None else [*tokens, f"{task} {attempt}".encode()]


def tokens_of(pid: int) -> list[bytes]:
    """What a process may be known by."""
    tokens: list[bytes] = []
    try:
        at = os.readlink(b"/proc/%d/cwd" % pid).removesuffix(b" (deleted)")
        while at.count(b"/") > 1:
            tokens.append(at)
            at = at.rpartition(b"/")[0]
        with open(f"/proc/{pid}/environ", "rb") as file:
            entries = [entry.partition(b"=") for entry in file.read(ENVIRON_BYTES_MAX).split(b"\0")]
    except OSError:
        return tokens
    env = {name: value for name, _, value in entries}
    tokens += [env[name] for name in (b"HOME", b"TMPDIR") if name in env]
    return [*tokens, b"%b %b" % (env.get(b"DISTRICOMP_TASK", b""), env.get(b"DISTRICOMP_ATTEMPT", b""))]


def kill_children() -> None:
    """SIGKILL to every child of this process; theirs become ours by that."""
    for pid in children():
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass


def children() -> list[int]:
    """The pids of our children, those that we inherited included."""
    try:
        with open("/proc/thread-self/children") as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        pass
    me = os.getpid()
    found: list[int] = []
    try:
        names = os.listdir("/proc")
    except OSError:
        return []
    for name in names:
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    if int(file.read().rpartition(b")")[2].split()[1]) == me:
                        found.append(int(name))
            except OSError:
                continue
    return found


def kill_all(server: Server) -> None:
    """The worker is gone: kill what descends from us until nothing is left."""
    for pid in server.keys:
        try:
            os.killpg(pid, signal.SIGKILL)
        except OSError:
            pass
    end = time.monotonic() + KILL_ALL_S
    while time.monotonic() < end:
        kill_children()
        try:
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        except ChildProcessError:
            return
        time.sleep(0.005)


def become_reaper() -> None:
    """Orphans below us become our children, not init's (Linux)."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        pass


def main() -> None:
    """Serve on the descriptor that the only argument names."""
    fd = int(sys.argv[1])
    os.set_inheritable(fd, False)
    for number in _DEFAULT_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    become_reaper()
    server = Server(fd)
    try:
        server.run()
    finally:
        kill_all(server)


if __name__ == "__main__":
    main()
