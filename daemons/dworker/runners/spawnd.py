"""The spawn server: a small process that starts the tasks' processes for the worker, waits for them, and ends with it.

`main` is all of that process, with one end of a Unix stream socket. Imports only what it needs, because its
size is the floor of every memory figure (a process inherits the peak of whoever started it) and
because a start must not wait for anything else.

Requests and replies are frames: 4 bytes of length (native order), then a `marshal` of a tuple; both
sides are the same interpreter and trust each other. Requests:
    ("spawn", key, folder, program, argv, env, boxed, grouped)  with three descriptors (0, 1, 2) by SCM_RIGHTS, in order
    ("kill", key, signal)                                       to the process group
    ("guard",)                                                  with a descriptor of a Landlock ruleset
Replies, several to a frame, each a tuple:
    ("pid", key, pid) ("failed", key, errno, text) ("exited", key, status, cpu_s, memory_bytes)

A process that ends takes its process group with it. This process is the reaper of all that descends
from it, so what left the group or session becomes our child when its parent ends. It is known by what it
was started with (a folder of its own as HOME, TMPDIR or working directory, the task and attempt in its
environment) and killed with its task; what has shaken all of that off is killed when no task runs any
more, and everything is when the socket closes, because then the worker is gone.

One thread serves at a time (`chdir` is the process's). Landlock restricts a thread and what that starts, and
never takes anything back; so with each ruleset that comes, serving goes over to a new thread under it,
which the main thread starts. The main thread is never restricted, and does what only such a one can: start
what is boxed (bubblewrap could not mount), and look at what former threads have started.

What is boxed is a bubblewrap. A fourth descriptor comes with it, of arguments to itself, and it gets one more to
say which process is the inside and how its command ended. Signals go there. Its end is told when the
inside has ended too: then nothing in it runs any more, and what it has used is known.

What is grouped is put into a control group, of which the last descriptor is the door: see `launch.py`.
"""

# ruff: noqa: SIM105 -- contextlib would cost more than the rest of this process
import _signal as signal  # type: ignore[import-not-found]  # the C modules, for the same reason
import _socket
import _struct as struct
import _thread
import errno
import marshal
import os
import select
import time
from collections.abc import Callable

from dworker.runners.box import Box, is_our_child
from dworker.runners.launch import DEFAULT_SIGNALS, failure, start, start_in_group
from dworker.runners.orphans import LOOK_AGAIN_S, Orphans, kill_children, own_tokens, tokens_of
from dworker.runners.prctl import become_reaper, hide, restrict

PID_S = 0.005
"""A reply that only names a pid waits so long for company: most tasks of a batch have ended by then."""
RECEIVE_BYTES = 256 * 1024
FDS_MAX = 253  # SCM_MAX_FD
KILL_ALL_S = 60.0
_LENGTH = struct.Struct("=I")


class Starter:
    """A restricted thread that serves, or has served. It must not end before what it has started: PR_SET_PDEATHSIG means it."""

    def __init__(self, ruleset: int) -> None:
        self.ruleset = ruleset
        self.refusal: tuple[int, str] | None = None  # why it could not be restricted, and so starts nothing
        self.running = 0
        self.is_retired = False
        self.may_end = _thread.allocate_lock()
        self.may_end.acquire()


