"""Definitions: list, show."""

from difflib import get_close_matches

import click

from dctl import output
from dctl.options import connect, output_options
from dctl.output import Column, Mode
from districomp.errors import UsageError

VERSION_CHARS = 12

COLUMNS = (
    Column("NAME", lambda definition: definition.name),
    Column("RUNNER", lambda definition: definition.runner or "-"),
    Column("VERSION", lambda definition: definition.version[:VERSION_CHARS] or "-"),
    Column("DESCRIPTION", lambda definition: definition.description, shrinks=True),
    Column("PROBLEMS", lambda definition: str(len(definition.problems)) if definition.problems else "-", right=True),
)


@click.group("def")
def definition() -> None:
    """List and show definitions."""


@definition.command("list", epilog="\b\nExamples:\n  dctl def list\n  dctl def list -q")
@output_options
def list_definitions(mode: Mode = "text") -> None:
    """List what can be submitted; problems are of files that could not take their place."""
    with connect() as client:
        documents = client.definitions()
    output.print_list(mode, documents, lambda document: document.name, COLUMNS)
    if mode == "text":
        for document in documents:
            for problem in document.problems:
                output.message(problem)


@definition.command("show", epilog="\b\nExamples:\n  dctl def show render")
@click.argument("name")
@output_options
def show_definition(name: str, mode: Mode = "text") -> None:
    """Show one definition, where it comes from and what is wrong with its file."""
    with connect() as client:
        documents = {document.name: document for document in client.definitions()}
    if name not in documents:
        near = get_close_matches(name, documents, 1)
        hint = f"did you mean {near[0]!r}?" if near else "see: dctl def list"
        raise UsageError(f"there is no definition {name!r}; {hint}")
    document = documents[name]
    output.print_card(
        mode,
        document,
        name,
        [
            ("name", document.name),
            ("version", document.version),
            ("description", document.description or "-"),
            ("runner", document.runner),
            ("origin", document.origin),
            *(("problem", problem) for problem in document.problems),
        ],
    )
