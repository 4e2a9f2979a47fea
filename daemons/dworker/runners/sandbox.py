"""The isolation level `sandbox`: what a process sees of the machine, as arguments of bubblewrap.

It sees the system's programs and settings, read-only, its own folder, its bundle, and nothing else: not what
the daemons keep, configure and listen on, no other process, no network unless the definition has it. A
private /tmp and /run are gone with it. Owns the arguments and the question whether this machine can do it. Must
not know how a process is started or ends: `spawnd.py` speaks with the bubblewrap, in unprivileged user namespaces.
"""

import errno
import functools
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from districomp.config import Paths
from dworker.runners import environment, interpreter
from dworker.runners.spawn import Request

log = logging.getLogger(__name__)

PROBE_S: Final = 10.0
SYSTEM: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/opt", "/nix", "/gnu")
_NAMESPACES: Final = (
    "--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-uts", "--unshare-cgroup",
    "--die-with-parent", "--new-session", "--cap-drop", "ALL",
)  # fmt: skip
# bubblewrap covers what else in /proc could be written, but leaves this to root's processes without any capability.
_FRESH: Final = (
    "--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys", "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", "/run", "--dir", "/var",
    "--symlink", "../tmp", "/var/tmp", "--symlink", "../run", "/var/run",
)  # fmt: skip
_SECRETS_MAX: Final = 1000
_RESOLV: Final = "/etc/resolv.conf"


class Sandbox:
    """Puts processes into bubblewraps. `hidden`: folders of which nothing may be seen, wherever they lie."""

    def __init__(self, program: str, hidden: Sequence[Path], system: Sequence[str] = SYSTEM) -> None:
        self._program = program
        self._hidden = list(dict.fromkeys(str(path) for one in hidden for path in (one, one.resolve())))
        self._system: list[str] = []
        self._binds: list[str] = []
        for path in system:
            if os.path.islink(path):  # noqa: PTH114 -- paths are text here, as bubblewrap takes them
                self._binds += "--symlink", os.readlink(path), path  # noqa: PTH115 -- as above
            elif os.path.isdir(path):  # noqa: PTH112 -- as above
                self._binds += "--ro-bind", path, path
                self._system.append(path)
        # Root could read them in a namespace of its own too; for others their permissions are enough.
        self._secrets = list(_secrets("/etc")) if os.geteuid() == 0 else []

    def box(self, request: Request, *, network: bool, bundle: Path | None, is_python: bool = False) -> Request:
        """The same process, in a sandbox. OSError if its arguments cannot be handed over."""
        shown = [str(bundle)] if bundle is not None else []
        if is_python:
            shown += [sys.prefix, sys.base_prefix, interpreter.__file__]
        arguments = self._arguments(request.folder, shown, network=network)
        for name, value in request.env.items():
            arguments += "--setenv", name, value
        # The rest of the environment is for what is in there: bubblewrap itself must not load what it names.
        known_by = {name: value for name, value in request.env.items() if name in environment.TASK_NAMES}
        fd = _handed_over(arguments)
        # Found along PATH again, within: so it has the name that it has without a sandbox.
        argv = ["bwrap", "--", *request.argv]
        return request._replace(program=self._program, argv=argv, env=known_by, fds=(*request.fds, fd), is_boxed=True)

    def _arguments(self, folder: str, shown: list[str], *, network: bool) -> list[str]:
        arguments = [*_NAMESPACES, *([] if network else ["--unshare-net"]), *_FRESH, *self._binds]
        visible = list(self._system)
        more = [path for path in shown if not _is_below(path, visible)]
        if network and not _is_below(resolv := os.path.realpath(_RESOLV), visible):
            more.append(resolv)
        private = [path for path in shown if _is_below(path, self._hidden)]
        for path in more:
            if path not in private:
                arguments += "--ro-bind-try", path, path
        arguments += self._masks([*visible, *more])
        for path in private:
            arguments += "--ro-bind", path, path
        return [*arguments, "--bind", folder, folder, "--remount-ro", "/", "--chdir", folder]

    def _masks(self, visible: list[str]) -> list[str]:
        """Something empty over whatever is visible and may not be."""
        masks: list[str] = []
        for path in self._hidden:
            if os.path.isdir(path) and _is_below(path, visible):  # noqa: PTH112 -- a few for each process
                masks += "--tmpfs", path
        for path in self._secrets:
            if os.path.isdir(path):  # noqa: PTH112 -- as above
                masks += "--tmpfs", path
            elif os.path.exists(path):  # noqa: PTH110 -- as above
                masks += "--ro-bind", os.devnull, path
        return masks

    def problem(self) -> str:
        """Why this machine cannot do it, '' if it can: with a network and without."""
        with tempfile.TemporaryDirectory(prefix="districomp-") as folder:
            for network in (False, True):
                arguments = self._arguments(os.path.realpath(folder), [], network=network)
                command = [self._program, *arguments, "--json-status-fd", "2", "--", "true"]
                try:
                    ended = subprocess.run(
                        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_S, check=False
                    )
                except (OSError, subprocess.TimeoutExpired) as error:
                    return str(error)
                if ended.returncode != 0 or b"exit-code" not in ended.stderr:
                    return ended.stderr.decode("utf-8", "replace").strip() or f"it ended with {ended.returncode}"
        return ""


