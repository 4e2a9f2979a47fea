"""A definition's YAML file to a `taskdef.Definition`, or every problem of it. Pure.

Owns the keys that a file may have, their defaults and the rules between them; `docs/tasks.md` is their
reference. Does not open the file nor the bundle's folder: the coordinator's catalog does, and hands the
manifest's digest to `Draft.finish`.
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar, Final, Literal

import msgspec
from msgspec.structs import replace

from districomp.placeholders import Place, split_argument
from districomp.taskdef import (
    INT_MAX,
    Definition,
    Limits,
    Param,
    Retries,
    check_value,
    with_digest,
)
from districomp.units import parse_duration, parse_duration_or_unlimited, parse_size_or_unlimited
from districomp.yamlfile import Document, Problem, YamlError

FILE_VERSION: Final = 1
RETRIES_MAX: Final = 1000
BACKOFF_S_MAX: Final = 86400.0
ISOLATIONS: Final = ("none", "rlimit", "cgroup", "sandbox")
ISOLATIONS_NOW: Final = ("none", "rlimit")

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_PARAM_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_PLACE: Final = re.compile(r"(?<!\{)\{([A-Za-z_][A-Za-z0-9_]*)\}")
_ENV_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_DURATION: Final = "a duration such as 10min, or unlimited"
_SIZE: Final = "a size such as 64MiB, or unlimited"
_OptionalSeconds = Annotated[
    float | None, msgspec.Meta(extra={"parse": parse_duration_or_unlimited, "what": _DURATION})
]
_OptionalBytes = Annotated[int | None, msgspec.Meta(extra={"parse": parse_size_or_unlimited, "what": _SIZE})]
_Seconds = Annotated[float, msgspec.Meta(extra={"parse": parse_duration, "what": "a duration such as 2s"})]


class ParamKeys(msgspec.Struct):
    """`params.NAME`: the keys of `taskdef.Param`."""

    type: Literal["str", "int", "float", "bool", "path", "list"]
    min: float | None = None
    max: float | None = None
    default: Any = None
    expand: bool = False


class LimitKeys(msgspec.Struct):
    """`limits`."""

    LATER: ClassVar[frozenset[str]] = frozenset(("memory", "cpus", "gpus", "processes", "disk", "running"))

    time: _OptionalSeconds = None
    data: _OptionalBytes = None
    result: _OptionalBytes = None


class RetryKeys(msgspec.Struct):
    """`retries`."""

    max: Annotated[int, msgspec.Meta(ge=0, le=RETRIES_MAX)] = 3
    backoff: _Seconds = 1.0
    never_on: list[Annotated[int, msgspec.Meta(ge=1, le=255)]] = []


class TaskFile(msgspec.Struct):
    """A definition's file as it is written. Everything has a default, so that one fault does not hide the next."""

    LATER: ClassVar[frozenset[str]] = frozenset(("python", "inputs", "outputs", "requires", "priority", "network"))

    version: int = 0
    description: Annotated[str, msgspec.Meta(max_length=1000)] = ""
    command: list[str] = []
    stream: list[str] = []
    format: Literal["lines", "json"] = "lines"
    bundle: str = ""
    params: dict[str, ParamKeys] = {}
    env: dict[str, str] = {}
    limits: LimitKeys = msgspec.field(default_factory=LimitKeys)
    retries: RetryKeys = msgspec.field(default_factory=RetryKeys)
    rerun: Literal["lost", "never"] = "lost"
    isolation: str | list[str] = "rlimit"


