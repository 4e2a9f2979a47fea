"""What a daemon tells systemd: ready, stopping, alive, and one line of status (sd_notify(3)).

Owns the notification socket. Without NOTIFY_SOCKET every function does nothing, so that a daemon
calls them wherever it runs. Does not decide when any of it is true.
"""

import asyncio
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sdnotify import SystemdNotifier

_notifier: "SystemdNotifier | None" = None


def ready(status: str = "") -> None:
    """The daemon serves; `status` is what `systemctl status` shows."""
    _notify("READY=1", *_status_lines(status))


def stopping(status: str = "") -> None:
    """The daemon ends in good order."""
    _notify("STOPPING=1", *_status_lines(status))


def status(text: str) -> None:
    """What `systemctl status` shows from now on, one line."""
    _notify(*_status_lines(text))


def watchdog() -> None:
    """The daemon is alive; to be called every `watchdog_interval_s()`."""
    _notify("WATCHDOG=1")


def watchdog_interval_s() -> float | None:
    """How often to call `watchdog()`: half of what systemd waits. None: systemd does not wait for this process."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if not is_supervised() or not microseconds.isdecimal() or int(microseconds) == 0:
        return None
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(microseconds) / 2e6


async def keep_alive() -> None:
    """Call `watchdog()` as often as systemd waits for it, from this event loop; ends at once where it does not wait."""
    interval_s = watchdog_interval_s()
    while interval_s is not None:
        watchdog()
        await asyncio.sleep(interval_s)


def is_supervised() -> bool:
    """Whether systemd started this process and waits to be told."""
    return bool(os.environ.get("NOTIFY_SOCKET"))


def _status_lines(text: str) -> list[str]:
    line = " ".join(text.split())
    return [f"STATUS={line}"] if line else []


def _notify(*lines: str) -> None:
    global _notifier
    if not lines or not is_supervised():
        return
    if _notifier is None:
        from sdnotify import SystemdNotifier  # where there is no systemd it need not be installed

        _notifier = SystemdNotifier()
    _notifier.notify("\n".join(lines))
