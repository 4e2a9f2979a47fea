"""Grants: only this coordinator's, only in time, only as they were minted."""

import base64
import math

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dcoord.core.grants import GRANT_CHARS_MAX, Grant, GrantError, check, mint

KEY = bytes(range(32))
NOW = 1_800_000_000.0
GRANT = Grant("GET", "/tasks/7.3", "w1", "worker", "", 42, NOW + 600)

words = st.text(max_size=40)
grants = st.builds(
    Grant, words, words, words, words, words, st.integers(0, 2**62), st.floats(allow_nan=False, allow_infinity=False)
)


@given(st.binary(min_size=32, max_size=32), grants)
def test_what_is_minted_is_checked_until_it_ends(key: bytes, grant: Grant) -> None:
    text = mint(key, grant)
    assert check(key, text, math.nextafter(grant.expires, -math.inf)) == grant
    for late in (grant.expires, math.nextafter(grant.expires, math.inf)):
        with pytest.raises(GrantError, match="expired"):
            check(key, text, late)


@given(grants)
def test_it_can_stand_in_a_header_and_in_a_url(grant: Grant) -> None:
    text = mint(KEY, grant)
    assert text.isascii()
    assert all(char.isalnum() or char in "-_." for char in text)


def test_the_largest_that_is_asked_for_is_checked() -> None:
    grant = Grant("SESSION", "", "i" * 64, "submit", "u" * 64, 2**63, NOW + 600)
    assert len(mint(KEY, grant)) <= GRANT_CHARS_MAX
    assert check(KEY, mint(KEY, grant), NOW) == grant


@given(st.binary(min_size=32, max_size=32).filter(lambda key: key != KEY))
def test_another_coordinators_is_refused(other: bytes) -> None:
    with pytest.raises(GrantError, match="not of this coordinator"):
        check(KEY, mint(other, GRANT), NOW)


@pytest.mark.parametrize("field", Grant.__struct_fields__)
def test_no_field_can_be_changed_by_the_bearer(field: str) -> None:
    value = getattr(GRANT, field)
    changed = msgspec.structs.replace(GRANT, **{field: value + 1 if isinstance(value, int | float) else value + "x"})
    body = base64.urlsafe_b64encode(msgspec.msgpack.encode(changed)).decode().rstrip("=")
    signature = mint(KEY, GRANT).split(".")[1]
    with pytest.raises(GrantError, match="not of this coordinator"):
        check(KEY, f"{body}.{signature}", NOW)


@given(st.data())
def test_no_bit_can_be_changed(data: st.DataObject) -> None:
    body, signature = (base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in mint(KEY, GRANT).split("."))
    whole = bytearray(body + signature)
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    text = b".".join(base64.urlsafe_b64encode(part) for part in (whole[: len(body)], whole[len(body) :])).decode()
    with pytest.raises(GrantError):
        check(KEY, text.replace("=", ""), NOW)


@given(st.text())
@example("")
@example(".")
@example("..")
@example("a.b")
@example("=.=")
@example("é.é")
@example("A" * GRANT_CHARS_MAX + ".")
@example("." + "A" * 1_000_000)
def test_any_other_text_is_one_error(text: str) -> None:
    with pytest.raises(GrantError) as caught:
        check(KEY, text, NOW)
    assert len(text) < 8 or text not in str(caught.value)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_grant_are_not_decoded(body: bytes) -> None:
    """Nothing of a stranger's is given to the decoder: without the key nobody gets past the signature."""
    text = base64.urlsafe_b64encode(body).decode().rstrip("=")
    for signature in ("", "AAAA", "A" * 43):
        with pytest.raises(GrantError):
            check(KEY, f"{text}.{signature}", NOW)
