"""A new authority under load: nobody who is there notices, what is old works until the overlap ends, and no longer."""

import contextlib
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.cluster import Process, wait_until
from districomp import keys, tls
from districomp.errors import DistricompError, TrustError
from districomp.identity import Identity, IdentityFolder
from districomp.messages import Authorities, Enrolled, Goodbye, Query, Renew, Reply, Welcome
from districomp.tokens import cluster_id, parse_token
from tests.integration.trustpeers import LIMIT_S, Site, TlsPeer, authorities, call, client, enrol, hello, join_by

HOUR_S = 3600.0


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """It advertises by itself: who looks for a former id must find it."""
    with Site(tmp_path / "site", advertise=True, lease="30s") as started:
        started.start_coordinator()
        yield started


def rotate(site: Site, overlap_s: float) -> str:
    """The new id."""
    with site.client() as own:
        return own.admin.rotate_authority(overlap_s).cluster


def identity_of(site: Site, name: str) -> Identity | None:
    return IdentityFolder(site.folder / name / "state" / "dworker" / "identity").load()


def follows(site: Site, name: str, new: str) -> bool:
    identity = identity_of(site, name)
    return identity is not None and identity.cluster == new


def working(site: Site, *names: str) -> list[Process]:
    """Workers that have joined."""
    workers = [site.far_worker(name, token=site.token("worker")) for name in names]
    for name in names:
        wait_until(lambda name=name: site.worker_state(name) in ("idle", "busy"), f"{name} to join", LIMIT_S)  # type: ignore[misc]
    return workers


def are_undisturbed(workers: list[Process]) -> bool:
    return all(one.log_text().count("joined ") == 1 and "lost the coord" not in one.log_text() for one in workers)


def joins(site: Site, token: str) -> Identity:
    return join_by(site.control, token)


# ---- an overlap ----


def test_nothing_that_is_connected_notices(site: Site) -> None:
    old = site.id
    workers = working(site, "one", "two")
    alice, hand = enrol(site, "submit", name="alice"), enrol(site, name="hand")
    with client(site, alice) as asking, call(site, hand) as peer, site.client() as own:
        # It takes no tasks, because it does not say what it holds.
        peer.send(hello(hand.identity))
        peer.expect(Welcome)
        job = own.submit("shell", params={"argv": ["sleep", "0.05"]}, range=range(120)).number
        wait_until(lambda: own.document(job).counts.done > 10, "it to be under way", LIMIT_S)
        new = rotate(site, HOUR_S)
        assert new not in ("", old)
        for one in (asking, peer):
            told = one.expect(Authorities)
            assert [cluster_id(authority) for authority in told.authorities] == [new, old]
        asking.send(Query(1, "status"), Renew(2, keys.new_key().csr))
        assert asking.expect(Reply).last
        assert asking.expect(Enrolled).role == "submit"
        for name in ("one", "two"):
            wait_until(lambda name=name: follows(site, name, new), f"{name} to renew", LIMIT_S)  # type: ignore[misc]
        (document,) = own.wait([job], LIMIT_S)
        assert (document.counts.done, document.tasks) == (120, 120)
        assert all(len(task.attempts) == 1 for task in own.tasks(job)), "none was lost and run again"
        assert are_undisturbed(workers)
        assert site.id == new


def test_what_is_old_joins_during_the_overlap(site: Site) -> None:
    """A token that was printed before, and an image that knows the old id: both are found by mDNS under that."""
    old, token = site.id, site.token("worker")
    new = rotate(site, HOUR_S)
    wait_until(lambda: site.id == new, "endpoint.json")
    site.far_worker("printed", token=token)
    site.far_worker("image", settings=f"cluster: {old}\n")
    wait_until(lambda: site.worker_state("printed") == "idle", "the token", LIMIT_S)
    wait_until(lambda: site.worker_state("image") == "pending", "the image", LIMIT_S)
    with site.client() as own:
        (words,) = [one.words for one in own.workers() if one.name == "image"]
        assert isinstance(words, str)
        wait_until(lambda: words in site.workers["image"].log_text(), "the same on both sides")
        own.admin.admit("image", words)
    wait_until(lambda: site.worker_state("image") == "idle", "the image to be let in", LIMIT_S)
    for name in ("printed", "image"):
        assert follows(site, name, new)
        identity = identity_of(site, name)
        assert identity is not None
        assert identity.pin == old


