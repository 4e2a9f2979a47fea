"""The client library against a coordinator made by hand: what goes over the wire, and what breaks on the way."""

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import districomp
from districomp import client_pool, client_results, client_shelf
from districomp.client import Client
from districomp.client_address import CONTROL_PORT, local_sockets, parse_address
from districomp.client_items import FRAME_ITEMS_MAX, Lines
from districomp.config import Paths
from districomp.documents import StatusDocument
from districomp.errors import (
    DistricompError,
    NotAllowedError,
    RefusedError,
    RemoteProtocolError,
    UnreachableError,
    UsageError,
)
from districomp.messages import BATCH_BYTES, Goodbye, HelloClient, Items, Query, Results, Submit, Watch
from districomp.model import CANCELLED, DONE, FAILED, QUEUED, SKIPPED, File
from districomp.outcome import Outcome
from tests.integration.clientlab import DataPort, Lab, in_background, running
from tests.patience import PATIENCE_S


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setenv("DISTRICOMP_RUNTIME_DIR", str(tmp_path))
    with running(tmp_path / "control.sock") as server:
        yield server


@pytest.fixture
def client(lab: Lab) -> Iterator[Client]:
    with Client() as connected:
        yield connected


def status_of(coordinator: str | None = None) -> StatusDocument:
    with Client(coordinator) as client:
        return client.status()


# ---- where the coordinator is ----


def test_the_library_offers_its_client_lazily(lab: Lab) -> None:
    with districomp.Client() as client:
        assert client.status().cluster == "lab-cluster"
    with pytest.raises(AttributeError):
        districomp.Coordinator  # noqa: B018


def test_nobody_there_names_the_path_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTRICOMP_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(UnreachableError, match=rf"there is no {tmp_path}/control.sock.* Start dcoord"):
        status_of()


def test_a_socket_that_nobody_listens_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTRICOMP_RUNTIME_DIR", str(tmp_path))
    with running(tmp_path / "control.sock"):
        pass
    with pytest.raises(UnreachableError, match="nobody listens"):
        status_of()


def test_the_environment_names_a_coordinator_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTRICOMP_RUNTIME_DIR", str(tmp_path))
    with running(None) as lab:
        monkeypatch.setenv("DISTRICOMP_COORDINATOR", lab.address)
        assert status_of().name == "lab"


