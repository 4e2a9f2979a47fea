"""A definition's YAML file to a `taskdef.Definition`, or every problem of it. Pure.

Owns the rules between the keys (`taskkeys`) and the sentence for each mistake. Does not open the file nor
the bundle's folder: the coordinator's catalog does, and hands the manifest's digest to `Draft.finish`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from keyword import iskeyword
from pathlib import PurePosixPath
from typing import Final, Literal

from msgspec.structs import replace

from districomp.placeholders import ARGUMENT_BYTES_MAX, Place, split_argument
from districomp.taskdef import (
    INT_MAX,
    BundleFile,
    Definition,
    Limits,
    Param,
    Requires,
    Retries,
    check_value,
    with_digest,
)
from districomp.taskkeys import FILE_VERSION, FUNCTION_PATTERN, ISOLATIONS, LimitKeys, RequireKeys, TaskFile
from districomp.yamlfile import Document, Problem, YamlError

BACKOFF_S_MAX: Final = 86400.0
NAMES_MAX: Final = 100
"""Entries of `inputs`, of `outputs`, and of each list of `requires`."""
Runner = Literal["command", "stream", "python"]
RUNNERS: Final = ("command", "stream", "python")

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_PARAM_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_PLACE: Final = re.compile(r"(?<!\{)\{([A-Za-z_][A-Za-z0-9_]*)\}")
_ENV_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FUNCTION: Final = re.compile(FUNCTION_PATTERN)
_LABEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_PROGRAM: Final = re.compile(r"[A-Za-z0-9_+][A-Za-z0-9_+.-]{0,99}")
_ARCH: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
_ARCH_SAID: Final = {"amd64": "x86_64", "x64": "x86_64", "x86-64": "x86_64", "arm64": "aarch64", "i386": "i686"}
"""Other names of processors, and what `uname -m` prints on Linux."""

_INTERPRETERS: Final = frozenset(("python3", "python", "sh", "bash", "perl", "ruby", "node"))
_SCRIPT: Final = re.compile(r"(?:\./)?[A-Za-z0-9_][A-Za-z0-9_./-]*\.(?:py|sh|bash|pl|rb|js|mjs)")

_NOT_ENFORCED: Final = {
    ("limits", "cpus"): "a task takes one slot",
    ("limits", "gpus"): "workers do not count them",
    ("limits", "disk"): "a task may write more",
    ("limits", "running"): "more may run at once",
    ("inputs",): "no files can be submitted with a job",
    ("outputs",): "standard output alone comes back",
    ("priority",): "jobs are not ordered by it",
}
"""Keys that are checked and kept, but not acted on by this version, and what happens instead."""
_BY_CONTROL_GROUPS: Final = {
    ("limits", "memory"): "a task may use more",
    ("limits", "processes"): "a task may start more",
}
"""Keys that hold at the level `cgroup`, and in the sandboxes of workers that have it; what happens elsewhere."""


def is_name(text: str) -> bool:
    """Whether a definition can have this name: its file is `NAME.yaml`."""
    return _NAME.fullmatch(text) is not None


class Draft:
    """A definition's text on its way to a Definition: read and checked, only the bundle's digest is missing."""

    def __init__(self, data: bytes, file: str, name: str) -> None:
        self.name = name
        self.bundle = ""
        """The bundle's folder, relative to the file's; '' without one."""
        self._document = Document(data, file)
        self._definition: Definition | None = None
        if not is_name(name):
            self._document.problem((), f"the file's name, {name!r}, must be letters, digits, '_' and '-', at most 64")
        spec = self._document.convert(TaskFile)
        if spec is not None:
            self.bundle = _bundle_folder(self._document, spec.bundle)
            self._definition = _definition(self._document, name, spec)

    @property
    def problems(self) -> list[Problem]:
        """What is wrong so far, in the order of the file."""
        return self._document.problems

    @property
    def warnings(self) -> list[Problem]:
        """What is right but will not do what it says in this version, in the order of the file."""
        return self._document.warnings

    def bundle_problem(self, text: str) -> None:
        """The catalog found a fault in the bundle's folder."""
        self._document.problem(("bundle",), text)

    def check_programs(self, files: Sequence[BundleFile]) -> None:
        """Look for what the definition runs among the bundle's files, as its tasks will; none without a bundle."""
        if self._definition is not None:
            # The folder's name stands in for the manifest, which is not known yet.
            _check_programs(self._document, replace(self._definition, bundle=self.bundle), files)

    def finish(self, bundle_digest: str = "") -> Definition:
        """The definition with its version; `bundle_digest` is the SHA-256 (hex) of the manifest. YamlError."""
        if self._document.problems or self._definition is None:
            raise YamlError(self._document.problems)
        assert bool(bundle_digest) == bool(self.bundle), "a manifest exactly when there is a bundle"
        return with_digest(replace(self._definition, bundle=bundle_digest))


