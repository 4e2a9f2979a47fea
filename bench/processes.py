"""The processes that a benchmark starts: each in a session of its own, and every one ended however the benchmark ends.

Owns starting and ending. Knows nothing of what runs in them. What detaches itself from its parent (a daemon of a
daemon) comes back to us, because this process is made the reaper of its descendants, and is ended too.
"""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Final

from bench.machine import descendants
from dworker.runners.prctl import become_reaper

END_S: Final = 5.0
GRACE_S: Final = 1.0
NOBODY: Final = 65534


class Processes:
    """What was started, each with its log in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[tuple[str, subprocess.Popen[bytes]]] = []

    def start(
        self,
        name: str,
        argv: list[str | Path],
        *,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        piped: bool = False,
        nobody: bool = False,
    ) -> subprocess.Popen[bytes]:
        """Start a program. `piped`: its input and output are pipes; `nobody`: as that user, should we be root."""
        as_nobody = nobody and os.geteuid() == 0
        with self.log(name).open("ab") as log:
            process = subprocess.Popen(
                argv,
                env=None if environment is None else dict(environment),
                cwd=cwd or self.folder,
                stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
                stdout=subprocess.PIPE if piped else log,
                stderr=log,
                start_new_session=True,
                user=NOBODY if as_nobody else None,
                group=NOBODY if as_nobody else None,
                extra_groups=[] if as_nobody else None,
            )
        self._started.append((name, process))
        return process

    def log(self, name: str) -> Path:
        """Where the program's messages go."""
        return self.folder / f"{name}.log"

    def ended(self) -> list[str]:
        """Names of those that have ended by themselves."""
        return [name for name, process in self._started if process.poll() is not None]

    def stop(self) -> None:
        """End them, the last one first: SIGTERM to the program, SIGKILL to its whole session when it takes long."""
        for _, process in reversed(self._started):
            if process.poll() is None:
                process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
        self._started.clear()


@contextlib.contextmanager
def all_ended() -> Iterator[None]:
    """Within it SIGTERM is like Ctrl-C, and at its end no descendant of this process is left."""

    def leave(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    become_reaper()
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        # A second Ctrl-C must not leave half of them behind; this takes END_S at most.
        impatient = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            end_strays()
        finally:
            signal.signal(signal.SIGINT, impatient)
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder that any user may pass through, gone afterwards; what is started meanwhile has its temporary files there too.

    A program that is ended by force leaves them behind.
    """
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        before = os.environ.get("TMPDIR")
        os.environ["TMPDIR"] = name
        try:
            yield Path(name)
        finally:
            if before is None:
                del os.environ["TMPDIR"]
            else:
                os.environ["TMPDIR"] = before
            end_strays()


def end_strays() -> None:
    """Kill and reap every descendant of this process. TimeoutError if one does not die."""
    deadline = time.monotonic() + END_S
    while strays := _descendants():
        for pid in strays:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if time.monotonic() > deadline:
            raise TimeoutError(f"these processes do not die: {strays}")
        time.sleep(0.005)


def _descendants() -> list[int]:
    while True:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            return descendants(os.getpid())[1:]
