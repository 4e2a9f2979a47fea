"""Logging of all programs: one line an event, on standard error.

Owns the form of a line. Under systemd's journal a line starts with its priority (`<N>`, sd-daemon(3))
and has no time, because the journal has its own; elsewhere it starts with the time of day and the
program. Does not know what is logged, and reads no configuration.
"""

import logging
import os
import sys
import time
from typing import Final

from districomp.errors import ConfigError

LEVELS: Final = ("debug", "info", "warning", "error")

_ESCAPES: Final = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}
"""Control characters: what a peer sent must neither forge a second line nor command a terminal."""


def setup(program: str, level: str = "info") -> None:
    """Send every event at or above `level` to standard error. ConfigError names an unknown level."""
    if level not in LEVELS:
        raise ConfigError(f"log level {level!r} is unknown; choose one of {', '.join(LEVELS)}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JournalFormatter() if _is_journal() else LineFormatter(program))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())


def tell_error(text: str) -> None:
    """For a person, who may read several lines with carets in them: without the log's prefix, but for the journal's."""
    prefix = f"<{_priority(logging.ERROR)}>" if _is_journal() else ""
    sys.stderr.write("".join(f"{prefix}{line}\n" for line in text.splitlines()))


class LineFormatter(logging.Formatter):
    """For a terminal or a file: `12:30:59 dcoord: warning: text`; a traceback follows on lines of its own."""

    def __init__(self, program: str) -> None:
        super().__init__()
        self._program = program

    def format(self, record: logging.LogRecord) -> str:
        """One event, without its end of line."""
        at = time.strftime("%H:%M:%S", time.localtime(record.created))
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        return "\n".join([f"{at} {self._program}: {level}{_one_line(record)}", *_traceback(self, record)])


class JournalFormatter(logging.Formatter):
    """For systemd's journal: every line begins with the event's priority."""

    def format(self, record: logging.LogRecord) -> str:
        """One event, without its end of line."""
        prefix = f"<{_priority(record.levelno)}>"
        return "\n".join(prefix + line for line in [_one_line(record), *_traceback(self, record)])


def _one_line(record: logging.LogRecord) -> str:
    return record.getMessage().translate(_ESCAPES)


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> list[str]:
    if not record.exc_info:
        return []
    return [line.translate(_ESCAPES) for line in formatter.formatException(record.exc_info).splitlines()]


def _priority(level: int) -> int:
    """syslog(3)'s number of a level."""
    for least, priority in ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6)):
        if level >= least:
            return priority
    return 7


def _is_journal() -> bool:
    """Whether standard error IS the journal's stream: the variable alone is inherited by redirected children too."""
    device, colon, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    if not colon:
        return False
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino))
