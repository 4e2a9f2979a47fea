"""Resource limits of the daemon and of the processes that it starts, and the levels of isolation; the only module that touches rlimits."""

import contextlib
from typing import Final

try:
    import resource
except ImportError:  # not a Unix
    resource = None  # type: ignore[assignment]

_inherited_nofile: tuple[int, int] | None = None


ISOLATION: Final = ("none", "rlimit")
"""The levels that every worker can do."""


def isolation() -> tuple[str, ...]:
    """The levels that this worker can do; found out at the first call, which starts processes."""
    from dworker.runners import sandbox

    return ISOLATION if sandbox.find() is None else (*ISOLATION, "sandbox")


def raise_own() -> None:
    """Let this daemon open as many files as it is allowed to; `restore` undoes it for the tasks."""
    global _inherited_nofile
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _inherited_nofile is None:
        _inherited_nofile = (soft, hard)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def restore(pid: int) -> None:
    """Give a child process, and so everything that it starts, the limits that tasks have: the usual files, no core dumps."""
    if resource is None or not hasattr(resource, "prlimit"):
        return
    with contextlib.suppress(OSError, ValueError):
        _, hard = resource.prlimit(pid, resource.RLIMIT_CORE)
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, hard))
        if _inherited_nofile is not None:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, _inherited_nofile)
