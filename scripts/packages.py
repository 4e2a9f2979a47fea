"""`make packages`: build the Debian packages into dist/, from this tree, requirements/run.lock and packaging/.

The same tree gives the same bytes (SOURCE_DATE_EPOCH, else the time of the last commit). The library goes into a
virtual environment's layout in /usr/lib/districomp with every Python package that it needs, in the versions that are
locked and tested; wheels are fetched for the processor wanted, so any machine builds for any. Needs dpkg-deb and pip
with the package index that it is set up for. Standard library only.
"""

import argparse
import gzip
import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
from scripts import debian_root  # noqa: E402 -- found only from here on, when this file is run as a script

PACKAGES: Final = ("python3-districomp", "dcoord", "dworker", "districomp-client")
PYTHON: Final = "3.11"
"""Of Debian 12. Compiled libraries fit one minor version."""
PREFIX: Final = "usr/lib/districomp"
MACHINES: Final = {"amd64": "x86_64", "arm64": "aarch64"}
"""Debian's name of a processor -> the wheels'."""
GLIBC_MINORS: Final = (36, 34, 31, 28, 27, 26, 24, 17)
"""Whose wheels run on Debian 12, newest first."""
MAINTAINER: Final = "The districomp developers <districomp@localhost>"
BUILD_ONLY: Final = ("setuptools",)

_ENTRY: Final = """\
#!/{prefix}/bin/python3 -I
import sys
from {module} import {function}
sys.exit({function}())
"""


class Build(NamedTuple):
    """What is the same for all packages of one run."""

    version: str
    architecture: str
    python: str
    epoch: int
    work: Path
    venv: Path


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description="Build the Debian packages into dist/.")
    parser.add_argument("--arch", action="append", choices=sorted(MACHINES), help="processor (default: this machine's)")
    parser.add_argument("--python", default=PYTHON, help="Python of the system that it is for (default: %(default)s)")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="where setuptools and our programs run")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", metavar="FOLDER")
    parsed = parser.parse_args()
    try:
        for architecture in parsed.arch or [_output("dpkg", "--print-architecture").strip()]:
            with tempfile.TemporaryDirectory() as folder:
                build = Build(_version(), architecture, parsed.python, _epoch(), Path(folder), parsed.venv)
                for path in build_packages(build, parsed.output):
                    sys.stdout.write(f"{path}\n")
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"{error}\n{getattr(error, 'stderr', None) or ''}")
        return 1
    return 0


def build_packages(build: Build, output: Path) -> list[Path]:
    """Build every package into a folder; their files. Those for another processor beside the ones there."""
    output.mkdir(parents=True, exist_ok=True)
    built = []
    for name in PACKAGES:
        tree = build.work / name
        tree.mkdir(mode=0o755)
        if name == "python3-districomp":
            _install_library(build, tree)
        if name == "districomp-client":
            _install_completion(build, tree)
        _install_files(ROOT / "packaging" / name / "files", tree)
        built.append(_pack(build, name, tree, output))
    return built


def _install_library(build: Build, tree: Path) -> None:
    """A virtual environment, but for its interpreter: that is the system's."""
    prefix = tree / PREFIX
    packages = prefix / "lib" / f"python{build.python}" / "site-packages"
    packages.mkdir(parents=True)
    for wheel in [*_locked_wheels(build), _own_wheel(build)]:
        _unpack(wheel, packages, prefix)
    (prefix / "bin").mkdir()
    (prefix / "bin" / "python3").symlink_to("/usr/bin/python3")
    for program, module, function in _entry_points(packages):
        path = prefix / "bin" / program
        path.write_text(_ENTRY.format(prefix=PREFIX, module=module, function=function))
        path.chmod(0o755)
    # The system's own packages come after these: a task of runner `python` finds Debian's numpy, say.
    (prefix / "pyvenv.cfg").write_text(
        f"home = /usr/bin\ninclude-system-site-packages = true\nversion = {build.python}\n"
    )


