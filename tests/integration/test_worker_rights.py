"""Payloads over HTTPS: the data port proves that it is the cluster's, and every request shows a right."""

import os

from districomp.messages import Goodbye
from tests.integration.worker_trustlab import TrustLab, in_trust_lab, rogue


@in_trust_lab
async def test_what_is_fetched_and_brought_shows_a_right(lab: TrustLab) -> None:
    lab.give()
    await lab.join()
    body = os.urandom(200_000)
    bundle = lab.data.add_bundle({"double.sh": (0o755, b"#!/bin/sh\ncat; echo of the bundle")})
    job = lab.define(["./double.sh"], bundle=bundle)
    blob = lab.data.add_blob(body)
    lab.data.files[f"/tasks/{job}.0"] = body
    lab.data.rights.add("came along")
    (lease,) = lab.assign(job, [blob], grants=["came along"])
    (row,) = await lab.ended([lease])
    assert row.reason == "done", row.stderr
    assert {(ask.verb, ask.path.split("/")[1], ask.lease) for ask in lab.asked} == {
        ("GET", "bundles", lease),
        ("PUT", "blobs", lease),
    }
    assert "came along" in lab.data.shown
    assert lab.data.rights >= set(lab.data.shown)
    assert set(lab.data.hosts) == {f"dcoord.{lab.cluster}.districomp.internal"}
    assert any(verb == "PUT" for verb, _ in lab.data.requests)


@in_trust_lab
async def test_a_right_that_is_not_accepted_any_more_is_asked_for_anew_once(lab: TrustLab) -> None:
    lab.give()
    await lab.join()
    body = os.urandom(100_000)
    job = lab.define(["wc", "-c"])
    blob = lab.data.add_blob(body)
    lab.data.files[f"/tasks/{job}.0"] = body
    (lease,) = lab.assign(job, [blob], grants=["too old"])
    (row,) = await lab.ended([lease])
    assert (row.reason, row.result) == ("done", b"100000\n")
    assert lab.data.shown == ["too old", "grant-1"]
    assert [(ask.verb, ask.path, ask.lease) for ask in lab.asked] == [("GET", f"/tasks/{job}.0", lease)]


@in_trust_lab
async def test_without_a_right_nothing_is_fetched_and_the_attempt_says_why(lab: TrustLab) -> None:
    lab.give()
    await lab.join()
    lab.refused_grants = True
    body = os.urandom(100_000)
    job = lab.define(["wc", "-c"])
    lab.data.files[f"/tasks/{job}.0"] = body
    (lease,) = lab.assign(job, [lab.data.add_blob(body)])
    (row,) = await lab.ended([lease])
    assert row.reason == "not_started"
    assert b"gives no right to it: you may not" in row.stderr
    assert lab.data.requests == []


@in_trust_lab
async def test_a_data_port_of_another_authority_gets_no_right_and_no_result(lab: TrustLab) -> None:
    lab.give()
    async with rogue(lab) as liar:
        lab.data, real = liar.data, lab.data
        try:
            worker = await lab.join()
            (lease,) = lab.assign(lab.define(["head", "-c", "100000", "/dev/zero"]), 1)
            await lab.says(worker, "the upload of a result failed")
            assert "shows a certificate that is not this cluster's" in worker.log_text()
            assert lease not in lab.reported
            assert not liar.data.requests
        finally:
            lab.data = real


@in_trust_lab
async def test_a_data_port_in_plain_is_refused(lab: TrustLab) -> None:
    lab.give()
    lab.data.url = lab.data.url.replace("https", "http")
    worker = await lab.start()
    await lab.says(worker, "is not the address of a data port (https://HOST:PORT)")
    await lab.until(lambda: lab.messages(Goodbye))
    assert lab.messages(Goodbye)[0].code == "protocol"


@in_trust_lab
async def test_a_data_port_on_every_interface_is_where_the_coordinator_was_reached(lab: TrustLab) -> None:
    lab.give()
    lab.data.url = lab.data.url.replace("127.0.0.1", "[::]")
    await lab.join()
    (row,) = await lab.run(["head", "-c", "100000", "/dev/zero"])
    assert row.reason == "done"
