"""Every definition of `tasks/`, read by the catalog and its program run for real, as a worker would."""

import hashlib
import io
import json
import keyword
import os
import select
import subprocess
import sys
import tokenize
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dcoord.blobs import BlobStore
from dcoord.catalog import Catalog
from districomp.arguments import Arguments
from districomp.config import LIVE_AS_SHIPPED, Layer
from districomp.placeholders import run_template
from districomp.taskdef import Definition, check_params
from tests.patience import PATIENCE_S

TASKS = Path(__file__).resolve().parents[2] / "tasks"
NAMES = sorted(path.stem for path in TASKS.glob("*.yaml"))
RUN_IN = (
    "tests/integration/test_tasks_cluster.py",
    "tests/system/test_tasks_programs.py",
)
"""The files whose tests run the definitions on a real cluster; a new one in tasks/ needs a test there."""


@pytest.fixture(scope="module")
def definitions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Definition]]:
    scan = Catalog([Layer(TASKS)], BlobStore(tmp_path_factory.mktemp("blobs"), low_water_bytes=0)).scan()
    assert [problem for document in scan.documents for problem in document.problems] == []
    yield scan.definitions


def argv(definition: Definition, params: dict[str, Any], item: str | None = None, index: int = 0) -> list[str]:
    arguments = Arguments(definition, check_params(definition, params)).argv(item, index)
    # The interpreter of the tests, which is known to be there.
    return [sys.executable, *arguments[1:]] if arguments[0] == "python3" else arguments


def run(arguments: list[str], stdin: bytes = b"", folder: str = "") -> subprocess.CompletedProcess[bytes]:
    environment = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        arguments, input=stdin, capture_output=True, cwd=TASKS / folder, env=environment, timeout=PATIENCE_S
    )


def test_every_definition_is_run_by_a_test_and_explains_itself() -> None:
    tests = "".join((TASKS.parent / path).read_text() for path in RUN_IN)
    for name in NAMES:
        assert f'"{name}"' in tests or name in LIVE_AS_SHIPPED, f"{name}.yaml needs a test in one of {RUN_IN}"
        text = (TASKS / f"{name}.yaml").read_text()
        assert text.startswith("# "), f"{name}.yaml must begin with a comment that teaches"
        assert f"dctl submit {name}" in text or name in LIVE_AS_SHIPPED, f"{name}.yaml must say how it is used"


def test_all_are_good_and_only_those_without_a_program_are_live_as_shipped(
    definitions: dict[str, Definition], tmp_path: Path
) -> None:
    assert sorted(definitions) == NAMES
    assert all(definition.description for definition in definitions.values())
    live = Catalog([Layer(TASKS, LIVE_AS_SHIPPED)], BlobStore(tmp_path)).scan()
    assert list(live.definitions) == ["callable", "shell"]


def test_shell_runs_what_dctl_run_gives_it(definitions: dict[str, Definition]) -> None:
    command = argv(definitions["shell"], {"argv": run_template(["printf", "%s|%s", "{}.x"], True)}, "a b;{}")
    assert run(command).stdout == b"a b;{}.x|"


def test_checksum_is_what_python_computes(definitions: dict[str, Definition]) -> None:
    for data in (b"", b"abc", bytes(range(256)) * 1000):
        done = run(argv(definitions["checksum"], {}), data)
        assert done.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()


# ---- identifiers ----


def counted(definition: Definition, tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    lines = b"".join(json.dumps(task).encode() + b"\n" for task in tasks)
    done = run(argv(definition, {}), lines, "identifiers")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


SOURCE = r"""
import os  # no
class Größe(Exception):
    '''no "" either 'x' \''' no'''
    def f(self, *a: int) -> None:
        x = 0x1F + 1e5 + 1_000j; os.path.join("no", 'no', r"no\" no", b'no', self.x, x, Rb"no", "")
        s = "no\"no" + 'no\\' + u'no' ; return None
"""


def test_identifiers_counts_names_as_pythons_tokenizer_sees_them(definitions: dict[str, Definition]) -> None:
    (answer,) = counted(definitions["identifiers"], [{"id": 7, "item": SOURCE, "params": {}}])
    tokens = tokenize.generate_tokens(io.StringIO(SOURCE).readline)
    wanted = Counter(t.string for t in tokens if t.type == tokenize.NAME and not keyword.iskeyword(t.string))
    assert answer["id"] == 7
    assert json.loads(answer["result"]) == dict(wanted)
    assert wanted["x"] == 3
    assert "no" not in wanted


def test_identifiers_answers_anything_in_order_and_ends_with_its_input(definitions: dict[str, Definition]) -> None:
    tasks: list[dict[str, Any]] = [
        {"id": 1, "item": "", "params": {}},
        {"id": 2, "item_base64": "/2EgPSBi", "params": {}},  # byte 0xFF, then a = b
        {"id": "x", "item": 'a = \'open\n"""never closed b', "params": {}},
    ]
    answers = counted(definitions["identifiers"], tasks)
    assert [answer["id"] for answer in answers] == [1, 2, "x"]
    assert json.loads(answers[0]["result"]) == {}
    assert json.loads(answers[1]["result"])["b"] == 1
    assert json.loads(answers[2]["result"])["a"] == 1


def test_identifiers_answers_before_the_next_task_comes(definitions: dict[str, Definition]) -> None:
    """An answer left in a buffer would keep a worker waiting for ever."""
    with subprocess.Popen(
        argv(definitions["identifiers"], {}), cwd=TASKS / "identifiers", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin
        assert process.stdout
        try:
            process.stdin.write(b'{"id": 1, "item": "a"}\n')
            process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], 20)
            assert ready, "no answer came"
            assert json.loads(process.stdout.readline())["id"] == 1
        finally:
            process.kill()


