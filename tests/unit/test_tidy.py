"""The rules of style that a linter does not know: arrows between programs, purity of the cores, sizes, leftovers.

`check_*` are functions of source text, tried on bad examples first: a rule that cannot fail is none.
"""

import ast
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE_FOLDERS = ("daemons", "tests", "scripts", "demo", "bench")
MODULE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70

ARROWS = {
    "districomp": {"districomp"},
    "dcoord": {"districomp", "dcoord"},
    "dworker": {"districomp", "dworker"},
    "dctl": {"districomp", "dctl"},
}
"""Program -> those of ours that it may import. Only tests/sim imports several."""

PURE_SHARED = (
    "errors", "model", "messages", "outcome", "wire", "placeholders", "taskdef", "arguments", "documents", "tokens",
    "addresses",
)  # fmt: skip
"""Modules of districomp without I/O and clock: all of ours that a core may import."""
PURE_OURS = ("districomp.__version__", *(f"districomp.{name}" for name in PURE_SHARED))

IMPURE = {
    "asyncio", "socket", "selectors", "ssl", "time", "random", "secrets", "sqlite3", "apsw", "os", "pathlib",
    "shutil", "tempfile", "io", "logging", "subprocess", "signal", "threading", "multiprocessing", "concurrent", "queue",
    "urllib", "http", "uvloop", "zeroconf",
}  # fmt: skip
IMPURE_CALLS = {"open", "print", "input", "exec", "eval", "__import__"}
CLOCK_CALLS = {"now", "utcnow", "today"}
"""datetime may be imported to write a given time as text; these ask the clock."""

NO_PACKAGE = ("os", "systemd", "config", "tasks")
"""From the repository's root `import systemd` would find these folders if they were packages."""

LEFTOVERS = re.compile("|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X", r"raise NotImplemented" + "Error"]))
SKIPS = re.compile(r"mark\.(skip|xfail)|pytest\.(skip|xfail|importorskip)\(|@unittest\.skip")
MACHINE = re.compile(
    "|".join(
        [
            "file:/" + "//",
            "/ro" + "ot/",
            "/op" + "t/(pypi|wheels)",
            "/wo" + "rk/",
            "(?<!emit-)find-" + "links",
        ]
    )
)
"""Traces of the machine on which something was written: it would not hold on another."""


def committed() -> list[Path]:
    """Every file of the repository, the new ones too, as paths from its root; without git, what lies there."""
    if not (ROOT / ".git").exists():
        return [path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file() and not _is_made(path)]
    listing = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    paths = [Path(os.fsdecode(name)) for name in listing.stdout.split(b"\0") if name]
    return [path for path in paths if (ROOT / path).is_file()]


def _is_made(path: Path) -> bool:
    """Whether a tool made it and git would ignore it."""
    parts = path.relative_to(ROOT).parts
    return any(
        part.startswith(".") or part in ("__pycache__", "demo-output") or part.endswith(".egg-info") for part in parts
    )


FILES = committed()
MODULES = [path for path in FILES if path.suffix == ".py" and path.parts[0] in CODE_FOLDERS]
CORES = [
    path
    for path in MODULES
    if path.parts[:3] == ("daemons", "dcoord", "core") or path == Path("daemons/dworker/core.py")
]


def text_of(path: Path) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every imported module's dotted name with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, node.module or ""
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def check_arrows(program: str, tree: ast.AST) -> list[str]:
    strangers = ARROWS.keys() - ARROWS[program]
    return [f"{line}: imports {name}" for line, name in imports(tree) if name.split(".")[0] in strangers]


def check_purity(allowed_ours: tuple[str, ...], tree: ast.AST) -> list[str]:
    """`allowed_ours`: beginnings of the names of our modules that this core may import."""
    found = []
    for line, name in imports(tree):
        top = name.split(".")[0]
        if (top in IMPURE and not name.startswith("urllib.parse")) or (
            top in ARROWS and not name.startswith(allowed_ours) and name != top
        ):
            found.append(f"{line}: imports {name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_CALLS:
            found.append(f"{node.lineno}: calls {node.func.id}")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CLOCK_CALLS:
            found.append(f"{node.lineno}: asks the clock")
        if isinstance(node, ast.AsyncFunctionDef | ast.Await):
            found.append(f"{node.lineno}: is asynchronous")
    return found


def check_set_iteration(tree: ast.AST) -> list[str]:
    """A set's order differs from run to run: going through one makes a core's output depend on luck.

    Heuristic: what is written as a set, made by set() or frozenset(), or bound or annotated as one in this module.
    """
    named = _names_of_sets(tree)
    iterated = [node.iter for node in ast.walk(tree) if isinstance(node, ast.For | ast.comprehension)]
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("list", "tuple", "iter", "enumerate", "next")
        ):
            iterated += node.args[:1]
        elif isinstance(node, ast.Starred):
            iterated.append(node.value)
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "pop"
            and not node.args
        ) and _name(node.func.value) in named:
            iterated.append(node.func.value)
    return [f"{node.lineno}: goes through a set" for node in iterated if _is_set(node, named)]


