"""Who is sent away is gone within a second, with everything it had; and a certificate ends when it says so."""

import contextlib
import http.client
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509

from demo.cluster import wait_until
from districomp import keys, tls
from districomp.identity import Identity
from districomp.messages import (
    Ack,
    AskGrant,
    Assign,
    Enrol,
    Enrolled,
    Goodbye,
    Granted,
    Refused,
    Renew,
    Reports,
    Started,
    Welcome,
)
from districomp.model import task_text
from districomp.tokens import parse_token
from tests.integration.trustpeers import (
    LIMIT_S,
    Site,
    TlsPeer,
    advertised,
    call,
    client,
    enrol,
    fetch,
    guest,
    hello,
    joined,
    journal,
)
from tests.priority import sharing, timed

CUT_S = 1.0
"""How soon a live connection is to be cut, where nobody else uses the processors."""
LARGE = b"large" * 20_000


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Site(tmp_path / "site", lease="60s") as started:
        started.start_coordinator()
        yield started


def by_worker(site: Site, identity: Identity) -> None:
    with site.client() as own:
        own.admin.revoke(identity.identity)


def by_removal(site: Site, identity: Identity) -> None:
    with site.client() as own:
        own.admin.revoke(identity.identity, remove=True)


def by_token(site: Site, identity: Identity) -> None:
    with site.client() as own:
        (token,) = [row for row in own.admin.tokens() if row.used]
        own.admin.revoke_token(token.id)


def report(assign: Assign, result: bytes) -> Reports:
    return Reports(
        time.monotonic_ns(), assign.job, [assign.lease], assign.indexes, ended=[time.time()], results=[result]
    )


def is_cut_in_time(peer: TlsPeer, act: Callable[[], object]) -> bool:
    """Whether the connection is over soon after the order."""
    with timed() as took:
        act()
        assert peer.expect(Goodbye).code == "revoked"
        assert peer.is_closed()
    print(f"cut {took.s * 1000:.0f} ms after the order, {took.alone_s * 1000:.0f} ms of a machine of its own")
    return took.alone_s < CUT_S


@pytest.mark.parametrize("revoke", [by_worker, by_removal, by_token], ids=lambda one: one.__name__)
def test_a_live_connection_is_cut_and_everything_of_it_is_void(
    site: Site, revoke: Callable[[Site, Identity], None]
) -> None:
    identity = enrol(site, name="w1")
    with joined(site, identity) as peer, site.client() as own:
        job = own.submit("shell", params={"argv": ["cat"]}, data=LARGE).number
        assign = peer.expect(Assign)
        task = f"/tasks/{task_text(job, 0)}"
        (carried,) = assign.grants
        peer.send(AskGrant(1, "PUT", f"/blobs/{'0' * 64}", assign.lease), Started([assign.lease], [time.time()]))
        asked = peer.expect(Granted).grant
        assert fetch(site, task, grant=carried)[0] == 200

        assert is_cut_in_time(peer, lambda: revoke(site, identity))

        # Its grants and its certificate, at once, on the data port; the second of grace is for the way there.
        with timed() as took:
            wait_until(lambda: fetch(site, task, grant=carried)[0] in (401, 403), "the end of its grant")
        assert took.alone_s < CUT_S
        assert fetch(site, f"/blobs/{'0' * 64}", method="PUT", grant=asked, body=b"x")[0] in (401, 403)
        assert fetch(site, "/api/v1/status", identity)[0] in (401, 403)

        # What it had goes to another; what it says is not heard.
        other = enrol(site, name="w2")
        with joined(site, other) as second:
            again = second.expect(Assign)
            assert (again.job, again.indexes) == (job, [0])
            with call(site, identity) as late:
                late.send(hello(identity.identity), report(assign, b"too late"))
                assert late.goodbye().code == "revoked"
            second.send(report(again, b"in time"))
            second.expect(Ack)
            own.wait([job], LIMIT_S)
            assert fetch(site, f"/results/{task_text(job, 0)}", enrol(site, "admin"))[1] == b"in time"

    refused_for_good(site, identity)
    site.kill_coordinator()
    site.start_coordinator()
    refused_for_good(site, identity)


def refused_for_good(site: Site, identity: Identity) -> None:
    with call(site, identity) as peer:
        peer.send(hello(identity.identity))
        assert peer.goodbye().code == "revoked"
    status, body = fetch(site, "/api/v1/status", identity)
    assert status in (401, 403), body
    with call(site, identity) as peer:
        # It cannot prolong itself either.
        peer.send(Renew(1, keys.new_key().csr))
        assert peer.goodbye().code in ("protocol", "revoked")


def test_what_was_said_together_with_the_revocation_does_not_count(site: Site) -> None:
    """A report that is on its way when the order is carried out."""
    identity = enrol(site, name="w1")
    with joined(site, identity) as peer, site.client() as own:
        job = own.submit("shell", params={"argv": ["true"]}).number
        assign = peer.expect(Assign)
        own.admin.revoke(identity.identity)
        before = journal(site)["outcomes"]
        with contextlib.suppress(OSError):
            peer.send(report(assign, b"too late"))
        assert peer.goodbye().code == "revoked"
        assert journal(site)["outcomes"] == before
        assert own.task(job, 0).state == "queued"


