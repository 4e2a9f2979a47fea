"""The results of a job: printed in task order, as JSON, or one file a task."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Final

import click
import msgspec

from dctl import output
from dctl.options import connect, job_number, output_options
from dctl.output import Mode, clean, message
from dctl.progress import EXIT_NOT_DONE, going_on
from districomp.client import Job, TaskResult
from districomp.documents import ResultDocument
from districomp.errors import UsageError

_encoder = msgspec.json.Encoder()

FAILURES_SHOWN: Final = 5
LAST_LINE_CHARS: Final = 200


class Form(msgspec.Struct, frozen=True):
    """How results are given out: `sep` None adds a line end where one is missing; `stderr`: standard error too."""

    json: bool = False
    sep: str | None = None
    folder: Path | None = None
    stderr: bool = False


class Tally:
    """What became of the tasks that were given out; the first failures are told at once.

    With `stderr` all are, and what each task wrote to standard error goes to ours, as if it had run here.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        self._tasks = 0
        self._stderr = stderr
        self._without: dict[str, int] = {}

    def count(self, result: TaskResult) -> None:
        """Count one task."""
        self._tasks += 1
        if self._stderr and result.record.stderr:
            _pass_on(result.record.stderr)
        if result.ok:
            return
        number = self._without.get(result.state, 0) + 1
        self._without[result.state] = number
        if result.state == "failed" and (self._stderr or number <= FAILURES_SHOWN):
            message(_failure(result, quote=not self._stderr))

    def exit_code(self) -> int:
        """0 if every task had a result; else 1, with a sentence that sums up."""
        if not self._without:
            return 0
        parts = ", ".join(f"{number} {state}" for state, number in self._without.items())
        message(f"{sum(self._without.values())} of {self._tasks} tasks have no result: {parts}")
        return EXIT_NOT_DONE


EPILOG = """\b
Examples:
  dctl results 42
  dctl results 42 --dir out
  dctl results last --sep '' > whole
  dctl results 42 --follow --json | jq -c 'select(.state != "done")'
"""


@click.command(epilog=EPILOG)
@click.argument("job", metavar="JOB")
@click.option("--dir", "folder", metavar="D", help="Write each result to D/INDEX instead.")
@click.option("--sep", metavar="S", help="Put S after each result, instead of a line end where one is missing.")
@click.option("--follow", is_flag=True, help="Go on until the job has ended; with --json in JSON lines.")
@output_options
def results(job: str, folder: str | None, sep: str | None, follow: bool, mode: Mode = "text") -> int:
    """Print the results of a job, in task order. Exit code 1 if a task has none.

    Without --follow it prints those that are there. With -q it prints the ids of tasks that are done.
    """
    form = chosen_form(mode, sep, folder)
    with connect() as client:
        handle = client.job(job_number(client, job))
        if not follow:
            return _print_present(handle, form, mode)
        with going_on([handle.number]):
            return print_results(handle.results(), form, lines=True, quiet=mode == "quiet")


def chosen_form(mode: Mode, sep: str | None, folder: str | None) -> Form:
    """The form that the options ask for. UsageError if they exclude each other."""
    if folder is not None and (sep is not None or mode == "json"):
        raise UsageError("--dir writes files, so --sep and --json do not go with it; leave one of them out")
    if sep is not None and mode == "json":
        raise UsageError("--sep is for plain results, so --json does not go with it; leave one of them out")
    if folder is None:
        return Form(mode == "json", sep)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--dir {folder}: {error.strerror}; name a folder that can be written") from error
    return Form(folder=Path(folder))


def print_results(found: Iterable[TaskResult], form: Form, *, lines: bool = False, quiet: bool = False) -> int:
    """Give out results as they come; the exit code. `lines`: JSON lines in place of one list."""
    tally = Tally(stderr=form.stderr)
    if form.json:
        _print_json(found, tally, lines)
    else:
        out = sys.stdout.buffer
        for result in found:
            tally.count(result)
            if not result.ok:
                continue
            if quiet:
                output.write(f"{result.task}\n")
            elif form.folder is not None:
                result.save(form.folder / str(result.index))
            else:
                _print_plain(result, form.sep, out)
        out.flush()
    return tally.exit_code()


def _print_present(job: Job, form: Form, mode: Mode) -> int:
    # The document comes first: a task that ends in between is then given out and at worst counted as missing.
    document = job.document()
    code = print_results(job.results(wait=False), form, quiet=mode == "quiet")
    missing = document.counts.queued + document.counts.running
    if missing:
        message(
            f"job {job.number} is {document.state}: {missing} of {document.tasks} tasks had not ended; wait with --follow"
        )
    return code or (EXIT_NOT_DONE if missing else 0)


def _print_plain(result: TaskResult, sep: str | None, out: IO[bytes]) -> None:
    if result.blob is None:
        data = result.read()
        out.write(data)
        ends_line = data.endswith(b"\n")
    else:
        ends_line = _copy_large(result, out)
    if sep is not None:
        out.write(sep.encode("utf-8", "surrogateescape"))
    elif not ends_line:
        out.write(b"\n")


def _copy_large(result: TaskResult, out: IO[bytes]) -> bool:
    """Print a result above 64 KiB by way of a file, since it is checked before any of it is shown; its last byte is LF."""
    from shutil import copyfileobj
    from tempfile import TemporaryFile

    with TemporaryFile() as file:
        result.copy_to(file)
        file.seek(-1, 2)
        ends_line = file.read() == b"\n"
        file.seek(0)
        copyfileobj(file, out)
    return ends_line


def _print_json(found: Iterable[TaskResult], tally: Tally, lines: bool) -> None:
    """One list, written piece by piece, because it may be larger than memory; or a line each."""
    out = sys.stdout.buffer
    before = b"" if lines else b"["
    for result in found:
        tally.count(result)
        out.write(before + _encoder.encode(document(result)) + (b"\n" if lines else b""))
        if lines:
            out.flush()
        else:
            before = b",\n"
    if not lines:
        out.write(b"]\n" if before == b",\n" else b"[]\n")
    out.flush()


def document(result: TaskResult) -> ResultDocument:
    """An entry of `dctl results --json`."""
    shown = ResultDocument(result.task, result.state)
    if not result.ok:
        shown.result = None
    elif result.blob is not None:
        shown.sha256, shown.bytes = result.blob.sha256.hex(), result.blob.size
    else:
        shown.result, shown.encoding = output.as_text(result.read())
    return shown


def _failure(result: TaskResult, *, quote: bool) -> str:
    """A sentence on a task without a result; with `quote` the last line that it wrote to standard error."""
    said = result.record.stderr.decode("utf-8", "replace").rstrip().rpartition("\n")[2].strip()
    tail = f": {clean(said[:LAST_LINE_CHARS])}" if said and quote else ""
    why = f" ({result.why()})" if result.why() != result.state else ""
    return f"task {result.task} {result.state}{why}{tail}"


def _pass_on(said: bytes) -> None:
    """What a task wrote to standard error, as it is, after what was printed before it."""
    sys.stdout.flush()
    sys.stderr.flush()
    sys.stderr.buffer.write(said if said.endswith(b"\n") else said + b"\n")
    sys.stderr.buffer.flush()
