"""A task's arguments, and what its item must be for them. Pure.

Owns how params and an item become arguments, and the rules that a definition sets to items. Does not
read definitions (`taskfile`) nor type params (`taskdef`), and starts no program.
"""

from collections.abc import Mapping
from typing import Any

from districomp.errors import UsageError
from districomp.model import Blob, File, Item, item_content, payload_size
from districomp.placeholders import ARGUMENT_BYTES_MAX, TASK_PLACES, Place, split_argument
from districomp.taskdef import Definition


class ItemError(UsageError):
    """An item cannot be a task's of this definition; `code` is what a Refused message carries."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Arguments:
    """A definition's arguments with one job's params in place; only `{item}` and `{index}` are left to fill in.

    Made once a job; `argv` costs about a microsecond. Values are put in side by side and never looked
    into again: an item or a param that contains `{item}` stays as it is.
    """

    __slots__ = ("_fixed", "_varying", "item_bytes_max", "uses_index", "uses_item")

    def __init__(self, definition: Definition, params: Mapping[str, Any]) -> None:
        self._fixed: list[str] = []
        # Position and parts of each argument that differs by task; 0 stands for the item, 1 for the index.
        self._varying: list[tuple[int, list[str | int]]] = []
        self.uses_item = self.uses_index = False
        self.item_bytes_max = ARGUMENT_BYTES_MAX
        """Longest text of an item with which every argument stays within the system's limit."""
        for argument in definition.argv:
            parts = split_argument(argument)
            first = parts[0]
            param = definition.params.get(first.name) if isinstance(first, Place) else None
            if isinstance(first, Place) and param is not None and param.type == "list":
                for entry in params[first.name]:
                    self._append(split_argument(entry) if param.expand else [entry])
            else:
                self._append([_filled(part, params) for part in parts])

    def _append(self, parts: list[str | Place]) -> None:
        if not any(isinstance(part, Place) for part in parts):
            self._fixed.append("".join(str(part) for part in parts))
            return
        codes = [part if isinstance(part, str) else TASK_PLACES.index(part.name) for part in parts]
        self._varying.append((len(self._fixed), codes))
        self._fixed.append("")
        items = codes.count(0)
        self.uses_item = self.uses_item or items > 0
        self.uses_index = self.uses_index or 1 in codes
        if items:
            # An index has at most 20 digits.
            fixed_bytes = sum(len(part.encode()) if isinstance(part, str) else 20 * part for part in codes)
            self.item_bytes_max = min(self.item_bytes_max, max(0, ARGUMENT_BYTES_MAX - fixed_bytes) // items)

    def argv(self, item_text: str | None, index: int) -> list[str]:
        """One task's arguments. ItemError if an argument uses the item and there is none."""
        argv = self._fixed.copy()
        if self.uses_item and item_text is None:
            raise ItemError("empty", "the definition's command uses {item}, but the job has no input")
        texts = (item_text or "", str(index))
        for position, parts in self._varying:
            argv[position] = "".join([part if isinstance(part, str) else texts[part] for part in parts])
        return argv


def substitute(definition: Definition, params: Mapping[str, Any], item_text: str | None, index: int) -> list[str]:
    """One task's arguments, once; who needs them for many tasks keeps an `Arguments`."""
    return Arguments(definition, params).argv(item_text, index)


def uses_item(definition: Definition, params: Mapping[str, Any]) -> bool:
    """Whether an argument contains `{item}`, so that items must be short texts."""
    return Arguments(definition, params).uses_item


def _filled(part: str | Place, params: Mapping[str, Any]) -> str | Place:
    if isinstance(part, str) or part.is_task:
        return part
    value = params[part.name]
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


# ---- items ----


def item_text(item: Item) -> str:
    """The text of `{item}`: of data or a line its content, of a file its path. ItemError if it is none.

    A Blob's content is not here: who has fetched it passes the bytes.
    """
    if isinstance(item, Blob):
        raise ItemError("too_large", f"it has {item.size:,} bytes, too many for an argument")
    if isinstance(item, File):
        text = item.path
    else:
        try:
            text = item.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ItemError(
                "bad_request",
                f"byte {error.start + 1} of it is not UTF-8, and an argument of the command uses {{item}}",
            ) from None
    if "\0" in text:
        raise ItemError("bad_request", "it has a NUL character, and an argument of the command uses {item}")
    return text


class ItemRules:
    """What an item must be for a definition and params. Made once a job; most jobs' `check` compares one size.

    Of a Blob only the size is checked here: its content is checked by who reads it first.
    """

    __slots__ = ("_arguments", "_data_bytes_max", "_no_newline")

    def __init__(self, definition: Definition, params: Mapping[str, Any]) -> None:
        self._arguments = Arguments(definition, params)
        self._data_bytes_max = definition.limits.data_bytes
        self._no_newline = definition.runner == "stream" and definition.format == "lines"

    def check(self, item: Item | None, index: int) -> None:
        """ItemError says what is wrong with the item of this index; None: the job has no input."""
        try:
            self._check(item)
        except ItemError as error:
            raise ItemError(error.code, f"item {index}: {error}") from None

    def check_all(self, items: list[Item], first: int) -> None:
        """As `check` for each of these items, the first of the index `first`; lines by the thousand at a fraction of its cost."""
        if not self._are_plain(items):
            for index, item in enumerate(items, first):
                self.check(item, index)

    def _are_plain(self, items: list[Item]) -> bool:
        """Whether these are bytes that surely keep every rule."""
        plain = [item for item in items if type(item) is bytes]
        if len(plain) != len(items):
            return False
        longest = max(map(len, plain), default=0)
        if self._data_bytes_max is not None and longest > self._data_bytes_max:
            return False
        if not self._no_newline and not self._arguments.uses_item:
            return True
        # No character of UTF-8 contains the byte of a line's end, so what is whole in one text is whole in each part.
        text = b"\n".join(plain)
        if self._no_newline and text.count(b"\n") != len(plain) - 1:
            return False
        if not self._arguments.uses_item:
            return True
        return longest <= self._arguments.item_bytes_max and b"\0" not in text and _is_utf8(text)

    def check_input(self, has_items: bool) -> None:
        """ItemError if the command needs an item and the job has no input at all."""
        if not has_items and self._arguments.uses_item:
            raise ItemError("empty", "the definition's command uses {item}, but the job has no input")

    def _check(self, item: Item | None) -> None:
        if item is None:
            self.check_input(False)
            return
        content = item_content(item)
        size = payload_size(content)
        if self._data_bytes_max is not None and size > self._data_bytes_max:
            raise ItemError(
                "too_large", f"it has {size:,} bytes, the definition's limits.data is {self._data_bytes_max:,}"
            )
        if self._no_newline and isinstance(content, bytes) and b"\n" in content:
            raise ItemError(
                "bad_request", "it has a newline, and the definition's stream takes one line an item (format: lines)"
            )
        if not self._arguments.uses_item:
            return
        if isinstance(item, File):
            size = len(item.path.encode("utf-8", "surrogatepass"))
        if size > self._arguments.item_bytes_max:
            limit = self._arguments.item_bytes_max
            raise ItemError(
                "too_large",
                f"it has {size:,} bytes, but an argument of the command uses {{item}}, where {limit:,} are allowed; let the program read it from standard input",
            )
        if not isinstance(item, Blob):
            item_text(item)


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def check_item(definition: Definition, params: Mapping[str, Any], item: Item | None, index: int = 0) -> None:
    """One item against a definition, once; who checks many keeps an `ItemRules`."""
    ItemRules(definition, params).check(item, index)
