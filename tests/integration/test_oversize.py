"""Nobody ends the coordinator by what he makes it say: every message that it may have to send on fits into a frame."""

import time

import msgspec
import pytest

from demo.cluster import wait_until
from districomp.messages import (
    FRAME_BYTES_MAX,
    Ack,
    Assign,
    Goodbye,
    Message,
    Query,
    Refused,
    Reply,
    Reports,
    ResultRows,
    Results,
    Submit,
)
from districomp.model import INLINE_BYTES_MAX, STDERR_TAIL_BYTES, File
from districomp.wire import REPORTS_BYTES_MAX
from tests.integration.daemonlab import Lab, Peer, lab

__all__ = ["lab"]

LONG_ID = "w" * 64


def goes_on(lab: Lab) -> None:
    with lab.client() as client:
        client.send(Query(9, "status"))
        client.expect(Reply)


def body(message: Message) -> bytes:
    return msgspec.msgpack.encode(message)


def is_refused(peer: Peer, message: Message, why: str) -> None:
    peer.send_bytes(len(encoded := body(message)).to_bytes(4) + encoded)
    goodbye = peer.expect(Goodbye)
    assert goodbye.code == "protocol"
    assert why in goodbye.text


def test_a_report_as_large_as_may_be_still_reaches_the_client(lab: Lab) -> None:
    job = lab.submit(12)
    with lab.worker(LONG_ID, slots=12) as worker:
        assign = worker.expect(Assign)
        full = [b"x" * INLINE_BYTES_MAX] * 11
        report = lab.report(assign, [*full, b""])
        report.results = [*full, b"x" * (REPORTS_BYTES_MAX - len(body(report)) - 8)]
        assert len(body(report)) <= REPORTS_BYTES_MAX
        worker.send(report)
        worker.expect(Ack)
    with lab.client() as client:
        client.send(Results(1, job, 0, False))
        assert len(client.expect(ResultRows).rows) == 1
    goes_on(lab)


def test_a_larger_one_is_a_breach(lab: Lab) -> None:
    lab.submit(12)
    with lab.worker(LONG_ID, slots=12) as worker:
        assign = worker.expect(Assign)
        is_refused(worker, lab.report(assign, [b"x" * INLINE_BYTES_MAX] * 12), "a Reports of")
    goes_on(lab)


def test_a_result_that_should_be_a_blob_is_a_breach(lab: Lab) -> None:
    lab.submit(1)
    with lab.worker() as worker:
        assign = worker.expect(Assign)
        is_refused(worker, lab.report(assign, [b"x" * (INLINE_BYTES_MAX + 1)]), "length <= 65536")
    goes_on(lab)


@pytest.mark.parametrize("item", [b"x" * (INLINE_BYTES_MAX + 1), File("p" * 40_000, b"")], ids=["item", "path"])
def test_an_item_that_should_be_a_blob_is_a_breach(lab: Lab, item: bytes | File) -> None:
    with lab.client() as client:
        is_refused(client, Submit(1, "", "shell", {"argv": ["cat"]}, items=[item]), "length <= ")
    goes_on(lab)


def test_a_matrix_that_no_worker_could_be_sent_is_refused(lab: Lab) -> None:
    submit = Submit(1, "", "shell", {}, matrix=[("argv", [["true", "x" * 1000]] * 1000)])
    submit.matrix[0][1].append(["true", "x" * (FRAME_BYTES_MAX - len(body(submit)) - 20)])
    assert len(body(submit)) <= FRAME_BYTES_MAX
    with lab.worker(), lab.client() as client:
        client.send(submit)
        refused = client.expect(Refused)
        assert refused.code == "too_large"
        assert "give large data as items" in refused.text
    goes_on(lab)


def test_many_attempts_that_said_much_can_be_shown(lab: Lab) -> None:
    """Each kept all of its standard error: together more than a frame."""
    (lab.cluster.config / "tasks.d" / "fails.yaml").write_text(
        "version: 1\ncommand: [cat]\nretries: {max: 30, backoff: 0s}\n"
    )
    wait_until(lambda: b"fails" in lab.cluster.dctl("def", "list").stdout, "the definition to be live")
    with lab.client() as client, lab.worker() as worker:
        client.send(Submit(1, "", "fails", {}, items=[b""]))
        for attempt in range(31):
            assign = worker.expect(Assign)
            report = Reports(1000 + attempt, assign.job, [assign.lease], [0], assign.attempts, ["exit"], [1])
            report.ended, report.stderr = [time.time()], [b"\xff" * (STDERR_TAIL_BYTES - 4) + b"%04d" % attempt]
            worker.send(report)
    shown = lab.cluster.dctl_json("task", "show", f"{assign.job}.0")
    tails = [attempt["stderr_tail"] for attempt in shown["attempts"]]
    assert [tail[-4:] for tail in tails] == [f"{attempt:04d}" for attempt in range(31)]
    goes_on(lab)
