"""The pure parts of the web process: ranges and entity tags, the rate's history, figures, host names, submissions, and
the description of the API."""

import contextlib
import json
import re
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcoord.web import figures, openapi, rights
from dcoord.web.files import choose_part, etag_matches
from dcoord.web.guard import Hosts
from dcoord.web.problems import STATUS, WebError
from dcoord.web.rights import Table
from dcoord.web.statistics import RateHistory
from dcoord.web.submission import Submission, read_submission
from dcoord.web.trust import Trust
from districomp.documents import Counts
from districomp.ranges import parse_range
from scripts import openapi as openapi_script

NAME = "ab" * 32
COUNTS = st.builds(Counts, *[st.integers(0, 10**6)] * 6)


@given(st.integers(0, 10**12), st.from_regex(r"(bytes=)?[0-9]{0,13}-[0-9]{0,13}", fullmatch=True))
def test_any_range_is_a_part_within_the_payload(size: int, range_: str) -> None:
    part = choose_part(size, NAME, "", range_, "")
    assert part.status in (200, 206, 416)
    assert 0 <= part.offset <= part.offset + part.size <= size
    length = dict(part.headers).get("Content-Length")
    assert length == (None if part.status == 416 else str(part.size))
    if part.status == 206:
        assert part.size > 0
        assert dict(part.headers)["Content-Range"] == f"bytes {part.offset}-{part.offset + part.size - 1}/{size}"


@pytest.mark.parametrize(
    ("range_", "offset", "size"),
    [("bytes=0-0", 0, 1), ("bytes=9-", 9, 1), ("bytes=-1", 9, 1), ("bytes=3-4", 3, 2), ("bytes=0-99", 0, 10), ("bytes=-99", 0, 10)],
)  # fmt: skip
def test_a_range_includes_both_ends(range_: str, offset: int, size: int) -> None:
    part = choose_part(10, NAME, "", range_, "")
    assert (part.status, part.offset, part.size) == (206, offset, size)


def test_a_condition_stands_above_a_range() -> None:
    assert choose_part(10, NAME, f'"{NAME}"', "bytes=0-1", "").status == 304
    assert choose_part(10, NAME, '"other"', "bytes=0-1", f'"{NAME}"').status == 206
    assert choose_part(10, NAME, "", "bytes=0-1", '"other"').status == 200
    assert choose_part(10, NAME, "", "bytes=0-1", f'W/"{NAME}"').status == 200, "a weak tag promises no byte"


@pytest.mark.parametrize(
    ("condition", "expected"),
    [("*", True), ('"x"', True), ('W/"x"', True), ('"y", "x"', True), ('"xx"', False), ("x", False)],
)
def test_etags_match_by_the_weak_comparison(condition: str, expected: bool) -> None:
    assert etag_matches(condition, '"x"') is expected


def test_a_steady_rate_is_itself() -> None:
    history = RateHistory(step_s=2, steps=5)
    for second in range(100, 121):
        history.add(float(second), 10 * second)
    assert history.rates(120.5) == [10.0] * 5


def test_a_gap_is_its_average_and_outside_nothing_is_known() -> None:
    history = RateHistory(step_s=2, steps=6)
    history.add(100.0, 0)
    history.add(108.0, 400)
    assert history.rates(110.0) == [None, 50.0, 50.0, 50.0, 50.0, None]
    assert history.rates(10_000.0) == [None] * 6


def test_fewer_ended_than_before_begins_anew() -> None:
    history = RateHistory(step_s=2, steps=4)
    history.add(100.0, 500)
    history.add(104.0, 0)
    history.add(106.0, 8)
    assert history.rates(106.0) == [None, None, None, 4.0]


@given(st.lists(st.tuples(st.floats(0.001, 50), st.integers(0, 1000)), max_size=60))
def test_the_history_has_one_length_and_no_negative_rate(steps: list[tuple[float, int]]) -> None:
    history = RateHistory()
    at, ended = 1000.0, 0
    for wait_s, more in steps:
        at, ended = at + wait_s, ended + more
        history.add(at, ended)
        rates = history.rates(at)
        assert len(rates) == 90
        assert all(rate is None or rate >= 0 for rate in rates)


@given(COUNTS, st.integers(0, 100))
def test_a_bar_has_no_gap_and_never_overflows(counts: Counts, more: int) -> None:
    parts = figures.bar(counts, figures.total(counts) + more)
    x = 0
    for state, start, width in parts:
        assert start == x, state
        assert width >= 0
        x += width
    assert x <= figures.BAR_WIDTH
    assert (x == figures.BAR_WIDTH) == (more == 0 and figures.total(counts) > 0)


