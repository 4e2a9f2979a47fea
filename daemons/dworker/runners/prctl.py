"""What a process asks the kernel to do with itself. Part of the spawn server: must import next to nothing."""

import os

PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAPBSET_DROP = 24
CAP_SYS_PTRACE = 19
LANDLOCK_RESTRICT_SELF = 446


def become_reaper() -> None:
    """Orphans below us become our children, not init's (Linux)."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def hide() -> None:
    """Nobody of the same user may read our memory or change it (Linux)."""
    _prctl(PR_SET_DUMPABLE, 0)


def restrict(ruleset: int) -> tuple[int, str] | None:
    """Put this thread and what it starts under a Landlock ruleset; the errno and text if the kernel refuses.

    Root's processes lose a capability besides: Landlock keeps them from tracing anybody but each other and this
    thread, and that one `hide` protects from all but those who have it.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    call = (ctypes.c_long(LANDLOCK_RESTRICT_SELF), ctypes.c_long(ruleset), ctypes.c_long(0))
    # No new privileges (sudo and the like) is the price without CAP_SYS_ADMIN, and only then.
    if libc.syscall(*call) and (libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.syscall(*call)):
        code = ctypes.get_errno()
        return code, f"it cannot be kept from this worker's key: Landlock: {os.strerror(code)}"
    libc.prctl(PR_CAPBSET_DROP, CAP_SYS_PTRACE, 0, 0, 0)
    return None


def _prctl(option: int, value: int) -> None:
    try:
        import ctypes

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        pass
