"""A Debian root of another processor, whose programs run by emulation: `qemu-user-static` in a private binfmt_misc.

Owns the root (Debian's Python and a shell, built once from the building machine's own apt sources, only unpacked:
nothing of it runs for that), and starting a program in it. The kernel of the building machine runs all the same, with
its network. Needs root, a kernel of 6.7 or later, mmdebstrap and qemu-user-static.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from scripts import debian_root, packages

ROOT: Final = Path(__file__).resolve().parents[2]
PACKAGES: Final = ("python3", "dash", "coreutils")
DEBIAN: Final = "arm64"
_RECIPE: Final = 1
"""Part of the root's name: count up when how it is built changes."""
_FOLDERS: Final = ("proc", "dev", "tmp", "code", "packages", "worker")

# ELF, 64 bits, little endian, executable or shared object, AArch64. F: the emulator is opened now, for it is not in there.
_MAGIC: Final = (
    r":districomp-aarch64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
    r":\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:/usr/bin/qemu-aarch64-static:F"
)
_ENTER: Final = """\
set -e
root=$1 code=$2 packages=$3 worker=$4
shift 4
mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
printf %s "$MAGIC" > /proc/sys/fs/binfmt_misc/register
unset MAGIC
mount --rbind /proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --bind "$code" "$root/code"
mount --bind "$packages" "$root/packages"
mount --bind "$worker" "$root/worker"
mount -t tmpfs none "$root/tmp"
exec chroot "$root" "$@"
"""


def foreign_root() -> Path:
    """The root's folder, built if it is not there (a quarter of a minute)."""
    release = debian_root._release()
    sources = debian_root.apt_sources(release)
    key = hashlib.sha256("\n".join([str(_RECIPE), release, DEBIAN, *PACKAGES, sources]).encode()).hexdigest()[:12]
    root = debian_root.cache_folder() / f"root-{release}-{DEBIAN}-{key}"
    with debian_root.locked(root.with_suffix(".lock")):
        if not root.is_dir():
            unfinished = root.with_suffix(".new")
            shutil.rmtree(unfinished, ignore_errors=True)
            with tempfile.NamedTemporaryFile("w", suffix=".sources") as file:
                file.write(sources)
                file.flush()
                command = ["mmdebstrap", "--quiet", f"--arch={DEBIAN}", "--variant=extract", "--mode=root"]
                command += [f"--include={','.join(PACKAGES)}", '--aptopt=APT::Install-Recommends "false"']
                subprocess.run([*command, release, str(unfinished), file.name], check=True, stdout=subprocess.DEVNULL)
            for name in _FOLDERS:
                (unfinished / name).mkdir(exist_ok=True)
            unfinished.rename(root)
    return root


def foreign_packages(folder: Path) -> None:
    """The libraries that the worker needs, as they are locked, for that processor."""
    with tempfile.TemporaryDirectory() as work:
        build = packages.Build("0", DEBIAN, packages.PYTHON, 0, Path(work), ROOT / ".venv")
        for wheel in packages._locked_wheels(build):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)


def foreign_command(
    root: Path, libraries: Path, worker: Path, environment: Mapping[str, str], command: Sequence[str]
) -> list[str]:
    """What starts a command in there, with `/code`, `/packages` and, to write in, `/worker`; it ends with that."""
    own = [f"{name}={value}" for name, value in environment.items()]
    enter = ["unshare", "--user", "--map-root-user", "--mount", "--propagation=private"]
    folders = [str(root), str(ROOT / "daemons"), str(libraries), str(worker)]
    return ["env", f"MAGIC={_MAGIC}", *enter, "sh", "-c", _ENTER, "sh", *folders, "/usr/bin/env", "-i", *own, *command]


if __name__ == "__main__":
    sys.stdout.write(f"{foreign_root()}\n")
