"""The worker as a process: joining, losing and finding the coordinator, stopping, being killed, its folder."""

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path

from districomp import __version__
from districomp.discovery import QUICK_S, Advertisement, Advertiser
from districomp.messages import Ack, Goodbye, Heartbeat, HelloWorker, Reports, Returned
from districomp.model import Blob
from tests.integration.workerlab import Lab, Worker, a_cluster, children, command_line, in_lab, is_alive
from tests.priority import timed

MDNS = "cluster: {name}\ndiscovery: {{interfaces: [127.0.0.1]}}\n"


async def finish(worker: Worker) -> int:
    worker.terminate()
    return await worker.exit_code()


@in_lab
async def test_its_greeting_says_what_the_machine_is(lab: Lab) -> None:
    await lab.join(slots=3, config="name: tester\nlabels: [room-12]\n")
    (hello,) = lab.hellos
    assert isinstance(hello, HelloWorker)
    assert (hello.name, hello.slots, hello.cluster, len(hello.worker)) == ("tester", 3, "", 16)
    assert hello.machine.cpus == len(os.sched_getaffinity(0))
    assert hello.machine.memory_bytes > 100_000_000
    assert (hello.machine.isolation[:2], hello.machine.labels) == (["none", "rlimit"], ["room-12"])
    assert hello.machine.programs == [], "greetings stay small"
    assert hello.machine.arch == os.uname().machine


@in_lab
async def test_the_id_lasts_and_the_process_number_does_not(lab: Lab) -> None:
    worker = await lab.join()
    assert await finish(worker) == 0
    await lab.join()
    first, second = lab.hellos
    assert first.worker == second.worker
    assert first.process != second.process


@in_lab
async def test_a_second_worker_in_the_same_folder_is_refused(lab: Lab) -> None:
    await lab.join()
    second = await lab.start()
    assert await second.exit_code() == 78
    assert "used by another dworker" in second.log_text()
    assert "DISTRICOMP_STATE_DIR" in second.log_text()


@in_lab
async def test_errors_of_the_configuration(lab: Lab) -> None:
    for config, words in (
        ("slots: many\n", "slots"),
        ("nonsense: 1\n", "nonsense"),
        ("coordinator: 10.1.2.3:1\n", "10.1.2.3"),
    ):
        worker = await lab.start(coordinator=False, config=config)
        assert await worker.exit_code() == 78
        assert words in worker.log_text()
    worker = await lab.start("--coordinator", "10.1.2.3:1", coordinator=False)
    assert await worker.exit_code() == 78
    worker = await lab.start("--check-config")
    assert await worker.exit_code() == 0
    worker = await lab.start("--drain-on-idle", "1s")
    assert await worker.exit_code() == 2


@in_lab
async def test_tasks_go_on_while_the_coordinator_is_away(lab: Lab) -> None:
    await lab.join()
    lab.lease_s = 1.0
    (lease,) = lab.assign(lab.define(["sh", "-c", "sleep 1; echo made it"]), 1)
    await lab.started(lease)
    await lab.hang_up()
    lab.heard.clear()
    await asyncio.sleep(1.2)
    await lab.listen()
    (row,) = await lab.ended([lease])
    assert (row.reason, row.result) == ("done", b"made it\n")


@in_lab
async def test_what_was_not_acknowledged_is_reported_again(lab: Lab) -> None:
    await lab.join(slots=1)
    lab.acknowledge = False
    job = lab.define(["sh", "-c", '[ "$0" = 0 ] || sleep 1000', "{index}"])
    done, running, waiting = lab.assign(job, 3)
    await lab.ended([done])
    await lab.started(running)
    (before,) = lab.messages(Reports)
    await lab.hang_up()
    lab.heard.clear()
    await lab.listen()
    await lab.until(lambda: len(lab.inventory()) == 2)
    assert lab.messages(Reports) == [before]
    assert sorted(lab.inventory()) == [running, waiting]
    lab.send(Ack([before.serial]))
    await lab.hang_up()
    lab.heard.clear()
    await lab.listen()
    await lab.until(lambda: len(lab.inventory()) == 2)
    assert lab.messages(Reports) == []


@in_lab
async def test_silence_is_noticed_and_heartbeats_are_sent(lab: Lab) -> None:
    lab.lease_s = 4.0
    await lab.join()
    begun = time.monotonic()
    await lab.until(lambda: time.monotonic() - begun > 1.2 * lab.lease_s and len(lab.messages(Heartbeat)) >= 3)
    assert len(lab.hellos) == 1, "heartbeats kept it alive"
    lab.answer_heartbeats = False
    await lab.until(lambda: len(lab.hellos) == 2)
    assert [goodbye.code for goodbye in lab.messages(Goodbye)] == ["silent"]


@in_lab
async def test_sigterm_hands_everything_back(lab: Lab) -> None:
    worker = await lab.join(slots=1)
    job = lab.define(["sh", "-c", "sleep 1000 & sleep 1000"])
    running, waiting = lab.assign(job, 2)
    await lab.started(running)
    assert await finish(worker) == 0
    assert lab.reported[running].reason == "worker_stopped"
    assert lab.returned() == [waiting]
    assert waiting not in lab.reported
    assert [goodbye.code for goodbye in lab.messages(Goodbye)] == ["stopping"]


