"""The client of a system under measurement: a program that answers questions, a line each, on its standard input.

Owns the lines and the clock. Runs in the system's own environment: standard library only. A question is `WHAT TASKS`;
the answer is a line of JSON: the seconds that it took, or for `latency` the milliseconds of each round trip.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

PROGRAM: Final = "/bin/true"


class Took(NamedTuple):
    """What a work returns when not all of its time counts."""

    seconds: float


Work = Callable[[int], object]
"""Is given a number of tasks; returns when all their results are here. What it returns is ignored, but for a `Took`."""


def serve(work: Mapping[str, Work]) -> None:
    """Say `ready`, then answer until the input ends. `once` is one task, from submission to result."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what a library prints is no answer

    def answer(value: object) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    answer("ready")
    for line in sys.stdin:
        what, _, count = line.partition(" ")
        if what == "latency":
            answer([1000 * seconds(work["once"], number) for number in range(int(count))])
        else:
            answer(seconds(work[what], int(count)))
    # A library's threads or its farewell to a server that is gone would only hold up the end.
    os._exit(0)


def serve_bare(run: Callable[[bytes, int], None], queue: Callable[[int], None]) -> None:
    """`serve` for a queue whose workers know the functions `noop` and `true`."""
    serve(
        {
            "noop": lambda tasks: run(b"noop", tasks),
            "true": lambda tasks: run(b"true", tasks),
            "once": lambda _: run(b"noop", 1),
            "queue": queue,
        }
    )


def serve_functions(
    submit: Callable[[Callable[[int], Any], int], list[Any]],
    gather: Callable[[list[Any]], list[Any]],
    once: Callable[[int], object],
) -> None:
    """`serve` for a system of Python functions: calls of one are submitted at once, and their results gathered."""
    kept = []

    def run(tasks: int) -> None:
        assert gather(submit(noop, tasks)) == list(range(tasks))

    serve(
        {
            "noop": run,
            "map": run,
            "true": lambda tasks: gather(submit(run_true, tasks)),
            "once": once,
            "queue": lambda tasks: kept.append(submit(noop, tasks)),
        }
    )


def seconds(work: Work, tasks: int) -> float:
    """How long it took."""
    start = time.perf_counter()
    own = work(tasks)
    return own.seconds if isinstance(own, Took) else time.perf_counter() - start


def dispatch(*parts: Callable[..., None]) -> None:
    """Run the part that the command line names, with the arguments that it has."""
    {part.__name__: part for part in parts}[sys.argv[1]](*sys.argv[2:])


def noop(number: int) -> int:
    """The function that systems of Python functions run."""
    return number


def run_true(_number: int) -> bytes:
    """/bin/true with its output captured: the cheapest way that one Python process knows."""
    reading, writing = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, writing, 1)]
    pid = os.posix_spawn(PROGRAM, [PROGRAM], os.environ, file_actions=actions)
    os.close(writing)
    with os.fdopen(reading, "rb") as output:
        text = output.read()
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError(f"{PROGRAM} failed")
    return text
