"""The catalog on real folders: layers, masks, drop-ins, bad files, bundles."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from dcoord.blobs import BlobStore
from dcoord.catalog import Catalog, Scan
from districomp import bundle as bundles
from districomp.config import Layer
from districomp.taskdef import BundleFile, Definition

GOOD = "version: 1\ncommand: [cat]\n"


class Lab:
    """A catalog of a shipped layer and two more, and the folders to put files in."""

    def __init__(self, root: Path) -> None:
        self.shipped, self.run, self.etc = root / "shipped", root / "run", root / "etc"
        for folder in (self.shipped, self.run, self.etc):
            folder.mkdir()
        self.blobs = BlobStore(root / "blobs", low_water_bytes=0)
        self.catalog = self.fresh()

    def fresh(self) -> Catalog:
        """As a coordinator that has just started."""
        layers = [Layer(self.shipped, frozenset({"shell"})), Layer(self.run), Layer(self.etc)]
        return Catalog(layers, self.blobs)

    def scan(self) -> Scan:
        return self.catalog.scan()

    def problems(self) -> str:
        return "\n".join(problem for document in self.scan().documents for problem in document.problems)

    def manifest(self, definition: Definition) -> list[BundleFile]:
        return msgspec.msgpack.decode(self.blobs.read_bytes(definition.bundle), type=list[BundleFile])


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    yield Lab(tmp_path)


def settle() -> None:
    """Let the files' ages pass the catalog's doubt about them; the only way to see its cache at work."""
    time.sleep(bundles.SETTLED_S + 0.02)


def test_only_the_named_ones_are_live_as_shipped(lab: Lab) -> None:
    (lab.shipped / "shell.yaml").write_text(GOOD)
    (lab.shipped / "example.yaml").write_text(GOOD)
    scan = lab.scan()
    assert list(scan.definitions) == ["shell"]
    assert scan.definitions["shell"].argv == ["cat"]
    assert [document.origin for document in scan.documents] == [str(lab.shipped / "shell.yaml")]


def test_a_later_layer_takes_the_place_of_an_earlier_one(lab: Lab) -> None:
    for folder in (lab.shipped, lab.run, lab.etc):
        (folder / "shell.yaml").write_text(f"version: 1\ncommand: [{folder.name}]\n")
    assert lab.scan().definitions["shell"].argv == ["etc"]
    (lab.etc / "shell.yaml").unlink()
    assert lab.scan().definitions["shell"].argv == ["run"]
    (lab.run / "shell.yaml").unlink()
    assert lab.scan().definitions["shell"].argv == ["shipped"]


def test_a_drop_in_is_live_at_the_next_scan_and_gone_with_its_file(lab: Lab) -> None:
    assert lab.scan().definitions == {}
    (lab.etc / "a.yaml").write_text(GOOD)
    scan = lab.scan()
    assert list(scan.definitions) == ["a"]
    assert scan.news == [f"definition a live: version {scan.definitions['a'].digest[:12]} from {lab.etc / 'a.yaml'}"]
    (lab.etc / "a.yaml").write_text(GOOD.replace("cat", "tac"))
    assert lab.scan().definitions["a"].argv == ["tac"]
    assert lab.scan().news[0].startswith("definition a changed: version ")
    (lab.etc / "a.yaml").unlink()
    scan = lab.scan()
    assert scan.definitions == {}
    assert scan.news == ["definition a removed"]


def test_nothing_changed_is_the_very_same_scan_and_opens_no_file(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    (lab.etc / "a.yaml").write_text(GOOD + "bundle: b\n")
    (lab.etc / "b").mkdir()
    (lab.etc / "b" / "f").write_text("x")
    settle()
    first = lab.scan()
    assert first.generation == 1
    opened: list[str] = []
    real = os.open

    def spy(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        opened.append(str(path))
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", spy)
    assert lab.scan() is first
    assert opened == [str(lab.shipped), str(lab.run), str(lab.etc), "b"]


def test_a_change_of_the_same_size_within_the_clocks_tick_is_seen(lab: Lab) -> None:
    for word in ("cat", "tac", "act") * 5:
        (lab.etc / "a.yaml").write_text(GOOD.replace("cat", word))
        assert lab.scan().definitions["a"].argv == [word]


def test_a_link_to_dev_null_masks(lab: Lab) -> None:
    (lab.shipped / "shell.yaml").write_text(GOOD)
    (lab.etc / "shell.yaml").symlink_to("/dev/null")
    scan = lab.scan()
    assert scan.definitions == {}
    assert scan.documents == []
    (lab.etc / "shell.yaml").unlink()
    assert list(lab.scan().definitions) == ["shell"]


def test_a_bad_file_never_takes_the_good_one_away(lab: Lab) -> None:
    (lab.run / "a.yaml").write_text(GOOD)
    good = lab.scan().definitions["a"]
    (lab.run / "a.yaml").write_text("version: 1\ncomand: [cat]\n")
    scan = lab.scan()
    assert scan.definitions["a"] == good
    assert "a.yaml:2:1: comand: unknown key; did you mean 'command'?" in lab.problems()
    assert scan.documents[0].version == good.digest
    assert any("stays" in line for line in scan.news)
    # Its bad state is told once, not at each scan.
    assert lab.scan() is scan
    (lab.run / "a.yaml").write_text(GOOD)
    scan = lab.scan()
    assert scan.documents[0].problems == []
    assert scan.news == [f"definition a: {lab.run / 'a.yaml'} is in order again"]


def test_a_bad_file_of_a_later_layer_leaves_the_earlier_one(lab: Lab) -> None:
    (lab.run / "a.yaml").write_text(GOOD)
    (lab.etc / "a.yaml").write_text("nonsense")
    for catalog in (lab.catalog, lab.fresh()):
        scan = catalog.scan()
        assert scan.definitions["a"].argv == ["cat"]
        assert scan.documents[0].origin == str(lab.run / "a.yaml")
        assert "etc/a.yaml:1:1" in scan.documents[0].problems[0]
    # The earlier one is followed on.
    (lab.run / "a.yaml").write_text(GOOD.replace("cat", "tac"))
    assert lab.scan().definitions["a"].argv == ["tac"]
    (lab.run / "a.yaml").unlink()
    assert lab.scan().definitions == {}


def test_a_bad_file_with_nothing_before_it_is_listed_and_not_live(lab: Lab) -> None:
    (lab.etc / "a.yaml").write_text("version: 1\ncommand: [cat\n")
    scan = lab.scan()
    assert scan.definitions == {}
    assert (scan.documents[0].name, scan.documents[0].version) == ("a", "")
    assert "a.yaml:2:14: is not YAML" in scan.documents[0].problems[0]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("link.yaml", "is a link, which only has a meaning to /dev/null (a mask); copy the file here"),
        ("folder.yaml", "is not a file"),
        ("pipe.yaml", "is not a file"),
        ("huge.yaml", "262,144 are allowed"),
        ("b ad.yaml", "the file's name, 'b ad', must be letters"),
        ("a.yml", "is not looked at; a definition's file ends in .yaml"),
    ],
)
def test_what_is_no_definition_is_told(lab: Lab, name: str, says: str) -> None:
    (lab.run / "good.yaml").write_text(GOOD)
    path = lab.etc / name
    match name.partition(".")[0]:
        case "link":
            path.symlink_to(lab.run / "good.yaml")
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "huge":
            path.write_bytes(b"#" * (256 * 1024 + 1))
        case _:
            path.write_text(GOOD)
    assert says in lab.problems()
    assert list(lab.scan().definitions) == ["good"]


def test_hidden_files_and_others_are_left_alone(lab: Lab) -> None:
    for name in (".a.yaml.swp", ".a.yaml", "README", "a.yaml~"):
        (lab.etc / name).write_text("nonsense")
    assert lab.scan().documents == []


def test_a_name_that_is_no_text_is_told(lab: Lab) -> None:
    (lab.etc / os.fsdecode(b"caf\xe9.yaml")).write_text(GOOD)
    scan = lab.scan()
    assert scan.definitions == {}
    assert "its name is not UTF-8" in lab.problems()
    msgspec.msgpack.encode(scan.documents)


def test_a_layer_that_is_no_folder_is_told(lab: Lab) -> None:
    lab.etc.rmdir()
    lab.etc.write_text("")
    assert f"{lab.etc}: cannot be read: Not a directory" in lab.problems()


# ---- bundles ----


def bundled(lab: Lab) -> Path:
    """A definition with a bundle of two files and a folder."""
    (lab.etc / "r.yaml").write_text("version: 1\ncommand: [python3, main.py]\nbundle: r/\n")
    root = lab.etc / "r"
    (root / "data").mkdir(parents=True)
    (root / "main.py").write_text("print(1)")
    (root / "data" / "ü.txt").write_text("two")
    (root / "tool").write_text("#!/bin/sh")
    (root / "tool").chmod(0o755)
    return root


def test_a_bundle_is_a_manifest_and_a_blob_a_file(lab: Lab) -> None:
    root = bundled(lab)
    definition = lab.scan().definitions["r"]
    files = lab.manifest(definition)
    assert [(file.path, file.mode, file.size) for file in files] == [
        ("data/ü.txt", 0o444, 3),
        ("main.py", 0o444, 8),
        ("tool", 0o555, 9),
    ]
    for file in files:
        assert lab.blobs.read_bytes(file.sha256) == (root / file.path).read_bytes()


def test_a_bundle_is_part_of_the_version(lab: Lab) -> None:
    root = bundled(lab)
    versions = [lab.scan().definitions["r"].digest]
    changes: list[Callable[[], object]] = [
        lambda: (root / "main.py").write_text("print(2)"),
        lambda: (root / "main.py").rename(root / "other.py"),
        lambda: (root / "tool").chmod(0o644),
        (root / "data" / "deep").mkdir,
        lambda: (root / "data" / "deep" / "x").write_text(""),
        (root / "tool").unlink,
    ]
    for change in changes:
        change()
        versions.append(lab.scan().definitions["r"].digest)
    assert versions[3] == versions[4], "an empty folder is nothing"
    assert len(set(versions)) == len(changes)
    settle()
    assert lab.scan().definitions["r"].digest == versions[-1]
    assert lab.fresh().scan().definitions["r"].digest == versions[-1]


def test_what_python_leaves_behind_is_no_part_of_a_bundle(lab: Lab) -> None:
    root = bundled(lab)
    before = lab.scan().definitions["r"].digest
    (root / "__pycache__").mkdir()
    (root / "__pycache__" / "main.pyc").write_text("x")
    assert lab.scan().definitions["r"].digest == before


def test_rights_that_only_the_owner_sees_do_not_make_a_version(lab: Lab) -> None:
    root = bundled(lab)
    before = lab.scan().definitions["r"].digest
    (root / "main.py").chmod(0o600)
    (root / "tool").chmod(0o700)
    assert lab.scan().definitions["r"].digest == before


@pytest.mark.parametrize("kind", ["link", "folder link", "dangling link", "pipe", "socket"])
def test_what_may_not_be_in_a_bundle(lab: Lab, kind: str) -> None:
    root = bundled(lab)
    good = lab.scan().definitions["r"]
    bad = root / "data" / "bad"
    server = None
    match kind:
        case "link":
            bad.symlink_to("/etc/passwd")
        case "folder link":
            bad.symlink_to("..")
        case "dangling link":
            bad.symlink_to("nowhere")
        case "pipe":
            os.mkfifo(bad)
        case "socket":
            server = socket.socket(socket.AF_UNIX)
            here = Path.cwd()
            os.chdir(bad.parent)
            try:
                server.bind("bad")
            finally:
                os.chdir(here)
    text = "a link" if "link" in kind else "a pipe or socket"
    assert f"r.yaml:3:9: bundle: r: data/bad is {text}; a bundle holds only files and folders" in lab.problems()
    assert lab.scan().definitions["r"] == good
    bad.unlink()
    assert lab.problems() == ""
    if server:
        server.close()


def test_a_device_may_not_be_in_a_bundle(lab: Lab) -> None:
    root = bundled(lab)
    try:
        os.mknod(root / "zero", 0o020644, os.makedev(1, 5))
    except PermissionError:
        # Without root there can be none; the walk treats all that is no file, folder or link alike.
        return
    assert "zero is a device" in lab.problems()


def test_the_folder_itself_may_not_be_a_link(lab: Lab) -> None:
    root = bundled(lab)
    root.rename(lab.etc / "elsewhere")
    root.symlink_to("elsewhere")
    assert "r is not a folder (a link is not followed)" in lab.problems()
    (lab.etc / "r.yaml").write_text("version: 1\ncommand: [a]\nbundle: r/data\n")
    assert "r/data is not a folder (a link is not followed)" in lab.problems()


def test_a_folder_that_is_missing_or_empty_is_told(lab: Lab) -> None:
    (lab.etc / "r.yaml").write_text("version: 1\ncommand: [a]\nbundle: r\n")
    assert "the folder r cannot be opened: No such file or directory" in lab.problems()
    (lab.etc / "r").mkdir()
    assert "r: the folder is empty" in lab.problems()
    (lab.etc / "r" / "f").write_text("")
    assert list(lab.scan().definitions) == ["r"]


def test_a_bundle_has_at_most_so_many_files(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "BUNDLE_FILES_MAX", 3)
    root = bundled(lab)
    assert list(lab.scan().definitions) == ["r"]
    (root / "fourth").write_text("")
    assert "r: has more than 3 files" in lab.problems()


def test_a_bundle_has_at_most_a_gibibyte(lab: Lab) -> None:
    root = bundled(lab)
    before = lab.scan().definitions["r"]
    with (root / "sparse").open("wb") as file:
        file.truncate(1024**3)
    used = time.process_time()
    assert "r: has more than 1 GiB" in lab.problems()
    assert time.process_time() - used < 1.0, "it was read though it is too large"
    assert lab.scan().definitions["r"] == before


def test_a_deep_bundle_is_refused(lab: Lab) -> None:
    deep = bundled(lab)
    for _ in range(40):
        deep /= "d"
    deep.mkdir(parents=True)
    assert "is nested deeper than 32 folders" in lab.problems()


def test_a_name_in_a_bundle_that_is_no_text_is_told(lab: Lab) -> None:
    root = bundled(lab)
    (root / os.fsdecode(b"caf\xe9")).write_text("")
    assert "has a name that is not UTF-8" in lab.problems()
    msgspec.msgpack.encode(lab.scan().documents)


def test_a_full_disk_is_the_definitions_problem_and_heals(lab: Lab) -> None:
    bundled(lab)
    lab.blobs.low_water_bytes = 2**62
    assert "free some disk space" in lab.problems()
    assert lab.scan().definitions == {}
    lab.blobs.low_water_bytes = 0
    assert list(lab.scan().definitions) == ["r"]


def test_files_that_change_while_they_are_read_never_make_a_wrong_bundle(lab: Lab) -> None:
    """A writer replaces a file all the time; whatever is live, its blobs are whole."""
    root = bundled(lab)
    stop = threading.Event()

    def write() -> None:
        round_ = 0
        while not stop.is_set() and round_ < 5000:
            round_ += 1
            (root / "main.py").write_text(f"{round_} " * (round_ % 50 + 1))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(60):
            definition = lab.scan().definitions.get("r")
            if definition is not None:
                for file in lab.manifest(definition):
                    assert lab.blobs.size(file.sha256) == file.size
    finally:
        stop.set()
        writer.join()
    settle()
    (main,) = [file for file in lab.manifest(lab.scan().definitions["r"]) if file.path == "main.py"]
    assert lab.blobs.read_bytes(main.sha256) == (root / "main.py").read_bytes()


@pytest.mark.parametrize("size", [9, 11])
def test_a_file_is_read_whole_or_not_at_all(tmp_path: Path, size: int) -> None:
    """It grew or shrank after its size was seen: what would be hashed is not what the manifest says."""
    path = tmp_path / "f"
    path.write_bytes(b"x" * 10)
    with path.open("rb") as file:
        assert b"".join(bundles.chunks(file.fileno(), 10)) == b"x" * 10
        file.seek(0)
        with pytest.raises(bundles.ChangedError):
            list(bundles.chunks(file.fileno(), size))
