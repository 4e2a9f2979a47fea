"""Secrets are planted everywhere in a real cluster, and then looked for wherever they must not be.

One cluster runs through all that it can do, once for all tests of this file; each test looks in another place.
"""

import ast
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from dcoord.web import rights
from districomp.client import Client
from tests.integration.client_cluster import Elsewhere
from tests.integration.clientlab import BOUND_S, DAEMONS
from tests.integration.secretlab import (
    ARGUMENTS,
    Browser,
    CommandLines,
    SecretCluster,
    open_files,
    plain_port,
)

PATHS: Final = [
    route.path.replace("{task}", "1.0").replace("{job}", "1").replace("{name}", "leaks").replace("{sha256}", "ab" * 32)
    for route in rights.ROUTES
]
WORK: Final = (
    "the data of a task", "what a task wrote to standard error", "a variable of the definition", *ARGUMENTS,
)  # fmt: skip
"""What belongs to jobs: who may see a job is told it, and nobody else."""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecretCluster]:
    """The cluster after all of it; everything is still there but the processes."""
    umask = os.umask(0)
    cores = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (cores[1], cores[1]))
    lines = CommandLines()
    lines.start()
    cluster = SecretCluster(tmp_path_factory.mktemp("secrets"), lines)
    try:
        _live(cluster)
        lines.stop()
        cluster.abort()
        yield cluster
    finally:
        os.umask(umask)
        resource.setrlimit(resource.RLIMIT_CORE, cores)
        cluster.stop()


def _live(cluster: SecretCluster) -> None:
    """All that a cluster can do, with every kind of secret in it."""
    secrets = cluster.secrets
    cluster.start_coordinator()
    cluster.start("dworker")
    pc, wrong = (Elsewhere(cluster.folder, name) for name in ("pc", "wrong"))
    ann = Elsewhere(cluster.folder, "ann")
    token = cluster.token("worker")
    cluster.dctl("join", "-", stdin=token.encode(), elsewhere=pc)
    cluster.start("dworker", pc)
    # One character is another: it is as secret as the right one.
    forged = token[:-1] + ("a" if token[-1] != "a" else "e")
    (cluster.folder / "wrong/token").write_text(forged)
    secrets.add("a join token", forged.encode())
    wrong.environment["DISTRICOMP_TOKEN_FILE"] = str(cluster.folder / "wrong/token")
    cluster.start("dworker", wrong)
    cluster.dctl("join", "-", stdin=forged.encode(), elsewhere=wrong, code=4)
    cluster.dctl("join", "-", stdin=cluster.token("admin").encode(), elsewhere=ann)
    with Client(cluster.socket) as client:
        cluster.wait_for(lambda: client.status().workers == 2, "workers")
    secrets.add_files(cluster.folder)
    failed = cluster.run_jobs()
    browser = Browser(cluster, ann)
    try:
        for path in PATHS:
            browser.get(path)
    finally:
        browser.end()
    for arguments in (
        ("status",), ("job", "list"), ("job", "show", "1"), ("task", "list", "1"), ("task", "show", f"{failed}.0"), ("worker", "list"),
        ("def", "list"), ("def", "show", "leaks"), ("token", "list"), ("results", "1"), ("explain", f"{failed}.0"), ("logs", f"{failed}.0"),
    ):  # fmt: skip
        cluster.dctl(*arguments, "--json")
        cluster.dctl(*arguments, elsewhere=ann)
    cluster.plain = dict(plain_port(cluster, [*PATHS, "/nothing", f"/results/{failed}.0", f"/tasks/{failed}.0"]))
    cluster.dctl("ca", "rotate", "--yes", "--json")
    before = len(list(cluster.folder.rglob("identity.json")))
    assert before == 3
    cluster.wait_for(lambda: cluster.log().count("renew") > 0, "renewal")
    secrets.add_files(cluster.folder)
    cluster.dctl("worker", "revoke", "pc", "--yes")
    cluster.running = cluster.daemons()


def test_no_command_line_has_one(ran: SecretCluster) -> None:
    """While all of it ran; what a definition's author puts into a command line is in that command's alone."""
    for line in ran.lines.seen:
        assert ran.secrets.seen_in(line, but=ARGUMENTS) == [], line
    for line in ran.running.values():
        assert ran.secrets.seen_in(line) == [], line
    # Found where it is, so that finding nothing means something.
    assert any(ran.secrets.seen_in(line) == sorted(ARGUMENTS) for line in ran.lines.seen)


