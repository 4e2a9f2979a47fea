"""Shared by the coordinator, the worker and the command line; imports nothing of theirs.

`districomp.Client` is the client library, loaded when it is first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from districomp.client import Client, Job, TaskResult

__version__ = "0.1.0"
__all__ = ["Client", "Job", "TaskResult", "__version__"]


def __getattr__(name: str) -> Any:
    if name in {"Client", "Job", "TaskResult"}:
        from districomp import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
