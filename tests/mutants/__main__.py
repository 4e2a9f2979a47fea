"""`python -m tests.mutants [--tests-pass] [NAME...]`: plants each known bug in a copy of the tree and runs the test that must catch it.

A mutant is a file NAME.toml: `why`, `tests` (ids of pytest, at least one of which must fail), one that takes a
protection away also `protects` (what that is, for docs/security.md), and one or more `[[edit]]` with `file`, `find` (must occur exactly once) and `replace`. Ends with 1 if a mutant is
alive (no test failed), or does not apply any more, or a test fails without it.
"""

import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from tests.patience import PATIENCE_S
from tests.patience import VARIABLE as PATIENCE

FOLDER: Final = Path(__file__).resolve().parent
ROOT: Final = FOLDER.parents[1]
LIMIT_S: Final = 300
SOUND_LIMIT_S: Final = 1200
"""For all the tests without a mutant."""
IN_VAIN_S: Final = 20
"""How long a test waits for what a mutant keeps from coming, as most do."""
JOBS: Final = 2 * (os.cpu_count() or 1)
"""So many mutants are tried side by side, each in a tree of its own. Most of a test for what never comes is waiting."""

PYTEST_FAILED: Final = 1
"""pytest's exit code for "tests were run, some failed"; any other but 0 means that it could not try."""

NOT_COPIED: Final = shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__", ".hypothesis", "demo-output")


class Edit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One change of one file."""

    file: str
    find: str
    replace: str


class Mutant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A bug, why it matters, and the tests of which one must fail. `protects`: the protection that it takes away."""

    name: str
    why: str
    tests: list[str]
    edit: list[Edit]
    protects: str = ""


class BrokenMutantError(Exception):
    """It does not apply, or its tests cannot be run; the message says which."""


def load(path: Path) -> Mutant:
    """Read a mutant's file."""
    content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    return msgspec.convert({"name": path.stem, **content}, Mutant)


def apply(tree: Path, mutant: Mutant) -> dict[Path, str]:
    """Change the tree; the files' texts as they were. BrokenMutantError if an edit does not fit."""
    before: dict[Path, str] = {}
    for edit in mutant.edit:
        path = tree / edit.file
        if not path.is_file():
            raise BrokenMutantError(f"{edit.file} is gone")
        text = path.read_text(encoding="utf-8")
        if text.count(edit.find) != 1:
            raise BrokenMutantError(
                f"{edit.file} has its `find` {text.count(edit.find)} times, not once: {edit.find!r}"
            )
        before.setdefault(path, text)
        path.write_text(text.replace(edit.find, edit.replace), encoding="utf-8")
    return before


@contextmanager
def planted(tree: Path, mutant: Mutant) -> Iterator[None]:
    """The tree with this bug, for the time of the block."""
    before: dict[Path, str] = {}
    try:
        before = apply(tree, mutant)
        yield
    finally:
        for path, text in before.items():
            path.write_text(text, encoding="utf-8")


def run_tests(
    tree: Path, tests: list[str], *options: str, limit_s: int = LIMIT_S, patience_s: float = PATIENCE_S
) -> int:
    """pytest's exit code; the copy's code is imported, in child processes too."""
    environment = {
        **os.environ,
        PATIENCE: str(patience_s),
        "PYTHONPATH": os.pathsep.join([str(tree), str(tree / "daemons")]),
        # Two versions of a file within one second and of one size would share a cached compilation.
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--basetemp={tree.parent}/t",
        *options,
        *tests,
    ]
    try:
        ended = subprocess.run(
            command, cwd=tree, env=environment, check=False, capture_output=True, text=True, timeout=limit_s
        )
    except subprocess.TimeoutExpired:
        return PYTEST_FAILED
    if ended.returncode not in (0, PYTEST_FAILED):
        raise BrokenMutantError(
            f"pytest could not run {' '.join(tests)}:\n{ended.stdout[-2000:]}{ended.stderr[-2000:]}"
        )
    if ended.returncode and limit_s == SOUND_LIMIT_S:
        print(ended.stdout[-4000:])
    return ended.returncode


def judge(tree: Path, mutant: Mutant) -> str:
    """`caught`, `ALIVE` or `BROKEN: why`."""
    try:
        with planted(tree, mutant):
            ended = run_tests(tree, mutant.tests, "-p", "no:xdist", patience_s=IN_VAIN_S)
            return "caught" if ended == PYTEST_FAILED else "ALIVE"
    except BrokenMutantError as error:
        return f"BROKEN: {error}"


def main(names: list[str]) -> int:
    """The exit code. `--tests-pass`: they have just been run without a mutant, as .ci/run does."""
    is_known_sound = "--tests-pass" in names
    names = [name for name in names if name != "--tests-pass"]
    mutants = [load(path) for path in sorted(FOLDER.glob("*.toml")) if not names or path.stem in names]
    if not mutants:
        print(f"no mutant in {FOLDER} is named {' '.join(names)}")
        return 2
    with tempfile.TemporaryDirectory(prefix="dm-") as scratch:
        trees: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for place in range(min(JOBS, len(mutants))):
            tree = Path(scratch) / str(place) / "tree"
            shutil.copytree(ROOT, tree, ignore=NOT_COPIED, symlinks=True)
            trees.put(tree)
        tests = list(dict.fromkeys(test for mutant in mutants for test in mutant.tests))
        try:
            sound = is_known_sound or run_tests(tree, tests, "-n", str(JOBS), limit_s=SOUND_LIMIT_S) == 0
        except BrokenMutantError as error:
            print(error)
            sound = False
        if not sound:
            print("without any mutant the tests named by them fail already: mend that first")
            return 1
        with ThreadPoolExecutor(JOBS) as pool:
            verdicts = list(pool.map(lambda mutant: report(trees, mutant), mutants))
    caught = verdicts.count("caught")
    print(f"{caught} caught, {len(verdicts) - caught} alive or broken", flush=True)
    return 0 if caught == len(verdicts) else 1


def report(trees: "queue.SimpleQueue[Path]", mutant: Mutant) -> str:
    """Judge one mutant in a tree that is free, and print its line."""
    start = time.monotonic()
    tree = trees.get()
    try:
        verdict = judge(tree, mutant)
    finally:
        trees.put(tree)
    print(f"{verdict:8}{mutant.name:52}{time.monotonic() - start:6.1f} s  {mutant.why}", flush=True)
    return verdict


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