@given(COUNTS)
def test_all_of_it_is_said_only_when_it_is_true(counts: Counts) -> None:
    tasks = figures.total(counts)
    assert (figures.percent(counts, tasks) == "100 %") == (tasks > 0 and figures.ended(counts) == tasks)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, figures.UNKNOWN), (-3, "0 s"), (0.4, "0 s"), (59.4, "59 s"), (59.5, "1 min 00 s"), (3599.4, "59 min 59 s"),
        (3599.5, "1 h 00 min"), (86399, "23 h 59 min"), (86400, "1 d 00 h"), (1e6, "11 d 13 h"),
    ],
)  # fmt: skip
def test_a_duration_has_two_units(seconds: float | None, text: str) -> None:
    assert figures.duration(seconds) == text


@pytest.mark.parametrize(
    ("per_s", "text"), [(0, "0.0"), (9.94, "9.9"), (9.95, "10"), (1234.5, "1,235"), (1e6, "1,000,000")]
)
def test_a_rate_has_as_many_digits_as_can_be_read(per_s: float, text: str) -> None:
    assert figures.rate(per_s) == text


def test_a_line_breaks_where_nothing_is_known() -> None:
    assert figures.spark_line([None, 1.0, 2.0, None, 0.0]) == "M1 20.5L2 2.0M4 39.0"
    assert figures.spark_line([1.0], area=True) == "M0 40L0 2.0L0 40Z"
    assert figures.spark_line([None, None]) == ""


OURS = ("localhost", "127.", "[", "192.0.2.7", "farm.example", socket.gethostname().lower())
NOBODY = Trust(insecure=True)


@given(st.text(max_size=60))
def test_any_text_as_a_host_is_judged(host: str) -> None:
    hosts = Hosts("192.0.2.7", ["farm.example"], NOBODY)
    if hosts.allow(host, "192.0.2.7"):
        assert host.lower().rpartition(":")[0].startswith(OURS) or ":" not in host


def test_the_bound_address_is_a_name_of_ours() -> None:
    hosts = Hosts("192.0.2.7", ["farm.example"], NOBODY)
    assert hosts.allow("192.0.2.7:8421", "192.0.2.7")
    assert hosts.allow("FARM.example", "192.0.2.7")
    assert not hosts.allow("192.0.2.70", "192.0.2.7")
    assert not hosts.allow("farm.example.org", "192.0.2.7")
    assert Hosts("::1", [], NOBODY).allow("[::1]:1", "::1")


@pytest.mark.parametrize("bound", ["::", "0.0.0.0", "192.0.2.7"])
def test_where_it_is_reached_it_has_that_address_and_this_machines_names(bound: str) -> None:
    hosts = Hosts(bound, [], NOBODY)
    name = socket.gethostname()
    for host in ("192.0.2.7:8421", name, name.upper() + ":8421", f"{name.partition('.')[0]}.local"):
        assert hosts.allow(host, "::ffff:192.0.2.7"), host
    assert hosts.allow("[2001:DB8::7]:8422", "2001:db8::7")
    for host in ("192.0.2.8", "evil.example", f"{name}.evil.example", "x.local", "dcoord.x.districomp.internal"):
        assert not hosts.allow(host, "::ffff:192.0.2.7"), host


def test_a_port_of_loopback_has_no_names_of_the_machine() -> None:
    assert not Hosts("127.0.0.1", [], NOBODY).allow(f"{socket.gethostname().partition('.')[0]}.local", "127.0.0.1")


# ---- rights ----


@pytest.mark.parametrize("is_plain", [False, True])
@pytest.mark.parametrize(
    "part", ["..", ".", "", "%2e%2e", "..%2f", "a%00", "a\\b", "a b", "é", "a;b", "~", "*", "a" * 256]
)
def test_no_parameter_of_any_path_can_lead_elsewhere(is_plain: bool, part: str) -> None:
    table = Table(is_plain=is_plain)
    for route in rights.ROUTES:
        if "{" in route.path and (route.plain or not is_plain):
            assert table.route(route.method, re.sub(r"\{\w+\}", "a.b-c_1", route.path)) is route
            for path in (re.sub(r"\{\w+\}", lambda _: part, route.path), re.sub(r"\{\w+\}", f"a/{part}", route.path)):
                with pytest.raises(WebError) as refused:
                    table.route(route.method, path)
                assert refused.value.code == "not_found", path


@given(st.text(alphabet="/.a1%-_\\x00é", max_size=30))
def test_any_path_is_a_route_or_nothing(path: str) -> None:
    with contextlib.suppress(WebError):
        assert Table(is_plain=False).route("GET", path) in rights.ROUTES
        assert not {"..", "."} & set(path.split("/"))


def test_the_rights_know_every_route_that_is_described_and_no_need_is_unknown() -> None:
    known = {(route.method, route.path) for route in rights.ROUTES}
    assert {(route.method.upper(), route.path) for route in openapi.ROUTES} <= known
    assert {route.need for route in rights.ROUTES} == set(rights.WHO)
    assert {role for roles in rights.WHO.values() for role in roles} == {"worker", "submit", "read", "admin"}
    assert {route.plain for route in rights.ROUTES} == {"", "public", "always"}


