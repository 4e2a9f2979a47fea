"""`make -C os image`: build a worker that boots from memory, as kernel + initial RAM disk, into dist/os/.

Owns what is in it: a Debian root (debian_root.py) with the project's packages, os/root above it, and drivers for network
cards but for no disk; all in a squashfs in the initial RAM disk. The same tree and the same Debian packages give the
same bytes. A token or a cluster's id is baked in as a second archive behind the first, so that the big one is built
once and kept in the cache. Needs root, mmdebstrap, squashfs-tools, kmod, apt and what `make packages` needs.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
from scripts import cpio, debian_root, kernel  # noqa: E402 -- found only from here on, as a script

PACKAGES: Final = ("kmod", "udev")
"""Beside what every root has."""
OURS: Final = ("python3-districomp", "dworker")
_RECIPE: Final = 1
"""Part of a built image's name: count up when the recipe below changes in a way that its inputs do not show."""

_KEPT: Final = 4
"""So many images stay in the cache: each change of the tree makes another."""

_UNWANTED: Final = (
    # Nothing is installed on this machine, and nobody logs in there.
    "boot", "dev", "home", "media", "mnt", "proc", "root", "run", "srv", "sys", "tmp",
    "etc/apt", "etc/cron.daily", "etc/fstab", "etc/logrotate.d", "etc/.pwd.lock", "etc/passwd-", "etc/shadow-",
    "etc/group-", "etc/gshadow-", "etc/subuid-", "etc/subgid-", "etc/districomp/dworker.yaml",
    "usr/bin/apt*", "usr/bin/deb*", "usr/bin/dpkg*", "usr/bin/gpgv", "usr/bin/perl*", "usr/bin/qemu-*", "usr/games",
    "usr/include", "usr/lib/apt", "usr/lib/dpkg", "usr/lib/mime", "usr/lib/x86_64-linux-gnu/gconv",
    "usr/lib/x86_64-linux-gnu/libapt*", "usr/lib/x86_64-linux-gnu/perl*", "usr/lib/x86_64-linux-gnu/libperl*",
    "usr/lib/python3.*/ensurepip", "usr/lib/python3.*/idlelib", "usr/lib/python3.*/lib2to3", "usr/lib/python3.*/test",
    "usr/lib/python3.*/pydoc_data", "usr/lib/python3.*/turtledemo", "usr/lib/udev/hwdb.d", "usr/lib/udev/hwdb.bin",
    "usr/share/bash-completion", "usr/share/doc", "usr/share/i18n", "usr/share/info", "usr/share/keyrings",
    "usr/share/lintian", "usr/share/locale", "usr/share/man", "usr/share/perl*", "usr/share/zsh",
    # What the coordinator, its page and the command line alone need.
    *(f"usr/lib/districomp/lib/python3.*/site-packages/{name}" for name in ("apsw", "dcoord", "httptools", "pygments")),
    "var/backups", "var/cache", "var/lib/apt", "var/lib/dpkg", "var/lib/systemd", "var/lib/districomp", "var/log",
    # Would look for disks, and use what they say.
    "usr/lib/systemd/system-generators/systemd-gpt-auto-generator",
    "usr/lib/systemd/system-generators/systemd-hibernate-resume-generator",
    "usr/lib/systemd/system-generators/systemd-cryptsetup-generator",
    "usr/lib/systemd/system-generators/systemd-integritysetup-generator",
    "usr/lib/systemd/system-generators/systemd-veritysetup-generator",
)  # fmt: skip
_FOLDERS: Final = ("dev", "proc", "root", "run", "sys", "tmp", "var/cache", "var/lib", "var/log", "boot", "mnt", "home")
_ENABLED: Final = (
    "districomp-console.service", "districomp-machine.service", "districomp-resolver.path", "dworker.service",
    "systemd-networkd.service",
)  # fmt: skip
_MASKED: Final = (
    # Nobody logs in.
    "console-getty.service", "getty@.service", "serial-getty@.service", "getty.target", "autovt@.service",
    "emergency.service", "rescue.service", "systemd-ask-password-console.path", "systemd-ask-password-wall.path",
    # Nothing is kept.
    "systemd-journal-flush.service", "systemd-pstore.service", "systemd-random-seed.service", "ldconfig.service",
    "systemd-update-utmp.service", "systemd-update-utmp-runlevel.service", "systemd-hwdb-update.service",
    "systemd-journal-catalog-update.service", "systemd-sysusers.service", "systemd-update-done.service",
    "systemd-machine-id-commit.service", "systemd-firstboot.service",
    # Nothing waits for a network, which may never be complete.
    "systemd-networkd-wait-online.service",
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer",
    "e2scrub_reap.service", "systemd-binfmt.service", "proc-sys-fs-binfmt_misc.automount",
    # What nothing here uses, and what takes its time where processors are slow.
    "dev-hugepages.mount", "sys-kernel-config.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount",
    "modprobe@configfs.service", "modprobe@dm_mod.service", "modprobe@drm.service", "modprobe@loop.service",
    "kmod-static-nodes.service", "systemd-remount-fs.service", "systemd-user-sessions.service",
    "systemd-pcrphase.service", "systemd-pcrphase-sysinit.service",
)  # fmt: skip
_DEBUG_SHELL: Final = """\
[Unit]
Description=A root shell for whoever is at the second serial line
[Service]
ExecStart=/bin/bash -i
Environment=HOME=/root TERM=vt220
WorkingDirectory=/root
StandardInput=tty
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS1
Restart=always
IgnoreSIGPIPE=no
KillSignal=SIGHUP
[Install]
WantedBy=multi-user.target
"""


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description="Build the worker's boot image.")
    parser.add_argument("--output", type=Path, default=ROOT / "dist" / "os", metavar="FOLDER")
    parser.add_argument("--small", action="store_true", help="for virtual machines: a small kernel, its few drivers")
    parser.add_argument("--packages", type=Path, metavar="FOLDER", help="with built .debs (default: build them)")
    parser.add_argument("--token-file", type=Path, metavar="F", help="bake the join token of this file in")
    parser.add_argument("--cluster", default="", metavar="ID", help="bake the id of the cluster to join in")
    parser.add_argument("--debug", action="store_true", help="a root shell on the second serial line")
    parser.add_argument("--fresh", action="store_true", help="fetch and build everything anew")
    parsed = parser.parse_args()
    os.umask(0o022)  # the builder's own would be that of the image's files
    try:
        own = baked(parsed.token_file, parsed.cluster, parsed.debug)
        if os.geteuid() != 0:
            raise ValueError("building a Debian root needs root: sudo make -C os image")
        built = build(parsed.small, parsed.packages, parsed.fresh)
        for path in put(built, own, parsed.output):
            sys.stdout.write(f"{path}  {path.stat().st_size / 1e6:.1f} MB\n")
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"{error}\n{getattr(error, 'stderr', None) or ''}")
        return 1
    return 0


