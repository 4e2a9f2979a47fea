"""Bad definitions and bundles: what `dctl def check` and the catalog say of them; and `dctl def new`."""

import json
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dcoord.blobs import BlobStore
from dcoord.catalog import Catalog
from dctl.__main__ import run
from districomp.config import Layer

GOOD = "version: 1\ncommand: [cat]\n"
BUNDLED = "version: 1\ncommand: [python3, main.py]\nbundle: b/\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to write definitions in, the current one."""
    path = tmp_path / "tasks.d"
    path.mkdir()
    monkeypatch.chdir(path)
    for name in ("STATE", "CONFIG", "RUNTIME"):
        monkeypatch.setenv(f"DISTRICOMP_{name}_DIR", str(tmp_path / name.lower()))
    return path


def bomb() -> bytes:
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    return "\n".join(["a0: &a0 [lol]", *levels]).encode()


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "bomb": (bomb(), "bad.yaml:1:5: anchors (&a0) are not allowed; write the value out"),
    "deep": (b"command: " + b"[" * 100_000, "bad.yaml:1:41: nested deeper than 32 levels"),
    "large": (b"#" * (256 * 1024 + 1), "bad.yaml: the file has 262,145 bytes; 262,144 are allowed"),
    "twice": (GOOD.encode() + b"version: 1\n", "bad.yaml:3:1: version: this key is here twice; the first is in line 1"),
    "tab": (
        b"version: 1\ncommand: [a]\nlimits:\n\ttime: 3s\n",
        "bad.yaml:4:1: a tab stands here; YAML is indented with spaces alone",
    ),
    "BOM": (
        b"\xef\xbb\xbf" + GOOD.encode(),
        "bad.yaml: the file begins with a byte order mark; save it as UTF-8 without one (BOM)",
    ),
    "Latin-1": (
        "version: 1\ndescription: caf\u00e9\n".encode("latin-1"),
        "bad.yaml:2:17: byte 0xE9 is not UTF-8 (Latin-1, perhaps); save the file as UTF-8",
    ),
    "UTF-16": (GOOD.encode("utf-16"), "bad.yaml: the file is UTF-16; save it as UTF-8"),
    "NUL": (b"version: 1\ncommand: [a\0]\n", "bad.yaml:2:12: the control or separator character U+0000 is not allowed"),
    "a tag": (
        b"command: !!python/object/apply:os.system [echo]\n",
        "bad.yaml:1:10: tags (tag:yaml.org,2002:python/object/apply...) are not allowed; leave it out",
    ),
    "no text": (bytes(range(256)), "bad.yaml"),
}


def a_link(bundle: Path) -> None:
    (bundle / "bad").symlink_to("/etc/passwd")


def a_pipe(bundle: Path) -> None:
    os.mkfifo(bundle / "bad")


def too_many(bundle: Path) -> None:
    # Links to one file's inode are as many files, and quicker made.
    for number in range(10_000):
        os.link(bundle / "main.py", bundle / str(number))


def too_large(bundle: Path) -> None:
    with (bundle / "sparse").open("wb") as file:
        file.truncate(1024**3)


def no_name(bundle: Path) -> None:
    (bundle / os.fsdecode(b"caf\xe9")).touch()


BAD_BUNDLES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a link": (a_link, "b: bad is a link; a bundle holds only files and folders"),
    "a pipe": (a_pipe, "b: bad is a pipe or socket; a bundle holds only files and folders"),
    "10,001 files": (too_many, "b: has more than 10,000 files"),
    "over 1 GiB": (too_large, "b: has more than 1 GiB"),
    "a name that is no text": (no_name, "b: caf? has a name that is not UTF-8"),
}


def check(capsys: pytest.CaptureFixture[str], *files: str, code: int) -> str:
    """What `dctl def check` prints."""
    assert run(["def", "check", *files]) == code
    return capsys.readouterr().out


