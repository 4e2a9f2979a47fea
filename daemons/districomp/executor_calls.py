"""Calls as the definition `callable` carries them: functions, arguments and outcomes in pickle, exceptions as they were.

Owns the format that `tasks/callable/districomp_callable.py` reads and writes, and the errors that calls end with. Must
not know connections or jobs. Unpickling runs whatever the pickle says: whoever calls functions trusts the workers.
"""

import base64
import binascii
import pickle
import sys
import types
from collections.abc import Callable
from typing import Any, Final

from districomp.client_results import TaskFailedError, TaskRecord, TaskResult
from districomp.errors import DistricompError

DEFINITION: Final = "callable"
PYTHON: Final = f"{sys.implementation.name}-{sys.version_info[0]}.{sys.version_info[1]}"
"""What has to be the same on both sides: the bytecode of functions sent by value is of one minor version alone."""
SHARED_BYTES_MAX: Final = 64 * 1024
"""A pickled function above this is sent with the calls, several calls an item, instead of once a job: the coordinator keeps
the params of every job in memory."""

MARK: Final = b"districomp-exception: "
_BARE: Final = frozenset((int, float, str, bytes, bool, complex, type(None)))
"""Arguments of exactly these types need nothing but the plain pickle, which is four times as fast."""
_SHAREABLE: Final = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, type)


class CallFailedError(TaskFailedError):
    """A call ended without a result or an exception of its own: by a signal, a limit, a lost worker.

    `task` is the id to ask `dctl task show` and `dctl logs` for, `reason` one of the closed list of reasons, `text` what
    the call said at the end.
    """

    def __init__(self, message: str, task: str = "", reason: str = "", text: str = "") -> None:
        super().__init__(message)
        self.task = task
        self.reason = reason
        self.text = text

    def __reduce__(self) -> Any:
        return type(self), (str(self), self.task, self.reason, self.text)


class RemoteTraceback(Exception):
    """The `__cause__` of an exception that a call raised: where it was raised, on the worker, as text."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


# ---- there ----


def is_shareable(function: Callable[..., Any]) -> bool:
    """Whether it is worth sending once for many calls: a function, method or class. Other objects may carry anything."""
    return isinstance(function, _SHAREABLE)


def key_of(function: Callable[..., Any]) -> object:
    """Equal for what is the same function; a method is a new object each time that it is asked for."""
    if isinstance(function, types.MethodType):
        return id(function.__self__), id(function.__func__)
    if isinstance(function, types.BuiltinMethodType):
        return id(function.__self__), function.__name__
    return id(function)


def pack(value: Any) -> bytes:
    """Anything in pickle, by value what the workers could not import. Raises what pickling raises."""
    import cloudpickle

    body: bytes = cloudpickle.dumps(value, 5)
    return body


def pack_args(args: tuple[Any, ...]) -> bytes:
    """Positional arguments, the item of the form `args`."""
    for arg in args:
        if type(arg) not in _BARE:
            return pack(args)
    return pickle.dumps(args, 5)


def function_text(body: bytes) -> str:
    """A pickled function as a param."""
    return base64.b64encode(body).decode("ascii")


def params(form: str, function: str) -> dict[str, str]:
    """The params of a job of calls."""
    return {"python": PYTHON, "form": form, "function": function}


# ---- and back ----


def unpack(body: bytes) -> Any:
    """What a call returned. CallFailedError if it cannot be unpickled here."""
    try:
        return pickle.loads(body)
    except Exception as error:
        raise CallFailedError(
            f"the call's result ({len(body):,} bytes) cannot be unpickled here: {type(error).__name__}: {error}"
        ) from error


def failure(record: TaskRecord, refuse_download: Any = None) -> BaseException:
    """What a task that is not done raises: the call's own exception with the worker's traceback as its cause, if it had one."""
    result = TaskResult(record, refuse_download)
    said, mark, encoded = record.stderr.rpartition(MARK)
    text = (said if mark else record.stderr).decode("utf-8", "replace")
    if mark:
        try:
            error = pickle.loads(base64.b64decode(encoded.strip(), validate=True))
        except BaseException as fault:  # noqa: BLE001 - to unpickle is to run what somebody wrote
            why = f"whose exception cannot be unpickled here ({type(fault).__name__}: {fault})"
            if not encoded.strip() or isinstance(fault, binascii.Error):
                why = "whose exception could not be sent"
            return CallFailedError(
                f"the call {result.task} raised an exception, {why}:\n{text}", result.task, "exit", text
            )
        if isinstance(error, BaseException):
            # Not by its own class, which may forbid that: a frozen one does.
            BaseException.__setattr__(error, "__cause__", RemoteTraceback(text))
            return error
    tail = text.strip()[-2000:]
    ended = f"the call {result.task} has no result: {result.state} ({result.why()})"
    return CallFailedError(f"{ended}; it said: {tail}" if tail else ended, result.task, record.reason, text)


def explained(error: DistricompError) -> DistricompError:
    """A refused submission, in the words of one who calls functions."""
    from districomp.errors import NotAllowedError, RefusedError

    if isinstance(error, RefusedError) and error.code == "unknown_definition":
        return NotAllowedError(
            f"this cluster runs no Python callables: its definition {DEFINITION!r}, which is live as shipped, is masked or "
            f"gone; ask whoever runs the coordinator, or see: dctl def list ({error})"
        )
    return error