def find() -> Sandbox | None:
    """The sandbox of this machine, if it can do one; found out once."""
    found = _found()
    return found if isinstance(found, Sandbox) else None


def why_not() -> str:
    """Why there is none, as the end of a sentence; '' if there is one."""
    found = _found()
    return found if isinstance(found, str) else ""


@functools.cache
def _found() -> Sandbox | str:
    program = shutil.which("bwrap", path=environment.base()["PATH"]) if sys.platform == "linux" else None
    why = "bubblewrap (bwrap) is not installed"
    if program is not None:
        paths = Paths.from_environment()
        sandbox = Sandbox(program, [paths.state, paths.config, paths.runtime])
        problem = sandbox.problem()
        if not problem:
            return sandbox
        why = f"{program} does not work here: {problem}"
    log.debug("no isolation level sandbox: %s", why)
    return why


def why_not_started(stderr: bytes, program: str) -> str:
    """A sentence for a process that a bubblewrap could not start. `stderr`: what it wrote."""
    text = stderr.decode("utf-8", "replace").strip().rpartition("\n")[2].removeprefix("bwrap: ")
    if not text.startswith("execvp "):
        return f"The sandbox of {program!r} could not be made: {text}"
    for number in (errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOEXEC, errno.E2BIG):
        if text.endswith(os.strerror(number)):
            return environment.why_not_started(number, text, program)
    return (
        f"The program {program!r} does not exist in the sandbox, or the interpreter named in its first line does not; "
        "nothing is there but the system's folders, the task's own and its bundle."
    )


def _handed_over(arguments: list[str]) -> int:
    """A descriptor from which bubblewrap reads its arguments: others could read them on its command line."""
    fd = os.memfd_create("arguments")
    try:
        view = memoryview(b"".join(os.fsencode(argument) + b"\0" for argument in arguments))
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _is_below(path: str, folders: list[str]) -> bool:
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)


def _secrets(folder: str) -> Iterator[str]:
    """What is not for everybody, below a folder."""
    found = 0
    for here, folders, files in os.walk(folder):
        for name in list(folders) + files:
            path = os.path.join(here, name)  # noqa: PTH118 -- thousands, once
            try:
                mode = os.lstat(path).st_mode
            except OSError:
                continue
            wanted = 0o005 if name in folders else 0o004
            if mode & wanted != wanted and found < _SECRETS_MAX:
                found += 1
                yield path
                if name in folders:
                    folders.remove(name)