def catalog_says(folder: Path) -> str:
    """What the coordinator finds, which must find the good one all the same."""
    scan = Catalog([Layer(folder)], BlobStore(folder.parent / "blobs", low_water_bytes=0)).scan()
    assert list(scan.definitions) == ["good"]
    return "\n".join(problem for document in scan.documents for problem in document.problems)


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_told_where_and_harms_no_other(
    folder: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    data, says = BAD_FILES[kind]
    (folder / "good.yaml").write_text(GOOD)
    (folder / "bad.yaml").write_bytes(data)
    used = time.process_time()
    assert says in check(capsys, "good.yaml", "bad.yaml", code=78)
    assert says in catalog_says(folder)
    assert time.process_time() - used < 5.0, "a file of at most 1 MiB is read at once"


@pytest.mark.parametrize("kind", BAD_BUNDLES)
def test_a_bad_bundle_is_told_and_harms_no_other(folder: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    spoil, says = BAD_BUNDLES[kind]
    (folder / "good.yaml").write_text(GOOD)
    (folder / "bad.yaml").write_text(BUNDLED)
    (folder / "b").mkdir()
    (folder / "b" / "main.py").write_text("print(1)")
    assert check(capsys, "bad.yaml", code=0) == ""
    spoil(folder / "b")
    found = check(capsys, "bad.yaml", code=78)
    assert found.splitlines() == [f"bad.yaml:3:9: bundle: {says}", "    bundle: b/", "            ^"]
    assert says in catalog_says(folder)


def test_a_device_in_a_bundle_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "bad.yaml").write_text(BUNDLED)
    (folder / "b").mkdir()
    (folder / "b" / "main.py").write_text("")
    try:
        os.mknod(folder / "b" / "zero", stat.S_IFCHR | 0o644, os.makedev(1, 5))
    except PermissionError:
        # Without root there can be none; the walk treats all that is no file, folder or link alike.
        return
    assert "b: zero is a device" in check(capsys, "bad.yaml", code=78)


# ---- dctl def check ----


def test_everything_wrong_with_every_file_is_told_with_its_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "one.yaml").write_text("version: 1\ncomand: [a]\nlimits: {tiem: 3s, memory: 1GiB}\n")
    (folder / "two.yml").write_text(GOOD)
    (folder / "b ad.yaml").write_text(GOOD)
    assert run(["def", "check", "one.yaml", "two.yml", "b ad.yaml", "absent.yaml", "."]) == 78
    printed = capsys.readouterr()
    assert printed.out == (
        "one.yaml:2:1: comand: unknown key; did you mean 'command'?\n"
        "    comand: [a]\n"
        "    ^\n"
        "one.yaml:3:10: limits.tiem: unknown key; did you mean 'time'?\n"
        "    limits: {tiem: 3s, memory: 1GiB}\n"
        "             ^\n"
        "one.yaml:3:28: limits.memory: warning: is not enforced without isolation: cgroup: a task may use more\n"
        "    limits: {tiem: 3s, memory: 1GiB}\n"
        "                               ^\n"
        "two.yml: a definition's file ends in .yaml; it would not be looked at\n"
        "b ad.yaml:1:1: the file's name, 'b ad', must be letters, digits, '_' and '-', at most 64\n"
        "    version: 1\n"
        "    ^\n"
        "absent.yaml: cannot be read: No such file or directory\n"
        ".: is a folder; name the files in it: ./*.yaml\n"
    )
    assert printed.err == "dctl: 6 problems in 5 of 5 files, 1 warning\n"


