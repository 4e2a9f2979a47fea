"""Small runs of the simulator with fixed seeds, one of a middling size, and what makes its verdicts worth something."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dcoord.core.core import Core
from tests.sim.promise import BrokenPromiseError
from tests.sim.world import simulate

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("seed", range(40))
def test_every_promise_holds_under_faults_of_every_kind(seed: int) -> None:
    summary = simulate(seed, workers=3 + seed % 7, tasks=300)
    assert [kind for kind, count in summary.faults.items() if not count] == []
    assert sum(summary.tasks_by_state.values()) == summary.tasks >= 300


def test_a_cluster_of_two_hundred_workers() -> None:
    summary = simulate(7, workers=200, tasks=5000)
    assert all(summary.faults.values())
    assert summary.tasks_by_state["done"] > 1000
    assert summary.attempts_lost > 0
    assert summary.retries > 0


def test_a_seed_is_the_same_run_in_every_process() -> None:
    command = [sys.executable, "-m", "tests.sim", "--seed", "3", "--workers", "5", "--tasks", "150"]
    runs = [
        subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'daemons'}", "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            timeout=50,
            check=True,
        ).stdout.splitlines()
        for seed in ("1", "2")
    ]
    assert runs[0][0].startswith("seed 3: sound")
    assert runs[0][1:] == runs[1][1:]


def test_a_failure_prints_the_line_that_reproduces_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Core, "take_tokens", lambda core, count: core.next_lease)
    with pytest.raises((BrokenPromiseError, AssertionError)):
        simulate(3, workers=5, tasks=150)
    assert "python -m tests.sim --seed 3 --workers 5 --tasks 150" in capsys.readouterr().out