def parse_definition(data: bytes, file: str, name: str) -> Definition:
    """A definition without a bundle from its file's bytes. YamlError with every problem."""
    draft = Draft(data, file, name)
    if draft.bundle:
        draft.bundle_problem("a bundle cannot be read here")
    return draft.finish()


def _definition(document: Document, name: str, spec: TaskFile) -> Definition:
    """The Definition that the keys say; what is wrong with them beyond their types goes to the document."""
    if spec.version != FILE_VERSION:
        said = f"is {spec.version}, but this districomp reads 1" if spec.version else "is missing; write version: 1"
        document.problem(("version",), said)
    runner, argv = _runner(document, spec)
    params = _params(document, spec, runner)
    if runner == "python":
        _check_function(document, spec)
    else:
        _check_arguments(document, runner, argv, params)
    if document.has(("format",)) and runner != "stream":
        reads = "a command reads its standard input as it is" if runner == "command" else "a function is given its data"
        document.problem(("format",), f"is for stream; {reads}")
    if runner == "command" or (runner == "stream" and spec.format != "json"):
        _check_params_used(document, argv, params)
    _check_env(document, spec.env)
    _check_files(document, "inputs", spec.inputs)
    _check_files(document, "outputs", spec.outputs)
    if spec.retries.backoff > BACKOFF_S_MAX:
        document.problem(("retries", "backoff"), "is over a day")
    isolation = _isolation(document, spec.isolation)
    if spec.network is False and "sandbox" not in isolation:
        document.problem(
            ("network",), "false needs a sandbox, nothing else can hold a task back; add isolation: sandbox"
        )
    network = spec.network if spec.network is not None else "sandbox" not in isolation
    _warn(document, spec, isolation)
    return Definition(
        name=name,
        digest="",
        description=spec.description.strip(),
        runner=runner,
        argv=argv,
        format=spec.format,
        params=params,
        env=spec.env,
        limits=_limits(document, spec.limits),
        retries=Retries(spec.retries.max, spec.retries.backoff, spec.retries.never_on),
        rerun=spec.rerun,
        isolation=isolation,
        requires=_requires(document, spec.requires),
        network=network,
        inputs=spec.inputs,
        outputs=spec.outputs,
        priority=spec.priority,
    )


def _runner(document: Document, spec: TaskFile) -> tuple[Runner, list[str]]:
    argvs: dict[Runner, list[str]] = {
        "command": spec.command,
        "stream": spec.stream,
        "python": [spec.python] if spec.python else [],
    }
    given = [runner for runner, argv in argvs.items() if argv]
    for surplus in given[1:]:
        text = f"there is {given[0]} too; a definition has exactly one of command, stream and python"
        document.problem((surplus,), text)
    if not given:
        if not _is_misspelt(document):
            empty = next((key for key in RUNNERS if document.has((key,))), None)
            text = "the program is missing; write for example command: [sha256sum]"
            document.problem((empty,) if empty else (), text)
        return "command", []
    return given[0], argvs[given[0]]


