"""What the screen of a booted worker says, by what is known of the machine."""

import ast
from pathlib import Path

import pytest

import dworker
from dworker import console, standing
from dworker.console import Block, Facts, Link, blocks, render

UP = Link("eth0", "52:54:00:1a:2b:3c", True, ("169.254.3.4", "fe80::1"))
FOLDER = Path(dworker.__file__).parent


def facts(status: str, *said: str, unit: str = "active", links: tuple[Link, ...] = (UP,)) -> Facts:
    return Facts("dworker-1a2b3c", links, unit, status, said)


def shown(of: Facts) -> dict[str, str]:
    """Texts by their labels, one after another."""
    texts: dict[str, str] = {}
    label = ""
    for block in blocks(of):
        label = block.label or label
        texts[label] = f"{texts.get(label, '')} {block.text}".strip()
    return texts


def test_joined() -> None:
    screen = shown(facts(standing.joined("lab", "169.254.1.1:8420")))
    assert screen["JOINED"] == "this machine works for lab"
    assert screen["coordinator"] == "lab at 169.254.1.1:8420"
    assert screen["network"] == "eth0  169.254.3.4  fe80::1  (52:54:00:1a:2b:3c)"
    assert "what to do" not in screen


def test_pending_shows_the_words_and_what_to_do_with_them() -> None:
    screen = shown(facts(standing.pending([("169.254.1.1", 8420)], "babab-babad-babaf")))
    assert screen["its words"] == "babab-babad-babaf"
    assert "dctl worker approve dworker-1a2b3c" in screen["what to do"]
    assert screen["coordinator"] == "169.254.1.1:8420"


@pytest.mark.parametrize(
    ("links", "step"),
    [
        ((), "no card"),
        ((UP._replace(is_up=False, addresses=()),), "no cable"),
        ((UP._replace(addresses=()),), "no address"),
    ],
)
def test_a_network_that_is_not_there_is_the_first_thing_to_mend(links: tuple[Link, ...], step: str) -> None:
    screen = shown(facts("looking for a coordinator", links=links))
    assert screen["NOT JOINED"] == f"step 1, network: {step}"
    assert screen["what to do"]


@pytest.mark.parametrize(
    ("status", "step", "todo"),
    [
        ("this worker belongs to no cluster and contacts nobody; run: dctl join TOKEN", "step 2", "token"),
        ("the cluster abc of the token is not found by mDNS; looking on", "step 3", "is dcoord running"),
        ("waiting for the cluster abc; seen: other (def)", "step 3", "dctl status"),
        ("the join token in F is refused: 10.0.0.1:8420: this token has expired", "step 4", "dctl token create worker"),
    ],
)
def test_the_step_that_fails_is_named(status: str, step: str, todo: str) -> None:
    screen = shown(facts(status))
    assert screen["NOT JOINED"].startswith(step)
    assert screen["because"] == status
    assert todo in screen["what to do"]


@pytest.mark.parametrize("part", [part for part, _ in console._HINTS])
def test_every_hint_answers_something_that_a_worker_says(part: str) -> None:
    texts = [
        node.value
        for path in [*FOLDER.glob("*.py"), *(FOLDER.parent / "districomp").glob("enrolment.py")]
        if path.name != "console.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert any(part in text for text in texts), part


@pytest.mark.parametrize("unit", ["failed", "auto-restart", "inactive"])
def test_a_worker_that_does_not_run_says_its_last_words(unit: str) -> None:
    screen = shown(facts("", "dworker.yaml:1: wrong", unit=unit))
    assert screen["NOT JOINED"] == f"the worker does not run ({unit})"
    assert screen["it said"] == "dworker.yaml:1: wrong"


def test_nothing_is_wrong_yet_while_it_starts() -> None:
    assert "STARTING" in shown(facts("", unit="activating"))


def test_what_comes_over_the_network_cannot_command_the_terminal() -> None:
    text = render([Block("because", "\x1b]0;mine\x07\x1b[2J\n" + "x" * 5000)], is_screen=False)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert len(text) < 1000


def test_a_screen_is_cleared_and_a_serial_line_is_not() -> None:
    assert render([], is_screen=True).startswith("\x1b[2J")
    assert "\x1b" not in render([Block("JOINED", "x", True)], is_screen=False)


def test_lines_are_as_wide_as_a_screen_at_most() -> None:
    text = render(blocks(facts("the join token is refused " * 9, "word " * 60)), is_screen=False)
    assert max(map(len, text.split("\r\n"))) <= console.WIDTH
