"""The runner `stream` in a real worker: pipelining, deaths, wrong answers, limits, reuse."""

import hashlib
import os
import signal
import sys
import time
from typing import Any

from districomp.messages import Reports, Stop
from districomp.model import Blob
from districomp.taskdef import Limits
from tests.integration.workerlab import Lab, children, in_lab, is_alive
from tests.priority import sharing

ECHO = "import sys\nfor line in sys.stdin:\n    print(line.strip() * 2, flush=True)\n"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code.replace("{", "{{").replace("}", "}}")]


def stream(code: str, **more: Any) -> dict[str, Any]:
    return {"runner": "stream", "argv": python(code)} | more


async def results(lab: Lab, job: int, items: list[bytes]) -> list[bytes]:
    rows = await lab.ended(lab.assign(job, list(items)))
    assert {row.reason for row in rows} == {"done"}
    return [row.result for row in rows if isinstance(row.result, bytes)]


@in_lab
async def test_items_in_answers_out_in_one_process_a_slot(lab: Lab) -> None:
    worker = await lab.join()
    job = lab.define(**stream("import os, sys\nfor line in sys.stdin: print(os.getpid(), line.strip(), flush=True)"))
    answers = await results(lab, job, [b"%d" % number for number in range(500)])
    assert [answer.split()[1] for answer in answers] == [b"%d" % number for number in range(500)]
    assert len({answer.split()[0] for answer in answers}) <= 2
    assert len(children(worker.spawn_server())) <= 2
    rows = [lab.reported[lease] for lease in sorted(lab.reported)]
    assert all(row.started is not None and row.started <= row.ended for row in rows)
    assert all(row.exit_code is None and row.cpu_s is None for row in rows)


@in_lab
async def test_numbers_and_no_items_go_through_too(lab: Lab) -> None:
    await lab.join()
    job = lab.define(numbers=(5, 10), **stream(ECHO))
    rows = await lab.ended(lab.assign(job, 3))
    assert [row.result for row in rows] == [b"55", b"1515", b"2525"]
    (row,) = await lab.ended(lab.assign(lab.define(**stream(ECHO)), 1))
    assert row.result == b""


@in_lab
async def test_many_short_tasks_travel_in_batches(lab: Lab) -> None:
    await lab.join()
    job = lab.define(runner="stream", argv=["cat"])
    count = 10_000
    for first in range(0, count, 1000):
        lab.assign(job, [b"%d" % number for number in range(first, first + 1000)], first)
    begun = time.monotonic()
    await lab.until(lambda: len(lab.reported) == count)
    print(f"{count / (time.monotonic() - begun):.0f} tasks/s")
    assert all(row.result == b"%d" % row.index for row in lab.reported.values())
    assert len(lab.messages(Reports)) < count / 10


@in_lab
async def test_the_json_format(lab: Lab) -> None:
    await lab.join()
    code = (
        "import json, sys\n"
        "for line in sys.stdin:\n"
        "    asked = json.loads(line)\n"
        "    if asked['item'] == 'bad': answer = {'error': 'it is bad'}\n"
        "    else: answer = {'result': asked['item'].upper() + str(asked['params']['n'])}\n"
        "    print(json.dumps({'id': asked['id']} | answer), flush=True)\n"
    )
    job = lab.define(values={"n": 5}, **stream(code, format="json"))
    good, bad = await lab.ended(lab.assign(job, [b"a\nb", b"bad"]))
    assert good.result == b"A\nB5"
    assert (bad.reason, bad.exit_code, bad.stderr) == ("exit", 1, b"it is bad")


