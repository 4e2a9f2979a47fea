"""Durations, sizes and counts as people write them: `1h30m`, `500ms`, `512MiB`, `2GB`, `unlimited`. Pure.

Owns the spelling only; what a quantity is for is not known here. A number without a unit
is refused, because nobody agrees on which one was meant.
"""

import re
from decimal import Decimal
from difflib import get_close_matches
from typing import Final

DURATION_S_MAX: Final = 100 * 365 * 86400
SIZE_BYTES_MAX: Final = 2**63 - 1
TEXT_CHARS_MAX: Final = 64

_DURATION_UNITS: Final = {
    "ms": Decimal("0.001"),
    "s": Decimal(1),
    "m": Decimal(60),
    "min": Decimal(60),
    "h": Decimal(3600),
    "d": Decimal(86400),
}
_SIZE_UNITS: Final = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*) ?")
_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)")
_COUNT: Final = re.compile(r"[0-9]{1,18}")
COUNT_MAX: Final = 1_000_000
UNLIMITED: Final = "unlimited"

# The same spellings as a JSON Schema can say them, a little more generous.
DURATION_PATTERN: Final = rf"^([0-9]+(\.[0-9]+)? ?({'|'.join(_DURATION_UNITS)}) ?)+$"
SIZE_PATTERN: Final = rf"^[0-9]+(\.[0-9]+)? ?({'|'.join(_SIZE_UNITS)})$"


def parse_duration(text: str) -> float:
    """Seconds of `10min`, `1h30m`, `500ms`, `2.5s`, `0`. ValueError says what is wrong with the text."""
    _check_length(text)
    if text == "0":
        return 0.0
    total, position, last_scale = Decimal(0), 0, None
    for match in _PART.finditer(text):
        if match.start() != position:
            break
        number, unit = match.groups()
        scale = _DURATION_UNITS.get(unit)
        if scale is None:
            raise ValueError(_unit_fault(text, unit, _DURATION_UNITS, f"{number}s or {number}min"))
        if last_scale is not None and scale >= last_scale:
            raise ValueError(f"{text!r} does not go from the larger unit to the smaller, as 1h30m does")
        total, position, last_scale = total + Decimal(number) * scale, match.end(), scale
    if position == 0 or position != len(text):
        raise ValueError(f"{text!r} is not a duration; write it as 500ms, 15s, 10min, 1h30m or 7d")
    if total > DURATION_S_MAX:
        raise ValueError(f"{text!r} is longer than 100 years; write 'unlimited' where there is no limit")
    return float(total)


def parse_size(text: str) -> int:
    """Bytes of `512MiB`, `2GB`, `1.5KiB`, `0`. ValueError says what is wrong with the text."""
    _check_length(text)
    if text == "0":
        return 0
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a size; write it as 64KiB, 512MiB or 2GB")
    number, unit = match.groups()
    scale = _SIZE_UNITS.get(unit)
    if scale is None:
        raise ValueError(_unit_fault(text, unit, _SIZE_UNITS, f"{number}MB or {number}MiB"))
    size = Decimal(number) * scale
    if size != int(size):
        raise ValueError(f"{text!r} is not a whole number of bytes")
    if size > SIZE_BYTES_MAX:
        raise ValueError(f"{text!r} is over 2^63 bytes; write 'unlimited' where there is no limit")
    return int(size)


def parse_duration_or_unlimited(text: str) -> float | None:
    """As `parse_duration`; `unlimited` is None."""
    return None if text == UNLIMITED else parse_duration(text)


def parse_size_or_unlimited(text: str) -> int | None:
    """As `parse_size`; `unlimited` is None."""
    return None if text == UNLIMITED else parse_size(text)


def parse_count_or_unlimited(text: str) -> int | None:
    """A whole number of at least 1; `unlimited` is None. ValueError says what is wrong with the text."""
    if text == UNLIMITED:
        return None
    _check_length(text)
    if not _COUNT.fullmatch(text) or not 1 <= int(text) <= COUNT_MAX:
        raise ValueError(f"{text!r} is not a whole number from 1 to {COUNT_MAX:,}; write one, or unlimited")
    return int(text)


def _check_length(text: str) -> None:
    # Bounds the work on a hostile text, and the length of the message that quotes it.
    if len(text) > TEXT_CHARS_MAX:
        raise ValueError(f"{text[:20]!r}... is too long to be a quantity")


def _unit_fault(text: str, unit: str, units: dict[str, int] | dict[str, Decimal], example: str) -> str:
    if not unit:
        return f"{text!r} has no unit; write for example {example}"
    if unit in ("K", "M", "G", "T", "k") and units is _SIZE_UNITS:
        letter = unit if unit != "K" else "k"
        return f"{text!r}: the unit {unit} is ambiguous; write {letter}B (powers of 1000) or {unit.upper()}iB (of 1024)"
    known = ", ".join(units)
    close = [known_unit for known_unit in units if known_unit.lower() == unit.lower()]
    close = close or get_close_matches(unit, list(units), 1)
    hint = f"did you mean {close[0]!r}?" if close else f"the units are {known}"
    return f"{text!r}: unknown unit {unit!r}; {hint}"
