"""The runner `python` in a real worker: functions of a bundle, their exceptions, deaths, prints and limits."""

import hashlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from districomp.messages import Reports, Stop
from districomp.model import Blob, File
from districomp.taskdef import Limits
from tests.integration.pythonlab import call, function, text
from tests.integration.workerlab import Lab, children, in_lab, is_alive


@in_lab
async def test_data_in_result_out_in_one_interpreter(lab: Lab) -> None:
    worker = await lab.join(slots=1)
    code = "import os\ncalls = 0\ndef run(data):\n    global calls\n    calls += 1\n    return f'{os.getpid()} {calls} {data}'\n"
    rows = await call(lab, code, [b"a", b"", b"\n\x00\xff", File("some/path", b"content")])
    said = [row.result.decode().split(" ", 2) for row in rows if isinstance(row.result, bytes)]
    assert len({pid for pid, _, _ in said}) == 1
    assert [(number, data) for _, number, data in said] == [
        ("1", repr(b"a")),
        ("2", repr(b"")),
        ("3", repr(b"\n\x00\xff")),
        ("4", repr(b"content")),
    ]
    assert all(row.started is not None and row.started <= row.ended for row in rows)
    assert len(children(worker.spawn_server())) == 1


@in_lab
async def test_params_are_keyword_arguments_and_stay_as_they_are(lab: Lab) -> None:
    worker = await lab.join(slots=1)
    code = (
        "def run(data, *, words, n, f, ok):\n"
        "    words.append('more')\n"
        "    return repr((data, words, n, f, ok)).encode()\n"
    )
    definition = function(lab, code)
    values = {"words": ["a"], "n": 7, "f": 1.5, "ok": True}
    job = lab.define(values=values, **definition)
    rows = await lab.ended(lab.assign(job, [b"x", b"y"]))
    assert [row.result for row in rows] == [
        b"(b'x', ['a', 'more'], 7, 1.5, True)",
        b"(b'y', ['a', 'more'], 7, 1.5, True)",
    ]
    other = lab.define(values=values | {"n": -1, "words": []}, version_of=job, numbers=(10, 5), **definition)
    rows = await lab.ended(lab.assign(other, 2))
    assert [row.result for row in rows] == [b"(b'10', ['more'], -1, 1.5, True)", b"(b'15', ['more'], -1, 1.5, True)"]
    assert len(children(worker.spawn_server())) == 1, "a process for the version, whatever the params"


@in_lab
async def test_a_matrix_goes_through_one_interpreter(lab: Lab) -> None:
    worker = await lab.join(slots=1)
    matrix: list[tuple[str, list[Any]]] = [("x", [1, 2, 3]), ("words", [["a"], []])]
    definition = function(lab, "def run(data, x, words, y): return repr((data, x, words, y))\n")
    job = lab.define(values={"y": 9}, matrix=matrix, **definition)
    rows = await lab.ended(lab.assign(job, 6))
    assert [row.result for row in rows] == [
        repr((b"", x, words, 9)).encode() for x in (1, 2, 3) for words in (["a"], [])
    ]
    assert len(children(worker.spawn_server())) == 1


@in_lab
async def test_an_exception_is_a_failure_with_its_traceback_and_no_frame_of_ours(lab: Lab) -> None:
    worker = await lab.join(slots=1)
    code = (
        "import sys\n"
        "def deeper(data):\n"
        "    return 1 // int(data)\n"
        "def run(data):\n"
        "    print('before', data)\n"
        "    print('and on standard error', end='', file=sys.stderr)\n"
        "    try:\n"
        "        return str(deeper(data))\n"
        "    except ValueError as error:\n"
        "        raise RuntimeError('no number') from error\n"
    )
    good, zero, word, again = await call(lab, code, [b"1", b"0", b"x", b"1"])
    assert (good.result, again.result) == (b"1", b"1")
    assert (zero.reason, zero.exit_code, zero.signal, zero.result) == ("exit", 1, None, None)
    lines = text(zero).splitlines()
    assert lines[0] == "before b'0'"
    assert lines[1].startswith("and on standard errorTraceback (most recent call last):")
    frames = [line.split("/")[-1] for line in lines if line.startswith("  File")]
    assert frames == ['main.py", line 8, in run', 'main.py", line 3, in deeper']
    assert "    return 1 // int(data)" in lines
    assert lines[-1] == "ZeroDivisionError: integer division or modulo by zero"
    assert "b'1'" not in text(zero), "what other tasks print is not this one's"
    assert "The above exception was the direct cause" in text(word)
    assert text(word).endswith("RuntimeError: no number\n")
    for row in (zero, word):
        assert "interpreter.py" not in text(row)
    assert len(children(worker.spawn_server())) == 1, "it is warm still"


