"""The cluster in figures."""

import click

from dctl import output
from dctl.options import connect, output_options
from dctl.output import Mode


@click.command(epilog="\b\nExamples:\n  dctl status\n  dctl status --json | jq .tasks.queued")
@output_options
def status(mode: Mode = "text") -> None:
    """Show the cluster: its workers, its tasks by state and its pace. With -q its id."""
    with connect() as client:
        document = client.status()
    tasks = document.tasks
    output.print_card(
        mode,
        document,
        document.cluster,
        [
            ("cluster", f"{document.name} ({document.cluster})"),
            ("version", f"{document.version}, epoch {document.epoch}, up {output.span(document.uptime_s)}"),
            ("workers", f"{document.workers} with {document.slots} slots"),
            ("tasks", "  ".join(f"{getattr(tasks, name)} {name}" for name in tasks.__struct_fields__)),
            ("pace", f"{document.tasks_per_s:.1f} tasks/s"),
        ],
    )
