"""The coordinator's child processes: kept running, restarted with backoff, ended with it.

Each holds a pipe to us on its standard input and ends when that closes, however we end. Must not know
what a child does.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Sequence
from typing import Final

log = logging.getLogger(__name__)

BACKOFF_S_FIRST: Final = 0.2
BACKOFF_S_MAX: Final = 30.0
STEADY_S: Final = 10.0
"""A child that lived so long begins with the first backoff again."""
END_S: Final = 5.0
EX_CONFIG: Final = 78
_OURS_ALONE: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""What systemd says to the daemon itself: a child must neither report itself ready nor alive in its place."""


class Child:
    """One child process. `line` is written to its standard input first."""

    def __init__(self, name: str, argv: Sequence[str], line: bytes = b"") -> None:
        self.pid = 0
        """0 while it does not run."""
        self._name = name
        self._argv = list(argv)
        self._line = line
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._is_renewed = False

    def renew(self, line: bytes) -> None:
        """Start it anew with another first line."""
        self._line, self._is_renewed = line, True
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()

    def start(self) -> None:
        """Start it and keep it running."""
        self._keeper = asyncio.get_running_loop().create_task(self._keep())

    async def close(self) -> None:
        """End it: its pipe closes, then TERM, then KILL."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        if self._process is None or self._process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            if self._process.stdin is not None:
                self._process.stdin.close()
            self._process.terminate()
        try:
            async with asyncio.timeout(END_S):
                await self._process.wait()
        except TimeoutError:
            log.warning("%s does not end; killing it", self._name)
            self._process.kill()
            await self._process.wait()

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        backoff_s = BACKOFF_S_FIRST
        while True:
            begun = loop.time()
            self._is_renewed = False
            code = await self._run_once()
            if self._is_renewed:
                continue
            if loop.time() - begun >= STEADY_S:
                backoff_s = BACKOFF_S_FIRST
            if code == EX_CONFIG:
                # Its message is in the log already; it would say the same for ever.
                log.error("%s cannot run with this configuration; it stays off until a restart", self._name)
                return
            log.warning("%s ended with %d; starting it again in %.1f s", self._name, code, backoff_s)
            await asyncio.sleep(backoff_s)
            backoff_s = min(BACKOFF_S_MAX, backoff_s * 2)

    async def _run_once(self) -> int:
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                env={key: value for key, value in os.environ.items() if key not in _OURS_ALONE},
                # A Ctrl-C at the terminal is for us to handle; they end when we close their pipe.
                start_new_session=True,
            )
        except OSError as error:
            log.error("%s: %s cannot be started: %s", self._name, self._argv[0], error)
            return 127
        self.pid = self._process.pid
        if self._line and self._process.stdin is not None:
            self._process.stdin.write(self._line)
        code = await self._process.wait()
        self.pid = 0
        return code
