"""What the spawn server says to the worker, several replies to a frame. Must import next to nothing."""

import _socket
import _struct as struct
import marshal
import select
import time

LATER_S = 0.01
"""A reply that can wait does so for company: what it says is of no use to anybody while more of its slot waits here, and each
time that the worker wakes up costs as much as several tasks."""
LENGTH = struct.Struct("=I")


class Replies:
    """What is to be said on a socket that does not block. `due`: when, None if it may wait for ever."""

    def __init__(self, socket: _socket.socket) -> None:
        self._socket = socket
        self._replies: list[tuple[object, ...]] = []
        self._is_urgent = False
        self.due: float | None = None

    def later(self, *reply: object) -> None:
        """A reply that can wait for company."""
        self._replies.append(reply)

    def soon(self, *reply: object) -> None:
        """A reply that must not wait."""
        self._replies.append(reply)
        self._is_urgent = True

    def flush(self) -> None:
        """Send them when there are urgent ones, or when the others have waited long enough."""
        if self._replies:
            now = time.monotonic()
            if self._is_urgent or (self.due is not None and now >= self.due):
                self._send(self._replies, [])
                self._replies, self._is_urgent, self.due = [], False, None
            elif self.due is None:
                self.due = now + LATER_S

    def with_descriptors(self, fds: tuple[int, ...], *reply: object) -> None:
        """Send one that descriptors belong to, after all others."""
        self._is_urgent = True
        self.flush()
        self._send([reply], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack(f"={len(fds)}i", *fds))])

    def _send(self, replies: list[tuple[object, ...]], ancillary: list[tuple[int, int, bytes]]) -> None:
        """Send a frame; a worker that is behind by a whole socket buffer is waited for."""
        body = marshal.dumps(replies)
        frame = LENGTH.pack(len(body)) + body
        while frame:
            try:
                sent = self._socket.sendmsg([frame], ancillary)
            except BlockingIOError:
                waiting = select.poll()
                waiting.register(self._socket.fileno(), select.POLLOUT)
                waiting.poll(1000)
            except OSError:
                return  # the worker is gone: who reads from it hears of that
            else:
                frame, ancillary = frame[sent:], []