def test_a_second_rotation_within_the_overlap(site: Site) -> None:
    workers = working(site, "one")
    first, token = site.id, site.token("worker")
    before = enrol(site, name="before")
    second = rotate(site, HOUR_S)
    between = site.token("worker")
    third = rotate(site, HOUR_S)
    assert [cluster_id(one) for one in authorities(site.control)] == [third, second, first]
    wait_until(lambda: follows(site, "one", third), "it to follow", LIMIT_S)
    for old in (token, between):
        assert joins(site, old).clusters == [third, second, first]
    with call(site, before) as peer:
        peer.send(hello(before.identity))
        peer.expect(Welcome)
    site.far_worker("late", token=token)
    wait_until(lambda: site.worker_state("late") == "idle", "the oldest token", LIMIT_S)
    assert are_undisturbed(workers)


# ---- its end ----


def test_after_the_overlap_the_old_is_refused_and_who_was_here_goes_on(site: Site) -> None:
    old, token = site.id, site.token("worker")
    workers = working(site, "one")
    careless = enrol(site, name="careless")
    with call(site, careless) as peer:
        peer.send(hello(careless.identity))
        peer.expect(Welcome)
        job = site.submit(["sleep", "0.1"], 60)
        new = rotate(site, 3.0)
        begun = time.monotonic()
        assert joins(site, token).cluster == new
        said = peer.expect(Goodbye)
        print(f"cut {time.monotonic() - begun:.1f} s after a rotation with an overlap of 3 s")
        assert said.code == "expired", "it was told and did not renew"
        assert peer.is_closed()
    wait_until(lambda: [cluster_id(one) for one in authorities(site.control)] == [new], "the end of the old", LIMIT_S)
    with pytest.raises(TrustError, match=f"another cluster, .*{new}.*, not {old}"):
        joins(site, token)
    with pytest.raises(ssl.SSLCertVerificationError):
        call(site, careless)
    with contextlib.closing(call_in_spite(site, careless)) as peer, contextlib.suppress(OSError):
        peer.send(hello(careless.identity))
        assert peer.tls.recv(1) == b"", "a certificate of the old authority is let in"
    site.wait_done(job)
    assert are_undisturbed(workers)
    site.kill_coordinator()
    site.start_coordinator()
    site.wait_done(site.submit(["true"]))
    with pytest.raises(TrustError):
        joins(site, token)


def call_in_spite(site: Site, identity: Identity) -> TlsPeer:
    """As `call`, believing whoever is there."""
    context = tls.unverified_context()
    tls.load_chain(context, identity.certificate, identity.key)
    return TlsPeer(site.control, context, tls.server_name(site.id))


# ---- killed meanwhile ----


def test_a_coordinator_that_is_killed_around_a_rotation_is_still_believed(site: Site) -> None:
    """At any moment there is one authority that everybody can follow: the old one with its token, or both."""
    token = site.token("worker")
    working(site, "one")
    seen = {site.id}
    for delay_s in (0.0, 0.004, 0.008, 0.016, 0.05):
        rotating = threading.Thread(target=_rotate_if_it_lives, args=(site,))
        rotating.start()
        time.sleep(delay_s)
        site.kill_coordinator()
        rotating.join(LIMIT_S)
        site.start_coordinator()
        now = site.id
        seen.add(now)
        site.wait_done(site.submit(["true"]))
        wait_until(lambda now=now: follows(site, "one", now), "the worker to follow", LIMIT_S)  # type: ignore[misc]
        assert joins(site, token).cluster == now
    print(f"{len(seen) - 1} of 5 rotations were there after the kill")
    identity = identity_of(site, "one")
    assert identity is not None
    assert identity.pin == parse_token(token).cluster


def _rotate_if_it_lives(site: Site) -> None:
    with contextlib.suppress(DistricompError):
        rotate(site, HOUR_S)
