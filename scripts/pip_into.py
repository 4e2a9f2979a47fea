"""`pip_into.py VENV ARG...`: run pip on a virtual environment, which is made first if it is not there.

Debian splits ensurepip off its python3.11 (package python3-venv), so an environment is made without
pip and the pip of the interpreter that runs this works on it from outside. Where that interpreter has
no pip, or one older than 22.3, ensurepip must be there instead. Standard library only.
"""

import subprocess
import sys
from pathlib import Path

NO_PIP = """\
neither pip 22.3 or newer nor ensurepip is there for {python}. Install one of them, for example:
  Debian, Ubuntu:  apt install python3-pip
  Fedora:          dnf install python3-pip
or say which Python to use: make PYTHON=/path/to/python3.11
"""


def main() -> int:
    """The exit code of pip."""
    venv = Path(sys.argv[1])
    inside = venv / "bin" / "python"
    if not inside.exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--clear", venv], check=True)
    pip = _pip(inside)
    if pip is None:
        sys.stderr.write(NO_PIP.format(python=sys.executable))
        return 1
    return subprocess.run([*pip, "--disable-pip-version-check", *sys.argv[2:]], check=False).returncode


def _pip(inside: Path) -> list[str] | None:
    outer = [sys.executable, "-m", "pip", "--python", str(inside)]
    if _works([*outer, "--version"]):
        return outer
    inner = [str(inside), "-m", "pip"]
    if _works([*inner, "--version"]) or _works([str(inside), "-m", "ensurepip"]):
        return inner
    return None


def _works(command: list[str]) -> bool:
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