@in_lab
async def test_sigterm_waits_for_the_acknowledgement_but_not_for_ever(lab: Lab) -> None:
    worker = await lab.join()
    lab.acknowledge = False
    (lease,) = lab.assign(lab.define(["sleep", "1000"]), 1)
    await lab.started(lease)
    with timed() as took:
        worker.terminate()
        await lab.ended([lease])
        assert await worker.exit_code() == 0
    assert took.s > 3
    assert took.alone_s < 15


@in_lab
async def test_sigterm_without_a_coordinator(lab: Lab) -> None:
    worker = await lab.start("--coordinator", "127.0.0.1:1", coordinator=False)
    await lab.until(lambda: "slots" in worker.log_text())
    await lab.until(lambda: children(worker.pid))
    assert await finish(worker) == 0


async def _start_family(lab: Lab) -> list[int]:
    """A task with a child in its group, a grandchild in a session of its own, and an orphan; their pids."""
    # Not beside the worker's state: no task may write into the folders on the way there.
    pids = lab.folder / "elsewhere" / "pids"
    pids.parent.mkdir()
    code = (
        "import os, subprocess, time\n"
        "family = [os.getpid(), subprocess.Popen(['sleep', '1001']).pid]\n"
        "family.append(subprocess.Popen(['sleep', '1002'], start_new_session=True).pid)\n"
        "r, w = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        os.write(w, str(os.getpid()).encode())\n"
        "        time.sleep(1003)\n"
        "    os._exit(0)\n"
        "family.append(int(os.read(r, 100)))\n"
        f"open('{pids}.new', 'w').write(' '.join(map(str, family)))\n"
        f"os.rename('{pids}.new', '{pids}')\n"
        "time.sleep(1000)\n"
    )
    import sys

    lab.assign(lab.define([sys.executable, "-c", code.replace("{", "{{").replace("}", "}}")]), 1)
    await lab.until(pids.exists)
    family = [int(word) for word in pids.read_text().split()]
    assert len(family) == 4
    assert all(is_alive(pid) for pid in family)
    return family


@in_lab
async def test_a_killed_worker_takes_all_its_processes_with_it(lab: Lab) -> None:
    worker = await lab.join()
    family = await _start_family(lab)
    server = worker.spawn_server()
    worker.process.kill()
    await lab.until(lambda: not any(is_alive(pid) for pid in [*family, server]))


@in_lab
async def test_a_spawn_server_that_dies_costs_only_the_attempts_that_ran(lab: Lab) -> None:
    worker = await lab.join()
    (lease,) = lab.assign(lab.define(["sleep", "1000"]), 1)
    await lab.started(lease)
    server = worker.spawn_server()
    # It says so when it asks its server for the process.
    await lab.until(lambda: children(server))
    (task,) = children(server)
    os.kill(server, signal.SIGKILL)
    (row,) = await lab.ended([lease])
    assert row.reason == "worker_stopped"
    await lab.until(lambda: not is_alive(task))
    assert (await lab.run(["echo", "again"]))[0].result == b"again\n"
    assert worker.spawn_server() != server


@in_lab
async def test_leftovers_of_a_killed_worker_are_cleaned_up(lab: Lab) -> None:
    worker = await lab.join()
    lab.acknowledge = False
    await lab.run(["head", "-c", "100000", "/dev/zero"])
    lab.assign(lab.define(["sh", "-c", "touch file; sleep 1000"]), 1)

    def files() -> set[Path]:
        return {path for path in worker.state.rglob("*") if path.is_file() and path.parent != worker.state}

    await lab.until(lambda: any(path.name == "file" for path in files()))
    worker.process.kill()
    await worker.exit_code()
    old = files()
    assert len(old) == 2, "the task's file and the spooled result"
    await lab.join()
    await lab.until(
        lambda: not any(path.exists() for path in old if "run" in path.parts) and not list(worker.state.glob("*.old"))
    )


@in_lab
async def test_a_spool_that_cannot_be_written_fails_the_attempt_not_the_worker(lab: Lab) -> None:
    worker = await lab.join()
    spool = worker.state / "spool"
    spool.rename(spool.with_name("away"))
    (row,) = await lab.run(["head", "-c", "100000", "/dev/zero"])
    assert row.reason == "disk"
    assert b"could not be kept" in row.stderr
    spool.with_name("away").rename(spool)
    (row,) = await lab.run(["head", "-c", "100000", "/dev/zero"])
    assert isinstance(row.result, Blob)


# ---- mDNS ----


def _advertiser(lab: Lab, cluster: str, name: str) -> Advertiser:
    return Advertiser(Advertisement(cluster, name, "127.0.0.1", lab.port, ["127.0.0.1"], __version__))


