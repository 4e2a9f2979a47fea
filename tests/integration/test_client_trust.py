"""Whom the client believes, how it proves who it is, and how that stays so: with a real authority and real TLS."""

import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from districomp import client_blobs, client_link, client_pool, tls
from districomp.client import Client
from districomp.client_trust import Trust
from districomp.discovery import Advertisement
from districomp.documents import StatusDocument
from districomp.errors import NotAllowedError, TrustError, UnreachableError, UsageError
from districomp.messages import Authorities, Goodbye, Query, Refused, Renew, Submit
from districomp.model import Blob
from tests.integration.client_trustlab import TrustLab, keep, kept, trusted
from tests.integration.clientlab import BOUND_S, DAEMONS, DataPort, in_background, running


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This user's folders: empty ones, and mDNS on loopback alone."""
    for name in ("state", "config", "runtime"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"DISTRICOMP_{name.upper()}_DIR", str(tmp_path / name))
    (tmp_path / "config/dworker.yaml").write_text("discovery: {interfaces: [lo]}\n")
    monkeypatch.delenv("DISTRICOMP_COORDINATOR", raising=False)
    monkeypatch.delenv("DISTRICOMP_TOKEN_FILE", raising=False)
    return tmp_path


@pytest.fixture
def state(home: Path) -> Path:
    return home / "state"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[TrustLab]:
    with trusted(tmp_path / "authority") as server:
        yield server


@pytest.fixture
def joined(lab: TrustLab, state: Path) -> TrustLab:
    """The lab, which this user has joined."""
    keep(state, lab.identity())
    return lab


def status_of(coordinator: str | None = None, **options: object) -> StatusDocument:
    with Client(coordinator, **options) as client:  # type: ignore[arg-type]
        return client.status()


# ---- who is there, and who are we ----


def test_a_client_proves_who_it_is_and_owns_what_it_submits(joined: TrustLab) -> None:
    with Client(joined.address) as client:
        client.submit("d", data="x")
        client.jobs(mine=True)
    assert [(peer.role, peer.name) for peer in joined.peers if peer] == [("submit", "alice@lab")]
    assert [message.user for message in joined.received if isinstance(message, Submit)] == ["alice"]
    assert [message.user for message in joined.received if isinstance(message, Query)] == ["alice"]


@pytest.mark.parametrize("claims", ["nothing", "the id"])
def test_another_coordinator_at_the_address_gets_nothing(joined: TrustLab, tmp_path: Path, claims: str) -> None:
    with trusted(tmp_path / "rogue") as rogue:
        if claims == "the id":
            rogue.cluster = joined.cluster
        with pytest.raises(TrustError, match="is not the coordinator of your cluster") as caught:
            status_of(rogue.address)
        assert rogue.address in str(caught.value)
        rogue.wait_for(lambda: len(rogue.refused) == 1)
        assert (rogue.received, rogue.peers) == ([], [])


def test_the_name_counts_beside_the_authority(lab: TrustLab, tmp_path: Path, state: Path) -> None:
    """An authority that is believed may speak for its own cluster alone."""
    with trusted(tmp_path / "other") as other:
        believed = [*other.authority.authorities, *lab.authority.authorities]
        keep(state, replace(other.identity(), authorities=believed))
        with pytest.raises(TrustError, match=tls.server_name(other.cluster)):
            status_of(lab.address)
        assert lab.received == []
        assert status_of(other.address).name == "lab"


def test_a_worker_cannot_pose_as_the_coordinator(joined: TrustLab) -> None:
    worker = joined.identity("worker")
    context = tls.server_context(worker.certificate, worker.key, joined.authority.authorities)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, pytest.raises(OSError, match="alert"):
            context.wrap_socket(connection, server_side=True).recv(1)

    serving = in_background(serve)
    try:
        with pytest.raises(TrustError, match="not the coordinator of your cluster"):
            status_of(f"127.0.0.1:{listener.getsockname()[1]}")
    finally:
        serving.join(BOUND_S)
        listener.close()


