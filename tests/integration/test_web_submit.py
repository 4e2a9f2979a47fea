"""`POST /api/v1/jobs` and the read routes beside it, with a real coordinator and, where work is done, a real worker."""

import asyncio
import contextlib
import json
import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dcoord.web.http1 import Event, PeerGoneError
from dcoord.web.json_bodies import JsonBodies
from dcoord.web.problems import WebError
from demo.cluster import Cluster, wait_until
from districomp.client import Client
from districomp.client_dataport import connection_to
from districomp.messages import Goodbye
from districomp.tls import server_name
from tests.integration.weblab import WAIT_S, Answer, exchange, site, until
from tests.priority import timed

DEFINITIONS = {
    "copy": "command: [cat]",
    "lines": "stream: [cat]",
    "echo": "command: [echo, '{item}']",
    "power": "command: [echo, '{base}', '{exponent}']\nparams: {base: {type: int}, exponent: {type: int, min: 0}}",
    "small": "command: [cat]\nlimits: {data: 10B}",
}


class Api:
    """A running coordinator, asked over its data port with a session as `dctl ui` has one."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        with Client(str(cluster.runtime / "control.sock")) as client:
            self.place = client.data_place()
            self.session = client.grant("SESSION", "").grant
        assert self.place.url.startswith("https://")

    def ask(self, path: str, method: str = "GET", body: Any = None, **headers: str) -> Answer:
        connection = connection_to(self.place, WAIT_S)
        with contextlib.closing(connection):
            return exchange(connection, path, method, body, **({"Authorization": f"Bearer {self.session}"} | headers))

    def post(self, document: Any, **headers: str) -> Answer:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        return self.ask("/api/v1/jobs", "POST", body, **({"Content_Type": "application/json"} | headers))

    def submit(self, definition: str = "copy", **members: Any) -> int:
        answer = self.post({"definition": definition, **members})
        assert answer.status == 201, answer
        return int(answer.json()["job"])

    def get(self, path: str) -> Any:
        answer = self.ask(path)
        assert answer.status == 200, answer
        return answer.json()

    def jobs(self) -> int:
        """How many there are, asked of the coordinator itself."""
        with Client(str(self.cluster.runtime / "control.sock")) as client:
            return len(client.jobs())


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with Cluster(tmp_path_factory.mktemp("api")) as cluster:
        for name, body in DEFINITIONS.items():
            (cluster.config / "tasks.d" / f"{name}.yaml").write_text(f"version: 1\ndescription: {name}\n{body}\n")
        cluster.start_coordinator()
        yield Api(cluster)
        assert cluster.coordinator is not None
        assert "Traceback" not in cluster.coordinator.log_text(), cluster.coordinator.log_text()


@pytest.mark.parametrize(
    ("members", "tasks"),
    [
        ({}, 1), ({"data": ""}, 1), ({"data": "text"}, 1), ({"data": {"base64": "AP8="}}, 1), ({"items": ["a", ""]}, 2),
        ({"range": "1..5"}, 5), ({"range": "9..0:3"}, 4), ({"range": "-3..3"}, 7), ({"range": "0..999999999"}, 10**9),
    ],
)  # fmt: skip
def test_each_form_of_input_makes_its_tasks(api: Api, members: dict[str, Any], tasks: int) -> None:
    answer = api.post({"definition": "copy", "name": "étude", "max_fails": 3, **members})
    assert (answer.status, answer.json()["tasks"]) == (201, tasks)
    assert answer.headers["location"] == f"/api/v1/jobs/{answer.json()['job']}"
    job = api.get(answer.headers["location"])
    assert (job["name"], job["definition"], job["tasks"]) == ("étude", "copy", tasks)
    assert api.cluster.dctl_json("job", "show", str(job["job"]))["tasks"] == tasks


def test_what_is_submitted_comes_back_computed(tmp_path: Path) -> None:
    large = os.urandom(100_000).hex()
    with Cluster(tmp_path) as cluster:
        for name, body in DEFINITIONS.items():
            (cluster.config / "tasks.d" / f"{name}.yaml").write_text(f"version: 1\ndescription: {name}\n{body}\n")
        cluster.start_coordinator()
        cluster.start_worker("w")
        api = Api(cluster)
        blobs = tmp_path / "coordinator/state/dcoord/blobs"
        of_bundles = set(blobs.glob("??/*"))
        items = api.submit(items=["tëxt", {"base64": "AP8="}, large, ""])
        numbers = api.submit("echo", range="10..30:10")
        powers = api.submit("power", params={"base": 2}, matrix={"exponent": [3, 4]})
        for job in (items, numbers, powers):
            wait_until(lambda job=job: api.get(f"/api/v1/jobs/{job}")["state"] == "done", f"job {job}")  # type: ignore[misc]
        given = ["tëxt".encode(), b"\x00\xff", large.encode(), b""]
        assert [api.ask(f"/results/{items}.{i}").body for i in range(4)] == given
        assert [api.ask(f"/tasks/{items}.{i}").body for i in range(4)] == given
        assert [api.ask(f"/results/{numbers}.{i}").body for i in range(3)] == [b"10\n", b"20\n", b"30\n"]
        assert [api.ask(f"/results/{powers}.{i}").body for i in range(2)] == [b"2 3\n", b"2 4\n"]
        assert len(set(blobs.glob("??/*")) - of_bundles) == 1, "only what is large is a blob"
        wait_until(lambda: 0 < api.get("/stats.json")["tasks_per_s"] < 100, "the page to have the pace")
        tasks = api.get(f"/api/v1/jobs/{items}/tasks?state=done")
        assert [task["task"] for task in tasks] == [f"{items}.{i}" for i in range(4)]
        assert api.get(f"/api/v1/jobs/{items}/tasks?state=failed") == []


def test_the_last_param_of_a_matrix_varies_fastest(api: Api) -> None:
    job = api.submit("power", matrix={"exponent": [1, 2], "base": [5, 6, 7]})
    assert api.get(f"/api/v1/jobs/{job}")["tasks"] == 6
    named_twice = api.post({"definition": "power", "matrix": {"base": [1]}, "params": {"base": 1, "exponent": 2}})
    assert (named_twice.status, named_twice.json()["error"]) == (400, "bad_params")


def test_the_same_request_id_is_the_same_job(api: Api) -> None:
    name = str(uuid.uuid4())
    before = api.jobs()
    many = ["x" * 1000] * 1000  # several messages
    answers = [api.post({"definition": "copy", "items": many, "request_id": name}) for _ in range(2)]
    answers += [api.post({"definition": "copy", "items": many, "request_id": name.upper()})]
    assert {answer.status for answer in answers} == {201}
    assert len({answer.body for answer in answers}) == 1
    assert api.cluster.dctl_json("submit", "copy", "--request-id", name) == answers[0].json()
    assert api.jobs() == before + 1


def test_a_job_is_seen_by_whoever_was_told_of_it(api: Api) -> None:
    for _ in range(20):
        api.get("/api/v1/jobs")
        api.get("/api/v1/status")
        job = api.submit()
        assert api.get("/api/v1/jobs")[-1]["job"] == job


def test_many_items_arrive_whole_and_in_order(api: Api) -> None:
    job = api.submit(items=[f"{i:0>100}" for i in range(20_000)])
    for index in (0, 1, 2619, 2620, 4096, 19_999):
        assert api.ask(f"/tasks/{job}.{index}").body == f"{index:0>100}".encode()


@pytest.mark.parametrize(
    ("document", "status", "code", "said"),
    [
        (b"", 400, "bad_request", "not a JSON object"),
        (b"[]", 400, "bad_request", "not a JSON object"),
        (b'{"definition": "copy"', 400, "bad_request", "truncated"),
        (b'{"definition": "copy"} {}', 400, "bad_request", "trailing"),
        (b'{"\xff": 1}', 400, "bad_request", "not a JSON object"),
        (b'{"definition": "\xff"}', 400, "bad_request", "definition: "),
        (b'{"definition": "\\ud800"}', 400, "bad_request", "not a JSON object"),
        (b'{"params": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, "bad_request", "not a JSON object"),
        ({}, 400, "bad_request", "definition is missing"),
        ({"defintion": "copy"}, 400, "bad_request", "'defintion' is unknown, did you mean definition?"),
        ({"definition": "copy", "zzz": 1}, 400, "bad_request", "there are definition, data, items"),
        ({"definition": 7}, 400, "bad_request", "definition: expected `str`"),
        ({"definition": "copy", "data": None}, 400, "bad_request", "data: expected"),
        ({"definition": "copy", "data": {"base64": "x"}}, 400, "bad_request", "data.base64: invalid base64"),
        ({"definition": "copy", "items": ["a", 3]}, 400, "bad_request", "items[1]: expected"),
        ({"definition": "copy", "items": "abc"}, 400, "bad_request", "items: expected `array`"),
        ({"definition": "copy", "data": "a", "range": "1..2"}, 400, "bad_request", "data and range exclude each other"),
        ({"definition": "copy", "range": "1-5"}, 400, "bad_request", "'1-5' is not A..B"),
        ({"definition": "copy", "range": "1..5\n"}, 400, "bad_request", "is not A..B"),
        ({"definition": "copy", "range": "1..5:0"}, 400, "bad_request", "step 0"),
        ({"definition": "copy", "request_id": "mine"}, 400, "bad_request", "request_id: invalid UUID"),
        ({"definition": "copy", "max_fails": 0}, 400, "bad_request", "max_fails: expected `int` >= 1"),
        ({"definition": "copy", "name": "n" * 256}, 400, "bad_request", "name: expected `str` of length <= 255"),
        ({"definition": "copy", "params": {"a": {}}}, 400, "bad_request", "params{...}: expected"),
        ({"definition": "copy", "params": {"a": 2**64}}, 400, "bad_request", "params{...}: expected `int` <="),
        ({"x": 1, "data": 2}, 400, "bad_request", "'x' is unknown"),
        ({"definition": "copi"}, 404, "unknown_definition", "live are: callable, copy"),
        ({"definition": "copy", "params": {"a": 1}}, 400, "bad_params", "'a' is unknown"),
        ({"definition": "power", "params": {"base": "x"}}, 400, "bad_params", "'exponent' is missing"),
        ({"definition": "power", "matrix": {"base": [1], "exponent": [1, -1]}}, 400, "bad_params", "at least 0"),
        ({"definition": "power", "matrix": {"base": [], "exponent": [1]}}, 400, "bad_params", "no values"),
        ({"definition": "copy", "items": []}, 422, "empty", "at least one item"),
        ({"definition": "copy", "matrix": {}}, 422, "empty", "at least one param"),
        ({"definition": "echo"}, 422, "empty", "the job has no input"),
        ({"definition": "copy", "range": "0..1000000000"}, 413, "too_large", "1000000000 tasks"),
        ({"definition": "copy", "range": "-999999999999999999..999999999999999999"}, 413, "too_large", "tasks"),
        ({"definition": "small", "data": "0123456789a"}, 413, "too_large", "limits.data is 10"),
        ({"definition": "small", "data": "x" * 70_000}, 413, "too_large", "limits.data is 10"),
        ({"definition": "echo", "items": ["a", "b\0"]}, 400, "bad_request", "item 1: it has a NUL"),
        ({"definition": "lines", "items": ["a", "b\nc"]}, 400, "bad_request", "item 1: it has a newline"),
        ({"definition": "echo", "data": {"base64": "/w=="}}, 400, "bad_request", "not UTF-8"),
        ({"definition": "copy", "params": {"a": "x" * 2_000_000}}, 413, "too_large", "do not fit into a message"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_and_nothing_is_submitted(
    api: Api, document: Any, status: int, code: str, said: str
) -> None:
    before = api.jobs()
    answer = api.post(document)
    assert (answer.status, answer.json()["error"]) == (status, code), answer
    assert said in answer.json()["message"], answer
    assert api.jobs() == before


def test_every_fault_is_told_at_once(api: Api) -> None:
    message = api.post({"defintion": "copy", "items": [1], "range": "x", "max_fails": "1"}).json()["message"]
    for said in ("'defintion'", "definition is missing", "items[0]", "range: ", "max_fails", "items and range exclude"):
        assert said in message
    many = api.post({str(i): i for i in range(1000)}).json()["message"]
    assert "and 991 more" in many
    assert len(many) < 2000


def test_a_fault_in_a_late_item_leaves_nothing(api: Api) -> None:
    before = api.jobs()
    answer = api.post({"definition": "echo", "items": ["x" * 1000] * 2000 + ["\0"]})
    assert (answer.status, answer.json()["error"]) == (400, "bad_request")
    assert "item 2000" in answer.json()["message"]
    assert api.jobs() == before


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""])
def test_only_json_by_its_header_is_read(api: Api, kind: str) -> None:
    answer = api.post({"definition": "copy"}, Content_Type=kind)
    assert (answer.status, answer.json()["error"]) == (415, "bad_content_type")
    assert "application/json" in answer.json()["message"]
    squeezed = api.post({"definition": "copy"}, Content_Encoding="gzip")
    assert squeezed.status == 415


def test_a_type_with_its_character_set_is_json(api: Api) -> None:
    assert api.post({"definition": "copy"}, Content_Type="Application/JSON; charset=utf-8").status == 201


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_another_sites_page_cannot_write(api: Api, method: str) -> None:
    path = "/api/v1/jobs" if method == "POST" else "/blobs/" + "0" * 64
    host = server_name(api.place.cluster)
    for origin in (
        "https://evil.example",
        "null",
        "https://127.0.0.1:1",
        f"https://{host}.evil.example",
        f"http://{host}",
        "",
    ):
        answer = api.ask(path, method, b"{}", Origin=origin, Content_Type="application/json")
        assert (answer.status, answer.json()["error"]) == (403, "bad_origin"), origin
    answer = api.ask(path, method, b"{}", Origin=f"https://{host}", Content_Type="application/json")
    assert answer.status in (400, 422), "its own page may, and is judged by what it sends"
    assert api.ask("/api/v1/jobs", Origin="http://evil.example").status == 200, "reading changes nothing"


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_has_a_limit(api: Api, is_chunked: bool) -> None:
    document = b'{"definition": "copy", "data": "' + b"x" * (16 << 20) + b'"}'
    body = iter([document[i : i + 65536] for i in range(0, len(document), 65536)]) if is_chunked else document
    headers = {"Authorization": f"Bearer {api.session}"} | ({"Transfer-Encoding": "chunked"} if is_chunked else {})
    before = api.jobs()
    connection = connection_to(api.place, WAIT_S)
    with contextlib.closing(connection):
        encoded = {"encode_chunked": True} if is_chunked else {}
        connection.request("POST", "/api/v1/jobs", body, headers | {"Content-Type": "application/json"}, **encoded)
        response = connection.getresponse()
        answer = json.loads(response.read())
    assert (response.status, answer["error"]) == (413, "too_large")
    assert "16,777,216" in answer["message"]
    assert api.jobs() == before


def test_a_large_submission_and_the_page_do_not_wait_for_each_other(api: Api) -> None:
    document = json.dumps({"definition": "copy", "items": ["ab"] * 1_500_000}).encode()
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(api.post(document)))
    pages = 0
    thread.start()
    while thread.is_alive():
        api.get("/stats.json")
        pages += 1
    thread.join()
    assert answers[0].json()["tasks"] == 1_500_000
    assert pages >= 5


def test_a_list_of_tasks_has_a_limit(api: Api) -> None:
    job = api.submit(range="1..10001")
    answer = api.ask(f"/api/v1/jobs/{job}/tasks")
    assert (answer.status, answer.json()["error"]) == (422, "too_many")
    assert "10,001" in answer.json()["message"]
    assert api.get(f"/api/v1/jobs/{job}/tasks?state=done") == []
    assert api.ask("/api/v1/jobs/999/tasks").json()["error"] == "unknown_job"


def test_a_task_is_explained_and_a_definition_shown(api: Api) -> None:
    job = api.submit(data="x")
    assert api.get(f"/api/v1/tasks/{job}.0/explain")["cause"] == "no_worker"
    assert api.ask(f"/api/v1/tasks/{job}.1/explain").json()["error"] == "unknown_task"
    shown = api.get("/api/v1/definitions/power")
    assert shown["definition"]["params"]["exponent"]["min"] == 0
    assert api.ask("/api/v1/definitions/none").json()["error"] == "unknown_definition"
    assert api.get("/api/v1/openapi.json")["openapi"] == "3.1.0"


def test_a_definition_with_an_error_is_on_the_page_the_good_ones_stay(api: Api) -> None:
    (api.cluster.config / "tasks.d" / "wrong.yaml").write_text("version: 1\ndescription: x\ncomand: [SECRET]\n")
    faulty = wait_until(lambda: api.get("/stats.json")["definitions"]["faulty"], "the fault to be on the page")
    assert faulty == [{"name": "wrong", "problems": 1}]
    page = api.ask("/").body.decode()
    assert "wrong: 1 problem" in page
    assert "SECRET" not in page
    assert "secured by <b>TLS and certificates</b>" in page
    shown = {each["name"]: each["problems"] for each in api.get("/api/v1/definitions")}
    assert any("did you mean" in problem for problem in shown["wrong"]), shown["wrong"]
    assert shown["copy"] == []
    assert api.submit("copy") > 0


@pytest.mark.parametrize(
    ("query", "said"),
    [("?state=sleeping", "those are queued"), ("?stat=done", "did you mean 'state'"), ("?state=done&state=done", "twice"),
     ("?" + "&".join(f"a{i}=1" for i in range(20)), "fields"), ("?x=%ff", "decode")],
)  # fmt: skip
def test_a_query_is_read_strictly(api: Api, query: str, said: str) -> None:
    answer = api.ask(f"/api/v1/jobs/{api.submit()}/tasks{query}")
    assert (answer.status, answer.json()["error"]) == (400, "bad_request")
    assert said in answer.json()["message"]
    assert api.ask(f"/api/v1/status{query}").status == 400
    assert api.ask(f"/api/v1/jobs{query}", "POST", b"{}", Content_Type="application/json").status == 400


# ---- a coordinator that is not there, or goes away ----


def test_without_a_coordinator_nothing_is_submitted(tmp_path: Path) -> None:
    with site(tmp_path, coordinator=False) as it:
        body = b'{"definition": "copy"}'
        answer = it.fetch("/api/v1/jobs", data=True, method="POST", body=body, Content_Type="application/json")
        assert (answer.status, answer.json()["error"]) == (503, "unreachable")
        assert "start dcoord" in answer.json()["message"]


@pytest.mark.parametrize(
    ("code", "is_early", "status", "said"),
    [
        ("stopping", False, 503, "the same request_id again"),
        ("degraded", False, 503, "the same request_id again"),
        ("stopping", True, 503, "nothing was submitted"),
    ],
)
def test_a_submission_cut_off_says_whether_it_may_have_been_made(
    tmp_path: Path, code: str, is_early: bool, status: int, said: str
) -> None:
    with site(tmp_path) as it:
        it.coordinator.ends_submissions_with = Goodbye(code, "it must be")
        it.coordinator.ends_at_hello = is_early
        body = b'{"definition": "copy"}'
        answer = it.fetch("/api/v1/jobs", data=True, method="POST", body=body, Content_Type="application/json")
        assert answer.status == status
        assert answer.json()["error"] == ("degraded" if code == "degraded" else "unreachable")
        assert said in answer.json()["message"]


def test_a_submission_given_up_is_forgotten_by_the_coordinator(tmp_path: Path) -> None:
    """Its connection ends, which is how the coordinator knows: here because there is no folder for a large item."""
    with site(tmp_path) as it:
        it.blobs.mkdir(parents=True)
        (it.blobs / "tmp").write_text("in the way")
        document = {"definition": "copy", "items": ["x" * 1000] * 2000 + ["y" * 70_000]}
        body = json.dumps(document).encode()
        answer = it.fetch("/api/v1/jobs", data=True, method="POST", body=body, Content_Type="application/json")
        assert (answer.status, answer.json()["error"]) == (507, "no_space")
        assert len(it.coordinator.submitted) > 1
        assert not any(message.last for message in it.coordinator.submitted)
        until(lambda: it.coordinator.connections == 1, "the submission's connection to end")
        assert it.fetch("/healthz").status == 200


def test_a_silent_coordinator_holds_up_no_reader(tmp_path: Path) -> None:
    with site(tmp_path) as it:
        it.coordinator.lets_in = False
        answers: list[Answer] = []

        def submit() -> None:
            body = b'{"definition": "copy"}'
            answers.append(
                it.fetch("/api/v1/jobs", data=True, method="POST", body=body, Content_Type="application/json")
            )

        threads = [threading.Thread(target=submit) for _ in range(4)]
        for thread in threads:
            thread.start()
        with timed() as took:
            for _ in range(20):
                assert it.fetch("/api/v1/jobs", data=True).status == 200
        assert took.alone_s < 4.5, "none of them waited for the submissions' five seconds"
        for thread in threads:
            thread.join(WAIT_S)
        assert {answer.status for answer in answers} == {503}
        assert "nothing was submitted" in answers[0].json()["message"]


# ---- bodies, without a process ----


def events(*pieces: bytes, stalls: bool = False) -> Any:
    queue: list[Event] = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]

    async def receive() -> Event:
        if queue:
            return queue.pop(0)
        if stalls:
            await asyncio.sleep(60)
        return {"type": "http.request", "body": b"", "more_body": False}

    return receive


JSON = {"headers": [(b"content-type", b"application/json")]}


async def gathered(bodies: JsonBodies, receive: Any) -> bytes:
    async with bodies.whole(JSON, receive) as body:
        return body


def test_all_bodies_together_have_a_limit_that_is_given_back() -> None:
    async def run() -> None:
        bodies = JsonBodies(bytes_max=100, together_max=150)
        for _ in range(3):
            async with bodies.whole(JSON, events(b"a" * 60, b"b" * 40)) as first:
                assert len(first) == 100
                assert await gathered(bodies, events(b"c" * 50)) == b"c" * 50
                with pytest.raises(WebError) as refused:
                    await gathered(bodies, events(b"c" * 51))
                assert refused.value.code == "busy"
                with pytest.raises(WebError) as large:
                    await gathered(JsonBodies(bytes_max=100), events(b"d" * 101))
                assert large.value.code == "too_large"
            with contextlib.suppress(WebError):
                await gathered(bodies, events(b"e" * 101))

    asyncio.run(run())


def test_a_body_that_does_not_arrive_in_time_is_given_up() -> None:
    async def run() -> None:
        bodies = JsonBodies(time_s=0.05, together_max=10)
        for _ in range(3):
            with pytest.raises(WebError) as slow:
                await gathered(bodies, events(b"12345", stalls=True))
            assert (slow.value.code, slow.value.status) == ("request_timeout", 408)

        async def gone() -> Event:
            return {"type": "http.disconnect"}

        with pytest.raises(PeerGoneError):
            await gathered(bodies, gone)
        assert await gathered(bodies, events(b"0123456789")) == b"0123456789"

    asyncio.run(run())
