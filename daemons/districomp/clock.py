"""The one clock: Unix seconds that never jump. What a lease, a backoff or a report's time is measured by.

Wall time at the process' start plus the monotonic clock since: a wall clock that is set (a booted PC
meets its time server) neither loses a worker nor makes a task end before it started.
"""

import time

_OFFSET_S = time.time() - time.monotonic()


def now() -> float:
    """Unix seconds."""
    return time.monotonic() + _OFFSET_S
