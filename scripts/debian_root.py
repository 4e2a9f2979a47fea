"""`debian_root.py [PACKAGE...]`: build a minimal Debian root of this machine's own release, once; prints its folder.

Owns the cache: `$DISTRICOMP_BUILD_CACHE`, else `$XDG_CACHE_HOME/districomp`, a folder for each set of packages and
sources; whoever asks while another builds it waits. Use a root read-only (as the lower layer of an overlay). Needs
root, mmdebstrap, and the machine's own apt sources. Standard library only.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

MACHINE: Final = ("bubblewrap", "dbus", "iproute2", "procps", "python3", "systemd", "systemd-sysv")
"""A machine that boots systemd, what the packages of this project depend on, and what shows processes."""

_UNWANTED: Final = ("doc", "info", "lintian", "locale", "man")
_RECIPE: Final = 1
"""Part of a root's name: count up when the recipe below changes."""
_AFTER: Final = (
    # mmdebstrap copies the building machine's name; an empty machine-id is made at the first boot.
    'rm -f "$1/etc/hostname" "$1/etc/resolv.conf" "$1/var/lib/dbus/machine-id"; : > "$1/etc/machine-id"',
    # Where the building machine gets its packages from is its own business, and these files are to be had here.
    'rm -rf "$1"/etc/apt/sources.list "$1"/etc/apt/sources.list.d/* "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*'
    ' "$1"/etc/dpkg/dpkg.cfg.d/99mmdebstrap "$1"/etc/apt/apt.conf.d/99mmdebstrap',
)


def main() -> int:
    """The exit code."""
    try:
        sys.stdout.write(f"{debian_root(sys.argv[1:])}\n")
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def debian_root(packages: Sequence[str] = ()) -> Path:
    """The folder of a root with MACHINE and `packages`, built if it is not there (half a minute)."""
    wanted = sorted({*MACHINE, *packages})
    release = _release()
    sources = apt_sources(release)
    key = hashlib.sha256("\n".join([str(_RECIPE), release, *wanted, sources]).encode()).hexdigest()[:12]
    root = cache_folder() / f"root-{release}-{key}"
    with locked(root.with_suffix(".lock")):
        if not root.is_dir():
            _build(root, release, wanted, sources)
    return root


def cache_folder() -> Path:
    """Where built things stay between runs, outside the repository."""
    chosen = os.environ.get("DISTRICOMP_BUILD_CACHE")
    if chosen:
        return Path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "districomp"


def apt_sources(release: str, folder: Path = Path("/etc/apt")) -> str:
    """This machine's sources of Debian's own suites of a release, as one text; others' (a browser's, say) are left out."""
    suite = re.compile(rf"\b{re.escape(release)}(-updates|-security)?\b")
    found = []
    for path in sorted((folder / "sources.list.d").glob("*.sources")):
        stanzas = re.split(r"\n\s*\n", path.read_text(encoding="utf-8"))
        found += [stanza.strip() for stanza in stanzas if _serves(stanza, "Suites", suite)]
    lines = []
    for path in [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*.list"))]:
        if path.exists():
            lines += re.findall(
                rf"^deb\s+(?:\[[^]]*\]\s+)?\S+\s+{release}\S*\s+main.*$", path.read_text(), re.MULTILINE
            )
    # Both forms cannot stand in one file, and one is enough.
    text = "\n\n".join(found) or "\n".join(lines)
    if not text:
        raise ValueError(f"no apt source of {release} in {folder}: a root cannot be built")
    return text + "\n"


def _serves(stanza: str, field: str, suite: re.Pattern[str]) -> bool:
    types = re.search(r"^Types:.*\bdeb\b", stanza, re.MULTILINE)
    match = re.search(rf"^{field}:(.*)$", stanza, re.MULTILINE)
    return bool(types and match and suite.search(match[1]) and "Enabled: no" not in stanza)


def _build(root: Path, release: str, packages: Sequence[str], sources: str) -> None:
    unfinished = root.with_suffix(".new")
    shutil.rmtree(unfinished, ignore_errors=True)
    suffix = ".sources" if sources.startswith(("Types:", "#")) else ".list"
    with tempfile.NamedTemporaryFile("w", suffix=suffix) as file:
        file.write(sources)
        file.flush()
        # No .git, no network of its own: everything comes through the machine's apt.
        command = ["mmdebstrap", "--quiet", "--variant=apt", "--mode=root", f"--include={','.join(packages)}"]
        command += ['--aptopt=APT::Install-Recommends "false"']
        command += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _UNWANTED]
        command += [f"--customize-hook={hook}" for hook in _AFTER]
        subprocess.run([*command, release, str(unfinished), file.name], check=True, stdout=subprocess.DEVNULL)
    unfinished.rename(root)


def _release() -> str:
    match = re.search(r"^VERSION_CODENAME=\"?(\w+)", Path("/etc/os-release").read_text(encoding="utf-8"), re.MULTILINE)
    if match is None:
        raise ValueError("/etc/os-release names no release: this is no Debian")
    return match[1]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file: what is built in the cache is built once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main())
