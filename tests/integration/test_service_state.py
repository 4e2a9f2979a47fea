"""What the daemons make of the folders and credentials that their systemd units give them."""

import os
import stat
from pathlib import Path

import pytest

from dcoord.blobs import BlobStore
from dcoord.journal import Journal
from districomp import config


@pytest.mark.parametrize(("folder_mode", "mode"), [(0o2750, 0o640), (0o750, 0o600), (0o755, 0o600)])
def test_the_journal_is_its_groups_only_in_a_folder_that_was_made_for_the_group(
    tmp_path: Path, folder_mode: int, mode: int
) -> None:
    folder = tmp_path / "dcoord"
    folder.mkdir()
    folder.chmod(folder_mode)
    journal = Journal.open(folder / "journal.sqlite")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.glob("journal.sqlite*")}
    journal.close()
    assert modes.pop("journal.sqlite-lock") == 0o600
    assert set(modes) == {"journal.sqlite", "journal.sqlite-wal", "journal.sqlite-shm"}
    assert set(modes.values()) == {mode}


def test_blobs_of_either_user_can_be_removed_by_the_other(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        root = tmp_path / "blobs"
        root.mkdir()
        root.chmod(0o2770)
        path = BlobStore(root).path(BlobStore(root).put_bytes(b"x" * 100).sha256.hex())
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    for folder in (path.parent, root / "tmp"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o2770


@pytest.mark.parametrize(("content", "is_used"), [("dcw1-a-b\n", True), ("\n", False), (None, False)])
def test_a_credential_that_the_machine_was_not_given_is_no_token_file(
    tmp_path: Path, content: str | None, is_used: bool
) -> None:
    file = tmp_path / "districomp.token"
    if content is not None:
        file.write_text(content)
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path), "DISTRICOMP_TOKEN_FILE": str(file)}
    parsed = config.parse_worker_file(b"token_file: /etc/districomp/token\n", "dworker.yaml", environ)
    assert parsed.token_file == (file if is_used else Path("/etc/districomp/token"))


def test_a_file_that_a_person_named_is_the_token_file_even_before_it_is_filled(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.touch()
    parsed = config.parse_worker_file(b"", "dworker.yaml", {"DISTRICOMP_TOKEN_FILE": str(file)})
    assert parsed.token_file == file
