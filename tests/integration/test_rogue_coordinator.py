"""Somebody claims to be the cluster's coordinator: it gets no connection past the handshake, no secret, and has nothing run.

Each liar is alone at first, so that the worker must try it, and then beside the real one, which is found all the same.
"""

import contextlib
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dcoord.authority import Authority
from demo.cluster import Process, wait_until
from districomp import tls
from districomp.messages import HelloGuest
from districomp.tokens import parse_token
from tests.integration.tlslab import SERVER, dns, imitation
from tests.integration.trustliars import MARK, Liar, Relay, Replayer
from tests.integration.trustpeers import LIMIT_S, Site, advertised, authorities, enrol

NAME = "rogue-tests"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """The real one, which does not advertise: the test does."""
    with Site(tmp_path / "real", name=NAME) as real:
        real.start_coordinator()
        yield real


# ---- liars that are written by hand ----


def with_an_authority_of_its_own(site: Site, folder: Path) -> Liar:
    own = Authority.open(folder / "own", NAME)
    return Liar(own.server_context(), site.id, own.authorities, folder)


def with_a_copy_of_the_authority(site: Site, folder: Path) -> Liar:
    """Everything that can be copied is: names, numbers, key identifiers. It shows the real certificate when asked."""
    real = authorities(site.control)
    copied = imitation(real[0])
    certificate, key = copied.make(dns(site.id), SERVER)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_chain(context, tls.to_pem([certificate]), key)
    return Liar(context, site.id, real, folder)


def with_a_workers_certificate(site: Site, folder: Path) -> Liar:
    member = enrol(site)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_chain(context, member.certificate, member.key)
    return Liar(context, site.id, member.authorities, folder)


def in_plain(site: Site, folder: Path) -> Liar:
    return Liar(None, site.id, authorities(site.control), folder)


def with_what_the_real_one_said(site: Site, folder: Path) -> Liar:
    """A recorded connection, from the first byte to a Welcome's."""
    with Relay(site.control) as relay:
        authorities(relay.where)
        wait_until(lambda: relay.down and relay.down[0], "something to replay")
    return Replayer(bytes(relay.down[0]), folder)


LIARS = [
    with_an_authority_of_its_own,
    with_a_copy_of_the_authority,
    with_a_workers_certificate,
    in_plain,
    with_what_the_real_one_said,
]


def has_told_nothing(liar: Liar, token: str) -> bool:
    """Whoever looks for an authority greets; nothing else is ever said."""
    secret = parse_token(token).secret
    if any(secret in data or token.encode() in data for data in liar.heard):
        return False
    return all(isinstance(message, HelloGuest) for message in liar.messages())


@pytest.mark.parametrize("make", LIARS, ids=lambda make: make.__name__)
def test_a_liar_gets_nothing_and_keeps_nobody_from_the_real_one(
    site: Site, tmp_path: Path, make: Callable[[Site, Path], Liar]
) -> None:
    with contextlib.ExitStack() as stack:
        liar = stack.enter_context(make(site, tmp_path))
        stack.enter_context(advertised(site.id, NAME, liar.where))
        token = site.token("worker")
        before = liar.tries
        worker = site.far_worker("far", token=token)
        wait_until(lambda: liar.tries > before, "the worker to try the liar with its token", LIMIT_S)
        wait_until(lambda: f"127.0.0.1:{liar.where[1]}" in worker.log_text(), "what it makes of it", LIMIT_S)
        assert site.worker_state("far") == ""

        with advertised(site.id, NAME, site.control):
            site.wait_done(site.submit(["true"]))
            assert site.worker_state("far") == "idle"

        # Now it has a certificate, and the real one is gone.
        enrolled = sum(map(len, liar.told()))
        refused = worker.log_text().count("not connecting: ")
        site.kill_coordinator()
        wait_until(lambda: worker.log_text().count("not connecting: ") > refused, "a connection to the liar", LIMIT_S)
        wait_until(lambda: len(liar.heard) == liar.tries, "the end of that")
        assert sum(map(len, liar.told())) == enrolled, "a worker with a certificate said something to a liar"

        site.start_coordinator()
        with advertised(site.id, NAME, site.control):
            site.wait_done(site.submit(["true"]))
        assert has_told_nothing(liar, token)
        assert not liar.evidence.exists()


# ---- real ones ----


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Site]:
    """A second dcoord of the same name, with a job that anybody who joins it would run."""
    with Site(tmp_path / "other", name=NAME) as second:
        second.start_coordinator()
        second.submit(["touch", str(tmp_path / MARK)])
        yield second


def is_untouched(other: Site, folder: Path) -> bool:
    with other.client() as client:
        (job,) = client.jobs()
        return job.state == "queued" and not client.workers() and not (folder / MARK).exists()


def test_a_real_one_of_the_same_name_is_another_cluster(site: Site, other: Site, tmp_path: Path) -> None:
    with advertised(other.id, NAME, other.control):
        worker = site.far_worker("far", token=site.token("worker"), settings=f"cluster: {NAME}\n")
        wait_until(lambda: "is not found by mDNS" in worker.log_text(), "the worker to look in vain", LIMIT_S)
        with advertised(site.id, NAME, site.control):
            site.wait_done(site.submit(["true"]))
        # It has an identity, its coordinator is gone, and that of the same name is there.
        site.kill_coordinator()
        wait_until(lambda: "lost the coordinator" in worker.log_text(), "the end of the connection", LIMIT_S)
        site.start_coordinator()
        with advertised(site.id, NAME, site.control):
            site.wait_done(site.submit(["true"]))
    assert is_untouched(other, tmp_path)
    assert f":{other.control[1]}" not in worker.log_text(), "it was not even tried"


def test_a_real_one_that_advertises_the_others_id(site: Site, other: Site, tmp_path: Path) -> None:
    with advertised(site.id, NAME, other.control):
        worker = site.far_worker("far", token=site.token("worker"))
        wait_until(lambda: f"another cluster, {NAME} ({other.id})" in worker.log_text(), "its refusal", LIMIT_S)
        with advertised(site.id, NAME, site.control):
            site.wait_done(site.submit(["true"]))
        site.kill_coordinator()
        refused = f"127.0.0.1:{other.control[1]}: shows a certificate that is not this cluster's"
        wait_until(lambda: refused in worker.log_text(), "its refusal with a certificate", LIMIT_S)
        wait_until(lambda: _refused_by(other), "the other one to notice", LIMIT_S)
        site.start_coordinator()
        with advertised(site.id, NAME, site.control):
            site.wait_done(site.submit(["true"]))
    assert is_untouched(other, tmp_path)


def _refused_by(other: Site) -> bool:
    return "the control port refuses 127.0.0.1:" in other.log and "the handshake " in other.log


# ---- whoever stands between ----


def test_whoever_stands_between_sees_no_secret_and_changes_nothing(site: Site) -> None:
    token = site.token("worker")
    with Relay(site.control) as relay, advertised(site.id, NAME, relay.where):
        worker: Process = site.far_worker("far", token=token)
        site.wait_done(site.submit(["echo", "of the task"]))
        assert worker.returncode is None
        seen = b"".join(map(bytes, [*relay.up, *relay.down]))
    assert len(relay.up) >= 3, "asked, enrolled, joined"
    for secret in (parse_token(token).secret, token.split("-")[2].encode(), b"of the task"):
        assert secret not in seen
