"""For the few tests whose promise is a time: precedence over everybody else who uses this machine, and a fair judgement."""

import contextlib
import os
import time
from collections.abc import Iterator


@contextlib.contextmanager
def ahead_of_others(*processes: int) -> Iterator[None]:
    """This process, these and all that they start have the processors whenever they want them; for root alone, else nothing."""
    try:
        for process in (0, *processes):
            os.sched_setscheduler(process, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        yield
        return
    try:
        yield
    finally:
        for process in (0, *processes):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setscheduler(process, os.SCHED_OTHER, os.sched_param(0))


class Took:
    """How long something took, and about how long it would have taken had nobody else used the processors."""

    def __init__(self) -> None:
        self.s = 0.0
        self.alone_s = 0.0


@contextlib.contextmanager
def timed() -> Iterator[Took]:
    """Take the time of a block; where nobody else is at work both are the same."""
    took = Took()
    before, begun = sharing(), time.monotonic()
    yield took
    took.s = time.monotonic() - begun
    took.alone_s = took.s / max(before, sharing())


def sharing(work_s: float = 0.1) -> float:
    """By how much work takes longer here and now than the processor time that it needs; 1: it has a processor of its own."""
    begun, used = time.monotonic(), time.thread_time()
    while time.thread_time() - used < work_s:
        pass
    return max(1.0, (time.monotonic() - begun) / work_s)
