"""Placeholders in the text of an argument: `{name}`, and `{{`, `}}` for braces. Pure.

Owns their spelling alone; what a name stands for is known to who asks (`arguments`, `taskfile`).
"""

import re
from collections.abc import Sequence
from typing import Final

import msgspec

ARGUMENT_BYTES_MAX: Final = 128 * 1024 - 1
"""Longest argument: Linux's MAX_ARG_STRLEN without the closing NUL."""
TASK_PLACES: Final = ("item", "index")

_PART: Final = re.compile(r"\{\{|\}\}|\{([A-Za-z_][A-Za-z0-9_]*)\}|[{}]")


class Place(msgspec.Struct, frozen=True):
    """A placeholder of an argument: `{name}`."""

    name: str

    @property
    def is_task(self) -> bool:
        """It differs from task to task, rather than from job to job."""
        return self.name in TASK_PLACES


def split_argument(argument: str) -> list[str | Place]:
    """An argument as texts and placeholders, `{{` and `}}` already braces. ValueError names a stray brace."""
    parts: list[str | Place] = []
    text, position = "", 0
    for match in _PART.finditer(argument):
        text += argument[position : match.start()]
        position = match.end()
        if match.group() in ("{{", "}}"):
            text += match.group()[0]
        elif name := match.group(1):
            parts += [text, Place(name)] if text else [Place(name)]
            text = ""
        else:
            brace = match.group()
            raise ValueError(
                f"has a lone {brace} at character {match.start() + 1}; a brace itself is written {brace * 2}"
            )
    text += argument[position:]
    return [*parts, text] if text or not parts else parts


def escape_argument(text: str) -> str:
    """The text such that, as an argument with placeholders, it means itself."""
    return text.replace("{", "{{").replace("}", "}}")


def run_template(argv: Sequence[str], has_items: bool) -> list[str]:
    """The arguments of `dctl run` as the param `argv` of `shell`: `{}` is the item, all else is itself.

    With items and no `{}` anywhere, the item is appended, as GNU parallel does.
    """
    template = ["{item}".join(escape_argument(piece) for piece in argument.split("{}")) for argument in argv]
    if has_items and not any("{}" in argument for argument in argv):
        template.append("{item}")
    return template
