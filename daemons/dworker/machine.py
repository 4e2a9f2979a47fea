"""What this machine is, as the coordinator is told: processor, memory, programs."""

import os
import platform
from typing import Final

from districomp.messages import Machine
from dworker.runners import limits
from dworker.runners.environment import base

PROGRAMS_BYTES_MAX: Final = 40 * 1024
"""The greeting has 64 KiB; a machine with more programs names those that come first."""


def cpus() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """The machine's memory; 0 if the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 0


def programs(path: str) -> list[str]:
    """The names of all programs along a PATH, sorted."""
    names: set[str] = set()
    for folder in path.split(os.pathsep):
        try:
            with os.scandir(folder or ".") as entries:
                names.update(entry.name for entry in entries if os.access(entry.path, os.X_OK))
        except OSError:
            continue
    taken, left = [], PROGRAMS_BYTES_MAX
    for name in sorted(names):
        left -= len(name.encode("utf-8", "surrogateescape")) + 3
        if left < 0:
            break
        if name.isprintable():
            taken.append(name)
    return taken


def describe(labels: list[str]) -> Machine:
    """Everything, for the greeting."""
    return Machine(
        arch=platform.machine(),
        system=platform.system(),
        cpus=cpus(),
        memory_bytes=memory_bytes(),
        isolation=list(limits.ISOLATION),
        programs=programs(base()["PATH"]),
        labels=labels,
    )
