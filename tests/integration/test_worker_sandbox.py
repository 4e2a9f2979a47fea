"""What bubblewrap is told: without running one, so on any machine. What a task finds is in tests/system/test_sandbox.py."""

import os
from pathlib import Path

import pytest

from dworker.runners.sandbox import Sandbox, why_not_started
from dworker.runners.spawn import Request


def told(
    sandbox: Sandbox, request: Request, *, network: bool = False, bundle: Path | None = None
) -> tuple[Request, list[str]]:
    """A boxed request, and the arguments handed over with it."""
    boxed = sandbox.box(request, network=network, bundle=bundle)
    (fd,) = boxed.fds
    with os.fdopen(fd, "rb") as file:
        return boxed, file.read().decode().split("\0")[:-1]


def between(arguments: list[str], first: str, last: str) -> bool:
    """Whether one argument stands somewhere before another."""
    return arguments.index(first) < arguments.index(last)


def test_the_environment_is_for_what_is_within() -> None:
    """bubblewrap itself runs outside, with the worker's rights: it must not load what a definition names."""
    env = {"LD_PRELOAD": "/x.so", "DISTRICOMP_TASK": "1.0", "DISTRICOMP_ATTEMPT": "1", "SECRET": "s"}
    request, arguments = told(Sandbox("/bwrap", []), Request("/work", "/bin/true", ["true", "-x"], env, ()))
    assert request.env == {"DISTRICOMP_TASK": "1.0", "DISTRICOMP_ATTEMPT": "1"}
    assert (request.program, request.argv, request.is_boxed) == ("/bwrap", ["bwrap", "--", "true", "-x"], True)
    assert arguments[-12:] == [word for name, value in env.items() for word in ("--setenv", name, value)]


@pytest.mark.parametrize("network", [True, False])
def test_the_network_is_there_only_if_it_is_said(network: bool) -> None:
    request = Request("/work", "/bin/true", ["true"], {}, ())
    _, arguments = told(Sandbox("/bwrap", []), request, network=network)
    assert ("--unshare-net" in arguments) is not network
    assert {"--unshare-user", "--unshare-pid", "--unshare-ipc", "--die-with-parent", "--new-session"} <= set(arguments)


def test_what_is_hidden_is_covered_before_what_is_shown_of_it(tmp_path: Path) -> None:
    for name in ("shown/state/bundles/b", "shown/state/run/1", "other"):
        (tmp_path / name).mkdir(parents=True)
    shown, state, other = tmp_path / "shown", tmp_path / "shown/state", tmp_path / "other"
    (tmp_path / "link").symlink_to("other")
    sandbox = Sandbox(
        "/bwrap", [state, other, tmp_path / "none"], [str(shown), str(tmp_path / "link"), str(tmp_path / "no")]
    )
    request = Request(str(state / "run/1"), "/bin/true", ["true"], {}, ())
    _, arguments = told(sandbox, request, bundle=state / "bundles/b")
    assert str(other) not in arguments, "nothing of it is shown anyway"
    assert between(arguments, str(shown), str(state))
    assert arguments[arguments.index(str(state)) - 1] == "--tmpfs"
    assert between(arguments, str(state), str(state / "bundles/b"))
    assert arguments[arguments.index(str(state / "bundles/b")) - 1] == "--ro-bind"
    assert between(arguments, str(state), str(state / "run/1"))
    link = arguments.index(str(tmp_path / "link"))
    assert arguments[link - 2 : link] == ["--symlink", "other"]
    assert str(tmp_path / "no") not in arguments


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"bwrap: execvp x: No such file or directory\n", "does not exist in the sandbox"),
        (b"noise\nbwrap: execvp x: Permission denied", "'x' is not executable"),
        (b"bwrap: execvp x: Argument list too long", "too long for this system"),
        (b"bwrap: Can't mount proc on /newroot/proc: Operation not permitted", "could not be made: Can't mount proc"),
    ],
)
def test_why_it_was_not_started(said: bytes, why: str) -> None:
    assert why in why_not_started(said, "x")
