"""The coordinator as a process: durability under kill -9, hostile peers, a full disk, start and stop."""

import os
import resource
import signal
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path

import pytest

from dcoord.journal import LOG_BYTES_FIRST
from demo.cluster import Cluster, script, wait_until
from districomp import wire
from districomp.messages import (
    PROTOCOL_VERSION,
    Accepted,
    Ack,
    Assign,
    Cancel,
    Goodbye,
    Heartbeat,
    HelloClient,
    HelloWeb,
    HelloWorker,
    Inventory,
    Refused,
    Reply,
    ResultRows,
    Results,
    Stop,
    Submit,
    Watch,
)
from districomp.model import Blob, Machine
from districomp.outcome import Outcome
from tests.integration.daemonlab import Lab, Peer, lab, proof
from tests.integration.workerlab import children, command_line
from tests.patience import PATIENCE_S

__all__ = ["lab"]


def decoded(rows: ResultRows) -> list[Outcome]:
    import msgspec

    return [msgspec.msgpack.decode(row, type=Outcome) for row in rows.rows]


def test_an_acknowledged_submission_survives_kill_9(lab: Lab) -> None:
    job = lab.submit(3, request_id="mine")
    lab.kill_coordinator()
    lab.cluster.start_coordinator()
    assert lab.cluster.dctl_json("job", "show", str(job))["tasks"] == 3
    assert lab.submit(3, request_id="mine") == job


def test_an_acknowledged_result_survives_kill_9_and_an_unacknowledged_one_is_taken_again(lab: Lab) -> None:
    job = lab.submit(2)
    with lab.worker(slots=2) as worker:
        assign = worker.expect(Assign)
        first = lab.report(assign, [b"zero", b"one"])
        worker.send(first)
        assert worker.expect(Ack).serials == [first.serial]
        lab.kill_coordinator()
    lab.cluster.start_coordinator()
    with lab.worker(slots=2, inventory=False) as worker:
        # It did not hear the Ack, so it reports again: acknowledged, recorded once.
        worker.send(first, Inventory(0, [], [], [], [], True))
        assert worker.expect(Ack).serials == [first.serial]
    with lab.client() as client:
        client.send(Results(1, job, 0, True))
        rows = client.expect(ResultRows)
        (outcome,) = decoded(rows)
        assert (outcome.results, rows.ended) == ([b"zero", b"one"], True)


def test_a_worker_goes_on_through_a_restart_with_what_it_holds(lab: Lab) -> None:
    job = lab.submit(1)
    with lab.worker() as worker:
        assign = worker.expect(Assign)
        lab.kill_coordinator()
    lab.cluster.start_coordinator()
    with lab.worker(inventory=False) as worker:
        worker.send(proof(assign), Inventory(job, [assign.lease], assign.indexes, [1], [None], True))
        worker.send(lab.report(assign, [b"late but first"]))
        worker.expect(Ack)
    assert lab.cluster.dctl_json("job", "show", str(job))["state"] == "done"
    attempts = lab.cluster.dctl_json("task", "show", f"{job}.0")["attempts"]
    assert [attempt["reason"] for attempt in attempts] == ["done"]


def test_the_log_is_made_long_soon_and_what_is_committed_meanwhile_outlives_a_kill(lab: Lab) -> None:
    state = lab.cluster.folder / "coordinator" / "state" / "dcoord"
    first = lab.submit(1)
    wait_until(lambda: (state / "journal.sqlite-wal").stat().st_size == LOG_BYTES_FIRST, "the log to be long")
    second = lab.submit(1)
    lab.kill_coordinator()
    lab.cluster.start_coordinator()
    assert [job["job"] for job in lab.cluster.dctl_json("job", "list")] == [first, second]


def test_results_reach_a_waiting_client_as_they_are_committed(lab: Lab) -> None:
    job = lab.submit(2)
    with lab.client() as client, lab.worker() as worker:
        client.send(Results(1, job, 0, True))
        worker.send(lab.report(worker.expect(Assign), [b"a"]))
        rows = client.expect(ResultRows)
        assert [o.results for o in decoded(rows)] == [[b"a"]]
        assert not rows.ended
        client.send(Results(2, job, rows.after, True))
        worker.send(lab.report(worker.expect(Assign), [b"b"]))
        rows = client.expect(ResultRows)
        assert [o.results for o in decoded(rows)] == [[b"b"]]
        client.send(Results(3, job, 0, True))
        both = client.expect(ResultRows)
        assert ([o.indexes for o in decoded(both)], both.ended) == ([[0], [1]], True)