def baked(token_file: Path | None, cluster: str, debug: bool) -> dict[str, cpio.Entry]:
    """What one image alone has. ValueError says what is wrong with it."""
    entries = {}
    if token_file is not None:
        token = token_file.read_text("ascii").strip()
        # As strict as districomp.tokens, which is not to be had here, is about its form; it never gets into a message.
        if not re.fullmatch(r"dcw1-[a-z2-7]{26}-[a-z2-7]{26}", token.lower()):
            raise ValueError(f"{token_file} holds no worker's join token; make one with: dctl token create worker")
        entries["etc/credstore"] = cpio.folder(0o700)
        entries["etc/credstore/districomp.token"] = cpio.file(token.encode() + b"\n", 0o600)
    if cluster:
        if not re.fullmatch(r"[a-z2-7]{26}", cluster.lower()):
            raise ValueError(f"{cluster!r} is not a cluster's id; dctl status shows it")
        line = f"districomp.cluster={cluster.lower()}\n"
        entries["usr/lib/districomp/baked"] = cpio.file(line.encode())
    if debug:
        unit = "etc/systemd/system/districomp-debug.service"
        entries[unit] = cpio.file(_DEBUG_SHELL.encode())
        entries["etc/systemd/system/multi-user.target.wants/districomp-debug.service"] = cpio.link(f"/{unit}")
    return {f"baked/{path}": entry for path, entry in entries.items()}