def test_the_local_socket_comes_before_the_environment_but_not_before_the_argument(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(None) as other:
        other.cluster = "other"
        monkeypatch.setenv("DISTRICOMP_COORDINATOR", other.address)
        assert status_of().cluster == "lab-cluster"
        assert status_of(other.address).cluster == "other"


def test_a_server_of_something_else_is_no_coordinator(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    port = DataPort()
    try:
        with pytest.raises(UnreachableError, match="no coordinator"):
            status_of(port.url.replace("http:", "tcp:"))
    finally:
        port.close()


@pytest.mark.parametrize("fault", ["cut_before", "cut_after"])
def test_a_first_connection_that_is_broken_off_is_tried_again(lab: Lab, fault: str) -> None:
    """A coordinator that is being restarted may have taken it with its last breath."""
    setattr(lab, fault, lambda message: isinstance(message, HelloClient))
    assert status_of().cluster == "lab-cluster"
    assert sum(isinstance(message, HelloClient) for message in lab.received) == 2


def test_a_first_connection_that_is_always_broken_off(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_pool, "FIRST_S", 0.3)
    lab.cut_always = lambda message: isinstance(message, HelloClient)
    with pytest.raises(UnreachableError, match=r"closed the connection|broke"):
        status_of()


def test_a_refused_greeting_gives_the_reason(lab: Lab) -> None:
    lab.greeting = Goodbye("version", "protocol 2 here, 1 there; update dctl")
    with pytest.raises(DistricompError, match="update dctl"):
        status_of()


def test_a_coordinator_that_stops_is_not_reachable(lab: Lab) -> None:
    lab.greeting = Goodbye("stopping", "stopping")
    with pytest.raises(UnreachableError, match="stopping"):
        status_of()


def test_no_right_to_something(lab: Lab, client: Client) -> None:
    lab.refusal = ("not_allowed", "only admins may")
    with pytest.raises(NotAllowedError, match="only admins"):
        client.status()


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("somewhere:1", "somewhere", 1),
        ("somewhere", "somewhere", CONTROL_PORT),
        ("192.0.2.1:65535", "192.0.2.1", 65535),
        ("[2001:db8::1]:9", "2001:db8::1", 9),
        ("[2001:db8::1]", "2001:db8::1", CONTROL_PORT),
        ("2001:db8::1", "2001:db8::1", CONTROL_PORT),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    address = parse_address(text, "coordinator")
    assert (address.path, address.host, address.port) == (None, host, port)
    assert parse_address(str(address), "coordinator").port == port


@pytest.mark.parametrize("text", ["", ":1", "somewhere:", "somewhere:0", "somewhere:65536", "somewhere:port", "[]:1"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match=r"^DISTRICOMP_COORDINATOR: .*HOST:PORT"):
        parse_address(text, "DISTRICOMP_COORDINATOR")


@pytest.mark.parametrize("user", [0, 1000])
@pytest.mark.parametrize("environment", [{}, {"XDG_RUNTIME_DIR": "/tmp/run"}, {"XDG_STATE_HOME": "/tmp/state"}])
@pytest.mark.parametrize("own", [{}, {"DISTRICOMP_RUNTIME_DIR": "relative"}])
def test_the_socket_is_where_the_daemon_puts_it(
    monkeypatch: pytest.MonkeyPatch, user: int, environment: dict[str, str], own: dict[str, str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (environment | own).items():
        monkeypatch.setenv(name, value)
    assert local_sockets()[0] == Paths.from_environment().control_socket
    assert own or local_sockets()[-1] == Path("/run/districomp/control.sock")


# ---- submitting ----


def submitted(lab: Lab) -> tuple[Submit, list[Any]]:
    job = lab.jobs[max(lab.jobs)]
    return job.submit, job.items


def test_forms_of_input(lab: Lab, client: Client, tmp_path: Path) -> None:
    path = tmp_path / "käse"
    path.write_bytes(b"content")
    assert client.submit("d", data="text").tasks == 1
    assert submitted(lab)[1] == [b"text"]
    client.submit("d", data=path)
    assert submitted(lab)[1] == [b"content"]
    client.submit("d", files=[str(path)])
    assert submitted(lab)[1] == [File(str(path), b"content")]
    client.submit("d", items=["a", b"\xff", File("p", b"c"), path])
    assert submitted(lab)[1] == [b"a", b"\xff", File("p", b"c"), b"content"]
    job = client.submit("d", range=range(10, 0, -3), params={"x": 1}, name="n", max_fails=2)
    submit, items = submitted(lab)
    assert (job.tasks, submit.numbers, submit.count, items) == (4, (10, -3), 4, [])
    assert (submit.params, submit.name, submit.max_fails) == ({"x": 1}, "n", 2)
    assert submit.user
    assert client.submit("d").tasks == 1
    submit, items = submitted(lab)
    assert (submit.count, submit.numbers, items) == (1, None, [])


@pytest.mark.parametrize(
    "form",
    [
        {"items": []},
        {"items": iter(())},
        {"range": range(0)},
        {"files": []},
        {"items": "text"},
        {"data": "a", "items": ["b"]},
    ],
)
def test_what_cannot_be_submitted_is_said_before_anything_is_sent(lab: Lab, client: Client, form: Any) -> None:
    with pytest.raises(UsageError):
        client.submit("d", **form)
    assert not any(isinstance(message, Submit) for message in lab.received)


def test_a_large_input_comes_in_bounded_frames_and_order(lab: Lab, client: Client, tmp_path: Path) -> None:
    rng = random.Random(1)
    lines = [b"x" * rng.choice((0, 1, 10, 1000)) for _ in range(20_000)]
    path = tmp_path / "lines"
    path.write_bytes(b"\n".join(lines) + b"\n")
    assert client.submit("d", items=Lines(str(path))).tasks == len(lines)
    assert submitted(lab)[1] == lines
    frames = [message for message in lab.received if isinstance(message, Submit | Items)]
    assert len(frames) > 5
    assert [frame.last for frame in frames] == [False] * (len(frames) - 1) + [True]
    assert max(sum(len(item) for item in frame.items if isinstance(item, bytes)) for frame in frames) <= BATCH_BYTES
    assert max(len(frame.items) for frame in frames) <= FRAME_ITEMS_MAX


def test_a_refusal_in_the_middle_ends_the_sending(lab: Lab, client: Client) -> None:
    lab.refusal = ("unknown_definition", "there is no definition 'd'")
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield b"x" * 1000

    with pytest.raises(RefusedError, match="no definition") as caught:
        client.submit("d", items=endless())
    assert caught.value.code == "unknown_definition"
    lab.refusal = None
    assert client.submit("d", items=["a"]).tasks == 1


def test_params_too_large_for_a_message(client: Client) -> None:
    with pytest.raises(UsageError, match="does not fit"):
        client.submit("d", params={"x": "y" * 2_000_000})


def is_last(message: object) -> bool:
    return isinstance(message, Submit | Items) and message.last


@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize("fault", ["cut_before", "cut_after"])
def test_a_submission_whose_connection_breaks_is_one_job(lab: Lab, client: Client, once: bool, fault: str) -> None:
    items = [b"%d" % index for index in range(10_000)]
    setattr(lab, fault, is_last)
    job = client.submit("d", items=iter(items) if once else items)
    assert getattr(lab, fault) is None, "the fault was not committed"
    assert (len(lab.jobs), job.number, job.tasks) == (1, 1, 10_000)
    assert lab.jobs[1].items == items
    assert len({message.request_id for message in lab.received if isinstance(message, Submit)}) == 1


def test_the_same_request_id_gives_the_same_job(client: Client) -> None:
    first = client.submit("d", data="a", request_id="11111111-1111-4111-8111-111111111111")
    again = client.submit("d", data="a", request_id="11111111-1111-4111-8111-111111111111")
    assert first.number == again.number
    assert client.submit("d", data="a").number != first.number


# ---- waiting and reading ----


def test_wait_returns_the_final_document(lab: Lab, client: Client) -> None:
    job = client.submit("d", items=["a", "b"])
    waiting = in_background(lambda: lab.wait_for_message(Watch), lambda: lab.end(1, [1]), lambda: lab.end(1, [0]))
    assert job.wait(PATIENCE_S).state == "done"
    waiting.join()


def test_a_wait_that_takes_too_long(lab: Lab, client: Client) -> None:
    job = client.submit("d", data="a")
    with pytest.raises(TimeoutError):
        job.wait(0.05)
    with pytest.raises(TimeoutError):
        list(job.results(timeout=0.05))
    assert job.document().state == "running"


def test_results_come_in_task_order_and_as_completed_in_theirs(lab: Lab, client: Client) -> None:
    job = client.submit("d", items=["a", "b", "c", "d"])
    lab.end(1, [3], [b"3"])
    lab.end(1, [1, 2], [b"1", None], states=[DONE, FAILED], reasons=["done", "exit"], exit_codes=[None, 7])
    lab.end(1, [0], [None], states=[QUEUED], reasons=["worker_lost"])
    assert [result.index for result in job.results(wait=False)] == [1, 2, 3]
    ordered = job.results(timeout=PATIENCE_S)
    lab.end(1, [0], [b"0"])
    found = list(ordered)
    assert [result.task for result in found] == ["1.0", "1.1", "1.2", "1.3"]
    assert [result.read() for result in found if result.ok] == [b"0", b"1", b"3"]
    assert [result.index for result in job.as_completed()] == [3, 1, 2, 0]
    with pytest.raises(client_results.TaskFailedError, match=r"task 1.2 has no result: failed \(exit 7\)"):
        found[2].read()


def test_results_stream_before_the_job_has_ended(lab: Lab, client: Client) -> None:
    job = client.submit("d", items=["a", "b"])
    lab.end(1, [0], [b"first"])
    ordered = job.results(timeout=PATIENCE_S)
    assert next(ordered).read() == b"first"
    lab.end(1, [1], [b"second"])
    assert next(ordered).read() == b"second"


def test_tasks_swept_by_a_cancel_are_results_too(lab: Lab, client: Client) -> None:
    job = client.submit("d", items=["a", "b", "c"])
    lab.end(1, [1], [b"b"])
    assert job.cancel().state == "cancelled"
    assert [(result.index, result.state) for result in job.results()] == [
        (0, "cancelled"),
        (1, "done"),
        (2, "cancelled"),
    ]


def test_failures_that_were_retried_are_not_results(lab: Lab, client: Client) -> None:
    job = client.submit("d", items=["a", "b", "c", "d"])
    lab.end(1, [0, 1, 2], [None, b"b", None], states=[FAILED, DONE, CANCELLED])
    lab.end(1, [3], [b"d"])
    lab.end(1, [], states=[FAILED], sweep=QUEUED)
    # The lab gives two rows at a time: the failure is in an answer before the one that takes it back.
    assert [(r.index, r.state) for r in job.as_completed(wait=False)] == [(1, "done"), (2, "cancelled"), (3, "done")]
    lab.end(1, [0], [b"a"])
    assert [(r.index, r.state) for r in job.results()] == [(0, "done"), (1, "done"), (2, "cancelled"), (3, "done")]
    lab.end(1, [], states=[FAILED, CANCELLED, SKIPPED], sweep=QUEUED)
    lab.end(1, [], sweep=CANCELLED)
    assert [(r.index, r.state) for r in job.results()] == [(0, "done"), (1, "done"), (2, "cancelled"), (3, "done")]


def test_a_failure_that_is_retried_while_it_waits_for_its_turn_is_not_a_result(lab: Lab, client: Client) -> None:
    job = client.submit("d", items=["a", "b"])
    lab.end(1, [1], states=[FAILED])
    ordered = job.results(timeout=PATIENCE_S)
    found: list[client_results.TaskResult] = []
    reading = in_background(lambda: found.extend(ordered))
    lab.wait_for_message(Results, 2)  # the rows as they come, and what is there after the first
    lab.end(1, [], states=[FAILED], sweep=QUEUED)
    lab.end(1, [0], [b"a"])
    lab.end(1, [1], [b"b"])
    reading.join(PATIENCE_S)
    assert [(result.index, result.state) for result in found] == [(0, "done"), (1, "done")]


def test_results_that_wait_for_an_earlier_one_do_not_fill_the_memory(
    lab: Lab, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_shelf, "SHELF_BYTES", 5_000)
    count = 200
    job = client.submit("d", items=[b"%d" % index for index in range(count)])
    shuffled = list(range(1, count))
    random.Random(2).shuffle(shuffled)
    for index in shuffled:
        lab.end(1, [index], [b"%d" % index * 50])
    lab.end(1, [0], [b""])
    assert [(result.index, result.read()) for result in job.results()] == [(0, b"")] + [
        (index, b"%d" % index * 50) for index in range(1, count)
    ]


# ---- a coordinator that goes away ----


def test_waiting_goes_on_when_the_coordinator_is_back(lab: Lab) -> None:
    notices: list[str] = []
    with Client(on_notice=notices.append) as client:
        job = client.submit("d", items=["a", "b"])
        done: list[str] = []
        waiting = in_background(lambda: done.append(job.wait(PATIENCE_S).state))
        lab.wait_for_message(Watch)
        lab.stop()
        deadline = time.monotonic() + PATIENCE_S
        while not notices and time.monotonic() < deadline:
            time.sleep(0.01)
        assert "away" in notices[0]
        lab.start()
        lab.wait_for_message(Watch, 2)
        lab.end(1, [0, 1])
        waiting.join(PATIENCE_S)
    assert done == ["done"]
    assert notices[-1] == "coordinator is back"


def test_reading_goes_on_where_it_was(lab: Lab, client: Client) -> None:
    job = client.submit("d", items=["a", "b", "c"])
    lab.end(1, [0], [b"0"])
    ordered = job.results(timeout=PATIENCE_S)
    assert next(ordered).read() == b"0"
    lab.cut()
    ending = in_background(
        lambda: lab.wait_for(
            lambda: any(isinstance(message, Results) and message.after == 1 for message in lab.received)
        ),
        lambda: lab.end(1, [2, 1], [b"2", b"1"]),
    )
    assert [result.read() for result in ordered] == [b"1", b"2"]
    ending.join()


def test_a_call_made_while_it_is_away_keeps_its_deadline(lab: Lab, client: Client) -> None:
    job = client.submit("d", data="a")
    lab.stop()
    try:
        with pytest.raises(TimeoutError):
            job.wait(0.3)
    finally:
        lab.start()


def test_another_cluster_at_the_same_place_is_an_error(lab: Lab, client: Client) -> None:
    job = client.submit("d", data="a")
    lab.cluster = "other"
    lab.cut()
    with pytest.raises(DistricompError, match="another cluster"):
        job.document()


def test_a_request_that_always_breaks_the_connection_is_given_up(
    lab: Lab, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_pool, "PAUSE_S_MAX", 0.001)
    lab.cut_always = lambda message: isinstance(message, Query | Watch)
    with pytest.raises(DistricompError, match="broke off the connection 16 times"):
        client.status()
    with pytest.raises(DistricompError, match="broke off the connection 16 times"):
        client.wait([1])


def test_one_thread_cancels_while_another_waits(lab: Lab, client: Client) -> None:
    job = client.submit("d", data="a")
    states: list[str] = []
    waiting = in_background(lambda: states.append(job.wait(PATIENCE_S).state))
    lab.wait_for_message(Watch)
    job.cancel()
    waiting.join(PATIENCE_S)
    assert states == ["cancelled"]


def test_an_answer_that_makes_no_sense(lab: Lab, client: Client) -> None:
    with pytest.raises(RemoteProtocolError):
        client._query(client_results.TaskRecord, noun="status")


def test_rows_that_make_no_sense(lab: Lab, client: Client) -> None:
    for columns in ({"indexes": [5]}, {"indexes": [0, 1], "states": [DONE]}, {"indexes": [0], "states": [77]}):
        job = client.submit("d", items=["a", "b"])
        lab.jobs[job.number].rows.append(msgspec.msgpack.encode(Outcome(job.number, 1, "w", **columns)))  # type: ignore[arg-type]
        with pytest.raises(RemoteProtocolError):
            list(job.results(timeout=PATIENCE_S))
    lab.jobs[job.number].rows = [b"no row"]
    with pytest.raises(RemoteProtocolError):
        list(job.results(timeout=PATIENCE_S))


def test_a_cancelled_state_is_told(lab: Lab, client: Client) -> None:
    job = client.submit("d", items=["a", "b"])
    lab.end(1, [0, 1], states=[CANCELLED, FAILED], reasons=["cancelled", "signal"], signals=[None, 9])
    assert [result.why() for result in job.results()] == ["cancelled", "signal 9"]
