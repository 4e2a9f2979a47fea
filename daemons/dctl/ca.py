"""The cluster's authority: its rotation."""

import click

from dctl import output
from dctl.options import DurationType, ask_first, connect, output_options, yes_option
from dctl.output import Mode, message

OVERLAP_S = 30 * 86400.0


@click.group("ca")
def authority() -> None:
    """Give the cluster a new authority."""


@authority.command("rotate", epilog="\b\nExamples:\n  dctl ca rotate\n  dctl ca rotate --overlap 90d")
@click.option(
    "--overlap",
    type=DurationType(),
    default=OVERLAP_S,
    help="How long tokens and images of the former one work on; 0s ends it at once.  [default: 30 d]",
)
@yes_option
@output_options
def rotate(overlap: float, yes: bool, mode: Mode = "text") -> None:
    """Give the cluster a new authority, and so a new id. Nothing is interrupted.

    Who is connected gets a certificate of the new one at once, others when they connect next. What was made with the former
    one, tokens and images too, works until the overlap ends. Without an overlap it asks first. With -q the new id is printed.
    """
    ask_first(
        yes or overlap > 0,
        "a rotation without an overlap",
        "Without an overlap everybody on other machines is cut off and has to join again. Go on?",
    )
    with connect() as client:
        document = client.admin.rotate_authority(overlap)
    if mode != "text":
        output.print_card(mode, document, document.cluster, [])
        return
    output.write(output.card([("cluster", document.cluster), *(_former(*one) for one in document.former.items())]))
    if document.former:
        last = max(document.former.values())
        message(
            f"the new authority counts from now on; tokens and images of the former work until {output.moment(last)} "
            f"({output.until(last)}). Make new ones before: dctl token create worker"
        )
    else:
        message("the new authority alone counts from now on: everybody on other machines has to join again")


def _former(cluster: str, until: str) -> tuple[str, str]:
    return "former", f"{cluster} until {output.moment(until)}"
