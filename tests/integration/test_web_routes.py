"""The routes of dcoord-web's two ports, asked over HTTP from the real process."""

import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from districomp.documents import AttemptDocument, Counts, TaskDocument
from districomp.messages import Refused
from tests.integration.weblab import Site, definition, exchange, job, site, status, worker
from tests.patience import PATIENCE_S

DATA_ROUTES = ("/tasks/1.0", "/results/1.0", "/blobs/" + "a" * 64, "/api/v1/status", "/api/v1/jobs")
PROTECTIONS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("web")) as it:
        yield it


def test_the_coordinator_is_told_where_the_ports_are(web: Site) -> None:
    hello = web.coordinator.hellos[0]
    assert hello.web_url == f"http://127.0.0.1:{web.web_port}"
    assert hello.data_url == f"http://127.0.0.1:{web.data_port}"
    assert web.process is not None
    assert hello.pid == web.process.pid


@pytest.mark.parametrize("data", [False, True])
def test_both_ports_have_the_page_and_its_numbers(web: Site, data: bool) -> None:
    page = web.fetch("/", data=data)
    assert page.status == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    text = page.body.decode()
    assert '<h1 id="name">room-12</h1>' in text
    assert "Insecure: no TLS, no authentication." in text
    stats = web.fetch("/stats.json", data=data)
    assert stats.headers["content-type"] == "application/json"
    numbers = stats.json()
    assert numbers["cluster"] == "cluster7id"
    assert numbers["tasks"] == {"queued": 5, "running": 2, "done": 30, "failed": 1, "cancelled": 0, "skipped": 0}
    assert numbers["slots"] == {"used": 1, "total": 4}
    assert numbers["coordinator"]["reachable"] is True
    assert numbers["insecure"] is True


def test_the_shape_of_stats_json(web: Site) -> None:
    numbers = web.fetch("/stats.json").json()
    assert list(numbers) == [
        "cluster", "name", "version", "epoch", "insecure", "coordinator", "at", "uptime_s", "slots", "tasks",
        "tasks_per_s", "rates", "workers", "jobs", "definitions",
    ]  # fmt: skip
    assert numbers["jobs"]["total"] == 1
    assert list(numbers["jobs"]["shown"][0]) == ["job", "name", "definition", "state", "tasks", "counts", "eta_s"]
    assert numbers["workers"]["states"] == {"busy": 1, "idle": 1}
    assert list(numbers["workers"]["shown"][0]) == ["worker", "name", "state", "slots", "running", "last_seen_s"]
    assert numbers["definitions"] == {"total": 2, "faulty": []}
    assert numbers["rates"]["step_s"] == 2
    assert len(numbers["rates"]["tasks_per_s"]) == 90


def test_the_plain_port_shows_no_more_than_counts_and_names(web: Site, tmp_path: Path) -> None:
    answers = {
        "workers": [worker("alpha", address="10.9.8.7:5001", words="red fox jumps")],
        "definitions": [definition("faulty", ["faulty.yaml:3:1: env: PASSWORD=secret is wrong"])],
    }
    with site(tmp_path, answers=answers) as it:
        seen = it.fetch("/").body.decode() + it.fetch("/stats.json").body.decode()
        assert "alpha" in seen
        assert "faulty: 1 problem" in seen
        for hidden in ("10.9.8.7", "red fox", "secret", "PASSWORD", "/somewhere", str(tmp_path)):
            assert hidden not in seen


@pytest.mark.parametrize("path", DATA_ROUTES)
def test_the_plain_port_has_no_data_routes(web: Site, path: str) -> None:
    answer = web.fetch(path)
    assert answer.status == 404
    assert answer.json()["error"] == "not_found"
    assert web.fetch(path, method="PUT", body=b"").status in (404, 405)


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    answers = {
        "jobs": [job(1, name='<script>alert(1)</script>" onload="x')],
        "workers": [worker("<img src=x>")],
        "definitions": [definition("<b>", ["p"])],
    }
    with site(tmp_path, answers=answers) as it:
        text = it.fetch("/").body.decode()
        assert "<script>alert" not in text
        assert "<img src=x>" not in text
        assert "<b>: 1" not in text
        assert '" onload="x' not in text
        assert "&lt;script&gt;alert(1)" in text


