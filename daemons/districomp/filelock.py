"""Locking a file against the system's other processes, in whichever way the system has; the lock ends with the descriptor."""

import sys

if sys.platform == "win32":
    import msvcrt
else:
    try:
        import fcntl
    except ImportError:  # neither Unix nor Windows
        fcntl = None  # type: ignore[assignment]


def lock(file: int, *, wait: bool) -> None:
    """Lock an open file for us alone. OSError if another process has it: at once, or with `wait` after 10 s on Windows.

    Where there are no locks nothing is done.
    """
    if sys.platform == "win32":
        msvcrt.locking(file, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
    elif fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
