"""The levels of isolation, and the resource limits of the daemon and of the processes that it starts.

The only module that touches rlimits; `cgroups.py`, a part of it by its purpose, is the only one that touches control groups.
"""

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
    return (*ISOLATION, *(level for level, why in _others().items() if not why))


def lacking() -> dict[str, str]:
    """The levels that this worker cannot do: level -> why, as the end of a sentence."""
    return {level: why for level, why in _others().items() if why}


def _others() -> dict[str, str]:
    """Level -> why not, '' if it can."""
    from dworker.runners import cgroups, sandbox

    return {"cgroup": cgroups.why_not(), "sandbox": sandbox.why_not()}


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
