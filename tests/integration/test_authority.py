"""The authority: what lasts, how it rotates, what it signs, and by what clock."""

import datetime
import logging
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from dcoord.authority import AUTHORITIES_MAX, LEAF_S, Authority
from districomp import tls
from districomp.errors import ConfigError, TrustError
from districomp.keys import new_key
from districomp.tokens import cluster_id
from tests.integration import tlslab
from tests.integration.tlslab import DAY_S, good_for, kept, member

CHILD = Path(__file__).with_name("authority_child.py")
NOBODY = 65534


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "dcoord" / "trust"


# ---- what lasts ----


def test_it_is_the_same_after_a_restart(folder: Path) -> None:
    first = Authority.open(folder, "lab")
    who = member(first)
    again = Authority.open(folder, "another name")
    assert (again.cluster, again.authorities, again.until, again.grant_key) == (
        first.cluster,
        first.authorities,
        first.until,
        first.grant_key,
    )
    assert again.cluster == cluster_id(again.authorities[0])
    assert len(again.grant_key) == 32
    assert good_for(again, first.cluster, first.authorities[0], who)


def test_two_are_two_clusters(tmp_path: Path) -> None:
    one, other = (Authority.open(tmp_path / name, "lab") for name in "ab")
    assert one.cluster != other.cluster
    assert one.grant_key != other.grant_key
    names = [x509.load_der_x509_certificate(a.authorities[0]).subject for a in (one, other)]
    assert names[0] != names[1]


# ---- rotation ----


def test_a_rotation_destroys_the_old_keys(folder: Path) -> None:
    authority = Authority.open(folder, "lab")
    before = kept(folder)
    authority.rotate(3600)
    after = (folder / "authority.json").read_text()
    assert before.key.splitlines()[1] not in after
    assert msgspec.json.encode(before.grant_key).decode() not in after
    assert authority.grant_key != before.grant_key
    assert Authority.open(folder, "lab").grant_key == authority.grant_key
    assert os.listdir(folder) == ["authority.json"]  # noqa: PTH208 (the names)


def test_an_overlap_ends_when_it_says(folder: Path) -> None:
    now = time.time()
    authority = Authority.open(folder, "lab", clock=lambda: now)
    old, ends = authority.cluster, authority.until[0]
    authority.rotate(3600)
    assert authority.until == [ends, now + 3600]
    assert not authority.expire(now + 3599)
    for opened in (authority, Authority.open(folder, "lab", clock=lambda: now + 3601)):
        opened.expire(now + 3601)
        assert len(opened.authorities) == 1
        assert cluster_id(opened.authorities[0]) != old
        assert tls.from_pem(opened.coordinator_chain()[0])[1:] == []
    # A clock that is wrong at one start costs nobody the overlap.
    assert len(Authority.open(folder, "lab", clock=lambda: now).authorities) == 2


def test_nothing_older_outlives_the_one_that_vouches_for_it(folder: Path) -> None:
    """The first one's proof of the third leads through the second."""
    now = time.time()
    authority = Authority.open(folder, "lab", clock=lambda: now)
    authority.rotate(30 * DAY_S)
    authority.rotate(3600)
    assert authority.until[1:] == [now + 3600, now + 3600]
    authority.rotate(30 * DAY_S)
    assert authority.until[1:] == [now + 30 * DAY_S, now + 3600, now + 3600]
    first_two = authority.authorities[2:]
    assert authority.expire(now + 3601)
    assert not set(first_two) & set(authority.authorities)
    assert good_for(authority, cluster_id(authority.authorities[1]), authority.authorities[1])


def test_two_rotations_at_once_follow_each_other(folder: Path) -> None:
    """The coordinator rotates in a thread: neither may be lost, and what is in memory must be what is on disk."""
    authority = Authority.open(folder, "lab")
    first = authority.authorities[0]
    with ThreadPoolExecutor(3) as threads:
        for rotation in [threads.submit(authority.rotate, 3600) for _ in range(3)]:
            rotation.result()
    assert len(authority.authorities) == 4
    assert authority.authorities == Authority.open(folder, "lab").authorities
    assert good_for(authority, cluster_id(first), first, member(authority))


