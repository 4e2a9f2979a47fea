"""What runs the calls of `districomp.Executor` in the interpreter of a worker, which stays from call to call.

An item is, by the param `form`: `args` the arguments of one call; `call` these and keyword arguments; `chunk` a list of
several calls' arguments, answered by the list of what they return; `whole` form, function and item of its own. All in
pickle. The result is the pickled return value. Whatever the function raises fails the task: standard error ends with
its traceback, and with the exception itself in base64 on a line of its own, `districomp-exception: ...`.

Needs the standard library alone; cloudpickle only if what it is given does.
"""

import base64
import pickle
import sys
import traceback
from typing import Any, NoReturn

PYTHON = f"{sys.implementation.name}-{sys.version_info[0]}.{sys.version_info[1]}"
MARK = "districomp-exception: "
EXCEPTION_BYTES_MAX = 24 * 1024
"""Pickled: all that is kept of standard error are 64 KiB, and the traceback is the more important half."""
TRACEBACK_CHARS_MAX = 24 * 1024
FUNCTIONS_MAX = 8
"""So many functions are kept unpickled."""

_functions: dict[str, Any] = {}
_text: str | None = None
_function: Any = None


def call(data: bytes, python: str, form: str, function: str) -> bytes:
    """Answer one item."""
    if function is not _text:
        _use(python, function)
    try:
        given = pickle.loads(data)
        value = _function(*given) if form == "args" else _answer(_function, form, given)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is the call's answer
        _fail(error)
    try:
        return pickle.dumps(value, 5)
    except Exception:  # noqa: BLE001 - of __main__, or local: by value then
        return _by_value(value)


def _answer(function: Any, form: str, given: Any) -> Any:
    if form == "args":
        return function(*given)
    if form == "call":
        args, kwargs = given
        return function(*args, **kwargs)
    if form == "chunk":
        return [function(*args) for args in given]
    form, body, data = given
    return _answer(_loaded(body), form, pickle.loads(data))


def _use(python: str, text: str) -> None:
    """Make this the function that is called from now on."""
    global _text, _function
    if python != PYTHON:
        sys.exit(
            f"Nothing was run: this worker has Python {PYTHON}, the program that submitted has {python}, and functions cannot "
            "be passed from one to the other. Use the same minor version on both sides."
        )
    if text not in _functions:
        if len(_functions) >= FUNCTIONS_MAX:
            del _functions[next(iter(_functions))]
        try:
            _functions[text] = _loaded(base64.b64decode(text)) if text else None
        except BaseException as error:  # noqa: BLE001 - to unpickle is to run what somebody wrote
            _fail(error)
    _text, _function = text, _functions[text]


def _loaded(body: bytes) -> Any:
    try:
        return pickle.loads(body)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "cloudpickle":
            hint = "this function needs cloudpickle on the workers; install it there, or call one that can be imported"
        elif isinstance(error, ImportError | AttributeError):
            hint = (
                "install its module on the workers, or have it sent along: cloudpickle.register_pickle_by_value(module)"
            )
        else:
            hint = "see the traceback"
        error.add_note(f"The function could not be had on this worker: {hint}.")
        raise


def _by_value(value: Any) -> bytes:
    try:
        import cloudpickle

        body: bytes = cloudpickle.dumps(value, 5)
    except Exception as error:  # noqa: BLE001 - a value may refuse in any way
        error.add_note(f"The call returned {type(value).__name__}, which cannot be sent back.")
        _fail(error)
    return body


def _fail(error: BaseException) -> NoReturn:
    """End this call as failed, with what was raised."""
    try:
        below = error.__traceback__
        while below is not None and below.tb_frame.f_code.co_filename == __file__:
            below = below.tb_next
        text = "".join(traceback.TracebackException(type(error), error, below).format())
    except BaseException:  # noqa: BLE001 - an exception may say anything when it is asked what it is
        text = f"{type(error).__name__}, whose traceback could not be written\n"
    if len(text) > TRACEBACK_CHARS_MAX:
        text = f"{text[: TRACEBACK_CHARS_MAX // 2]}\n...\n{text[-TRACEBACK_CHARS_MAX // 2 :]}"
    # The exit of the interpreter's own, by which nothing is added to what is said.
    raise SystemExit(text + MARK + base64.b64encode(_pickled(error)).decode()) from None


def _pickled(error: BaseException) -> bytes:
    """The exception, b'' if it cannot be sent."""
    for by in (pickle.dumps, _cloudpickled):
        try:
            body = by(error)
            pickle.loads(body)  # some can be written and not be read
        except BaseException:  # noqa: BLE001 - as above
            continue
        return body if len(body) <= EXCEPTION_BYTES_MAX else b""
    return b""


def _cloudpickled(error: BaseException) -> bytes:
    import cloudpickle

    body: bytes = cloudpickle.dumps(error)
    return body