def test_a_watched_job_is_told_until_it_ends(lab: Lab) -> None:
    job = lab.submit(1)
    with lab.client() as client, lab.worker() as worker:
        client.send(Watch(5, [job], 0.05))
        assert not client.expect(Reply).last
        worker.send(lab.report(worker.expect(Assign), [b""]))
        wait_until(lambda: client.expect(Reply).last, "the last word on a job")


def test_cancelling_stops_what_runs(lab: Lab) -> None:
    job = lab.submit(10)
    with lab.client() as client, lab.worker() as worker:
        assign = worker.expect(Assign)
        client.send(Cancel(4, job))
        assert client.expect(Reply).request == 4
        assert worker.expect(Stop).leases == [assign.lease]
    assert lab.cluster.dctl_json("job", "show", str(job))["counts"]["cancelled"] == 10


@pytest.mark.parametrize("lab", ["5s"], indirect=True)
def test_a_silent_workers_task_goes_to_another(lab: Lab) -> None:
    job = lab.submit(1)
    with lab.worker("w1") as silent, lab.worker("w2") as other:
        assert silent.expect(Assign).job == job
        # The one that has the task stays silent for a lease; the other says that it is alive.
        while not other.has(Assign):
            other.send(Heartbeat())
            other.expect(Heartbeat)
            time.sleep(0.05)
        assert other.expect(Assign).attempts == [2]
        document = lab.cluster.dctl_json("task", "show", f"{job}.0")
        assert document["attempts"][0]["reason"] == "worker_lost"


def test_a_blob_that_was_never_uploaded_is_refused(lab: Lab) -> None:
    with lab.client() as client:
        client.send(Submit(1, "", "shell", {"argv": ["cat"]}, items=[Blob(b"\1" * 32, 70_000)]))
        assert client.expect(Refused).code == "blob_missing"


@pytest.mark.parametrize("door", ["tcp", "unix"])
@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        struct.pack(">I", 0xFFFFFFFF),
        struct.pack(">I", 3) + b"\x92\x63\x00",
        wire.encode(Heartbeat()),
        wire.encode(HelloWorker(PROTOCOL_VERSION + 1, "", "w", "w", 1, Machine())),
        wire.encode(HelloClient(PROTOCOL_VERSION, "x")) * 2,
    ],
)
def test_garbage_costs_only_its_sender(lab: Lab, door: str, data: bytes) -> None:
    where = lab.control if door == "tcp" else lab.cluster.runtime / "control.sock"
    with Peer(where) as bad, lab.client() as good:
        bad.send_bytes(data)
        assert bad.is_closed()
        good.send(Submit(1, "", "shell", {"argv": ["true"]}, numbers=(0, 1), count=1))
        assert good.expect(Accepted).tasks == 1


def test_half_a_frame_and_silence_are_cut_off(lab: Lab) -> None:
    with Peer(lab.control) as half, Peer(lab.control) as silent:
        half.send_bytes(struct.pack(">I", 1000) + b"\x92")
        assert half.is_closed()
        assert silent.is_closed()


def test_only_the_local_socket_may_say_that_it_is_the_web_server(lab: Lab) -> None:
    with Peer(lab.control) as peer:
        peer.send(HelloWeb(PROTOCOL_VERSION, 1, "http://127.0.0.1:1", "http://127.0.0.1:1"))
        assert peer.expect(Goodbye).code == "protocol"
    assert "127.0.0.1:1" not in lab.cluster.endpoint()["data"].split("/")[2].split(":")[1:]


