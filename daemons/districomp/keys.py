"""Keys and certificate requests: ECDSA on P-256, the only kind that is made or taken here.

Imports `cryptography` (tens of milliseconds): others import this module where they need a key, not at their top.
"""

from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from districomp.errors import TrustError

REQUEST_BYTES_MAX: Final = 4096
"""Ours have about 220."""
_HASHES: Final = (hashes.SHA256, hashes.SHA384, hashes.SHA512)


class NewKey(NamedTuple):
    """A private key (PKCS#8, PEM), the request for its certificate (PKCS#10, DER) and its public key (SPKI, DER)."""

    key: bytes
    csr: bytes
    spki: bytes

    def __repr__(self) -> str:
        # A key must not get into a log by way of a traceback.
        return "NewKey(...)"


def new_key() -> NewKey:
    """A key that nobody has, with a request that says nothing but that whoever sends it has the key."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return NewKey(private_pem(key), request.public_bytes(serialization.Encoding.DER), spki_of(key.public_key()))


def check_csr(der: bytes) -> bytes:
    """The public key (SPKI, DER) of a request that is signed with it. TrustError for anything else."""
    return spki_of(requested_key(der))


def requested_key(der: bytes) -> ec.EllipticCurvePublicKey:
    """The same as an object, to be put into a certificate. Nothing else of a request is ever used."""
    if len(der) > REQUEST_BYTES_MAX:
        raise TrustError(f"a certificate request of more than {REQUEST_BYTES_MAX} bytes is not read")
    try:
        request = x509.load_der_x509_csr(der)
        key = request.public_key()
        # Without this somebody could ask for a certificate for another's key.
        signed = request.is_signature_valid and isinstance(request.signature_hash_algorithm, _HASHES)
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion):
        raise TrustError("this is not a certificate request") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise TrustError("a certificate request must be for a key on P-256; make it with a current districomp")
    if not signed:
        raise TrustError("a certificate request must be signed with its own key")
    return key


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as PEM (PKCS#8), not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def spki_of(key: ec.EllipticCurvePublicKey) -> bytes:
    """A public key as SubjectPublicKeyInfo (DER): one form only, whatever form it came in."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