@pytest.mark.parametrize("path", ["/", "/stats.json", "/static/style.css", "/nothing", "/healthz"])
@pytest.mark.parametrize("data", [False, True])
def test_every_answer_is_protected(web: Site, path: str, data: bool) -> None:
    headers = web.fetch(path, data=data).headers
    assert headers["content-security-policy"].startswith("default-src 'self';")
    assert "unsafe" not in headers["content-security-policy"]
    assert PROTECTIONS.items() <= headers.items()
    assert not [name for name in headers if name.startswith("access-control")]
    assert "server" not in headers


def test_the_page_keeps_its_own_content_policy(web: Site) -> None:
    text = web.fetch("/").body.decode()
    assert "style=" not in text
    assert "onclick" not in text
    assert "://" not in text.replace("http://www.w3.org", ""), "no resource from elsewhere"


@pytest.mark.parametrize(
    ("host", "status_"),
    [
        ("localhost", 200), ("LOCALHOST:80", 200), ("127.0.0.1", 200), ("127.3.2.1:8421", 200), ("[::1]:8421", 200),
        ("localhost.", 200), ("evil.example", 421), ("evil.example:8421", 421), ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example", 421), ("10.0.0.1", 421), ("[::2]", 421), ("", 421), ("a b", 421), ("localhost:x", 421),
        ("user@localhost", 421),
    ],
)  # fmt: skip
@pytest.mark.parametrize("data", [False, True])
def test_only_our_own_names_are_answered(web: Site, host: str, status_: int, data: bool) -> None:
    answer = web.fetch("/stats.json", data=data, Host=host)
    assert answer.status == status_
    if status_ == 421:
        assert answer.json()["error"] == "bad_host"
        assert "web.hosts" in answer.json()["message"]


def test_a_request_has_one_host(web: Site) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", web.web_port, timeout=PATIENCE_S)
    connection.putrequest("GET", "/", skip_host=True)
    connection.endheaders()
    assert connection.getresponse().status == 400
    connection.close()
    connection.putrequest("GET", "/")
    connection.putheader("Host", "localhost")
    connection.endheaders()
    assert connection.getresponse().status == 400
    connection.close()


def test_a_configured_name_is_answered(tmp_path: Path) -> None:
    with site(tmp_path, "web: {port: 0, hosts: [farm.example]}\ndata: {port: 0}\n") as it:
        assert it.fetch("/stats.json", Host="Farm.Example:8421").status == 200
        assert it.fetch("/stats.json", data=True, Host="farm.example").status == 200
        assert it.fetch("/stats.json", Host="other.example").status == 421


def test_a_closed_page_is_closed_on_the_plain_port_only(tmp_path: Path) -> None:
    with site(tmp_path, "web: {port: 0, public: false}\ndata: {port: 0}\n") as it:
        for path in ("/", "/stats.json"):
            answer = it.fetch(path)
            assert answer.status == 403
            assert "web.public" in answer.json()["message"]
            assert it.fetch(path, data=True).status == 200
        assert it.fetch("/healthz").status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/../etc/passwd", "/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "//", "//stats.json", "/static//style.css",
        "/static/", "/static/app.py", "/%00", "/tasks", "/tasks/", "/api/v1", "/api/v2/jobs", "/api/v1/jobs/1/x", "/%C3%A9",
        "/;", "/static/style.css/x", "/stats.json/",
    ],
)  # fmt: skip
@pytest.mark.parametrize("data", [False, True])
def test_nothing_is_at_any_other_path(web: Site, path: str, data: bool) -> None:
    answer = web.fetch(path, data=data)
    assert answer.status == 404
    assert answer.json()["error"] == "not_found"


@pytest.mark.parametrize(
    "path",
    [
        "/tasks/1", "/tasks/1.", "/tasks/.1", "/tasks/0.1", "/tasks/01.1", "/tasks/1.01", "/tasks/1.-1", "/tasks/a.b",
        "/tasks/1.4294967296", "/tasks/2147483648.0", "/tasks/1.0.0", "/tasks/99999999999999999999999999.1",
        "/results/1", "/results/x.y", "/api/v1/jobs/0", "/api/v1/jobs/01", "/api/v1/jobs/-1", "/api/v1/jobs/x",
        "/api/v1/jobs/99999999999", "/api/v1/tasks/1", "/api/v1/tasks/1.x",
    ],
)  # fmt: skip
def test_an_id_is_parsed_strictly(web: Site, path: str) -> None:
    answer = web.fetch(path, data=True)
    assert answer.status == 400
    assert answer.json()["error"] == "bad_request"
    assert "for example 42" in answer.json()["message"]


