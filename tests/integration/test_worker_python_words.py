"""The runner `python`: what a task writes, which is no result, and whose last words it is."""

from districomp.model import STDERR_TAIL_BYTES
from tests.integration.pythonlab import call, text
from tests.integration.workerlab import Lab, in_lab


@in_lab
async def test_prints_never_reach_the_channel(lab: Lab) -> None:
    await lab.join(slots=1)
    code = (
        "import os, subprocess, sys\n"
        "print('at import')\n"
        "def run(data):\n"
        "    print('a line')\n"
        "    sys.stdout.buffer.write(b'raw')\n"
        "    os.write(1, b'by descriptor')\n"
        "    subprocess.run(['sh', '-c', 'echo from a child; cat; ls /proc/$$/fd | wc -l'], check=True)\n"
        "    assert sys.stdin.read() == '' and os.read(0, 10) == b''\n"
        "    return data\n"
    )
    rows = await call(lab, code, [b"%d" % number for number in range(20)])
    assert [row.result for row in rows] == [b"%d" % number for number in range(20)]


@in_lab
async def test_only_the_end_of_what_a_task_says_is_kept(lab: Lab) -> None:
    await lab.join(slots=1)
    (row,) = await call(lab, "def run(data):\n    for i in range(300): print('%9d' % i * 1000)\n    1 // 0\n", [b""])
    assert len(row.stderr) == STDERR_TAIL_BYTES
    assert text(row).endswith("ZeroDivisionError: integer division or modulo by zero\n")


@in_lab
async def test_who_is_killed_is_not_given_what_others_said(lab: Lab) -> None:
    await lab.join(slots=1)
    code = (
        "import os, sys\n"
        "def run(data):\n"
        "    print('said by', data.decode(), file=sys.stderr if data == b'two' else None)\n"
        "    if data == b'much': print('x' * 200_000)\n"
        "    if data.startswith(b'dies'): os.kill(os.getpid(), 9)\n"
        "    return data\n"
    )
    items = [b"one", b"dies first", b"one", b"two", b"much", b"dies then", *[b"one"] * 100, b"dies last"]
    rows = await call(lab, code, items)
    for item, row in zip(items, rows, strict=True):
        if item.startswith(b"dies"):
            assert (row.reason, text(row)) == ("signal", f"said by {item.decode()}\n")
        else:
            assert row.reason == "done"


@in_lab
async def test_what_is_written_past_the_text_is_heard_too(lab: Lab) -> None:
    """And is told of the task that wrote it alone."""
    await lab.join(slots=1)
    code = (
        "import sys\n"
        "raw = sys.stdout.buffer\n"
        "def run(data):\n"
        "    if data == b'raw': raw.write(b'by the buffer')\n"
        "    if data == b'part': sys.stderr.write('half a line')\n"
        "    if data == b'many': sys.stdout.writelines(['one ', 'two'])\n"
        "    if data != b'fine': raise SystemExit(3)\n"
        "    print('of no interest', end='')\n"
        "    return data\n"
    )
    rows = await call(lab, code, [b"raw", b"fine", b"part", b"", b"fine", b"many", b"fine", b"raw"])
    assert [text(row) for row in rows] == ["by the buffer", "", "half a line", "", "", "one two", "", "by the buffer"]