@in_lab
async def test_params_that_the_function_does_not_take(lab: Lab) -> None:
    await lab.join(slots=1)
    job = lab.define(values={"n": 1}, **function(lab, "def run(data): return b''"))
    (row,) = await lab.ended(lab.assign(job, [b""]))
    assert (row.reason, text(row)) == ("exit", "TypeError: run() got an unexpected keyword argument 'n'\n")


@in_lab
async def test_what_is_no_result(lab: Lab) -> None:
    await lab.join(slots=1)
    code = "import sys\nanswers = [None, 3, bytearray(b'x'), '\\udc80', b'fine']\ndef run(data): return answers[int(data)]\n"
    *bad, fine = await call(lab, code, [b"%d" % number for number in range(5)])
    assert fine.result == b"fine"
    assert [row.reason for row in bad] == ["output_invalid"] * 4
    assert text(bad[0]) == "main:run returned NoneType; a task's function returns bytes or str."
    assert "returned int" in text(bad[1])
    assert "returned bytearray" in text(bad[2])
    assert "cannot be UTF-8" in text(bad[3])


@in_lab
async def test_a_result_over_the_limit_and_a_large_one(lab: Lab) -> None:
    await lab.join(slots=1)
    code = "def run(data): return b'z' * int(data)\n"
    limited = await call(lab, code, [b"10", b"11"], limits=Limits(result_bytes=10))
    assert [row.reason for row in limited] == ["done", "result_too_large"]
    assert text(limited[1]) == "The result has 11 bytes, 10 are allowed."
    (large,) = await call(lab, code, [b"3000000"])
    body = b"z" * 3_000_000
    assert large.result == Blob(hashlib.sha256(body).digest(), len(body))
    assert lab.data.files[f"/blobs/{hashlib.sha256(body).hexdigest()}"] == body
    (huge,) = await call(lab, code, [b"70000000"])
    assert huge.reason == "result_too_large"


@in_lab
async def test_a_large_item(lab: Lab) -> None:
    await lab.join()
    body = os.urandom(2_000_000)
    job = lab.define(**function(lab, "import hashlib\ndef run(data): return hashlib.sha256(data).hexdigest()\n"))
    lab.data.files[f"/tasks/{job}.0"] = body
    (row,) = await lab.ended(lab.assign(job, [lab.data.add_blob(body)]))
    assert row.result == hashlib.sha256(body).hexdigest().encode()


@in_lab
async def test_what_cannot_be_loaded(lab: Lab) -> None:
    await lab.join(slots=1)
    code = "limit = 3\ndef rum(data): return b''\n"
    cases = [
        (
            "nain:run",
            code,
            "not_started",
            "The module 'nain' is not in the definition's bundle: there is no nain.py in it.",
        ),
        ("main:run", code, "not_started", "The module 'main' has no function 'run'; did you mean 'rum'?"),
        ("main:limit", code, "not_started", "'limit' of the module 'main' is not a function but 'int'."),
        ("main:run", "import nothing_like_it\n", "exit", "ModuleNotFoundError: No module named 'nothing_like_it'\n"),
        ("main:run", "def run(data)\n    return b''\n", "exit", "SyntaxError: expected ':'\n"),
        ("main:run", "print('hello')\nraise ValueError('bad day')\n", "exit", "ValueError: bad day\n"),
        ("main:run", "import sys\nsys.exit(5)\n", "exit", ""),
    ]
    for name, body, reason, words in cases:
        rows = await call(lab, body, [b"1", b"2"], name)
        assert [row.reason for row in rows] == [reason] * 2, (name, body)
        assert text(rows[0]).endswith(words), text(rows[0])
        assert "interpreter.py" not in text(rows[0])
        assert "importlib" not in text(rows[0])
        assert [row.exit_code for row in rows] == [None if reason == "not_started" else 5 if "exit" in body else 1] * 2
    assert "hello\nTraceback" in text((await call(lab, cases[5][1], [b"1"]))[0])


