"""The shipped definitions and the templates on a real coordinator and a real worker."""

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from demo.cluster import wait_until
from tests.integration.taskslab import TASKS, TasksLab, tasks_lab
from tests.integration.test_tasks_check import BAD_FILES
from tests.patience import PATIENCE_S

__all__ = ["tasks_lab"]


def test_checksum(tasks_lab: TasksLab, tmp_path: Path) -> None:
    contents = [b"", b"abc", bytes(range(256)) * 1000]
    for number, content in enumerate(contents):
        (tmp_path / str(number)).write_bytes(content)
    found = tasks_lab.results("checksum", "--each-file", *(str(tmp_path / str(n)) for n in range(len(contents))))
    assert [line.split()[0].decode() for line in found] == [hashlib.sha256(content).hexdigest() for content in contents]


def test_shell(tasks_lab: TasksLab) -> None:
    done = tasks_lab.cluster.dctl("run", "printf", "%s|", "{}.x", ":::", "a b", "{item}")
    assert done.stdout == b"a b.x|\n{item}.x|\n"


def test_identifiers(tasks_lab: TasksLab, tmp_path: Path) -> None:
    sources = ["import os\n", "a = b + a  # c\n", ""]
    for number, source in enumerate(sources):
        (tmp_path / f"{number}.py").write_text(source)
    files = [str(tmp_path / f"{number}.py") for number in range(len(sources))]
    found = [Counter(json.loads(result)) for result in tasks_lab.results("identifiers", "--each-file", *files)]
    assert found == [Counter(["os"]), Counter(["a", "b", "a"]), Counter()]


def test_render(tasks_lab: TasksLab) -> None:
    sizes = ["--param", "width=60", "--param", "height=40"]
    (whole,) = tasks_lab.results("render", "--range", "0..0", "--param", "strips=1", *sizes)
    strips = tasks_lab.results("render", "--range", "0..3", "--param", "strips=4", *sizes)
    assert len(whole) == 60 * 40 * 3
    assert b"".join(strips) == whole


def test_montecarlo(tasks_lab: TasksLab) -> None:
    arguments = ["montecarlo", "--range", "1..8", "--param", "darts=20000"]
    found = [tuple(map(int, result.split())) for result in tasks_lab.results(*arguments)]
    assert [darts for _, darts in found] == [20000] * 8
    assert len({inside for inside, _ in found}) > 4, "each task has its own darts"
    assert abs(4 * sum(inside for inside, _ in found) / 160000 - 3.1416) < 0.03
    assert [tuple(map(int, result.split())) for result in tasks_lab.results(*arguments)] == found


# ---- dctl def new ----


@pytest.mark.parametrize(
    "template", ["command-python", "command-shell", "stream-python", "stream-shell", "python-python"]
)
def test_a_template_works_as_it_is_written(tasks_lab: TasksLab, template: str) -> None:
    count_words(tasks_lab, template)


def count_words(lab: TasksLab, template: str) -> None:
    """Write a definition from a template, where the coordinator finds it; then type what `dctl` says."""
    runner, _, language = template.partition("-")
    name = f"words_{runner}_{language}"
    new = ["def", "new", name, "--runner", runner, "--language", language, "--dir", str(lab.drop_ins)]
    said = lab.cluster.dctl(*new)
    files = said.stdout.decode().split()
    assert files[0] == str(lab.drop_ins / f"{name}.yaml")
    assert all(Path(file).is_file() for file in files)
    commands = re.findall(r"(?m)^  (.*)$", said.stderr.decode())
    assert len(commands) == 2
    run_typed(lab, commands[0])
    lab.wait_for(name)
    assert run_typed(lab, commands[1]).rstrip() == "3"
    (lab.folder / "lines").write_text("one two three\n\n  four * fi\n")
    lines = ["--each-line", str(lab.folder / "lines")]
    assert [int(result) for result in lab.results(name, *lines)] == [3, 0, 3]
    assert [int(result) for result in lab.results(name, *lines, "--param", "least=4")] == [1, 0, 1]
    # Nothing is overwritten, not even by the same.
    before = {file: Path(file).read_bytes() for file in files}
    again = lab.cluster.dctl(*new, check=False)
    assert again.returncode == 2
    assert b"is there already and is not overwritten" in again.stderr
    assert {file: Path(file).read_bytes() for file in files} == before


