"""Workers: list, approve, revoke, remove."""

import click

from dctl import output
from dctl.options import ask_first, connect, output_options, yes_option
from dctl.output import Column, Mode, message
from districomp.client import Client
from districomp.documents import WorkerDocument
from districomp.errors import NotAllowedError, UsageError

COLUMNS = (
    Column("NAME", lambda worker: worker.name, shrinks=True),
    Column("STATE", lambda worker: worker.state),
    Column("RUNNING", lambda worker: f"{worker.running}/{worker.slots}", right=True),
    Column("ARCH", lambda worker: worker.arch or "-", shrinks=True, spare=3),
    Column("MEMORY", lambda worker: output.size(worker.memory_bytes or None), right=True, spare=2),
    Column("ADDRESS", lambda worker: worker.address or "-", shrinks=True, spare=4),
    Column("SEEN", lambda worker: f"{output.span(worker.last_seen_s)} ago", right=True, spare=1),
    Column("WORKER", lambda worker: worker.worker, shrinks=True, spare=5),
)
WAITING = (
    Column("NAME", lambda worker: worker.name, shrinks=True),
    Column("STATE", lambda worker: worker.state),
    # Not cut short: they are there to be compared.
    Column("WORDS", lambda worker: worker.words or "-"),
    Column("ADDRESS", lambda worker: worker.address or "-", shrinks=True, spare=2),
    Column("WAITS", lambda worker: output.span(worker.last_seen_s), right=True, spare=1),
)


@click.group()
def worker() -> None:
    """List workers; approve, revoke and remove them."""


@worker.command("list", epilog="\b\nExamples:\n  dctl worker list\n  dctl worker list --json | jq '[.[].slots] | add'")
@output_options
def list_workers(mode: Mode = "text") -> None:
    """List the workers, with started attempts and slots as RUNNING, and the words of those that are pending."""
    with connect() as client:
        workers = client.workers()
    waiting = [document for document in workers if document.state == "pending"]
    if mode != "text" or not waiting:
        output.print_list(mode, workers, lambda document: document.worker, COLUMNS)
        return
    if len(workers) > len(waiting):
        output.write(output.table([one for one in workers if one.state != "pending"], COLUMNS) + "\n")
    output.write(output.table(waiting, WAITING))
    message("if a machine itself shows the same words, let it in: dctl worker approve NAME")


@worker.command(
    "approve",
    epilog="\b\nExamples:\n  dctl worker approve room-12-pc-3\n"
    "  dctl worker approve room-12-pc-3 --words babab-lusab-dofid",
)
@click.argument("name", metavar="NAME")
@click.option("--words", metavar="W", help="The words that the machine itself shows; then nothing is asked.")
@yes_option
@output_options
def approve_worker(name: str, words: str | None, yes: bool, mode: Mode = "text") -> None:
    """Let a pending worker in, by name or id, after its words were compared.

    The machine shows three words on its console and in its log. If they are those shown here, nobody stands in between.
    """
    with connect() as client:
        found = _pending(client, name, words)
        if words is None:
            output.write("" if mode != "text" else _words_card(found))
            ask_first(yes, "approving without --words W", "Does the machine itself show the same words?")
        document = client.admin.admit(found.worker or found.name, found.words or "")
    if mode == "text":
        message(f"{document.name} is let in")
    else:
        output.print_card(mode, document, document.worker, [])


@worker.command(
    "revoke", epilog="\b\nExamples:\n  dctl worker revoke room-12-pc-3\n  dctl worker revoke a41b6da6b3a68b56 --yes"
)
@click.argument("name", metavar="NAME")
@yes_option
@output_options
def revoke_worker(name: str, yes: bool, mode: Mode = "text") -> None:
    """Refuse a worker (name or id) for good, at once: it is cut off, and its tasks go to others."""
    _refuse(name, yes, mode, remove=False)


@worker.command(
    "remove", epilog="\b\nExamples:\n  dctl worker remove room-12-pc-3\n  dctl worker remove a41b6da6b3a68b56 --yes"
)
@click.argument("name", metavar="NAME")
@yes_option
@output_options
def remove_worker(name: str, yes: bool, mode: Mode = "text") -> None:
    """Revoke a worker (name or id), and take it off the list."""
    _refuse(name, yes, mode, remove=True)


def _refuse(name: str, yes: bool, mode: Mode, *, remove: bool) -> None:
    verb = "remove" if remove else "revoke"
    with connect() as client:
        meant = [one for one in client.workers() if name in (one.name, one.worker)]
        running = sum(one.running for one in meant)
        what = f" It runs {running} task{'' if running == 1 else 's'}, which go to others." if running else ""
        doing = f"{verb[:-1]}ing"
        ask_first(
            yes, doing, f"{verb.capitalize()} {_named(meant, name)}? It can come back only with a new token.{what}"
        )
        document = client.admin.revoke(name, remove=remove)
    if mode == "text":
        message(f"{_named([document], name)} is {verb}d, and cut off if it was connected")
    else:
        output.print_card(mode, document, document.worker, [])


def _named(found: list[WorkerDocument], name: str) -> str:
    return f"{found[0].name} ({found[0].worker})" if len(found) == 1 else name


def _pending(client: Client, name: str, words: str | None) -> WorkerDocument:
    """The pending worker that is meant. UsageError if there is none or several; NotAllowedError if its words are others."""
    waiting = [one for one in client.workers() if one.state == "pending"]
    found = [one for one in waiting if name in (one.name, one.worker)]
    if not found:
        names = ", ".join(sorted({one.name for one in waiting})[:10])
        hint = f"those that are: {names}" if names else "none at all is"
        raise UsageError(f"no worker {name!r} is pending, {hint}; see: dctl worker list")
    if words is None:
        if len(found) > 1:
            raise UsageError(
                f"{len(found)} pending workers are called {name!r}; say which: --words W, as it shows them"
            )
        return found[0]
    spoken = "-".join(words.lower().replace("-", " ").split())
    for one in found:
        if one.words == spoken:
            return one
    raise NotAllowedError(
        f"these are not the words of {name!r}; if the machine itself shows {spoken!r:.60}, somebody stands in between: "
        "do not let it in"
    )


def _words_card(document: WorkerDocument) -> str:
    return output.card(
        [
            ("worker", f"{document.name} ({document.worker or 'new'})"),
            ("address", document.address),
            ("waits for", output.span(document.last_seen_s)),
            ("words", document.words or ""),
        ]
    )
