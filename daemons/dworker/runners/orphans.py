"""Processes that nobody waits for any more: what tasks leave behind. Part of the spawn server: must import next to nothing.

Owns how one knows whose they are. A reaper (see `prctl.py`) gets them as its children when their parent ends.
"""

# ruff: noqa: SIM105, PTH115, PTH123, PTH208 -- contextlib and pathlib would cost more than the rest of that process
import _signal as signal  # type: ignore[import-not-found]  # the C module, for the same reason
import os
import time
from collections.abc import Callable, Collection, Iterable

LINGER_S = 5.0
"""A process that was killed takes this long to die at most, and only then are its children ours."""
LOOK_AGAIN_S = 0.02
"""After a process was found without an environment."""
ENVIRON_BYTES_MAX = 4 * 1024 * 1024
LISTING_BYTES = 4096
KILL_ALL_S = 60.0


class Orphans:
    """Those of a reaper. `look`: `tokens_of`, by a thread that may. To be made in the main thread.

    While there are `doubts`, `kill` is to be called every LOOK_AGAIN_S.
    """

    def __init__(self, look: Callable[[int], tuple[list[bytes], bool]]) -> None:
        self._look = look
        try:
            self._listing: int | None = os.open("/proc/thread-self/children", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._listing = None
        self._left: dict[bytes, float] = {}  # tokens of those that have ended -> when to forget them
        self._tokens: dict[int, list[bytes]] = {}  # pid of a child that we did not start -> its tokens
        self._killed: dict[int, list[bytes]] = {}  # those of them that are as good as dead
        self.doubts: dict[int, float] = {}  # pid of one that seems to have no environment -> when to believe it

    def expect(self, tokens: list[bytes]) -> None:
        """A process has ended: what is known by these is to be killed, for a while."""
        until = time.monotonic() + LINGER_S
        for token in tokens:
            self._left.pop(token, None)  # to the end: they are in the order of their times
            self._left[token] = until

    def spare(self, tokens: list[bytes]) -> None:
        """A process has begun: what is known by these is its own."""
        for token in tokens:
            self._left.pop(token, None)

    def ended(self, pid: int, running: Iterable[list[bytes]]) -> None:
        """A child that we did not start is reaped; `running`: the tokens of all that we have started and still run."""
        self._tokens.pop(pid, None)
        self.doubts.pop(pid, None)
        known_by = self._killed.pop(pid, None)
        if known_by:
            others = list(running)
            self.expect([token for token in known_by if not any(token in one for one in others)])

    def kill(self, ours: Collection[int], also: Collection[int]) -> None:
        """Kill those of our children that come from processes that have ended; none of these two."""
        now = time.monotonic()
        while self._left and next(iter(self._left.values())) < now:
            del self._left[next(iter(self._left))]
        for pid in self._children():
            if pid in ours or pid in also or pid in self._killed:
                continue
            tokens = self._tokens.get(pid)
            if tokens is None:
                tokens, is_all = self._look(pid)
                if is_all or self.doubts.setdefault(pid, now + LINGER_S) < now:
                    self._tokens[pid] = tokens
                    self.doubts.pop(pid, None)
            known_by = [token for token in tokens if token in self._left]
            if known_by:
                self._killed[pid] = known_by
                self.doubts.pop(pid, None)
                try:
                    os.kill(pid, signal.SIGKILL)
                except OSError:
                    pass

    def forget(self) -> None:
        """There is nobody who could have been left behind."""
        self._left.clear()
        self._tokens.clear()
        self._killed.clear()
        self.doubts.clear()

    def kill_all(self) -> None:
        """Nothing that we have started runs: kill every child. Theirs come to us when something may run again."""
        self.doubts.clear()
        kill_children()

    def _children(self) -> list[int]:
        """The pids of the main thread's children, if the kernel has a list of them: going through all processes would take too long.

        Who has lost its parent comes to the main thread, whichever thread the parent was started by.
        """
        if self._listing is None:
            return []
        chunks, at = [b""], 0
        while chunk := os.pread(self._listing, LISTING_BYTES, at):
            chunks.append(chunk)
            at += len(chunk)
        return [int(word) for word in b"".join(chunks).split()]


def own_tokens(folder: str, env: dict[str, str]) -> list[bytes]:
    """What the descendants of a process will be known by."""
    task, attempt = env.get("DISTRICOMP_TASK"), env.get("DISTRICOMP_ATTEMPT")
    tokens = [os.fsencode(folder)]
    return tokens if task is None or attempt is None else [*tokens, f"{task} {attempt}".encode()]


def tokens_of(pid: int) -> tuple[list[bytes], bool]:
    """What a process may be known by; and whether that is all: within `execve` it seems to have no environment."""
    tokens: list[bytes] = []
    try:
        at = os.readlink(b"/proc/%d/cwd" % pid).removesuffix(b" (deleted)")
        while at.count(b"/") > 1:
            tokens.append(at)
            at = at.rpartition(b"/")[0]
        with open(f"/proc/{pid}/environ", "rb") as file:
            text = file.read(ENVIRON_BYTES_MAX)
    except OSError:
        return tokens, True
    entries = [entry.partition(b"=") for entry in text.split(b"\0")]
    env = {name: value for name, _, value in entries}
    tokens += [env[name] for name in (b"HOME", b"TMPDIR") if name in env]
    tokens.append(b"%b %b" % (env.get(b"DISTRICOMP_TASK", b""), env.get(b"DISTRICOMP_ATTEMPT", b"")))
    return tokens, bool(text)


def kill_children() -> None:
    """SIGKILL to every child of this process; theirs become ours by that."""
    for pid in children():
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass


def kill_all(groups: Iterable[int]) -> None:
    """Kill process groups, then what descends from us until nothing is left."""
    for pid in groups:
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


def children() -> list[int]:
    """The pids of our children, whichever thread started them, those that we inherited included."""
    mine: list[int] = []
    try:
        for thread in os.listdir("/proc/self/task"):
            try:
                with open(f"/proc/self/task/{thread}/children") as file:
                    mine += map(int, file.read().split())
            except ProcessLookupError:
                continue  # the thread has just ended; what it had started is the main thread's
        return mine
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