@in_lab
async def test_a_crash_costs_the_item_in_hand_alone(lab: Lab) -> None:
    await lab.join(slots=1)
    code = (
        "import os, sys\n"
        "for line in sys.stdin:\n"
        "    if line == 'die\\n': print('dying', file=sys.stderr); sys.exit(7)\n"
        "    if line == 'killed\\n': os.kill(os.getpid(), 9)\n"
        "    print(line.strip(), flush=True)\n"
    )
    items = [b"%d" % number for number in range(200)]
    items[100], items[150] = b"die", b"killed"
    rows = await lab.ended(lab.assign(lab.define(**stream(code)), list(items)))
    assert [row.reason for row in rows if row.index not in (100, 150)] == ["done"] * 198
    assert (rows[100].reason, rows[100].exit_code, rows[100].stderr) == ("exit", 7, b"dying\n")
    assert (rows[150].reason, rows[150].signal) == ("signal", 9)


@in_lab
async def test_a_program_may_retire_after_some_items(lab: Lab) -> None:
    await lab.join(slots=1)
    code = "import sys\nfor _ in range(7):\n    print(sys.stdin.readline().strip(), flush=True)\n"
    job = lab.define(**stream(code))
    items = [b"%d" % number for number in range(60)]
    assert await results(lab, job, items) == items


@in_lab
async def test_a_program_that_answers_nothing_and_ends(lab: Lab) -> None:
    await lab.join()
    rows = await lab.ended(lab.assign(lab.define(runner="stream", argv=["true"]), [b"a", b"b", b"c"]))
    assert {row.reason for row in rows} == {"output_invalid"}
    assert b"ended without an answer" in rows[0].stderr


@in_lab
async def test_a_program_that_says_too_much(lab: Lab) -> None:
    await lab.join(slots=1)
    twice = "import sys\nfor line in sys.stdin: sys.stdout.write('a\\nb\\n'); sys.stdout.flush()\n"
    rows = await lab.ended(lab.assign(lab.define(**stream(twice)), [b"1", b"2"]))
    assert {row.reason for row in rows} == {"output_invalid"}
    assert b"answers no item: 'b'" in rows[0].stderr


@in_lab
async def test_a_word_between_items_is_held_against_the_next(lab: Lab) -> None:
    worker = await lab.join(slots=1)
    told = lab.mark()
    late = (
        "import os, sys, time\n"
        "for line in sys.stdin:\n"
        "    print('answer', flush=True)\n"
        f"    while not os.path.exists('{told}'): time.sleep(.02)\n"
        "    print('by the way', flush=True)\n"
    )
    job = lab.define(**stream(late))
    (first,) = await lab.ended(lab.assign(job, [b"1"]))
    assert first.reason == "done"
    told.touch()
    # It is ended for that.
    await lab.until(lambda: not children(worker.spawn_server()))
    (second,) = await lab.ended(lab.assign(job, [b"2"]))
    assert second.reason == "output_invalid"
    assert b"by the way" in second.stderr


@in_lab
async def test_a_program_that_is_not_there(lab: Lab) -> None:
    await lab.join()
    rows = await lab.ended(lab.assign(lab.define(runner="stream", argv=["no-such-program"]), [b"1", b"2", b"3"]))
    assert {row.reason for row in rows} == {"not_started"}
    assert b"not installed" in rows[0].stderr
    rows = await lab.ended(lab.assign(lab.define(runner="stream", argv=["./none"]), [b"1"]))
    assert rows[0].reason == "not_started"
    assert b"does not exist" in rows[0].stderr


@in_lab
async def test_the_time_limit_is_a_task_s_not_the_process(lab: Lab) -> None:
    await lab.join(slots=1)
    code = "import sys, time\nfor line in sys.stdin:\n    time.sleep(float(line))\n    print('ok', flush=True)\n"
    # A first one's time is also that of its interpreter's start; the first five together take longer than one may.
    items = [b"0"] + [b"2.1"] * 4 + [b"100"] + [b"0"] * 3
    rows = await lab.ended(lab.assign(lab.define(limits=Limits(time_s=8.0), **stream(code)), list(items)))
    assert [row.reason for row in rows] == ["done"] * 5 + ["timeout"] + ["done"] * 3
    assert rows[5].signal == 15
    assert rows[5].started is not None
    assert 7.9 < rows[5].ended - rows[5].started < 12 * sharing()


