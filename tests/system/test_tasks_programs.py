"""The shipped definitions and templates that need a Debian package: ffmpeg, povray, gcc."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from demo.cluster import wait_until
from tests.integration.taskslab import TasksLab, tasks_lab
from tests.integration.test_tasks_cluster import count_words
from tests.patience import PATIENCE_S

__all__ = ["tasks_lab"]

pytestmark = pytest.mark.system


def ffmpeg(*arguments: str) -> None:
    subprocess.run(["ffmpeg", "-nostdin", "-v", "error", "-y", *arguments], check=True, timeout=PATIENCE_S)


def probe(path: Path) -> dict[str, dict[str, object]]:
    """What ffmpeg sees in a file: its streams by kind."""
    done = subprocess.run(
        ["ffprobe", "-v", "error", "-show_streams", "-of", "json", str(path)],
        capture_output=True,
        check=True,
        timeout=PATIENCE_S,
    )
    return {stream["codec_type"]: stream for stream in json.loads(done.stdout)["streams"]}


def written(folder: Path, results: list[bytes]) -> list[Path]:
    paths = [folder / f"result-{number}" for number in range(len(results))]
    for path, result in zip(paths, results, strict=True):
        path.write_bytes(result)
    return paths


def test_transcode_makes_a_folder_of_clips_smaller(tasks_lab: TasksLab, tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    picture = ["-f", "lavfi", "-i", "testsrc2=duration=2:size=640x360:rate=12"]
    sound = ["-f", "lavfi", "-i", "sine=frequency=440:duration=2"]
    # The first has its table of contents at the end, as a camera writes it, and travels as a blob.
    ffmpeg(*picture, *sound, "-c:v", "mpeg4", "-q:v", "2", "-c:a", "aac", str(clips / "1.mp4"))
    ffmpeg(*picture, "-c:v", "mpeg4", str(clips / "2.avi"))
    ffmpeg("-f", "lavfi", "-i", "testsrc2=duration=1:size=96x64:rate=12", str(clips / "3.mkv"))
    assert (clips / "1.mp4").stat().st_size > 64 * 1024
    files = [str(path) for path in sorted(clips.iterdir())]
    results = tasks_lab.results("transcode", "--each-file", *files, "--param", "height=120")
    first, second, third = (probe(path) for path in written(tmp_path, results))
    assert (first["video"]["codec_name"], first["video"]["height"]) == ("h264", 120)
    assert first["audio"]["codec_name"] == "aac"
    assert list(second) == ["video"]
    assert third["video"]["height"] == 64, "a clip that is lower already is not enlarged"
    assert len(results[0]) < (clips / "1.mp4").stat().st_size


def test_transcode_of_no_clip_is_a_verdict(tasks_lab: TasksLab) -> None:
    ((reason, code, stderr),) = tasks_lab.failed("transcode", "--data", "no clip")
    assert (reason, code) == ("exit", 2)
    assert "this is no video that ffmpeg can read" in stderr


def test_thumbnails_fit_a_square(tasks_lab: TasksLab, tmp_path: Path) -> None:
    for name, size in (("wide.png", "640x480"), ("tall.jpg", "300x900"), ("small.png", "20x10")):
        ffmpeg("-f", "lavfi", "-i", f"testsrc=size={size}", "-frames:v", "1", "-update", "1", str(tmp_path / name))
    files = [str(tmp_path / name) for name in ("wide.png", "tall.jpg", "small.png")]
    results = tasks_lab.results("thumbnails", "--each-file", *files, "--param", "size=64")
    found = [probe(path)["video"] for path in written(tmp_path, results)]
    assert [stream["codec_name"] for stream in found] == ["mjpeg"] * 3
    assert [(stream["width"], stream["height"]) for stream in found] == [(64, 48), (21, 64), (20, 10)]
    (first, second) = tasks_lab.failed("thumbnails", "--data", "no picture")
    assert first[0] == second[0] == "exit"


def test_povray_strips_are_the_picture(tasks_lab: TasksLab) -> None:
    sizes = ["--param", "width=90", "--param", "height=60"]
    (whole,) = tasks_lab.results("povray", "--range", "0..0", "--param", "strips=1", *sizes)
    strips = tasks_lab.results("povray", "--range", "0..3", "--param", "strips=4", *sizes)
    assert len(whole) == 90 * 60 * 3
    assert len(set(whole)) > 100, "a picture has more than a few shades"
    assert [len(strip) for strip in strips] == [90 * 15 * 3] * 4
    # At its upper edge a strip smooths a little differently, for want of the row above.
    joined = b"".join(strips)
    far = sum(abs(one - other) > 64 for one, other in zip(joined, whole, strict=True))
    assert far < len(whole) / 100
    ((_, code, stderr),) = tasks_lab.failed("povray", "--data", "7", "--param", "strips=4", *sizes)
    assert code == 2
    assert "there is no strip 7 of 4" in stderr


SOURCES = {
    "main.c": '#include "sum.h"\n#include <stdio.h>\nint main(void) { printf("%d\\n", sum(40, 2)); return 0; }\n',
    "sum.c": '#include "sum.h"\nint sum(int a, int b) { return EXTRA + a + b; }\n',
}


def version(lab: TasksLab, name: str) -> str:
    return str(lab.cluster.dctl_json("def", "show", name)["version"])


def test_compile_builds_a_project_that_runs(tasks_lab: TasksLab, tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    for name, text in SOURCES.items():
        (source / name).write_text(text)
    before = version(tasks_lab, "compile")
    (tasks_lab.drop_ins / "compile" / "include" / "sum.h").write_text("int sum(int a, int b);\n")
    wait_until(lambda: version(tasks_lab, "compile") != before, "the new header to be live")
    flags = ["--param", "flags=-O2", "--param", "flags=-Wall", "--param", "flags=-DEXTRA=100"]
    files = [str(path) for path in sorted(source.iterdir())]
    objects = written(tmp_path, tasks_lab.results("compile", "--each-file", *files, *flags))
    program = tmp_path / "program"
    subprocess.run(["gcc", "-o", str(program), *map(str, objects)], check=True, timeout=PATIENCE_S)
    assert subprocess.run([str(program)], capture_output=True, check=True, timeout=PATIENCE_S).stdout == b"142\n"
    # What is wrong is told with the file's own name and line, once.
    ((reason, code, stderr),) = tasks_lab.failed("compile", "--each-file", str(source / "sum.c"))
    assert (reason, code) == ("exit", 1)
    assert f"{source}/sum.c:2:" in stderr
    assert "EXTRA" in stderr


@pytest.mark.parametrize("template", ["command-c", "stream-c"])
def test_a_template_in_c_is_built_and_works(tasks_lab: TasksLab, template: str) -> None:
    assert shutil.which("make")
    count_words(tasks_lab, template)
