"""Jobs: list, show, wait, retry, cancel."""

import sys

import click

from dctl import output
from dctl.options import DurationType, connect, job_number, output_options, task_number
from dctl.output import Column, Mode, message
from dctl.progress import ended_count, exit_code, going_on, wait_for
from districomp.client import ENDED_JOB_STATES, Client
from districomp.documents import JobDocument
from districomp.errors import UsageError

COLUMNS = (
    Column("JOB", lambda job: str(job.job), right=True),
    Column("NAME", lambda job: job.name or "-", shrinks=True),
    Column("DEFINITION", lambda job: job.definition, shrinks=True),
    Column("STATE", lambda job: job.state),
    Column("ENDED", lambda job: f"{ended_count(job)}/{job.tasks}", right=True),
    Column("FAILED", lambda job: str(job.counts.failed), right=True),
    Column("SUBMITTED", lambda job: output.ago(job.submitted), shrinks=True),
)


@click.group()
def job() -> None:
    """List, show, retry and cancel jobs."""


@job.command(
    "list",
    epilog="\b\nExamples:\n  dctl job list\n  dctl job list --json | jq '.[] | select(.state == \"failed\").job'",
)
@output_options
def list_jobs(mode: Mode = "text") -> None:
    """List all jobs, the oldest first."""
    with connect() as client:
        output.print_list(mode, client.jobs(), lambda document: str(document.job), COLUMNS)


@job.command("show", epilog="\b\nExamples:\n  dctl job show 42\n  dctl job show last --json")
@click.argument("job", metavar="JOB")
@output_options
def show_job(job: str, mode: Mode = "text") -> None:
    """Show one job: its state, and its tasks by state."""
    with connect() as client:
        document = client.document(job_number(client, job))
    counts = document.counts
    eta = [("ETA", output.span(document.eta_s))] if document.eta_s is not None else []
    output.print_card(
        mode,
        document,
        str(document.job),
        [
            ("job", str(document.job)),
            ("name", document.name or "-"),
            ("definition", document.definition),
            ("state", document.state),
            ("tasks", str(document.tasks)),
            ("by state", "  ".join(f"{getattr(counts, name)} {name}" for name in counts.__struct_fields__)),
            ("submitted", f"{document.submitted} ({output.ago(document.submitted)})"),
            ("started", document.started or "-"),
            ("ended", document.ended or "-"),
            ("took", output.between(document.started, document.ended)),
            *eta,
        ],
    )


@click.command(epilog="\b\nExamples:\n  dctl wait 42\n  dctl wait 42 43 --progress --timeout 10min")
@click.argument("jobs", metavar="JOB...", nargs=-1, required=True)
@click.option("--progress", is_flag=True, help="Show a progress bar (plain lines where there is no terminal).")
@click.option("--timeout", type=DurationType(), help="Give up waiting after this time; the jobs go on (exit code 124).")
@output_options
def wait(jobs: tuple[str, ...], progress: bool, timeout: float | None, mode: Mode = "text") -> int:
    """Wait until jobs have ended. Exit code 0 if every task is done, else 1."""
    with connect() as client:
        numbers = [job_number(client, text) for text in dict.fromkeys(jobs)]
        with going_on(numbers):
            documents = wait_for(client, numbers, timeout, progress=progress)
    if mode == "json":
        output.print_json(documents)
    elif mode == "quiet":
        output.write("".join(f"{document.job}\n" for document in documents))
    return exit_code(documents)


CANCEL_HELP = "\b\nExamples:\n  dctl cancel 42\n  dctl cancel 42.7 42.8 --yes\n  dctl cancel last"


@click.command(epilog=CANCEL_HELP)
@click.argument("targets", metavar="JOB|TASK...", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask; needed where there is no terminal to ask on.")
@output_options
def cancel(targets: tuple[str, ...], yes: bool, mode: Mode = "text") -> None:
    """Cancel jobs, or single tasks of them. What runs is ended; what is done stays done."""
    with connect() as client:
        chosen = _chosen(client, targets)
        before = {number: client.document(number) for number in chosen}
        if not yes:
            _confirm(before, chosen)
        documents = [client.cancel(number, indexes) for number, indexes in chosen.items()]
    if mode == "json":
        output.print_json(documents)
    elif mode == "quiet":
        output.write("".join(f"{document.job}\n" for document in documents))
    else:
        for document in documents:
            message(_told(before[document.job], document))


@job.command("cancel", epilog=CANCEL_HELP.replace("dctl cancel", "dctl job cancel"))
@click.argument("targets", metavar="JOB|TASK...", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask; needed where there is no terminal to ask on.")
@output_options
@click.pass_context
def cancel_job(ctx: click.Context, targets: tuple[str, ...], yes: bool, mode: Mode = "text") -> None:
    """Cancel jobs, or single tasks of them: the same as `dctl cancel`."""
    ctx.invoke(cancel, targets=targets, yes=yes, mode=mode)


@job.command(
    "retry", epilog="\b\nExamples:\n  dctl job retry 42\n  dctl job retry last --failed\n  dctl wait last --progress"
)
@click.argument("job", metavar="JOB")
@click.option("--failed", is_flag=True, help="Only the failed tasks, not the cancelled and the skipped ones.")
@output_options
def retry_job(job: str, failed: bool, mode: Mode = "text") -> None:
    """Queue again the tasks of a job that failed, were cancelled or were skipped. What is done stays done."""
    with connect() as client:
        number = job_number(client, job)
        before = client.document(number).counts
        document = client.retry(number, failed_only=failed)
    if mode == "json":
        output.print_json(document)
    elif mode == "quiet":
        output.write(f"{document.job}\n")
    else:
        count = before.failed if failed else before.failed + before.cancelled + before.skipped
        tasks = f"{count} task{'' if count == 1 else 's'}"
        none = "has no failed task" if failed else "has no failed, cancelled or skipped task"
        message(
            f"job {number}: {tasks} queued again; wait: dctl wait {number} --progress"
            if count
            else f"job {number} {none}, so nothing was queued again"
        )


def _chosen(client: Client, targets: tuple[str, ...]) -> dict[int, list[int]]:
    """Jobs with the indexes to be cancelled, none for the whole."""
    whole = [job_number(client, text) for text in targets if "." not in text]
    chosen: dict[int, list[int]] = {number: [] for number in whole}
    for text in targets:
        if "." in text:
            number, index = task_number(client, text)
            if number not in whole:
                chosen.setdefault(number, []).append(index)
    return chosen


def _confirm(before: dict[int, JobDocument], chosen: dict[int, list[int]]) -> None:
    """Ask on a terminal; elsewhere --yes is needed."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError("cancelling needs --yes where there is no terminal to ask on; nothing was cancelled")
    parts = []
    for number, indexes in chosen.items():
        document = before[number]
        if indexes:
            parts.append(f"{len(indexes)} of job {number}'s {document.tasks} tasks")
        else:
            parts.append(f"job {number} ({document.tasks - ended_count(document)} of {document.tasks} tasks not ended)")
    if not click.confirm(f"Cancel {', '.join(parts)}?", err=True):
        message("nothing was cancelled")
        raise click.exceptions.Exit(1)


def _told(before: JobDocument, after: JobDocument) -> str:
    if before.state in ENDED_JOB_STATES:
        return f"job {after.job} had ended before ({after.state})"
    count = after.counts.cancelled - before.counts.cancelled
    return f"job {after.job}: {count} task{'' if count == 1 else 's'} cancelled, now {after.state}"