def _is_misspelt(document: Document) -> bool:
    """Whether a runner is there under a wrong name, which is reported already."""
    return any(get_close_matches(problem.key, RUNNERS, 1) for problem in document.problems)


def _check_function(document: Document, spec: TaskFile) -> None:
    if not _FUNCTION.fullmatch(spec.python):
        text = f"{spec.python[:80]!r} is not a function; write module:function, for example estimate:run"
        document.problem(("python",), text)
    elif not spec.bundle and not document.has(("bundle",)):
        module = spec.python.partition(":")[0].partition(".")[0]
        text = f"needs a bundle, the folder that {module}.py is in; write for example bundle: {module}/"
        document.problem(("python",), text)


def _check_programs(document: Document, definition: Definition, files: Sequence[BundleFile]) -> None:
    modes = {file.path: file.mode for file in files}
    if definition.runner == "python":
        text = _module_fault(definition, modes)
        if text:
            document.problem(("python",), text)
        return
    if not definition.argv:
        return
    program = definition.argv[0]
    if "/" in program and not program.startswith("/") and "{" not in program and not _is_given(definition, program):
        path = PurePosixPath(program).as_posix()
        where = f"the bundle {definition.bundle}" if definition.bundle else "a bundle, and there is none"
        if path not in modes:
            text = f"{program!r} would be looked for in the task's own folder, which holds {where}"
            document.problem((definition.runner, 0), text + _where_it_may_be(definition, path, modes))
        elif not modes[path] & 0o100:
            text = f"{program!r} may not be run; type: chmod +x {definition.bundle}/{path}"
            document.problem((definition.runner, 0), text)
    elif program in _INTERPRETERS and len(definition.argv) > 1:
        script = definition.argv[1]
        is_file = _SCRIPT.fullmatch(script) and PurePosixPath(script).as_posix() not in modes
        if is_file and not _is_given(definition, script):
            text = f"{script!r} is not in the task's own folder, which holds the bundle's files alone"
            document.warn((definition.runner, 1), text)


def _where_it_may_be(definition: Definition, path: str, modes: Mapping[str, int]) -> str:
    if not definition.bundle:
        return ""
    if "Makefile" in modes:
        return f"; it must be built first, type: make -C {definition.bundle}"
    suffix = PurePosixPath(path).suffix
    near = get_close_matches(path, [file for file in modes if PurePosixPath(file).suffix == suffix], 1)
    return f"; did you mean ./{near[0]}?" if near else ""


def _module_fault(definition: Definition, modes: Mapping[str, int]) -> str:
    if not definition.bundle or not (match := _FUNCTION.fullmatch(definition.argv[0] if definition.argv else "")):
        return ""
    module = match[1]
    path = module.replace(".", "/")
    if any(file.startswith((f"{path}.", f"{path}/__init__.")) for file in modes):
        return ""
    near = get_close_matches(f"{path}.py", [file for file in modes if file.endswith(".py")], 1)
    hint = f"; did you mean {near[0].removesuffix('.py').replace('/', '.')}?" if near else ""
    return f"the bundle {definition.bundle} has no {path}.py{hint}"


def _is_given(definition: Definition, name: str) -> bool:
    """Whether a file of the task's own folder comes with the submission."""
    return PurePosixPath(name) in map(PurePosixPath, definition.inputs)