# ---- submissions ----

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)
MEMBERS = st.sampled_from([*Submission.__struct_fields__, "dat", "rnage", ""])


@given(st.binary(max_size=200))
def test_any_bytes_are_a_submission_or_refused(body: bytes) -> None:
    with pytest.raises(WebError) as refused:
        read_submission(body)
    assert refused.value.code == "bad_request"


@given(st.dictionaries(MEMBERS, JSON_VALUES | st.just("copy") | st.just("1..3"), max_size=5))
def test_any_document_is_a_submission_or_refused_in_one_sentence(document: dict[str, Any]) -> None:
    try:
        wanted = read_submission(json.dumps(document).encode())
    except WebError as error:
        assert error.code in ("bad_request", "empty")
        assert len(str(error)) < 4000
    else:
        assert wanted.message.definition == document["definition"]
        forms = (wanted.items is not None, wanted.message.numbers is not None, bool(wanted.message.matrix))
        assert sum(forms) + (wanted.message.count == 1 and not any(forms)) == 1


@given(st.integers(-(10**18) + 1, 10**18 - 1), st.integers(-(10**18) + 1, 10**18 - 1), st.integers(-99, 99))
def test_a_range_of_numbers_includes_its_ends(first: int, last: int, step: int) -> None:
    text = f"{first}..{last}:{step}"
    if step == 0:
        with pytest.raises(ValueError, match="step 0"):
            parse_range(text)
        return
    numbers = parse_range(text)
    assert numbers[0] == first
    assert min(first, last) <= numbers[-1] <= max(first, last)
    assert abs(last - numbers[-1]) < abs(step)
    message = read_submission(json.dumps({"definition": "d", "range": text}).encode()).message
    assert message.numbers == (first, numbers.step)
    assert numbers[0] + (message.count - 1) * numbers.step == numbers[-1]


@pytest.mark.parametrize(
    "text",
    ["", "1", "1..", "..1", "1...2", "1..2:", "1 ..2", "1..2\n", "a..b", "1_0..2", "1" * 19 + "..2", "\u0661..2"],
)
def test_what_is_no_range_of_numbers_is_said(text: str) -> None:
    with pytest.raises(ValueError, match="for example"):
        parse_range(text)


# ---- the description of the API ----

DESCRIPTION: dict[str, Any] = json.loads(openapi.render())
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "http.md"


def test_the_committed_description_is_current() -> None:
    assert openapi_script.FILE.read_bytes() == openapi.render(), "run `make docs`"


def test_every_operation_has_its_name_and_its_parameters() -> None:
    names = [route.name for route in openapi.ROUTES]
    assert len(set(names)) == len(names)
    assert sum(len(path) for path in DESCRIPTION["paths"].values()) == len(names)
    for path, operations in DESCRIPTION["paths"].items():
        for operation in operations.values():
            named = [each["name"] for each in operation.get("parameters", []) if each["in"] == "path"]
            assert named == re.findall(r"\{(\w+)\}", path)


def test_every_reference_leads_somewhere() -> None:
    found = set(re.findall(r'"#/components/schemas/(\w+)"', openapi.render().decode()))
    assert found == set(DESCRIPTION["components"]["schemas"])


def test_the_submissions_schema_is_its_struct() -> None:
    schema = DESCRIPTION["components"]["schemas"]["Submission"]
    assert list(schema["properties"]) == [field.name for field in msgspec.structs.fields(Submission)]
    assert schema["required"] == ["definition"]
    assert schema["additionalProperties"] is False
    assert all(entry.get("description") for entry in schema["properties"].values())
    assert {"required": ["data", "range"]} in schema["not"]["anyOf"]
    assert re.search(schema["properties"]["range"]["pattern"], "-3..9:2")
    assert not re.search(schema["properties"]["range"]["pattern"], "1-2")


def test_every_code_of_an_error_is_documented() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    rows = {
        code: row for row in text.splitlines() if re.match(r"\| \d{3} \|", row) for code in re.findall(r"`(\w+)`", row)
    }
    for code, status in STATUS.items():
        assert rows.get(code, "").startswith(f"| {status} |"), code


def test_every_route_is_documented() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    words = {"{task}": "JOB.INDEX", "{job}": "N", "{sha256}": "SHA256", "{name}": "NAME"}
    for route in openapi.ROUTES:
        path = route.path
        for place, word in words.items():
            path = path.replace(place, word)
        assert re.search(rf"`{route.method.upper()} {re.escape(path)}[`?]|, `{re.escape(path)}`", text), (
            route.method,
            path,
        )
