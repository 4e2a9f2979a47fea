"""Definitions: list, show, write a new one, check files."""

from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Final

import click
import msgspec

from dctl import output
from dctl.options import connect, output_options
from dctl.output import Column, Mode
from districomp.config import Paths
from districomp.documents import DefinitionDocument, DefinitionShowDocument
from districomp.errors import ConfigError, RefusedError, UsageError
from districomp.taskdef import Definition, Limits, describe_param

VERSION_CHARS: Final = 12
PLAIN: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./+-=")

COLUMNS = (
    Column("NAME", lambda definition: definition.name),
    Column("RUNNER", lambda definition: definition.runner or "-"),
    Column("VERSION", lambda definition: definition.version[:VERSION_CHARS] or "-"),
    Column("DESCRIPTION", lambda definition: definition.description, shrinks=True),
    Column("PROBLEMS", lambda definition: str(len(definition.problems)) if definition.problems else "-", right=True),
)


class Finding(msgspec.Struct):
    """An entry of `dctl def check --json`. `line` and `column` count from 1; 0 is the file as a whole."""

    file: str
    line: int
    column: int
    key: str
    text: str
    warning: bool


@click.group("def")
def definition() -> None:
    """List, show, write and check definitions."""


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


@definition.command("show", epilog="\b\nExamples:\n  dctl def show render\n  dctl def show render --json")
@click.argument("name")
@output_options
def show_definition(name: str, mode: Mode = "text") -> None:
    """Show one definition as it would run: every key, where it comes from, what is wrong with its file."""
    with connect() as client:
        try:
            document = client.definition(name)
        except RefusedError as error:
            if error.code != "unknown_definition":
                raise
            raise unknown(name, client.definitions()) from error
    output.print_card(mode, document, name, _pairs(document))


@definition.command(
    "new",
    epilog="\b\nExamples:\n  dctl def new words\n  dctl def new words --runner stream --language c"
    "\n  dctl def new words --runner python --dir ~/.config/districomp/tasks.d",
)
@click.argument("name")
@click.option(
    "--runner",
    type=click.Choice(["command", "stream", "python"]),
    default="command",
    show_default=True,
    help="A process a task, a process for many tasks, or a Python function.",
)
@click.option(
    "--language",
    type=click.Choice(["python", "shell", "c"]),
    default="python",
    show_default=True,
    help="Of its program.",
)
@click.option("--dir", "folder", metavar="DIR", default=".", help="Where to write it; the current folder if not given.")
@output_options
def new_definition(name: str, runner: str, language: str, folder: str, mode: Mode = "text") -> None:
    """Write a small definition that works, with its program, to start from. Nothing is overwritten."""
    from dctl.definition_new import write_new

    written = write_new(name, runner, language, Path(folder), Paths.from_environment())
    files = [str(path) for path in written.files]
    if mode == "json":
        output.print_json({"name": name, "files": files, "next": written.commands})
        return
    output.write("".join(f"{file}\n" for file in files))
    if mode == "text":
        output.message("written; it counts words. Type next:\n" + "\n".join(f"  {line}" for line in written.commands))


@definition.command("check", epilog="\b\nExamples:\n  dctl def check words.yaml\n  dctl def check tasks.d/*.yaml")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@output_options
def check_definitions(files: tuple[str, ...], mode: Mode = "text") -> int:
    """Say everything that is wrong with definitions and their bundles; exit code 78 if anything is.

    Needs no coordinator, changes nothing. A warning is of a key that is right but not enforced yet.
    """
    from dctl.definition_check import check_file

    found: list[Finding] = []
    shown: list[str] = []
    bad: list[str] = []
    for file in files:
        problems, warnings = check_file(Path(file))
        bad += [file] if problems else []
        for problem in sorted([*problems, *warnings], key=lambda entry: (entry.line, entry.column)):
            is_warning = problem in warnings
            text = problem.text.removeprefix("warning: ") if is_warning else problem.text
            found.append(Finding(problem.file, problem.line, problem.column, problem.key, text, is_warning))
            shown.append(problem.render())
    if mode == "json":
        output.print_json(found)
    elif mode == "quiet":
        output.write("".join(f"{file}\n" for file in bad))
    else:
        output.write("".join(f"{output.clean(text)}\n" for text in shown))
        output.message(_verdict(found, len(files), len(bad)))
    return ConfigError.exit_code if bad else 0