class Draft:
    """A definition's text on its way to a Definition: read and checked, only the bundle's digest is missing."""

    def __init__(self, data: bytes, file: str, name: str) -> None:
        self.name = name
        self.bundle = ""
        """The bundle's folder, relative to the file's; '' without one."""
        self._document = Document(data, file)
        self._definition: Definition | None = None
        if not _NAME.fullmatch(name):
            self._document.problem((), f"the file's name, {name!r}, must be letters, digits, '_' and '-', at most 64")
        spec = self._document.convert(TaskFile)
        if spec is not None:
            self._definition = _definition(self._document, name, spec)
            self.bundle = _bundle_folder(self._document, spec.bundle)

    @property
    def problems(self) -> list[Problem]:
        """What is wrong so far, in the order of the file."""
        return self._document.problems

    def bundle_problem(self, text: str) -> None:
        """The catalog found a fault in the bundle's folder."""
        self._document.problem(("bundle",), text)

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
    params = _params(document, spec)
    _check_arguments(document, runner, argv, params)
    if document.has(("format",)) and runner == "command":
        document.problem(("format",), "is for stream; a command reads its standard input as it is")
    if runner == "command" or spec.format != "json":
        _check_params_used(document, argv, params)
    _check_env(document, spec.env)
    if spec.limits.time == 0:
        document.problem(("limits", "time"), "no task could run in no time; write unlimited for no limit")
    if spec.retries.backoff > BACKOFF_S_MAX:
        document.problem(("retries", "backoff"), "is over a day")
    return Definition(
        name=name,
        digest="",
        description=spec.description.strip(),
        runner=runner,
        argv=argv,
        format=spec.format,
        params=params,
        env=spec.env,
        limits=Limits(spec.limits.time, spec.limits.data, spec.limits.result),
        retries=Retries(spec.retries.max, spec.retries.backoff, spec.retries.never_on),
        rerun=spec.rerun,
        isolation=_isolation(document, spec.isolation),
    )


def _runner(document: Document, spec: TaskFile) -> tuple[Literal["command", "stream"], list[str]]:
    if spec.command and spec.stream:
        document.problem(("stream",), "there is a command too; a definition has exactly one of command and stream")
    elif not spec.command and not spec.stream and not _is_misspelt(document):
        empty = next((key for key in ("command", "stream") if document.has((key,))), None)
        text = "the program is missing; write for example command: [sha256sum]"
        document.problem((empty,) if empty else (), text)
    runner: Literal["command", "stream"] = "stream" if spec.stream and not spec.command else "command"
    return runner, spec.stream if runner == "stream" else spec.command


def _is_misspelt(document: Document) -> bool:
    """Whether a runner is there under a wrong name, which is reported already."""
    return any(get_close_matches(problem.key, ("command", "stream", "python"), 1) for problem in document.problems)


def _params(document: Document, spec: TaskFile) -> dict[str, Param]:
    params = {}
    for name, keys in spec.params.items():
        place = ("params", name)
        param = Param(keys.type, keys.min, keys.max, None, keys.expand)
        if not _PARAM_NAME.fullmatch(name):
            document.problem(place, "a param's name is letters, digits and '_', not beginning with a digit")
        elif name in ("item", "index"):
            document.problem(place, f"{{{name}}} is the task's own {name}; choose another name")
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
            document.problem(
                ("params", name, "expand"), "is for command; a stream's arguments are not made for each task"
            )


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


def _isolation(document: Document, isolation: str | list[str]) -> list[str]:
    levels = [isolation] if isinstance(isolation, str) else isolation
    if not levels:
        document.problem(("isolation",), f"is empty; write one of {', '.join(ISOLATIONS_NOW)}")
    for position, level in enumerate(levels):
        place = ("isolation",) if isinstance(isolation, str) else ("isolation", position)
        if level in ISOLATIONS and level not in ISOLATIONS_NOW:
            document.problem(
                place, f"{level} is not supported yet; write one of {', '.join(ISOLATIONS_NOW)} until then"
            )
        elif level not in ISOLATIONS:
            document.problem(place, f"unknown level {level!r}{_did_you_mean(level, ISOLATIONS_NOW)}")
    if "none" in levels and len(levels) > 1:
        document.problem(("isolation",), "none stands alone")
    return list(dict.fromkeys(levels))


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
