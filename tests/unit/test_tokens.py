"""Join tokens, ids of clusters and the words of a pairing: what is read back, what is refused, what is never said."""

import base64
import re
import traceback

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from districomp.errors import TokenError
from districomp.tokens import (
    AUTHORITY_BYTES,
    ROLES,
    SECRET_BYTES,
    TOKEN_CHARS_MAX,
    JoinToken,
    authority_hash,
    cluster_id,
    format_token,
    is_cluster_id,
    pairing_words,
    parse_token,
    secret_hash,
)

AUTHORITY = bytes(range(16))
SECRET = bytes(range(100, 116))
TEXT = "dcw1-aaaqeayeaudaocajbifqydiob4-mrswmz3infvgw3dnnzxxa4lsom"
BASE32 = "abcdefghijklmnopqrstuvwxyz234567"

token_parts = st.builds(
    JoinToken,
    st.sampled_from(sorted(ROLES.values())),
    st.binary(min_size=AUTHORITY_BYTES, max_size=AUTHORITY_BYTES),
    st.binary(min_size=SECRET_BYTES, max_size=SECRET_BYTES),
)


def as_base32(data: bytes) -> str:
    return base64.b32encode(data).decode().rstrip("=").lower()


def test_a_token_looks_as_documented() -> None:
    token = JoinToken("worker", AUTHORITY, SECRET)
    assert format_token(token) == TEXT
    assert token.cluster == TEXT.split("-")[1]
    assert parse_token(TEXT) == token


@given(token_parts)
def test_what_is_written_is_read_back(token: JoinToken) -> None:
    text = format_token(token)
    assert parse_token(text) == token
    assert parse_token(f"  {text.upper()}\n") == token
    assert re.fullmatch(r"dc[wsar]1-[a-z2-7]{26}-[a-z2-7]{26}", text)
    assert is_cluster_id(token.cluster)


@given(token_parts)
def test_each_role_has_a_prefix_of_its_own(token: JoinToken) -> None:
    prefixes = {role: format_token(token._replace(role=role)).split("-")[0] for role in ROLES.values()}
    assert prefixes == {"worker": "dcw1", "submit": "dcs1", "admin": "dca1", "read": "dcr1"}


@given(st.text())
@example("")
@example("dcw1")
@example("dcw1--")
@example("dcw1-" + "a" * 26)
@example("dcw1-" + "ä" * 26 + "-" + "a" * 26)
@example("dcw1-" + "a" * 26 + "-" + "a" * 25 + "1")
@example("-".join(["dcw1"] * 100))
@example("K" * 200)
def test_anything_else_is_one_error_that_repeats_nothing(text: str) -> None:
    with pytest.raises(TokenError) as caught:
        parse_token(text)
    said = str(caught.value)
    for part in text.strip().split("-")[1:]:
        assert len(part) < 8 or part not in said


@given(token_parts, st.data())
def test_one_wrong_character_is_never_the_same_token(token: JoinToken, data: st.DataObject) -> None:
    text = format_token(token)
    place = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from(BASE32 + "-019= ").filter(lambda char: char != text[place]))
    try:
        read = parse_token(text[:place] + other + text[place + 1 :])
    except TokenError as error:
        assert as_base32(token.secret) not in str(error)
    else:
        assert read != token


@given(token_parts)
def test_one_text_only_for_a_token(token: JoinToken) -> None:
    """Base32 of 16 bytes has two bits to spare: with any of them set it would be another text for the same bytes."""
    text = format_token(token)
    for last in BASE32[BASE32.index(text[-1]) + 1 : BASE32.index(text[-1]) + 4]:
        with pytest.raises(TokenError, match="damaged"):
            parse_token(text[:-1] + last)
        assert not is_cluster_id(token.cluster[:-1] + "z")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hello", "not a join token"),
        ("dcx1-a-b", "not a join token"),
        ("dcw1-a", "not a join token"),
        ("dcw2-a-b", "version '2'"),
        ("dcw1-a-b", "damaged"),
        ("dcw1-" + "a" * TOKEN_CHARS_MAX + "-b", "not a join token"),
    ],
)
def test_a_person_is_told_what_is_wrong(text: str, said: str) -> None:
    with pytest.raises(TokenError, match=said):
        parse_token(text)


def test_a_token_does_not_get_into_a_log_by_its_repr() -> None:
    token = JoinToken("admin", AUTHORITY, SECRET)
    for text in (repr(token), str(token), f"{token}", f"{token!r:>10}"):
        assert as_base32(SECRET) not in text
        assert repr(SECRET) not in text


def test_a_damaged_token_is_in_no_traceback() -> None:
    damaged = f"dcw1-{as_base32(AUTHORITY)}-{as_base32(SECRET)[:-1]}1"
    try:
        parse_token(damaged)
    except TokenError as error:
        assert as_base32(SECRET)[:20] not in "".join(traceback.format_exception(error))
        assert error.__cause__ is None
    else:
        raise AssertionError("a digit that base32 does not have was read")


@given(st.text(max_size=64))
@example("a" * 26)
@example("A" * 26)
@example("\u0131" * 26)
def test_only_what_pins_an_authority_is_an_id(text: str) -> None:
    if is_cluster_id(text):
        assert text.isascii()
        assert cluster_of(text.lower()) == text.lower()


def cluster_of(text: str) -> str:
    return JoinToken("read", base64.b32decode(text.upper() + "======"), SECRET).cluster


@pytest.mark.parametrize("name", ["", "districomp", "lab", "a" * 25, "a" * 27, "1" * 26, "a" * 25 + "="])
def test_a_name_pins_nothing(name: str) -> None:
    assert not is_cluster_id(name)


@given(st.binary(), st.binary())
def test_other_certificates_have_other_ids(one: bytes, other: bytes) -> None:
    assert (cluster_id(one) == cluster_id(other)) == (one == other)
    assert cluster_id(one) == as_base32(authority_hash(one))


@given(st.binary(), st.binary(), st.binary())
def test_words_can_be_said_and_depend_on_all_three(authority: bytes, key: bytes, nonce: bytes) -> None:
    words = pairing_words(authority, key, nonce)
    proquint = r"[bdfghjklmnprstvz][aiou][bdfghjklmnprstvz][aiou][bdfghjklmnprstvz]"
    assert re.fullmatch("-".join([proquint] * 3), words)
    assert words == pairing_words(authority, key, nonce)
    # Nobody may move a byte from one part to the next and have the same words.
    others = [(authority + b"x", key, nonce), (authority, key + b"x", nonce), (authority, key, nonce + b"x")]
    others += [(authority + key[:1], key[1:], nonce)] if key else []
    assert all(pairing_words(*other) != words for other in others)


def test_the_words_of_an_example() -> None:
    """Fixed: machines of different versions must show the same ones."""
    assert pairing_words(b"authority", b"key", b"nonce") == "duloj-tilif-sozid"


def test_the_secret_is_kept_as_its_hash() -> None:
    assert secret_hash(SECRET) != SECRET
    assert len(secret_hash(SECRET)) == 32