@in_lab
async def test_an_import_that_fails_is_tried_anew_for_each_task(lab: Lab) -> None:
    await lab.join(slots=1)
    marks = lab.mark()
    code = f"with open({str(marks)!r}, 'a+') as file:\n    file.write('x'); file.flush(); file.seek(0)\n    if len(file.read()) < 3: raise OSError('not yet')\ndef run(data): return data\n"
    rows = await call(lab, code, [b"1", b"2", b"3", b"4"])
    assert [row.reason for row in rows] == ["exit", "exit", "done", "done"]


@in_lab
async def test_leaving_is_a_failure_of_the_task_in_hand_alone(lab: Lab) -> None:
    await lab.join(slots=1)
    code = (
        "import ctypes, os, signal, sys\n"
        "def run(data):\n"
        "    match data:\n"
        "        case b'exit 3': sys.exit(3)\n"
        "        case b'exit 0': sys.exit()\n"
        "        case b'exit text': sys.exit('a last word')\n"
        "        case b'_exit 4': print('leaving'); os._exit(4)\n"
        "        case b'_exit 0': os._exit(0)\n"
        "        case b'kill': os.kill(os.getpid(), signal.SIGKILL)\n"
        "        case b'segfault': ctypes.string_at(0)\n"
        "        case b'interrupt': raise KeyboardInterrupt\n"
        "    return data\n"
    )
    places = {
        b"exit 3": ("exit", 3, None, ""),
        b"exit 0": ("output_invalid", None, None, "ended by sys.exit() and returned no result."),
        b"exit text": ("exit", 1, None, "a last word\n"),
        b"_exit 4": ("exit", 4, None, "leaving\n"),
        b"_exit 0": ("output_invalid", 0, None, "ended its interpreter without a result (exit code 0)."),
        b"kill": ("signal", None, signal.SIGKILL, ""),
        b"segfault": ("signal", None, signal.SIGSEGV, "in run\n"),
        b"interrupt": ("exit", 1, None, "KeyboardInterrupt\n"),
    }
    items: list[bytes] = []
    for what in places:
        items += [b"%d" % number for number in range(len(items), len(items) + 30)] + [what]
    items += [b"last"] * 30
    rows = await call(lab, code, items)
    for item, row in zip(items, rows, strict=True):
        if item in places:
            reason, exit_code, number, words = places[item]
            assert (row.reason, row.exit_code, row.signal) == (reason, exit_code, number), item
            assert words in text(row), text(row)
        else:
            assert (row.reason, row.result) == ("done", item)
    segfault = text(rows[items.index(b"segfault")])
    assert "Segmentation fault" in segfault
    assert 'main.py", line 10 in run' in segfault


@in_lab
async def test_a_fork_of_the_function_does_not_speak_for_it(lab: Lab) -> None:
    await lab.join(slots=1)
    code = (
        "import os\n"
        "def run(data):\n"
        "    if os.fork() == 0:\n"
        "        global kept\n"
        "        kept = [open('kept', 'ab') for _ in range(9)]  # where our descriptors were\n"
        "    else:\n"
        "        os.wait()\n"
        "    return data + open('kept', 'rb').read()\n"
    )
    rows = await call(lab, code, [b"%d" % number for number in range(20)])
    assert [row.result for row in rows] == [b"%d" % number for number in range(20)]


@in_lab
async def test_the_time_limit_says_where_it_was(lab: Lab) -> None:
    await lab.join(slots=1)
    code = "import time\ndef run(data):\n    time.sleep(float(data))\n    return b'ok'\n"
    # A first one's time is also that of its interpreter's start; the first five together take longer than one may.
    items = [b"0"] + [b"2.1"] * 4 + [b"100"] + [b"0"] * 30
    rows = await call(lab, code, items, limits=Limits(time_s=8.0))
    assert [row.reason for row in rows] == ["done"] * 5 + ["timeout"] + ["done"] * 30
    assert rows[5].signal == signal.SIGTERM
    assert 'main.py", line 3 in run' in text(rows[5])


