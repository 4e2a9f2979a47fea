"""Keeping a process that knows a key to itself."""

import contextlib
import ctypes
import sys
from typing import Final

PR_SET_DUMPABLE: Final = 4


def hide_memory() -> None:
    """Let no other process of this user read this one's memory (ptrace, /proc/PID/mem, a core dump); Linux only.

    Programs that it starts begin anew, as everybody can read them.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
