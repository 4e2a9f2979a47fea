"""Calls in pickle: both ends of the format, and what becomes of an outcome that is no result."""

import base64
import importlib.util
import pickle
import sys
from concurrent.futures import Future
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from districomp import executor_calls as calls
from districomp.client_results import TaskRecord
from districomp.errors import NotAllowedError, RefusedError
from districomp.model import FAILED

SCRIPT = Path(__file__).resolve().parents[2] / "tasks" / "callable" / "districomp_callable.py"


@pytest.fixture
def there() -> ModuleType:
    """The worker's end, as a module of its own."""
    spec = importlib.util.spec_from_file_location("districomp_callable", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def called(there: ModuleType, form: str, function: Any, item: Any) -> Any:
    text = calls.function_text(calls.pack(function)) if function is not None else ""
    return calls.unpack(there.call(calls.pack(item), **calls.params(form, text)))


def test_every_form_of_a_call_is_understood(there: ModuleType) -> None:
    assert called(there, "args", pow, (2, 3)) == 8
    assert called(there, "call", int, (("11",), {"base": 2})) == 3
    assert called(there, "chunk", abs, [(-1,), (-2,)]) == [1, 2]
    assert called(there, "whole", None, ("args", calls.pack(abs), calls.pack((-3,)))) == 3
    assert called(there, "args", lambda: lambda: 7, ())() == 7, "by value what has no name"


def test_functions_are_unpickled_once_and_not_kept_for_ever(there: ModuleType) -> None:
    texts = [calls.function_text(calls.pack(lambda k=k: k)) for k in range(there.FUNCTIONS_MAX + 3)]
    for text in [*texts, *texts]:
        there.call(calls.pack(()), **calls.params("args", text))
        assert len(there._functions) <= there.FUNCTIONS_MAX
    first = there._functions[texts[-1]]
    there.call(calls.pack(()), **calls.params("args", texts[-1]))
    assert there._functions[texts[-1]] is first


def outcome(stderr: bytes, reason: str = "exit", code: int | None = 1) -> BaseException:
    return calls.failure(TaskRecord(7, 3, FAILED, reason=reason, exit_code=code, stderr=stderr))


def test_what_was_raised_there_is_raised_here(there: ModuleType) -> None:
    with pytest.raises(SystemExit) as ended:
        called(there, "args", divmod, (1, 0))
    error = outcome(f"printed\n{ended.value.code}\n".encode())
    assert isinstance(error, ZeroDivisionError)
    assert isinstance(error.__cause__, calls.RemoteTraceback)
    assert error.__cause__.text == "printed\nZeroDivisionError: integer division or modulo by zero\n"
    large = ValueError("x" * there.EXCEPTION_BYTES_MAX)
    with pytest.raises(SystemExit) as ended:
        there._fail(large)
    assert "could not be sent" in str(outcome(str(ended.value.code).encode()))
    assert len(str(ended.value.code)) < 2 * there.TRACEBACK_CHARS_MAX


@pytest.mark.parametrize("said", [b"", b"!!!", base64.b64encode(b"no pickle"), base64.b64encode(pickle.dumps("text"))])
def test_anything_else_after_the_mark_is_told_as_it_is(said: bytes) -> None:
    error = outcome(b"Traceback ...\n" + calls.MARK + said)
    assert type(error) is calls.CallFailedError
    assert (error.task, error.reason) == ("7.3", "exit")
    assert "Traceback ..." in error.text


def test_other_ends_have_their_reason() -> None:
    error = outcome(b"the last words", "memory", None)
    assert isinstance(error, calls.CallFailedError)
    assert str(error) == "the call 7.3 has no result: failed (memory); it said: the last words"
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.task, again.reason, again.text) == (str(error), "7.3", "memory", "the last words")


def test_one_method_is_one_function() -> None:
    text, other = "a", Future[int]()
    assert calls.key_of(text.split) == calls.key_of(text.split) != calls.key_of(text.strip)
    assert calls.key_of(other.result) == calls.key_of(other.result) != calls.key_of(Future[int]().result)


def test_a_masked_definition_is_told_in_other_words() -> None:
    error = calls.explained(RefusedError("unknown_definition", "there is none"))
    assert isinstance(error, NotAllowedError) and "masked" in str(error)
    other = RefusedError("degraded", "the disk is full")
    assert calls.explained(other) is other


class LeavingError(Exception):
    """One that ends whoever unpickles it."""

    def __reduce__(self) -> Any:
        return sys.exit, (3,)


def test_an_exception_cannot_end_its_reader(there: ModuleType) -> None:
    with pytest.raises(SystemExit) as ended:
        there._fail(LeavingError("why"))
    assert "could not be sent" in (told := str(outcome(str(ended.value.code).encode()))) and "LeavingError: why" in told
    error = outcome(b"said\n" + calls.MARK + base64.b64encode(pickle.dumps(LeavingError())))
    assert "cannot be unpickled here (SystemExit" in str(error)