def _params(document: Document, spec: TaskFile, runner: Runner) -> dict[str, Param]:
    params = {}
    for name, keys in spec.params.items():
        place = ("params", name)
        param = Param(keys.type, keys.min, keys.max, None, keys.expand)
        if not _PARAM_NAME.fullmatch(name):
            document.problem(place, "a param's name is letters, digits and '_', not beginning with a digit")
        elif name in ("item", "index"):
            document.problem(place, f"{{{name}}} is the task's own {name}; choose another name")
        elif runner == "python" and (name == "data" or iskeyword(name)):
            why = "is what a function's data is called" if name == "data" else "is a word of Python's own"
            document.problem(place, f"{name} {why}; choose another name")
        bounded = keys.type in ("int", "float", "list")
        for key, bound in (("min", keys.min), ("max", keys.max)):
            if bound is not None and not bounded:
                document.problem((*place, key), f"is for int, float and list, not for {keys.type}")
            elif bound is not None and keys.type != "float" and (bound != int(bound) or abs(bound) > INT_MAX):
                document.problem((*place, key), f"must be a whole number for {keys.type}")
        if keys.min is not None and keys.max is not None and keys.min > keys.max:
            document.problem((*place, "max"), "is below min")
        if keys.expand and keys.type != "list":
            document.problem((*place, "expand"), f"is for list, not for {keys.type}")
        if keys.default is not None:
            try:
                param = replace(param, default=check_value(param, keys.default))
            except ValueError as error:
                document.problem((*place, "default"), str(error))
        params[name] = param
    return params


def _check_arguments(document: Document, runner: str, argv: list[str], params: dict[str, Param]) -> None:
    for position, argument in enumerate(argv):
        place = (runner, position)
        if "\0" in argument or (position == 0 and not argument):
            document.problem(place, "is empty; the first is the program" if not argument else "has a NUL character")
            continue
        if len(argument.encode(errors="replace")) > ARGUMENT_BYTES_MAX:
            text = f"has over {ARGUMENT_BYTES_MAX:,} bytes, which no program can be given; put it into a file of the bundle"
            document.problem(place, text)
            continue
        try:
            parts = split_argument(argument)
        except ValueError as error:
            document.problem(place, str(error))
            continue
        for part in parts:
            if isinstance(part, Place):
                fault = _place_fault(document, part, runner, params, len(parts) == 1)
                if fault:
                    document.problem(place, fault)
    for name, param in params.items():
        if param.expand and runner == "stream":
            text = "is for command; a stream's arguments are not made for each task"
            document.problem(("params", name, "expand"), text)


def _place_fault(document: Document, place: Place, runner: str, params: dict[str, Param], alone: bool) -> str:
    if place.is_task:
        if runner == "stream":
            return f"{{{place.name}}} is for command; a stream reads its items from standard input"
        return ""
    param = params.get(place.name)
    if param is None:
        if document.has(("params", place.name)):
            return ""  # Declared, with a problem of its own.
        close = get_close_matches(place.name, [*params, "item", "index"], 1)
        hint = (
            f"did you mean {{{close[0]}}}?"
            if close
            else f"declare {place.name} under params, or write {{{{ for a brace"
        )
        return f"{{{place.name}}} is not a param; {hint}"
    if param.type == "list" and not alone:
        return f"{{{place.name}}} is a list, which becomes several arguments; it must be an argument by itself"
    return ""


def _check_params_used(document: Document, argv: list[str], params: dict[str, Param]) -> None:
    text = " ".join(argv)
    if set(_PLACE.findall(text)) - {*params, "item", "index"}:
        return  # A misspelt placeholder is the cause, and reported.
    for name in params:
        if f"{{{name}}}" not in text:
            document.problem(("params", name), f"no argument uses {{{name}}}, so the program would never see it")


def _check_env(document: Document, env: dict[str, str]) -> None:
    for name, value in env.items():
        if not _ENV_NAME.fullmatch(name):
            document.problem(("env", name), "a variable's name is letters, digits and '_', not beginning with a digit")
        elif name.startswith("DISTRICOMP_"):
            document.problem(("env", name), "names that begin with DISTRICOMP_ are the worker's to set")
        elif "\0" in value:
            document.problem(("env", name), "has a NUL character")


def _check_files(document: Document, key: str, names: list[str]) -> None:
    if len(names) > NAMES_MAX:
        document.problem(
            (key,), f"has {len(names):,} entries, {NAMES_MAX} are allowed; put many files into one archive"
        )
        return
    for position, name in enumerate(names):
        path = PurePosixPath(name)
        if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name:
            text = "must be a file of the task's own folder: a relative path without '..'"
            document.problem((key, position), text)
        elif name in names[:position]:
            document.problem((key, position), f"{name!r} is here twice")