def _locked_wheels(build: Build) -> list[Path]:
    """A wheel of each locked package for the target, in order of name. Fetched once: the hashes are in the lock."""
    lock = target_lock((ROOT / "requirements" / "run.lock").read_text())
    key = hashlib.sha256(f"{build.architecture} {build.python} {lock}".encode()).hexdigest()[:12]
    folder = debian_root.cache_folder() / f"wheels-{build.architecture}-{key}"
    with debian_root.locked(folder.with_suffix(".lock")):
        if not folder.is_dir():
            fetched = folder.with_suffix(".new")
            shutil.rmtree(fetched, ignore_errors=True)
            fetched.mkdir()
            _fetch(build, lock, fetched)
            fetched.rename(folder)
    return sorted(folder.glob("*.whl"))


def _fetch(build: Build, lock: str, folder: Path) -> None:
    """Wheels for the target into a folder; pure packages that have none are built here."""
    machine = MACHINES[build.architecture]
    target = ["--python-version", build.python, "--implementation", "cp"]
    target += [f"--platform=manylinux_2_{minor}_{machine}" for minor in GLIBC_MINORS]
    target += [f"--platform=manylinux2014_{machine}", "--platform=any"]
    target += [f"--abi=cp{build.python.replace('.', '')}", "--abi=abi3", "--abi=none"]
    listed = build.work / "run.lock"
    listed.write_text(lock)
    _pip(build, "download", "--require-hashes", "--no-deps", *target, f"--dest={folder}", f"--requirement={listed}")
    for source in sorted(folder.glob("*.tar.gz")):
        _pip(build, "wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}", str(source))
        source.unlink()
    wheels = sorted(folder.glob("*.whl"))
    wanted = len(re.findall(r"^[a-z0-9-]+==", lock, re.MULTILINE))
    if len(wheels) != wanted:
        raise ValueError(f"{wanted} packages are locked, but there are {len(wheels)} wheels")
    foreign = [wheel.name for wheel in wheels if not re.search(rf"-(any|\w*_{machine}(\.\w+)*)\.whl$", wheel.name)]
    if foreign:
        raise ValueError(f"not for {build.architecture}: {', '.join(foreign)}")


def target_lock(text: str) -> str:
    """A lock without what is only needed to build; what is left holds for CPython on Linux."""
    blocks = re.split(r"\n(?=[a-z0-9])", text)
    kept = [block for block in blocks if not block.startswith(tuple(f"{name}==" for name in BUILD_ONLY))]
    return "\n".join(re.sub(r" ; [^\\\n]*", " ", block) for block in kept) + "\n"


def _own_wheel(build: Build) -> Path:
    """The wheel of this tree, built from a copy: setuptools leaves things behind where it works."""
    copy = build.work / "source"
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        copy.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    for name in ("daemons", "config", "tasks"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    made = build.work / "made"
    _pip(build, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(made), str(copy))
    return next(made.glob("districomp-*.whl"))


def _unpack(wheel: Path, packages: Path, prefix: Path) -> None:
    """What a wheel's installation does, less what is of no use in a package: records and compiled files."""
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            data = re.fullmatch(r"[^/]+\.data/(\w+)/(.+)", entry.filename)
            if entry.is_dir() or re.search(r"\.dist-info/(RECORD|direct_url\.json)$|^tests?/", entry.filename):
                continue
            if data and data[1] in ("scripts", "headers"):
                continue
            target = packages / entry.filename
            if data:
                target = (prefix if data[1] == "data" else packages) / data[2]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(entry))
            target.chmod(0o755 if entry.external_attr >> 16 & 0o100 else 0o644)


def _entry_points(packages: Path) -> list[tuple[str, str, str]]:
    """Our programs: (name, module, function)."""
    text = next(packages.glob("districomp-*.dist-info/entry_points.txt")).read_text()
    return re.findall(r"^([\w-]+) = ([\w.]+):(\w+)$", text, re.MULTILINE)


def _install_completion(build: Build, tree: Path) -> None:
    """What click writes for each shell; made by the programs of the tree, whatever processor they are packed for."""
    shells = {
        "bash": "usr/share/bash-completion/completions/dctl",
        "zsh": "usr/share/zsh/vendor-completions/_dctl",
        "fish": "usr/share/fish/vendor_completions.d/dctl.fish",
    }
    for shell, name in shells.items():
        environment = {**os.environ, "_DCTL_COMPLETE": f"{shell}_source", "PYTHONPATH": str(ROOT / "daemons")}
        script = _output(
            str(build.venv / "bin" / "python"), "-c", "from dctl.__main__ import main; main()", environment=environment
        )
        target = tree / name
        target.parent.mkdir(parents=True)
        # click takes the program's name from argv[0].
        target.write_text(script.replace("_-c_", "_dctl_"))


