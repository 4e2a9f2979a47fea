"""The isolation level `cgroup`, in a machine that boots from the worker's image: its unit, its systemd, its user, a kernel's own limits.

What needs no such machine is in tests/integration/test_worker_cgroups.py.
"""

import re
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import pytest

from .imagelab import BUILD_S, Site, built_image, site

pytestmark = [pytest.mark.system, pytest.mark.timeout(BUILD_S + 300)]

MIB = 1 << 20
OWN = "/sys/fs/cgroup$(sed -n s,^0::,,p /proc/self/cgroup)"
"""The control group of whoever asks, for a shell."""
TASKS = "/sys/fs/cgroup/system.slice/dworker.service/tasks"

HERD = """\
import os, sys, time

def begin():
    if os.fork() == 0:
        return True
    return False

if begin():
    os.setsid()
    if begin():
        os.chdir("/")
        for name in list(os.environ):
            del os.environ[name]
        os.execv("/bin/sh", ["sh", "-c", "trap '' TERM; while :; do sleep 1; done # " + sys.argv[1]])
    os._exit(0)
os.wait()
print("begun", flush=True)
"""
"""A process of a session of its own, whose parent is gone, which has nothing left by which its task could be told."""


KINDS: dict[str, dict[str, Any]] = {
    "cgroup": {"isolation": "cgroup"},
    "none": {"isolation": "none"},
    "rlimit": {"isolation": "rlimit"},
    "sandbox": {"isolation": "sandbox"},
    "limits": {"isolation": "cgroup", "limits": {"memory": "100MiB", "processes": 7, "cpus": 3}},
    "small": {"isolation": "cgroup", "limits": {"memory": "64MiB"}},
    "small-sandbox": {"isolation": "sandbox", "limits": {"memory": "64MiB"}},
    "small-both": {"isolation": ["cgroup", "sandbox"], "limits": {"memory": "64MiB"}},
    "roomy": {"isolation": "cgroup", "limits": {"memory": "300MiB"}},
    "few": {"isolation": "cgroup", "limits": {"processes": 5}},
    "few-both": {"isolation": ["cgroup", "sandbox"], "limits": {"processes": 5}},
    "short": {"isolation": "cgroup", "limits": {"time": "5s"}},
}
"""Definitions of any command, by what they allow it."""
STREAM: Final = """\
import sys
for line in sys.stdin:
    x = bytearray((300 if line == '3\\n' else 1) << 20)
    print(len(x), flush=True)
"""


class Farm:
    """A coordinator and a booted worker of two slots."""

    def __init__(self, lab: Site) -> None:
        self.lab = lab
        for name, keys in KINDS.items():
            argv = {"type": "list"}
            lab.define(
                name, {"version": 1, "command": ["{argv}"], "params": {"argv": argv}, "retries": {"max": 0}} | keys
            )
        lab.define(
            "stream", {"version": 1, "stream": ["python3", "-c", STREAM], "retries": {"max": 0}} | KINDS["small"]
        )

    def submit(self, kind: str, *command: str, tasks: int = 1) -> str:
        """A job; its number."""
        words = [word for argument in command for word in ("--param", f"argv={argument}")]
        # A lone word would be no list.
        words += ["--param", "argv="] if len(command) == 1 else []
        job: int = self.lab.json("submit", kind, *words, "--range", f"1..{tasks}")["job"]
        return str(job)

    def ended(self, job: str, index: int = 0) -> dict[str, Any]:
        """A task's last attempt, when the job has ended."""
        self.lab.dctl("wait", job, "--timeout", "100s", check=False)
        attempt: dict[str, Any] = self.lab.json("task", "show", f"{job}.{index}")["attempts"][-1]
        return attempt

    def said(self, script: str, kind: str = "cgroup") -> str:
        """What a shell script prints, on both its outputs, as a task."""
        job = self.submit(kind, "sh", "-c", f"exec 2>&1; {script}")
        attempt = self.ended(job)
        assert attempt["reason"] == "done", attempt
        return self.lab.dctl("results", job).stdout


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    image = built_image(tmp_path_factory.mktemp("image"))
    with tempfile.TemporaryDirectory() as folder, site(Path(folder)) as lab:
        options = "--mac", "52:54:00:1a:2b:3c", "--memory", "640"
        with lab.boot(image, *options, token=lab.token()) as pc:
            farm = Farm(lab)
            pc.until("JOINED")
            yield farm


def test_a_task_has_a_group_with_its_limits(farm: Farm) -> None:
    text = farm.said(
        f"cd {OWN}; pwd; cat memory.max memory.oom.group pids.max cpu.weight cgroup.procs; echo me $$", "limits"
    )
    place, memory, together, processes, weight, *pids = text.split()
    assert place.startswith(f"{TASKS}/")
    assert [memory, together, processes, weight] == [str(100 * MIB), "1", "7", "300"]
    assert pids[0] == pids[-1], "it was there before it was the program"
    assert len(farm.said(f"ls -d {TASKS}/*/").split()) == 1, "of tasks that have ended nothing is left"


def test_one_that_eats_memory_is_ended_and_others_go_on(farm: Farm) -> None:
    other = farm.submit("cgroup", "sh", "-c", "for i in 1 2 3 4 5 6 7 8; do sleep 1; done; echo whole")
    for kind in ("small", "small-sandbox", "small-both"):
        attempt = farm.ended(farm.submit(kind, "python3", "-c", "x = []\nwhile True: x.append(bytearray(1 << 20))"))
        assert (attempt["reason"], attempt["signal"]) == ("memory", 9)
        assert 60 * MIB < attempt["memory_peak_bytes"] <= 64 * MIB
    assert farm.ended(other)["reason"] == "done"
    assert farm.lab.dctl("results", other).stdout == "whole\n"


