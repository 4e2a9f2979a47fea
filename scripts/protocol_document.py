"""`make docs`: draw the generated parts of docs/protocol.md from the code that they describe.

The life cycle of a task from `model.TRANSITIONS`, the limits from `messages.py`, and every message with
its fields from its class, docstring and comments included. `--check` changes nothing and fails when the
document is not what would be drawn.
"""

import ast
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from districomp import messages, model, outcome

ROOT: Final = Path(__file__).resolve().parent.parent
DOCUMENT: Final = ROOT / "docs" / "protocol.md"
_PART: Final = re.compile(r"(<!-- drawn: ([a-z-]+) .*?-->\n).*?(<!-- end -->)", re.DOTALL)
_GROUP: Final = re.compile(r"# ---- (.*) ----$")


def life_cycle() -> str:
    """The diagram and the table of transitions."""
    name = model.STATE_NAMES
    lines = ["```mermaid", "stateDiagram-v2", "    direction LR", "    [*] --> queued: submitted"]
    for (before, after), why in model.TRANSITIONS.items():
        # A label ends at nothing but its line; a second colon in it is not understood by every renderer.
        lines.append(f"    {name[before]} --> {name[after]}: {why.replace(':', '')}")
    lines += ["    done --> [*]", "```", "", "| from | to | because |", "|---|---|---|"]
    lines += [f"| {name[before]} | {name[after]} | {why} |" for (before, after), why in model.TRANSITIONS.items()]
    return "\n".join(lines)


def reasons() -> str:
    """The closed list of reasons."""
    return " ".join(f"`{reason}`" for reason in model.REASONS)


def limits() -> str:
    """The numbers that both sides hold each other to."""
    rows = [
        ("protocol version", messages.PROTOCOL_VERSION, "named in every greeting; another one is refused"),
        ("frame", f"{messages.FRAME_BYTES_MAX:,} bytes", "largest, without its length prefix"),
        ("greeting", f"{messages.GREETING_BYTES_MAX:,} bytes", "largest frame of a peer that has not said who it is"),
        ("greeting", f"{messages.GREETING_S:g} s", "the time that it has to say so"),
        ("batch", f"{messages.BATCH_BYTES:,} bytes", "at about this size senders begin a new frame"),
        ("batch", f"{messages.BATCH_TASKS:,} tasks", "most entries of a column"),
        ("inline payload", f"{model.INLINE_BYTES_MAX:,} bytes", "larger ones travel as blobs over HTTP"),
        ("standard error", f"{model.STDERR_TAIL_BYTES:,} bytes", "the end of it, which a report carries"),
        ("lost workers", model.WORKER_LOSSES_MAX, "so many losses of its worker fail a task with `crash_limit`"),
    ]
    return "\n".join(
        ["| limit | | |", "|---|---|---|", *(f"| {what} | {value} | {why} |" for what, value, why in rows)]
    )


def message_list() -> str:
    """Every message: number, sentence and fields, in the groups of messages.py."""
    parts: list[str] = []
    for group, classes in _groups(Path(messages.__file__).read_text(encoding="utf-8")):
        parts.append(f"### {group[0].upper()}{group[1:]}\n")
        parts += [_message(node, comments).rstrip() + "\n" for node, comments in classes]
    return "\n".join(parts).rstrip()


def structures() -> str:
    """What messages contain that is not a plain value."""
    return "\n".join(_structure(kind) for kind in (model.Blob, model.File, model.Machine, outcome.Outcome)).rstrip()


PARTS: Final[dict[str, Callable[[], str]]] = {
    "life-cycle": life_cycle,
    "reasons": reasons,
    "limits": limits,
    "messages": message_list,
    "structures": structures,
}


def render(document: str) -> str:
    """The document with its drawn parts as they should be. ValueError if a part is missing or unknown."""
    found = [match[2] for match in _PART.finditer(document)]
    if sorted(found) != sorted(PARTS):
        raise ValueError(f"docs/protocol.md has the drawn parts {found}, not {list(PARTS)}")
    return _PART.sub(lambda match: f"{match[1]}{PARTS[match[2]]()}\n{match[3]}", document)


def _groups(source: str) -> Iterator[tuple[str, list[tuple[ast.ClassDef, dict[int, str]]]]]:
    """The message classes below each `# ---- heading ----`, with the comments that stand behind fields, by line."""
    lines = source.splitlines()
    comments = {number: line.partition("  # ")[2] for number, line in enumerate(lines, 1)}
    headings = [(number, match[1]) for number, line in enumerate(lines, 1) if (match := _GROUP.match(line))]
    classes = [
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "Message" for base in node.bases)
    ]
    for place, (start, heading) in enumerate(headings):
        end = headings[place + 1][0] if place + 1 < len(headings) else len(lines)
        yield heading, [(node, comments) for node in classes if start < node.lineno < end]


def _message(node: ast.ClassDef, comments: dict[int, str]) -> str:
    kind = getattr(messages, node.name)
    tag = kind.__struct_config__.tag
    lines = [f"#### {tag} {node.name}\n", f"{_sentence(ast.get_docstring(node))}\n"]
    fields = [field for field in node.body if isinstance(field, ast.AnnAssign)]
    if fields:
        lines += ["| place | field | type | may be left out |", "|---|---|---|---|"]
    for place, field in enumerate(fields, 1):
        default = "" if field.value is None else _default(field.value, comments[field.lineno])
        lines.append(
            f"| {place} | `{ast.unparse(field.target)}` | {_type(ast.unparse(field.annotation))} | {default} |"
        )
    return "\n".join([*lines, ""])


def _structure(kind: type[msgspec.Struct]) -> str:
    tag = kind.__struct_config__.tag
    lead = f"an array that begins with {tag}" if tag is not None else "an array"
    fields = ", ".join(f"`{field.name}`" for field in msgspec.structs.fields(kind))
    return f"**{kind.__name__}**, {lead}: {fields}. {_sentence(kind.__doc__)}\n"


def _sentence(docstring: str | None) -> str:
    assert docstring, "test_messages demands one of every message"
    return " ".join(docstring.split())


def _default(value: ast.expr, comment: str) -> str:
    text = ast.unparse(value)
    if text == "[]" and comment:
        return comment
    return f"`{text}`"


def _type(annotation: str) -> str:
    return f"`{annotation}`".replace("|", r"\|")


def main() -> int:
    """0; with --check 1 if the document is not current."""
    text = DOCUMENT.read_text(encoding="utf-8")
    drawn = render(text)
    if "--check" in sys.argv[1:]:
        if drawn != text:
            sys.stderr.write("docs/protocol.md is not what the code says: run `make docs`\n")
        return int(drawn != text)
    DOCUMENT.write_text(drawn, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
