"""What a task's process finds: its environment variables and its program. Owns nothing of how it runs.

Every process has PATH, LANG, HOME and TMPDIR (its own folder) and what the definition's `env` says. The
DISTRICOMP_* variables tell a `command` which task it is; a process of `stream` or `python` serves many
tasks, so it has none of them (`json` names the task in each line, a function is told by its params).
"""

import errno
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Final

from districomp.arguments import ItemError, item_text
from districomp.model import Blob, Item

ITEM_BYTES_MAX: Final = 4096
"""A longer item has no DISTRICOMP_ITEM: half of it would be worse than none."""
_FOLDERS: Final = ("HOME", "TMPDIR", "TEMP", "TMP", "USERPROFILE") if sys.platform == "win32" else ("HOME", "TMPDIR")
_SUFFIXES: Final = (".exe", ".com")
"""What a program's file is called on Windows. Not batch files: these take parts of their arguments for commands."""
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PROGRAM_CHARS_MAX: Final = 255
_FOUND_S: Final = 10.0
_FOUND_MAX: Final = 1000
TASK_NAMES: Final = ("DISTRICOMP_TASK", "DISTRICOMP_ATTEMPT")
"""Those that together stand for one attempt."""


def base(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """All that a task gets of the daemon's environment."""
    own = {name: environ[name] for name in _kept() if name in environ}
    return {**own, "PATH": environ.get("PATH") or _PATH, "LANG": environ.get("LANG") or "C.UTF-8"}


def _kept() -> tuple[str, ...]:
    """Variables without which hardly a program starts on some systems: where their parts are, never whose session it is."""
    if sys.platform == "win32":
        return "SYSTEMROOT", "SYSTEMDRIVE", "WINDIR", "COMSPEC", "PROGRAMDATA", "PROGRAMFILES", "PROCESSOR_ARCHITECTURE"
    if hasattr(sys, "getandroidapilevel"):
        # The last two are Termux': by them /bin/sh and /usr/bin/env in a script's first line are found.
        return "ANDROID_ROOT", "ANDROID_DATA", "ANDROID_ART_ROOT", "ANDROID_TZDATA_ROOT", "PREFIX", "LD_PRELOAD"
    return ()


def variables(base_env: Mapping[str, str], folder: str, definition_env: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that runs in `folder`."""
    return {**base_env, **dict.fromkeys(_FOLDERS, folder), **definition_env}


def task_variables(job: int, index: int, attempt: int, item: Item | None) -> dict[str, str]:
    """What tells a process which task it is."""
    env = {
        "DISTRICOMP_TASK": f"{job}.{index}",
        "DISTRICOMP_JOB": str(job),
        "DISTRICOMP_INDEX": str(index),
        "DISTRICOMP_ATTEMPT": str(attempt),
    }
    if item is not None and not isinstance(item, Blob) and (not isinstance(item, bytes) or len(item) <= ITEM_BYTES_MAX):
        try:
            text = item_text(item)
        except ItemError:
            return env
        if len(text.encode("utf-8", "surrogateescape")) <= ITEM_BYTES_MAX:
            env["DISTRICOMP_ITEM"] = text
    return env


class Programs:
    """Finds programs along a PATH, and remembers for a few seconds what it found."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], tuple[float, str]] = {}

    def find(self, name: str, path: str, folder: str) -> str:
        """The path to execute for `name` in `folder`; '' if there is none. A name with a slash is one already."""
        if _is_path(name):
            return name if sys.platform != "win32" else _file(folder, name)
        known = self._found.get((name, path))
        now = time.monotonic()
        if known is not None and now < known[0]:
            return known[1]
        found = ""
        for entry in path.split(os.pathsep):
            found = _file(os.path.join(folder, entry or "."), name)  # noqa: PTH118 -- an absolute entry replaces the folder
            if found:
                break
        if found and not found.startswith(folder):
            if len(self._found) >= _FOUND_MAX:
                self._found.clear()
            self._found[name, path] = (now + _FOUND_S, found)
        return found


def installed(names: Sequence[str], path: str) -> list[str]:
    """Those of these programs that are somewhere along a PATH. Blocks; a name is never taken for a path."""
    folders = [folder for folder in path.split(os.pathsep) if folder]
    return [name for name in names if _is_plain(name) and any(_file(folder, name) for folder in folders)]


def _is_plain(name: str) -> bool:
    return 0 < len(name) <= PROGRAM_CHARS_MAX and name.isprintable() and not _is_path(name)


def _is_path(name: str) -> bool:
    """Whether it says where the program is, and not only what it is called."""
    return "/" in name or (sys.platform == "win32" and ("\\" in name or ":" in name))


def _file(folder: str, name: str) -> str:
    """The file of a program in a folder, '' if it is not there."""
    names = [name]
    if sys.platform == "win32" and not name.lower().endswith(_SUFFIXES):
        names = [name + suffix for suffix in _SUFFIXES]
    for one in names:
        candidate = os.path.join(folder, one)  # noqa: PTH118 -- twenty for each process that is started
        if os.access(candidate, os.X_OK) and not os.path.isdir(candidate):  # noqa: PTH112 -- as above
            return candidate
    return ""


def why_not_started(number: int, text: str, program: str) -> str:
    """A sentence for a process that the system refused to start."""
    match number:
        case errno.ENOENT:
            return f"The program {program!r} does not exist here, or the interpreter named in its first line does not."
        case errno.EACCES | errno.EPERM | errno.EISDIR:
            return f"The program {program!r} is not executable; check its permission bits."
        case errno.ENOEXEC:
            return f"The program {program!r} is neither a program of this kind of machine nor a script with a #! line."
        case errno.E2BIG:
            return "The arguments and the environment are too long for this system; give large data on standard input."
    return f"The program {program!r} could not be started: {text}"


def not_installed(name: str, path: str) -> str:
    """A sentence for a program that no folder of PATH has."""
    kinds = " as .exe or .com (a batch file is run by: cmd /c)" if sys.platform == "win32" else ""
    return f"The program {name!r} is not installed on this worker{kinds}; it is in none of {path}."
