"""A definition's YAML file: what each key means, and what is said of each mistake."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from districomp.taskdef import Definition, Limits, Param, Retries, check_params, with_digest
from districomp.taskfile import Draft, TaskFile, parse_definition
from districomp.yamlfile import YamlError


def parse(text: str, name: str = "d") -> Definition:
    return parse_definition(text.encode(), f"{name}.yaml", name)


def problems(text: str, name: str = "d") -> list[str]:
    with pytest.raises(YamlError) as caught:
        parse(text, name)
    return [str(problem) for problem in caught.value.problems]


WHOLE = """
version: 1
description: "  One strip  "
command: [povray, "+I{scene}", "+SR{first}", "{more}"]
params:
  scene: {type: path}
  first: {type: int, min: 1, max: 9}
  more: {type: list, min: 1, default: [a, b]}
env: {LANG: C.UTF-8, NO: no}
limits: {time: 10min, data: 1MiB, result: unlimited}
retries: {max: 0, backoff: 500ms, never_on: [2, 255]}
rerun: never
isolation: none
"""


def test_every_key() -> None:
    assert parse(WHOLE) == with_digest(
        Definition(
            name="d",
            digest="",
            description="One strip",
            runner="command",
            argv=["povray", "+I{scene}", "+SR{first}", "{more}"],
            params={
                "scene": Param("path"),
                "first": Param("int", 1.0, 9.0),
                "more": Param("list", 1.0, default=["a", "b"]),
            },
            env={"LANG": "C.UTF-8", "NO": "no"},
            limits=Limits(600.0, 1024**2, None),
            retries=Retries(0, 0.5, [2, 255]),
            rerun="never",
            isolation=["none"],
        )
    )


def test_the_least_that_a_definition_is() -> None:
    found = parse("version: 1\ncommand: [sha256sum]")
    assert found == with_digest(Definition("d", "", "", "command", ["sha256sum"]))
    assert found.limits == Limits(None, None, None)
    assert found.retries == Retries(3, 1.0, [])
    assert found.rerun == "lost"
    assert found.isolation == ["rlimit"]


def test_a_stream() -> None:
    found = parse("version: 1\nstream: [prog, '{p}']\nformat: json\nparams: {p: {type: str}, q: {type: bool}}")
    assert (found.runner, found.format) == ("stream", "json")
    assert parse("version: 1\nstream: [prog]").format == "lines"


def test_spelling_does_not_make_a_version_but_meaning_does() -> None:
    one = parse("version: 1\ncommand: [a]\nlimits: {time: 1min}\nretries: {max: 3}")
    assert parse("command: ['a']  # the same\nlimits: {time: 60s}\nversion: 0x1").digest == one.digest
    assert parse("version: 1\ncommand: [a]").digest != one.digest
    assert parse("version: 1\ncommand: [a]\nlimits: {time: 1min}", "e").digest != one.digest


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "d.yaml:1:1: version: is missing; write version: 1"),
        ("version: 2\ncommand: [a]", "d.yaml:1:10: version: is 2, but this districomp reads 1"),
        ("version: '1'\ncommand: [a]", "version: must be a whole number, not the text '1'"),
        ("version: 1", "d.yaml:1:1: the program is missing; write for example command: [sha256sum]"),
        ("version: 1\ncommand: []", "d.yaml:2:10: command: the program is missing"),
        ("version: 1\nstream:\n", "d.yaml:2:8: stream: must be a list, not nothing"),
        ("version: 1\ncommand: a b", "command: must be a list, not the text 'a b'"),
        ("version: 1\ncommand: [a]\nstream: [b]", "d.yaml:3:9: stream: there is a command too"),
        ("version: 1\ncommand: ['']", "command[0]: is empty; the first is the program"),
        ("version: 1\ncommand: [a, \"b\\0\"]", "command[1]: has a NUL character"),
        ("version: 1\ncommand: [a, '{b}']", "command[1]: {b} is not a param; declare b under params, or write {{ for a brace"),
        ("version: 1\ncommand: [a, '{itme}']", "command[1]: {itme} is not a param; did you mean {item}?"),
        ("version: 1\ncommand: [a, '{']", "command[1]: has a lone { at character 1"),
        ("version: 1\nstream: [a, '{item}']", "stream[1]: {item} is for command; a stream reads its items from standard input"),
        ("version: 1\nstream: [a, '{index}']", "stream[1]: {index} is for command"),
        ("version: 1\ncommand: [a, 'x{l}']\nparams: {l: {type: list}}", "command[1]: {l} is a list, which becomes several arguments"),
        ("version: 1\ncommand: [a]\nformat: json", "d.yaml:3:9: format: is for stream"),
        ("version: 1\nstream: [a]\nformat: jsn", "format: must be one of json, lines, not the text 'jsn'; did you mean 'json'?"),
        ("version: 1\ncommand: [a]\nbundle: /etc", "bundle: must be a folder beside or below this file"),
        ("version: 1\ncommand: [a]\nbundle: a/../..", "bundle: must be a folder beside or below this file"),
        ("version: 1\ncommand: [a]\nbundle: ./", "bundle: must be a folder beside or below this file"),
        ("version: 1\ncommand: [a]\nparams: {p: {type: str}}", "params.p: no argument uses {p}"),
        ("version: 1\ncommand: [a]\nparams: {p: {}}", "params.p.type: this key is missing; it is one of bool, float, int, list, path, str"),
        ("version: 1\ncommand: [a]\nparams: {p: {type: integer}}", "params.p.type: must be one of"),
        ("version: 1\ncommand: [a, '{p}']\nparams: {p: {type: int, default: x}}", "params.p.default: must be a whole number, not 'x'"),
        ("version: 1\ncommand: [a, '{p}']\nparams: {p: {type: int, min: 3, default: 2}}", "params.p.default: must be a whole number of at least 3, not 2"),
        ("version: 1\ncommand: [a, '{p}']\nparams: {p: {type: int, min: 3, max: 2}}", "params.p.max: is below min"),
        ("version: 1\ncommand: [a, '{p}']\nparams: {p: {type: int, min: 3.5}}", "params.p.min: must be a whole number for int"),
        ("version: 1\ncommand: [a, '{p}']\nparams: {p: {type: str, max: 3}}", "params.p.max: is for int, float and list, not for str"),
        ("version: 1\ncommand: [a, '{p}']\nparams: {p: {type: str, expand: true}}", "params.p.expand: is for list, not for str"),
        ("version: 1\nstream: [a, '{p}']\nparams: {p: {type: list, expand: true}}", "params.p.expand: is for command"),
        ("version: 1\ncommand: [a]\nparams: {p-q: {type: str}}", "params.p-q: a param's name is letters"),
        ("version: 1\ncommand: [a]\nparams: {item: {type: str}}", "params.item: {item} is the task's own item"),
        ("version: 1\ncommand: [a]\nenv: {A: 5}", "env.A: must be a text, not the number 5; if the text is meant, write it in quotes: '5'"),
        ("version: 1\ncommand: [a]\nenv: {A-B: x}", "env.A-B: a variable's name is letters"),
        ("version: 1\ncommand: [a]\nenv: {DISTRICOMP_TASK: x}", "env.DISTRICOMP_TASK: names that begin with DISTRICOMP_"),
        ("version: 1\ncommand: [a]\nenv: {A: \"\\0\"}", "env.A: has a NUL character"),
        ("version: 1\ncommand: [a]\nlimits: {time: 10}", "limits.time: '10' has no unit; write for example 10s or 10min"),
        ("version: 1\ncommand: [a]\nlimits: {time: 0}", "limits.time: no task could run in no time"),
        ("version: 1\ncommand: [a]\nlimits: {result: 5M}", "limits.result: '5M': the unit M is ambiguous"),
        ("version: 1\ncommand: [a]\nlimits: {memory: 1GiB}", "d.yaml:3:10: limits.memory: this key is not supported yet"),
        ("version: 1\ncommand: [a]\nretries: 3", "retries: must be a mapping (KEY: VALUE), not the number 3"),
        ("version: 1\ncommand: [a]\nretries: {max: -1}", "retries.max: must be a whole number from 0 to 1000"),
        ("version: 1\ncommand: [a]\nretries: {backoff: 2d}", "retries.backoff: is over a day"),
        ("version: 1\ncommand: [a]\nretries: {never_on: [0]}", "retries.never_on[0]: must be a whole number from 1 to 255"),
        ("version: 1\ncommand: [a]\nrerun: always", "rerun: must be one of lost, never, not the text 'always'"),
        ("version: 1\ncommand: [a]\nisolation: sandbox", "isolation: sandbox is not supported yet; write one of none, rlimit until then"),
        ("version: 1\ncommand: [a]\nisolation: [rlimt]", "isolation[0]: unknown level 'rlimt'; did you mean rlimit?"),
        ("version: 1\ncommand: [a]\nisolation: []", "isolation: is empty"),
        ("version: 1\ncommand: [a]\nisolation: [none, rlimit]", "isolation: none stands alone"),
        ("version: 1\ncommand: [a]\nrequires: {}", "d.yaml:3:1: requires: this key is not supported yet; it comes with a later version"),
        ("version: 1\ncomand: [a]", "d.yaml:2:1: comand: unknown key; did you mean 'command'?"),
    ],
)  # fmt: skip
def test_each_mistake_has_its_sentence(text: str, expected: str) -> None:
    assert any(expected in problem for problem in problems(text)), problems(text)


def test_the_files_name_is_the_definitions() -> None:
    assert parse("version: 1\ncommand: [a]", "a_b-9").name == "a_b-9"
    for name in ("a b", "ä", "-a", "a.b", "", "x" * 65):
        assert any("the file's name" in problem for problem in problems("version: 1\ncommand: [a]", name))


def test_all_of_a_files_mistakes_are_told_at_once() -> None:
    found = problems(
        "version: 3\ncomand: []\ncommand: [a, '{x}', 5]\nparams: {y: {type: int, default: z}}\n"
        "env: {A: 1, B-: b}\nlimits: {tiem: 3s, data: 5}\nrerun: no\n"
    )
    assert [problem.split(": ")[1] for problem in found] == [
        "version", "comand", "command[1]", "command[2]", "params.y.default", "env.A", "env.B-", "limits.tiem", "limits.data", "rerun"
    ]  # fmt: skip


def test_a_misspelt_runner_is_not_called_missing() -> None:
    assert problems("version: 1\ncomand: [a]") == ["d.yaml:2:1: comand: unknown key; did you mean 'command'?"]
    assert len(problems("version: 1\npython: m:f")) == 1


def test_a_declared_param_with_a_fault_is_not_called_undeclared() -> None:
    assert problems("version: 1\ncommand: [a, '{p}']\nparams: {p: {type: txt}}") == [
        "d.yaml:3:20: params.p.type: must be one of bool, float, int, list, path, str, not the text 'txt'"
    ]


def test_a_bundle_is_completed_by_who_reads_the_folder() -> None:
    draft = Draft(b"version: 1\ncommand: [a]\nbundle: sub/render/\n", "d.yaml", "d")
    assert draft.bundle == "sub/render"
    assert draft.finish("ab" * 32).bundle == "ab" * 32
    assert draft.finish("ab" * 32).digest != draft.finish("cd" * 32).digest
    draft.bundle_problem("it has a link")
    with pytest.raises(YamlError, match=r"d.yaml:3:9: bundle: it has a link"):
        draft.finish("ab" * 32)


keys = st.sampled_from([field.encode_name for field in msgspec.structs.fields(TaskFile)] + ["comand", "memory", "x"])
values = st.recursive(
    st.sampled_from([None, True, 0, 1, -1, 0.5, "", "a", "{item}", "{p}", "{", "10min", "1MiB", "unlimited", "json", "list", "int"]),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["p", "type", "min", "max", "default", "time", "expand"]), inner, max_size=4)),
    max_leaves=8,
)  # fmt: skip


@given(st.dictionaries(keys, values, max_size=6))
def test_any_mapping_is_a_definition_or_problems(keys_and_values: dict[str, object]) -> None:
    data = msgspec.json.encode({"version": 1, "command": ["a"], **keys_and_values})
    try:
        found = parse_definition(data, "d.yaml", "d")
    except YamlError as error:
        assert error.problems
        return
    assert found.argv
    if not any(param.default is None for param in found.params.values()):
        check_params(found, {})


@given(st.binary(max_size=100))
def test_any_bytes_are_a_definition_or_problems(data: bytes) -> None:
    draft = Draft(data, "d.yaml", "d")
    assert draft.problems
