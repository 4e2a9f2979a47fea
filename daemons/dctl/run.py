"""Running a command on the cluster: the definition `shell`, and what `{}` means."""

import shlex
from typing import Any, Final

import click

from dctl.options import DurationType, RangeType, connect, output_options
from dctl.output import Mode
from dctl.results import chosen_form
from dctl.submit import After, Inputs, finish, submitted
from districomp.errors import UsageError
from districomp.placeholders import escape_argument, run_template

DEFINITION: Final = "shell"
SEPARATOR: Final = ":::"

EPILOG = """\b
Examples:
  dctl run sha256sum ::: a.txt b.txt            a task for each item
  dctl run --range 1..100 -- factor             the item goes where {} stands, else last
  dctl run --each-line urls.txt -- curl -s {}
  dctl run 'gzip -9 -c' ::: one                 a single argument is split into words
  dctl run -- sh -c 'echo $DISTRICOMP_ITEM | rev' sh {} ::: abc

\b
No shell is involved unless you name one. An item is also on standard input.
"""


@click.command(epilog=EPILOG, context_settings={"allow_interspersed_args": False})
@click.option("--each-line", metavar="F|-", help="A task for each line of F, or of standard input.")
@click.option("--range", "numbers", type=RangeType(), help="A task for each number from A to B, both included.")
@click.option("--name", default="", metavar="LABEL", help="A name for people.")
@click.option("--progress", is_flag=True, help="Show a progress bar, then the results.")
@click.option("--dir", "folder", metavar="D", help="Write each result to D/INDEX instead of printing it.")
@click.option("--sep", metavar="S", help="Put S after each result, instead of a line end where one is missing.")
@click.option("--timeout", type=DurationType(), help="Stop waiting after this time; the job goes on (exit code 124).")
@click.option("--max-fails", type=click.IntRange(1), metavar="N", help="At N failed tasks the rest is cancelled.")
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
    form = chosen_form(mode, sep, folder)
    with connect() as client:
        job = submitted(client, DEFINITION, None, params={"argv": argv}, name=name, max_fails=max_fails, **keywords)
        return finish(client, job, After(progress=progress, results=form, timeout=timeout))


def split_items(words: list[str]) -> tuple[list[str], list[str] | None]:
    """The command, and the items after `:::`; None without one."""
    if SEPARATOR not in words:
        return words, None
    place = words.index(SEPARATOR)
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
