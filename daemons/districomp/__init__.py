"""Shared by the coordinator, the worker and the command line; imports nothing of theirs.

`districomp.Client` and `districomp.Executor` are the client library, loaded when it is first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from districomp.client import Client, Job, TaskResult
    from districomp.executor import Executor
    from districomp.executor_calls import CallFailedError, RemoteTraceback

__version__ = "0.1.0"
__all__ = ["CallFailedError", "Client", "Executor", "Job", "RemoteTraceback", "TaskResult", "__version__"]

_PLACES = {
    "Client": "client",
    "Job": "client",
    "TaskResult": "client",
    "Executor": "executor",
    "CallFailedError": "executor_calls",
    "RemoteTraceback": "executor_calls",
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        from importlib import import_module

        return getattr(import_module(f"districomp.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
