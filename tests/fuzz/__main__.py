"""`python -m tests.fuzz [--seconds N] [--json FILE] [--folder DIR] [TARGET...]`: fuzz, guided by coverage, and say what came of it.

Each target runs for so long in a process of its own (`engine.py`). Its corpus stays in the folder, so that the next run
goes on from there; finds lie beside it. Ends with 1 if anything was found. A find belongs into tests/fuzz/corpus/TARGET/,
which the suite runs, and better still into a test of its own.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from tests.fuzz.table import TARGETS

GRACE_S: Final = 120
"""Beyond its time, for the start under instrumentation and for the last input."""
_COVERAGE: Final = re.compile(r"cov: (\d+) ft: (\d+) corp: (\d+)")
_ENDED: Final = re.compile(r"==\d+== ?ERROR: libFuzzer: ([^\n]*)")
_PEAK: Final = re.compile(r"rss: (\d+)Mb")
ROW: Final = "{target:<14} {executions:>12} {executions_per_s:>10} {edges:>7} {features:>9} {inputs:>7} {peak_mb:>8} {growth_mb:>10} {found:>6}"


def fuzz(name: str, seconds: float, folder: Path) -> dict[str, Any]:
    """Run one target; what came of it."""
    report = folder / f"{name}.json"
    report.unlink(missing_ok=True)
    log = folder / f"{name}.log"
    command = [sys.executable, "-m", "tests.fuzz.engine", name, str(seconds), str(folder)]
    with log.open("wb") as out:
        try:
            code = subprocess.run(command, stdout=out, stderr=out, timeout=seconds + GRACE_S, check=False).returncode
            verdict = "" if code == 0 else f"ended with {code}"
        except subprocess.TimeoutExpired:
            verdict = "did not end"
    text = log.read_text(encoding="utf-8", errors="replace")
    found: dict[str, Any] = {"executions": 0, "seconds": 0.0, "executions_per_s": 0.0, "growth_kb": 0, "finds": {}}
    if report.exists():
        found |= json.loads(report.read_bytes())
    if ended := _ENDED.search(text):
        verdict = ended[1]
    if verdict:
        found["finds"][verdict] = log.name
    coverage = _COVERAGE.findall(text)[-1:] or [(0, 0, 0)]
    edges, features, inputs = map(int, coverage[0])
    peak_mb = max(map(int, _PEAK.findall(text)), default=0)
    return {**found, "target": name, "edges": edges, "features": features, "inputs": inputs, "peak_mb": peak_mb}


def main(arguments: list[str]) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"some of: {' '.join(TARGETS)}")
    parser.add_argument("--seconds", type=float, default=30.0, help="for each target")
    parser.add_argument("--json", type=Path, help="write the table there too")
    parser.add_argument("--folder", type=Path, default=Path(".fuzz"), help="corpus, logs and finds (default: .fuzz)")
    given = parser.parse_args(arguments)
    unknown = [name for name in given.targets if name not in TARGETS]
    if unknown:
        parser.error(f"there is no target {' '.join(unknown)}; there are: {' '.join(TARGETS)}")
    given.folder.mkdir(parents=True, exist_ok=True)
    print(
        ROW.format(
            target="target", executions="executions", executions_per_s="a second", edges="edges", features="features",
            inputs="corpus", peak_mb="peak MB", growth_mb="growth MB", found="finds",
        ), flush=True,
    )  # fmt: skip
    rows = []
    for name in given.targets or TARGETS:
        row = fuzz(name, given.seconds, given.folder)
        rows.append(row)
        growth_mb = round(row["growth_kb"] / 1024, 1)
        print(ROW.format(**row, growth_mb=growth_mb, found=len(row["finds"])), flush=True)
        for kind, file in row["finds"].items():
            print(f"  {kind}: {given.folder / file}", flush=True)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n")
    total = sum(row["executions"] for row in rows)
    finds = sum(len(row["finds"]) for row in rows)
    print(f"{total} executions of {len(rows)} targets, {finds} finds")
    return 1 if finds else 0


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = os.pathsep.join([".", "daemons"])
    sys.exit(main(sys.argv[1:]))
