"""Debian's kernel for the worker's image: fetched by apt from this machine's sources, once, with the drivers it needs.

Owns which drivers those are: for network cards, none for disks. Standard library only; needs apt, dpkg-deb and kmod.
"""

import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from scripts import debian_root

SMALL: Final = "linux-image-cloud-amd64"
"""For virtual machines."""
FULL: Final = "linux-image-amd64"
EARLY: Final = ("loop", "squashfs", "overlay")
"""Without these there is no root, in an order in which they can be loaded."""
_WANTED: Final = (
    "kernel/drivers/net/", "kernel/drivers/virtio/", "kernel/drivers/char/hw_random/", "kernel/drivers/ptp/",
    "kernel/drivers/hv/", "kernel/drivers/usb/host/", "kernel/drivers/usb/core/", "kernel/drivers/usb/common/",
    "kernel/drivers/hid/", "kernel/drivers/input/", "kernel/drivers/firmware/", "kernel/drivers/thermal/",
    "kernel/drivers/cpufreq/", "kernel/drivers/acpi/", "kernel/drivers/watchdog/", "kernel/fs/overlayfs/",
    "kernel/fs/squashfs/", "kernel/fs/autofs/", "kernel/fs/fuse/", "kernel/fs/efivarfs/", "kernel/drivers/block/loop",
    "kernel/net/ipv4/", "kernel/net/ipv6/", "kernel/net/packet/", "kernel/net/unix/", "kernel/crypto/", "kernel/arch/",
)  # fmt: skip
_UNWANTED: Final = (
    "kernel/drivers/net/wireless/", "kernel/drivers/net/can/", "kernel/drivers/net/wwan/", "kernel/drivers/net/hamradio/",
    "kernel/drivers/net/ieee802154/", "kernel/drivers/net/wireguard/", "kernel/drivers/net/arcnet/",
    "kernel/drivers/net/xen-netback", "kernel/drivers/net/netconsole", "kernel/arch/x86/kvm/",
)  # fmt: skip


def fetched(small: bool, fresh: bool = False) -> Path:
    """The folder, in the cache, of an unpacked kernel package and of busybox."""
    release = platform.freedesktop_os_release()["VERSION_CODENAME"]
    sources = debian_root.apt_sources(release)
    folder = debian_root.cache_folder() / f"kernel-{release}-{SMALL if small else FULL}"
    with debian_root.locked(folder.with_suffix(".lock")):
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
        if not folder.is_dir():
            _fetch(SMALL if small else FULL, sources, folder)
    return folder


def _fetch(name: str, sources: str, folder: Path) -> None:
    unfinished = folder.with_suffix(".new")
    shutil.rmtree(unfinished, ignore_errors=True)
    with tempfile.TemporaryDirectory() as text:
        work = Path(text)
        for part in ("lists/partial", "archives/partial", "packages"):
            (work / part).mkdir(parents=True)
        listed = work / ("apt.sources" if sources.startswith(("Types:", "#")) else "apt.list")
        listed.write_text(sources)
        # A state of its own: neither does it need the machine's lists to be there, nor does it change them.
        options = [f"-oDir::State::Lists={work}/lists", f"-oDir::Cache={work}", f"-oDir::Etc::SourceList={listed}",
                   "-oDir::Etc::SourceParts=/dev/null", "-oAPT::Sandbox::User=root", "-qq"]  # fmt: skip
        _output("apt-get", *options, "update")
        depends = _output("apt-cache", *options, "depends", name)
        image = re.search(r"Depends: (linux-image-\S+)", depends)
        if image is None:
            raise ValueError(f"{name} names no kernel: {depends}")
        _output("apt-get", *options, "download", image[1], "busybox-static", folder=work / "packages")
        for package in sorted((work / "packages").glob("*.deb")):
            _output("dpkg-deb", "--extract", str(package), str(unfinished))
    _output("depmod", "--basedir", str(unfinished), version(unfinished))
    unfinished.rename(folder)


def version(tree: Path) -> str:
    """Such as 6.1.0-50-cloud-amd64."""
    return next((tree / "lib" / "modules").iterdir()).name


def image(tree: Path) -> Path:
    """The kernel."""
    return tree / "boot" / f"vmlinuz-{version(tree)}"


def busybox(tree: Path) -> Path:
    """The program that the image's first script runs in."""
    return next(path for path in (tree / "bin" / "busybox", tree / "usr" / "bin" / "busybox") if path.exists())


def early_modules(tree: Path) -> list[Path]:
    """What must be loaded before there is a root, in order."""
    return [tree / "lib" / "modules" / version(tree) / path for path in _with_needs(tree, EARLY)]


def install_modules(tree: Path, root: Path) -> None:
    """Put the drivers into a root."""
    name = version(tree)
    source, target = tree / "lib" / "modules" / name, root / "usr" / "lib" / "modules" / name
    target.mkdir(parents=True)
    for listed in ("modules.builtin", "modules.order", "modules.builtin.modinfo"):
        shutil.copy(source / listed, target / listed)
    wanted = [
        str(path.relative_to(source))
        for path in sorted(source.rglob("*.ko*"))
        if str(path.relative_to(source)).startswith(_WANTED) and not str(path.relative_to(source)).startswith(_UNWANTED)
    ]
    for path in _with_needs(tree, [Path(one).name.split(".")[0] for one in wanted]):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / path, target / path)
    _output("depmod", "--basedir", str(root), name)


def _with_needs(tree: Path, names: Iterable[str]) -> list[str]:
    """Modules, each behind those it needs, as paths below the version's folder."""
    needs: dict[str, list[str]] = {}
    path_of: dict[str, str] = {}
    for line in (tree / "lib" / "modules" / version(tree) / "modules.dep").read_text().splitlines():
        path, _, others = line.partition(":")
        needs[path] = others.split()
        path_of[Path(path).name.split(".")[0]] = path
    ordered: dict[str, None] = {}

    def add(path: str) -> None:
        for other in reversed(needs[path]):
            if other not in ordered:
                add(other)
        ordered[path] = None

    for name in names:
        # A part of the kernel itself is no module.
        if name in path_of:
            add(path_of[name])
    return list(ordered)


def _output(*command: str, folder: Path | None = None) -> str:
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder, env=environment).stdout
