"""The authority's folder: killed at any moment, opened twice, copied, read by others, another user's, damaged."""

import fcntl
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dcoord.authority import Authority
from dcoord.authority_file import FILE_BYTES_MAX
from districomp.errors import ConfigError
from districomp.tokens import cluster_id
from tests.integration.tlslab import good_for, kept, member
from tests.patience import PATIENCE_S

CHILD = Path(__file__).with_name("authority_child.py")
NOBODY = 65534


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "dcoord" / "trust"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# ---- at once, or not at all ----


def test_two_that_start_at_once_are_one_cluster(folder: Path, tmp_path: Path) -> None:
    """The second waits until the first has made the authority, and takes that."""
    folder.mkdir(parents=True)
    first = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(first, fcntl.LOCK_EX)
    program = f"from dcoord.authority import Authority; print(Authority.open(Path({str(folder)!r}), 'lab').cluster)"
    with subprocess.Popen(
        [sys.executable, "-c", "from pathlib import Path\n" + program], stdout=subprocess.PIPE, text=True
    ) as second:
        while not waits_for_a_lock(second.pid):
            assert second.poll() is None, "it did not wait"
            time.sleep(0.01)
        cluster = Authority.open(tmp_path / "made", "lab").cluster
        shutil.copy(tmp_path / "made" / "authority.json", folder)
        os.close(first)
        assert second.communicate(timeout=PATIENCE_S)[0].strip() == cluster


def waits_for_a_lock(process: int) -> bool:
    """By the kernel's table, whose waiting lines have an arrow: `1: -> FLOCK ADVISORY WRITE PID ...`."""
    lines = (line.split() for line in Path("/proc/locks").read_text().splitlines())
    return any(line[1] == "->" and line[5] == str(process) for line in lines)


@pytest.mark.parametrize("what", ["first", "rotate"])
def test_killed_at_any_moment_it_is_the_old_one_or_the_new_one(tmp_path: Path, what: str) -> None:
    ran = subprocess.run(
        [sys.executable, CHILD, what, tmp_path], capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    killed = int(ran.stdout)
    assert killed >= 10, "it was not killed between the steps"
    before = Authority.open(tmp_path / "before" / "trust", "lab") if what == "rotate" else None
    changed = 0
    for number in range(1, killed + 2):
        folder = tmp_path / str(number) / "trust"
        changed += before is None and (folder / "authority.json").exists()
        authority = Authority.open(folder, "lab")
        assert os.listdir(folder) == ["authority.json"]  # noqa: PTH208 (the names)
        assert mode(folder) == 0o700
        assert mode(folder / "authority.json") == 0o600
        assert Authority.open(folder, "lab").authorities == authority.authorities
        if before is not None:
            changed += len(authority.authorities) == 2
            assert authority.authorities[-1] == before.authorities[0]
            assert len(authority.authorities) in (1, 2)
        known, cluster = (before or authority).authorities[0], (before or authority).cluster
        assert good_for(authority, cluster, known, member(authority))
    # The last was not killed.
    assert 2 <= changed < killed, "all the kills were on one side of the change"
    print(f"{what}: killed {killed} times, {changed - 1} of them after the change")


# ---- the folder ----


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_whatever_the_umask_only_its_owner_reads_it(folder: Path, umask: int) -> None:
    before = os.umask(0o022)
    try:
        folder.parent.mkdir()
        os.umask(umask)
        Authority.open(folder, "lab").rotate(3600)
    finally:
        os.umask(before)
    assert mode(folder) == 0o700
    assert mode(folder / "authority.json") == 0o600


def test_a_folder_that_others_can_read_is_closed(folder: Path) -> None:
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    Authority.open(folder, "lab")
    assert mode(folder) == 0o700


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o620, 0o644])
def test_a_key_that_others_may_have_read_is_not_used(folder: Path, bits: int) -> None:
    """It came from a backup, or from another machine, with the modes of that."""
    Authority.open(folder, "lab")
    (folder / "authority.json").chmod(bits)
    with pytest.raises(ConfigError, match="chmod 600"):
        Authority.open(folder, "lab")


def test_one_that_was_copied_is_the_same_cluster(folder: Path, tmp_path: Path) -> None:
    """So does a coordinator move to another machine; that there must be one only, nobody can see from here."""
    authority = Authority.open(folder, "lab")
    shutil.copytree(folder, tmp_path / "copy" / "trust")
    assert Authority.open(tmp_path / "copy" / "trust", "lab").authorities == authority.authorities


@pytest.fixture
def passable() -> Iterator[Path]:
    """A folder that other users get through to; pytest's own they do not."""
    with tempfile.TemporaryDirectory(prefix="dc-") as path:
        Path(path).chmod(0o755)
        yield Path(path)


ANOTHER = NOBODY if os.geteuid() == 0 else os.geteuid()
"""A user that is not us, if we are root: root alone can give files away."""