def build(small: bool, debs: Path | None, fresh: bool = False) -> Path:
    """The folder, in the cache, of an image for everybody: `vmlinuz`, `initrd.img` and `cmdline`. Built if need be."""
    with tempfile.TemporaryDirectory() as folder:
        found = _our_packages(debs, Path(folder))
        epoch = _date(found[0])
        root = debian_root.debian_root(PACKAGES)
        if fresh:
            shutil.rmtree(root)
            root = debian_root.debian_root(PACKAGES)
        tree = kernel.fetched(small, fresh)
        key = _key([*found, *_own_inputs()], [str(_RECIPE), root.name, tree.name])
        built = debian_root.cache_folder() / f"image-{key}"
        with debian_root.locked(built.with_suffix(".lock")):
            if fresh:
                shutil.rmtree(built, ignore_errors=True)
            if not built.is_dir():
                _build(root, tree, found, built, epoch)
                _forget_old(built)
    return built


def _forget_old(built: Path) -> None:
    """Remove those from the cache that were built before the last few."""
    others = [path for path in built.parent.glob("image-*") if path.is_dir() and path.suffix == ""]
    for path in sorted(others, key=lambda path: path.stat().st_mtime)[:-_KEPT]:
        shutil.rmtree(path, ignore_errors=True)
        path.with_suffix(".lock").unlink(missing_ok=True)


def _our_packages(debs: Path | None, work: Path) -> list[Path]:
    folder = debs
    if folder is None:
        folder = work / "debs"
        _run(sys.executable, str(ROOT / "scripts" / "packages.py"), "--output", str(folder))
    found = [path for name in OURS for path in sorted(folder.glob(f"{name}_*.deb"))]
    if len(found) != len(OURS):
        raise ValueError(f"{folder} has not one package each of {', '.join(OURS)}: run make packages")
    return found


def _date(deb: Path) -> int:
    """Unix seconds that a package is dated by, and the image with it: those of its first part (ar(5))."""
    with deb.open("rb") as file:
        return int(file.read(36)[24:])


def _own_inputs() -> list[Path]:
    files = [path for path in (ROOT / "os" / "root").rglob("*") if path.is_file()]
    scripts = [ROOT / "scripts" / f"{name}.py" for name in ("worker_image", "kernel", "cpio")]
    return [ROOT / "os" / "init", *sorted(files), *scripts]


def _key(files: Iterable[Path], texts: Iterable[str]) -> str:
    digest = hashlib.sha256("\n".join(texts).encode())
    for path in files:
        digest.update(f"{path.name} {path.stat().st_mode & 0o111} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _build(root: Path, tree: Path, debs: list[Path], built: Path, epoch: int) -> None:
    unfinished = built.with_suffix(".new")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=built.parent) as folder:
        work = Path(folder) / "root"
        _run("cp", "--archive", "--reflink=auto", f"{root}/.", str(work))
        _install(work, debs, epoch)
        kernel.install_modules(tree, work)
        _strip(work)
        _settle(work)
        _compile(work, epoch)
        squashed = Path(folder) / "root.squashfs"
        _run("mksquashfs", str(work), str(squashed), "-comp", "zstd", "-Xcompression-level", "15", "-no-xattrs",
             "-noappend", "-no-progress", "-quiet", environment={"SOURCE_DATE_EPOCH": str(epoch)})  # fmt: skip
        with (unfinished / "initrd.img").open("wb") as file:
            cpio.write(_early(tree, squashed), file, epoch)
    shutil.copyfile(kernel.image(tree), unfinished / "vmlinuz")
    shutil.copyfile(ROOT / "os" / "cmdline", unfinished / "cmdline")
    unfinished.rename(built)


def _install(work: Path, debs: list[Path], epoch: int) -> None:
    """Our packages, by Debian's own means, and what lies in os/root."""
    for path in debs:
        shutil.copy(path, work / "tmp" / path.name)
    inside = [f"/tmp/{path.name}" for path in debs]
    _run("chroot", str(work), "dpkg", "--install", *inside, environment={"SOURCE_DATE_EPOCH": str(epoch)})
    shutil.copytree(ROOT / "os" / "root", work, symlinks=True, dirs_exist_ok=True)
    for path in (ROOT / "os" / "root").rglob("*"):
        target = work / path.relative_to(ROOT / "os" / "root")
        # Nothing of the builder's umask.
        target.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    # When passwords were last changed: nobody has one.
    shadow = work / "etc" / "shadow"
    shadow.write_text(re.sub(r"^([^:]*:[^:]*:)\d*:", r"\1:", shadow.read_text(), flags=re.MULTILINE))


