"""The document of `POST /api/v1/jobs`: what it may say, and how it becomes a submission. Pure.

Owns the document's shape (`docs/openapi.json` is made of these Structs) and its faults, all of them told at
once. Whether the definition exists and takes these params is for the coordinator to say.
"""

import re
import uuid
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from msgspec import UNSET, Meta, UnsetType

from dcoord.web.problems import WebError
from districomp.messages import Submit
from districomp.ranges import RANGE_PATTERN, parse_range

NAME_CHARS_MAX: Final = 255
FORMS: Final = ("data", "items", "range", "matrix")
FAULTS_SHOWN: Final = 10
_BASE64: Final = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
_WHERE: Final = re.compile(r" - at `\$(.*)`$")


class Bytes(msgspec.Struct, forbid_unknown_fields=True):
    """Bytes that are not text."""

    base64: Annotated[bytes, Meta(extra_json_schema={"pattern": _BASE64})]


Content = str | Bytes
Whole = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Value = str | Whole | float | bool | list[str]


class Submission(msgspec.Struct, forbid_unknown_fields=True):
    """A job to be: a definition, at most one form of input (`data`, `items`, `range`, `matrix`; none: one task without input), and its params."""

    definition: Annotated[str, Meta(description="A definition's name.")]
    data: Annotated[Content | UnsetType, Meta(description="One task with this on its standard input.")] = UNSET
    items: Annotated[list[Content] | UnsetType, Meta(description="A task each.")] = UNSET
    range: Annotated[
        str | UnsetType,
        Meta(
            description="A task for each number of A..B or A..B:STEP, both ends included.",
            examples=["1..100", "0..90:10"],
            extra_json_schema={"pattern": f"^{RANGE_PATTERN}$"},
        ),
    ] = UNSET
    matrix: Annotated[
        dict[str, list[Value]] | UnsetType,
        Meta(description="A task for each combination of these params' values; the last param varies fastest."),
    ] = UNSET
    params: Annotated[dict[str, Value], Meta(description="The definition's params.")] = {}
    name: Annotated[str, Meta(max_length=NAME_CHARS_MAX, description="A name for people.")] = ""
    request_id: Annotated[
        uuid.UUID | UnsetType, Meta(description="Names this submission: the same one gives the same job.")
    ] = UNSET
    max_fails: Annotated[
        Annotated[int, Meta(ge=1, le=2**63 - 1)] | UnsetType,
        Meta(description="At so many failed tasks the rest is cancelled."),
    ] = UNSET


class Created(msgspec.Struct):
    """A job that is on the coordinator's disk: its number, and how many tasks it has."""

    job: int
    tasks: int


class Request(NamedTuple):
    """A submission as the coordinator takes it; `items` None: it has none beside what `message` says."""

    message: Submit
    items: Sequence[bytes | str] | None


_MEMBERS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_FIELDS: Final = {field.name: field for field in msgspec.structs.fields(Submission)}
_DECODERS: Final[dict[str, msgspec.json.Decoder[Any]]] = {
    name: msgspec.json.Decoder(field.type) for name, field in _FIELDS.items()
}


def read_submission(body: bytes) -> Request:
    """A request's body as a submission. WebError `bad_request` names every fault of it."""
    submission = _read(body)
    message = Submit(
        request=1,
        request_id=str(submission.request_id) if submission.request_id is not UNSET else "",
        definition=submission.definition,
        params=submission.params,
        name=submission.name,
        max_fails=None if submission.max_fails is UNSET else submission.max_fails,
    )
    items: list[bytes | str] | None = None
    if submission.data is not UNSET:
        items = [_content(submission.data)]
    elif submission.items is not UNSET:
        items = [_content(item) for item in submission.items]
        if not items:
            raise WebError("empty", "items: it is empty, and a job needs at least one task; give at least one item")
    elif submission.range is not UNSET:
        numbers = parse_range(submission.range)
        # len() takes no more than 63 bits.
        message.numbers, message.count = (numbers.start, numbers.step), (numbers[-1] - numbers[0]) // numbers.step + 1
    elif submission.matrix is not UNSET:
        message.matrix = list(submission.matrix.items())
        if not message.matrix:
            raise WebError("empty", "matrix: it is empty, and a job needs at least one task; give at least one param")
    else:
        message.count = 1
    return Request(message, items)


def _read(body: bytes) -> Submission:
    """The members one by one, so that every fault is found."""
    try:
        members = _MEMBERS.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WebError("bad_request", f"the body is not a JSON object: {_lower(str(error))}") from error
    faults = [_surplus(name) for name in members if name not in _FIELDS]
    values: dict[str, Any] = {}
    for name, decoder in _DECODERS.items():
        if name not in members:
            if _FIELDS[name].required:
                faults.append(f"{name} is missing; it is needed")
            continue
        try:
            values[name] = decoder.decode(members[name])
            if name == "range":
                parse_range(values[name])
        except (ValueError, RecursionError) as error:  # msgspec's errors and UnicodeDecodeError are ValueErrors
            faults.append(_fault(name, str(error)))
    given = [form for form in FORMS if form in members]
    if len(given) > 1:
        faults.append(f"{' and '.join(given)} exclude each other; give one form of input")
    if faults:
        hidden = len(faults) - FAULTS_SHOWN
        more = [f"and {hidden} more"] if hidden > 0 else []
        raise WebError("bad_request", "; ".join(faults[:FAULTS_SHOWN] + more))
    return Submission(**values)


def _content(given: Content) -> bytes | str:
    return given if isinstance(given, str) else given.base64


def _surplus(name: str) -> str:
    close = get_close_matches(name[:64], list(_FIELDS), 1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(_FIELDS)}"
    return f"{name[:64]!r} is unknown, {hint}"


def _fault(member: str, text: str) -> str:
    """msgspec's sentence with the place first: `items[3].base64: expected ...`."""
    found = _WHERE.search(text)
    place = found[1].replace("[...]", "{...}") if found else ""
    return f"{member}{place}: {_lower(text[: found.start()] if found else text)}"


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:] if text[1:2].islower() else text
