"""A bubblewrap as the spawn server sees it: a process that runs a command in another one. Must import next to nothing."""

import os


class Box:
    """A bubblewrap. `inside`: the first process in it, 0 until it is known.

    That one leads the command's process group, minds no signal but SIGKILL, and whatever is in there ends with it.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd  # the reading end of its --json-status-fd
        self._said = b""
        self.inside = 0

    def look(self) -> None:
        """Read what it has said."""
        try:
            while chunk := os.read(self._fd, 4096):
                self._said += chunk
        except BlockingIOError:
            pass
        self.inside = self._number(b'"child-pid":') or 0

    def close(self, status: int) -> int:
        """It has ended: how its command has, as a status of `os.wait4`; -1 if it could not start that."""
        self.look()
        os.close(self._fd)
        code = self._number(b'"exit-code":')
        if code is None:
            return -1 if os.WIFEXITED(status) else status
        # What a shell says of a command that a signal has ended, bubblewrap does too.
        return code - 128 if 128 < code <= 192 else code << 8

    def _number(self, name: bytes) -> int | None:
        words = self._said.partition(name)[2].split(None, 1)
        return int(words[0].strip(b",}")) if words else None


def is_our_child(pid: int) -> bool:
    """Whether we can still wait for a process."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
