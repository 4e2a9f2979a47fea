"""Hearing from the kernel that an interface's addresses changed (rtnetlink(7)); on other systems, nothing.

Owns the netlink socket. Does not know what is done about a change: it only calls back.
"""

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Final

# Multicast groups of <linux/rtnetlink.h>.
_LINK: Final = 0x1
_IPV4_ADDRESS: Final = 0x10
_IPV6_ADDRESS: Final = 0x100

SETTLE_S: Final = 0.2
"""Changes come in bursts; this long after the first of one the callback is called."""
DETECTION_S: Final = 2.0
"""An IPv6 address cannot be bound until duplicate address detection is over: look again after this."""

_log = logging.getLogger(__name__)


class AddressWatch:
    """Calls `on_change` soon after addresses changed, and once more when new ones have become usable."""

    def __init__(self, on_change: Callable[[], Awaitable[None]]) -> None:
        self._on_change = on_change
        self._changed = asyncio.Event()
        self._socket: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to listen, in the running loop."""
        self._socket = _open()
        if self._socket is None:
            return
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._readable)
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop; the callback is not called any more."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _readable(self) -> None:
        """What changed does not matter, only that something did; an overflow (ENOBUFS) says so too."""
        assert self._socket is not None
        with contextlib.suppress(OSError):
            self._socket.recv(65536)
        self._changed.set()

    async def _run(self) -> None:
        while True:
            await self._changed.wait()
            for pause_s in (SETTLE_S, DETECTION_S):
                await asyncio.sleep(pause_s)
                self._changed.clear()
                try:
                    await self._on_change()
                except (OSError, RuntimeError) as error:
                    _log.warning("after a change of addresses mDNS could not be set up anew: %s", error)


def _open() -> socket.socket | None:
    """None where there is no netlink, or it is forbidden (a sandboxed unit)."""
    if sys.platform != "linux":
        return None
    try:
        netlink = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
    except OSError as error:
        _log.info("address changes will not be noticed: %s", error)
        return None
    netlink.bind((0, _LINK | _IPV4_ADDRESS | _IPV6_ADDRESS))
    return netlink
