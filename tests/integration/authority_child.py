"""A process of its own for test_authority: kills copies of itself before each call into the system, one after the other.

`python authority_child.py first|rotate BASE`: copy n works in BASE/n and is killed (-9) before its n-th call. Prints how
many were killed; the one after them has finished.
"""

import os
import shutil
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from dcoord.authority import Authority

CALLS_MAX = 400


def killed_at(number: int) -> None:
    """From now on, be killed before the number-th call of a function of the system."""
    left = number

    def count(_frame: FrameType, event: str, called: Any) -> None:
        nonlocal left
        if event == "c_call" and getattr(called, "__module__", None) in ("posix", "fcntl"):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)


def work(what: str, folder: Path) -> None:
    authority = Authority.open(folder, "lab")
    if what == "rotate":
        authority.rotate(3600)


def main(what: str, base: Path) -> None:
    """Until a copy lives to the end."""
    if what == "rotate":
        Authority.open(base / "before" / "trust", "lab")
    for number in range(1, CALLS_MAX):
        if what == "rotate":
            shutil.copytree(base / "before", base / str(number))
        copy = os.fork()
        if copy == 0:
            killed_at(number)
            work(what, base / str(number) / "trust")
            os._exit(0)
        _, status = os.waitpid(copy, 0)
        if os.WIFEXITED(status):
            print(number - 1)
            sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
