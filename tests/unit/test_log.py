"""The form of a log line: one event one line, whatever a peer put into it."""

import logging
import sys

import pytest

from districomp import log
from districomp.errors import ConfigError


def record(level: int, text: str, *args: object) -> logging.LogRecord:
    return logging.LogRecord("name", level, "file", 1, text, args, None)


@pytest.mark.parametrize(
    ("level", "prefix"),
    [
        (logging.CRITICAL, "<2>"),
        (logging.ERROR, "<3>"),
        (logging.WARNING, "<4>"),
        (logging.INFO, "<6>"),
        (logging.DEBUG, "<7>"),
    ],
)
def test_the_journal_is_told_the_priority_and_no_time(level: int, prefix: str) -> None:
    assert log.JournalFormatter().format(record(level, "%s left", "w1")) == f"{prefix}w1 left"


def test_elsewhere_a_line_has_time_and_program_and_a_level_unless_it_is_usual() -> None:
    formatter = log.LineFormatter("dcoord")
    time, _, text = formatter.format(record(logging.INFO, "ready")).partition(" ")
    assert len(time) == len("12:30:59")
    assert text == "dcoord: ready"
    assert formatter.format(record(logging.WARNING, "slow")).endswith(" dcoord: warning: slow")


@pytest.mark.parametrize("formatter", [log.JournalFormatter(), log.LineFormatter("dcoord")])
def test_a_peers_text_cannot_forge_a_line_or_command_a_terminal(formatter: logging.Formatter) -> None:
    line = formatter.format(record(logging.INFO, "worker %s", "x\n<2>forged\r\x1b[2J\x9b0m"))
    assert line.isprintable()
    assert r"\x0a<2>forged\x0d\x1b[2J\x9b0m" in line


def test_every_line_of_a_traceback_has_the_priority() -> None:
    crash = record(logging.ERROR, "stopped")
    try:
        raise ValueError("bad\x1b[1m")
    except ValueError:
        crash.exc_info = sys.exc_info()
    lines = log.JournalFormatter().format(crash).splitlines()
    assert lines[0] == "<3>stopped"
    assert lines[-1] == r"<3>ValueError: bad\x1b[1m"
    assert all(line.startswith("<3>") for line in lines)


def test_an_unknown_level_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="debug, info, warning, error"):
        log.setup("dcoord", "loud")
