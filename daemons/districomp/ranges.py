"""`A..B[:STEP]`, as people write a range of numbers. Pure."""

import re
from typing import Final

RANGE_PATTERN: Final = r"-?[0-9]{1,18}\.\.-?[0-9]{1,18}(?::-?[0-9]{1,18})?"
"""The form, as a regular expression that Python and JSON Schema understand alike."""

_RANGE: Final = re.compile(r"(-?[0-9]{1,18})\.\.(-?[0-9]{1,18})(?::(-?[0-9]{1,18}))?")


def parse_range(text: str) -> range:
    """Both ends included; downwards if A is above B, whatever STEP's sign. ValueError says what is wrong."""
    match = _RANGE.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{text[:60]!r} is not A..B or A..B:STEP with whole numbers of at most 18 digits, "
            "for example 1..100 or 0..90:10"
        )
    first, last = int(match[1]), int(match[2])
    step = abs(int(match[3] or 1))
    if step == 0:
        raise ValueError(f"{text!r} has the step 0; leave it out or give another")
    return range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