def test_identifiers_agrees_with_the_tokenizer_on_real_modules(definitions: dict[str, Definition]) -> None:
    modules = [Path(json.__file__), Path(tokenize.__file__), Path(subprocess.__file__)]
    tasks = [{"id": i, "item": path.read_text("utf-8"), "params": {}} for i, path in enumerate(modules)]
    for path, answer in zip(modules, counted(definitions["identifiers"], tasks), strict=True):
        with tokenize.open(path) as file:
            tokens = list(tokenize.generate_tokens(file.readline))
        wanted = Counter(t.string for t in tokens if t.type == tokenize.NAME and not keyword.iskeyword(t.string))
        found = json.loads(answer["result"])
        # Python 3.12 and later see into f-strings, where this program sees a string.
        if sys.version_info < (3, 12):
            assert found == dict(wanted), path
        assert sum(found.values()) > 100
        assert all(wanted[name] >= count for name, count in found.items()), path


# ---- render ----


def strip(definition: Definition, number: int, **params: int) -> bytes:
    done = run(argv(definition, params, str(number)), folder="render")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_strip_of_the_picture_is_the_same_bytes_everywhere(definitions: dict[str, Definition]) -> None:
    """The picture's own digest is of all strips (`tasks/render/picture.sha256`) and takes half a minute."""
    pixels = strip(definitions["render"], 60)
    assert len(pixels) == 1200 * 8 * 3
    assert hashlib.sha256(pixels).hexdigest() == "be976099c46c7abff97d2fb927e3411995ac206e98b6b2d6f9d7822649bc20ce"


def test_the_picture_does_not_depend_on_its_strips(definitions: dict[str, Definition]) -> None:
    size = {"width": 60, "height": 40}
    whole = strip(definitions["render"], 0, strips=1, **size)
    assert len(whole) == 60 * 40 * 3
    assert b"".join(strip(definitions["render"], i, strips=4, **size) for i in range(4)) == whole
    assert len(set(whole)) > 100, "a picture has more than a few shades"


def test_the_digest_of_the_whole_picture_is_recorded() -> None:
    digest, _, rest = (TASKS / "render" / "picture.sha256").read_text().partition("  ")
    assert len(bytes.fromhex(digest)) == 32
    assert "1200 x 800" in rest


@pytest.mark.parametrize("arguments", [["100", "100", "1200", "800"], ["0", "3", "60", "40"], ["a", "1", "2", "3"], []])
def test_a_strip_that_is_none_is_a_verdict(definitions: dict[str, Definition], arguments: list[str]) -> None:
    done = run([sys.executable, "raytrace.py", *arguments], folder="render")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr
    assert definitions["render"].retries.never_on == [2]


def test_strips_are_stitched_to_a_png(tmp_path: Path) -> None:
    pixels = bytes(i * 37 & 255 for i in range(5 * 4 * 3))
    (tmp_path / "0").write_bytes(pixels[:30])
    (tmp_path / "1").write_bytes(pixels[30:])
    out = tmp_path / "out.png"
    done = run(
        [sys.executable, "stitch.py", "5", "4", str(out), str(tmp_path / "0"), str(tmp_path / "1")], folder="render"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().strip() == hashlib.sha256(pixels).hexdigest()
    assert unpacked(out.read_bytes(), 5, 4) == pixels


def unpacked(png: bytes, width: int, height: int) -> bytes:
    """The pixels of a PNG by the specification: chunks with their CRC, zlib, filter 1."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, position = {}, 8
    while position < len(png):
        size = int.from_bytes(png[position : position + 4], "big")
        kind, data = png[position + 4 : position + 8], png[position + 8 : position + 8 + size]
        assert zlib.crc32(kind + data) == int.from_bytes(png[position + 8 + size : position + 12 + size], "big")
        chunks[kind] = data
        position += 12 + size
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    assert chunks[b"IHDR"] == width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((8, 2, 0, 0, 0))
    rows = zlib.decompress(chunks[b"IDAT"])
    pixels = bytearray()
    for top in range(0, len(rows), width * 3 + 1):
        assert rows[top] == 1
        row = bytearray(rows[top + 1 : top + 1 + width * 3])
        for i in range(3, len(row)):
            row[i] = row[i] + row[i - 3] & 255
        pixels += row
    return bytes(pixels)