def test_a_connection_to_the_data_port_that_is_open_is_no_way_in(site: Site) -> None:
    from tests.integration.trustpeers import context_of
    from tests.integration.weblab import SecureConnection

    identity = enrol(site, "admin", name="alice")
    connection = SecureConnection(site.data[1], context_of(identity), tls.server_name(identity.cluster))
    with contextlib.closing(connection), site.client() as own:
        assert ask(connection) == 200
        (token,) = own.admin.tokens()
        own.admin.revoke_token(token.id)
        with timed() as took:
            wait_until(lambda: ask(connection) in (0, 401, 403), "its end")
        assert took.alone_s < CUT_S


def ask(connection: http.client.HTTPConnection) -> int:
    try:
        connection.request("GET", "/api/v1/jobs")
        with connection.getresponse() as response:
            response.read()
            return response.status
    except (OSError, http.client.HTTPException):
        return 0


def test_a_revoked_token_lets_nobody_in_and_sends_clients_away(site: Site) -> None:
    with site.client() as own:
        made = own.admin.create_token("submit", 3600.0)
        assert isinstance(made.token, str)
        identity = enrol(site, "submit", token=made.token, name="alice")
        with client(site, identity) as peer:
            assert is_cut_in_time(peer, lambda: own.admin.revoke_token(made.id))
    for _ in range(2):
        with guest(site) as peer:
            peer.send(Enrol(1, "submit", keys.new_key().csr, parse_token(made.token).secret, "", "eve"))
            assert peer.expect(Refused).code == "token_revoked"
        site.kill_coordinator()
        site.start_coordinator()


def test_a_real_worker_is_sent_away_and_another_does_its_work(tmp_path: Path) -> None:
    with Site(tmp_path / "site") as site:
        site.start_coordinator()
        with advertised(site.id, site.name, site.control):
            site.far_worker("first", token=site.token("worker"))
            wait_until(lambda: site.worker_state("first") == "idle", "the first to join")
            gate = tmp_path / "gate"
            job = site.submit(["sh", "-c", f"until [ -e {gate} ]; do sleep 0.05; done"])
            wait_until(lambda: site.worker_state("first") == "busy", "it to work")
            second = site.far_worker("second", token=site.token("worker"))
            wait_until(lambda: site.worker_state("second") == "idle", "the second to join")
            begun = time.monotonic()
            with site.client() as own:
                own.admin.revoke("first")
            wait_until(lambda: "lost the coordinator" in site.workers["first"].log_text(), "its end")
            cut_s = time.monotonic() - begun
            wait_until(lambda: site.worker_state("second") == "busy", "its task to go elsewhere")
            print(f"cut after {cut_s * 1000:.0f} ms, elsewhere after {(time.monotonic() - begun) * 1000:.0f} ms")
            gate.touch()
            site.wait_done(job)
            assert second.returncode is None
            assert site.worker_state("first") == "revoked"
            # It says so, and does not come back by itself; given a new token it does.
            assert "was revoked" in site.workers["first"].log_text()


# ---- certificates that end ----


def end_of(certificate: bytes) -> float:
    """When it ends, in Unix seconds."""
    return x509.load_der_x509_certificate(certificate).not_valid_after_utc.timestamp()


def test_certificates_are_renewed_before_they_end_and_cut_off_if_not(tmp_path: Path) -> None:
    """Several lifetimes, while tasks run: a real worker and a real client notice nothing, by hand one is cut off in time."""
    lifetime_s = 10.0
    with Site(tmp_path / "site", yaml=f"certificates: {{lifetime: {lifetime_s:g}s}}\n", lease="60s") as site:
        site.start_coordinator()
        with advertised(site.id, site.name, site.control):
            worker = site.far_worker("far", slots=2, token=site.token("worker", uses=1))
            wait_until(lambda: site.worker_state("far") == "idle", "it to join", LIMIT_S)
            idle, busy = enrol(site, name="byhand"), enrol(site, name="renews")
            begun = time.monotonic()
            # Two by hand, which take no tasks because they do not say what they hold.
            with call(site, idle) as peer, call(site, busy) as other, site.client() as own:
                for hand, identity in ((peer, idle), (other, busy)):
                    hand.tls.settimeout(LIMIT_S)
                    hand.send(hello(identity.identity))
                    hand.expect(Welcome)
                job = own.submit("shell", params={"argv": ["sleep", "0.2"]}, range=range(200)).number
                other.send(Renew(1, keys.new_key().csr))
                renewed = other.expect(Enrolled)
                assert renewed.renew_s > lifetime_s / 2
                said = peer.expect(Goodbye)
                late_s = time.time() - end_of(tls.from_pem(idle.certificate)[0])
                print(f"cut off {late_s:.1f} s after the end of a certificate of {lifetime_s:g} s")
                assert said.code == "expired"
                assert peer.is_closed()
                assert -2 < late_s < lifetime_s * sharing(), "in time, not before"
                with call(site, idle) as again, contextlib.suppress(OSError):
                    again.send(hello(idle.identity))
                    assert again.tls.recv(1) == b"", "its certificate does not get it in any more"
                # The one that had renewed outlives the first certificate and ends with the second.
                assert other.expect(Goodbye).code == "expired"
                assert -2 < time.time() - end_of(renewed.certificate) < lifetime_s * sharing()
                own.wait([job], 2 * LIMIT_S)
            wait_until(lambda: worker.log_text().count("the certificate is renewed") >= 3, "three renewals", LIMIT_S)
            print(
                f"{worker.log_text().count('the certificate is renewed')} renewals in {time.monotonic() - begun:.0f} s"
            )
            assert worker.log_text().count("joined ") == 1, "one connection all the time"
            assert "lost the coordinator" not in worker.log_text()
            site.wait_done(site.submit(["true"]))