@in_lab
async def test_the_cluster_is_found_by_its_name(lab: Lab) -> None:
    name = f"lab{os.getpid()}"
    advertiser = _advertiser(lab, lab.cluster, name)
    other = _advertiser(lab, a_cluster(), f"other{os.getpid()}")
    await advertiser.start()
    await other.start()
    begun = time.monotonic()
    try:
        await lab.join(coordinator=False, config=MDNS.format(name=lab.cluster))
        print(f"start to joined: {time.monotonic() - begun:.2f} s")
    finally:
        await advertiser.close()
        await other.close()


@in_lab
async def test_without_a_name_several_clusters_are_named_and_none_is_joined(lab: Lab) -> None:
    names = [f"one{os.getpid()}", f"two{os.getpid()}"]
    advertisers = [_advertiser(lab, a_cluster(), name) for name in names]
    for advertiser in advertisers:
        await advertiser.start()
    try:
        worker = await lab.start(coordinator=False, config="discovery: {interfaces: [127.0.0.1]}\n")
        await lab.until(lambda: all(words in worker.log_text() for words in [*names, "several clusters"]))
        await asyncio.sleep(1.5)
        assert not lab.hellos
    finally:
        for advertiser in advertisers:
            await advertiser.close()


@in_lab
async def test_of_two_clusters_of_one_name_none_is_joined_until_an_id_says_which(lab: Lab) -> None:
    name = f"twin{os.getpid()}"
    other = a_cluster()
    advertisers = [_advertiser(lab, cluster, name) for cluster in (lab.cluster, other)]
    for advertiser in advertisers:
        await advertiser.start()
    try:
        worker = await lab.start(coordinator=False, config=MDNS.format(name=name))
        await lab.until(lambda: f"2 clusters are called {name}" in worker.log_text())
        for cluster in (lab.cluster, other):
            assert f"{cluster} at 127.0.0.1:{lab.port}" in worker.log_text()
        assert "write the id of the right one as `cluster` in dworker.yaml" in worker.log_text()
        await asyncio.sleep(1.0)
        assert not lab.hellos
        assert not lab.connections
        assert await finish(worker) == 0
        await lab.join(coordinator=False, config=MDNS.format(name=lab.cluster))
    finally:
        for advertiser in advertisers:
            await advertiser.close()


@in_lab
async def test_when_the_second_of_that_name_goes_the_first_is_joined(lab: Lab) -> None:
    name = f"lone{os.getpid()}"
    advertisers = [_advertiser(lab, cluster, name) for cluster in (lab.cluster, a_cluster())]
    for advertiser in advertisers:
        await advertiser.start()
    try:
        worker = await lab.start(coordinator=False, config=MDNS.format(name=name))
        await lab.until(lambda: f"2 clusters are called {name}" in worker.log_text())
        await asyncio.sleep(QUICK_S)  # a goodbye before the first questions are all answered may be answered over
        assert not lab.hellos
        await advertisers.pop().close()
        await lab.until(lambda: lab.connection is not None)
    finally:
        for advertiser in advertisers:
            await advertiser.close()


@in_lab
async def test_another_cluster_is_not_joined_even_if_it_says_the_same_name(lab: Lab) -> None:
    """The address may have been taken over by somebody else meanwhile."""
    other = a_cluster()
    advertiser = _advertiser(lab, other, f"wanted{os.getpid()}")
    await advertiser.start()
    try:
        worker = await lab.start(coordinator=False, config=MDNS.format(name=other))
        await lab.until(lambda: lab.messages(Goodbye))
        assert lab.messages(Goodbye)[0].code == "cluster"
        assert "joined" not in worker.log_text()
    finally:
        await advertiser.close()


@in_lab
async def test_a_refusal_is_logged_and_tried_again(lab: Lab) -> None:
    lab.greet = False
    worker = await lab.start()
    await lab.until(lambda: lab.hellos)

    def refuse() -> None:
        for connection in lab.connections:
            connection.close("degraded", "the disk is full")

    refuse()
    await lab.until(lambda: "the disk is full" in worker.log_text())
    lab.greet = True
    await lab.until(lambda: lab.connection is not None)


@in_lab
async def test_an_idle_worker_is_small_and_quiet(lab: Lab) -> None:
    """The figures themselves are in bench/; here is a bound that only a blunder passes."""
    worker = await lab.join()
    assert worker.memory_kib("VmRSS") < 64_000
    # What belongs to its start may go on for a while.
    used = 100
    while used > 6:
        before = worker.ticks()
        await asyncio.sleep(2)
        used = worker.ticks() - before
    with contextlib.suppress(ProcessLookupError):
        assert "spawnd" in command_line(worker.spawn_server())


@in_lab
async def test_a_returned_lease_of_a_stopping_worker_is_not_lost(lab: Lab) -> None:
    worker = await lab.join(slots=1)
    lab.acknowledge = False
    (lease,) = lab.assign(lab.define(["sh", "-c", 'trap "sleep .5; exit" TERM; while :; do sleep .05; done']), 1)
    await lab.started(lease)
    worker.terminate()
    await lab.until(lambda: "stopping" in worker.log_text())
    (late,) = lab.assign(lab.define(["true"]), 1)
    await lab.until(lambda: late in lab.returned())
    assert lab.messages(Returned)