def _is_set(node: ast.AST, named: set[str]) -> bool:
    if isinstance(node, ast.Set | ast.SetComp):
        return True
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("set", "frozenset"):
        return True
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr | ast.BitAnd | ast.Sub | ast.BitXor):
        return _is_set(node.left, named) or _is_set(node.right, named)
    return _name(node) in named


def _names_of_sets(tree: ast.AST) -> set[str]:
    """Variables and attributes that hold sets, by their last name; those that also hold something else somewhere count too."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and _is_set(node.value, set()):
            names.update(filter(None, map(_name, node.targets)))
        elif isinstance(node, ast.AnnAssign) and re.match(r"(set|frozenset)\b", ast.unparse(node.annotation)):
            names.update(filter(None, [_name(node.target)]))
        elif (
            isinstance(node, ast.arg)
            and node.annotation
            and re.match(r"(set|frozenset)\b", ast.unparse(node.annotation))
        ):
            names.add(node.arg)
    return names


def _name(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else None


def check_sizes(text: str, tree: ast.AST) -> list[str]:
    lines = text.count("\n")
    found = (
        [f"{lines} lines, at most {MODULE_LINES_MAX}: has it outgrown its noun?"] if lines > MODULE_LINES_MAX else []
    )
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
            length = node.end_lineno - node.lineno + 1
            if length > FUNCTION_LINES_MAX:
                found.append(f"{node.lineno}: {node.name} has {length} lines, at most {FUNCTION_LINES_MAX}")
    return found


def check_module_docstring(path: Path, tree: ast.Module) -> list[str]:
    empty = path.name == "__init__.py" and not tree.body
    return [] if empty or ast.get_docstring(tree) else ["no docstring that says what it owns and what it must not know"]


def check_leftovers(text: str) -> list[str]:
    return [
        f"{number}: {line.strip()[:80]}"
        for number, line in enumerate(text.splitlines(), 1)
        if LEFTOVERS.search(line) or SKIPS.search(line)
    ]


def assert_none(found: list[str]) -> None:
    assert not found, "\n" + "\n".join(found)


def each_module(paths: list[Path], check: Callable[[Path, str, ast.Module], list[str]]) -> list[str]:
    """What a rule finds in these modules, as `path:finding`."""
    return [f"{path}:{found}" for path in paths for found in check(path, text_of(path), ast.parse(text_of(path)))]


# ---- the rules on our own code ----


def test_there_is_something_to_check() -> None:
    assert len(MODULES) > 20
    assert Path("daemons/dcoord/core/events.py") in CORES


def test_programs_never_import_one_another() -> None:
    programs = [path for path in MODULES if path.parts[0] == "daemons"]
    assert_none(each_module(programs, lambda path, _, tree: check_arrows(path.parts[1], tree)))


def test_shared_pure_modules_are_pure() -> None:
    shared = [Path("daemons/districomp") / f"{name}.py" for name in PURE_SHARED]
    assert_none(each_module(shared, lambda _, __, tree: check_purity(PURE_OURS, tree)))


def test_cores_are_pure() -> None:
    def check(path: Path, _: str, tree: ast.Module) -> list[str]:
        own = "dcoord.core" if path.parts[1] == "dcoord" else "dworker."
        return check_purity((*PURE_OURS, own), tree)

    assert_none(each_module(CORES, check))


def test_what_the_workers_core_imports_of_its_daemon_is_pure_too() -> None:
    """`dworker/core.py` is one module, its helpers lie beside the daemon's own files: follow the imports."""
    seen = [Path("daemons/dworker/core.py")]
    for path in seen:
        if not (ROOT / path).exists():
            continue
        for _, name in imports(ast.parse(text_of(path))):
            helper = Path("daemons", *name.split(".")).with_suffix(".py")
            if name.startswith("dworker.") and helper not in seen and (ROOT / helper).exists():
                seen.append(helper)
    ours = (*PURE_OURS, "dworker.")
    found = each_module(
        [path for path in seen if path in MODULES],
        lambda _, __, tree: check_purity(ours, tree) + check_set_iteration(tree),
    )
    assert_none(found)


