"""A folder with everything of the compared systems: virtual environments, Debian packages, npm packages, all unpacked there.

Owns how they get there and where they are then. Nothing is installed into the machine itself, so no root is needed: a
Debian package is downloaded and unpacked with those that it needs and the machine has not. Pinned are the versions from
Python's and npm's registries; Debian's are what its release has today, and are written into the results.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from bench.peers.base import ROOT

_INST: Final = re.compile(r"^Inst (\S+) (?:\[\S+\] )?\((\S+)", re.MULTILINE)
_PROGRAMS: Final = ("usr/bin", "usr/sbin", "usr/lib/postgresql/*/bin")


class InstallError(Exception):
    """Something cannot be installed here; the message says what and what to do."""


class Installation:
    """The folder, whether it is there yet or not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._debian = folder / "debian"

    def environment(self) -> dict[str, str]:
        """For every program of a system: what was unpacked here is found, nothing of ours but this repository is."""
        own = {key: value for key, value in os.environ.items() if not key.startswith("DISTRICOMP_")}
        libraries = [str(path) for path in (self._debian / "usr" / "lib").glob("*-linux-gnu*")]
        paths = [str(self._debian / "usr" / "bin"), str(self._debian / "usr" / "sbin"), own.get("PATH", "/usr/bin")]
        return own | {
            "LD_LIBRARY_PATH": ":".join([*libraries, str(self._debian / "usr" / "lib")]),
            "PATH": ":".join(paths),
            "PYTHONPATH": str(ROOT),
        }

    # ---- Python ----

    def install_python(self, name: str, *requirements: str) -> None:
        """A virtual environment with exactly these (and what they need)."""
        if self.has_python(name, *requirements):
            return
        outer = getattr(sys, "_base_executable", sys.executable)
        pip = [outer, str(ROOT / "scripts" / "pip_into.py"), str(self._venv(name))]
        _run([*pip, "install", "--quiet", *requirements], f"pip cannot install {' '.join(requirements)}")
        self._stamp(name).write_text("\n".join(requirements), encoding="ascii")

    def has_python(self, name: str, *requirements: str) -> bool:
        """Whether that environment is there, with these pins."""
        stamp = self._stamp(name)
        return stamp.exists() and stamp.read_text(encoding="ascii") == "\n".join(requirements)

    def python(self, name: str) -> Path:
        """Its interpreter."""
        return self._venv(name) / "bin" / "python"

    def _venv(self, name: str) -> Path:
        return self.folder / "venvs" / name

    def _stamp(self, name: str) -> Path:
        return self._venv(name) / "requirements.txt"

    # ---- Debian ----

    def install_debian(self, *packages: str) -> None:
        """Unpack these, and those they need that this machine has not."""
        if not shutil.which("apt-get"):
            raise InstallError(f"this is no Debian: install {', '.join(packages)} yourself")
        command = ["apt-get", "--simulate", "--no-install-recommends", "install", *packages]
        plan = _run(command, f"apt knows no {' '.join(packages)}: run `apt-get update` as root")
        files = self.folder / "debs"
        files.mkdir(parents=True, exist_ok=True)
        wanted = [f"{name}={version}" for name, version in _INST.findall(plan) if not self._deb(name)]
        if wanted:
            _run(["apt-get", "download", *wanted], f"apt cannot download {' '.join(wanted)}", cwd=files)
        for name, _ in _INST.findall(plan):
            deb = self._deb(name)
            if deb is None:
                raise InstallError(f"apt downloaded no {name}")
            _run(["dpkg-deb", "--extract", str(deb), str(self._debian)], f"dpkg cannot unpack {deb.name}")

    def debian_version(self, package: str) -> str:
        """Upstream's version of a package unpacked here, else of the machine's; empty if there is neither."""
        return re.split(r"[-+]", self._debian_version(package).rpartition(":")[2])[0]

    def _debian_version(self, package: str) -> str:
        deb = self._deb(package)
        if deb is not None:
            return deb.name.split("_")[1].replace("%3a", ":")
        if not shutil.which("dpkg-query"):
            return ""
        query = ["dpkg-query", "--show", "--showformat=${Version}", package]
        return subprocess.run(query, check=False, capture_output=True, text=True).stdout

    def program(self, name: str) -> Path | None:
        """A program of Debian's: unpacked here, else of the machine."""
        for root in (self._debian, Path("/")):
            for pattern in _PROGRAMS:
                for folder in sorted(root.glob(pattern)):
                    if (folder / name).exists():
                        return folder / name
        return None

    def found(self, name: str) -> Path:
        """As `program`, when `missing_programs` has not named it."""
        path = self.program(name)
        assert path is not None, name
        return path

    def missing_programs(self, *names: str) -> str:
        """What `Peer.missing` says of them."""
        absent = [name for name in names if not self.program(name)]
        return f"not installed: {', '.join(absent)}" if absent else ""

    def library_folder(self) -> Path:
        """Where headers and libraries of the unpacked packages begin."""
        return self._debian / "usr"

    def _deb(self, package: str) -> Path | None:
        return next(iter(sorted((self.folder / "debs").glob(f"{package}_*.deb"))), None)

    # ---- Node.js ----

    def install_node(self, package: str) -> None:
        """An npm package, NAME@VERSION, into this folder."""
        if not shutil.which("npm"):
            raise InstallError("npm is not there: install nodejs and npm")
        if self.has_node(package):
            return
        folder = self.node_folder()
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--no-save", "--no-package-lock", "--silent", package]
        _run(command, f"npm cannot install {package}", cwd=folder)
        (folder / "installed.txt").write_text(package, encoding="ascii")

    def has_node(self, package: str) -> bool:
        """Whether it is there, with this version."""
        stamp = self.node_folder() / "installed.txt"
        return stamp.exists() and stamp.read_text(encoding="ascii") == package

    def node_folder(self) -> Path:
        """Above `node_modules`."""
        return self.folder / "node"


def _run(command: list[str], failure: str, cwd: Path | None = None) -> str:
    environment = os.environ | {"LC_ALL": "C"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=cwd, env=environment)
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if not line.startswith("WARNING")]
        raise InstallError(f"{failure}: {' | '.join(lines[-3:])}")
    return done.stdout
