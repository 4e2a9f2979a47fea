"""What commands print: tables and cards for people, JSON for programs, ids for pipes.

Owns form only: widths, colours, times and sizes as people read them. Data goes to standard output, messages
to standard error. Text that came from elsewhere is stripped of what a terminal would obey.
"""

import os
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final, Literal, NamedTuple, TypeVar

import msgspec

Mode = Literal["text", "json", "quiet"]
T = TypeVar("T")

BLOCK_ROWS: Final = 1000
"""Rows of a long list that are printed together, and of a long table that are aligned together."""
GAP: Final = "  "
COLUMN_MIN: Final = 6
COLUMN_FAIR: Final = 16
_COLOURS: Final = {
    "done": "32",
    "running": "36",
    "busy": "36",
    "failed": "31",
    "lost": "31",
    "revoked": "31",
    "quarantined": "31",
    "valid": "32",
    "expired": "33",
    "used up": "33",
    "cancelled": "33",
    "skipped": "33",
    "pending": "33",
    "draining": "33",
}


class Column(NamedTuple):
    """A table's column. `shrinks`: cut short where the terminal is too narrow. `spare`: left out there before anything is
    cut to less than COLUMN_FAIR, the highest first; 0 never.
    """

    title: str
    value: Callable[[Any], str]
    right: bool = False
    shrinks: bool = False
    spare: int = 0


def print_list(mode: Mode, rows: Sequence[T], identify: Callable[[T], str], columns: Sequence[Column]) -> None:
    """A list as a table, as one JSON list, or as ids."""
    if mode == "json":
        print_json(rows)
    elif mode == "quiet":
        write("".join(f"{identify(row)}\n" for row in rows))
    elif rows:
        write(table(rows, columns))
    else:
        message("there are none")


def print_stream(mode: Mode, rows: Iterable[T], identify: Callable[[T], str], columns: Sequence[Column]) -> None:
    """As `print_list`, as they come: there may be millions. A table is cut into several, a JSON list has a line a row."""
    rows = iter(rows)
    block = list(islice(rows, BLOCK_ROWS))
    if mode == "text" and not block:
        message("there are none")
    before = "["
    while block:
        if mode == "json":
            write(before + ",\n".join(msgspec.json.encode(row).decode() for row in block))
            before = ",\n"
        elif mode == "quiet":
            write("".join(f"{identify(row)}\n" for row in block))
        else:
            write(table(block, columns))
        block = list(islice(rows, BLOCK_ROWS))
    if mode == "json":
        write("[]\n" if before == "[" else "]\n")


def print_card(mode: Mode, document: object, identity: str, pairs: Iterable[tuple[str, str]]) -> None:
    """One thing as lines of `key  value`, as one JSON document, or as its id."""
    if mode == "json":
        print_json(document)
    elif mode == "quiet":
        write(f"{identity}\n")
    else:
        write(card(pairs))


def as_text(data: bytes) -> tuple[str, str]:
    """Bytes as JSON can carry them, and how: `utf-8` or `base64`."""
    try:
        return data.decode(), "utf-8"
    except UnicodeDecodeError:
        from base64 import b64encode

        return b64encode(data).decode(), "base64"


def print_json(document: object) -> None:
    """One JSON document, in one line; indented for a terminal."""
    body = msgspec.json.encode(document)
    if sys.stdout.isatty():
        body = msgspec.json.format(body)
    write(body.decode() + "\n")


def write(text: str) -> None:
    """Data, to standard output."""
    sys.stdout.write(text)


def message(text: str) -> None:
    """A message, to standard error."""
    sys.stdout.flush()
    print(f"dctl: {clean(text)}", file=sys.stderr, flush=True)  # noqa: T201 - the command line's own voice


def table(rows: Sequence[T], columns: Sequence[Column]) -> str:
    """Aligned columns, fitted to the terminal if it is one."""
    cells = [[clean(column.value(row)).replace("\n", " ") for column in columns] for row in rows]
    widths = [
        max([_width(column.title), *(_width(line[place]) for line in cells)]) for place, column in enumerate(columns)
    ]
    if sys.stdout.isatty():
        room = shutil.get_terminal_size().columns
        kept = _kept(widths, columns, room)
        cells = [[line[place] for place in kept] for line in cells]
        widths, columns = [widths[place] for place in kept], [columns[place] for place in kept]
        _shrink(widths, columns, room)
    lines = [_line([column.title for column in columns], widths, columns, heading=True)]
    lines += [_line(line, widths, columns) for line in cells]
    return "".join(f"{line.rstrip()}\n" for line in lines)


