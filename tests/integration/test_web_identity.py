"""Certificates at dcoord-web's data port, and trust that changes while it serves: revocation, rotation, none yet."""

import contextlib
import http.client
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dcoord.authority import Authority
from dcoord.blobs import BlobStore
from districomp import tls
from districomp.messages import WebTrust
from districomp.model import Blob
from tests.integration.trustlab import END_S, Lab, bearer, ended, refused_handshake, said, signed
from tests.integration.weblab import (
    WAIT_S,
    Party,
    SecureConnection,
    Site,
    exchange,
    job_records,
    site,
    until,
)
from tests.priority import timed


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with site(tmp_path_factory.mktemp("trust"), secure=True) as it:
        yield Lab(it)


# ---- certificates ----


def test_another_authoritys_certificate_is_refused_in_the_handshake(lab: Lab, tmp_path: Path) -> None:
    stranger = Authority.open(tmp_path / "other", "room-12")
    ours = lab.authority.authorities
    assert refused_handshake(lab.site, signed(stranger, "admin", "a-ann", trusts=ours))
    assert not refused_handshake(lab.site, signed(lab.authority, "admin", "a-ann"))
    assert refused_handshake(lab.site, Party(stranger.authorities)), "and the client does not believe us"
    assert refused_handshake(lab.site, Party(ours), "dcoord.other.districomp.internal")
    until(lambda: "its certificate is refused" in lab.site.log.read_text(), "word of it")


def test_an_expired_certificate_is_refused_in_the_handshake_and_on_a_live_connection(lab: Lab, tmp_path: Path) -> None:
    now = time.time()
    folder = lab.site.state / "dcoord" / "trust"
    old = Authority.open(folder, "room-12", 86400.0, clock=lambda: now - 2 * 86400)
    assert refused_handshake(lab.site, signed(old, "admin", "a-ann"))
    brief = Authority.open(folder, "room-12", 86400.0, clock=lambda: now - 86400 + 3)
    connection = lab.site.connect(signed(brief, "admin", "a-ann"))
    with contextlib.closing(connection):
        assert exchange(connection, "/api/v1/jobs").status == 200
        over = ended(connection, "/api/v1/jobs")
        assert said(over) == (401, "not_authenticated")


def test_old_tls_and_resumption_are_not_to_be_had(lab: Lab) -> None:
    context = lab.parties["admin"].context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(("127.0.0.1", lab.site.data_port), timeout=WAIT_S) as plain,
        pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(plain, server_hostname=tls.server_name(lab.authority.cluster))
    connection = lab.site.connect(lab.parties["admin"])
    with contextlib.closing(connection):
        exchange(connection, "/healthz")
        assert isinstance(connection.sock, ssl.SSLSocket)
        assert connection.sock.session is None or not connection.sock.session.has_ticket


def test_plain_http_gets_no_answer_from_the_data_port(lab: Lab) -> None:
    with socket.create_connection(("127.0.0.1", lab.site.data_port), timeout=WAIT_S) as peer:
        peer.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            assert peer.recv(1000) == b""


# ---- trust that changes ----


def test_who_is_revoked_is_out_at_once_and_what_is_under_way_ends(tmp_path: Path) -> None:
    with site(tmp_path, secure=True) as it:
        mallory, other = it.party("admin", "mallory"), it.party("admin", "other")
        grant = bearer(it.grant("GET", "/tasks/1.0", "worker", identity="mallory"))
        local = bearer(it.grant("SESSION", "", "admin"))
        big = BlobStore(it.blobs).put_bytes(bytes(40_000_000))
        it.fill_journal(*job_records(1, [b"data", b"x"], [b"result"]))
        live = it.connect(mallory)
        with contextlib.closing(live), downloading(it, mallory, big) as lost, downloading(it, other, big) as kept:
            assert exchange(live, "/api/v1/jobs").status == 200
            assert it.fetch("/tasks/1.0", data=True, **grant).status == 200
            it.coordinator.refused.append("mallory")
            it.coordinator.tell_trust()
            with timed() as took:
                until(
                    lambda: it.fetch("/api/v1/jobs", data=True, party=mallory).status == 403,
                    "a new connection to be refused",
                )
            assert took.alone_s < END_S
            assert said(exchange(live, "/api/v1/jobs")) == (403, "revoked")
            assert said(it.fetch("/tasks/1.0", data=True, **grant)) == (403, "revoked")
            assert it.fetch("/api/v1/jobs", data=True, party=other).status == 200
            assert it.fetch("/api/v1/jobs", data=True, **local).status == 200
            assert said(it.fetch("/api/v1/jobs", data=True, party=mallory, **local)) == (403, "revoked")
            assert rest(lost) < big.size
            assert rest(kept) == big.size


