"""A new definition from a template: what `dctl def new` writes.

Owns the templates' layout (`tasks/templates/RUNNER-LANGUAGE`: `definition.yaml` and the files of its bundle)
and the rule that nothing is overwritten. Must not print.
"""

import os
import platform
import shlex
from pathlib import Path
from typing import Final, NamedTuple

from districomp.config import Paths, shipped_tasks
from districomp.errors import DistricompError, UsageError
from districomp.taskfile import is_name

RUNNERS: Final = ("command", "stream", "python")
LANGUAGES: Final = ("python", "shell", "c")
_DEFINITION: Final = "definition.yaml"
_MAKEFILE: Final = "Makefile"


class Written(NamedTuple):
    """The files that were written, and the two commands to type next."""

    files: list[Path]
    commands: list[str]


def write_new(name: str, runner: str, language: str, folder: Path, paths: Paths) -> Written:
    """Write `folder/name.yaml` and the bundle `folder/name/`.

    Raises:
        UsageError: the name is none, or something of that name is there already.
        DistricompError: the templates are not installed.
        OSError: it cannot be written.
    """
    if not is_name(name):
        raise UsageError(f"{name[:80]!r} is no name for a definition; use letters, digits, '_' and '-', at most 64")
    if runner == "python" and language != "python":
        raise UsageError(
            f"the runner python calls a Python function, it cannot be written in {language}; leave --language out"
        )
    template = shipped_tasks() / "templates" / f"{runner}-{language}"
    if not (template / _DEFINITION).is_file():
        raise DistricompError(f"the template {template} is missing; install districomp again")
    yaml, bundle = folder / f"{name}.yaml", folder / name
    for path in (yaml, bundle):
        if os.path.lexists(path):
            raise UsageError(f"{path} is there already and is not overwritten; choose another name or --dir")
    sources = sorted(path for path in template.iterdir() if path.is_file() and path.name != _DEFINITION)
    folder.mkdir(parents=True, exist_ok=True)
    bundle.mkdir()
    # The definition last: a coordinator that watches the folder must find the bundle whole.
    files = [(bundle / source.name, source) for source in sources] + [(yaml, template / _DEFINITION)]
    for path, source in files:
        text = source.read_text(encoding="utf-8").replace("@NAME@", name).replace("@ARCH@", platform.machine())
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    return Written([path for path, _source in reversed(files)], _commands(name, yaml, bundle, paths))


def _commands(name: str, yaml: Path, bundle: Path, paths: Paths) -> list[str]:
    """What to type next: to see that it is good, then to run it where a coordinator finds it."""
    build = f"make -C {shlex.quote(str(bundle))} && " if (bundle / _MAKEFILE).exists() else ""
    check = f"{build}dctl def check {shlex.quote(str(yaml))}"
    submit = f"dctl submit {name} --data 'one two three' --results"
    live = [layer.folder for layer in paths.tasks_layers if layer.only is None]
    if yaml.parent.resolve() in [folder.resolve() for folder in live]:
        return [check, submit]
    target = paths.config / "tasks.d"
    copy = shlex.join(["cp", "-r", str(bundle), str(yaml), f"{target}/"])
    prepare = "" if target.is_dir() else f"mkdir -p {shlex.quote(str(target))} && "
    return [f"{check} && {prepare}{copy}", submit]