def _limits(document: Document, keys: LimitKeys) -> Limits:
    if keys.time == 0:
        document.problem(("limits", "time"), "no task could run in no time; write unlimited for no limit")
    for key, value in (("memory", keys.memory), ("disk", keys.disk)):
        if value == 0:
            document.problem(("limits", key), f"no task could run with no {key}; write unlimited for no limit")
    return Limits(
        time_s=keys.time,
        data_bytes=keys.data,
        result_bytes=keys.result,
        memory_bytes=keys.memory,
        cpus=keys.cpus,
        gpus=keys.gpus,
        processes=keys.processes,
        disk_bytes=keys.disk,
        running=keys.running,
    )


def _requires(document: Document, keys: RequireKeys) -> Requires:
    for key, names, form, what in (
        ("arch", keys.arch, _ARCH, "a processor's name as `uname -m` prints it, for example x86_64 or aarch64"),
        ("programs", keys.programs, _PROGRAM, "a program's name without a folder, for example povray"),
        ("labels", keys.labels, _LABEL, "a label: letters, digits, '.', '_' and '-', at most 63"),
    ):
        if len(names) > NAMES_MAX:
            document.problem(("requires", key), f"has {len(names):,} entries, {NAMES_MAX} are allowed")
        for position, name in enumerate(names[:NAMES_MAX]):
            place = ("requires", key, position)
            if key == "arch" and name.lower() in _ARCH_SAID:
                said = _ARCH_SAID[name.lower()]
                document.problem(place, f"{name!r} is not what Linux calls it; did you mean {said} (see uname -m)?")
            elif not form.fullmatch(name):
                document.problem(place, f"{name[:80]!r} is not {what}")
    # Sorted, because their order means nothing and a version should not depend on it.
    return Requires(*(tuple(sorted(set(names))) for names in (keys.arch, keys.programs, keys.labels)))


def _isolation(document: Document, isolation: str | list[str]) -> list[str]:
    levels = [isolation] if isinstance(isolation, str) else isolation
    if not levels:
        document.problem(("isolation",), f"is empty; write one of {', '.join(ISOLATIONS)}")
    for position, level in enumerate(levels):
        place = ("isolation",) if isinstance(isolation, str) else ("isolation", position)
        if level not in ISOLATIONS:
            document.problem(place, f"unknown level {level!r}{_did_you_mean(level, ISOLATIONS)}")
    if "none" in levels and len(levels) > 1:
        document.problem(("isolation",), "none stands alone")
    return list(dict.fromkeys(levels))


def _warn(document: Document, spec: TaskFile, isolation: list[str]) -> None:
    """Warn of each key that says something else than what happens anyway."""
    where = "without isolation: cgroup"
    if "sandbox" in isolation:
        where = "on workers without control groups, unless isolation has cgroup too"
    warnings = {key: f"is not enforced yet: {instead}" for key, instead in _NOT_ENFORCED.items()}
    if "cgroup" not in isolation:
        warnings |= {key: f"is not enforced {where}: {instead}" for key, instead in _BY_CONTROL_GROUPS.items()}
    default = TaskFile()
    for key, text in warnings.items():
        said: object = spec
        usual: object = default
        for name in key:
            said, usual = getattr(said, name), getattr(usual, name)
        if said != usual:
            document.warn(key, text)


def _bundle_folder(document: Document, bundle: str) -> str:
    if not bundle:
        return ""
    folder = PurePosixPath(bundle)
    if folder.is_absolute() or ".." in folder.parts or not folder.parts or "\0" in bundle:
        document.problem(("bundle",), "must be a folder beside or below this file: relative, without '..'")
        return ""
    return folder.as_posix()


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    close = get_close_matches(word[:64], list(known), 1)
    return f"; did you mean {close[0]}?" if close else f"; the levels are {', '.join(known)}"
