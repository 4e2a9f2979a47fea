"""Join tokens: create, list, revoke."""

import click

from dctl import output
from dctl.options import DurationType, ask_first, connect, output_options, yes_option
from dctl.output import Column, Mode, message

DAY_S = 86400.0
ROLES = ("worker", "submit", "read", "admin")
FOR_WHOM = {
    "worker": "lets machines in that run tasks",
    "submit": "lets people in who submit jobs and see their own",
    "read": "lets people in who may read everything and change nothing",
    "admin": "lets people in who may do everything",
}
COLUMNS = (
    Column("ID", lambda token: token.id),
    Column("ROLE", lambda token: token.role),
    Column("STATE", lambda token: token.state.replace("_", " ")),
    Column("USED", lambda token: str(token.used), right=True),
    Column("LEFT", lambda token: "any" if token.uses_left is None else str(token.uses_left), right=True),
    Column("EXPIRES", lambda token: output.until(token.expires)),
    Column("LABELS", lambda token: " ".join(token.labels) or "-", shrinks=True, spare=1),
)


@click.group()
def token() -> None:
    """Make, list and revoke join tokens."""


@token.command(
    "create",
    epilog="\b\nExamples:\n  dctl token create worker\n  dctl token create worker --expires 30d --label room-12\n"
    "  dctl token create submit --uses 1 --expires 1h",
)
@click.argument("role", metavar="ROLE", type=click.Choice(ROLES))
@click.option(
    "--expires", type=DurationType(), default=DAY_S, help="How long it can be used: 1h, 30d.  [default: 24 h]"
)
@click.option("--uses", type=click.IntRange(1), metavar="N", help="How often it can be used.  [default: any number]")
@click.option("--label", "labels", metavar="L", multiple=True, help="A label for workers that join by it; repeatable.")
@output_options
def create_token(role: str, expires: float, uses: int | None, labels: tuple[str, ...], mode: Mode = "text") -> None:
    """Make a token for ROLE: worker, submit, read or admin. It is shown this once.

    Whoever has it can join by `dctl join`, so hand it on as you would a password. With -q it is all that is printed.
    """
    with connect() as client:
        document = client.admin.create_token(role, expires, uses, labels)
    if mode == "json":
        output.print_json(document)
        return
    output.write(f"{document.token}\n")
    if mode == "text":
        times = "any number of times" if uses is None else "once" if uses == 1 else f"{uses} times"
        message(
            f"it {FOR_WHOM[role]}; good for {output.span(expires)}, {times}\n"
            f"      on the other machine: dctl join;  to take it back: dctl token revoke {document.id}"
        )


@token.command("list", epilog="\b\nExamples:\n  dctl token list\n  dctl token list --json | jq '.[].state'")
@output_options
def list_tokens(mode: Mode = "text") -> None:
    """List the tokens; the coordinator does not keep their secrets."""
    with connect() as client:
        output.print_list(mode, client.admin.tokens(), lambda document: document.id, COLUMNS)


@token.command("revoke", epilog="\b\nExamples:\n  dctl token revoke 3f9a1c07\n  dctl token revoke 3f9a1c07 --yes")
@click.argument("identifier", metavar="ID")
@yes_option
@output_options
def revoke_token(identifier: str, yes: bool, mode: Mode = "text") -> None:
    """End a token, and cut off everybody who joined by it."""
    ask_first(yes, "revoking", f"Revoke the token {identifier}, and cut off everybody who joined by it?")
    with connect() as client:
        document = client.admin.revoke_token(identifier)
    if mode == "text":
        message(f"the token {document.id} ({document.role}) is revoked; it had been used {_times(document.used)}")
    else:
        output.print_card(mode, document, document.id, [])


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
