"""Requests for certificates: ours are taken, and nothing else is."""

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import example, given
from hypothesis import strategies as st

from districomp.errors import TrustError
from districomp.keys import REQUEST_BYTES_MAX, check_csr, new_key


def test_a_request_shows_the_key_that_it_is_for() -> None:
    key = new_key()
    assert check_csr(key.csr) == key.spki
    assert len(key.csr) < REQUEST_BYTES_MAX
    assert key.key.decode().splitlines()[1] not in repr(key)
    loaded = serialization.load_pem_private_key(key.key, None)
    assert isinstance(loaded, ec.EllipticCurvePrivateKey)
    assert new_key().spki != key.spki


def requests_by(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def test_other_kinds_of_keys_are_refused() -> None:
    for key in (
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP256K1()),
        rsa.generate_private_key(65537, 2048),
    ):
        with pytest.raises(TrustError, match="P-256"):
            check_csr(requests_by(key))


def test_a_request_for_anothers_key_is_refused() -> None:
    """Two of the same length, so that the one's key fits into the other's request."""
    mine, other = new_key(), new_key()
    stolen = mine.csr.replace(mine.spki, other.spki)
    assert stolen != mine.csr
    with pytest.raises(TrustError, match="signed with its own key"):
        check_csr(stolen)


REQUEST = new_key().csr


@given(st.data())
@example(None)
def test_any_damage_to_a_request_is_one_error(data: st.DataObject | None) -> None:
    if data is None:
        damaged = b""
    else:
        damaged_bytes = bytearray(REQUEST)
        for _ in range(data.draw(st.integers(1, 4))):
            damaged_bytes[data.draw(st.integers(0, len(REQUEST) - 1))] ^= data.draw(st.integers(1, 255))
        damaged = bytes(damaged_bytes[: data.draw(st.integers(0, len(REQUEST)))])
    with pytest.raises(TrustError):
        check_csr(damaged)


@given(st.binary(max_size=300))
@example(REQUEST + b"\0")
@example(REQUEST + REQUEST)
@example(b"\x30" * REQUEST_BYTES_MAX)
@example(b"\x30\x80" * 10_000)
def test_any_bytes_that_are_no_request_are_one_error(data: bytes) -> None:
    with pytest.raises(TrustError):
        check_csr(data)
