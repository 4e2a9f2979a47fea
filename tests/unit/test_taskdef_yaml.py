"""A definition's YAML file: what each key means, and what is said of each mistake."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from districomp.taskdef import Definition, Limits, Param, Requires, Retries, check_params, with_digest
from districomp.taskfile import Draft, parse_definition
from districomp.taskkeys import TaskFile
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
inputs: [scene.pov]
outputs: [out/strip.png]
limits: {time: 10min, memory: 512MiB, cpus: 2, gpus: 1, processes: 64, disk: 1GiB, data: 1MiB, result: unlimited, running: 20}
retries: {max: 0, backoff: 500ms, never_on: [2, 255]}
rerun: never
isolation: [sandbox, cgroup]
network: false
requires: {arch: [x86_64, aarch64], programs: [povray, povray], labels: [room-12]}
priority: -5
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
            limits=Limits(600.0, 1024**2, None, 512 * 1024**2, 2, 1, 64, 1024**3, 20),
            retries=Retries(0, 0.5, [2, 255]),
            rerun="never",
            isolation=["sandbox", "cgroup"],
            requires=Requires(("aarch64", "x86_64"), ("povray",), ("room-12",)),
            network=False,
            inputs=["scene.pov"],
            outputs=["out/strip.png"],
            priority=-5,
        )
    )


def test_the_least_that_a_definition_is() -> None:
    found = parse("version: 1\ncommand: [sha256sum]")
    assert found == with_digest(Definition("d", "", "", "command", ["sha256sum"]))
    assert found.limits == Limits(None, None, None)
    assert found.retries == Retries(3, 1.0, [])
    assert found.rerun == "lost"
    assert found.isolation == ["rlimit"]
    assert found.network
    assert not parse("version: 1\ncommand: [sha256sum]\nisolation: sandbox").network
    assert parse("version: 1\ncommand: [sha256sum]\nisolation: sandbox\nnetwork: true").network
    assert found.requires == Requires()


def test_a_python_function() -> None:
    found = Draft(b"version: 1\npython: 'a.b:C.run'\nbundle: a/\nparams: {n: {type: int}}", "d.yaml", "d").finish(
        "ab" * 32
    )
    assert (found.runner, found.argv) == ("python", ["a.b:C.run"])


def test_what_is_not_enforced_yet_is_a_warning() -> None:
    draft = Draft(WHOLE.encode(), "d.yaml", "d")
    assert draft.problems == []
    assert [str(warning).removeprefix("d.yaml:") for warning in draft.warnings] == [
        "10:9: inputs: warning: is not enforced yet: no files can be submitted with a job",
        "11:10: outputs: warning: is not enforced yet: standard output alone comes back",
        "12:45: limits.cpus: warning: is not enforced yet: a task takes one slot",
        "12:54: limits.gpus: warning: is not enforced yet: workers do not count them",
        "12:78: limits.disk: warning: is not enforced yet: a task may write more",
        "12:124: limits.running: warning: is not enforced yet: more may run at once",
        "18:11: priority: warning: is not enforced yet: jobs are not ordered by it",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("isolation", "where"),
    [
        ("rlimit", "without isolation: cgroup"),
        ("none", "without isolation: cgroup"),
        ("sandbox", "on workers without control groups, unless isolation has cgroup too"),
    ],
)
def test_what_only_control_groups_enforce_is_a_warning_elsewhere(isolation: str, where: str) -> None:
    text = f"version: 1\ncommand: [a]\nisolation: {isolation}\nlimits: {{memory: 1GiB, processes: 9}}"
    assert [str(warning) for warning in Draft(text.encode(), "d.yaml", "d").warnings] == [
        f"d.yaml:4:18: limits.memory: warning: is not enforced {where}: a task may use more",
        f"d.yaml:4:35: limits.processes: warning: is not enforced {where}: a task may start more",
    ]
    for enough in ("cgroup", f"[cgroup, {isolation}]"):
        if enough != "[cgroup, none]":
            text = f"version: 1\ncommand: [a]\nisolation: {enough}\nlimits: {{memory: 1GiB, processes: 9}}"
            assert Draft(text.encode(), "d.yaml", "d").warnings == []


def test_a_key_that_says_what_happens_anyway_is_no_warning() -> None:
    text = "version: 1\ncommand: [a]\nnetwork: true\npriority: 0\ninputs: []\nlimits: {cpus: 1, gpus: 0, memory: unlimited, running: unlimited, time: 1s}\nisolation: none"
    assert Draft(text.encode(), "d.yaml", "d").warnings == []


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
        ("version: 1\ncommand: [a]\nstream: [b]", "d.yaml:3:9: stream: there is command too; a definition has exactly one of command, stream and python"),
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
        ("version: 1\ncommand: [a]\nlimits: {memory: 0}", "limits.memory: no task could run with no memory"),
        ("version: 1\ncommand: [a]\nlimits: {memory: 1G}", "limits.memory: '1G': the unit G is ambiguous; write GB (powers of 1000) or GiB (of 1024)"),
        ("version: 1\ncommand: [a]\nlimits: {cpus: 0.5}", "limits.cpus: must be a whole number from 1 to 4096, not the number 0.5"),
        ("version: 1\ncommand: [a]\nlimits: {gpus: -1}", "limits.gpus: must be a whole number from 0 to 64"),
        ("version: 1\ncommand: [a]\nlimits: {processes: 0}", "limits.processes: '0' is not a whole number from 1 to 1,000,000; write one, or unlimited"),
        ("version: 1\ncommand: [a]\nlimits: {running: many}", "limits.running: 'many' is not a whole number from 1"),
        ("version: 1\ncommand: [a]\nlimits: {disk: [1]}", "limits.disk: must be a size such as 64MiB, or unlimited, not a list"),
        ("version: 1\ncommand: [a]\npriority: high", "priority: must be a whole number from -1000 to 1000, not the text 'high'"),
        ("version: 1\ncommand: [a]\nnetwork: no", "network: must be true or false or empty, not the text 'no'"),
        ("version: 1\ncommand: [a]\nnetwork: false", "d.yaml:3:10: network: false needs a sandbox, nothing else can hold a task back; add isolation: sandbox"),
        ("version: 1\ncommand: [a]\nnetwork: false\nisolation: cgroup", "network: false needs a sandbox"),
        ("version: 1\ncommand: [a]\ninputs: [/etc/passwd]", "inputs[0]: must be a file of the task's own folder"),
        ("version: 1\ncommand: [a]\noutputs: [a/../../b]", "outputs[0]: must be a file of the task's own folder"),
        ("version: 1\ncommand: [a]\noutputs: [a, b, a]", "outputs[2]: 'a' is here twice"),
        ("version: 1\ncommand: [a]\noutputs: ['']", "outputs[0]: must be a file"),
        ("version: 1\ncommand: [a]\noutputs: [" + "a," * 101 + "]", "outputs: has 101 entries, 100 are allowed"),
        ("version: 1\ncommand: [a]\nrequires: {arch: [amd64]}", "requires.arch[0]: 'amd64' is not what Linux calls it; did you mean x86_64 (see uname -m)?"),
        ("version: 1\ncommand: [a]\nrequires: {arch: x86_64}", "requires.arch: must be a list, not the text 'x86_64'; write [x86_64]"),
        ("version: 1\ncommand: [a]\nrequires: {arch: ['a b']}", "requires.arch[0]: 'a b' is not a processor's name"),
        ("version: 1\ncommand: [a]\nrequires: {programs: [/usr/bin/povray]}", "requires.programs[0]: '/usr/bin/povray' is not a program's name without a folder"),
        ("version: 1\ncommand: [a]\nrequires: {labels: ['']}", "requires.labels[0]: '' is not a label"),
        ("version: 1\ncommand: [a]\nrequires: {labels: [" + "a," * 101 + "]}", "requires.labels: has 101 entries, 100 are allowed"),
        ("version: 1\ncommand: [a]\nrequires: {program: [a]}", "requires.program: unknown key; did you mean 'programs'?"),
        ("version: 1\npython: run\nbundle: b", "python: 'run' is not a function; write module:function, for example estimate:run"),
        ("version: 1\npython: 'b.py:run'\nbundle: 5", "bundle: must be a text"),
        ("version: 1\npython: 'b/c:run'\nbundle: b", "python: 'b/c:run' is not a function"),
        ("version: 1\npython: 'b:run'", "d.yaml:2:9: python: needs a bundle, the folder that b.py is in; write for example bundle: b/"),
        ("version: 1\npython: [b, run]\nbundle: b", "python: must be a text, not a list"),
        ("version: 1\npython: 'b:run'\nbundle: b\ncommand: [a]", "python: there is command too"),
        ("version: 1\npython: 'b:run'\nbundle: b\nformat: json", "format: is for stream; a function is given its data"),
        ("version: 1\npython: 'b:run'\nbundle: b\nparams: {data: {type: str}}", "params.data: data is what a function's data is called"),
        ("version: 1\npython: 'b:run'\nbundle: b\nparams: {class: {type: str}}", "params.class: class is a word of Python's own"),
        ("version: 1\ncommand: [a, " + "x" * 131072 + "]", "command[1]: has over 131,071 bytes, which no program can be given"),
        ("version: 1\ncommand: [a]\nretries: 3", "retries: must be a mapping (KEY: VALUE), not the number 3"),
        ("version: 1\ncommand: [a]\nretries: {max: -1}", "retries.max: must be a whole number from 0 to 1000"),
        ("version: 1\ncommand: [a]\nretries: {backoff: 2d}", "retries.backoff: is over a day"),
        ("version: 1\ncommand: [a]\nretries: {never_on: [0]}", "retries.never_on[0]: must be a whole number from 1 to 255"),
        ("version: 1\ncommand: [a]\nrerun: always", "rerun: must be one of lost, never, not the text 'always'"),
        ("version: 1\ncommand: [a]\nisolation: [rlimt]", "isolation[0]: unknown level 'rlimt'; did you mean rlimit?"),
        ("version: 1\ncommand: [a]\nisolation: []", "isolation: is empty"),
        ("version: 1\ncommand: [a]\nisolation: [none, rlimit]", "isolation: none stands alone"),
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
    assert len(problems("version: 1\npyton: m:f")) == 1


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


keys = st.sampled_from([field.encode_name for field in msgspec.structs.fields(TaskFile)] + ["comand", "x"])
values = st.recursive(
    st.sampled_from([None, True, 0, 1, -1, 0.5, "", "a", "{item}", "{p}", "{", "10min", "1MiB", "unlimited", "json", "list", "int", "m:f", "cgroup"]),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["p", "type", "min", "max", "default", "time", "expand", "memory", "cpus", "running", "arch", "programs"]), inner, max_size=4)),
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
