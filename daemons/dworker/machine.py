"""What this machine is, as the coordinator is told: processor, memory, labels.

Which programs it has is looked up when the coordinator asks: thousands of names in every greeting would help nobody.
"""

import os
import platform
import sys
from typing import Final

from districomp.model import Machine
from dworker.runners import limits

_ARCH: Final = {"amd64": "x86_64", "x64": "x86_64", "x86-64": "x86_64", "arm64": "aarch64", "i386": "i686"}


def cpus() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """The machine's memory; 0 if the system does not say."""
    if sys.platform == "win32":
        return 0
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 0


def arch(said: str) -> str:
    """A processor's name as `uname -m` prints it on Linux, whatever this system calls it."""
    name = said.lower()
    return _ARCH.get(name, name)


def describe(labels: list[str]) -> Machine:
    """Everything, for the greeting."""
    return Machine(
        arch=arch(platform.machine()),
        system=platform.system(),
        cpus=cpus(),
        memory_bytes=memory_bytes(),
        isolation=list(limits.isolation()),
        labels=labels,
    )