def _install_files(listing: Path, tree: Path) -> None:
    """What a package's `files` says: `SOURCE TARGET`, `TARGET -> LINK` or `FOLDER/`; `.gz` compresses, '#' comments."""
    for line in listing.read_text().splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if words[0].endswith("/"):
            (tree / words[0]).mkdir(parents=True)
            continue
        target = tree / words[0 if "->" in words else 1]
        target.parent.mkdir(parents=True, exist_ok=True)
        if "->" in words:
            target.symlink_to(words[2])
        elif target.suffix == ".gz":
            target.write_bytes(gzip.compress((ROOT / words[0]).read_bytes(), mtime=0))
        else:
            shutil.copy(ROOT / words[0], target)


def _pack(build: Build, name: str, tree: Path, output: Path) -> Path:
    source, control = ROOT / "packaging" / name, tree / "DEBIAN"
    control.mkdir(mode=0o755)
    for script in ("postinst", "prerm", "postrm"):
        if (source / script).exists():
            shutil.copy(source / script, control / script)
            (control / script).chmod(0o755)
    paths = sorted(path for path in tree.rglob("*") if control not in (path, *path.parents))
    settings = [
        f"/{path.relative_to(tree)}\n"
        for path in paths
        if path.is_file() and path.parts[-2:-1] == ("districomp",) and path.relative_to(tree).parts[0] == "etc"
    ]
    if settings:
        (control / "conffiles").write_text("".join(settings))
    kilobytes = sum(-(-path.lstat().st_size // 1024) if path.is_file() else 1 for path in paths)
    (control / "control").write_text(_control(build, (source / "control").read_text(), kilobytes))
    for path in [tree, *tree.rglob("*")]:
        if not path.is_symlink():
            # Nothing of the builder's umask.
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)
        os.utime(path, (build.epoch, build.epoch), follow_symlinks=False)
    architecture = re.search(r"^Architecture: (\w+)$", (control / "control").read_text(), re.MULTILINE)
    assert architecture is not None, f"{source}/control names no architecture"
    package = output / f"{name}_{build.version}_{architecture[1]}.deb"
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(build.epoch)}
    _output(
        "dpkg-deb", "--root-owner-group", "-Zxz", "-z1", "--build", str(tree), str(package), environment=environment
    )
    return package


def _control(build: Build, text: str, kilobytes: int) -> str:
    major, _, minor = build.python.partition(".")
    values = {
        "VERSION": build.version,
        "ARCH": build.architecture,
        "PYTHON": build.python,
        "PYTHON_NEXT": f"{major}.{int(minor) + 1}",
    }
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    first, rest = text.split("\n", 1)
    common = f"Version: {build.version}\nMaintainer: {MAINTAINER}\nPriority: optional\nInstalled-Size: {kilobytes}\n"
    return f"{first}\n{common}{rest}"


def _version() -> str:
    """Debian's form of ours: what comes before a release sorts before it."""
    text = (ROOT / "daemons" / "districomp" / "__init__.py").read_text()
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    assert match is not None, "districomp has no __version__"
    return re.sub(r"\.?(dev|a|b|rc)(?=\d)", r"~\1", match[1])


def _epoch() -> int:
    """Unix seconds that every file in a package is dated by."""
    if text := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(text)
    try:
        return int(_output("git", "-c", "safe.directory=*", "-C", str(ROOT), "log", "-1", "--format=%ct"))
    except (OSError, subprocess.CalledProcessError):
        return int(time.time())  # not a repository: a released archive sets the variable


def _pip(build: Build, *arguments: str) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "pip_into.py"), str(build.venv), *arguments, "--quiet"]
    _output(*command, environment={**os.environ, "SOURCE_DATE_EPOCH": str(build.epoch)})


def _output(*command: str, environment: dict[str, str] | None = None) -> str:
    """What a command prints; CalledProcessError carries what it said of its failure."""
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


if __name__ == "__main__":
    sys.exit(main())