@pytest.mark.parametrize("name", ["A" * 64, "a" * 63, "g" * 64, "a" * 65, "x"])
def test_a_blobs_name_is_parsed_strictly(web: Site, name: str) -> None:
    assert web.fetch(f"/blobs/{name}", data=True).json()["error"] == "not_found"


@pytest.mark.parametrize("method", ["POST", "DELETE", "PATCH", "OPTIONS", "PUT"])
@pytest.mark.parametrize("path", ["/", "/stats.json", "/api/v1/jobs", "/tasks/1.0", "/blobs/" + "a" * 64])
def test_what_can_only_be_read_cannot_be_written(web: Site, method: str, path: str) -> None:
    if (path.startswith("/blobs/") and method == "PUT") or (path == "/api/v1/jobs" and method == "POST"):
        return
    answer = web.fetch(path, data=True, method=method, body=b"x")
    assert answer.status == 405
    assert answer.json()["error"] == "bad_method"
    assert "GET" in answer.headers["allow"]


def test_the_api_gives_the_documents(web: Site) -> None:
    web.coordinator.answers[("job", 7, 0)] = [job(7, "done", Counts(done=3))]
    attempt = AttemptDocument("alpha", "2026-01-02T03:04:05.000Z", None, None, None, None, None, None, "")
    web.coordinator.answers[("task", 7, 2)] = [TaskDocument("7.2", "running", [attempt], 5, None, None)]
    got = {
        path: web.fetch(f"/api/v1/{path}", data=True)
        for path in ("status", "jobs", "jobs/7", "tasks/7.2", "workers", "definitions")
    }
    assert {answer.status for answer in got.values()} == {200}
    assert {answer.headers["cache-control"] for answer in got.values()} == {"no-store"}
    assert got["status"].json() == json.loads(json.dumps(_plain(status())))
    assert got["jobs"].json() == [_plain(job(1))]
    assert got["jobs/7"].json()["counts"]["done"] == 3
    assert got["tasks/7.2"].json() == {
        "task": "7.2", "state": "running", "data_bytes": 5, "result_bytes": None, "sha256": None,
        "attempts": [_plain(attempt)],
    }  # fmt: skip
    assert [each["worker"] for each in got["workers"].json()] == ["id-alpha", "id-beta"]
    assert [each["name"] for each in got["definitions"].json()] == ["render", "shell"]


def test_what_the_coordinator_refuses_has_its_code_and_status(web: Site) -> None:
    web.coordinator.answers[("job", 99, 0)] = Refused(0, "unknown_job", "there is no job 99")
    answer = web.fetch("/api/v1/jobs/99", data=True)
    assert (answer.status, answer.json()) == (404, {"error": "unknown_job", "message": "there is no job 99"})
    web.coordinator.answers[("task", 99, 0)] = Refused(0, "degraded", "the disk is full")
    assert web.fetch("/api/v1/tasks/99.0", data=True).status == 503


def test_an_answer_in_many_parts_is_one_list(tmp_path: Path) -> None:
    with site(tmp_path, answers={"jobs": [job(number) for number in range(1, 501)]}) as it:
        it.coordinator.answer_parts = 7
        time.sleep(0.3)  # what was answered in one part is kept no longer
        assert [each["job"] for each in it.fetch("/api/v1/jobs", data=True).json()] == list(range(1, 501))
        jobs = it.fetch("/stats.json").json()["jobs"]
        assert (jobs["total"], jobs["unended"], len(jobs["shown"])) == (500, 500, 25)
        assert jobs["shown"][0]["job"] == 500, "the newest first"
        assert "and 475 more: dctl job list" in it.fetch("/").body.decode()


def test_static_files_are_revalidated_by_their_digest(web: Site) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", web.web_port, timeout=PATIENCE_S)
    first = exchange(connection, "/static/page.js")
    assert first.status == 200
    assert first.headers["content-type"].startswith("text/javascript")
    again = exchange(connection, "/static/page.js", If_None_Match=first.headers["etag"])
    assert (again.status, again.body) == (304, b"")
    assert exchange(connection, "/favicon.ico").headers["content-type"] == "image/svg+xml"
    head = exchange(connection, "/static/page.js", "HEAD")
    assert head.headers["content-length"] == first.headers["content-length"]
    assert head.body == b""
    connection.close()


def _plain(document: object) -> object:
    return msgspec.to_builtins(document)