def _verdict(found: list[Finding], files: int, bad: int) -> str:
    warnings = sum(finding.warning for finding in found)
    warned = f", {_count(warnings, 'warning')}" if warnings else ""
    if bad:
        where = "it" if files == 1 else f"{bad} of {files} files"
        return f"{_count(len(found) - warnings, 'problem')} in {where}{warned}"
    return ("the definition is good" if files == 1 else f"all {files} definitions are good") + warned


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def unknown(name: str, documents: list[DefinitionDocument]) -> UsageError:
    """Why a name is not live."""
    for document in documents:
        if document.name == name and document.problems:
            problems = "\n".join(document.problems)
            return UsageError(f"the definition {name!r} is not live, because its file is wrong; mend it:\n{problems}")
    near = get_close_matches(name, [document.name for document in documents], 1)
    hint = f"did you mean {near[0]!r}?" if near else "see: dctl def list"
    return UsageError(f"there is no definition {name!r}; {hint}")


# ---- a definition as lines of a card ----


def _pairs(document: DefinitionShowDocument) -> Iterator[tuple[str, str]]:
    whole = document.definition
    yield "name", document.name
    yield "version", document.version
    yield "description", whole.description or "-"
    yield "origin", document.origin
    yield whole.runner, whole.argv[0] if whole.runner == "python" else _flow(whole.argv)
    if whole.runner == "stream":
        yield "format", whole.format
    if whole.bundle:
        yield "bundle", whole.bundle[:VERSION_CHARS]
    yield from _params(whole)
    yield from (("env", f"{name}={value}") for name, value in whole.env.items())
    for key, names in (("inputs", whole.inputs), ("outputs", whole.outputs)):
        if names:
            yield key, _flow(names)
    yield "limits", _limits(whole.limits)
    retries = whole.retries
    never = f"; never after exit code {', '.join(map(str, retries.never_on))}" if retries.never_on else ""
    yield (
        "retries",
        f"{retries.max}, the first after {output.span(retries.backoff_s)}{never}" if retries.max else "none",
    )
    yield "rerun", whole.rerun
    yield "isolation", ", ".join(whole.isolation)
    if whole.network is not None:
        yield "network", "true" if whole.network else "false"
    requires = whole.requires
    for key, values in (("arch", requires.arch), ("programs", requires.programs), ("labels", requires.labels)):
        if values:
            yield "requires", f"{key} {(' or ' if key == 'arch' else ', ').join(values)}"
    if whole.priority:
        yield "priority", str(whole.priority)
    yield from (("problem", problem) for problem in document.problems)


def _params(whole: Definition) -> Iterator[tuple[str, str]]:
    for name, param in whole.params.items():
        default = "must be given" if param.default is None else f"default {msgspec.json.encode(param.default).decode()}"
        yield "param", f"{name}: {describe_param(param)}; {default}"


def _limits(limits: Limits) -> str:
    # What is unlimited is shown as - by each of these, and left out.
    said = {
        "time": output.span(limits.time_s),
        "data": output.size(limits.data_bytes),
        "result": output.size(limits.result_bytes),
        "memory": output.size(limits.memory_bytes),
        "disk": output.size(limits.disk_bytes),
        "processes": str(limits.processes or "-"),
        "running": str(limits.running or "-"),
        "cpus": str(limits.cpus) if limits.cpus != 1 else "-",
        "gpus": str(limits.gpus or "-"),
    }
    return ", ".join(f"{name} {text}" for name, text in said.items() if text != "-") or "none"


def _flow(words: list[str]) -> str:
    """A list as it stands in a definition's file."""
    shown = [word if word and set(word) <= PLAIN else msgspec.json.encode(word).decode() for word in words]
    return f"[{', '.join(shown)}]"