def test_what_is_signed_during_a_rotation_is_of_the_old_or_of_the_new(folder: Path) -> None:
    authority = Authority.open(folder, "lab")
    former = authority.authorities[0]
    with ThreadPoolExecutor(1) as threads:
        rotation = threads.submit(authority.rotate, 3600)
        signed = [member(authority)]
        while not rotation.done():
            signed.append(member(authority))
    signed.append(member(authority))
    for who in (signed[0], *signed[-3:]):
        assert good_for(authority, authority.cluster, authority.authorities[0], who)
    subjects = {x509.load_der_x509_certificate(der).subject: der for der in authority.authorities}
    for who in signed:
        certificate = x509.load_der_x509_certificate(who.certificate)
        issuer = x509.load_der_x509_certificate(subjects[certificate.issuer])
        certificate.verify_directly_issued_by(issuer)
        assert cluster_id(subjects[certificate.issuer]) in str(certificate.extensions)
    assert former in authority.authorities


def test_without_an_overlap_all_the_others_end(folder: Path) -> None:
    authority = Authority.open(folder, "lab")
    authority.rotate(3600)
    former = authority.authorities
    authority.rotate(0)
    for opened in (authority, Authority.open(folder, "lab")):
        assert len(opened.authorities) == 1
        assert opened.authorities[0] not in former
    assert not kept(folder).authorities[0].cross


def test_overlaps_are_counted(folder: Path) -> None:
    now = time.time()
    authority = Authority.open(folder, "lab", clock=lambda: now)
    for _ in range(AUTHORITIES_MAX - 1):
        authority.rotate(3600)
    before = authority.authorities
    with pytest.raises(TrustError, match="--overlap 0s"):
        authority.rotate(3600)
    assert authority.authorities == before == Authority.open(folder, "lab", clock=lambda: now).authorities
    now += 3601
    authority.rotate(3600)
    assert authority.authorities[1] == before[0]
    assert len(authority.authorities) == 2


def test_a_rotation_that_cannot_be_written_has_not_happened(folder: Path) -> None:
    authority = Authority.open(folder, "lab")
    before = authority.cluster
    shutil.move(folder, folder.with_name("elsewhere"))
    folder.write_text("in the way")
    with pytest.raises(ConfigError, match="cannot be used"):
        authority.rotate(3600)
    assert authority.cluster == before
    assert good_for(authority, before, authority.authorities[0], member(authority))


# ---- clocks ----


@pytest.mark.parametrize(
    "clock_s", [-86400.0, 0.0, 1.0, datetime.datetime(2199, 1, 1, tzinfo=datetime.UTC).timestamp(), 253402300799.0]
)
def test_a_clock_that_is_wrong_at_the_first_start_is_forgiven(folder: Path, clock_s: float) -> None:
    wrong = Authority.open(folder, "lab", clock=lambda: clock_s)
    member(wrong)
    wrong.server_context()
    wrong.rotate(3600)
    assert len(wrong.authorities) == 2
    right = Authority.open(folder, "lab")
    assert right.authorities[0] == wrong.authorities[0]
    assert good_for(right, right.cluster, right.authorities[0], member(right))
    certificate = x509.load_der_x509_certificate(right.authorities[0])
    assert certificate.not_valid_after_utc > datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=3600)


def test_what_is_signed_lasts_as_long_as_it_says(folder: Path) -> None:
    now = float(int(time.time()))
    authority = Authority.open(folder, "lab", lifetime_s=1000, clock=lambda: now)
    issued = authority.sign(new_key().csr, "submit", "s1", "Ann")
    certificate = x509.load_der_x509_certificate(issued.certificate)
    assert issued.expires == now + 1000 == certificate.not_valid_after_utc.timestamp()
    assert certificate.not_valid_before_utc.timestamp() == now - DAY_S
    assert issued.renew_s == pytest.approx(1000 * 2 / 3)
    assert issued.chain == []
    # Never beyond the authority itself.
    at_the_end = Authority.open(folder, "lab", clock=lambda: authority.until[0] - 60)
    last = at_the_end.sign(new_key().csr, "submit", "s1", "Ann")
    assert (last.expires, last.renew_s) == (authority.until[0], 40)