def run_typed(lab: TasksLab, command: str) -> str:
    """A line as a person would type it, with `dctl` found."""
    path = f"{Path(sys.executable).parent}:{lab.cluster.environment['PATH']}"
    done = subprocess.run(
        ["sh", "-c", command],
        env=lab.cluster.environment | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_template_is_complete() -> None:
    folders = sorted(path.name for path in (TASKS / "templates").iterdir())
    assert folders == [
        "command-c", "command-python", "command-shell", "python-python", "stream-c", "stream-python", "stream-shell"
    ]  # fmt: skip


# ---- what is wrong on the way ----


def test_bad_files_are_listed_and_harm_nothing(tasks_lab: TasksLab) -> None:
    bad = {name: data for name, (data, _) in BAD_FILES.items()}
    paths = [tasks_lab.drop_ins / f"bad{number}.yaml" for number in range(len(bad))]
    for path, data in zip(paths, bad.values(), strict=True):
        path.write_bytes(data)
    wanted = {path.stem for path in paths}

    def listed() -> set[str]:
        entries = tasks_lab.cluster.dctl_json("def", "list")
        return {entry["name"] for entry in entries if entry["problems"] and not entry["version"]}

    wait_until(lambda: listed() == wanted, "all the bad files to be listed")
    assert tasks_lab.results("checksum", "--data", "abc")[0].startswith(b"ba7816bf")
    refused = tasks_lab.cluster.dctl("submit", "bad0", check=False)
    assert refused.returncode == 2
    assert b"bad0" in refused.stderr
    shown = tasks_lab.cluster.dctl("def", "show", "bad0", check=False)
    assert shown.returncode == 2
    assert b"the definition 'bad0' is not live, because its file is wrong" in shown.stderr
    assert b"anchors (&a0) are not allowed" in shown.stderr
    for path in paths:
        path.unlink()
    wait_until(lambda: listed() == set(), "the bad files to be forgotten")


def test_a_definition_is_shown_whole(tasks_lab: TasksLab) -> None:
    document = tasks_lab.cluster.dctl_json("def", "show", "compile")
    assert document["definition"]["argv"] == ["sh", "compile.sh", "{item}", "{flags}"]
    assert document["version"] == document["definition"]["digest"]
    shown = tasks_lab.cluster.dctl("def", "show", "compile").stdout.decode()
    lines = [line.split(None, 1) for line in shown.splitlines()]
    assert ["command", '[sh, compile.sh, "{item}", "{flags}"]'] in lines
    assert ["param", 'flags: a list of texts; default ["-O2"]'] in lines
    assert ["limits", "time 10 min, data 64.0 MiB"] in lines
    assert ["retries", "3, the first after 1.0 s; never after exit code 1"] in lines
    assert ["requires", "programs gcc"] in lines
    assert ["origin", str(tasks_lab.drop_ins / "compile.yaml")] in lines
    near = tasks_lab.cluster.dctl("def", "show", "compil", check=False)
    assert near.returncode == 2
    assert b"did you mean 'compile'?" in near.stderr


def test_an_isolation_that_no_worker_has_is_named(tasks_lab: TasksLab) -> None:
    path = tasks_lab.drop_ins / "fenced.yaml"
    path.write_text("version: 1\ncommand: [true]\nisolation: cgroup\nretries: {max: 0}\n".replace("[true]", "['true']"))
    tasks_lab.wait_for("fenced")
    ((reason, _, stderr),) = tasks_lab.failed("fenced")
    assert reason == "not_started"
    assert "isolation 'cgroup'" in stderr
