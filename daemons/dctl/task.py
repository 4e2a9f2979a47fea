"""Tasks: list, show."""

import click

from dctl import output
from dctl.options import connect, job_number, output_options, task_number
from dctl.output import Column, Mode
from districomp.documents import AttemptDocument, TaskDocument
from districomp.model import STATE_NAMES


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


@task.command("list", epilog="\b\nExamples:\n  dctl task list 42\n  dctl task list last --state failed -q")
@click.argument("job", metavar="JOB")
@click.option("--state", type=click.Choice(STATE_NAMES), default=None, help="Only tasks in this state.")
@output_options
def list_tasks(job: str, state: str | None, mode: Mode = "text") -> None:
    """List a job's tasks, in task order."""
    with connect() as client:
        tasks = client.tasks(job_number(client, job), state or "")
    output.print_list(mode, tasks, lambda document: document.task, TASK_COLUMNS)


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
        output.write(f"\nstandard error of the last attempt:\n{output.clean(said).rstrip()}\n")