@in_lab
async def test_a_stop_ends_the_process_and_spares_the_others(lab: Lab) -> None:
    worker = await lab.join(slots=1)
    code = "import sys, time\nfor line in sys.stdin:\n    time.sleep(float(line))\n    print('ok', flush=True)\n"
    job = lab.define(**stream(code))
    await results(lab, job, [b"0"] * 100)
    (pid,) = children(worker.spawn_server())
    leases = lab.assign(job, [b"1000", *[b"0"] * 20])
    await lab.started(leases[0])
    lab.send(Stop([leases[0], leases[5]]))
    rows = await lab.ended(leases)
    assert [row.reason for row in rows] == ["cancelled", *["done"] * 4, "cancelled", *["done"] * 15]
    assert not is_alive(pid)


@in_lab
async def test_a_program_that_reads_nothing_holds_nobody_up(lab: Lab) -> None:
    """Back pressure: the pipe is full, the worker goes on."""
    await lab.join(slots=2)
    slow = lab.define(**stream("import sys, time\nfor line in sys.stdin:\n    time.sleep(1000)\n"))
    stuck = lab.assign(slow, [b"x" * 60_000] * 8)
    await lab.started(stuck[0])
    lab.send(Stop(stuck[1:]))
    await lab.ended(stuck[2:])
    assert (await lab.run(["echo", "alive"]))[0].result == b"alive\n"


@in_lab
async def test_a_program_that_closes_its_pipes(lab: Lab) -> None:
    await lab.join(slots=1)
    closes_output = "import os, sys, time\nsys.stdin.readline()\nos.close(1)\ntime.sleep(1000)\n"
    (row,) = await lab.ended(lab.assign(lab.define(**stream(closes_output)), [b"1"]))
    assert row.reason == "output_invalid"
    assert b"closed its standard output" in row.stderr
    closes_input = "import os, sys, time\nos.close(0)\ntime.sleep(1000)\n"
    rows = await lab.ended(lab.assign(lab.define(**stream(closes_input)), [b"x" * 65_536] * 2))
    assert {row.reason for row in rows} == {"output_invalid"}
    assert b"closed its standard input" in rows[0].stderr


@in_lab
async def test_large_items_and_results(lab: Lab) -> None:
    await lab.join()
    job = lab.define(runner="stream", argv=["cat"])
    body = b"z" * 300_000
    lab.data.files[f"/tasks/{job}.1"] = body
    rows = await lab.ended(lab.assign(job, [b"small", lab.data.add_blob(body), b"small too"]))
    assert [row.result for row in rows] == [b"small", Blob(hashlib.sha256(body).digest(), len(body)), b"small too"]
    assert lab.data.files[f"/blobs/{hashlib.sha256(body).hexdigest()}"] == body


@in_lab
async def test_an_answer_over_the_limit_and_a_newline_in_an_item(lab: Lab) -> None:
    await lab.join(slots=1)
    job = lab.define(runner="stream", argv=["cat"], limits=Limits(result_bytes=10))
    rows = await lab.ended(lab.assign(job, [b"short", b"much too long", b"a\nb", b"fine"]))
    assert [row.reason for row in rows] == ["done", "result_too_large", "not_started", "done"]


@in_lab
async def test_an_endless_line_is_cut_off(lab: Lab) -> None:
    worker = await lab.join(slots=1)
    job = lab.define(runner="stream", argv=["cat", "/dev/zero"])
    (row,) = await lab.ended(lab.assign(job, [b"1"]))
    assert row.reason == "result_too_large"
    assert worker.memory_kib("VmHWM") < 300_000


@in_lab
async def test_params_and_definitions_have_processes_of_their_own(lab: Lab) -> None:
    worker = await lab.join(slots=1)
    jobs = [lab.define(**stream(ECHO)) for _ in range(6)]
    for number, job in enumerate(jobs):
        assert await results(lab, job, [b"%d" % number]) == [b"%d%d" % (number, number)]
    await lab.until(lambda: len(children(worker.spawn_server())) == 4)


