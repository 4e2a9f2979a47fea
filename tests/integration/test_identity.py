"""The folder of an identity: whole or not at all, private, and never led astray by links; control sockets likewise."""

import os
import socket
import stat
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from msgspec.structs import replace

from dcoord.authority import Authority
from districomp import enrolment, keys
from districomp.errors import ConfigError, TrustError
from districomp.identity import Identity, IdentityFolder
from districomp.messages import Enrolled
from tests.patience import PATIENCE_S


@pytest.fixture
def identity(tmp_path: Path) -> Identity:
    authority = Authority.open(tmp_path / "trust", "lab")
    key = keys.new_key()
    issued = authority.sign(key.csr, "worker", "w1", "tester")
    enrolled = Enrolled(1, "worker", "w1", issued.certificate, issued.chain, authority.authorities, 1.0)
    return enrolment.assemble(enrolled, key, role="worker", name="lab", source="token", addresses=[("::1", 8420)])


def test_what_was_saved_is_loaded_and_others_can_read_it_as_pem(tmp_path: Path, identity: Identity) -> None:
    folder = IdentityFolder(tmp_path / "a" / "b")
    assert folder.load() is None
    assert folder.stamp() is None
    folder.save(identity)
    assert folder.load() == identity
    assert (folder.path / "identity.pem").read_bytes() == identity.key + identity.certificate
    assert (folder.path / "authorities.pem").read_bytes().count(b"BEGIN CERTIFICATE") == 1
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (folder.path, *folder.path.iterdir())]
    assert modes == [0o700, 0o600, 0o600, 0o600]


def test_a_folder_that_was_open_to_others_is_closed(tmp_path: Path, identity: Identity) -> None:
    folder = IdentityFolder(tmp_path / "identity")
    folder.path.mkdir()
    folder.path.chmod(0o755)
    folder.save(identity)
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700


def test_who_looked_before_another_wrote_changes_nothing(tmp_path: Path, identity: Identity) -> None:
    folder = IdentityFolder(tmp_path / "identity")
    assert folder.update(identity, None)
    seen = folder.stamp()
    folder.save(replace(identity, name="another"))
    assert not folder.update(identity, seen)
    loaded = folder.load()
    assert loaded is not None
    assert loaded.name == "another"


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[" * 100_000, b'{"key": "c2VjcmV0"}', None])
def test_a_damaged_one_is_named_and_its_content_is_not(
    tmp_path: Path, identity: Identity, content: bytes | None
) -> None:
    folder = IdentityFolder(tmp_path / "identity")
    folder.save(identity)
    file = folder.path / "identity.json"
    file.write_bytes(file.read_bytes()[:-10] if content is None else content)
    with pytest.raises(ConfigError, match="is damaged; remove the folder") as caught:
        folder.load()
    text = "".join(traceback.format_exception(caught.value))
    assert "c2VjcmV0" not in text
    assert identity.key.decode()[40:60] not in text


def test_a_link_is_not_followed(tmp_path: Path, identity: Identity) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o755)
    (tmp_path / "identity").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="link"):
        IdentityFolder(tmp_path / "identity").save(identity)
    assert not list((tmp_path / "elsewhere").iterdir())
    assert stat.S_IMODE((tmp_path / "elsewhere").stat().st_mode) == 0o755


def test_a_file_in_its_place_is_replaced_and_what_it_leads_to_is_not(tmp_path: Path, identity: Identity) -> None:
    folder = IdentityFolder(tmp_path / "identity")
    folder.path.mkdir()
    (tmp_path / "target").write_text("mine")
    (folder.path / "identity.json").symlink_to(tmp_path / "target")
    folder.save(identity)
    assert (tmp_path / "target").read_text() == "mine"
    assert folder.load() == identity


def test_no_key_in_what_is_printed(identity: Identity) -> None:
    from rich.pretty import pretty_repr

    for text in (repr(identity), str(identity), pretty_repr(identity), f"{[identity]}"):
        assert "PRIVATE" not in text
        assert "w1" in text


def test_a_certificate_for_another_key_is_refused(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path / "trust", "lab")
    issued = authority.sign(keys.new_key().csr, "worker", "w1", "tester")
    enrolled = Enrolled(1, "worker", "w1", issued.certificate, issued.chain, authority.authorities, 1.0)
    with pytest.raises(TrustError, match="belong together"):
        enrolment.assemble(enrolled, keys.new_key(), role="worker", name="lab", source="token")
    with pytest.raises(TrustError, match="role 'worker'"):
        enrolment.assemble(enrolled, keys.new_key(), role="admin", name="lab", source="token")


def test_a_control_socket_is_ours_or_it_is_none(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        enrolment.check_socket(path)
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(path)
    for other in ("file", "link"):
        with pytest.raises(TrustError, match="not believing"):
            enrolment.check_socket(tmp_path / other)
    with pytest.raises(FileNotFoundError):
        enrolment.check_socket(tmp_path / "none")


def test_the_workers_memory_is_its_own(tmp_path: Path) -> None:
    """PR_GET_DUMPABLE (3) is 0 once its main function has begun."""
    code = (
        "import ctypes\n"
        "from dworker.__main__ import main\n"
        "before = ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)\n"
        "try:\n    main(['--check-config'])\nexcept SystemExit:\n    pass\n"
        "print(before, ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))\n"
    )
    environment = {**os.environ, "DISTRICOMP_CONFIG_DIR": str(tmp_path), "DISTRICOMP_STATE_DIR": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, timeout=PATIENCE_S, check=False
    )
    assert ended.stdout.split()[-2:] == [b"1", b"0"], ended.stderr
