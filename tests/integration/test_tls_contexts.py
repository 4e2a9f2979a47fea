"""Keys and certificates on their way into OpenSSL: where they lie meanwhile, and what is said of damaged ones."""

import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from dcoord.authority import Authority
from districomp import tls
from districomp.errors import TrustError
from districomp.keys import new_key
from tests.integration import tlslab
from tests.integration.tlslab import member
from tests.patience import PATIENCE_S


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.open(tmp_path / "dcoord" / "trust", "lab")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 (their number)


def test_a_key_gets_no_name_on_a_disk(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere/at/all")
    before = descriptors()
    who = member(authority)
    client = who.context(*authority.authorities)
    assert tlslab.blocking(authority.server_context(), client, tls.server_name(authority.cluster)).good
    with pytest.raises(TrustError):
        tls.load_chain(client, tls.to_pem([who.certificate]), new_key().key)
    assert descriptors() == before


def test_without_memory_files_it_is_a_file_that_goes_at_once(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on systems other than Linux."""
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    with pytest.raises(FileNotFoundError):
        authority.server_context()
    (tmp_path / "tmp").mkdir()
    before = descriptors()
    who = member(authority)
    client = who.context(*authority.authorities)
    assert tlslab.blocking(authority.server_context(), client, tls.server_name(authority.cluster)).good
    with pytest.raises(TrustError):
        tls.load_chain(client, tls.to_pem([who.certificate]), new_key().key)
    assert not list((tmp_path / "tmp").iterdir())
    assert descriptors() == before


def test_a_process_that_shows_nobody_its_memory_can_load_its_key(authority: Authority, tmp_path: Path) -> None:
    """PR_SET_DUMPABLE 0 gives /proc/self to root; dworker does it. As another user than root, where we are root."""
    who = member(authority)
    given = tmp_path / "given"
    given.mkdir()
    (given / "authority").write_bytes(authority.authorities[0])
    (given / "certificate").write_bytes(tls.to_pem([who.certificate]))
    (given / "key").write_bytes(who.key.key)
    program = f"""
import ctypes, os, sys
from pathlib import Path
from districomp import tls
given = [Path({str(given)!r}, name).read_bytes() for name in ("authority", "certificate", "key")]
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
assert ctypes.CDLL(None).prctl(4, 0, 0, 0, 0) == 0
context = tls.client_context(given[:1], given[1], given[2])
print("loaded as user", os.geteuid())
"""
    ran = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert "loaded as user" in ran.stdout, ran.stderr


def test_what_is_damaged_is_one_error_that_shows_no_key(authority: Authority) -> None:
    who, other = member(authority), new_key()
    certificate = tls.to_pem([who.certificate])
    wrong: list[Callable[[], object]] = [
        who.context,
        lambda: who.context(b""),
        lambda: who.context(b"not a certificate"),
        lambda: who.context(authority.authorities[0][:-1]),
        # What is no authority is not to be believed, whoever sent it.
        lambda: who.context(who.certificate),
        lambda: who.context(authority.authorities[0], who.certificate),
        lambda: who.context(*[authority.authorities[0]] * (tls.CERTIFICATES_MAX + 1)),
        lambda: tls.client_context(authority.authorities, certificate, other.key),
        lambda: tls.client_context(authority.authorities, certificate, who.key.key[:-40]),
        lambda: tls.client_context(authority.authorities, certificate),
        lambda: tls.client_context(authority.authorities, b"-----BEGIN", who.key.key),
        lambda: tls.from_pem(b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----"),
        lambda: tls.from_pem(b"x" * (tls.PEM_BYTES_MAX + 1)),
    ]
    secret = who.key.key.decode().splitlines()[1]
    for number, attempt in enumerate(wrong):
        with pytest.raises(TrustError) as caught:
            pytest.fail(f"attempt {number} gave {attempt()}")
        text = "".join(traceback.format_exception(caught.value))
        assert secret not in text
        assert caught.value.__cause__ is None


def test_an_encrypted_key_asks_nobody_for_a_password(authority: Authority) -> None:
    """At a terminal OpenSSL would: a daemon would wait there for ever."""
    who = member(authority)
    encrypted = tlslab.encrypted(who.key.key)
    leader, follower = os.openpty()
    try:
        ran = subprocess.run(
            [sys.executable, "-c", ASKING],
            input=None,
            stdin=follower,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            env={**os.environ, "KEY": encrypted.decode(), "CERTIFICATE": tls.to_pem([who.certificate]).decode()},
        )
    finally:
        os.close(leader)
        os.close(follower)
    assert ran.stdout.strip() == "refused", ran.stderr


ASKING = """
import os, ssl
from districomp import errors, tls
try:
    tls.load_chain(tls.unverified_context(), os.environ["CERTIFICATE"].encode(), os.environ["KEY"].encode())
except errors.TrustError:
    print("refused")
"""


def test_pem_and_back(authority: Authority) -> None:
    authority.rotate(3600)
    text = tls.to_pem(authority.authorities)
    assert tls.from_pem(text) == authority.authorities
    assert tls.from_pem(b"# curl --cacert\r\n" + text.replace(b"\n", b"\r\n") + new_key().key) == authority.authorities
    assert tls.from_pem(b"") == []


def test_whoever_connects_does_not_import_cryptography() -> None:
    """It takes tens of milliseconds: a command must start fast."""
    program = "import sys; from districomp import tls; tls.unverified_context(); print('cryptography' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_S)
    assert ran.stdout.strip() == "False", ran.stderr