def test_all_processes_of_a_task_count_together(farm: Farm) -> None:
    """Three of 40 MiB are too much for 64, and where there is room for them they are told."""
    hold = (
        'python3 -c \'import os, time; x = bytearray(40 << 20); os.mkdir(f"held{os.getpid()}")\n'
        'while sum(name.startswith("held") for name in os.listdir()) < 3: time.sleep(.05)\''
    )
    command = "sh", "-c", f"{hold} & {hold} & {hold} & wait"
    assert farm.ended(farm.submit("small", *command))["reason"] == "memory"
    attempt = farm.ended(farm.submit("roomy", *command))
    assert attempt["reason"] == "done"
    assert 120 * MIB < attempt["memory_peak_bytes"] < 250 * MIB
    spin = "python3 -c 'import time\nwhile time.process_time() < 1: pass'"
    assert farm.ended(farm.submit("cgroup", "sh", "-c", f"({spin} & {spin} & wait)"))["cpu_s"] > 1.9


def test_a_fork_bomb_comes_to_its_limit(farm: Farm) -> None:
    for kind in ("limits", "few-both"):
        assert farm.ended(farm.submit(kind, "sh", "-c", "b() { b | b; }; b"))["reason"] == "processes"
    for kind in ("few", "few-both"):
        # One and four are five, whatever a sandbox is made of.
        for count, reason in ((4, "done"), (5, "processes")):
            start = f"import subprocess as s\nfor p in [s.Popen(['sleep', '1']) for _ in range({count})]: p.wait()"
            assert farm.ended(farm.submit(kind, "python3", "-c", start))["reason"] == reason, (kind, count)
    assert farm.said("true && echo well") == "well\n"


def test_nothing_that_a_task_has_started_outlives_it(farm: Farm) -> None:
    herd = "ps ax | grep -c 'm1a2[r]3k' || true"
    assert farm.ended(farm.submit("cgroup", "python3", "-c", HERD, "m1a2r3k"))["reason"] == "done"
    assert farm.said(herd) == "0\n"
    waits = 'python3 -c "$1" m1a2r3k; trap "" TERM; while :; do sleep 1; done'
    job = farm.submit("short", "sh", "-c", waits, "sh", HERD)
    farm.lab.wait(lambda: farm.said(herd) == "2\n", 30, "no herd")
    assert farm.ended(job)["reason"] == "timeout"
    assert farm.said(herd) == "0\n"


def test_lasting_processes_have_groups_too(farm: Farm) -> None:
    """One task in five is too much: it alone fails, and the others go on in another process."""
    job = farm.submit("stream", tasks=5)
    assert [farm.ended(job, index)["reason"] for index in range(5)] == ["done", "done", "memory", "done", "done"]


def test_a_task_reads_no_key_and_does_not_change_its_limits(farm: Farm) -> None:
    text = farm.said("cat /var/lib/districomp/dworker/identity/*; true")
    assert "Permission denied" in text or "No such file" in text
    assert "PRIVATE" not in text
    attempts = (
        f"echo max > {OWN}/memory.max",
        f"echo $$ > {TASKS}/../daemon/cgroup.procs",
        f"mkdir {OWN}/inner",
        f"mkdir {TASKS}/other",
        f"chmod 777 {OWN}; echo max > {OWN}/pids.max",
        f"ln -s {OWN} here; echo max > here/memory.max",
    )
    for kind in ("cgroup", "none"):
        text = farm.said("; ".join(attempts) + "; true", kind)
        assert text.count("ermission denied") == len(attempts), text
    assert farm.said(f"cat {OWN}/memory.max", "small") == f"{64 * MIB}\n"


def test_what_it_costs(farm: Farm) -> None:
    """A start, by the worker's clock; figures of an emulated processor, to be compared with each other alone."""
    for kind in ("rlimit", "cgroup", "sandbox"):
        job = farm.submit(kind, "true", tasks=20)
        farm.lab.dctl("wait", job)
        attempts = [task["attempts"][-1] for task in farm.lab.json("task", "list", job)]
        begun, ended = ([datetime.fromisoformat(one[key]) for one in attempts] for key in ("started", "ended"))
        span_ms = (max(ended) - min(begun)).total_seconds() * 1000
        print(f"{kind}: {span_ms * 2 / len(attempts):.1f} ms a task in each of two slots")
        assert {one["reason"] for one in attempts} == {"done"}


def test_a_worker_that_was_killed_begins_anew(farm: Farm) -> None:
    """With all that it had started; systemd starts it again, below the group that it has had."""
    begun = farm.submit("cgroup", "sh", "-c", "exec sleep 12345")
    farm.lab.wait(lambda: "sleep 12345" in farm.said("ps ax | grep -v grep"), 30, "no sleep")
    kill = "kill -9 $(systemctl show --property MainPID --value dworker)"
    # Once: a task that is given out again would take the next worker, and its neighbours, with it.
    once = {"version": 1, "command": ["sh", "-c", kill], "isolation": "none", "rerun": "never"}
    farm.lab.define("killer", once)
    farm.lab.dctl("submit", "killer")
    farm.lab.dctl("cancel", begun, "--yes")
    before = "[0-9]* sleep 12345"
    farm.lab.wait(lambda: not re.search(before, farm.said("ps ax | grep -v grep")), 60, "it goes on")
    assert len(farm.said(f"ls -d {TASKS}/*/").split()) == 1