def test_nothing_falls_back_to_a_connection_without_tls(joined: TrustLab) -> None:
    with running(None) as plain:
        address = plain.address.removeprefix("tcp://")
        with pytest.raises(UnreachableError, match=r"does not speak TLS.* tcp://127\.0\.0\.1"):
            status_of(address)
        assert plain.received == []
        assert status_of(plain.address).name == "lab"


def test_without_an_identity_nobody_is_asked(lab: TrustLab) -> None:
    with pytest.raises(TrustError, match=r"dctl join TOKEN.*dctl token create submit"):
        status_of(lab.address)
    assert (lab.peers, lab.refused, lab.received) == ([], [], [])


def test_a_certificate_that_has_expired(tmp_path: Path, state: Path) -> None:
    long_ago = time.time() - 40 * 86400
    with trusted(tmp_path / "authority", lambda: long_ago) as lab:
        keep(state, lab.identity())
        with pytest.raises(TrustError, match=r"expired; join again: dctl join TOKEN"):
            status_of(lab.address)
        assert lab.received == []


def test_a_certificate_of_another_cluster(lab: TrustLab, tmp_path: Path, state: Path) -> None:
    with trusted(tmp_path / "other") as other:
        stranger = replace(other.identity(), authorities=lab.authority.authorities)
    keep(state, stranger)
    with pytest.raises(TrustError, match="refuses our certificate"):
        status_of(lab.address)
    assert lab.received == []


@pytest.mark.parametrize("code", ["revoked", "not_allowed", "expired"])
def test_a_coordinator_that_sends_us_away(joined: TrustLab, code: str) -> None:
    joined.greeting = Goodbye(code, "your certificate was revoked; ask for a token")
    with pytest.raises(NotAllowedError, match="your certificate was revoked"):
        status_of(joined.address)


def test_another_cluster_on_the_way_back(joined: TrustLab, tmp_path: Path) -> None:
    """Somebody else takes the address while the coordinator is away: the command ends, and says nothing to him."""
    with Client(joined.address) as client:
        client.status()
        joined.stop()
        with trusted(tmp_path / "rogue") as rogue:
            rogue.stop()
            rogue._port = joined._port
            rogue.start()
            with pytest.raises(TrustError, match="not the coordinator of your cluster"):
                client.status()
            assert rogue.received == []
    joined.start()


@pytest.mark.parametrize("damage", [b"{", b'{"cluster": "secret-of-the-file"}', b"\xff"])
def test_a_damaged_identity_is_said_without_its_content(lab: TrustLab, state: Path, damage: bytes) -> None:
    keep(state, lab.identity())
    (state / "client/identity.json").write_bytes(damage)
    with pytest.raises(Exception, match="is damaged") as caught:
        status_of(lab.address)
    assert "secret-of-the-file" not in str(caught.value)


# ---- where it is ----


def test_it_is_found_where_it_was_before(joined: TrustLab, state: Path) -> None:
    assert status_of().name == "lab"
    keep(state, replace(kept(state), addresses=[("127.0.0.1", 1)]))
    assert status_of(joined.address).name == "lab"
    assert kept(state).addresses == [joined.where, ("127.0.0.1", 1)]


def test_it_is_found_by_mdns_when_it_has_moved(joined: TrustLab, state: Path) -> None:
    keep(state, replace(kept(state), addresses=[("127.0.0.1", 1)]))
    host, port = joined.where
    what = Advertisement(joined.cluster, "lab", host, port, interfaces=["lo"])
    advertising = subprocess.Popen(
        [sys.executable, "-m", "dcoord.advertise"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(DAEMONS)},
    )
    try:
        assert advertising.stdin is not None
        assert advertising.stdout is not None
        advertising.stdin.write(msgspec.json.encode(what) + b"\n")
        advertising.stdin.flush()
        assert advertising.stdout.readline() == b"registered\n"
        assert status_of().name == "lab"
    finally:
        advertising.communicate(timeout=BOUND_S)
    assert kept(state).addresses[0] == joined.where
    assert status_of().name == "lab"


