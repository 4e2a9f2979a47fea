"""The spawn server: a small process that starts the tasks' processes for the worker, waits for them, and ends with it.

`main` is all of that process, with one end of a Unix stream socket. Imports only what it needs, because its
size is the floor of every memory figure (a process inherits the peak of whoever started it) and
because a start must not wait for anything else.

Requests and replies are frames: 4 bytes of length (native order), then a `marshal` of a tuple; both
sides are the same interpreter and trust each other. Requests:
    ("spawn", key, slot, folder, program, argv, env, captured, boxed, grouped)  with descriptors by SCM_RIGHTS, in order
    ("kill", key, signal)                                                       to the process group
    ("guard",)                                                                  with a descriptor of a Landlock ruleset
Replies, several to a frame, each a tuple:
    ("pid", key, pid) ("lasts", key, pid, since, out, err) ("returned", key)
    ("failed", key, errno, text, err) ("exited", key, status, cpu_s, memory_bytes, [since, ended, out, err])

The descriptors are the process' 0, 1 and 2, unless it is captured: then that is the content of its standard input, or True and
the one descriptor of it. What it writes is read here and comes with its end. If it lasts, the worker gets the
reading ends of its pipes (two descriptors with "lasts"), and what was read of them before.

In a slot (-1: none) one process runs at a time, and a few requests may wait for the one before: so the next starts
without asking the worker. If that one lasts, they are returned: not started, and somebody else may have them.

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
from dworker.runners.capture import Capture
from dworker.runners.launch import DEFAULT_SIGNALS, failure, start, start_in_group
from dworker.runners.lines import Lines
from dworker.runners.orphans import LOOK_AGAIN_S, Orphans, kill_all, own_tokens, tokens_of
from dworker.runners.prctl import become_reaper, hide, restrict
from dworker.runners.replies import LENGTH, Replies

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LASTS_S = 0.005
"""Who runs this long has its pipes read by the worker: until then they take 64 KiB by themselves."""
CAPTURES_MAX = 100
"""So many at most are held here at once: the worker may have more files open."""
RECEIVE_BYTES = 64 * 1024
FDS_MAX = 253  # SCM_MAX_FD


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
        self.captures: dict[int, Capture] = {}  # by key, in the order of their starts
        self.lines = Lines()  # of arguments of `begin`
        self.replies = Replies(self.socket)
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
            for fd, _ in self.poll.poll(self.wait_ms()):
                if fd == self.wakeup:
                    os.read(fd, 4096)
                elif fd == socket_fd and not self.receive():
                    return
            if not self.handle():
                return
            self.reap()
            self.hand_over()
            self.replies.flush()

    def wait_ms(self) -> float | None:
        """How long nothing is to be done unless something happens."""
        at = self.replies.due
        if self.captures:
            lasts = next(iter(self.captures.values())).since + LASTS_S
            at = lasts if at is None else min(at, lasts)
        wait_s = None if at is None else max(0.0, at - time.monotonic())
        if self.orphans.doubts:
            wait_s = LOOK_AGAIN_S if wait_s is None else min(LOOK_AGAIN_S, wait_s)
        return None if wait_s is None else wait_s * 1000

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
            (size,) = LENGTH.unpack_from(buffer, start)
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

    def spawn(self, key: int, slot: int, *process: "Any") -> None:
        """Start one process, or have it wait for the one in its slot."""
        captured, boxed, grouped = process[-3:]
        count = (3 if captured is None else captured is True) + boxed + grouped
        fds, self.fds = self.fds[:count], self.fds[count:]
        request = (key, slot, *process, fds)
        running = self.lines.running(slot)
        if running is None:
            self.begin(*request)
        elif running in self.captures:
            self.lines.add(slot, request)
        else:
            self.give_back(request)

    def begin(  # noqa: PLR0917 -- a request, as it comes
        self,
        key: int,
        slot: int,
        folder: str,
        program: str,
        argv: list[str],
        env: dict[str, str],
        captured: bytes | bool | None,
        boxed: bool,
        grouped: bool,
        fds: list[int],
    ) -> None:
        """Start one process; its descriptors are the first three, one more if it is boxed, and one more if it is grouped."""
        capture = None
        try:
            if captured is not None:
                capture = Capture(time.monotonic())
                fds[:0] = capture.open(captured if isinstance(captured, bytes) else None, fds)
            group = fds[-1] if grouped else -1
            if boxed:
                pid = self.start_boxed(folder, program, argv, env, fds, group)
            else:
                pid = self.start(folder, program, argv, env, fds[:3], group)
        except (OSError, ValueError) as error:
            if capture is not None:
                capture.close()
            self.replies.soon("failed", key, getattr(error, "errno", None) or errno.EINVAL, str(error), b"")
            self.lines.failed(slot)
        else:
            self.pids[key] = pid
            self.keys[pid] = key
            self.lines.begun(key, slot)
            tokens = self.tokens[pid] = own_tokens(folder, env)
            self.orphans.spare(tokens)
            if capture is not None:
                self.captures[key] = capture
                if len(self.captures) > CAPTURES_MAX:  # many may have been asked for at once
                    self.hand_over()
            else:
                self.replies.later("pid", key, pid)
        for fd in fds:
            os.close(fd)

    def give_back(self, request: "tuple[Any, ...]") -> None:
        """One that has not begun, and shall not here."""
        for fd in request[-1]:
            os.close(fd)
        self.replies.soon("returned", request[0])

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
            waiting = self.lines.withdraw(key)
            if waiting is not None:
                self.give_back(waiting)
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
        """Collect whatever has ended, kill what it leaves behind, and start what waited for it."""
        self.collect()
        while (request := self.lines.following()) is not None:
            self.begin(*request)

    def collect(self) -> None:
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
            self.tell(key, -1, cpu_s, memory, refusal)
            return
        self.tell(key, status, cpu_s, memory)

    def tell(self, key: int, status: int, cpu_s: float, memory: int, refusal: tuple[int, str] = (0, "")) -> None:
        """A process and all that belongs to it has ended. Status -1: it has not become its program; `refusal` or its sandbox says why."""
        reply = self.replies.soon if self.lines.ended(key) else self.replies.later
        said: tuple[float, float, bytes, bytes] | tuple[()] = ()
        capture = self.captures.get(key)
        if capture is not None:
            out, err, more = capture.read()
            if more:
                self.pass_on(key, 0, out, err)
            else:
                said = capture.since, time.monotonic(), out, err
                del self.captures[key]
                capture.close()
        if status == -1:
            reply("failed", key, *refusal, said[3] if said else b"")
        else:
            reply("exited", key, status, cpu_s, memory, *said)

    # ---- what lasts ----

    def hand_over(self) -> None:
        """Have the worker read what those write that run for a while, and take back what waits for them."""
        while self.captures:
            key, capture = next(iter(self.captures.items()))
            if time.monotonic() < capture.since + LASTS_S and len(self.captures) <= CAPTURES_MAX:
                return
            self.pass_on(key, self.pids.get(key, 0), b"", b"")
            for request in self.lines.waiting_for(key):
                self.give_back(request)

    def pass_on(self, key: int, pid: int, out: bytes, err: bytes) -> None:
        """Give the worker our ends of a process' pipes, and what was read of them already."""
        capture = self.captures.pop(key)
        self.replies.with_descriptors((capture.out, capture.err), "lasts", key, pid, capture.since, out, err)
        capture.close()


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
        kill_all(server.keys)
