"""`make lock`: resolve pyproject.toml into requirements/dev.lock, run.lock, system.lock and fuzz.lock, with hashes.

For every platform and Python that the project supports, from PyPI, without a trace of the machine it
ran on. Uses uv, in an environment of its own that is thrown away. Standard library only.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = [
    "--universal",
    "--python-version=3.11",
    "--generate-hashes",
    "--no-annotate",
    "--no-emit-index-url",
    "--no-emit-find-links",
    "--no-config",
    "--quiet",
    "--custom-compile-command=make lock",
]
WITHIN = "--constraint=requirements/dev.lock"
LOCKS = {
    "dev.lock": ["--group=dev"],
    "run.lock": ["--group=build", WITHIN],
    "system.lock": ["--group=system", WITHIN],
    "fuzz.lock": ["--group=fuzz", WITHIN],
}
"""The others after dev.lock and within it: one version of a package, whoever needs it."""


def main() -> int:
    """0, or the exit code of what failed."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            _run(sys.executable, "scripts/pip_into.py", folder, "install", "--quiet", "uv")
            for name, options in LOCKS.items():
                _run(
                    f"{folder}/bin/uv",
                    "pip",
                    "compile",
                    *OPTIONS,
                    *options,
                    "pyproject.toml",
                    "-o",
                    f"requirements/{name}",
                )
        except subprocess.CalledProcessError as error:
            return int(error.returncode)
    return 0


def _run(*command: str) -> None:
    subprocess.run(command, check=True, cwd=ROOT)


if __name__ == "__main__":
    sys.exit(main())
