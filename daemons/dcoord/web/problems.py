"""How this server says that something is wrong: a JSON body `{"error": code, "message": text}`.

Owns the form and the status of each code. The message says what is wrong, where, and what to do.
"""

from typing import Final

import msgspec

from districomp.errors import DistricompError, RefusedError, UnreachableError

STATUS: Final = {
    "bad_content_type": 415,
    "bad_host": 421,
    "bad_method": 405,
    "bad_origin": 403,
    "bad_params": 400,
    "bad_request": 400,
    "blob_missing": 404,
    "busy": 503,
    "closed": 403,
    "degraded": 503,
    "digest_mismatch": 422,
    "empty": 422,
    "journal": 503,
    "no_result": 404,
    "not_allowed": 403,
    "not_authenticated": 401,
    "no_space": 507,
    "not_found": 404,
    "range": 416,
    "request_timeout": 408,
    "revoked": 403,
    "too_large": 413,
    "too_many": 422,
    "unknown_definition": 404,
    "unknown_job": 404,
    "unknown_task": 404,
    "unreachable": 503,
}


class Problem(msgspec.Struct):
    """What every error's body says: a code that stays, and what is wrong, where, and what to do."""

    error: str
    message: str


class WebError(DistricompError):
    """A request that cannot be answered as asked; `code` is one of STATUS. `allow`: the methods that there are."""

    def __init__(self, code: str, message: str, *, allow: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.allow = allow

    @property
    def status(self) -> int:
        """The HTTP status of the code."""
        return STATUS[self.code]


def as_web_error(error: DistricompError) -> WebError:
    """Any operating error of ours as one that has a status."""
    if isinstance(error, WebError):
        return error
    if isinstance(error, UnreachableError):
        return WebError("unreachable", str(error))
    if isinstance(error, RefusedError):
        return WebError(error.code if error.code in STATUS else "bad_request", str(error))
    return WebError("journal", str(error))


def problem_body(error: WebError) -> bytes:
    """The JSON body."""
    text = str(error).encode("utf-8", "backslashreplace").decode()  # a path of the system's need not be Unicode
    return msgspec.json.encode(Problem(error.code, text)) + b"\n"
