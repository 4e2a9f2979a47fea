"""`dctl`: the table of commands, and every error as one sentence with its exit code.

Owns how a command is found and how it ends. Each noun's file is imported when it is asked for, because
`dctl status` must not pay for the others.
"""

import importlib
import io
import os
import sys
from typing import Any, Final

import click

from districomp.errors import DistricompError, RefusedError

SHORTCUTS: Final = {
    "submit": ("dctl.submit", "submit", "Submit a job; print its number, or wait for its results."),
    "run": ("dctl.run", "run", "Run a command on the cluster and print its output."),
    "wait": ("dctl.job", "wait", "Wait until jobs have ended."),
    "results": ("dctl.results", "results", "Print or save the results of a job."),
    "cancel": ("dctl.job", "cancel", "Cancel jobs or single tasks."),
    "logs": ("dctl.task", "logs", "What a task wrote to standard error."),
    "explain": ("dctl.task", "explain", "Why a task is where it is."),
    "status": ("dctl.status", "status", "The cluster in figures."),
    "ui": ("dctl.ui", "ui", "Open the cluster's pages in a browser."),
    "join": ("dctl.join", "join", "Join a cluster with a token."),
}
NOUNS: Final = {
    "job": ("dctl.job", "job", "List, show, retry and cancel jobs."),
    "task": ("dctl.task", "task", "List and show tasks."),
    "worker": ("dctl.worker", "worker", "List workers; approve, revoke and remove them."),
    "def": ("dctl.definition", "definition", "List, show, write and check definitions."),
    "token": ("dctl.token", "token", "Make, list and revoke join tokens."),
    "enrol": ("dctl.enrol", "enrol", "Let every pending worker in for a while."),
    "ca": ("dctl.ca", "authority", "Give the cluster a new authority."),
}
COMMANDS: Final = SHORTCUTS | NOUNS

EXAMPLES: Final = """\b
Examples:
  dctl run sha256sum ::: a.txt b.txt        run a command for each item
  seq 100 | dctl run --each-line - -- factor
  dctl submit render --range 0..63 --progress
  dctl job list
"""


class _ReaderGoneError(Exception):
    """Whoever read our output has gone."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used; its help needs none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, the daily ones first."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _help = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a suggestion for a name that is nearly right."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, 1)
            hint = f"did you mean {near[0]!r}?" if near else "see: dctl --help"
            raise click.UsageError(f"there is no command {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """As click does, but it must not take a closed pipe for an exit code of ours."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _ReaderGoneError from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Two lists: shortcuts and nouns."""
        for title, table in (("Daily commands", SHORTCUTS), ("Nouns", NOUNS)):
            with formatter.section(title):
                formatter.write_dl([(name, entry[2]) for name, entry in table.items()])


def _version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        from districomp import __version__

        click.echo(f"dctl {__version__}")
        ctx.exit()


@click.group(cls=LazyGroup, epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
)
def cli() -> None:
    """Submit jobs to a districomp cluster, watch them and read their results.

    Exit codes: 0 done, 1 a task did not end done, 2 the command line or an input is wrong, 3 no coordinator
    reachable, 4 not allowed, 124 --timeout ran out, 130 interrupted (the job goes on in both cases).
    """


def run(arguments: list[str]) -> int:
    """Run one command; its exit code. What goes wrong is one sentence on standard error."""
    try:
        code: Any = cli.main(arguments, prog_name="dctl", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        return _complain(error.ctx, error.format_message(), 2, prefix=False)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        text = error.format_message().rstrip(".")
        see = "" if "see: " in text else f"{'' if text.endswith('?') else '.'} See: {_path(context)} --help"
        return _complain(context, f"{text}{see}", 2)
    except (click.Abort, KeyboardInterrupt):
        return _complain(None, "interrupted", 130)
    except RefusedError as error:
        # A coordinator that cannot write is no mistake of the command line.
        return _complain(None, str(error), 1 if error.code == "degraded" else 2)
    except DistricompError as error:
        return _complain(None, str(error), error.exit_code)
    except (_ReaderGoneError, BrokenPipeError):
        # Say nothing, as other tools do, and end as SIGPIPE would.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _complain(None, f"{where}{error.strerror or error}; check the path, its rights and the space left", 2)
    return code if isinstance(code, int) else 0


def main() -> None:
    """The entry point of `dctl`."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115 - for the life of the process
    if sys.stdout is None:
        sys.exit(_complain(None, "standard output is closed, so there is nowhere to print to; open it", 2))
    for stream in (sys.stdout, sys.stderr):
        # A locale without the characters of a job's name is no reason to fail.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    sys.exit(run(sys.argv[1:]))


def _path(context: click.Context | None) -> str:
    return context.command_path if context else "dctl"


def _complain(context: click.Context | None, text: str, code: int, *, prefix: bool = True) -> int:
    from dctl.output import clean

    click.echo(clean(f"{_path(context)}: {text}" if prefix else text), err=True)
    return code


if __name__ == "__main__":
    main()
