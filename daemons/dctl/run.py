"""Running a command on the cluster: the definition `shell`, and what `{}` means."""

import shlex
from typing import Any, Final

import click
from msgspec.structs import replace

from dctl.options import DurationType, RangeType, connect, output_options
from dctl.output import Mode
from dctl.results import chosen_form
from dctl.submit import After, Inputs, finish, live, submitted
from districomp.errors import UsageError
from districomp.placeholders import escape_argument, run_template

DEFINITION: Final = "shell"
SEPARATOR: Final = ":::"
ELSEWHERE: Final = {
    "-a": "items from a file are --each-line F",
    "--arg-file": "items from a file are --each-line F",
    "-j": "each worker runs as many at once as it has slots: dworker --slots N",
    "--jobs": "each worker runs as many at once as it has slots: dworker --slots N",
    "-k": "results always come in the order of the items",
    "--keep-order": "results always come in the order of the items",
    "--halt": "to stop after failures give --max-fails N",
    "--bar": "a progress bar is --progress",
    "--eta": "a progress bar is --progress",
    "--results": "results go to files with --dir D",
    "--retries": "shell tries once; write a definition with `retries`: dctl def new",
    "--joblog": "what became of each task is: dctl task list last --json",
}
"""What GNU parallel calls otherwise than we do."""

EPILOG = """\b
Examples:
  dctl run sha256sum ::: a.txt b.txt            a task for each item
  dctl run --range 1..100 -- factor             the item goes where {} stands, else last
  dctl run --each-line urls.txt -- curl -s {}
  dctl run 'gzip -9 -c' ::: one                 a single argument is split into words
  dctl run -- sh -c 'echo "$1" | rev' sh {} ::: abc
  dctl run --dry-run 'convert {} {}.png' ::: *.jpg

\b
No shell is involved unless you name one. An item is also on standard input.
What the commands write to standard error is shown, and the exit code is 1 if one fails.
"""


class RunCommand(click.Command):
    """A command that tells users of GNU parallel what an option is called here."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            error.ctx = error.ctx or ctx
            hint = ELSEWHERE.get(error.option_name)
            if hint:
                raise click.UsageError(f"there is no option {error.option_name}; {hint}", ctx) from error
            raise


@click.command(cls=RunCommand, epilog=EPILOG, context_settings={"allow_interspersed_args": False})
@click.option("--each-line", metavar="F|-", help="A task for each line of F, or of standard input.")
@click.option("--range", "numbers", type=RangeType(), help="A task for each number from A to B, both included.")
@click.option("--name", default="", metavar="LABEL", help="A name for people.")
@click.option("--progress", is_flag=True, help="Show a progress bar, then the results.")
@click.option("--dir", "folder", metavar="D", help="Write each result to D/INDEX instead of printing it.")
@click.option("--sep", metavar="S", help="Put S after each result, instead of a line end where one is missing.")
@click.option("--timeout", type=DurationType(), help="Stop waiting after this time; the job goes on (exit code 124).")
@click.option("--max-fails", type=click.IntRange(1), metavar="N", help="At N failed tasks the rest is cancelled.")
@click.option("--dry-run", is_flag=True, help="Check everything, show three tasks as they would run, run nothing.")
@output_options
@click.argument("words", metavar="CMD [ARG...] [::: ITEM...]", nargs=-1, type=click.UNPROCESSED)
def run(
    *,
    words: tuple[str, ...],
    each_line: str | None,
    numbers: range | None,
    name: str,
    progress: bool,
    folder: str | None,
    sep: str | None,
    timeout: float | None,
    max_fails: int | None,
    dry_run: bool,
    mode: Mode = "text",
) -> int:
    """Run CMD once, or once for each item, on the cluster; print what it prints, in order.

    Options of dctl stand before CMD; the rest is the command's. {} is replaced by the item, and appended if absent.
    """
    if mode == "quiet":
        raise UsageError("-q prints ids only, and run prints results; leave it out, or use dctl submit shell")
    command, items = split_items(list(words))
    if items is not None and (each_line is not None or numbers is not None):
        raise UsageError("one submission has one form of input; give only one of --each-line, --range, ::: ITEM...")
    keywords: dict[str, Any] = Inputs(each_line=each_line, numbers=numbers).as_keywords()
    if items is not None:
        keywords = {"items": [item.encode("utf-8", "surrogateescape") for item in items]}
    argv = templated(command_words(command), has_items=bool(keywords))
    form = replace(chosen_form(mode, sep, folder), stderr=True)
    with connect() as client:
        if dry_run:
            from dctl.rehearsal import rehearse

            with live(client, DEFINITION):
                return rehearse(client, DEFINITION, {"argv": argv}, mode, **keywords)
        job = submitted(client, DEFINITION, None, params={"argv": argv}, name=name, max_fails=max_fails, **keywords)
        return finish(client, job, After(progress=progress, results=form, timeout=timeout))


def split_items(words: list[str]) -> tuple[list[str], list[str] | None]:
    """The command, and the items after `:::`; None without one."""
    if SEPARATOR not in words:
        if "::::" in words:
            raise UsageError(":::: is not known here; items from a file are --each-line F, before the command")
        return words, None
    place = words.index(SEPARATOR)
    if SEPARATOR in words[place + 1 :]:
        raise UsageError(
            "::: stands there twice, and one submission has one list of items; for each combination of several "
            "parameters write a definition and give it --matrix"
        )
    if place + 1 == len(words):
        raise UsageError("::: stands there without an item; name at least one after it")
    return words[:place], words[place + 1 :]


def command_words(command: list[str]) -> list[str]:
    """The words of a command; a single argument is split as a shell would, and nothing else is done to it."""
    if not command:
        raise UsageError("there is no command to run; for example: dctl run -- uname -a")
    if len(command) > 1:
        return command
    try:
        words = shlex.split(command[0])
    except ValueError as error:
        raise UsageError(f"the command {command[0]!r} cannot be split into words: {error}; check its quotes") from error
    if not words:
        raise UsageError("the command is empty; for example: dctl run -- uname -a")
    return words


def templated(words: list[str], *, has_items: bool) -> list[str]:
    """Words as the definition `shell` takes them. Without items `{}` is nothing special: find -exec wants it as it is."""
    return run_template(words, True) if has_items else [escape_argument(word) for word in words]
