"""Tokens, joining, approval, revocation, rotation and the pages: `dctl` and the real daemons, on folders of their own."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from dcoord.authority import Authority
from dctl.__main__ import run
from districomp import client_enrol, keys, tls
from districomp.client import Client
from districomp.identity import IdentityFolder
from districomp.tokens import parse_token
from tests.integration.client_cluster import Cluster, Elsewhere
from tests.integration.client_machines import (
    PendingMachine,
    as_admin,
    cluster,
    elsewhere,
    lasting,
    state_of,
    token,
    workers,
)
from tests.integration.clientlab import BOUND_S, Terminal, dctl
from tests.priority import timed

__all__ = ["as_admin", "cluster", "elsewhere", "lasting"]

# ---- tokens ----


def test_a_token_is_shown_once(cluster: Cluster) -> None:
    created = dctl("token", "create", "worker", "--expires", "90m", "--uses", "2", "--label", "a", "--label", "b")
    text = created.stdout.decode().strip()
    assert parse_token(text).role == "worker"
    assert text not in created.stderr.decode()
    assert b"good for 1 h 30 min, 2 times" in created.stderr
    assert json.loads(dctl("token", "list", "--json").stdout)[-1]["id"] in created.stderr.decode()
    listed = dctl("token", "list").stdout.decode()
    assert text.split("-")[2] not in listed
    (line,) = [line for line in listed.splitlines() if "a b" in line]
    assert line.split() == [line.split()[0], "worker", "valid", "0", "2", "in", "1", "h", *line.split()[8:10], "a", "b"]
    document = json.loads(dctl("token", "create", "read", "--json").stdout)
    assert (document["role"], document["uses_left"], document["state"]) == ("read", None, "valid")
    shown = [one for one in json.loads(dctl("token", "list", "--json").stdout) if one["id"] == document["id"]]
    assert shown == [{key: value for key, value in document.items() if key != "token"}]
    assert document["id"] in dctl("token", "list", "-q").stdout.decode().split()


@pytest.mark.parametrize(
    "arguments",
    [
        ("token", "create"),
        ("token", "create", "root"),
        ("token", "create", "worker", "--uses", "0"),
        ("token", "create", "worker", "--expires", "soon"),
        ("token", "create", "worker", "--expires", "0"),
        ("token", "revoke", "nothing", "--yes"),
        ("token", "revoke", "nothing"),
        ("enrol", "open"),
        ("enrol", "open", "--for", "9999d"),
        ("ca", "rotate", "--overlap", "-1"),
        ("ca", "rotate", "--overlap", "0s"),
        ("worker", "revoke", "nobody", "--yes"),
        ("worker", "remove", "nobody", "--yes"),
        ("worker", "approve", "nobody", "--yes"),
        ("join",),
        ("join", "dcs1-damaged-secretsecret"),
        ("join", "-"),
        ("ui", "--port", "99999"),
    ],
    ids=" ".join,
)
def test_what_is_wrong_is_a_sentence_and_2(arguments: tuple[str, ...]) -> None:
    said = dctl(*arguments, code=2).stderr.decode()
    assert said.startswith("dctl")
    assert "secretsecret" not in said


# ---- joining ----


def test_joining_with_a_prompt_that_shows_nothing(cluster: Cluster, elsewhere: Elsewhere) -> None:
    text = token("submit")
    terminal = Terminal("join", environment=elsewhere.environment)
    terminal.wait_for("Token (it is not shown): ")
    terminal.type(text + "\n")
    assert terminal.end() == 0
    assert text.split("-")[2] not in terminal.text
    assert "you have joined trust-tests" in terminal.text
    status = json.loads(dctl("status", "--json", environment=elsewhere.environment).stdout)
    assert status["name"] == "trust-tests"
    folder = elsewhere.state / "client"
    assert [oct(path.stat().st_mode)[-3:] for path in (folder, folder / "identity.json")] == ["700", "600"]


@pytest.mark.parametrize("how", ["argument", "standard input"])
def test_joining_without_a_terminal(cluster: Cluster, elsewhere: Elsewhere, how: str) -> None:
    text = token("read")
    argument, stdin = (text, b"") if how == "argument" else ("-", f"  {text.upper()}\n".encode())
    joined = json.loads(dctl("join", argument, "--json", stdin=stdin, environment=elsewhere.environment).stdout)
    identity = IdentityFolder(elsewhere.state / "client").load()
    assert identity is not None
    assert joined == {
        "cluster": identity.cluster,
        "name": "trust-tests",
        "role": "read",
        "identity": identity.identity,
        "folder": str(elsewhere.state / "client"),
    }


def test_roles_may_what_they_may(cluster: Cluster, tmp_path: Path) -> None:
    alice, bob, reader = (Elsewhere(tmp_path, name).environment for name in ("alice", "bob", "reader"))
    for environment, role in ((alice, "submit"), (bob, "submit"), (reader, "read")):
        dctl("join", token(role), environment=environment)
    job = dctl("submit", "copy", "--data", "x", "-q", environment=alice).stdout.decode().strip()
    assert dctl("job", "show", "last", "-q", environment=alice).stdout.decode().strip() == job
    assert job in dctl("job", "list", "-q", environment=reader).stdout.decode().split()
    assert dctl("job", "list", "-q", environment=bob).stdout == b""
    assert b"not yours" in dctl("job", "show", job, code=4, environment=bob).stderr
    assert b"last" in dctl("job", "show", "last", code=2, environment=bob).stderr
    for environment in (bob, reader):
        dctl("cancel", job, "--yes", code=4, environment=environment)
        assert b"role" in dctl("token", "create", "admin", code=4, environment=environment).stderr
    dctl("submit", "copy", "--data", "x", code=4, environment=reader)
    assert json.loads(dctl("job", "show", job, "--json").stdout)["state"] == "queued"
    assert json.loads(dctl("cancel", job, "--yes", "--json", environment=alice).stdout)[0]["state"] == "cancelled"


def test_large_payloads_of_a_submitter_elsewhere(cluster: Cluster, elsewhere: Elsewhere, tmp_path: Path) -> None:
    dctl("join", token("submit"), environment=elsewhere.environment)
    (tmp_path / "large").write_bytes(os.urandom(200_000))
    job = dctl("submit", "copy", "--data-file", str(tmp_path / "large"), "-q", environment=elsewhere.environment).stdout
    task = json.loads(
        dctl("task", "show", f"{job.decode().strip()}.0", "--json", environment=elsewhere.environment).stdout
    )
    assert task["data_bytes"] == 200_000


def test_a_token_that_is_used_up_revoked_or_expired(cluster: Cluster, elsewhere: Elsewhere) -> None:
    once = token("submit", "--uses", "1")
    dctl("join", once, environment=elsewhere.environment)
    refused = dctl("join", once, code=4, environment=elsewhere.environment).stderr.decode()
    assert "has been used as often as it may be" in refused
    short = token("submit", "--expires", "1ms")
    time.sleep(0.01)
    assert b"has expired" in dctl("join", short, code=4, environment=elsewhere.environment).stderr
    revoked = json.loads(dctl("token", "create", "submit", "--json").stdout)
    dctl("token", "revoke", revoked["id"], "--yes")
    assert b"was revoked" in dctl("join", revoked["token"], code=4, environment=elsewhere.environment).stderr
    # What went wrong later did not cost what was there before.
    dctl("status", environment=elsewhere.environment)


def test_a_certificate_that_has_expired_is_said_to_be_refused(cluster: Cluster, elsewhere: Elsewhere) -> None:
    """One of the coordinator's own authority, made 40 days ago: asyncio's server ends the connection without an alert."""
    dctl("join", token("submit"), environment=elsewhere.environment)
    folder = IdentityFolder(elsewhere.state / "client")
    identity = folder.load()
    assert identity is not None
    authority = Authority.open(cluster.folder / "state/dcoord/trust", "x", clock=lambda: time.time() - 40 * 86400)
    key = keys.new_key()
    issued = authority.sign(key.csr, "submit", identity.identity, "somebody")
    folder.save(replace(identity, certificate=tls.to_pem([issued.certificate]), key=key.key))
    said = dctl("status", code=4, environment=elsewhere.environment).stderr.decode()
    assert "has expired" in said
    assert "dctl join TOKEN" in said
    cluster.wait_for(lambda: "its certificate is refused: certificate has expired" in cluster.log(), "word of it")


def test_revoking_a_token_ends_who_joined_by_it(cluster: Cluster, elsewhere: Elsewhere) -> None:
    made = json.loads(dctl("token", "create", "submit", "--json").stdout)
    dctl("join", made["token"], environment=elsewhere.environment)
    waiting = subprocess.Popen(
        [sys.executable, "-m", "dctl", "submit", "copy", "--data", "x", "--wait"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | elsewhere.environment,
    )
    with Client(cluster.socket) as client:
        cluster.wait_for(lambda: any(job.state == "queued" for job in client.jobs()), "job")
    terminal = Terminal("token", "revoke", made["id"])
    terminal.wait_for("cut off everybody who joined by it? [y/N]")
    terminal.type("y\n")
    assert terminal.end() == 0
    _out, said = waiting.communicate(timeout=BOUND_S)
    assert (waiting.returncode, b"your certificate was revoked" in said) == (4, True), said
    assert b"your certificate was revoked" in dctl("status", code=4, environment=elsewhere.environment).stderr
    cluster.cancel_all()


def test_no_means_no(cluster: Cluster) -> None:
    made = json.loads(dctl("token", "create", "submit", "--json").stdout)
    terminal = Terminal("token", "revoke", made["id"])
    terminal.wait_for("[y/N]")
    terminal.type("\n")
    assert terminal.end() == 1
    assert "nothing was changed" in terminal.text
    (after,) = [one for one in json.loads(dctl("token", "list", "--json").stdout) if one["id"] == made["id"]]
    assert after["state"] == "valid"


def test_a_token_of_another_cluster_at_a_given_address(cluster: Cluster, elsewhere: Elsewhere) -> None:
    foreign = "dcs1-aaaaaaaaaaaaaaaaaaaaaaaaaa-aaaaaaaaaaaaaaaaaaaaaaaaaa"
    environment = elsewhere.environment | {"DISTRICOMP_COORDINATOR": cluster.address}
    said = dctl("join", foreign, code=4, environment=environment).stderr.decode()
    assert "another cluster, trust-tests" in said
    assert not (elsewhere.state / "client").exists()


def test_nobody_of_that_cluster_is_here(
    cluster: Cluster,
    elsewhere: Elsewhere,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(client_enrol, "FIND_S", 0.3)
    for name, value in elsewhere.environment.items():
        monkeypatch.setenv(name, value)
    assert run(["join", "dcs1-aaaaaaaaaaaaaaaaaaaaaaaaaa-bbbbbbbbbbbbbbbbbbbbbbbbba"]) == 3
    said = capsys.readouterr().err
    assert "no coordinator of the cluster aaaaaaaaaaaaaaaaaaaaaaaaaa answers on this network within 0.3 s" in said
    assert "DISTRICOMP_COORDINATOR=HOST:PORT" in said
    assert "bbbbbb" not in said


def test_a_named_coordinator_that_needs_no_token(cluster: Cluster, elsewhere: Elsewhere) -> None:
    environment = elsewhere.environment | {"DISTRICOMP_COORDINATOR": "tcp://127.0.0.1:1"}
    assert b"nobody needs a token" in dctl("join", token("submit"), code=2, environment=environment).stderr


# ---- workers ----


def test_one_string_makes_a_worker_of_a_machine(
    cluster: Cluster, elsewhere: Elsewhere, lasting: list[subprocess.Popen[bytes]]
) -> None:
    said = dctl("join", token("worker"), environment=elsewhere.environment).stderr.decode()
    assert "has joined trust-tests" in said
    assert "start it: dworker" in said
    lasting.append(cluster.start_elsewhere("dworker", elsewhere))
    cluster.wait_for(lambda: state_of(cluster, elsewhere.name) == "idle", "worker")
    again = dctl("join", token("worker"), environment=elsewhere.environment).stderr.decode()
    assert "goes on by itself" in again


def test_a_worker_that_runs_already_goes_on_when_it_is_joined(
    cluster: Cluster, elsewhere: Elsewhere, lasting: list[subprocess.Popen[bytes]]
) -> None:
    lasting.append(cluster.start_elsewhere("dworker", elsewhere))
    cluster.wait_for(lambda: "dctl join TOKEN" in (cluster.folder / f"{elsewhere.name}.log").read_text(), "advice")
    assert elsewhere.name not in workers(cluster)
    dctl("join", token("worker"), environment=elsewhere.environment)
    with timed() as took:
        cluster.wait_for(lambda: state_of(cluster, elsewhere.name) == "idle", "worker")
    assert took.alone_s < 5


def test_a_pending_worker_is_let_in_once_the_words_are_compared(cluster: Cluster) -> None:
    machine = PendingMachine(cluster, "compared")
    shown = dctl("worker", "list")
    assert machine.words[0] in shown.stdout.decode()
    assert b"dctl worker approve NAME" in shown.stderr
    (listed,) = [one for one in json.loads(dctl("worker", "list", "--json").stdout) if one["name"] == "compared"]
    assert (listed["state"], listed["words"]) == ("pending", machine.words[0])
    assert b"needs --yes" in dctl("worker", "approve", "compared", code=2).stderr
    other = "babab-babab-babab"
    assert b"somebody stands in between" in dctl("worker", "approve", "compared", "--words", other, code=4).stderr
    assert not machine.outcome
    terminal = Terminal("worker", "approve", "compared")
    terminal.wait_for("the same words? [y/N]")
    assert machine.words[0] in terminal.text
    terminal.type("y\n")
    assert terminal.end() == 0
    assert machine.identity().role == "worker"
    assert b"is pending" in dctl("worker", "approve", "compared", code=2).stderr


@pytest.mark.parametrize("how", [["--yes"], ["--words"]], ids=["yes", "words"])
def test_approval_without_a_terminal(cluster: Cluster, how: list[str]) -> None:
    machine = PendingMachine(cluster, f"unasked{len(how[0])}")
    words = [machine.words[0].upper().replace("-", " ")] if how == ["--words"] else []
    dctl("worker", "approve", f"unasked{len(how[0])}", *how, *words)
    assert machine.identity().role == "worker"


def test_two_pending_of_one_name_are_told_apart_by_their_words(cluster: Cluster) -> None:
    first, second = PendingMachine(cluster, "twin"), PendingMachine(cluster, "twin")
    assert b"2 pending workers are called" in dctl("worker", "approve", "twin", "--yes", code=2).stderr
    dctl("worker", "approve", "twin", "--words", second.words[0])
    assert second.identity().role == "worker"
    assert not first.outcome
    dctl("worker", "approve", "twin", "--yes")
    assert first.identity().identity != second.identity().identity


def test_the_open_window_lets_everybody_in_until_it_is_closed(cluster: Cluster) -> None:
    early = PendingMachine(cluster, "early")
    said = dctl("enrol", "open", "--for", "10m").stderr.decode()
    assert "(in 10 min" in said or "(in 9 min" in said
    assert early.identity().source == "person"
    assert PendingMachine(cluster, "meanwhile").identity().role == "worker"
    closed = json.loads(dctl("enrol", "open", "--for", "0s", "--json").stdout)
    assert closed == {"open_until": None}
    late = PendingMachine(cluster, "late")
    assert not late.outcome
    dctl("worker", "approve", "late", "--yes")
    late.identity()


@pytest.mark.parametrize("verb", ["revoke", "remove"])
def test_a_revoked_worker_is_cut_off_at_once(
    cluster: Cluster, elsewhere: Elsewhere, lasting: list[subprocess.Popen[bytes]], verb: str
) -> None:
    dctl("join", token("worker"), environment=elsewhere.environment)
    lasting.append(cluster.start_elsewhere("dworker", elsewhere))
    cluster.wait_for(lambda: state_of(cluster, elsewhere.name) == "idle", "worker")
    assert b"needs --yes" in dctl("worker", verb, elsewhere.name, code=2).stderr
    said = dctl("worker", verb, elsewhere.name, "--yes").stderr.decode()
    assert f"is {verb}d" in said
    cluster.wait_for(lambda: state_of(cluster, elsewhere.name) == ("revoked" if verb == "revoke" else ""), "end of it")
    log = cluster.folder / f"{elsewhere.name}.log"
    cluster.wait_for(lambda: "revoked" in log.read_text(), "word of it")


# ---- rotation ----


def test_a_rotation_interrupts_nothing(
    cluster: Cluster, elsewhere: Elsewhere, lasting: list[subprocess.Popen[bytes]]
) -> None:
    old_token = token("read")
    dctl("join", token("admin"), environment=elsewhere.environment)
    before = IdentityFolder(elsewhere.state / "client").load()
    assert before is not None
    waiting = subprocess.Popen(
        [sys.executable, "-m", "dctl", "submit", "needy", "--data", "x", "--wait"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | elsewhere.environment,
    )
    with Client(cluster.socket) as client:
        cluster.wait_for(lambda: any(job.state == "queued" for job in client.jobs()), "job")
    rotated = dctl("ca", "rotate", "--overlap", "1h")
    new = json.loads(cluster.endpoint.read_text())["cluster"]
    assert new not in before.clusters
    assert f"cluster  {new}" in rotated.stdout.decode()
    assert "until" in rotated.stdout.decode()
    assert b"Make new ones before" in rotated.stderr

    def followed() -> bool:
        after = IdentityFolder(elsewhere.state / "client").load()
        return after is not None and after.clusters == [new, *before.clusters]

    # The one that waits, and nobody else, has written it.
    cluster.wait_for(followed, "renewal by the command that waits")
    assert waiting.poll() is None
    cluster.cancel_all()
    _out, said = waiting.communicate(timeout=BOUND_S)
    assert (waiting.returncode, b"away" in said) == (1, False), said
    # A token of before, and one of now.
    for number, text in enumerate((old_token, token("read"))):
        other = Elsewhere(elsewhere.state.parent, f"later-{number}")
        dctl("join", text, environment=other.environment)
        dctl("status", environment=other.environment)
    dctl("status", environment=elsewhere.environment)


# ---- how it looks ----


@pytest.mark.parametrize("columns", [60, 100])
def test_the_lists_fit_a_terminal(cluster: Cluster, columns: int) -> None:
    machine = PendingMachine(cluster, f"room-with-a-long-name-{columns}")
    token("submit")
    try:
        for arguments in (("token", "list"), ("worker", "list")):
            terminal = Terminal(*arguments, columns=columns)
            assert terminal.end() == 0
            plain = Terminal(*arguments, columns=columns, NO_COLOR="1")
            assert plain.end() == 0
            assert "\x1b" in terminal.text
            assert "\x1b" not in plain.text
        assert machine.words[0] in plain.text
    finally:
        dctl("worker", "approve", f"room-with-a-long-name-{columns}", "--yes")
        machine.identity()


# ---- what must never be seen ----


def test_no_token_is_in_a_log_or_an_argument(cluster: Cluster, elsewhere: Elsewhere) -> None:
    text = token("submit", "--uses", "1")
    dctl("join", "-", stdin=text.encode(), environment=elsewhere.environment)
    dctl("join", "-", stdin=text.encode(), code=4, environment=elsewhere.environment)
    secret = text.split("-")[2]
    assert secret not in cluster.log()
    journal = b"".join(path.read_bytes() for path in (cluster.folder / "state/dcoord").glob("journal*"))
    assert secret.encode() not in journal
    assert parse_token(text).secret not in journal
