"""What several commands share: options, how their values are read, and the connection.

Owns the spelling of the command line. Must not know what a command does with it.
"""

import re
import sys
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from dctl.output import Mode, message
from districomp.client import Client
from districomp.errors import UsageError
from districomp.model import parse_task
from districomp.ranges import parse_range

F = TypeVar("F", bound=Callable[..., Any])

_SECONDS: Final = re.compile(r"[0-9]+(\.[0-9]+)?")
_DIGITS_MAX: Final = 18


class RangeType(click.ParamType[range]):
    """`A..B[:STEP]`, both ends included."""

    name = "A..B[:STEP]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> range:
        """As in the shell: downwards if A is above B, whatever STEP's sign."""
        if isinstance(value, range):
            return value
        try:
            return parse_range(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class DurationType(click.ParamType[float]):
    """Seconds, or a duration with units."""

    name = "T"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """`90`, `500ms`, `1h30m`."""
        if isinstance(value, float):
            return value
        if _SECONDS.fullmatch(value):
            return float(value)
        from districomp.units import parse_duration

        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(f"{error} (or plain seconds)", param, ctx)


class ParamType(click.ParamType[tuple[str, str]]):
    """`K=V`, a parameter of the definition."""

    name = "K=V"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """The name and the text after the first `=`."""
        if isinstance(value, tuple):
            return value
        key, equals, text = value.partition("=")
        if not (key and equals):
            self.fail(
                f"{value!r} is not K=V; write a parameter's name, = and its value, for example scene=a.pov", param, ctx
            )
        return key, text


class MatrixType(click.ParamType[tuple[str, list[str]]]):
    """`K=a,b,c`, a parameter and the values that it takes in turn."""

    name = "K=a,b,c"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, list[str]]:
        """The name, and the values between the commas."""
        if isinstance(value, tuple):
            return value
        key, equals, text = value.partition("=")
        if not (key and equals and text):
            self.fail(
                f"{value!r} is not K=a,b,c; write a parameter's name, = and its values with commas between them, "
                "for example size=10,20,30",
                param,
                ctx,
            )
        return key, text.split(",")


def gathered(pairs: tuple[tuple[str, str], ...]) -> dict[str, str | list[str]]:
    """Parameters by name; one given several times is a list."""
    params: dict[str, str | list[str]] = {}
    for key, text in pairs:
        present = params.get(key)
        if present is None:
            params[key] = text
        elif isinstance(present, list):
            present.append(text)
        else:
            params[key] = [present, text]
    return params


def output_options(command: F) -> F:
    """`--json` and `-q`, given to the command as `mode`."""

    def choose(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
        if not value:
            return
        chosen: Mode = "json" if parameter.name == "json" else "quiet"
        if ctx.params.get("mode", chosen) != chosen:
            raise click.UsageError("--json and -q exclude each other; give one of them", ctx)
        ctx.params["mode"] = chosen

    quiet = click.option("-q", "--quiet", is_flag=True, expose_value=False, callback=choose, help="Print ids only.")
    as_json = click.option("--json", is_flag=True, expose_value=False, callback=choose, help="Print JSON.")
    return quiet(as_json(command))


def yes_option(command: F) -> F:
    """`--yes`, for verbs that ask."""
    return click.option("--yes", is_flag=True, help="Do not ask; needed where there is no terminal to ask on.")(command)


def ask_first(yes: bool, doing: str, question: str) -> None:
    """Ask on a terminal, unless --yes was given; elsewhere it is needed. UsageError, or the end of the command if no."""
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(f"{doing} needs --yes where there is no terminal to ask on; nothing was changed")
    if not click.confirm(question, err=True):
        message("nothing was changed")
        raise click.exceptions.Exit(1)


def connect() -> Client:
    """The coordinator, with notices on standard error while it is away."""
    return Client(program="dctl", on_notice=message)


def job_number(client: Client, text: str) -> int:
    """A job's number; `last` is this user's newest job. UsageError for anything else."""
    if text == "last":
        jobs = client.jobs(mine=True)
        if not jobs:
            raise UsageError("you have no job here yet, so `last` names none; submit one, or see: dctl job list")
        return max(document.job for document in jobs)
    if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX):
        raise UsageError(f"{text!r} is not a job's number; for example 42, or `last`; see: dctl job list")
    return int(text)


def task_number(client: Client, text: str) -> tuple[int, int]:
    """A task's job and index; the job may be `last`. UsageError for anything else."""
    job, dot, index = text.partition(".")
    if job == "last" and dot:
        text = f"{job_number(client, job)}.{index}"
    try:
        found = parse_task(text if len(text) <= 2 * _DIGITS_MAX else text[:20])
    except ValueError as error:
        raise UsageError(f"{error}; see: dctl task list JOB") from error
    if max(found) >= 10**_DIGITS_MAX:
        raise UsageError(f"{text!r} is not a task's id; for example 42.7")
    return found
