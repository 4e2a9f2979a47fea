"""`--dry-run`: check a submission as the coordinator will, and show some of its tasks as they would run.

Owns what is shown. The rules are the shared ones (`taskdef`, `arguments`); nothing is submitted or uploaded,
but all of the input is read, so that a bad item shows now.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from shlex import join
from typing import IO, Any, Final

import msgspec

from dctl import output
from dctl.output import Mode, message
from districomp.arguments import Arguments, ItemError, ItemRules, item_text
from districomp.client import Client
from districomp.client_items import GivenItem, combinations, cut, given_items, start_and_step
from districomp.documents import DefinitionShowDocument
from districomp.errors import UsageError
from districomp.model import Blob, Item, item_content, payload_size
from districomp.taskdef import Definition, check_matrix, check_params, matrix_params

SHOWN: Final = 3
ITEM_BYTES_MAX: Final = 4096
"""A longer item has no DISTRICOMP_ITEM."""
WORD_CHARS_MAX: Final = 300


class TaskShown(msgspec.Struct):
    """A task as it would run. `argv` of the runner `python` is its function."""

    index: int
    argv: list[str]
    input_bytes: int
    environment: dict[str, str]
    params: dict[str, Any]


class Rehearsal(msgspec.Struct):
    """What `dctl submit --dry-run --json` prints."""

    definition: str
    version: str
    runner: str
    tasks: int
    shown: list[TaskShown]


def rehearse(client: Client, name: str, params: Mapping[str, Any], mode: Mode, **form: Any) -> int:
    """Check and show a submission of the definition `name`; `form` is as for `Client.submit`. The exit code."""
    document = client.definition(name)
    matrix, numbers = form.pop("matrix", None), form.pop("range", None)
    if matrix is not None:
        rehearsal = _with_matrix(document, params, matrix)
    else:
        checked = check_params(document.definition, params)
        if numbers is not None:
            rehearsal = _with_numbers(document, checked, numbers)
        else:
            given = given_items(form.get("data"), form.get("items"), form.get("files"))
            rehearsal = _with_items(document, checked, given)
    _print(rehearsal, mode)
    return 0


def _with_matrix(
    document: DefinitionShowDocument, params: Mapping[str, Any], given: Mapping[str, Sequence[Any]]
) -> Rehearsal:
    definition = document.definition
    fixed, matrix = check_matrix(definition, params, combinations(given))
    ItemRules(definition, fixed | matrix_params(matrix, 0)).check_input(False)
    count = prod(len(values) for _, values in matrix)
    shown = [_task(definition, fixed | matrix_params(matrix, index), None, index) for index in _some_of(count)]
    return _rehearsal(document, count, shown)


def _with_numbers(document: DefinitionShowDocument, params: Mapping[str, Any], numbers: range) -> Rehearsal:
    start, step = start_and_step(numbers)
    shown = [
        _task(document.definition, params, str(start + index * step).encode(), index)
        for index in _some_of(len(numbers))
    ]
    return _rehearsal(document, len(numbers), shown)


def _with_items(
    document: DefinitionShowDocument, params: Mapping[str, Any], given: Iterable[GivenItem] | None
) -> Rehearsal:
    """Read all items, check each, and keep the first ones and the last."""
    definition = document.definition
    rules = ItemRules(definition, params)
    if given is None:
        rules.check_input(False)
        return _rehearsal(document, 1, [_task(definition, params, None, 0)])
    count = 0
    first: list[Item] = []
    last: Item = b""
    for batch in cut(given, _measured):
        for item in batch:
            rules.check(item, count)
            if count < SHOWN - 1:
                first.append(item)
            last = item
            count += 1
    if not count:
        raise UsageError("nothing to submit: the input is empty, and a job needs at least one item")
    chosen = dict(enumerate(first)) | {count - 1: last}
    return _rehearsal(document, count, [_task(definition, params, item, index) for index, item in chosen.items()])


def _rehearsal(document: DefinitionShowDocument, count: int, shown: list[TaskShown]) -> Rehearsal:
    return Rehearsal(document.name, document.version, document.definition.runner, count, shown)


def _some_of(count: int) -> list[int]:
    """The first tasks and the last: at the ends of an input is where mistakes are."""
    return sorted({*range(min(count, SHOWN - 1)), count - 1})


def _measured(file: IO[bytes]) -> Blob:
    """Stands for a large payload; only its size matters here."""
    start = file.tell()
    return Blob(b"", file.seek(0, io.SEEK_END) - start)


def _task(definition: Definition, params: Mapping[str, Any], item: Item | None, index: int) -> TaskShown:
    text = _text(item)
    argv = definition.argv
    if definition.runner != "python":
        # What is too large to be sent along is read on the worker.
        argv = Arguments(definition, params).argv("(the item)" if text is None and item is not None else text, index)
    size = 0 if item is None else payload_size(item_content(item))
    return TaskShown(index, argv, size, _environment(definition, text, index), dict(params))


def _text(item: Item | None) -> str | None:
    """The text of an item, if it has one that is known here."""
    try:
        return None if item is None else item_text(item)
    except ItemError:
        return None


def _environment(definition: Definition, text: str | None, index: int) -> dict[str, str]:
    """What the task finds beside PATH, LANG, HOME and TMPDIR, which are the worker's and the task's folder."""
    environment = dict(definition.env)
    if definition.runner == "command":
        environment |= {
            "DISTRICOMP_TASK": f"JOB.{index}",
            "DISTRICOMP_JOB": "JOB",
            "DISTRICOMP_INDEX": str(index),
            "DISTRICOMP_ATTEMPT": "1",
        }
        if text is not None and len(text.encode("utf-8", "surrogateescape")) <= ITEM_BYTES_MAX:
            environment["DISTRICOMP_ITEM"] = text
    return environment


def _print(rehearsal: Rehearsal, mode: Mode) -> None:
    if mode == "json":
        output.print_json(rehearsal)
        return
    if mode == "text":
        for task in rehearsal.shown:
            output.write(_words(task))
    tasks = f"{rehearsal.tasks:,} task{'' if rehearsal.tasks == 1 else 's'}"
    what = f"{rehearsal.definition} ({rehearsal.runner}, version {rehearsal.version[:12]})"
    message(f"all is well: {tasks} of {what}; nothing was submitted")


def _words(task: TaskShown) -> str:
    command = join(word if len(word) <= WORD_CHARS_MAX else word[:WORD_CHARS_MAX] + "..." for word in task.argv)
    lines = [f"task {task.index}  {command}", f"    input: {output.size(task.input_bytes)}"]
    if task.params:
        lines.append(
            "    params: " + ", ".join(f"{name}={value!r}"[:WORD_CHARS_MAX] for name, value in task.params.items())
        )
    lines += [f"    {name}={value[:WORD_CHARS_MAX]}" for name, value in task.environment.items()]
    return output.clean("\n".join(line.replace("\n", "\\n") for line in lines)) + "\n"
