"""README's promises, through the installed commands only: the demonstration, and what is refused."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.prefix) / "bin"
README = (ROOT / "README.md").read_text(encoding="utf-8")


def run(*command: str, cwd: Path, timeout_s: float = PATIENCE_S) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "HOME": str(cwd), "DISTRICOMP_STATE_DIR": str(cwd), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )


@pytest.mark.timeout(150)
def test_the_demonstration(tmp_path: Path) -> None:
    """What `make demo` runs once it has set itself up."""
    assert "make demo" in README
    assert "$(BIN)/python -m demo" in (ROOT / "Makefile").read_text()
    ran = run("python", "-m", "demo", cwd=tmp_path, timeout_s=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for promised in (
        r"anna, bert joined; statistics page http://127\.0\.0\.1:\d+",
        r"kill -9 (anna|bert), a busy worker",
        r"retried: task 1\.\d+: worker_lost on (anna|bert) -> done on",
        r"kill -9 dcoord, the coordinator",
        r"started again: epoch 2",
        r"all three jobs are right, nothing was lost",
    ):
        assert re.search(promised, ran.stdout), f"{promised!r} is not in {ran.stdout}"
    assert (tmp_path / "demo-output/picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("program", ["dcoord", "dcoord-web", "dworker", "dctl"])
def test_every_program_is_installed_and_says_what_it_is(program: str, tmp_path: Path) -> None:
    assert run(program, "--version", cwd=tmp_path).stdout.startswith(program)
    assert "usage" in run(program, "--help", cwd=tmp_path).stdout.lower()


@pytest.mark.parametrize("address", ["0.0.0.0", "192.0.2.1", "::"])
def test_who_proves_nothing_stays_on_its_machine(address: str, tmp_path: Path) -> None:
    config = tmp_path / "dcoord.yaml"
    config.write_text(f'insecure: true\nlisten: {{address: "{address}", port: 0}}\n')
    ran = run("dcoord", "--config", str(config), cwd=tmp_path)
    assert ran.returncode == 78
    assert address in ran.stderr


def test_json_everywhere(tmp_path: Path) -> None:
    """Every verb takes --json and -q, and has an example of itself in its help."""
    whole = run("dctl", "--help", cwd=tmp_path).stdout
    names = _listed(whole.partition("Daily commands:")[2].partition("Examples:")[0])
    assert {"submit", "run", "results", "explain", "logs", "status", "job", "def"} <= set(names)
    for name in names:
        text = run("dctl", name, "--help", cwd=tmp_path).stdout
        for path in [[name, verb] for verb in _listed(text.partition("\nCommands:")[2])] or [[name]]:
            text = run("dctl", *path, "--help", cwd=tmp_path).stdout
            assert "--json" in text and "--quiet" in text, path
            assert f"dctl {' '.join(path)}" in text.partition("Example")[2], path


def _listed(text: str) -> list[str]:
    return re.findall(r"^  ([a-z]+) ", text, re.MULTILINE)


LATER = """
submit copy --input a=b|submit copy --after 1|submit copy --priority 2|logs 1.0 --follow|job pause 1|job resume 1
job priority 1 2|job remove 1|worker drain x|worker resume x|worker stop x
top|doctor|reload|config show|report 1
"""


@pytest.mark.parametrize("words", LATER.strip().replace("\n", "|").split("|"))
def test_what_comes_later_is_not_there_yet(words: str, tmp_path: Path) -> None:
    ran = run("dctl", *words.split(), cwd=tmp_path)
    assert ran.returncode == 2
    assert "no such" in ran.stderr.lower() or "there is no command" in ran.stderr, ran.stderr
