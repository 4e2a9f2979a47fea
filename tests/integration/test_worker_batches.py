"""Programs that go wrong in the middle of hundreds of tasks: one task pays, with a reason that a person can read, and no other."""

import sys
from collections.abc import Callable
from typing import Any

import pytest

from districomp.messages import Ack, Reports, Stop
from districomp.taskdef import Limits
from tests.integration.workerlab import Lab, Row, in_lab

ANSWERS = (
    "import os, signal, sys, time\n"
    "for line in sys.stdin:\n"
    "    line = line.strip()\n"
    "    if line.endswith('bad'):\n"
    "        {fault}\n"
    "    sys.stdout.write(line + '\\n')\n"
    "    sys.stdout.flush()\n"
)


def program(fault: str, **more: Any) -> dict[str, Any]:
    code = ANSWERS.replace("{fault}", fault)
    return {"runner": "stream", "argv": [sys.executable, "-c", code.replace("{", "{{").replace("}", "}}")]} | more


async def batch(lab: Lab, job: int, at: int) -> tuple[list[Row], Row]:
    """A crowd of short tasks so that hundreds are in hand, then a bad one; the rows of all but that, and its own."""
    await lab.ended(lab.assign(job, [b"warm"] * 3000))
    items: list[Any] = [b"%d" % number for number in range(1000)]
    items[at] += b"bad"
    rows = await lab.ended(lab.assign(job, items, first=3000))
    bad = rows.pop(at)
    assert [(row.reason, row.result, row.attempt) for row in rows] == [
        ("done", item, 1) for place, item in enumerate(items) if place != at
    ]
    return rows, bad


def crashes(row: Row) -> bool:
    return row.reason == "signal" and row.signal == 9


def times_out(row: Row) -> bool:
    assert row.started is not None
    return row.reason == "timeout" and row.ended - row.started > 7.9


@pytest.mark.parametrize(
    ("fault", "more", "is_told"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", {}, crashes),
        ("print('no idea', file=sys.stderr); sys.exit(5)", {}, lambda row: row.exit_code == 5 and row.stderr == b"no idea\n"),
        ("time.sleep(1000)", {"limits": Limits(time_s=8.0)}, times_out),
        ("os.close(1); time.sleep(1000)", {}, lambda row: b"closed its standard output before it had answered" in row.stderr),
        ("line = 'x' * 5000", {"limits": Limits(result_bytes=1000)}, lambda row: row.reason == "result_too_large" and b"more than 1,000 bytes" in row.stderr),
    ],
    ids=["killed", "exit", "stuck", "mute", "too long"],
)  # fmt: skip
@pytest.mark.parametrize("at", [2, 700])
def test_one_of_hundreds(
    fault: str, more: dict[str, Any], is_told: Callable[[Row], bool], at: int, tmp_path: Any
) -> None:
    @in_lab
    async def run(lab: Lab) -> None:
        await lab.join(slots=1)
        _, bad = await batch(lab, lab.define(**program(fault, **more)), at)
        assert is_told(bad), bad

    run(tmp_path)


@in_lab
async def test_a_program_that_ends_well_in_the_middle_costs_nobody_anything(lab: Lab) -> None:
    await lab.join(slots=1)
    job = lab.define(**program("print(line, flush=True); sys.exit(0)"))
    _, bad = await batch(lab, job, 500)
    assert bad.reason == "done"


@in_lab
async def test_a_program_that_never_reads_and_never_answers(lab: Lab) -> None:
    worker = await lab.join(slots=2)
    before = worker.memory_kib("VmHWM")
    limits = Limits(time_s=0.5)
    job = lab.define(runner="stream", argv=["sleep", "1000"], limits=limits)
    rows = await lab.ended(lab.assign(job, [b"x" * 50_000] * 6))
    assert [row.reason for row in rows] == ["timeout"] * 6
    assert worker.memory_kib("VmHWM") - before < 4_000, "the items have 300"


@in_lab
async def test_json_that_is_none_or_twice_in_the_middle(lab: Lab) -> None:
    await lab.join(slots=1)
    code = (
        "import json, sys\n"
        "for line in sys.stdin:\n"
        "    asked = json.loads(line)\n"
        "    answer = json.dumps({'id': asked['id'], 'result': asked['item']})\n"
        "    if asked['item'].endswith('bad'): answer = FAULT\n"
        "    print(answer, flush=True)\n"
    )
    for fault, why in (
        ("'Segmentation fault, not really'", b"a line that is not an answer"),
        ("json.dumps({'id': '1.0', 'result': 'again'})", b"has answered before"),
        ("json.dumps({'id': asked['id']})", b"exactly one of result"),
    ):
        text = code.replace("FAULT", fault).replace("{", "{{").replace("}", "}}")
        job = lab.define(runner="stream", argv=[sys.executable, "-c", text], format="json")
        _, bad = await batch(lab, job, 400)
        assert (bad.reason, why in bad.stderr) == ("output_invalid", True), bad


@in_lab
async def test_a_python_function_that_dies_or_hangs_in_the_middle(lab: Lab) -> None:
    await lab.join(slots=1)
    for fault in ("os.kill(os.getpid(), 9)", "time.sleep(1000)"):
        code = f"import os, time\ndef run(data):\n    if data.endswith(b'bad'): {fault}\n    return data\n"
        bundle = lab.data.add_bundle({"main.py": (0o644, code.encode())})
        job = lab.define(runner="python", argv=["main:run"], bundle=bundle, limits=Limits(time_s=8.0))
        _, bad = await batch(lab, job, 600)
        assert bad.reason in ("signal", "timeout")


@in_lab
async def test_results_are_kept_once_until_they_are_acknowledged_and_no_longer(lab: Lab) -> None:
    worker = await lab.join(slots=1)
    job = lab.define(runner="stream", argv=["cat"])
    await lab.ended(lab.assign(job, [b"warm"] * 100))
    before = worker.memory_kib("VmRSS")

    async def run_all() -> int:
        """2,000 results of 10,000 bytes; by how much the worker is larger then."""
        leases = [lease for _ in range(25) for lease in lab.assign(job, [b"x" * 10_000] * 80)]
        await lab.ended(leases)
        lab.send(Stop(leases))
        await lab.ended(lab.assign(job, [b"alive"]))
        return worker.memory_kib("VmRSS") - before

    lab.acknowledge = False
    assert 20_000 < await run_all() < 30_000
    lab.acknowledge = True
    lab.send(Ack([message.serial for message in lab.heard if isinstance(message, Reports)]))
    assert await run_all() < 30_000
