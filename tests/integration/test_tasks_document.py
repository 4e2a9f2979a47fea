"""`docs/tasks.md` is true: its examples are definitions, its error is the real one, no key is missing."""

import re
from pathlib import Path

import pytest
from msgspec.structs import fields

from districomp import taskfile
from districomp.taskfile import RUNNERS, Draft, parse_definition
from districomp.taskkeys import LimitKeys, ParamKeys, RequireKeys, RetryKeys, TaskFile
from districomp.yamlfile import YamlError

ROOT = Path(__file__).resolve().parents[2]
TASKS = ROOT / "tasks"
TEXT = (ROOT / "docs" / "tasks.md").read_text()
EXAMPLES = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_each_example_is_a_definition(example: str) -> None:
    draft = Draft(example.encode(), "example.yaml", "example")
    assert [str(problem) for problem in draft.problems] == []


def test_each_key_has_its_heading_and_an_example() -> None:
    for field in fields(TaskFile):
        assert f"\n### {field.encode_name}\n" in TEXT
        assert any(re.search(rf"(?m)^{field.encode_name}:", example) for example in EXAMPLES), field.name
    inner = [field.encode_name for cls in (LimitKeys, RetryKeys, ParamKeys, RequireKeys) for field in fields(cls)]
    assert [name for name in inner if not any(f"{name}:" in example for example in EXAMPLES)] == []


def test_what_is_not_enforced_is_exactly_what_the_check_warns_of() -> None:
    section = TEXT.partition("### What is enforced\n")[2].partition("\n## ")[0]
    for begins, keys in (
        ("These are kept", taskfile._NOT_ENFORCED),
        ("These need control", taskfile._BY_CONTROL_GROUPS),
    ):
        kept = section.partition(begins)[2].partition(":")[2].partition(".\n\n")[0]
        assert set(re.findall(r"`([a-z.]+)`", re.sub(r"\(.*?\)", "", kept))) == {".".join(key) for key in keys}


def test_the_warning_it_shows_is_the_real_one() -> None:
    shown = re.search(r"```\n(frames\.yaml:.*?)```", TEXT, re.DOTALL)
    assert shown
    text = "version: 1\ndescription: x\ncommand: [a]\nlimits:\n  memory: 512MiB\n"
    (warning,) = Draft(text.encode(), "frames.yaml", "frames").warnings
    assert warning.render().strip() == shown.group(1).strip()


def test_the_errors_it_shows_are_the_real_ones() -> None:
    shown = re.search(r"```\n(render\.yaml:.*?)```", TEXT, re.DOTALL)
    assert shown
    source = (
        "version: 1\ndescription: x\ncommand: [povray, \"+I{scene}\", \"+SR{frist}\"]\nparams:\n"
        "  scene: {type: path}\n  first: {type: int}\nlimits:\n  time: 10\n"
    )  # fmt: skip
    with pytest.raises(YamlError) as caught:
        parse_definition(source.encode(), "render.yaml", "render")
    real = str(caught.value)
    blocks = [block for block in re.split(r"(?m)^(?=render\.yaml)", shown.group(1)) if block]
    assert len(blocks) == 2
    for block in blocks:
        assert block.strip() in real, real


def test_every_link_within_it_leads_somewhere() -> None:
    headings = {
        re.sub(r"[^a-z0-9 -]", "", line.lower()).replace(" ", "-") for line in re.findall(r"(?m)^#+ (.*)$", TEXT)
    }
    assert set(re.findall(r"\]\(#([^)]*)\)", TEXT)) <= headings


def runner_of(path: Path) -> str:
    return next(runner for runner in RUNNERS if f"\n{runner}:" in path.read_text())


def test_every_shipped_definition_is_in_its_list() -> None:
    listed = re.findall(r"(?m)^\| \[`(\w+)`\]\(../tasks/\1\.yaml\) \| `(\w+)`", TEXT)
    shipped = [(path.stem, runner_of(path)) for path in TASKS.glob("*.yaml")]
    assert sorted(listed) == sorted(shipped)
