"""Tasks: list, show, their standard error, and why they are where they are."""

import signal
import sys
from contextlib import closing
from itertools import islice
from typing import Final

import click
import msgspec

from dctl import output
from dctl.options import connect, job_number, output_options, task_number
from dctl.output import Column, Mode, message
from districomp.documents import AttemptDocument, ExplainDocument, TaskDocument
from districomp.model import STATE_NAMES, STDERR_TAIL_BYTES, WORKER_LOSSES_MAX, task_text

LAST_LINE_CHARS: Final = 200
ENDED_CAUSE: Final = "ended"
"""The cause that the coordinator gives for a task whose last attempt says why."""
WORDS: Final = {
    "done": "it succeeded",
    "timeout": "it took longer than limits.time of its definition allows",
    "memory": "it used more memory than limits.memory of its definition allows",
    "processes": "it had more processes than limits.processes of its definition allows",
    "disk": "there was no room for it on the disk",
    "result_too_large": "its result was larger than limits.result of its definition allows",
    "output_invalid": "its program answered otherwise than the format of its definition says",
    "cancelled": "it was cancelled while it ran",
    "worker_lost": "its worker was lost",
    "worker_stopped": "its worker stopped",
    "crash_limit": f"its worker was lost {WORKER_LOSSES_MAX} times while it ran there",
    "not_started": "its program could not be started",
    "outcome_unknown": "nobody knows whether it ran, and its definition says that it must never run twice",
}


def _last(task: TaskDocument) -> AttemptDocument | None:
    return task.attempts[-1] if task.attempts else None


def _why(attempt: AttemptDocument | None) -> str:
    if attempt is None or attempt.reason is None:
        return "-"
    if attempt.reason == "exit" and attempt.exit_code is not None:
        return f"exit {attempt.exit_code}"
    if attempt.reason == "signal" and attempt.signal is not None:
        return f"signal {attempt.signal}"
    return attempt.reason


def _worker(attempt: AttemptDocument | None) -> str:
    return attempt.worker if attempt else "-"


TASK_COLUMNS = (
    Column("TASK", lambda task: task.task),
    Column("STATE", lambda task: task.state),
    Column("ATTEMPTS", lambda task: str(len(task.attempts)), right=True),
    Column("REASON", lambda task: _why(_last(task))),
    Column("WORKER", lambda task: _worker(_last(task)), shrinks=True),
    Column("DATA", lambda task: output.size(task.data_bytes), right=True),
    Column("RESULT", lambda task: output.size(task.result_bytes), right=True),
)
ATTEMPT_COLUMNS = (
    Column("WORKER", lambda attempt: attempt.worker, shrinks=True),
    Column("STARTED", lambda attempt: output.ago(attempt.started)),
    Column("TOOK", lambda attempt: output.between(attempt.started, attempt.ended), right=True),
    Column("REASON", _why),
    Column("CPU", lambda attempt: output.span(attempt.cpu_s), right=True),
    Column("PEAK MEMORY", lambda attempt: output.size(attempt.memory_peak_bytes), right=True),
)


@click.group()
def task() -> None:
    """List and show tasks."""


@task.command(
    "list",
    epilog="\b\nExamples:\n  dctl task list 42\n  dctl task list last --state failed -q\n  dctl task list 42 --limit 20",
)
@click.argument("job", metavar="JOB")
@click.option("--state", type=click.Choice(STATE_NAMES), default=None, help="Only tasks in this state.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N of them.")
@output_options
def list_tasks(job: str, state: str | None, limit: int | None, mode: Mode = "text") -> None:
    """List a job's tasks, in task order."""
    with connect() as client:
        tasks = client.each_task(job_number(client, job), state or "")
        with closing(tasks):
            output.print_stream(mode, islice(tasks, limit), lambda document: document.task, TASK_COLUMNS)


@task.command("show", epilog="\b\nExamples:\n  dctl task show 42.7\n  dctl task show last.0 --json")
@click.argument("task", metavar="TASK")
@output_options
def show_task(task: str, mode: Mode = "text") -> None:
    """Show one task: its state, its attempts, and the end of what it wrote to standard error."""
    with connect() as client:
        document = client.task(*task_number(client, task))
    output.print_card(
        mode,
        document,
        document.task,
        [
            ("task", document.task),
            ("state", document.state),
            ("data", output.size(document.data_bytes)),
            ("result", output.size(document.result_bytes)),
            ("sha256", document.sha256 or "-"),
        ],
    )
    if mode != "text" or not document.attempts:
        return
    output.write("\n" + output.table(document.attempts, ATTEMPT_COLUMNS))
    said = document.attempts[-1].stderr_tail
    if said:
        heading = _heading(document.attempts[-1])
        output.write(f"\n{heading}:\n{output.clean(said).rstrip()}\n")