def test_a_warning_is_no_problem(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a.yaml").write_text(GOOD + "priority: 3\n")
    assert run(["def", "check", "a.yaml"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("a.yaml:3:11: priority: warning: is not enforced yet: jobs are not ordered by it\n")
    assert printed.err == "dctl: the definition is good, 1 warning\n"


def test_programs_can_read_what_is_wrong(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a.yaml").write_text("version: 1\ncommand: [a]\npriority: 3\nx: 1\n")
    (folder / "b.yaml").write_text(GOOD)
    assert run(["def", "check", "a.yaml", "b.yaml", "--json"]) == 78
    problem, warning = sorted(json.loads(capsys.readouterr().out), key=lambda entry: bool(entry["warning"]))
    assert problem["text"].startswith("unknown key; the keys here are version, description,")
    assert (problem["file"], problem["line"], problem["column"], problem["key"]) == ("a.yaml", 4, 1, "x")
    assert warning == {
        "file": "a.yaml", "line": 3, "column": 11, "key": "priority",
        "text": "is not enforced yet: jobs are not ordered by it", "warning": True,
    }  # fmt: skip
    assert run(["def", "check", "a.yaml", "b.yaml", "-q"]) == 78
    assert capsys.readouterr().out == "a.yaml\n"


def test_neither_a_pipe_nor_a_device_keeps_the_check_waiting(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(folder / "pipe.yaml")
    (folder / "loose.yaml").symlink_to("nowhere")
    found = check(capsys, "pipe.yaml", "/dev/zero", "loose.yaml", code=78)
    assert found.splitlines() == [
        "pipe.yaml: is not a file",
        "/dev/zero: is not a file",
        "loose.yaml: is a link to nothing",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("command: [./tool]", "command[0]: './tool' would be looked for in the task's own folder, which holds the bundle b; did you mean ./tools?"),
        ("command: [./main.py]", "command[0]: './main.py' may not be run; type: chmod +x b/main.py"),
        ("command: [sub/x]", "command[0]: 'sub/x' would be looked for in the task's own folder"),
        ("command: [python3, man.py]", "command[1]: warning: 'man.py' is not in the task's own folder, which holds the bundle's files alone"),
        ("python: 'mian:f'", "python: the bundle b has no mian.py; did you mean main?"),
        ("python: 'sub.mod:f'", "python: the bundle b has no sub/mod.py"),
        ("stream: [./built]", "stream[0]: './built' would be looked for in the task's own folder"),
    ],
)  # fmt: skip
def test_a_program_that_the_bundle_does_not_have_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str, says: str
) -> None:
    (folder / "b" / "sub").mkdir(parents=True)
    for name in ("main.py", "tools", "sub/other.py"):
        (folder / "b" / name).write_text("")
    (folder / "a.yaml").write_text(f"version: 1\n{text}\nbundle: b\n")
    assert says in check(capsys, "a.yaml", code=0 if "warning" in says else 78)


@pytest.mark.parametrize(
    "text",
    [
        "command: [./tools]\nbundle: b", "command: [/bin/true]", "command: [python3, main.py]\nbundle: b",
        "python: 'main:f'\nbundle: b", "python: 'sub.other:f'\nbundle: b", "python: 'fast:f'\nbundle: b",
        "command: [./given]\ninputs: [given]", "command: ['{p}/x']\nparams: {p: {type: path}}", "command: [sh, -c, './x']",
    ],
)  # fmt: skip
def test_a_program_that_is_there_is_not(folder: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    (folder / "b" / "sub").mkdir(parents=True)
    for name in ("main.py", "tools", "sub/other.py", "fast.cpython-311-x86_64-linux-gnu.so"):
        (folder / "b" / name).write_text("")
    (folder / "b" / "tools").chmod(0o755)
    (folder / "a.yaml").write_text(f"version: 1\n{text}\n")
    assert "own folder" not in check(capsys, "a.yaml", code=0)


def test_without_a_bundle_the_tasks_folder_is_empty(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a.yaml").write_text("version: 1\ncommand: [./tool]\n")
    assert "which holds a bundle, and there is none" in check(capsys, "a.yaml", code=78)


# ---- dctl def new; that what it writes works is test_tasks_cluster's ----


def test_new_says_what_to_type_and_overwrites_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["def", "new", "words"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "words.yaml\nwords/main.py\n"
    target = folder.parent / "config" / "tasks.d"
    assert printed.err.splitlines() == [
        "dctl: written; it counts words. Type next:",
        f"  dctl def check words.yaml && mkdir -p {target} && cp -r words words.yaml {target}/",
        "  dctl submit words --data 'one two three' --results",
    ]
    text = (folder / "words.yaml").read_text()
    assert "@" not in text
    for spoilt in ("words.yaml", "words"):
        assert run(["def", "new", "words", "--language", "c"]) == 2
        assert f"{spoilt} is there already and is not overwritten" in capsys.readouterr().err
        (folder / "words.yaml").unlink(missing_ok=True)
    assert not (folder / "words.yaml").exists()
    assert [path.name for path in (folder / "words").iterdir()] == ["main.py"]


def test_new_of_what_cannot_be_is_refused_before_anything_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, says in (
        (["a b"], "'a b' is no name for a definition; use letters, digits, '_' and '-', at most 64"),
        (["../x"], "'../x' is no name for a definition"),
        (["x", "--runner", "python", "--language", "c"], "the runner python calls a Python function"),
        (["x", "--runner", "perl"], "'perl' is not one of 'command', 'stream', 'python'"),
    ):
        assert run(["def", "new", *arguments]) == 2
        assert says in capsys.readouterr().err
    assert list(folder.iterdir()) == []


def test_new_in_a_folder_that_a_coordinator_watches_needs_no_copy(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = folder.parent / "config" / "tasks.d"
    assert run(["def", "new", "fast", "--runner", "stream", "--language", "c", "--dir", str(target)]) == 0
    commands = capsys.readouterr().err.splitlines()[1:]
    assert commands == [
        f"  make -C {target}/fast && dctl def check {target}/fast.yaml",
        "  dctl submit fast --data 'one two three' --results",
    ]
    assert f"[{os.uname().machine}]" in (target / "fast.yaml").read_text()
    # Before it is built, the check says so.
    assert "it must be built first, type: make -C fast" in check(capsys, f"{target}/fast.yaml", code=78)