def _strip(work: Path) -> None:
    """Take away what a worker never needs."""
    for pattern in _UNWANTED:
        for path in sorted(work.glob(pattern)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    for path in sorted(work.rglob("__pycache__")):
        shutil.rmtree(path)
    for name in _FOLDERS:
        (work / name).mkdir(parents=True, exist_ok=True)
        (work / name).chmod(0o1777 if name == "tmp" else 0o755)
    (work / "root").chmod(0o700)


def _settle(work: Path) -> None:
    """What is started and what is not, and the few files that are made at the first start elsewhere."""
    units = work / "etc" / "systemd" / "system"
    for folder in units.glob("*.wants"):
        shutil.rmtree(folder)
    for name in _ENABLED:
        wanted = units / ("sockets.target.wants" if name.endswith(".socket") else "multi-user.target.wants") / name
        wanted.parent.mkdir(exist_ok=True)
        inside = Path("etc/systemd/system") / name
        wanted.symlink_to(f"/{inside if (work / inside).exists() else Path('usr/lib/systemd/system') / name}")
    for name in _MASKED:
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to("/dev/null")
    (units / "default.target").unlink(missing_ok=True)
    (units / "default.target").symlink_to("/usr/lib/systemd/system/multi-user.target")
    (work / "etc" / "machine-id").write_text("")  # made at each start
    (work / "etc" / "resolv.conf").unlink(missing_ok=True)
    (work / "etc" / "resolv.conf").symlink_to("/run/resolv.conf")
    (work / "etc" / "hostname").unlink(missing_ok=True)


def _compile(work: Path, epoch: int) -> None:
    """Python's byte code, which would else be made at each start; not to be judged by the files' times, which change."""
    fixed = {"SOURCE_DATE_EPOCH": str(epoch), "PYTHONHASHSEED": "0"}
    _run("chroot", str(work), "python3", "-m", "compileall", "-q", "-j1", "--invalidation-mode", "unchecked-hash",
         "/usr/lib/python3", "/usr/lib/python3.11", "/usr/lib/districomp", environment=fixed)  # fmt: skip


def _early(tree: Path, squashed: Path) -> dict[str, cpio.Entry]:
    """What the kernel unpacks: the first program, drivers for the root, and the root."""
    modules = kernel.early_modules(tree)
    entries = {
        "init": cpio.file((ROOT / "os" / "init").read_bytes(), 0o755),
        "bin/busybox": cpio.file(kernel.busybox(tree).read_bytes(), 0o755),
        "modules.list": cpio.file("".join(f"/modules/{path.name}\n" for path in modules).encode()),
        "root.squashfs": cpio.file(squashed.read_bytes()),
        "dev/console": cpio.device(5, 1),
    }
    for name in ("cp", "insmod", "mkdir", "mount", "reboot", "sh", "sleep", "switch_root", "umount"):
        entries[f"bin/{name}"] = cpio.link("busybox")
    for name in ("dev", "lower", "new", "proc", "sys", "upper"):
        entries[name] = cpio.folder()
    return entries | {f"modules/{path.name}": cpio.file(path.read_bytes()) for path in modules}


def put(built: Path, own: dict[str, cpio.Entry], output: Path) -> list[Path]:
    """The image's files in a folder; what holds a token is for its owner's eyes."""
    output.mkdir(parents=True, exist_ok=True)
    has_secret = any(path.endswith("districomp.token") for path in own)
    paths = [output / name for name in ("vmlinuz", "initrd.img", "cmdline")]
    for path in paths:
        # Not to be seen half written by a machine that boots, and never for a moment readable by others.
        unfinished = path.with_suffix(".new")
        unfinished.unlink(missing_ok=True)
        mode = 0o600 if has_secret and path.name == "initrd.img" else 0o644
        opened = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(opened, "wb") as file, (built / path.name).open("rb") as source:
            shutil.copyfileobj(source, file)
            if own and path.name == "initrd.img":
                cpio.write(own, file, 0)
        unfinished.rename(path)
    return paths


def _run(*command: str, environment: dict[str, str] | None = None) -> None:
    """Run quietly; CalledProcessError carries what it said of its failure."""
    own = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive", **(environment or {})}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=own)


if __name__ == "__main__":
    sys.exit(main())
