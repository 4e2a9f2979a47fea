"""Submitting jobs, and waiting for them at once."""

import sys
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from dctl import output
from dctl.options import DurationType, MatrixType, ParamType, RangeType, connect, gathered, output_options
from dctl.output import Mode, message
from dctl.progress import EXIT_INTERRUPTED, exit_code, going_on, wait_for
from dctl.results import Form, chosen_form, print_results
from districomp.client import Client, Job
from districomp.client_items import CHUNK_BYTES, GivenItem, Large, Lines, read_lines
from districomp.errors import RefusedError, UsageError

EACH_FILE: Final = "--each-file"
FORMS: Final = "--data, --data-file, --each-line, --each-file, --range, --matrix"


class SubmitCommand(click.Command):
    """A command whose `--each-file` takes all paths up to the next option, as a shell's wildcard gives them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, after `--each-file A B` has become `--each-file=A --each-file=B`."""
        try:
            return super().parse_args(ctx, spread_paths(args))
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise


def spread_paths(args: list[str]) -> list[str]:
    """Arguments with an `--each-file=` before each of its paths."""
    spread: list[str] = []
    place = 0
    while place < len(args):
        argument = args[place]
        place += 1
        if argument == "--":
            return [*spread, *args[place - 1 :]]
        if argument != EACH_FILE:
            spread.append(argument)
            continue
        first = place
        while place < len(args) and (not args[place].startswith("-") or args[place] == "-"):
            spread.append(f"{EACH_FILE}={args[place]}")
            place += 1
        if place == first:
            raise click.UsageError("--each-file needs at least one path after it; name the files")
    return spread


class Inputs(msgspec.Struct, frozen=True):
    """The input forms of a command line; at most one is given."""

    data: str | None = None
    data_file: str | None = None
    each_line: str | None = None
    each_file: tuple[str, ...] = ()
    numbers: range | None = None
    matrix: tuple[tuple[str, list[str]], ...] = ()

    def as_keywords(self) -> dict[str, Any]:
        """The arguments of `Client.submit`. UsageError if there are several forms."""
        given = [form for form in (self.data, self.data_file, self.each_line, self.numbers) if form is not None]
        if len(given) + bool(self.each_file) + bool(self.matrix) > 1:
            raise UsageError(f"one submission has one form of input; give only one of {FORMS}")
        if "" in (self.data_file, self.each_line, *self.each_file):
            raise UsageError("a path is empty; name a file (is a variable of the shell unset?)")
        if self.data is not None:
            # Arguments that are not UTF-8 come as surrogates: they go as the bytes they were.
            return {"data": self.data.encode("utf-8", "surrogateescape")}
        if self.data_file is not None:
            return {"items": standard_input()} if self.data_file == "-" else {"data": Path(self.data_file)}
        if self.each_line is not None:
            return {"items": lines_of(self.each_line)}
        if self.each_file:
            _check_files(self.each_file)
            return {"files": self.each_file}
        if self.matrix:
            return {"matrix": _matrix(self.matrix)}
        return {"range": self.numbers} if self.numbers is not None else {}


def _matrix(pairs: tuple[tuple[str, list[str]], ...]) -> dict[str, list[str]]:
    """The values by parameter. UsageError if one is given twice: which of the two was meant?"""
    matrix: dict[str, list[str]] = {}
    for name, values in pairs:
        if name in matrix:
            raise UsageError(f"--matrix {name} is given twice; write all its values after one: {name}=a,b,c")
        matrix[name] = values
    return matrix


class After(msgspec.Struct, frozen=True):
    """What is to happen once a job is submitted. `results` None: they are not wanted."""

    wait: bool = False
    progress: bool = False
    results: Form | None = None
    timeout: float | None = None


EPILOG = """\b
Examples:
  dctl submit render --param scene=a.pov --range 0..63 --progress
  dctl submit checksum --each-file *.iso --results
  find . -name '*.py' | dctl submit count --each-line - --name nightly
  dctl submit report --data 'x = 1' --wait --timeout 10min
  dctl submit train --matrix rate=0.1,0.01 --matrix seed=1,2,3 --max-fails 2
  dctl submit render --range 0..63 --param scene=a.pov --dry-run

\b
One form of input: --data, --data-file, --each-line, --each-file, --range or --matrix;
without one the job is a single task without input. The same --request-id gives the same job.
"""