def test_a_cluster_that_is_nowhere(joined: TrustLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_pool, "FIND_S", 0.3)
    joined.stop()
    try:
        with pytest.raises(UnreachableError, match=r"nobody listens.*DISTRICOMP_COORDINATOR"):
            status_of()
    finally:
        joined.start()


def test_whoever_names_a_plain_coordinator_does_not_get_another(
    joined: TrustLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTRICOMP_COORDINATOR", "tcp://127.0.0.1:1")
    with pytest.raises(UnreachableError):
        status_of()
    assert joined.peers == []


# ---- enrolling by a token file ----


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_a_token_file_lets_a_client_in_at_its_first_use(
    lab: TrustLab, home: Path, state: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    (home / "token").write_text(lab.token() + "\n")
    if how == "environment":
        monkeypatch.setenv("DISTRICOMP_TOKEN_FILE", str(home / "token"))
    options = {"token_file": home / "token"} if how == "argument" else {}
    notices: list[str] = []
    assert status_of(lab.address, on_notice=notices.append, **options).name == "lab"
    assert (kept(state).role, kept(state).addresses) == ("submit", [lab.where])
    assert len(notices) == 1
    assert "joined the cluster lab" in notices[0]
    (home / "token").unlink()
    monkeypatch.delenv("DISTRICOMP_TOKEN_FILE", raising=False)
    assert status_of().name == "lab"
    # The identity, not the token, from then on: one stranger each for the authority and for the request.
    assert [peer.role if peer else None for peer in lab.peers] == [None, None, "submit", "submit"]


def test_a_token_is_told_to_nobody_else(lab: TrustLab, home: Path, tmp_path: Path) -> None:
    with trusted(tmp_path / "rogue") as rogue:
        rogue.cluster = lab.cluster
        (home / "token").write_text(lab.token())
        with pytest.raises(TrustError, match=rogue.address):
            status_of(rogue.address, token_file=home / "token")
        assert {type(message).__name__ for message in rogue.received} == {"HelloGuest"}


def test_a_token_that_is_no_good(lab: TrustLab, home: Path, state: Path) -> None:
    (home / "token").write_text(lab.token(secret=b"x" * 16))
    with pytest.raises(NotAllowedError, match="this token has expired") as caught:
        status_of(lab.address, token_file=home / "token")
    assert lab.token(secret=b"x" * 16).rpartition("-")[2] not in str(caught.value)
    assert not (state / "client").exists()


def test_a_workers_token_is_none_for_a_client(lab: TrustLab, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "token").write_text(lab.token("worker"))
    with pytest.raises(UsageError, match="token for workers"):
        status_of(lab.address, token_file=home / "token")
    monkeypatch.setenv("DISTRICOMP_TOKEN_FILE", str(home / "token"))
    with pytest.raises(TrustError, match="dctl join TOKEN"):
        status_of(lab.address)
    assert lab.received == []


@pytest.mark.parametrize("content", [None, "", "dcs1-secretsecret", "dcs9-a-b", "\xff"])
def test_what_is_no_token_file(lab: TrustLab, home: Path, content: str | None) -> None:
    if content is not None:
        (home / "token").write_text(content)
    with pytest.raises(UsageError, match=f"{home}/token") as caught:
        status_of(lab.address, token_file=home / "token")
    assert "secretsecret" not in str(caught.value)


# ---- renewal and rotation ----


@pytest.mark.parametrize("renew_s", [0.1, 4.0])
def test_a_certificate_that_is_due_is_renewed_by_the_next_command(
    joined: TrustLab, state: Path, renew_s: float
) -> None:
    before = kept(state)
    joined.renew_s = renew_s
    with Client(joined.address) as client:
        assert client.status().name == "lab"
        after = kept(state)
        assert client.status().name == "lab"
    assert after.key != before.key
    assert after.certificate != before.certificate
    assert (after.identity, after.role, after.addresses) == (before.identity, before.role, before.addresses)
    assert sum(isinstance(message, Renew) for message in joined.received) == 1
    joined.renew_s = 1000.0
    assert status_of().name == "lab"
    assert sum(isinstance(message, Renew) for message in joined.received) == 1


def test_a_long_wait_is_not_cut_off_by_the_end_of_its_certificate(
    joined: TrustLab, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_link, "RENEWAL_S", 0.2)
    joined.renew_s = 0.3
    before = kept(state).key
    with Client(joined.address) as client:
        job = client.submit("d", data="x")
        reading = job.results(timeout=BOUND_S)
        # The lab answers Renew only between two requests: let the wait time out into one.
        joined.wait_for(lambda: len(joined.jobs) == 1)
        link = client._pool.take()
        request = link.next_request()
        with pytest.raises(TimeoutError):
            link.receive(request, time.monotonic() + 1.0)
        client._pool.give(link)
        joined.end(1, [0], [b"r"])
        assert [result.read() for result in reading] == [b"r"]
    assert kept(state).key != before
    assert sum(isinstance(message, Renew) for message in joined.received) >= 1


def test_a_renewal_that_is_refused_harms_nobody(joined: TrustLab, state: Path) -> None:
    before = kept(state)
    joined.renew_s = 0.1
    joined.renewal = Refused(1, "degraded", "the disk is full")
    notices: list[str] = []
    assert status_of(joined.address, on_notice=notices.append).name == "lab"
    assert kept(state) == before
    assert "could not be renewed: the disk is full" in notices[0]


def test_after_a_rotation_the_next_command_renews(joined: TrustLab, state: Path) -> None:
    before = kept(state)
    joined.authority.rotate(3600.0)
    assert status_of().name == "lab"
    after = kept(state)
    assert after.authorities == joined.authority.authorities
    assert (len(after.authorities), after.authorities[1:]) == (2, before.authorities)
    joined.authority.rotate(0.0)  # the overlap's end: only the newest is left, which nobody here knows yet
    with pytest.raises(TrustError):
        status_of()
    keep(state, joined.identity())
    assert status_of().name == "lab"


def test_a_rotation_during_a_command_is_followed_at_once(joined: TrustLab, state: Path) -> None:
    with Client(joined.address) as client:
        client.status()
        joined.authority.rotate(3600.0)
        joined.before_next = [Authorities(joined.authority.cluster, "lab", joined.authority.authorities)]
        client.status()
        client.status()
        assert kept(state).authorities == joined.authority.authorities
        assert sum(isinstance(message, Renew) for message in joined.received) == 1


def test_two_clients_that_renew_at_once_leave_one_good_identity(joined: TrustLab, state: Path) -> None:
    joined.renew_s = 0.1
    together = [in_background(lambda: status_of(joined.address)) for _ in range(4)]
    for one in together:
        one.join(BOUND_S)
    joined.renew_s = 1000.0
    assert status_of().name == "lab"


def test_an_identity_that_another_process_wrote_is_used(joined: TrustLab, state: Path) -> None:
    trust = Trust(None, lambda _text: None)
    first = trust.context()
    assert trust.context() is first
    keep(state, joined.identity(name="bob@lab"))
    assert trust.context() is not first


# ---- payloads ----

LARGE = b"0123456789abcdef" * 10_000
DIGEST = hashlib.sha256(LARGE)


@pytest.fixture
def data_port(joined: TrustLab) -> Iterator[DataPort]:
    certificate, key = joined.authority.web_chain()
    port = DataPort(tls.server_context(certificate, key, joined.authority.authorities))
    joined.data_url = port.url
    try:
        yield port
    finally:
        port.close()


def test_payloads_travel_by_grants(joined: TrustLab, data_port: DataPort) -> None:
    path = f"/blobs/{DIGEST.hexdigest()}"
    with Client(joined.address) as client:
        job = client.submit("d", items=[LARGE])
        data_port.blobs["1.0"] = LARGE
        joined.end(1, [0], [Blob(DIGEST.digest(), len(LARGE))])
        assert [result.read() for result in job.results()] == [LARGE]
    assert data_port.authorisations == [f"Bearer 1 PUT {path}"] * 2 + ["Bearer 2 GET /results/1.0"]
    assert set(data_port.hosts) == {tls.server_name(joined.cluster)}


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]"])
def test_a_data_port_on_every_address_is_where_the_coordinator_is(
    joined: TrustLab, data_port: DataPort, host: str
) -> None:
    joined.data_url = data_port.url.replace("127.0.0.1", host)
    with Client(joined.address) as client:
        client.submit("d", items=[LARGE])
    assert data_port.blobs == {DIGEST.hexdigest(): LARGE}


def test_a_grant_that_is_not_taken_is_asked_for_anew_once(joined: TrustLab, data_port: DataPort) -> None:
    with Client(joined.address) as client:
        data_port.faults = [404, 401]
        client.submit("d", items=[LARGE])
        assert data_port.blobs == {DIGEST.hexdigest(): LARGE}
        assert len({text.split()[1] for text in data_port.authorisations}) == 2
        data_port.blobs.clear()
        data_port.faults = [404, 403, 404, 403, 404, 200]
        with pytest.raises(client_blobs.DataPortError, match="403 a fault of the lab"):
            client.submit("d", items=[LARGE])
    assert data_port.faults == [404, 200]


def test_a_data_port_of_somebody_else_gets_nothing(joined: TrustLab, tmp_path: Path) -> None:
    with trusted(tmp_path / "rogue") as rogue:
        certificate, key = rogue.authority.web_chain()
        port = DataPort(tls.server_context(certificate, key, rogue.authority.authorities))
    joined.data_url = port.url
    try:
        with Client(joined.address) as client, pytest.raises(TrustError, match="cannot prove"):
            client.submit("d", items=[LARGE])
        assert (port.requests, port.blobs) == ([], {})
    finally:
        port.close()


def test_a_data_port_without_tls_gets_nothing_of_a_cluster_with_it(joined: TrustLab) -> None:
    port = DataPort()
    joined.data_url = port.url
    try:
        with Client(joined.address) as client, pytest.raises(TrustError, match="has no TLS"):
            client.submit("d", items=[LARGE])
        assert port.requests == []
    finally:
        port.close()


# ---- what it costs, and what leaks ----

HEAVY = ("cryptography", "asyncio", "zeroconf", "http.client", "yaml", "rich")
LOADED = f"""
import sys
from dctl.__main__ import run
code = run(["status"])
print([name for name in {HEAVY!r} if name in sys.modules], code, file=sys.stderr)
"""


@pytest.mark.parametrize("by", ["tls", "socket"])
def test_a_command_that_only_asks_imports_nothing_heavy(joined: TrustLab, home: Path, by: str) -> None:
    environ = {"PYTHONPATH": str(DAEMONS)}
    with running(home / "runtime/control.sock" if by == "socket" else None):
        ran = subprocess.run(
            [sys.executable, "-c", LOADED], capture_output=True, text=True, timeout=BOUND_S, env=os.environ | environ
        )
    assert ran.stderr == "[] 0\n"


def test_it_works_beside_a_running_event_loop(lab: TrustLab, home: Path) -> None:
    """A notebook has one in the thread that calls us."""
    import asyncio

    (home / "token").write_text(lab.token())

    async def cell() -> str:
        return status_of(lab.address, token_file=home / "token").name

    assert asyncio.run(cell()) == "lab"
    assert not [thread for thread in threading.enumerate() if thread.name == "enrolment"]