def test_a_year_before_its_end_it_says_so(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    ends = Authority.open(folder, "lab").until[0]
    caplog.clear()
    now = ends - 370 * DAY_S
    Authority.open(folder, "lab", clock=lambda: now)
    assert "dctl ca rotate" not in caplog.text
    now = ends - 360 * DAY_S
    Authority.open(folder, "lab", clock=lambda: now)
    assert "dctl ca rotate" in caplog.text
    # It does not crash after its end either: a person has to reach it to rotate.
    now = ends + 5 * DAY_S
    authority = Authority.open(folder, "lab", clock=lambda: now)
    authority.server_context()
    authority.rotate(3600)
    assert authority.until[0] > now


def test_the_coordinators_certificate_is_made_anew_in_time(folder: Path) -> None:
    now = time.time()
    authority = Authority.open(folder, "lab", clock=lambda: now)
    first = authority.server_context()
    now += authority.chain_renew_s - 1
    assert authority.server_context() is first
    now += 2
    second = authority.server_context()
    assert second is not first
    assert authority.chain_renew_s < LEAF_S
    # A clock that was set back.
    now -= DAY_S
    assert authority.server_context() is not second


# ---- what is signed ----


def test_nothing_of_a_request_but_its_key_is_used(folder: Path) -> None:
    authority = Authority.open(folder, "lab")
    key = ec.generate_private_key(ec.SECP256R1())
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, tls.server_name(authority.cluster))]))
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .add_extension(x509.SubjectAlternativeName(tlslab.dns(authority.cluster)), critical=False)
        .add_extension(x509.ExtendedKeyUsage([tlslab.SERVER]), critical=False)
        .sign(key, hashes.SHA256())
    )
    issued = authority.sign(request.public_bytes(serialization.Encoding.DER), "read", "r1", "Bob")
    certificate = x509.load_der_x509_certificate(issued.certificate)
    assert certificate.public_key() == key.public_key()
    assert certificate.subject.rfc4514_string() == "UID=Bob"
    values = {type(extension.value): extension for extension in certificate.extensions}
    assert set(values) == {
        x509.BasicConstraints,
        x509.KeyUsage,
        x509.ExtendedKeyUsage,
        x509.SubjectAlternativeName,
        x509.SubjectKeyIdentifier,
        x509.AuthorityKeyIdentifier,
    }
    constraints, usage = values[x509.BasicConstraints], values[x509.KeyUsage]
    assert constraints.critical
    assert constraints.value == x509.BasicConstraints(ca=False, path_length=None)
    assert usage.critical
    assert isinstance(usage.value, x509.KeyUsage)
    assert not usage.value.key_cert_sign
    assert values[x509.ExtendedKeyUsage].value == x509.ExtendedKeyUsage([tlslab.CLIENT])
    assert values[x509.SubjectAlternativeName].value == x509.SubjectAlternativeName(
        tlslab.uri(authority.cluster, "read", "r1")
    )


def test_an_authority_can_sign_authorities_only_as_deep_as_overlaps_go(folder: Path) -> None:
    authority = Authority.open(folder, "lab")
    authority.rotate(3600)
    crosses = tls.from_pem(authority.coordinator_chain()[0])[1:]
    assert len(crosses) == 1
    for der in (*authority.authorities, *crosses):
        certificate = x509.load_der_x509_certificate(der)
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        assert constraints.critical
        assert constraints.value == x509.BasicConstraints(ca=True, path_length=AUTHORITIES_MAX - 1)
        names = certificate.extensions.get_extension_for_class(x509.NameConstraints)
        assert names.critical


@pytest.mark.parametrize(
    ("role", "identity", "name"),
    [
        ("guest", "w1", "pc"),
        ("web", "w1", "pc"),
        ("worker", "", "pc"),
        ("worker", "a/b", "pc"),
        ("worker", "w1\n", "pc"),
        ("worker", "w" * 65, "pc"),
        ("worker", "é", "pc"),
        ("worker", "../x", "pc"),
        ("worker", "w1", ""),
        ("worker", "w1", "a\nb"),
        ("worker", "w1", "a\0b"),
        ("worker", "w1", "\ud800"),
        ("worker", "w1", "n" * 65),
    ],
)
def test_nobody_that_cannot_be_read_back_gets_a_certificate(folder: Path, role: str, identity: str, name: str) -> None:
    authority = Authority.open(folder, "lab")
    with pytest.raises(TrustError):
        authority.sign(new_key().csr, role, identity, name)


def test_no_key_is_in_a_repr_or_a_log(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        authority = Authority.open(folder, "lab")
        authority.rotate(3600)
        authority.sign(new_key().csr, "worker", "w1", "pc")
    content = kept(folder)
    secrets = [content.key.splitlines()[1], msgspec.json.encode(content.grant_key).decode().strip('"')]
    for text in (caplog.text, repr(authority), repr(content), str(content.__rich_repr__()), repr(vars(authority))):
        assert not [secret for secret in secrets if secret in text]
    assert repr(content.grant_key) not in repr(vars(authority))
