"""The worker's image in QEMU, on a network without DHCP: it joins by a token, by a person, and says what is wrong."""

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts import debian_root

from .imagelab import BOOT_S, BUILD_S, Site, built_image, built_packages, site

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

MAC = "52:54:00:1a:2b:3c"
NAME = "dworker-1a2b3c"


@pytest.fixture(scope="module")
def debs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_packages(tmp_path_factory.mktemp("debs"))


@pytest.fixture(scope="module")
def image(debs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_image(tmp_path_factory.mktemp("image"), f"DEBS={debs}")


@pytest.fixture
def lab() -> Iterator[Site]:
    # A socket's path is short.
    with tempfile.TemporaryDirectory() as folder, site(Path(folder)) as found:
        yield found


@pytest.fixture
def ipv4_lab() -> Iterator[Site]:
    with tempfile.TemporaryDirectory() as folder, site(Path(folder), has_ipv6=False) as found:
        yield found


@pytest.mark.timeout(2 * BUILD_S)
def test_the_same_packages_give_the_same_bytes(
    image: Path, debs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built again from the same Debian packages, by somebody else, elsewhere on earth."""
    cache = tmp_path / "cache"
    cache.mkdir()
    for kind in ("root-*", "kernel-*"):
        for folder in debian_root.cache_folder().glob(kind):
            (cache / folder.name).symlink_to(folder)
    for name, value in {"DISTRICOMP_BUILD_CACHE": str(cache), "TZ": "Asia/Tokyo", "LANG": "C"}.items():
        monkeypatch.setenv(name, value)
    before = os.umask(0o077)
    try:
        again = built_image(tmp_path / "again", f"DEBS={debs}")
    finally:
        os.umask(before)
    assert list(cache.glob("image-*")), "nothing was built anew"
    for name in ("vmlinuz", "initrd.img", "cmdline"):
        one, other = (hashlib.sha256((folder / name).read_bytes()).hexdigest() for folder in (image, again))
        assert one == other, name


@pytest.mark.timeout(BUILD_S + 300)
def test_a_machine_with_a_token_joins_and_works(image: Path, lab: Site, tmp_path: Path) -> None:
    """No DHCP, a clock that is years off, a disk with swap space on it: nothing of that is asked for or touched."""
    disk = tmp_path / "disk"
    before = make_disk(disk)
    lab.define("boxed", {"version": 1, "command": ["sh", "-c", "ls /proc | grep -c ^[0-9]"], "isolation": "sandbox"})
    drive = ("-drive", f"file={disk},format=raw,if=virtio", "-rtc", "base=2038-05-04")
    token = lab.token()
    with lab.boot(image, "--mac", MAC, "--memory", "256", token=token, more=drive) as pc:
        assert token.rpartition("-")[2].encode() not in Path(f"/proc/{pc.pid}/cmdline").read_bytes()
        shown = pc.until("JOINED")
        assert shown["JOINED"] == "this machine works for lab"
        assert shown["name"] == NAME
        assert MAC in shown["network"]
        assert "lab at " in shown["coordinator"]
        worker = lab.worker(NAME)
        assert worker is not None
        assert worker["state"] == "idle"
        assert lab.dctl("run", "--", "uname", "-n").stdout == f"{NAME}\n"
        assert int(lab.dctl("submit", "boxed", "--results", "--timeout", "60s").stdout) < 10
        # It comes after the join, which an IPv6 address is enough for: a DHCP server has its time to answer first.
        lab.wait(lambda: "169.254." in addresses_of_machine(lab), BOOT_S, "no IPv4 address")
        print(lab.dctl("run", "--", "sh", "-c", "date; free -m; df -h /").stdout)
        check_control_groups(lab)
        assert lab.dctl("run", "--", "sh", "-c", "cat /proc/partitions | grep -c vd || true").stdout == "0\n"
    assert hashlib.sha256(disk.read_bytes()).digest() == before


def addresses_of_machine(lab: Site) -> str:
    return lab.dctl("run", "--", "ip", "-brief", "address", "show", "eth0").stdout


def make_disk(path: Path) -> bytes:
    """A disk that offers itself as swap space; its digest."""
    path.write_bytes(bytes(64 << 20))
    path.chmod(0o600)
    subprocess.run(["mkswap", "--quiet", path], check=True)
    return hashlib.sha256(path.read_bytes()).digest()


def check_control_groups(lab: Site) -> None:
    """The worker's control group is its own to divide, memory too."""
    own = "/sys/fs/cgroup$(sed 's,^0::,,;s,\\(dworker.service\\).*,\\1,' /proc/self/cgroup)"
    assert {"cpu", "memory", "pids"} <= set(
        lab.dctl("run", "--", "sh", "-c", f"cat {own}/cgroup.controllers").stdout.split()
    )
    owner = lab.dctl(
        "run", "--", "sh", "-c", f"stat -c %U {own} {own}/cgroup.procs {own}/cgroup.subtree_control"
    ).stdout
    assert owner.split() == ["dworker"] * 3


def test_a_machine_that_knows_the_cluster_waits_for_a_person(debs: Path, ipv4_lab: Site, tmp_path: Path) -> None:
    """It knows it by what was baked into its image. The coordinator has no IPv6, so an IPv4 address is waited for."""
    lab = ipv4_lab
    image = built_image(tmp_path, f"DEBS={debs}", f"CLUSTER={lab.json('status')['cluster']}")
    with lab.boot(image, "--mac", MAC, more=("-rtc", "base=2009-05-04")) as pc:
        shown = pc.until("PENDING")
        assert f"dctl worker approve {NAME}" in shown["what to do"]
        assert "169.254." in shown["network"]
        worker = lab.worker(NAME)
        assert worker is not None
        assert worker["state"] == "pending"
        assert worker["words"] == shown["its words"]
        lab.dctl("worker", "approve", NAME, "--words", shown["its words"], "--yes")
        assert pc.until("JOINED")["JOINED"] == "this machine works for lab"
        assert lab.dctl("run", "--", "uname", "-n").stdout == f"{NAME}\n"


def test_a_machine_with_a_token_that_is_refused_says_so(debs: Path, lab: Site, tmp_path: Path) -> None:
    """The token was baked into its image."""
    token = lab.token()
    lab.dctl("token", "revoke", lab.json("token", "list")[0]["id"], "--yes")
    file = tmp_path / "token"
    file.write_text(token)
    image = built_image(tmp_path / "image", f"DEBS={debs}", f"TOKEN_FILE={file}")
    assert (image / "initrd.img").stat().st_mode & 0o077 == 0
    with lab.boot(image, "--mac", MAC) as pc:
        shown = pc.until("because", "revoked")
        assert shown["NOT JOINED"] == "step 4, enrolment: refused"
        assert "dctl token create worker" in shown["what to do"]
        assert token.rpartition("-")[2] not in pc.console()
        assert lab.worker(NAME) is None