def test_a_full_disk_refuses_work_keeps_everything_and_heals(lab: Lab) -> None:
    before = lab.submit(1)
    coordinator = lab.cluster.coordinator
    assert coordinator is not None
    with lab.worker() as worker:
        assign = worker.expect(Assign)
        report = lab.report(assign, [b"kept"])
        limit = resource.prlimit(coordinator.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        try:
            worker.send(report)
            assert worker.expect(Goodbye).code == "degraded"
            with lab.client() as client:
                client.send(Submit(1, "", "shell", {"argv": ["true"]}, numbers=(0, 1), count=1))
                refused = client.expect(Refused)
            assert refused.code == "degraded"
            assert "journal" in refused.text
        finally:
            resource.prlimit(coordinator.pid, resource.RLIMIT_FSIZE, limit)

    def comes_back() -> bool:
        peer = Peer(lab.control)
        peer.send(HelloWorker(PROTOCOL_VERSION, "", "w1", "w1", 1, Machine(), 1))
        peer.send(proof(assign), report, Inventory(0, [], [], [], [], True))
        try:
            return peer.expect(Ack).serials == [report.serial]
        except (AssertionError, ConnectionError):
            return False
        finally:
            peer.close()

    wait_until(comes_back, "the journal to be written again")
    assert lab.cluster.dctl("results", str(before)).stdout == b"kept\n"
    assert coordinator.returncode is None


def test_a_clean_stop_leaves_no_process_and_no_file(lab: Lab) -> None:
    coordinator = lab.cluster.coordinator
    assert coordinator is not None
    web = lab.cluster.endpoint()["web_pid"]
    assert coordinator.stop() == 0
    assert not Path(f"/proc/{web}").exists()
    assert list(lab.cluster.runtime.iterdir()) == []


def test_after_kill_9_the_children_end_by_themselves(lab: Lab) -> None:
    web = lab.cluster.endpoint()["web_pid"]
    lab.kill_coordinator()
    wait_until(lambda: not Path(f"/proc/{web}").exists(), "dcoord-web to end with its parent")


def test_a_web_server_that_is_killed_is_started_again(lab: Lab) -> None:
    before = lab.cluster.endpoint()
    os.kill(before["web_pid"], signal.SIGKILL)
    after = wait_until(
        lambda: (e := lab.cluster.endpoint())["web_pid"] not in (0, before["web_pid"]) and e, "a new dcoord-web"
    )
    assert after["control"] == before["control"]


def test_a_web_server_that_comes_late_is_told_of_all_the_same(tmp_path: Path) -> None:
    with Cluster(tmp_path, insecure=True) as cluster:
        starting = threading.Thread(target=cluster.start_coordinator)
        starting.start()
        web: list[int] = []

        def is_stopped() -> bool:
            if cluster.coordinator is not None:
                web[:] = [pid for pid in children(cluster.coordinator.pid) if "dcoord.web" in command_line(pid)]
            for pid in web:
                os.kill(pid, signal.SIGSTOP)
            return bool(web)

        try:
            wait_until(is_stopped, "dcoord-web to be held up in its start")
            starting.join()
        finally:
            for pid in web:
                os.kill(pid, signal.SIGCONT)
        wait_until(lambda: cluster.endpoint()["data"], "the endpoint file to say where it is", PATIENCE_S)


def test_a_definition_dropped_in_is_live(lab: Lab) -> None:
    folder = lab.cluster.config / "tasks.d"
    (folder / "mine.yaml").write_text("version: 1\ncommand: [cat]\n")
    (folder / "broken.yaml").write_text("version: 1\ncommandd: [cat]\n")

    def names() -> set[str]:
        return {entry["name"] for entry in lab.cluster.dctl_json("def", "list") if entry["version"]}

    wait_until(lambda: "mine" in names(), "the definition to be live")
    broken = [entry for entry in lab.cluster.dctl_json("def", "list") if entry["name"] == "broken"]
    assert "command" in "".join(broken[0]["problems"])


def start_another(cluster: Cluster, **changes: str) -> "subprocess.CompletedProcess[str]":
    environment = cluster.environment | changes
    file = cluster.config / "dcoord.yaml"
    return subprocess.run(
        [script("dcoord"), "--config", str(file)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def test_a_second_coordinator_in_the_same_folders_is_told_so(lab: Lab, tmp_path: Path) -> None:
    done = start_another(lab.cluster)
    assert done.returncode == 78
    assert "another coordinator" in done.stderr
    done = start_another(lab.cluster, DISTRICOMP_RUNTIME_DIR=str(tmp_path / "r2"))
    assert done.returncode != 0
    assert "journal.sqlite" in done.stderr
    assert list((tmp_path / "r2").iterdir()) == [], "a start that failed leaves no socket behind"
    assert lab.submit() > 0


def test_a_port_that_is_taken_is_named(lab: Lab, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        file = tmp_path / "taken.yaml"
        file.write_text(f"listen: {{port: {port}}}\n")
        environment = lab.cluster.environment | {
            "DISTRICOMP_STATE_DIR": str(tmp_path / "s2"),
            "DISTRICOMP_RUNTIME_DIR": str(tmp_path / "r2"),
        }
        done = subprocess.run(
            [script("dcoord"), "--config", str(file)],
            env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
    assert done.returncode == 78
    assert str(port) in done.stderr and "another port" in done.stderr


def test_an_insecure_coordinator_stays_on_its_machine(tmp_path: Path) -> None:
    file = tmp_path / "open.yaml"
    file.write_text("listen: {address: 0.0.0.0}\ninsecure: true\n")
    done = subprocess.run(
        [script("dcoord"), "--check-config", "--config", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 78
    assert "0.0.0.0" in done.stderr