@in_lab
async def test_a_stop_spares_the_others(lab: Lab) -> None:
    worker = await lab.join(slots=1)
    code = "import time\ndef run(data):\n    time.sleep(float(data))\n    return b'ok'\n"
    job = lab.define(**function(lab, code))
    await lab.ended(lab.assign(job, [b"0"] * 100))
    (pid,) = children(worker.spawn_server())
    leases = lab.assign(job, [b"1000", *[b"0"] * 20])
    await lab.started(leases[0])
    lab.send(Stop([leases[0]]))
    rows = await lab.ended(leases)
    assert [row.reason for row in rows] == ["cancelled", *["done"] * 20]
    assert not is_alive(pid)


@in_lab
async def test_the_interpreter_is_clean(lab: Lab) -> None:
    worker = await lab.join()
    shadow = "raise RuntimeError('a module of the bundle stands in the way of ours')\n"
    names = ["traceback.py", "marshal.py", "struct.py", "helper.py"]
    files = dict.fromkeys(names, (0o644, shadow.encode()))
    files["helper.py"] = (0o644, b"def words(): return open('data.txt').read()\n")
    files["data.txt"] = (0o644, b"data of the bundle")
    code = (
        "import os, sys, helper\n"
        "def run(data):\n"
        "    assert sys.flags.isolated and sys.flags.utf8_mode and sys.argv[1:] == []\n"
        "    assert not os.path.exists(os.path.dirname(__file__) + '/__pycache__')\n"
        "    return repr((sys.executable, helper.words(), sys.path[0] == os.path.dirname(__file__), sorted(os.environ)))\n"
    )
    files["main.py"] = (0o644, code.encode())
    job = lab.define(
        runner="python", argv=["main:run"], bundle=lab.data.add_bundle(files), env={"OWN": "own", "PYTHONPATH": "/no"}
    )
    (row,) = await lab.ended(lab.assign(job, [b""]))
    assert row.result is not None, text(row)
    names = ["HOME", "LANG", "OWN", "PATH", "PYTHONPATH", "TMPDIR"]
    assert row.result == repr((sys.executable, "data of the bundle", True, names)).encode()
    assert list(worker.state.joinpath("bundles").rglob("__pycache__")) == []


@in_lab
async def test_tampered_descriptors_cost_the_tasks_not_the_worker(lab: Lab) -> None:
    await lab.join(slots=1)
    code = (
        "import os, struct\n"
        "def run(data):\n"
        "    if data == b'forge':\n"
        "        for fd in range(3, 20):\n"
        "            try: os.write(fd, struct.pack('=BBI', 0, 0, 2**32 - 1))\n"
        "            except OSError: pass\n"
        "    if data == b'close': os.closerange(0, 100)\n"
        "    return data\n"
    )
    first, forged, fine, closed, last = await call(lab, code, [b"1", b"forge", b"2", b"close", b"3"])
    assert [first.result, fine.result, last.result] == [b"1", b"2", b"3"]
    assert forged.reason == "output_invalid"
    assert "tampered" in text(forged)
    assert closed.reason in ("exit", "output_invalid")


@in_lab
async def test_many_short_tasks_travel_in_batches(lab: Lab) -> None:
    worker = await lab.join(slots=1)
    job = lab.define(numbers=(0, 1), **function(lab, "def run(data): return data\n"))
    count = 10_000
    before = worker.ticks()
    begun = time.monotonic()
    for first in range(0, count, 1000):
        lab.assign(job, 1000, first)
    await lab.until(lambda: len(lab.reported) == count)
    print(f"{count / (time.monotonic() - begun):.0f} tasks/s, worker {worker.ticks() - before} ticks")
    assert all(row.result == b"%d" % row.index for row in lab.reported.values())
    assert len(lab.messages(Reports)) < count / 10


@in_lab
async def test_answers_of_a_crowd_are_read_together(lab: Lab) -> None:
    """Answers come a few at a time; the worker must not wake up for each."""
    worker = await lab.join(slots=1)
    code = "import time\ndef run(data):\n    end = time.perf_counter() + 2e-4\n    while time.perf_counter() < end: pass\n    return data\n"
    job = lab.define(**function(lab, code))
    await lab.ended(lab.assign(job, [b""] * 1000))
    before = switches(worker.pid)
    await lab.ended(lab.assign(job, [b""] * 3000))
    waits = switches(worker.pid) - before
    print(f"{waits} waits")
    assert waits < 3000 * 0.6