def test_cores_never_go_through_a_set() -> None:
    assert_none(each_module(CORES, lambda _, __, tree: check_set_iteration(tree)))


def test_modules_and_functions_are_short() -> None:
    assert_none(each_module(MODULES, lambda _, text, tree: check_sizes(text, tree)))


def test_nobody_waits_in_a_way_that_can_swallow_a_cancellation() -> None:
    """asyncio.wait_for of Python 3.11 does when both come at once; a worker that stopped just then never ended."""
    found = [str(path) for path in MODULES if path.parts[0] == "daemons" and "asyncio.wait_for(" in text_of(path)]
    assert not found, f"use asyncio.timeout: {found}"


def test_every_module_says_what_it_is() -> None:
    assert_none(each_module(MODULES, lambda path, _, tree: check_module_docstring(path, tree)))


def test_nothing_is_left_open_and_no_test_is_skipped() -> None:
    assert_none(each_module(MODULES, lambda _, text, __: check_leftovers(text)))


def test_folders_that_share_a_name_with_a_module_are_no_packages() -> None:
    assert not [str(path) for path in FILES if path.name == "__init__.py" and path.parts[0] in NO_PACKAGE]


def test_no_file_knows_the_machine_it_was_written_on() -> None:
    found = []
    for path in FILES:
        try:
            text = text_of(path)
        except UnicodeDecodeError:
            continue
        found += [
            f"{path}:{number}: {line[:80]}" for number, line in enumerate(text.splitlines(), 1) if MACHINE.search(line)
        ]
    assert_none(found)


# ---- the rules on bad examples ----


@pytest.mark.parametrize(
    ("program", "source"),
    [
        ("districomp", "import dcoord"),
        ("dworker", "from dcoord.core import events"),
        ("dctl", "def f():\n  import dworker.core"),
    ],
)
def test_a_wrong_arrow_is_found(program: str, source: str) -> None:
    assert check_arrows(program, ast.parse(source))


@pytest.mark.parametrize(
    "source",
    [
        "import time", "from os import path", "import os.path", "def f():\n  import asyncio", "from districomp import log",
        "from districomp.client import Client", "from dcoord.journal import Journal", "import dcoord.journal",
        "open('x')", "datetime.now()", "print(1)", "async def f(): pass", "import logging",
    ],
)  # fmt: skip
def test_impurity_is_found(source: str) -> None:
    assert check_purity(("districomp.model", "dcoord.core"), ast.parse(source))


def test_purity_lets_the_pure_pass() -> None:
    source = (
        "from districomp.model import DONE\nfrom districomp import model\nfrom dcoord.core.job import Job\nimport heapq"
    )
    assert not check_purity(("districomp.model", "dcoord.core"), ast.parse(source))


@pytest.mark.parametrize(
    "source",
    [
        "for x in {1, 2}: pass",
        "[x for x in set(y)]",
        "a = set()\nfor x in a: pass",
        "class A:\n  def __init__(self):\n    self.b: set[int] = set()\n  def f(self):\n    return [x for x in self.b]",
        "def f(a: set[int]): return list(a)",
        "a = {1}\nb = (*a,)",
        "a = {1}\na.pop()",
        "for x in frozenset(a) - {1}: pass",
    ],
)
def test_going_through_a_set_is_found(source: str) -> None:
    assert check_set_iteration(ast.parse(source))


@pytest.mark.parametrize(
    "source", ["a = {1}\nfor x in sorted(a): pass", "a = {}\nfor x in a: pass", "a = {1}\n2 in a\nlen(a)"]
)
def test_sorted_sets_and_dicts_pass(source: str) -> None:
    assert not check_set_iteration(ast.parse(source))


def test_size_docstring_and_leftovers_are_found() -> None:
    long_function = "def f():\n" + "    pass\n" * FUNCTION_LINES_MAX
    assert check_sizes(long_function, ast.parse(long_function))
    assert check_sizes("pass\n" * (MODULE_LINES_MAX + 1), ast.parse(""))
    assert check_module_docstring(Path("a.py"), ast.parse("a = 1"))
    assert check_leftovers("a = 1  # TO" + "DO: later")
    assert check_leftovers("@pytest.mark." + "skip")
    assert MACHINE.search("--find-" + "links /x")
    assert MACHINE.search("see /wo" + "rk/notes")