def card(pairs: Iterable[tuple[str, str]]) -> str:
    """Lines of a key and its value."""
    listed = [(key, clean(value)) for key, value in pairs]
    width = max(_width(key) for key, _value in listed)
    return "".join(f"{key.ljust(width)}{GAP}{_coloured(value, value)}\n" for key, value in listed)


def clean(text: str) -> str:
    """Text without control characters, so that a job's name cannot play with the terminal; line ends stay."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c == "\n" else "    " if c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def is_coloured() -> bool:
    """Whether standard output takes colours: a terminal, and nobody said no."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def ago(iso: str | None) -> str:
    """How long ago a time of a document was."""
    if iso is None:
        return "-"
    return f"{span(max(0.0, (datetime.now(UTC) - parse_time(iso)).total_seconds()))} ago"


def until(iso: str) -> str:
    """How far off a time of a document is, or how long ago it was."""
    left_s = (parse_time(iso) - datetime.now(UTC)).total_seconds()
    return f"in {span(left_s)}" if left_s >= 0 else ago(iso)


def moment(iso: str) -> str:
    """A time of a document as the clock on the wall shows it."""
    return parse_time(iso).astimezone().strftime("%d %b %Y %H:%M")


def parse_time(iso: str) -> datetime:
    """A time of a document."""
    return datetime.fromisoformat(iso)


def between(start: str | None, end: str | None) -> str:
    """How long something took."""
    if start is None or end is None:
        return "-"
    return span((parse_time(end) - parse_time(start)).total_seconds())


def span(seconds: float | None) -> str:
    """A duration in the two units that matter."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    if not minutes:
        return f"{seconds} s"
    hours, minutes = divmod(minutes, 60)
    if not hours:
        return _two(minutes, "min", int(seconds), "s")
    days, hours = divmod(hours, 24)
    return _two(days, "d", hours, "h") if days else _two(hours, "h", minutes, "min")


def size(count: int | None) -> str:
    """Bytes as people read them."""
    if count is None:
        return "-"
    if count < 1024:
        return f"{count} B"
    amount = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        amount /= 1024
        if amount < 1024:
            return f"{amount:.1f} {unit}"
    return f"{amount / 1024:.1f} TiB"


def _two(first: int, unit: str, second: int, its_unit: str) -> str:
    return f"{first} {unit} {second} {its_unit}" if second else f"{first} {unit}"


def _width(text: str) -> int:
    """Columns that a text takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _kept(widths: list[int], columns: Sequence[Column], room: int) -> list[int]:
    """The places of the columns that there is room for, those that shrink having a fair part of it."""
    fair = [min(width, COLUMN_FAIR) if column.shrinks else width for width, column in zip(widths, columns, strict=True)]
    kept = list(range(len(columns)))
    while sum(fair[place] for place in kept) + len(GAP) * (len(kept) - 1) > room:
        spare = max(kept, key=lambda place: columns[place].spare)
        if not columns[spare].spare:
            break
        kept.remove(spare)
    return kept


def _shrink(widths: list[int], columns: Sequence[Column], room: int) -> None:
    """Take from the widest column that may shrink, until the table fits or nothing more can give way."""
    while sum(widths) + len(GAP) * (len(widths) - 1) > room:
        able = [place for place, column in enumerate(columns) if column.shrinks and widths[place] > COLUMN_MIN]
        if not able:
            return
        widths[max(able, key=lambda place: widths[place])] -= 1


def _line(cells: Sequence[str], widths: Sequence[int], columns: Sequence[Column], *, heading: bool = False) -> str:
    parts = []
    for cell, width, column in zip(cells, widths, columns, strict=True):
        shown = _cut(cell, width)
        pad = " " * (width - _width(shown))
        text = f"{pad}{shown}" if column.right else f"{shown}{pad}"
        parts.append(_painted(text, "1") if heading else _coloured(cell, text))
    return GAP.join(parts)


def _cut(text: str, width: int) -> str:
    if _width(text) <= width:
        return text
    while _width(text) > width - 1:
        text = text[:-1]
    return f"{text}…"


def _coloured(word: str, text: str) -> str:
    colour = _COLOURS.get(word)
    return _painted(text, colour) if colour else text


def _painted(text: str, colour: str) -> str:
    return f"\x1b[{colour}m{text}\x1b[0m" if is_coloured() else text
