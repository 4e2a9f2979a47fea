"""Bad input, with a real coordinator and worker: a sentence that says what, where and what to do; other work goes on."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from districomp.client import Client
from districomp.errors import RefusedError
from tests.integration.client_cluster import Cluster, started_cluster
from tests.integration.clientlab import dctl
from tests.patience import PATIENCE_S

__all__ = ["started_cluster"]


@pytest.fixture
def cluster(started_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """With a job of somebody else that runs meanwhile, and must be none the worse for it. Bad input leaves no job."""
    monkeypatch.setenv("DISTRICOMP_RUNTIME_DIR", started_cluster.environment["DISTRICOMP_RUNTIME_DIR"])
    monkeypatch.chdir(tmp_path)
    with Client(started_cluster.socket) as client:
        other = client.submit("upper", items=[b"other %d" % number for number in range(50)])
        yield started_cluster
        assert [result.read() for result in other.results(timeout=PATIENCE_S)] == [
            b"OTHER %d" % number for number in range(50)
        ]


def refused(*arguments: str, stdin: bytes = b"") -> str:
    """The one sentence of a submission that is refused, and leaves no job; a rehearsal says the same."""
    with Client() as client:
        before = len(client.jobs())
        ran = dctl("submit", *arguments, stdin=stdin, code=2)
        assert dctl("submit", *arguments, "--dry-run", stdin=stdin, code=2).stderr == ran.stderr
        assert len(client.jobs()) == before
    assert ran.stdout == b""
    assert ran.stderr.count(b"\n") == 1
    return ran.stderr.decode()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cpy"], "there is no definition 'cpy'; did you mean 'copy'?"),
        (["typed"], "'count' is missing; it is a whole number from 1 to 9"),
        (["typed", "--param", "count=many"], "'count' must be a whole number from 1 to 9, not 'many'"),
        (["typed", "--param", "count=10"], "'count' must be a whole number from 1 to 9, not 10"),
        (["typed", "--param", "count=1", "--param", "wrod=x"], "'wrod' is unknown, did you mean 'word'?"),
        (["typed", "--param", "count=1", "--param", "count=2"], "'count' must be a whole number"),
        (["typed", "--param", "word=x", "--param", "nothing="], "'nothing' is unknown"),
        (["typed", "--matrix", "count=1,ten"], "'count' must be a whole number from 1 to 9, not 'ten'"),
        (["typed", "--matrix", "count=1", "--param", "count=2"], "'count' is given as a param and in the matrix"),
        (["typed", "--matrix", "size=1", "--param", "count=2"], "'size' is unknown"),
        (["small", "--data", "12345"], "item 0: it has 5 bytes, the definition's limits.data is 4"),
        (["lines", "--data", "a\nb"], "item 0: it has a newline"),
        (["argument"], "uses {item}, but the job has no input"),
        (["copy", "--each-line", "/dev/null"], "the input is empty"),
        (["copy", "--each-line", "none"], "none: no such file; check the path"),
        (["copy", "--data-file", "/proc/1/mem"], "/proc/1/mem"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(cluster: Cluster, arguments: list[str], said: str) -> None:
    assert said in refused(*arguments)


@pytest.mark.parametrize(
    ("definition", "item", "said"),
    [
        ("argument", b"a\0b", "has a NUL character"),
        ("argument", b"a\xffb", "byte 2 of it is not UTF-8"),
        ("argument", b"x" * 200_000, "200,000 bytes"),
        ("argument", b"x" * 1_000_000, "1,000,000 bytes"),
        ("small", b"x" * 1_000_000, "1,000,000 bytes, the definition's limits.data is 4"),
    ],
)
def test_an_item_that_cannot_be_is_named_by_its_number(
    cluster: Cluster, definition: str, item: bytes, said: str
) -> None:
    lines = b"ok\n" * 7000 + item + b"\nok\n"
    sentence = refused(definition, "--each-line", "-", stdin=lines)
    assert "item 7000: " in sentence
    assert said in sentence


def test_odd_items_that_are_none_the_less_right(cluster: Cluster, tmp_path: Path) -> None:
    odd = [b"", b"a\0b", b"\xff", b"two\nlines", b"x" * 1_000_000]
    with Client(cluster.socket) as client:
        job = client.submit("copy", items=odd)
        assert [result.read() for result in job.results(timeout=PATIENCE_S)] == odd
        argument = client.submit("argument", items=[b"x" * 100_000, "é\n".encode()])
        assert [result.read().strip() for result in argument.results(timeout=PATIENCE_S)] == [b"100000", b"3"]
        typed = client.submit("typed", params={"count": 1, "word": "y" * 100_000})
        assert len(next(typed.results(timeout=PATIENCE_S)).read()) == 100_000 + len("1  0\n")
        with pytest.raises(
            RefusedError, match=r"'word' has 200,000 bytes, an argument can have 131,071; give it as the item"
        ):
            client.submit("typed", params={"count": 1, "word": "y" * 200_000})
        with pytest.raises(RefusedError, match="'word' has a NUL character"):
            client.submit("typed", params={"count": 1, "word": "a\0b"})


def test_an_unreadable_file(cluster: Cluster, tmp_path: Path) -> None:
    """Whoever may read everything (root) meets the same with a folder in the middle of a path."""
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0)
    name = "secret" if os.geteuid() else "secret/inside"
    assert name in refused("copy", "--each-file", name)


def test_a_wrong_file_of_a_definition_is_told_when_it_is_asked_for(cluster: Cluster) -> None:
    path = cluster.folder / "config/tasks.d/broken.yaml"
    path.write_text("version: 1\ncomand: [cat]\n")
    try:
        with Client(cluster.socket) as client:
            cluster.wait_for(lambda: any(d.name == "broken" for d in client.definitions()), "broken definition")
        ran = dctl("submit", "broken", code=2)
        assert b"the definition 'broken' is not live, because its file is wrong; mend it" in ran.stderr
        assert b"broken.yaml:2:1: comand: unknown key; did you mean 'command'?" in ran.stderr
    finally:
        path.unlink()


def test_a_worker_without_the_program_says_so(cluster: Cluster) -> None:
    with Client(cluster.socket) as client:
        job = client.submit("missing")
        assert job.wait(30).state == "failed"
        shown = dctl("task", "show", f"{job.number}.0").stdout.decode()
    assert "not_started" in shown
    assert "why it was not started:\nThe program 'no-such-program-anywhere' is not installed on this worker" in shown


def test_no_coordinator_and_one_that_does_not_answer(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTRICOMP_RUNTIME_DIR", str(tmp_path))
    ran = dctl("submit", "copy", code=3)
    assert f"there is no {tmp_path}/control.sock" in ran.stderr.decode()
    assert "Start dcoord" in ran.stderr.decode()