@click.command(cls=SubmitCommand, epilog=EPILOG)
@click.argument("definition", metavar="DEF")
@click.option("--data", metavar="TEXT", help="One task; TEXT is its data.")
@click.option("--data-file", metavar="F", help="One task; the content of F (- is standard input) is its data.")
@click.option("--each-line", metavar="F|-", help="A task for each line of F, or of standard input.")
@click.option("--each-file", metavar="PATH...", multiple=True, help="A task for each file named up to the next option.")
@click.option("--range", "numbers", type=RangeType(), help="A task for each number from A to B, both included.")
@click.option(
    "--matrix",
    type=MatrixType(),
    multiple=True,
    help="A task for each value of a parameter; given again for each combination, the last varies fastest.",
)
@click.option("--param", "params", type=ParamType(), multiple=True, help="A parameter; given again it becomes a list.")
@click.option("--name", default="", metavar="LABEL", help="A name for people.")
@click.option("--request-id", type=click.UUID, help="Repeat a submission: the same UUID gives the same job.")
@click.option("--wait", is_flag=True, help="Wait until the job has ended; exit code 1 if a task is not done.")
@click.option("--progress", is_flag=True, help="Wait, with a progress bar (plain lines without a terminal).")
@click.option("--results", is_flag=True, help="Wait, and print the results in task order.")
@click.option("--timeout", type=DurationType(), help="Stop waiting after this time; the job goes on (exit code 124).")
@click.option("--max-fails", type=click.IntRange(1), metavar="N", help="At N failed tasks the rest is cancelled.")
@click.option("--dry-run", is_flag=True, help="Check everything, show three tasks as they would run, submit nothing.")
@output_options
def submit(
    *,
    definition: str,
    params: tuple[tuple[str, str], ...],
    name: str,
    request_id: uuid.UUID | None,
    wait: bool,
    progress: bool,
    results: bool,
    timeout: float | None,
    max_fails: int | None,
    dry_run: bool,
    mode: Mode = "text",
    **inputs: Any,
) -> int:
    """Submit a job of the definition DEF and print its number.

    With --results the results are printed instead, and the number goes to standard error.
    """
    form = chosen_form(mode, None, None) if results else None
    after = After(wait or progress or timeout is not None, progress, form, timeout)
    keywords = Inputs(**inputs).as_keywords()
    with connect() as client:
        if dry_run:
            from dctl.rehearsal import rehearse  # only who rehearses needs the definition's rules here

            with live(client, definition):
                return rehearse(client, definition, gathered(params), mode, **keywords)
        job = submitted(
            client,
            definition,
            str(request_id) if request_id else None,
            params=gathered(params),
            name=name,
            max_fails=max_fails,
            **keywords,
        )
        _tell(job, mode, aside=results)
        return finish(client, job, after)


def submitted(client: Client, definition: str, request_id: str | None, **keywords: Any) -> Job:
    """Submit; interrupted before the answer, say how to find out what became of it."""
    request_id = request_id or str(uuid.uuid4())
    try:
        with live(client, definition):
            return client.submit(definition, request_id=request_id, **keywords)
    except KeyboardInterrupt:
        message(
            "interrupted before the submission was acknowledged; to be sure of it, repeat the command "
            f"with --request-id {request_id}: that never makes a second job"
        )
        raise click.exceptions.Exit(EXIT_INTERRUPTED) from None


@contextmanager
def live(client: Client, definition: str) -> Iterator[None]:
    """If a definition turns out not to be live, say why: its file may be wrong, or its name misspelt."""
    try:
        yield
    except RefusedError as error:
        if error.code != "unknown_definition":
            raise
        from dctl.definition import unknown  # only for the way out

        raise unknown(definition, client.definitions()) from error


def finish(client: Client, job: Job, after: After) -> int:
    """Wait for a job and give out its results, as asked; the exit code."""
    if not (after.wait or after.results):
        return 0
    with going_on([job.number]):
        if after.results is None:
            return exit_code(wait_for(client, [job.number], after.timeout, progress=after.progress))
        if after.progress:
            # The bar and the results would write over each other on a terminal: one after the other.
            wait_for(client, [job.number], after.timeout, progress=True)
            return print_results(job.results(), after.results)
        return print_results(job.results(timeout=after.timeout), after.results)


def lines_of(path: str) -> Iterable[GivenItem]:
    """The lines of a file, or of standard input for `-`."""
    if path == "-":
        return read_lines(_standard_input())
    return Lines(path)


def standard_input() -> Iterable[GivenItem]:
    """All of standard input as one item."""
    return iter([Large(_standard_input())])


def _standard_input() -> Any:
    try:
        return open(0, "rb", buffering=CHUNK_BYTES, closefd=False)
    except OSError as error:
        raise UsageError("standard input is closed; give a file in place of -") from error


def _check_files(paths: tuple[str, ...]) -> None:
    """Say at once what cannot be read, before anything is sent."""
    for text in paths:
        path = Path(text)
        if path.is_dir():
            raise UsageError(f"--each-file: {text} is a folder; name the files in it, for example {text.rstrip('/')}/*")
        if not path.exists():
            raise UsageError(f"--each-file: {text}: no such file; check the path (now in {Path.cwd()})")


def _tell(job: Job, mode: Mode, *, aside: bool) -> None:
    """The job's number: the data of a plain submission, a message where the results are the data."""
    if aside:
        if mode != "quiet":
            message(f"job {job.number}: {job.tasks} task{'' if job.tasks == 1 else 's'}")
    elif mode == "json":
        output.print_json({"job": job.number, "tasks": job.tasks})
    else:
        output.write(f"{job.number}\n")
    sys.stdout.flush()
