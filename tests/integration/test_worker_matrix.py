"""Matrix jobs and requirements in a real worker: params by index, programs that the machine has."""

import os
from itertools import pairwise
from typing import Any

from districomp.messages import Ask, Has
from districomp.taskdef import Param
from tests.integration.workerlab import Lab, children, in_lab

Matrix = list[tuple[str, list[Any]]]
SERVE = 'while read -r line; do echo "$$ $0 $line"; done'
"""A shell's stream program: its pid, its argument, the item."""


@in_lab
async def test_a_command_has_its_arguments_by_index_and_no_input(lab: Lab) -> None:
    await lab.join()
    params = {"fixed": Param("str"), "n": Param("int"), "words": Param("list"), "ok": Param("bool")}
    matrix: Matrix = [("n", [1, 2, 3]), ("words", [["a", "b c"], []])]
    argv = ["sh", "-c", 'cat; for arg; do printf "%s|" "$arg"; done', "sh", "{fixed}", "-n{n}", "{words}", "{index}"]
    job = lab.define(argv, params=params, values={"fixed": "f", "ok": True}, matrix=matrix)
    rows = await lab.ended(lab.assign(job, 6))
    assert [row.result for row in rows] == [
        f"f|-n{n}|{words}{2 * (n - 1) + place}|".encode()
        for n in (1, 2, 3)
        for place, words in enumerate(("a|b c|", ""))
    ]


@in_lab
async def test_a_job_s_arguments_are_not_another_s(lab: Lab) -> None:
    """The number of a job may mean another one after the cluster has been made anew."""
    await lab.join(slots=1)
    params = {"n": Param("int")}
    first = lab.define(["echo", "{n}"], params=params, values={"n": 1})
    (row,) = await lab.ended(lab.assign(first, 1))
    assert row.result == b"1\n"
    await lab.hang_up()
    lab.cluster = "another"
    lab._next_job = first
    await lab.listen()
    await lab.until(lambda: lab.connection is not None)
    again = lab.define(["echo", "{n}"], params=params, values={"n": 2})
    assert again == first
    (row,) = await lab.ended(lab.assign(again, 1))
    assert row.result == b"2\n"


@in_lab
async def test_a_stream_gets_params_with_each_line_of_json(lab: Lab) -> None:
    worker = await lab.join(slots=1)
    params = {"x": Param("int"), "y": Param("str")}
    matrix: Matrix = [("x", [1, 2, 3, 4])]
    code = (
        "import json, os, sys\n"
        "for line in sys.stdin:\n"
        "    asked = json.loads(line)\n"
        "    said = [asked['item'], asked['params'], os.getpid()]\n"
        "    print(json.dumps({'id': asked['id'], 'result': json.dumps(said)}), flush=True)\n"
    )
    argv = ["python3", "-c", code.replace("{", "{{").replace("}", "}}")]
    job = lab.define(argv, runner="stream", format="json", params=params, values={"y": "why"}, matrix=matrix)
    rows = await lab.ended(lab.assign(job, 4))
    (pid,) = children(worker.spawn_server())
    assert [row.result for row in rows] == [f'["", {{"y": "why", "x": {x}}}, {pid}]'.encode() for x in (1, 2, 3, 4)]


@in_lab
async def test_a_stream_whose_arguments_vary_has_a_process_for_each_and_runs_one_at_a_time(lab: Lab) -> None:
    worker = await lab.join(slots=1)
    matrix: Matrix = [("again", list(range(8))), ("x", ["a", "b"])]
    params = {"again": Param("int"), "x": Param("str")}
    argv = ["sh", "-c", SERVE, "{x}"]
    job = lab.define(argv, runner="stream", params=params, matrix=matrix)
    rows = await lab.ended(lab.assign(job, 16))
    said = [row.result.split() for row in rows if isinstance(row.result, bytes)]
    assert [argument for _, argument in said] == [b"a", b"b"] * 8
    assert len({pid for pid, argument in said if argument == b"a"}) == 1, "the process of a value is kept"
    assert len(children(worker.spawn_server())) == 2
    times = sorted((row.started, row.ended) for row in rows if row.started is not None)
    assert all(ended <= started for (_, ended), (started, _) in pairwise(times))


@in_lab
async def test_more_values_than_processes_are_kept(lab: Lab) -> None:
    worker = await lab.join(slots=1)
    matrix: Matrix = [("x", [str(number) for number in range(12)])]
    job = lab.define(["sh", "-c", SERVE, "{x}"], runner="stream", params={"x": Param("str")}, matrix=matrix)
    rows = await lab.ended(lab.assign(job, 12))
    assert [row.result.split()[1] for row in rows if isinstance(row.result, bytes)] == [
        b"%d" % number for number in range(12)
    ]
    await lab.until(lambda: len(children(worker.spawn_server())) <= 4)


@in_lab
async def test_a_matrix_that_nobody_checked_fails_its_tasks_alone(lab: Lab) -> None:
    await lab.join()
    for runner in ("command", "stream", "python"):
        job = lab.define(["echo", "{x}"], runner=runner, params={"x": Param("str")}, matrix=[("x", [])])
        rows = await lab.ended(lab.assign(job, 2))
        assert [row.reason for row in rows] == ["not_started"] * 2
        assert b"cannot be run on this worker" in rows[0].stderr
    assert (await lab.run(["echo", "fine"]))[0].result == b"fine\n"


@in_lab
async def test_it_says_which_programs_the_machine_has(lab: Lab) -> None:
    tools = lab.folder / "tools"
    tools.mkdir()
    (tools / "no-right").touch(0o644)
    (tools / "own").touch(0o755)
    (tools / "a-folder").mkdir()
    await lab.join(path=f"{tools}:{os.environ['PATH']}")
    asked = ["sh", "no-such-program", "own", "no-right", "a-folder", "", ".", "/bin/sh", "a\0b", "x" * 5000, "sh"]
    lab.send(Ask(asked))
    await lab.until(lambda: lab.messages(Has))
    assert lab.messages(Has) == [Has(asked, ["sh", "own", "sh"])]
    lab.send(Ask([f"program-{number}" for number in range(9_000)]))
    await lab.until(lambda: len(lab.messages(Has)) == 2, 60)
    assert (await lab.run(["echo", "alive"]))[0].result == b"alive\n"
    assert len(lab.hellos) == 1


@in_lab
async def test_an_absurd_question_ends_the_connection_and_another_is_made(lab: Lab) -> None:
    await lab.join()
    lab.send(Ask([f"p{number}" for number in range(10_001)]))
    await lab.until(lambda: len(lab.hellos) == 2)
    assert not lab.messages(Has)