@contextlib.contextmanager
def downloading(it: Site, party: Party, blob: Blob) -> Iterator[http.client.HTTPResponse]:
    connection = it.connect(party)
    with contextlib.closing(connection):
        connection.request("GET", f"/blobs/{blob.sha256.hex()}")
        response = connection.getresponse()
        assert response.status == 200
        yield response


def rest(response: http.client.HTTPResponse) -> int:
    """How many bytes of a body still come."""
    count = 0
    with contextlib.suppress(OSError, http.client.HTTPException):
        while piece := response.read(65536):
            count += len(piece)
    return count


def test_a_rotation_keeps_everybody_until_the_overlap_ends(tmp_path: Path) -> None:
    with site(tmp_path, secure=True) as it:
        assert it.authority is not None
        before = it.authority.authorities
        old = it.party("admin", "old")
        old_name = tls.server_name(it.authority.cluster)
        live = it.connect(old)
        with contextlib.closing(live):
            assert exchange(live, "/api/v1/jobs").status == 200
            it.authority.rotate(3600)
            it.coordinator.tell_trust()
            new = it.party("admin", "new")
            until(lambda: not refused_handshake(it, new), "the new authority's certificates to be taken")
            with contextlib.closing(SecureConnection(it.data_port, old.context(), old_name)) as again:
                assert exchange(again, "/api/v1/jobs", Host=old_name).status == 200
            assert exchange(live, "/api/v1/jobs").status == 200
            assert exchange(live, "/api/v1/jobs", Host=tls.server_name(it.authority.cluster)).status == 200
            certificate, key = it.authority.web_chain()
            newest = [each for each in it.authority.authorities if each not in before]
            it.coordinator.tell_trust(WebTrust(certificate, key, newest, it.authority.grant_key, []))
            over = ended(live, "/api/v1/jobs")
            assert said(over) == (401, "not_authenticated")
            assert refused_handshake(it, Party(it.authority.authorities, *old.parts[1:]))
            with contextlib.closing(it.connect(new)) as connection:
                assert exchange(connection, "/api/v1/jobs").status == 200
                assert exchange(connection, "/api/v1/jobs", Host=old_name).status == 421


def test_nobody_is_let_in_before_it_is_known_whom_to_trust(tmp_path: Path) -> None:
    with site(tmp_path, secure=True, coordinator=False) as it:
        it.coordinator.trusts = False
        it.coordinator.start()
        until(lambda: it.coordinator.hellos, "dcoord-web to be linked")
        assert it.coordinator.hellos[0].data_url == f"https://127.0.0.1:{it.data_port}"
        admin = it.party("admin", "a")
        assert refused_handshake(it, admin)
        assert it.fetch("/stats.json").json()["insecure"] is False
        it.coordinator.tell_trust()
        until(lambda: not refused_handshake(it, admin), "the data port to open")


@pytest.mark.parametrize("broken", ["certificate", "key", "authorities", "grant_key"])
def test_what_cannot_be_used_changes_nothing_and_is_not_told(tmp_path: Path, broken: str) -> None:
    with site(tmp_path, secure=True) as it:
        trust = it.coordinator.trust()
        damage: Any = [b"nonsense"] if broken == "authorities" else b"" if broken == "grant_key" else b"nonsense"
        it.coordinator.tell_trust(msgspec.structs.replace(trust, **{broken: damage}))
        until(lambda: "data port" in it.log.read_text().partition("linked to")[2], "it says so")
        assert it.fetch("/api/v1/jobs", data=True, party=it.party("admin", "a")).status == 200
        assert it.fetch("/api/v1/jobs", data=True, **bearer("x.y")).status == 401
        log = it.log.read_text()
        assert "PRIVATE" not in log
        assert trust.key.decode().splitlines()[1] not in log


@pytest.mark.parametrize("secure", [False, True])
def test_a_coordinator_that_is_not_as_configured_opens_nothing(tmp_path: Path, secure: bool) -> None:
    other = Authority.open(tmp_path / "other", "room-12")
    certificate, key = other.web_chain()
    contrary = (
        WebTrust(b"", b"", [], b"", [])
        if secure
        else WebTrust(certificate, key, other.authorities, other.grant_key, [])
    )
    with site(tmp_path, secure=secure) as it:
        party = it.party("admin", "a") if secure else None
        assert it.fetch("/api/v1/jobs", data=True, party=party).status == 200
        it.coordinator.tell_trust(contrary)
        until(lambda: it.fetch("/api/v1/jobs", data=True, party=party).status == 503, "it closes")
        assert "otherwise" in it.log.read_text()
        it.coordinator.tell_trust()
        until(lambda: it.fetch("/api/v1/jobs", data=True, party=party).status == 200, "it opens again")
