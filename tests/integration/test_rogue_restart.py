"""Workers that were let in, after a restart of the coordinator: it does not know who had what, and believes nobody without proof."""

import contextlib
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from districomp.messages import Ack, Inventory, Message, Reports, Stop
from districomp.model import task_text
from tests.integration.daemonlab import proof
from tests.integration.trustpeers import NOTHING_HELD, Site, Two, call, enrol, fetch, hello


def test_a_worker_that_never_had_a_task_cannot_report_it_as_one_of_before_a_restart(tmp_path: Path) -> None:
    """Neither what was queued before, nor what came after."""
    with Site(tmp_path / "one", lease="60s") as site:
        site.start_coordinator()
        rogue = enrol(site)
        old = site.submit(["true"], 1)
        site.kill_coordinator()
        site.start_coordinator()
        new = site.submit(["true"], 3)
        with call(site, rogue) as peer:
            peer.send(hello(rogue.identity), *forged(site, old, new))
            peer.send(Inventory(new, [3], [1], [1], [None], False), NOTHING_HELD)
            peer.expect(Stop)
            peer.heard_before_heartbeat()
            with site.client() as own:
                assert [own.document(job).counts.done for job in (old, new)] == [0, 0]


@pytest.mark.parametrize("shown", ["none", "made up", "the other's"])
def test_after_a_restart_it_cannot_claim_what_another_had(tmp_path: Path, shown: str) -> None:
    """Who has which lease is not on disk: each worker proves its own, and the other's proof is none."""
    with Site(tmp_path / "one", lease="60s") as site:
        site.start_coordinator()
        with contextlib.ExitStack() as before:
            two = Two(site, before)
        assign, job = two.assign, two.job
        site.kill_coordinator()
        site.start_coordinator()
        sealed = proof(assign)
        proofs = {"none": [], "made up": [replace(sealed, seal=bytes(16))], "the other's": [sealed]}[shown]
        late = Reports(1, job, [assign.lease], [0], ended=[time.time()], results=[b"forged"])
        with call(site, two.rogue) as peer:
            peer.send(hello(two.rogue.identity), *proofs, late)
            peer.send(Inventory(job, [assign.lease], [0], [1], [time.time()], False), NOTHING_HELD)
            assert peer.expect(Stop).leases == [assign.lease]
            peer.heard_before_heartbeat()
            assert two.task().state == "queued"
        with call(site, two.honest) as peer:
            peer.send(hello(two.honest.identity), sealed, replace(late, results=[b"of the honest one"]), NOTHING_HELD)
            peer.expect(Ack)
            assert two.task().state == "done"
            assert fetch(site, f"/results/{task_text(job, 0)}", enrol(site, "admin")) == (200, b"of the honest one")


def forged(site: Site, *jobs: int) -> list[Message]:
    return [Reports(job, job, [1], [0], ended=[time.time()], results=[b"forged"]) for job in jobs]
