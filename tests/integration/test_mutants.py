"""The runner of mutants itself: it tells caught from alive, and every mutant still fits the code."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants.__main__ import FOLDER, ROOT, BrokenMutantError, Edit, Mutant, apply, judge, load
from tests.patience import PATIENCE_S

FILES = sorted(FOLDER.glob("*.toml"))


def make_tree(folder: Path) -> Path:
    (folder / "code_under_test.py").write_text("def answer() -> int:\n    return 42\n")
    (folder / "test_it.py").write_text(
        "import code_under_test\n\ndef test_it():\n    assert code_under_test.answer() == 42\n"
    )
    return folder


@pytest.mark.parametrize(
    ("find", "replace", "test", "verdict"),
    [
        ("42", "41", "test_it.py", "caught"),
        ("42", "40 + 2", "test_it.py", "ALIVE"),
        ("43", "41", "test_it.py", "BROKEN"),
        ("42", "41", "test_gone.py", "BROKEN"),
        ("return 42", "return (", "test_it.py", "BROKEN"),
    ],
)
def test_verdicts(tmp_path: Path, find: str, replace: str, test: str, verdict: str) -> None:
    tree = make_tree(tmp_path)
    before = (tree / "code_under_test.py").read_text()
    mutant = Mutant("name", "why", [test], [Edit("code_under_test.py", find, replace)])
    assert judge(tree, mutant).startswith(verdict)
    assert (tree / "code_under_test.py").read_text() == before


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_mutant_fits_the_code_and_names_tests_that_exist(path: Path, tmp_path: Path) -> None:
    """Without running it: `make mutants` does."""
    mutant = load(path)
    assert mutant.why
    for edit in mutant.edit:
        (tmp_path / edit.file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / edit.file).write_text((ROOT / edit.file).read_text())
    apply(tmp_path, mutant)
    for test in mutant.tests:
        name, _, function = test.partition("[")[0].partition("::")
        text = (ROOT / name).read_text()
        assert not function or f"def {function}(" in text


def test_an_edit_that_fits_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\nx = 1\n")
    with pytest.raises(BrokenMutantError, match="2 times"):
        apply(tmp_path, Mutant("name", "why", ["t"], [Edit("a.py", "x = 1", "x = 2")]))


def test_an_unknown_name_is_an_error() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.mutants", "nothere"], cwd=ROOT, capture_output=True, timeout=PATIENCE_S
    )
    assert ended.returncode == 2
