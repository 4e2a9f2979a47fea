"""The open window: for an installation day, every pending worker is let in."""

import click

from dctl import output
from dctl.options import DurationType, connect, output_options
from dctl.output import Mode, message


@click.group()
def enrol() -> None:
    """Let every pending worker in for a while."""


@enrol.command("open", epilog="\b\nExamples:\n  dctl enrol open --for 10m\n  dctl enrol open --for 0s    (closes it)")
@click.option("--for", "duration", type=DurationType(), required=True, help="For how long: 10m, 2h; 0s closes it.")
@output_options
def open_enrolment(duration: float, mode: Mode = "text") -> None:
    """Let in every worker that is pending, and each that becomes so, without comparing words.

    A worker still believes only the cluster whose id it was given. With -q the time of the end is printed.
    """
    with connect() as client:
        document = client.admin.open_enrolment(duration)
    if mode != "text":
        output.print_card(mode, document, document.open_until or "", [])
    elif document.open_until is None:
        message("enrolment is closed: pending workers wait for: dctl worker approve NAME")
    else:
        message(
            f"enrolment is open until {output.moment(document.open_until)} ({output.until(document.open_until)}): "
            "whoever knows the cluster's id gets in as a worker. Close it before: dctl enrol open --for 0s"
        )