def test_no_log_has_one(ran: SecretCluster) -> None:
    """Everything logs all it can, and was killed so that it says where it was."""
    logs = ran.logs()
    assert {"dcoord.log", "dworker.log", "pc.log", "wrong.log", "dctl-ui.log"} <= set(logs)
    for name, text in logs.items():
        assert ran.secrets.seen_in(text) == [], name
    for name in ("dcoord.log", "dworker.log"):
        assert b"Fatal Python error: Aborted" in logs[name], name


def test_the_plain_port_has_none(ran: SecretCluster) -> None:
    assert len(ran.plain) > 100
    assert b"secrets" in ran.plain["GET /stats.json"], "the page says how the cluster is called"
    for asked, answer in ran.plain.items():
        assert ran.secrets.seen_in(answer) == [], asked


def test_nothing_that_dctl_prints_has_one(ran: SecretCluster) -> None:
    """But for `token create`, which shows a token once; and a job's own things are told to whoever may see the job."""
    for command, text in ran.said.items():
        assert ran.secrets.seen_in(text, but=WORK) == [], command
    for command in ("dctl status", "dctl worker list", "dctl token list", "dctl join", "dctl ca rotate"):
        shown = b"".join(text for asked, text in ran.said.items() if asked.startswith(command))
        assert shown
        assert ran.secrets.seen_in(shown) == [], command


def test_nobody_else_may_read_a_file_that_has_one(ran: SecretCluster) -> None:
    """Whatever the umask. Every folder that the tests made is open, so that only what the daemons did counts."""
    ours = {ran.folder / "wrong/token", *(ran.folder / "config").rglob("*"), *ran.folder.glob("*.log")}
    for file in open_files(ran.folder):
        if file not in ours:
            assert ran.secrets.seen_in(file.read_bytes()) == [], file
    keys = [*ran.folder.rglob("identity.*"), *ran.folder.rglob("authority*")]
    assert len(keys) > 6
    for file in keys:
        assert file.is_dir() or file.name == "authorities.pem" or file.stat().st_mode & 0o077 == 0, file


def test_no_task_is_given_what_the_daemons_have(ran: SecretCluster) -> None:
    """Its environment is the definition's, and some words about itself."""
    printed = next(text for command, text in ran.said.items() if command.startswith("dctl results 1"))
    assert b"PLANTED=" in printed
    assert b"DISTRICOMP_TASK=1.0" in printed
    assert ran.secrets.seen_in(printed, but=WORK) == []
    for word in (b"TOKEN", b"RUNTIME_DIR", b"STATE_DIR", b"CONFIG_DIR", b"AWS", b"NOTIFY_SOCKET", b"CREDENTIALS"):
        assert word not in printed


def test_no_core_has_one(ran: SecretCluster) -> None:
    """All were killed by SIGABRT, and allowed to leave one; a task is not."""
    for file in ran.folder.rglob("core*"):
        if file.is_file():
            assert ran.secrets.seen_in(file.read_bytes(), but=("a variable of the daemon's environment",)) == [], file
    printed = next(text for command, text in ran.said.items() if command.startswith("dctl results 1"))
    assert b"core=0" in printed
    assert resource.getrlimit(resource.RLIMIT_CORE)[0] != 0, "this test needs a machine that allows cores"


def test_the_journal_has_the_work_and_no_key(ran: SecretCluster) -> None:
    """It is what the coordinator's user alone may read; whoever steals it has data, and lets nobody in."""
    files = [file for file in ran.folder.rglob("journal.sqlite*") if file.suffix != ".sqlite-lock"]
    stored = b"".join(file.read_bytes() for file in files)
    seen = ran.secrets.seen_in(stored)
    assert "the data of a task" in seen
    assert set(seen) <= set(WORK)
    assert all(file.stat().st_mode & 0o077 == 0 for file in files)


@pytest.mark.parametrize("program", ["dcoord", "dcoord.web", "dworker"])
def test_who_holds_keys_leaves_no_core_and_lets_nobody_look(program: str, tmp_path: Path) -> None:
    """PR_GET_DUMPABLE (3) is 0 once its main function has begun."""
    code = (
        "import ctypes\n"
        f"from {program}.__main__ import main\n"
        "before = ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)\n"
        "try:\n    main(['--check-config'])\nexcept SystemExit:\n    pass\n"
        "print(before, ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))\n"
    )
    folders = {f"DISTRICOMP_{name}_DIR": str(tmp_path) for name in ("STATE", "CONFIG", "RUNTIME")}
    environment = os.environ | {"PYTHONPATH": str(DAEMONS)} | folders
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=BOUND_S)
    assert ended.stdout.split()[-2:] == [b"1", b"0"], ended.stderr


