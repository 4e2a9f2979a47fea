"""Runs a document: its shell blocks, in their order, in one shell, as a reader types them; and what they showed.

A block of `sh` must succeed, one of `sh fails` must have a command that fails, `sh setup` is not run. The lines of a
`text` block must appear, in their order, in what the block before it showed; `...` stands for anything.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
BOUND_S = 150
_FENCE = re.compile(r"^```(sh|text)(?: (\w+))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)

# A reader's machine is idle; one that tests is slow, by as much as its processors are shared.
_LONGER = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.priority import sharing; print(1.5 * sharing() * float(sys.argv[1]))"
_PREFACE = f"""\
set -m -o pipefail
sleep() {{ command sleep "$({shlex.quote(sys.executable)} -c {shlex.quote(_LONGER)} "$1")"; }}
"""


class Block(NamedTuple):
    """Commands of a document, and what is promised of them."""

    commands: str
    fails: bool
    shown: list[str]


class Ran(NamedTuple):
    """What became of a block: its output, and the commands that failed."""

    output: str
    failed: list[str]


def read_blocks(text: str) -> list[Block]:
    """The blocks of a document that are to be run."""
    blocks: list[Block] = []
    for kind, word, body in _FENCE.findall(text):
        if kind == "text":
            blocks[-1].shown.extend(body.splitlines())
        elif word != "setup":
            blocks.append(Block(body, word == "fails", []))
    return blocks


def run_blocks(blocks: list[Block], folder: Path, replaced: dict[str, str]) -> list[Ran]:
    """Run them in one shell in `folder`; everything that they leave running is ended, and AssertionError names it."""
    script = [_PREFACE]
    for number, block in enumerate(blocks):
        commands = block.commands
        for old, new in replaced.items():
            commands = commands.replace(old, new)
        script.append(f"exec > {folder}/shown.{number} 2>&1\n")
        script.append(f"trap 'echo \"$BASH_COMMAND\" >> {folder}/failed.{number}' ERR\n{commands}")
    (folder / "script.sh").write_text("".join(script))
    process = subprocess.Popen(
        ["bash", "--norc", str(folder / "script.sh")],
        cwd=folder,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        process.wait(BOUND_S)
    finally:
        left = _end_session(process.pid)
        process.wait()
    ran = [Ran(_read(folder / f"shown.{n}"), _read(folder / f"failed.{n}").splitlines()) for n in range(len(blocks))]
    assert not left, f"still running at the end: {left}; {ran[-1]}"
    return ran


def missing(block: Block, ran: Ran) -> str:
    """The first promised line that did not appear; '' if all did."""
    lines = iter(ran.output.splitlines())
    for promised in block.shown:
        pattern = re.compile(r"\s*" + ".*".join(_flexible(part) for part in promised.strip().split("...")) + r"\s*")
        if not any(pattern.fullmatch(line) for line in lines):
            return promised
    return ""


def _flexible(part: str) -> str:
    """A pattern for a piece of a promised line; columns may be wider or narrower."""
    return r"\s+".join(re.escape(word) for word in re.split(r"\s+", part))


def _environment() -> dict[str, str]:
    kept = ("PATH", "LANG", "TMPDIR")
    return {name: os.environ[name] for name in kept if name in os.environ} | {"HOME": "/nonexistent", "TERM": "dumb"}


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _end_session(session: int) -> list[str]:
    """Kill what is left of a session, by its process ids; the names of what was."""
    names = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")
            if int(fields[2].split()[3]) != session or fields[2].split()[0] == "Z":
                continue
            names.append((stat.parent / "cmdline").read_text().replace("\0", " "))
            os.kill(int(stat.parent.name), signal.SIGKILL)
        except (OSError, ValueError):
            continue
    return names


def prepare(folder: Path) -> dict[str, str]:
    """A clone as a reader has it, with the commands installed; what must be read otherwise, so that tests do not meet.

    Ports are chosen by the system and the cluster has a name of its own: all tests share one machine's loopback.
    """
    (folder / ".venv").symlink_to(Path(sys.prefix))
    for name in ("docs", "tasks"):
        shutil.copytree(ROOT / name, folder / name)
    private = folder / "dc"
    (private / "config").mkdir(parents=True)
    cluster = f"documents-{os.getpid()}-{folder.name}"
    (private / "config/dcoord.yaml").write_text(
        f"name: {cluster}\nlisten: {{address: 127.0.0.1, port: 0}}\nweb: {{port: 0}}\ndata: {{port: 0}}\ndiscovery: {{interfaces: [lo]}}\n"
    )
    (private / "config/dworker.yaml").write_text(f"cluster: {cluster}\ndiscovery: {{interfaces: [lo]}}\n")
    return {"/tmp/dc": str(private)}