@in_lab
async def test_a_bundle_and_the_environment(lab: Lab) -> None:
    await lab.join()
    script = b'#!/bin/sh\nwhile read -r line; do echo "$line $HOME $(pwd) ${DISTRICOMP_TASK-none} $OWN $SECRET"; done\n'
    bundle = lab.data.add_bundle({"serve": (0o755, script)})
    job = lab.define(runner="stream", argv=["./serve"], bundle=bundle, env={"OWN": "own"})
    (row,) = await lab.ended(lab.assign(job, [b"hey"]))
    assert isinstance(row.result, bytes)
    line, home, folder, task, own = row.result.decode().split()
    assert (line, task, own) == ("hey", "none", "own")
    assert home == folder


@in_lab
async def test_sigterm_and_the_death_of_the_spawn_server(lab: Lab) -> None:
    worker = await lab.join(slots=1)
    code = "import sys, time\nfor line in sys.stdin:\n    time.sleep(float(line))\n    print('ok', flush=True)\n"
    job = lab.define(**stream(code))
    await results(lab, job, [b"0"] * 50)
    leases = lab.assign(job, [b"1000", b"0", b"0"])
    await lab.started(leases[0])
    os.kill(worker.spawn_server(), signal.SIGKILL)
    rows = await lab.ended(leases)
    assert [row.reason for row in rows] == ["worker_stopped", "done", "done"]
    leases = lab.assign(job, [b"1000", b"0", b"0"], first=10)
    await lab.started(leases[0])
    worker.terminate()
    assert await worker.exit_code() == 0
    reported = [lease for lease in leases if lease in lab.reported]
    assert sorted(reported + [lease for lease in lab.returned() if lease in leases]) == leases
    assert {lab.reported[lease].reason for lease in reported} == {"worker_stopped"}


@in_lab
async def test_a_program_that_closes_its_input_while_nothing_is_left_to_write(lab: Lab) -> None:
    """Without a time limit: it must not wait for ever for what nobody will read."""
    await lab.join(slots=1)
    job = lab.define(**stream("import os, time\nos.close(0)\ntime.sleep(1000)\n"))
    rows = await lab.ended(lab.assign(job, [b"small"] * 2))
    assert [row.reason for row in rows] == ["output_invalid"] * 2
    assert b"closed its standard input before it had read all items" in rows[0].stderr
    assert rows[0].started is not None
    assert rows[0].ended - rows[0].started < 5 * sharing()


@in_lab
async def test_a_program_may_close_its_input_and_still_answer_what_it_has_read(lab: Lab) -> None:
    worker = await lab.join(slots=1)
    code = (
        "import os, sys, time\n"
        "line = sys.stdin.buffer.raw.readline()\n"
        "os.close(0)\n"
        "time.sleep(2.5)\n"
        "os.write(1, line)\n"
        "time.sleep(1000)\n"
    )
    job = lab.define(**stream(code))
    (first,) = await lab.ended(lab.assign(job, [b"1"]))
    assert (first.reason, first.result) == ("done", b"1")
    (pid,) = children(worker.spawn_server())
    (second,) = await lab.ended(lab.assign(job, [b"2"]))
    assert second.result == b"2", "by another process: the first hears nothing any more"
    assert not is_alive(pid)


@in_lab
async def test_a_newline_in_an_item_that_had_to_be_fetched(lab: Lab) -> None:
    await lab.join(slots=1)
    job = lab.define(runner="stream", argv=["cat"])
    body = b"z" * 100_000 + b"\n" + b"z"
    lab.data.files[f"/tasks/{job}.1"] = body
    before, bad, after = await lab.ended(lab.assign(job, [b"before", lab.data.add_blob(body), b"after"]))
    assert (before.result, after.result) == (b"before", b"after")
    assert (bad.reason, bad.exit_code) == ("not_started", None)
    assert bad.stderr == b"The item has a newline, and the definition's format is lines."