@pytest.mark.parametrize("damage", ["half", "a letter", "another type"])
@pytest.mark.parametrize(("program", "name"), [("dcoord", "authority.json"), ("dworker", "identity.json")])
def test_a_damaged_file_of_keys_is_refused_without_showing_it(
    ran: SecretCluster, tmp_path: Path, program: str, name: str, damage: str
) -> None:
    source = next(path for path in sorted(ran.folder.rglob(name)) if program in str(path.parts))
    state = tmp_path / "state"
    place = state / source.relative_to(next(p for p in source.parents if p.name == "state"))
    place.parent.mkdir(parents=True, mode=0o700)
    text = source.read_text()
    where = text.index("PRIVATE") + 100 if "PRIVATE" in text else text.index('"key"') + 100
    damaged = {
        "half": text[: len(text) - 40],
        "a letter": text[:where] + ("A" if text[where] != "A" else "B") + text[where + 1 :],
        "another type": json.dumps({**json.loads(text), "key": [json.loads(text)["key"]]}),
    }[damage]
    place.write_text(damaged)
    place.chmod(0o600)
    for part in ("config", "run"):
        (tmp_path / part).mkdir()
    folders = {f"DISTRICOMP_{part.upper()}_DIR": str(tmp_path / part) for part in ("state", "config")}
    environment = os.environ | {"PYTHONPATH": str(DAEMONS), "DISTRICOMP_RUNTIME_DIR": str(tmp_path / "run")} | folders
    (tmp_path / "config/dcoord.yaml").write_text(
        "listen: {address: 127.0.0.1, port: 0}\ndata: {port: 0}\nweb: {port: 0}\n"
    )
    command = [sys.executable, "-m", program, "-v"]
    ended = subprocess.run(command, env=environment, capture_output=True, timeout=BOUND_S)
    assert ended.returncode in (1, 4, 78), ended.stderr
    assert b"damaged" in ended.stderr
    assert b"Traceback" not in ended.stderr
    assert ran.secrets.seen_in(ended.stderr + ended.stdout) == []


# ---- what the code may not do at all ----

RUNS_BYTES: Final = {
    "pickle",
    "cloudpickle",
    "dill",
    "shelve",
    "marshal",
    "tarfile",
    "zipfile",
    "runpy",
    "code",
    "codeop",
}
RUNS_TEXT: Final = {"eval", "exec", "compile", "__import__", "unpack_archive", "literal_eval"}
OWN_PROCESSES: Final = {
    "dworker/runners/spawn.py", "dworker/runners/spawnd.py", "dworker/runners/interpreter.py", "dworker/runners/frames.py", "dworker/runners/launch.py",
    "dworker/runners/replies.py",
}  # fmt: skip
"""`marshal` between the worker and the processes that it starts; in `interpreter.py` a task's own code is run."""
EXECUTOR: Final = ("districomp.executor", "districomp.joblib_backend", "districomp.Executor")
"""What a user's program imports to have its own functions called, and nothing of ours does: it unpickles what they gave."""
FETCHES: Final = {"urllib.request", "requests", "httpx", "aiohttp", "ftplib", "xmlrpc", "webbrowser"}


@pytest.mark.parametrize("path", sorted(DAEMONS.rglob("*.py")), ids=lambda path: str(path.relative_to(DAEMONS)))
def test_no_bytes_from_outside_become_code(path: Path) -> None:
    """The coordinator and what all share never unpickle, unpack or evaluate; the worker's marshal is for its own processes."""
    name = str(path.relative_to(DAEMONS))
    used = _used(ast.parse(path.read_text()))
    allowed = {"marshal"} if name in OWN_PROCESSES else set()
    if name == "dworker/runners/interpreter.py":
        allowed |= {"__import__"}
    if name == "dctl/ui.py":
        allowed |= {"webbrowser"}
    if name == "districomp/executor_calls.py":
        allowed |= {"pickle", "cloudpickle"}
    if not name.startswith(("districomp/executor", "districomp/joblib_backend")) and name != "districomp/__init__.py":
        assert not {module for module in used if module.startswith(EXECUTOR)}
    assert used & (RUNS_BYTES | RUNS_TEXT | FETCHES) <= allowed


def _used(tree: ast.AST) -> set[str]:
    """Modules imported, whole and by their first name, and plain names and attributes called."""
    used: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            used |= {alias.name for alias in node.names} | {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            used |= {
                node.module,
                node.module.partition(".")[0],
                *(f"{node.module}.{alias.name}" for alias in node.names),
            }
        elif isinstance(node, ast.Call):
            # re.compile is no compile.
            function = node.func
            if isinstance(function, ast.Name):
                used.add(function.id)
            elif isinstance(function, ast.Attribute) and function.attr in ("unpack_archive", "literal_eval"):
                used.add(function.attr)
    return used