class LogDocument(msgspec.Struct):
    """`dctl logs --json`. `attempt` counts from 1; `whole` false: there may have been more before it."""

    task: str
    attempt: int
    stderr: str
    encoding: str
    whole: bool


@click.command(
    epilog="\b\nExamples:\n  dctl logs 42.7\n  dctl logs last.0 | less\n  dctl logs 42.7 --json | jq -r .stderr"
)
@click.argument("task", metavar="TASK")
@output_options
def logs(task: str, mode: Mode = "text") -> int:
    """Print what the last attempt of a task that ended wrote to standard error, byte by byte.

    Its last 64 KiB are kept; a message says when there may have been more. Exit code 1 if no attempt has ended yet.
    """
    with connect() as client:
        job, index = task_number(client, task)
        found = client.stderr(job, index)
        document = client.task(job, index) if mode == "text" or found is None else None
    if found is None:
        assert document is not None
        message(
            f"task {document.task} is {document.state}, and no attempt of it has ended; why: dctl explain {document.task}"
        )
        return 1
    attempt, said = found
    whole = len(said) < STDERR_TAIL_BYTES
    if mode == "json":
        text, encoding = output.as_text(said)
        output.print_json(LogDocument(task_text(job, index), attempt, text, encoding, whole))
    elif mode == "quiet":
        output.write(f"{task_text(job, index)}\n")
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(said)
        if said and not said.endswith(b"\n") and sys.stdout.isatty():
            sys.stdout.buffer.write(b"\n")
        sys.stdout.buffer.flush()
        if not whole:
            message(f"these are the last {STDERR_TAIL_BYTES // 1024} KiB; what came before is not kept")
        if document is not None and len(document.attempts) > attempt:
            message(f"this was attempt {attempt}; another one runs now")
    return 0


@click.command(epilog="\b\nExamples:\n  dctl explain 42.7\n  dctl explain last.0 --json | jq -r .cause")
@click.argument("task", metavar="TASK")
@output_options
def explain(task: str, mode: Mode = "text") -> None:
    """Say why a task is where it is: what it waits for, where it runs, or why it ended as it did."""
    with connect() as client:
        job, index = task_number(client, task)
        document = client.explain(job, index)
        if document.cause == ENDED_CAUSE:
            document = ended(client.task(job, index))
    if mode == "json":
        output.print_json(document)
    elif mode == "quiet":
        output.write(f"{document.task}\n")
    else:
        output.write(output.clean(f"task {document.task}, {document.state}: {document.text}") + "\n")


def ended(task: TaskDocument) -> ExplainDocument:
    """Why a task ended as it did: its last attempt, in words."""
    attempt = _last(task)
    if attempt is None or attempt.reason is None:
        # It was cancelled or passed over before any worker had it, or is being retried since we asked.
        cause = {"cancelled": "cancelled", "skipped": "skipped"}.get(task.state, task.state)
        return ExplainDocument(task.task, task.state, cause, "no attempt was ever made")
    words = f"attempt {len(task.attempts)} on worker {attempt.worker}: {_in_words(attempt)}"
    if task.state == "cancelled" and attempt.reason != "cancelled":
        words = f"it was cancelled before its next attempt; {words}"
    said = attempt.stderr_tail.rstrip()
    if said and attempt.reason == "not_started":
        words = f"{words}. {said}"
    elif said and attempt.reason != "done":
        last = said.rpartition("\n")[2].strip()[:LAST_LINE_CHARS]
        words = f"{words}. Its last words: {last!r}; all of them: dctl logs {task.task}"
    return ExplainDocument(task.task, task.state, attempt.reason, words)


def _in_words(attempt: AttemptDocument) -> str:
    if attempt.reason == "exit":
        return f"its program ended with exit code {attempt.exit_code}"
    if attempt.reason == "signal":
        return f"its program was ended by signal {attempt.signal}{_signal_name(attempt.signal)}"
    return WORDS.get(attempt.reason or "", attempt.reason or "")


def _signal_name(number: int | None) -> str:
    try:
        return f" ({signal.Signals(number or 0).name})"
    except ValueError:
        return ""


def _heading(attempt: AttemptDocument) -> str:
    return "why it was not started" if attempt.reason == "not_started" else "standard error of the last attempt"