class Server:
    """The state: who runs under which key, what is still to be read and to be said."""

    def __init__(self, fd: int) -> None:
        self.socket = _socket.socket(fileno=fd)
        self.socket.setblocking(False)
        self.buffer = bytearray()
        self.fds: list[int] = []
        self.requests: list[tuple[object, ...]] = []
        self.pids: dict[int, int] = {}  # key -> pid
        self.keys: dict[int, int] = {}  # pid -> key
        self.tokens: dict[int, list[bytes]] = {}  # pid -> what its descendants are known by
        self.orphans = Orphans(self.tokens_of)
        self.boxes: dict[int, Box] = {}  # pid of a bubblewrap
        self.doubts: dict[int, int] = {}  # pid -> a descriptor for `failure`
        self.insides: dict[int, tuple[int, int, float, int]] = {}  # pid -> key, status and usage of its bubblewrap
        self.replies: list[tuple[object, ...]] = []
        self.unsent = bytearray()
        self.urgent = False
        self.reply_at: float | None = None
        self.starter: Starter | None = None  # the thread that serves; None: the main thread
        self.starters: dict[int, Starter] = {}  # pid -> the thread that has started it
        self.ruleset = -1  # for the next thread
        self.errand: Callable[[], object] | None = None  # for the main thread; None: it is all over
        self.asked, self.answered = _thread.allocate_lock(), _thread.allocate_lock()
        self.asked.acquire()
        self.answered.acquire()
        self.poll = select.poll()
        self.poll.register(fd, select.POLLIN)
        reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.wakeup = reading
        self.poll.register(reading, select.POLLIN)
        signal.set_wakeup_fd(writing)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    # ---- threads ----

    def run(self) -> None:
        """The main thread: serve until the worker is gone; once other threads do that, their errands."""
        self.serve()
        if self.ruleset < 0:
            return
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        self.start_thread()
        while True:
            self.asked.acquire()
            if self.errand is None:
                return
            self.errand()

    def start_thread(self) -> None:
        """Have a new thread serve, under the new ruleset."""
        self.starter, self.ruleset = Starter(self.ruleset), -1
        _thread.start_new_thread(self.serve_restricted, (self.starter,))

    def serve_restricted(self, starter: Starter) -> None:
        """A thread's life: serve until there is a newer ruleset, then stay until all that it has started has ended."""
        next_errand = None
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
            starter.refusal = restrict(starter.ruleset)
            os.close(starter.ruleset)
            self.serve()
            if self.ruleset >= 0:
                next_errand = self.start_thread
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
            starter.is_retired = True
            self.errand = next_errand
            self.asked.release()
        if starter.running:
            starter.may_end.acquire()

    def in_main_thread(self, errand: Callable[[], object]) -> None:
        """Call it there and wait for its end; it must not raise."""
        if self.starter is None:
            errand()
            return

        def answered() -> None:
            errand()
            self.answered.release()

        self.errand = answered
        self.asked.release()
        self.answered.acquire()

    def tokens_of(self, pid: int) -> tuple[list[bytes], bool]:
        """What a process may be known by, and whether that is all; whoever has started it."""
        found: list[tuple[list[bytes], bool]] = []
        self.in_main_thread(lambda: found.append(tokens_of(pid)))
        return found[0]

    # ---- requests ----

    def serve(self) -> None:
        """Until the worker is gone, or a ruleset is there for the next thread."""
        socket_fd = self.socket.fileno()
        while self.handle():
            wait_ms = None if self.reply_at is None else max(0.0, self.reply_at - time.monotonic()) * 1000
            if self.orphans.doubts:
                wait_ms = min(LOOK_AGAIN_S * 1000, LOOK_AGAIN_S * 1000 if wait_ms is None else wait_ms)
            for fd, _ in self.poll.poll(wait_ms):
                if fd == self.wakeup:
                    os.read(fd, 4096)
                elif fd == socket_fd and not self.receive():
                    return
            if not self.handle():
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
            self.requests.append(marshal.loads(memoryview(buffer)[start + 4 : start + 4 + size]))
            start += 4 + size
        del buffer[:start]
        return True

    def handle(self) -> bool:
        """Do what was asked for; False when that goes on in the next thread."""
        for place, (what, *arguments) in enumerate(self.requests):
            if what == "spawn":
                self.spawn(*arguments)  # type: ignore[arg-type]  # the worker is trusted
            elif what == "kill":
                self.kill(*arguments)  # type: ignore[arg-type]
            else:
                self.ruleset = self.fds.pop(0)
                del self.requests[: place + 1]
                return False
        self.requests.clear()
        return True

    def spawn(  # noqa: PLR0917 -- a request, as it comes
        self, key: int, folder: str, program: str, argv: list[str], env: dict[str, str], boxed: bool, grouped: bool
    ) -> None:
        """Start one process; its descriptors are the next three, one more if it is boxed, and one more if it is grouped."""
        count = 3 + boxed + grouped
        fds, self.fds = self.fds[:count], self.fds[count:]
        group = fds[-1] if grouped else -1
        try:
            if boxed:
                pid = self.start_boxed(folder, program, argv, env, fds, group)
            else:
                pid = self.start(folder, program, argv, env, fds[:3], group)
        except (OSError, ValueError) as error:
            code = getattr(error, "errno", None) or errno.EINVAL
            self.replies.append(("failed", key, code, str(error)))
            self.urgent = True
        else:
            self.pids[key] = pid
            self.keys[pid] = key
            tokens = self.tokens[pid] = own_tokens(folder, env)
            self.orphans.spare(tokens)
            self.replies.append(("pid", key, pid))
        for fd in fds:
            os.close(fd)

    def start(  # noqa: PLR0917 -- as above
        self, folder: str, program: str, argv: list[str], env: dict[str, str], fds: list[int], group: int
    ) -> int:
        """Start a process in this thread, and so under its ruleset; the pid."""
        starter = self.starter
        if starter is not None and starter.refusal is not None:
            raise OSError(*starter.refusal)
        pid = self.launch(folder, program, argv, env, fds, group)
        if starter is not None:
            self.starters[pid] = starter
            starter.running += 1
        return pid

    def start_boxed(  # noqa: PLR0917 -- as above
        self, folder: str, program: str, argv: list[str], env: dict[str, str], fds: list[int], group: int
    ) -> int:
        """Start a bubblewrap in the main thread; the pid."""
        reading, writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(reading, False)
        own = [argv[0], "--json-status-fd", str(writing), "--args", str(fds[3]), *argv[1:]]
        result: list[int | OSError | ValueError] = []

        def errand() -> None:
            try:
                result.append(self.launch(folder, program, own, env, fds[:3], group))
            except (OSError, ValueError) as error:
                result.append(error)

        for fd in (fds[3], writing):
            os.set_inheritable(fd, True)
        self.in_main_thread(errand)
        os.close(writing)
        (pid,) = result
        if not isinstance(pid, int):
            os.close(reading)
            raise pid
        self.boxes[pid] = Box(reading)
        return pid

    def launch(  # noqa: PLR0917 -- as above
        self, folder: str, program: str, argv: list[str], env: dict[str, str], fds: list[int], group: int
    ) -> int:
        """Start a process, in a control group if there is one; the pid."""
        if group < 0:
            return start(folder, program, argv, env, fds)
        pid, self.doubts[pid] = start_in_group(folder, program, argv, env, fds, group)
        return pid

    def kill(self, key: int, number: int) -> None:
        """Signal a task's process group; nothing happens if it has ended."""
        pid = self.pids.get(key)
        if pid is None:
            return
        group, box = pid, self.boxes.get(pid)
        if box is not None and number != signal.SIGKILL:
            box.look()
            group = box.inside or pid
        try:
            os.killpg(group, number)
        except OSError:
            if group != pid:  # nothing has begun in there, and nothing shall
                try:
                    os.killpg(pid, number)
                except OSError:
                    pass

    # ---- ends ----

    def reap(self) -> None:
        """Collect whatever has ended, and kill what it leaves behind."""
        count = 0
        while True:
            try:
                # WNOWAIT: while the leader is a zombie its group's number cannot belong to anybody else.
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                self.orphans.forget()  # nothing at all descends from us: after a task by itself that is the rule
                return
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
            cpu_s, memory = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024
            if key is not None:
                self.ended(pid, key, status, cpu_s, memory)
            elif pid in self.insides:
                key, status, more_s, more = self.insides.pop(pid)
                self.tell(key, status, cpu_s + more_s, max(memory, more))
            else:
                self.orphans.ended(pid, self.tokens.values())
        if not self.pids:
            self.orphans.kill_all()
        elif count or self.orphans.doubts:
            self.orphans.kill(self.keys, self.insides)

    def ended(self, pid: int, key: int, status: int, cpu_s: float, memory: int) -> None:
        """One that we have started is reaped."""
        self.orphans.expect(self.tokens.pop(pid))
        del self.pids[key]
        starter = self.starters.pop(pid, None)
        if starter is not None:
            starter.running -= 1
            if starter.is_retired and not starter.running:
                starter.may_end.release()
        doubt = self.doubts.pop(pid, -1)
        refusal = failure(doubt) if doubt >= 0 else None
        box = self.boxes.pop(pid, None)
        if box is not None:
            status = box.close(status)
            if box.inside and is_our_child(box.inside):
                self.insides[box.inside] = key, status, cpu_s, memory
                os.kill(box.inside, signal.SIGKILL)
                return
        if refusal is not None:
            self.replies.append(("failed", key, *refusal))
            self.urgent = True
            return
        self.tell(key, status, cpu_s, memory)

    def tell(self, key: int, status: int, cpu_s: float, memory: int) -> None:
        """A process and all that belongs to it has ended. Status -1: a bubblewrap that could not start its command."""
        self.replies.append(("failed", key, 0, "") if status == -1 else ("exited", key, status, cpu_s, memory))
        self.urgent = True

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


def main(fd: int) -> None:
    """Serve on a descriptor, until its other end is closed."""
    os.set_inheritable(fd, False)
    for number in DEFAULT_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    become_reaper()
    hide()
    server = Server(fd)
    try:
        server.run()
    finally:
        kill_all(server)