@in_lab
async def test_programs_and_bundles_that_cannot_be_had(lab: Lab) -> None:
    await lab.join(slots=1)
    bundle = lab.data.add_bundle({"plain": (0o644, b"#!/bin/sh\n"), "lost": (0o755, b"#!/bin/sh\ncat\n")})
    (row,) = await lab.ended(lab.assign(lab.define(["./plain"], runner="stream", bundle=bundle), [b"1"]))
    assert (row.reason, row.stderr) == (
        "not_started",
        b"The program './plain' is not executable; check its permission bits.",
    )
    bundle = lab.data.add_bundle({"dir/lost": (0o755, b"#!/bin/sh\ncat; true\n")})
    del lab.data.files["/blobs/" + hashlib.sha256(b"#!/bin/sh\ncat; true\n").hexdigest()]
    for runner in ("stream", "python", "command"):
        (row,) = await lab.ended(lab.assign(lab.define(["dir/lost"], runner=runner, bundle=bundle), [b"1"]))
        assert row.reason == "not_started"
        assert b"could not fetch" in row.stderr
        assert b"'dir/lost' of the bundle" in row.stderr


async def behind_a_long_one(lab: Lab, job: int) -> list[int]:
    """In two slots: a crowd of short tasks, then number 600, which takes long, with many behind it; when it runs, the leases."""
    await lab.ended(lab.assign(job, [b"0"] * 2000))
    items: list[Any] = [b"0"] * 3000
    items[600] = b"1000"
    leases = lab.assign(job, items, first=2000)
    await lab.started(leases[600])
    return leases


@in_lab
async def test_nothing_queues_behind_a_task_that_takes_long_but_what_its_program_has_read(lab: Lab) -> None:
    await lab.join(slots=2)
    # A program that reads no further than the item that it works at.
    code = (
        "import os, time\n"
        "while True:\n"
        "    line = b''\n"
        "    while not line.endswith(b'\\n'):\n"
        "        line += os.read(0, 1)\n"
        "    time.sleep(float(line))\n"
        "    os.write(1, line)\n"
    )
    job = lab.define(**stream(code))
    leases = await behind_a_long_one(lab, job)
    others = [lease for lease in leases if lease != leases[600]]
    rows = await lab.ended(others)
    assert {(row.reason, row.result) for row in rows} == {("done", b"0")}
    lab.send(Stop([leases[600]]))
    (row,) = await lab.ended([leases[600]])
    assert row.reason == "cancelled"
    assert await results(lab, job, [b"0.0", b"0.00"]) == [b"0.0", b"0.00"]


@in_lab
async def test_an_item_that_is_read_in_part_stays_where_it_is(lab: Lab) -> None:
    await lab.join(slots=1)
    # It reads so many bytes at once that the last item it has is never whole.
    code = (
        "import os, sys, time\n"
        "rest = b''\n"
        "while True:\n"
        "    rest += os.read(0, 37)\n"
        "    while b'\\n' in rest:\n"
        "        line, _, rest = rest.partition(b'\\n')\n"
        "        if b'long' in line: time.sleep(0.4)\n"
        "        os.write(1, line + b'\\n')\n"
    )
    job = lab.define(**stream(code))
    items = [b"%d" % number * 5 for number in range(3000)]
    for place in (1000, 2000):
        items[place] = b"long%d" % place
    assert await results(lab, job, items) == items


@in_lab
async def test_json_items_are_taken_back_too(lab: Lab) -> None:
    await lab.join(slots=2)
    code = (
        "import json, os, time\n"
        "while True:\n"
        "    line = b''\n"
        "    while not line.endswith(b'\\n'):\n"
        "        line += os.read(0, 1)\n"
        "    asked = json.loads(line)\n"
        "    time.sleep(float(asked['item']))\n"
        "    os.write(1, json.dumps({'id': asked['id'], 'result': asked['item']}).encode() + b'\\n')\n"
    )
    job = lab.define(**stream(code, format="json"))
    leases = await behind_a_long_one(lab, job)
    await lab.ended([lease for lease in leases if lease != leases[600]])
