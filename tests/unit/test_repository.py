"""What the repository says of itself: locked packages are explained, links lead somewhere, nothing is local."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest

from .test_tidy import ARROWS, FILES, ROOT, imports, text_of

LOCKS = ("requirements/run.lock", "requirements/dev.lock", "requirements/system.lock")
MARKDOWN = [path for path in FILES if path.suffix == ".md"]


def packages(lock: str) -> dict[str, str]:
    """Name to version."""
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / lock).read_text(), re.MULTILINE))


def asked_for() -> tuple[list[str], list[str]]:
    """The packages that pyproject.toml names: to run, and to build and develop."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = project["dependency-groups"]
    develop = [line for line in [*groups["build"], *groups["dev"], *groups["system"]] if isinstance(line, str)]
    return [name_of(line) for line in project["project"]["dependencies"]], [name_of(line) for line in develop]


def name_of(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement)[0]


def locked_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("lock", LOCKS)
def test_locks_name_no_machine_and_every_package_has_a_hash(lock: str) -> None:
    text = (ROOT / lock).read_text()
    assert "://" not in text
    assert not re.search(r"^--", text, re.MULTILINE), "an option, which would hold on one machine only"
    assert all("--hash=sha256:" in block for block in re.split(r"\n(?=[a-z])", text)[1:])


def test_the_locks_agree_and_hold_what_pyproject_asks_for() -> None:
    run, dev, system = map(packages, LOCKS)
    assert run.items() <= dev.items() <= system.items()
    to_run, to_develop = asked_for()
    assert set(map(locked_name, to_run)) <= run.keys(), "run `make lock`"
    assert set(map(locked_name, to_develop)) <= system.keys(), "run `make lock`"


def test_every_dependency_has_its_reason() -> None:
    to_run, to_develop = asked_for()
    explained = re.findall(r"^\| (.*?) \|", (ROOT / "docs/dependencies.md").read_text(), re.MULTILINE)
    names = [name for cell in explained for name in cell.split(", ")]
    assert not [name for name in to_run + to_develop if name not in names]


OPTIONAL = {"daemons/districomp/joblib_backend.py": "joblib"}
"""Modules that nothing of ours imports, each with what whoever does so has: it is for him that they are there."""


def test_nothing_of_ours_imports_what_is_optional() -> None:
    modules = {path.removeprefix("daemons/").removesuffix(".py").replace("/", ".") for path in OPTIONAL}
    for path in FILES:
        if path.parts[0] in ("daemons", "demo") and path.suffix == ".py":
            found = [name for _, name in imports(ast.parse(text_of(path)))]
            assert not [name for name in found if any(f"{name}.".startswith(f"{one}.") for one in modules)], path


def test_programs_import_only_what_is_installed_with_them() -> None:
    """What another tool happens to bring along would be missing on a user's machine."""
    to_run = {locked_name(name) for name in asked_for()[0]} | {"ifaddr"}  # zeroconf's own, and typed by it
    brought_by = importlib.metadata.packages_distributions()
    strangers = []
    for path in FILES:
        if path.parts[0] in ("daemons", "demo") and path.suffix == ".py":
            for line, name in imports(ast.parse(text_of(path))):
                top = name.split(".")[0]
                is_ours = top in sys.stdlib_module_names or top in (*ARROWS, "demo")
                is_ours = is_ours or OPTIONAL.get(str(path)) == top
                if not is_ours and not {locked_name(one) for one in brought_by.get(top, ["?"])} & to_run:
                    strangers.append(f"{path}:{line}: {name}")
    assert not strangers


@pytest.mark.parametrize("path", MARKDOWN, ids=str)
def test_links_lead_to_files_that_exist(path: Path) -> None:
    links = re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", text_of(path))
    assert not [link for link in links if not (ROOT / path.parent / link).exists()]


def test_the_makefile_explains_each_target() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert phony
    for target in phony[1].split():
        assert target == "help" or re.search(rf"^{target}:.* ## ", text, re.MULTILINE), target


def test_scripts_that_run_before_the_environment_exists_need_the_standard_library_only() -> None:
    for name in ("pip_into", "lock"):
        text = text_of(next(path for path in FILES if str(path) == f"scripts/{name}.py"))
        assert not re.search(r"^(from|import) (?!subprocess|sys|tempfile|pathlib)", text, re.MULTILINE)


def test_an_installation_gets_every_shipped_file() -> None:
    """Bundles are nothing without their files, so each of config/ and tasks/ must be named in pyproject.toml."""
    data_files = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["data-files"]
    shipped = {path for globs in data_files.values() for glob in globs for path in ROOT.glob(glob)}
    missing = [str(path) for path in FILES if path.parts[0] in ("config", "tasks") and ROOT / path not in shipped]
    assert not missing
    wrong = [
        folder for folder, globs in data_files.items() for g in globs if f"share/districomp/{Path(g).parent}" != folder
    ]
    assert not wrong
