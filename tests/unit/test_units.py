"""Durations, sizes and counts as people write them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from districomp.units import (
    DURATION_PATTERN,
    SIZE_PATTERN,
    parse_count_or_unlimited,
    parse_duration,
    parse_duration_or_unlimited,
    parse_size,
    parse_size_or_unlimited,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("15s", 15.0),
        ("2.5s", 2.5),
        ("10min", 600.0),
        ("10m", 600.0),
        ("1h30m", 5400.0),
        ("10 min", 600.0),
        ("1h 30m", 5400.0),
        ("1h30min", 5400.0),
        ("7d", 604800.0),
        ("1d2h3min4s5ms", 93784.005),
        ("0", 0.0),
        ("0s", 0.0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1B", 1),
        ("64KiB", 65536),
        ("512MiB", 512 * 1024**2),
        ("2GB", 2_000_000_000),
        ("1.5KiB", 1536),
        ("3kB", 3000),
        ("3KB", 3000),
        ("1 TiB", 1024**4),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("15", "has no unit; write for example 15s or 15min"),
        ("10mins", "did you mean 'min'?"),
        ("min", "is not a duration"),
        ("", "is not a duration"),
        ("-5s", "is not a duration"),
        ("30m1h", "from the larger unit to the smaller"),
        ("5s5s", "from the larger unit to the smaller"),
        ("1h30", "has no unit"),
        ("1e3s", "unknown unit 'e'"),
        ("40000d", "longer than 100 years"),
        ("1" * 65 + "s", "too long to be a quantity"),
        ("\uff11s", "is not a duration"),
    ],
)
def test_bad_durations_say_what_to_write(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_duration(text)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("64", "has no unit; write for example 64MB or 64MiB"),
        ("512M", "ambiguous; write MB (powers of 1000) or MiB (of 1024)"),
        ("5K", "ambiguous; write kB (powers of 1000) or KiB (of 1024)"),
        ("5mib", "did you mean 'MiB'?"),
        ("5 apples", "unknown unit 'apples'"),
        ("1.5B", "is not a whole number of bytes"),
        ("9999999999TiB", "over 2^63"),
        ("-1B", "is not a size"),
        ("unlimited", "is not a size"),
    ],
)
def test_bad_sizes_say_what_to_write(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_size(text)
    assert says in str(caught.value)


def test_unlimited_is_a_word_of_its_own() -> None:
    assert parse_size_or_unlimited("unlimited") is None
    assert parse_duration_or_unlimited("unlimited") is None
    assert parse_size_or_unlimited("1B") == 1
    assert parse_duration_or_unlimited("1s") == 1.0


@given(st.text(max_size=80))
def test_any_text_is_a_quantity_or_a_value_error(text: str) -> None:
    for parse in (parse_duration, parse_size):
        try:
            assert parse(text) >= 0
        except ValueError as error:
            assert str(error)


@given(st.integers(0, 10**6), st.sampled_from(["B", "kB", "MiB", "GB"]))
def test_a_size_is_its_number_times_its_unit(number: int, unit: str) -> None:
    assert parse_size(f"{number}{unit}") == number * {"B": 1, "kB": 1000, "MiB": 2**20, "GB": 10**9}[unit]


@pytest.mark.parametrize(("text", "count"), [("1", 1), ("64", 64), ("1000000", 1_000_000), ("unlimited", None)])
def test_counts(text: str, count: int | None) -> None:
    assert parse_count_or_unlimited(text) == count


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "1000001", "9" * 30, "many", "", "0x10", "٣"])
def test_what_is_no_count(text: str) -> None:
    with pytest.raises(ValueError, match="is not a whole number from 1 to 1,000,000; write one, or unlimited"):
        parse_count_or_unlimited(text)


@given(st.from_regex(r"([0-9]{1,3}(\.[0-9])? ?(ms|s|m|min|h|d|KiB|GB|B|x|) ?){1,3}", fullmatch=True))
def test_the_patterns_for_editors_take_whatever_is_read(text: str) -> None:
    for parse, pattern in ((parse_duration, DURATION_PATTERN), (parse_size, SIZE_PATTERN)):
        try:
            parse(text)
        except ValueError:
            continue
        assert re.search(pattern, text) or text == "0"
