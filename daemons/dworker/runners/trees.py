"""A process and what it has started, where there is no spawn server: how to start, signal, and await the end of both.

On Unix they are a process group, which ends with its first process; who leaves it (`setsid`) is not found. On Windows
they are what `taskkill` finds by their parents' numbers while the first one lives; what is left after that runs on.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from typing import Any, Final

KILL: Final = getattr(signal, "SIGKILL", 9)
"""The signal that nobody can refuse; on Windows, where there are none, what stands for it here."""
START: dict[str, Any] = {"process_group": 0}
"""What `subprocess.Popen` is to be told."""
if sys.platform == "win32":
    START = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
TASKKILL_S: Final = 20.0


def send(process: "subprocess.Popen[bytes]", number: int) -> None:
    """Signal it and what it has started; nothing happens if it has ended.

    On Windows anything but KILL is Ctrl+Break, which reaches those that share our console, if we have one.
    """
    if sys.platform != "win32":
        with contextlib.suppress(OSError):
            os.killpg(process.pid, number)
    elif number != KILL:
        with contextlib.suppress(OSError):
            process.send_signal(signal.CTRL_BREAK_EVENT)
    else:
        threading.Thread(target=kill, args=(process,), daemon=True).start()


def kill(process: "subprocess.Popen[bytes]") -> None:
    """`send` KILL; blocks, for a tenth of a second on Windows."""
    if sys.platform != "win32":
        send(process, KILL)
        return
    # By its path: Windows would look for it in the current folder first.
    program = os.path.join(os.environ.get("SYSTEMROOT", r"C:\Windows"), "System32", "taskkill.exe")  # noqa: PTH118 -- text
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        command = [program, "/T", "/F", "/PID", str(process.pid)]
        subprocess.run(command, check=False, capture_output=True, stdin=subprocess.DEVNULL, timeout=TASKKILL_S)
    with contextlib.suppress(OSError):
        process.kill()


def wait(process: "subprocess.Popen[bytes]") -> tuple[int, float | None, int | None]:
    """Wait for its end, and end what it leaves behind: status as of `os.wait4`, processor seconds, peak memory in bytes."""
    if sys.platform == "win32":
        # Windows' exit codes have 32 bits, and Python takes them for unsigned.
        return (process.wait() & 0xFFFFFFFF) << 8, None, None
    if hasattr(os, "waitid"):
        # Before it is reaped: until then its group's number can be nobody else's.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        send(process, KILL)
    _, status, usage = os.wait4(process.pid, 0)
    if not hasattr(os, "waitid"):
        send(process, KILL)
    process.returncode = os.waitstatus_to_exitcode(status)  # it must not wait for somebody else's pid
    unit = 1 if sys.platform == "darwin" else 1024
    return status, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit
