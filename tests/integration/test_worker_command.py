"""The runner `command` in a real worker: environment, data, limits, ends of every kind."""

import hashlib
import os
import sys
import time
from pathlib import Path

from districomp.messages import Recall, Stop
from districomp.model import INLINE_BYTES_MAX, STDERR_TAIL_BYTES, Blob, File
from districomp.taskdef import Limits, Param
from tests.integration.workerlab import Lab, in_lab, is_alive
from tests.priority import timed

PYTHON = sys.executable
MOVED = "cd /; setsid sleep 1000 & echo $!"
# For a while as if in the middle of `execve`, where a process has no environment.
LATE = """cd /
setsid env -i sh -c 'sleep .3; export DISTRICOMP_TASK=$0 DISTRICOMP_ATTEMPT=$1; exec sleep 1000' $DISTRICOMP_TASK $DISTRICOMP_ATTEMPT &
while [ "$(cat /proc/$!/comm)" != sh ] || grep -q . /proc/$!/environ; do :; done
echo $!"""


def python(code: str) -> list[str]:
    return [PYTHON, "-c", code.replace("{", "{{").replace("}", "}}")]


@in_lab
async def test_data_in_result_out(lab: Lab) -> None:
    await lab.join()
    rows = await lab.run(["cat"], [b"one", b"", b"\x00\xff\n", b"x" * INLINE_BYTES_MAX])
    assert [row.result for row in rows] == [b"one", b"", b"\x00\xff\n", b"x" * INLINE_BYTES_MAX]
    assert {(row.reason, row.exit_code, row.signal) for row in rows} == {("done", 0, None)}
    for row in rows:
        assert row.started is not None
        assert abs(row.started - time.time()) < 60
        assert row.ended >= row.started
        assert row.cpu_s is not None
        assert row.cpu_s < 1
        assert row.memory_bytes is not None
        assert row.memory_bytes > 100_000


@in_lab
async def test_arguments_are_filled_in(lab: Lab) -> None:
    await lab.join()
    params = {"words": Param("list"), "n": Param("int")}
    argv = ["printf", "%s|", "{words}", "{item}", "{index}", "{n}"]
    job = lab.define(argv, values={"words": ["a b", "c"], "n": 7}, params=params)
    rows = await lab.ended(lab.assign(job, [b"the item", File("some/path", b"content")]))
    assert [row.result for row in rows] == [b"a b|c|the item|0|7|", b"a b|c|some/path|1|7|"]


@in_lab
async def test_the_environment_is_exactly_what_is_promised(lab: Lab) -> None:
    await lab.join()
    job = lab.define(["env", "-0"], env={"LANG": "C", "OWN": "{not filled in}"})
    lease, long, _ = lab.assign(job, [b"caf\xc3\xa9", b"x" * 4097, b"\xff"], first=5)
    row, without, raw = await lab.ended([lease, long, long + 1])
    assert isinstance(row.result, bytes)
    env = dict(entry.split("=", 1) for entry in row.result.decode().rstrip("\0").split("\0"))
    home = env.pop("HOME")
    assert Path(home).is_absolute()
    assert env == {
        "PATH": os.environ["PATH"],
        "LANG": "C",
        "TMPDIR": home,
        "OWN": "{not filled in}",
        "DISTRICOMP_TASK": f"{job}.5",
        "DISTRICOMP_JOB": str(job),
        "DISTRICOMP_INDEX": "5",
        "DISTRICOMP_ATTEMPT": "1",
        "DISTRICOMP_ITEM": "caf\u00e9",
    }
    for other in (without, raw):
        assert isinstance(other.result, bytes)
        assert b"DISTRICOMP_ITEM" not in other.result


@in_lab
async def test_each_task_has_a_fresh_folder_that_is_removed(lab: Lab) -> None:
    worker = await lab.join()
    code = "import os; print(os.getcwd(), os.listdir()); os.makedirs('a/b'); open('a/b/c', 'w'); os.chmod('a', 0)"
    rows = await lab.run(python(code), 3)
    words = [row.result.decode().split(" ", 1) for row in rows if isinstance(row.result, bytes)]
    assert [listing.strip() for _, listing in words] == ["[]"] * 3
    assert len({folder for folder, _ in words}) == 3
    await lab.until(lambda: not list((worker.state / "run").iterdir()))


@in_lab
async def test_each_task_leads_a_process_group_and_has_no_other_descriptors(lab: Lab) -> None:
    await lab.join()
    code = "import os; print(os.getpid() == os.getpgid(0), sorted(map(int, os.listdir('/proc/self/fd'))))"
    (row,) = await lab.run(python(code))
    assert row.result == b"True [0, 1, 2, 3]\n"


@in_lab
async def test_signals_and_limits_are_as_if_started_from_a_shell(lab: Lab) -> None:
    await lab.join()
    (row,) = await lab.run(["sh", "-c", "ulimit -n; ulimit -c; cat /proc/self/status"])
    assert isinstance(row.result, bytes)
    files, core, status = row.result.decode().split("\n", 2)
    assert (files, core) == ("900", "0")
    masks = dict(line.split(":\t") for line in status.splitlines() if line.startswith("Sig"))
    # glibc's posix_spawn leaves its own two signals, 32 and 33, ignored.
    assert [int(masks[name], 16) & 0x7FFFFFFF for name in ("SigBlk", "SigIgn")] == [0, 0]


@in_lab
async def test_exit_codes_signals_and_standard_error(lab: Lab) -> None:
    await lab.join()
    failed, killed = await lab.run(["sh", "-c", 'echo why >&2; [ "$0" = 0 ] && exit 3; kill -SEGV $$', "{index}"], 2)
    assert (failed.reason, failed.exit_code, failed.signal, failed.stderr) == ("exit", 3, None, b"why\n")
    assert (killed.reason, killed.exit_code, killed.signal, killed.result) == ("signal", None, 11, None)


@in_lab
async def test_only_the_end_of_standard_error_is_kept(lab: Lab) -> None:
    await lab.join()
    (row,) = await lab.run(python("import os\nfor i in range(300): os.write(2, b'%9d\\n' % i * 1000)"))
    assert len(row.stderr) == STDERR_TAIL_BYTES
    assert row.stderr.endswith(b"      299\n")


@in_lab
async def test_a_large_result_is_uploaded_and_forgotten_after_its_acknowledgement(lab: Lab) -> None:
    worker = await lab.join()
    lab.acknowledge = False
    lab.data.failures = 2
    size = 5_000_000
    (row,) = await lab.run(["head", "-c", str(size), "/dev/zero"])
    digest = hashlib.sha256(bytes(size))
    assert row.result == Blob(digest.digest(), size)
    assert lab.data.files[f"/blobs/{digest.hexdigest()}"] == bytes(size)
    assert [path.stat().st_size for path in (worker.state / "spool").rglob("*") if path.is_file()] == [size]
    from districomp.messages import Ack, Reports

    lab.send(Ack([message.serial for message in lab.messages(Reports)]))
    await lab.until(lambda: not [path for path in (worker.state / "spool").rglob("*") if path.is_file()])


@in_lab
async def test_endless_output_is_cut_off_without_filling_memory(lab: Lab) -> None:
    worker = await lab.join()
    (row,) = await lab.run(["cat", "/dev/zero"], limits=Limits(result_bytes=200_000_000))
    assert (row.reason, row.result) == ("result_too_large", None)
    assert worker.memory_kib("VmHWM") < 80_000
    await lab.until(lambda: not [path for path in (worker.state / "spool").rglob("*") if path.is_file()])


@in_lab
async def test_a_small_result_over_the_limit(lab: Lab) -> None:
    await lab.join()
    fits, over = await lab.run(["cat"], [b"x" * 10, b"x" * 11], limits=Limits(result_bytes=10))
    assert (fits.reason, fits.result) == ("done", b"x" * 10)
    assert (over.reason, over.result) == ("result_too_large", None)


@in_lab
async def test_a_large_item_is_fetched(lab: Lab) -> None:
    await lab.join()
    body = os.urandom(1_000_000)
    job = lab.define(["sha256sum"])
    lab.data.files[f"/tasks/{job}.0"] = lab.data.files[f"/tasks/{job}.1"] = body
    lab.data.failures = 1
    lab.data.lies = 2
    blob = lab.data.add_blob(body)
    rows = await lab.ended(lab.assign(job, [blob, File("name", blob)]))
    expected = hashlib.sha256(body).hexdigest().encode()
    assert [row.result.split()[0] for row in rows if isinstance(row.result, bytes)] == [expected] * 2


@in_lab
async def test_a_payload_that_cannot_be_had_hands_the_attempt_back(lab: Lab) -> None:
    await lab.join()
    job = lab.define(["cat"])
    lab.data.files[f"/tasks/{job}.1"] = b"y" * 100_000
    rows = await lab.ended(lab.assign(job, [Blob(b"\x01" * 32, 100_000)]))
    assert [row.reason for row in rows] == ["not_started"]
    assert rows[0].started is None
    assert b"404" in rows[0].stderr


@in_lab
async def test_a_bundle_is_laid_out_once_and_linked(lab: Lab) -> None:
    worker = await lab.join()
    script = b"#!/bin/sh\ncat data/words; ls; cat\n"
    bundle = lab.data.add_bundle(
        {"run": (0o755, script), "data/words": (0o644, b"bundled "), "data/deep/er": (0o600, b"")}
    )
    rows = await lab.run(["./run"], [b"a", b"b", b"c"], bundle=bundle)
    assert [row.result for row in rows] == [b"bundled data\nrun\n" + item for item in (b"a", b"b", b"c")]
    gets = len(lab.data.requests)
    assert gets == 4, "the manifest and three files, once"
    folder = worker.state / "bundles" / bundle
    assert [oct(path.stat().st_mode & 0o777) for path in sorted(folder.rglob("*"))] == [
        "0o555",
        "0o555",
        "0o444",
        "0o444",
        "0o555",
    ]
    again = await lab.run(["./run"], [b"d"], bundle=bundle)
    assert again[0].result == b"bundled data\nrun\nd"
    assert len(lab.data.requests) == gets


@in_lab
async def test_a_bundle_cannot_lead_out_of_its_folder(lab: Lab) -> None:
    await lab.join()
    for path in ("../evil", "/evil", "a/../../evil", ".", "a//b"):
        bundle = lab.data.add_bundle({path: (0o644, path.encode())})
        (row,) = await lab.run(["true"], bundle=bundle)
        assert row.reason == "not_started"
        assert b"not allowed" in row.stderr
    assert not list(lab.folder.rglob("evil"))


@in_lab
async def test_what_cannot_be_started_says_why(lab: Lab) -> None:
    await lab.join()
    bundle = lab.data.add_bundle({"plain": (0o644, b"echo"), "bad": (0o755, b"#!/no/such\n"), "odd": (0o755, b"?")})
    expected = {
        "no-such-program": b"is not installed on this worker",
        "./no-such": b"does not exist",
        "./plain": b"not executable",
        "./bad": b"interpreter",
        "./odd": b"neither a program",
        "/tmp": b"not executable",
    }
    for program, words in expected.items():
        (row,) = await lab.run([program], bundle=bundle)
        assert (row.reason, row.started, row.exit_code) == ("not_started", None, None)
        assert words in row.stderr, program
    (row,) = await lab.run(["echo", "{item}"], [b"\xff"])
    assert row.reason == "not_started"
    assert b"UTF-8" in row.stderr


@in_lab
async def test_the_time_limit_ends_the_whole_group(lab: Lab) -> None:
    await lab.join()
    # Long enough for any machine to start two processes.
    (row,) = await lab.run(["sh", "-c", "sleep 1000 & echo $! >&2; wait"], limits=Limits(time_s=5.0))
    assert (row.reason, row.signal) == ("timeout", 15)
    child = int(row.stderr)
    await lab.until(lambda: not is_alive(child))


@in_lab
async def test_children_that_are_left_behind_die_with_their_task(lab: Lab) -> None:
    """Those in a session of their own too, though another task runs, which keeps its own."""
    await lab.join(slots=2)
    note = lab.mark()
    (other,) = lab.assign(lab.define(["sh", "-c", f"(setsid sleep 1000 & echo $! >{note}); exec sleep 1000"]), 1)
    await lab.until(lambda: note.exists() and note.read_text().endswith("\n"))
    bystander = int(note.read_text())
    hidden = {"HOME": "/", "TMPDIR": "/tmp"}
    for script, env in (
        ("sleep 1000 & echo $!", {}),
        ("setsid sleep 1000 & echo $!", {}),
        (MOVED, hidden),
        (LATE, hidden),
    ):
        (row,) = await lab.run(["sh", "-c", script], env=env)
        assert isinstance(row.result, bytes)
        left = int(row.result)
        await lab.until(lambda: not is_alive(left))  # noqa: B023 -- it is awaited here
        assert is_alive(bystander)
    assert other not in lab.reported
    lab.send(Stop([other]))
    await lab.until(lambda: not is_alive(bystander))


@in_lab
async def test_odd_habits_with_pipes_do_no_harm(lab: Lab) -> None:
    await lab.join()
    closes = await lab.run(python("import os, time; os.write(1, b'said'); os.close(1); os.close(2); time.sleep(.1)"))
    ignores = await lab.run(["true"], [b"x" * INLINE_BYTES_MAX])
    holds = await lab.run(["sh", "-c", "echo out; setsid sleep 1000 & exit 0"])
    rows = closes + ignores + holds
    assert [(row.reason, row.result) for row in rows] == [("done", b"said"), ("done", b""), ("done", b"out\n")]
    large = await lab.run(["sh", "-c", "head -c 100000 /dev/zero; setsid sleep 1000 & exit 0"])
    assert [(row.reason, row.result) for row in large] == [
        ("done", Blob(hashlib.sha256(bytes(100_000)).digest(), 100_000))
    ]


@in_lab
async def test_a_stop_kills_what_ignores_it_and_the_slot_stays_busy_until_then(lab: Lab) -> None:
    await lab.join(slots=1)
    deaf = lab.mark()
    job = lab.define(["sh", "-c", f'trap "" TERM; : >{deaf}; while :; do sleep .05; done'])
    stubborn, waiting = lab.assign(job, 2)
    await lab.until(deaf.exists)
    (behind,) = lab.assign(lab.define(["true"]), 1)
    with timed() as took:
        lab.send(Stop([stubborn, waiting]))
        (unstarted,) = await lab.ended([waiting])
        assert (unstarted.reason, unstarted.started) == ("cancelled", None)
        (row,) = await lab.ended([stubborn])
    assert took.s > 9
    assert took.alone_s < 18
    assert (row.reason, row.signal) == ("cancelled", 9)
    (after,) = await lab.ended([behind])
    assert after.started is not None
    assert after.started >= row.ended


@in_lab
async def test_a_program_that_ends_well_when_told_is_still_cancelled(lab: Lab) -> None:
    await lab.join()
    ready = lab.mark()
    (lease,) = lab.assign(lab.define(["sh", "-c", f'trap "exit 0" TERM; : >{ready}; while :; do sleep .05; done']), 1)
    await lab.until(ready.exists)
    lab.send(Stop([lease]))
    (row,) = await lab.ended([lease])
    assert (row.reason, row.exit_code, row.result) == ("cancelled", 0, None)


@in_lab
async def test_a_stop_while_the_item_is_fetched(lab: Lab) -> None:
    await lab.join()
    lab.data.failures = 1_000_000
    (lease,) = lab.assign(lab.define(["cat"]), [Blob(b"\x01" * 32, 100_000)])
    await lab.started(lease)
    lab.send(Stop([lease]))
    (row,) = await lab.ended([lease])
    assert (row.reason, row.started) == ("cancelled", None)


@in_lab
async def test_a_recall_gives_back_what_waits(lab: Lab) -> None:
    await lab.join(slots=1)
    gate = lab.mark()
    leases = lab.assign(lab.define(["sh", "-c", f"until [ -e {gate} ]; do sleep .05; done"]), 3)
    await lab.started(leases[0])
    lab.send(Recall([leases[0], leases[2]]))
    await lab.until(lab.returned)
    gate.touch()
    assert lab.returned() == [leases[2]]
    assert [row.reason for row in await lab.ended(leases[:2])] == ["done"] * 2
    assert leases[2] not in lab.reported


@in_lab
async def test_hundreds_of_short_tasks(lab: Lab) -> None:
    await lab.join()
    job = lab.define(["true"])
    rows = await lab.ended(lab.assign(job, 400))
    assert {row.reason for row in rows} == {"done"}


@in_lab
async def test_items_that_turn_out_to_be_no_argument_once_they_are_fetched(lab: Lab) -> None:
    await lab.join()
    job = lab.define(["echo", "{item}"])
    size = INLINE_BYTES_MAX + 10
    bodies = [b"x" * size, b"x" * (size - 1) + b"\xff", b"x" * size + b"\0", b"x" * 200_000]
    for index, body in enumerate(bodies):
        lab.data.files[f"/tasks/{job}.{index}"] = body
    fine, raw, nul, long = await lab.ended(lab.assign(job, [lab.data.add_blob(body) for body in bodies]))
    assert (fine.reason, raw.reason, nul.reason, long.reason) == ("done", *["not_started"] * 3)
    assert f"byte {size} of it is not UTF-8".encode() in raw.stderr
    assert b"it has a NUL character" in nul.stderr
    assert b"it has 200,000 bytes" in long.stderr
    for row in (raw, nul, long):
        assert row.stderr.startswith(b"The item cannot be an argument of the command: ")


@in_lab
async def test_a_program_that_may_not_be_run(lab: Lab) -> None:
    await lab.join()
    bundle = lab.data.add_bundle({"plain": (0o644, b"#!/bin/sh\n"), "odd": (0o755, b"#!/no/such/shell\n")})
    for program, words in (
        ("./plain", b"The program './plain' is not executable; check its permission bits."),
        ("./none", b"The program './none' does not exist here, or the interpreter named in its first line does not."),
        ("./odd", b"The program './odd' does not exist here, or the interpreter named in its first line does not."),
        ("no-such", b"The program 'no-such' is not installed on this worker; it is in none of "),
    ):
        (row,) = await lab.run([program], bundle=bundle)
        assert (row.reason, row.stderr[: len(words)]) == ("not_started", words)