def as_user(user: int, program: str) -> str:
    """The output of a program that runs as another user, or the last line of its error."""
    switch = f"import os\nif os.geteuid() == 0:\n os.setgroups([]); os.setgid({user}); os.setuid({user})\n"
    imports = "from pathlib import Path\nfrom dcoord.authority import Authority\n"
    ran = subprocess.run(
        [sys.executable, "-c", imports + switch + program],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return (ran.stdout or ran.stderr).strip().splitlines()[-1]


def test_another_users_authority_is_not_believed(passable: Path) -> None:
    if os.geteuid() != 0:
        with pytest.raises(ConfigError, match="belongs to user 0"):
            Authority.open(Path("/etc"), "lab")
        return
    folder = passable / "trust"
    cluster = Authority.open(folder, "lab").cluster
    # Their folder with our file in it, as if we had put a key there that we know.
    os.chown(folder, ANOTHER, ANOTHER)
    assert "ConfigError" in as_user(ANOTHER, f"Authority.open(Path({str(folder)!r}), 'lab')")
    (folder / "authority.json").chmod(0o644)
    said = as_user(ANOTHER, f"Authority.open(Path({str(folder)!r}), 'lab')")
    assert "belongs to user 0" in said
    (folder / "authority.json").chmod(0o600)
    # Root works for the user whose folder it is, but not with what anybody else has put into it.
    assert Authority.open(folder, "lab").cluster == cluster
    os.chown(folder / "authority.json", ANOTHER, ANOTHER)
    assert Authority.open(folder, "lab").cluster == cluster
    os.chown(folder, 0, 0)
    with pytest.raises(ConfigError, match="belongs to user"):
        Authority.open(folder, "lab")


def test_root_makes_it_for_whom_the_folder_belongs_to(passable: Path) -> None:
    """A person tried `sudo dcoord` before the service was started: the service can read what that has made."""
    above = passable / "dcoord"
    above.mkdir()
    if os.geteuid() == 0:
        os.chown(above, ANOTHER, ANOTHER)
    folder = above / "trust"
    cluster = Authority.open(folder, "lab").cluster
    Authority.open(folder, "lab").rotate(3600)
    assert folder.stat().st_uid == (folder / "authority.json").stat().st_uid == above.stat().st_uid == ANOTHER
    said = as_user(ANOTHER, f"a = Authority.open(Path({str(folder)!r}), 'lab'); a.rotate(3600); print(a.until)")
    assert said.count(",") == 2
    assert cluster_id(Authority.open(folder, "lab").authorities[2]) == cluster


def test_a_link_is_not_followed(folder: Path, tmp_path: Path) -> None:
    Authority.open(tmp_path / "other" / "trust", "lab")
    folder.mkdir(parents=True)
    (folder / "authority.json").symlink_to(tmp_path / "other" / "trust" / "authority.json")
    with pytest.raises(ConfigError, match="it is a link"):
        Authority.open(folder, "lab")


def test_what_is_no_file_is_said(folder: Path, tmp_path: Path) -> None:
    (folder / "authority.json").mkdir(parents=True)
    with pytest.raises(ConfigError, match="authority"):
        Authority.open(folder, "lab")
    os.mkfifo(tmp_path / "fifo", 0o600)
    (folder / "authority.json").rmdir()
    (tmp_path / "fifo").rename(folder / "authority.json")
    with pytest.raises(ConfigError, match="damaged"):
        Authority.open(folder, "lab")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used"):
        Authority.open(tmp_path / "file" / "trust", "lab")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_said_without_the_key(tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / "trust"
    file = folder / "authority.json"
    if not file.exists():
        Authority.open(folder, "lab").rotate(3600)
        shutil.copy(file, tmp_path / "good")
    good = (tmp_path / "good").read_bytes()
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(0, 3))):
        damaged[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(damaged[: data.draw(st.integers(0, len(good)))])
    secret = msgspec.json.decode(good)["key"].splitlines()[1]
    try:
        Authority.open(folder, "lab")
    except ConfigError as error:
        text = "".join(traceback.format_exception(error))
        assert secret not in text
        assert str(file) in str(error)
    except ValueError as error:
        raise AssertionError("a damaged file must be a ConfigError") from error


@pytest.mark.parametrize(
    "what", ["empty", "huge", "nothing", "old key", "another's", "short", "version", "wrong cross"]
)
def test_each_kind_of_damage(folder: Path, tmp_path: Path, what: str) -> None:
    authority = Authority.open(folder, "lab")
    file = folder / "authority.json"
    old = kept(folder)
    authority.rotate(3600)
    new = kept(folder)
    Authority.open(tmp_path / "other", "lab")
    changed = {
        "empty": b"",
        "huge": b" " * FILE_BYTES_MAX + msgspec.json.encode(new),
        "nothing": msgspec.json.encode(msgspec.structs.replace(new, authorities=[])),
        "old key": msgspec.json.encode(msgspec.structs.replace(new, key=old.key)),
        "another's": msgspec.json.encode(msgspec.structs.replace(new, key=kept(tmp_path / "other").key)),
        "short": msgspec.json.encode(msgspec.structs.replace(new, grant_key=b"x")),
        "version": msgspec.json.encode(msgspec.structs.replace(new, version=2)),
        "wrong cross": msgspec.json.encode(
            msgspec.structs.replace(
                new,
                authorities=[
                    msgspec.structs.replace(new.authorities[0], cross=new.authorities[0].certificate),
                    *new.authorities[1:],
                ],
            )
        ),
    }
    file.write_bytes(changed[what])
    with pytest.raises(ConfigError, match="version 2" if what == "version" else "damaged"):
        Authority.open(folder, "lab")