@in_lab
async def test_short_tasks_cost_the_interpreter_no_system_call_each(lab: Lab) -> None:
    await lab.join(slots=1)
    code = "def run(data):\n    if not data: return b''\n    with open('/proc/self/io') as file: return file.read()\n"
    job = lab.define(**function(lab, code))
    rows = await lab.ended(lab.assign(job, [b"count", *[b""] * 3000, b"count"]))
    first, last = (
        dict(line.split(b": ") for line in row.result.splitlines())
        for row in (rows[0], rows[-1])
        if isinstance(row.result, bytes)
    )
    writes, reads = (int(last[name]) - int(first[name]) for name in (b"syscw", b"syscr"))
    print(f"{writes} writes, {reads} reads for 3,000 tasks")
    assert 0 < writes < 1000
    assert 0 < reads < 1000


@in_lab
async def test_who_is_killed_again_and_again_runs_nothing_twice(lab: Lab) -> None:
    """What was answered and not written when the interpreter died is known, and the right one is to blame."""
    log = lab.folder / "mine" / "log"
    log.parent.mkdir()
    await lab.join(slots=1)
    code = (
        f"import os\nfd = os.open({str(log)!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)\n"
        "def run(data):\n"
        "    os.write(fd, data + b'\\n')\n"
        "    if data.endswith(b'bad'): os.kill(os.getpid(), 9)\n"
        "    return data\n"
    )
    job = lab.define(rerun="never", **function(lab, code))
    places = [3, 4, 40, 333, 777, 1400]
    items: list[Any] = [b"%d" % number + (b"bad" if number in places else b"") for number in range(1500)]
    rows = await lab.ended(lab.assign(job, items))
    assert [place for place, row in enumerate(rows) if row.reason == "signal"] == places
    assert [row.result for row in rows if row.reason == "done"] == [item for item in items if not item.endswith(b"bad")]
    assert {row.attempt for row in rows} == {1}
    assert log.read_bytes().split() == items


@in_lab
async def test_a_short_task_before_a_long_one_is_told_at_once(lab: Lab) -> None:
    """The interpreter has answered it, read the long one with it, and so not written the answer."""
    await lab.join(slots=1)
    code = (
        "import sys, time\n"
        "def run(data):\n"
        "    if data == b'long': time.sleep(1000)\n"
        "    return repr(sorted(name for name in __import__('os').listdir() if name != 'main.py' and name != 'data.txt'))\n"
    )
    job = lab.define(**function(lab, code, limits=Limits(time_s=8.0)))
    items: list[Any] = [b"short"] * 1000 + [b"long"] + [b"short"] * 10
    rows = await lab.ended(lab.assign(job, items))
    assert [row.reason for row in rows] == ["done"] * 1000 + ["timeout"] + ["done"] * 10
    assert {row.result for row in rows if row.reason == "done"} == {b"[]"}, "the shelf has lost its name"
    before, long = rows[999:1001]
    assert long.started is not None
    assert before.ended < long.ended - 1, "not when the long one ended"
    assert long.ended - long.started > 7.9


def switches(pid: int) -> int:
    """How often a process has waited for something."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("voluntary")))


@in_lab
async def test_nothing_queues_behind_a_long_task_but_what_the_interpreter_has_read(lab: Lab) -> None:
    await lab.join(slots=2)
    code = "import time\ndef run(data):\n    if data == b'long': time.sleep(1000)\n    return data\n"
    job = lab.define(**function(lab, code))
    await lab.ended(lab.assign(job, [b"s"] * 2000))
    items: list[Any] = [b"short item"] * 3000
    items[600] = b"long"
    # Again and again: an interpreter that was interrupted just before reads little, whatever it would read else.
    for round_ in range(5):
        leases = lab.assign(job, items, first=2000 + 3000 * round_)
        await lab.started(leases[600])
        # 256 bytes are read at once, an item is 16: the long one (10), 15 more, a part of one more.
        await lab.until(lambda held=leases: sum(lease in lab.reported for lease in held) >= 3000 - 17)  # type: ignore[misc]
        lab.send(Stop([leases[600]]))
        rows = await lab.ended(leases)
        assert [row.reason for row in rows] == ["done"] * 600 + ["cancelled"] + ["done"] * 2399
