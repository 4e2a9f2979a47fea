"""Workers: list."""

import click

from dctl import output
from dctl.options import connect, output_options
from dctl.output import Column, Mode

COLUMNS = (
    Column("NAME", lambda worker: worker.name, shrinks=True),
    Column("STATE", lambda worker: worker.state),
    Column("RUNNING", lambda worker: f"{worker.running}/{worker.slots}", right=True),
    Column("ARCH", lambda worker: worker.arch or "-", shrinks=True),
    Column("MEMORY", lambda worker: output.size(worker.memory_bytes) if worker.memory_bytes else "-", right=True),
    Column("ADDRESS", lambda worker: worker.address, shrinks=True),
    Column("SEEN", lambda worker: f"{output.span(worker.last_seen_s)} ago", right=True),
    Column("WORKER", lambda worker: worker.worker, shrinks=True),
)


@click.group()
def worker() -> None:
    """List workers."""


@worker.command("list", epilog="\b\nExamples:\n  dctl worker list\n  dctl worker list --json | jq '[.[].slots] | add'")
@output_options
def list_workers(mode: Mode = "text") -> None:
    """List the workers, with started attempts and slots as RUNNING."""
    with connect() as client:
        output.print_list(mode, client.workers(), lambda document: document.worker, COLUMNS)
