"""What other sites' pages, wandering paths and curious eyes get of dcoord-web: nothing."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dcoord.blobs import BlobStore
from districomp import tls
from districomp.documents import (
    AttemptDocument,
    DefinitionShowDocument,
    ExplainDocument,
    TaskDocument,
)
from districomp.taskdef import Definition
from tests.integration.trustlab import NO_PROOF, RULES, Lab, bearer, said
from tests.integration.weblab import (
    definition,
    exchange,
    job,
    job_records,
    site,
    status,
    worker,
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with site(tmp_path_factory.mktemp("trust"), secure=True) as it:
        yield Lab(it)


# ---- other sites' pages ----


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:443", "127.0.0.1.evil.example", "dcoord.evil.districomp.internal"]
)
def test_a_name_that_was_bound_anew_reaches_nothing(lab: Lab, host: str) -> None:
    for path in ("/", "/stats.json", "/healthz", "/api/v1/jobs", "/tasks/1.0", "/nothing"):
        for proof in ({}, {"party": lab.parties["admin"]}, lab.session("admin")):
            assert said(lab.ask(path, Host=host, **proof)) == (421, "bad_host")
        assert lab.site.fetch(path, Host=host).status == 421
    assert lab.ask("/healthz", party=lab.parties["admin"], Host=tls.server_name(lab.authority.cluster)).status == 200


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "http://127.0.0.1:1", "https://127.0.0.1.evil.example", "http://OWN", "file://", ""],
)  # fmt: skip
@pytest.mark.parametrize("shows", ["certificate", "session"])
def test_another_sites_page_writes_nothing(lab: Lab, origin: str, shows: str) -> None:
    """A browser shows a certificate to whoever asks this port through it: only the origin tells whose page that is."""
    proof: Any = {"party": lab.parties["admin"]} if shows == "certificate" else lab.session("admin")
    origin = origin.replace("OWN", f"127.0.0.1:{lab.site.data_port}")
    before = len(lab.site.coordinator.submitted)
    assert said(lab.ask("/api/v1/jobs", "POST", Origin=origin, **proof)) == (403, "bad_origin")
    assert said(lab.ask("/blobs/LARGE", "PUT", Origin=origin, **proof)) == (403, "bad_origin")
    assert len(lab.site.coordinator.submitted) == before
    own = f"https://127.0.0.1:{lab.site.data_port}"
    assert lab.ask("/api/v1/jobs", "POST", Origin=own, **proof).status == 201


def test_a_form_or_a_preflight_gets_nowhere(lab: Lab) -> None:
    admin = lab.parties["admin"]
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        assert lab.ask("/api/v1/jobs", "POST", party=admin, Content_Type=kind).status == 415
    for rule in RULES:
        answer = lab.ask(rule.asks, "OPTIONS", party=admin, Origin="https://evil.example",
                         Access_Control_Request_Method="POST")  # fmt: skip
        assert answer.status in (403, 405)
        answer = lab.ask(rule.asks, rule.route.partition(" ")[0], party=admin)
        assert not [name for name in answer.headers if name.startswith(("access-control", "set-cookie"))]
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize(
    "part", ["..", ".", "%2e%2e", "..%2f..%2fetc%2fpasswd", "a%00b", "a\\..", "a;b", "+", "%", "~root"]
)
def test_no_parameter_leads_elsewhere(lab: Lab, part: str) -> None:
    connection = lab.site.connect(lab.parties["admin"])
    with contextlib.closing(connection):
        for rule in RULES:
            if "{" in rule.route:
                method, _, route = rule.route.partition(" ")
                path = re.sub(r"\{.*?\}", lambda _: part, route)
                answer = exchange(connection, path, method, b"" if method == "PUT" else None)
                assert answer.status == 404, (path, answer.status)
                assert method == "HEAD" or said(answer) == (404, "not_found")


# ---- secrets ----

SECRET = "s3cr3t-of-nobody"


def planted(text: str = SECRET) -> dict[str, Any]:
    """Documents that have a secret wherever the plain port must not look."""
    attempt = AttemptDocument("alpha", None, None, "exit", 1, None, None, None, text)
    faulty = definition("render", [f"render.yaml:3:1: env: TOKEN={text}"])
    return {
        "status": [status()],
        "jobs": [job(1)],
        "workers": [
            worker("alpha", address=f"{text}:1", words=text, arch=text),
            worker(text, "pending", 0, words=text, address=text),
        ],
        "definitions": [msgspec.structs.replace(faulty, description=text, origin=text, version=text)],
        "task": [TaskDocument("1.0", "failed", [attempt], 4, None, text)],
        "tasks": [TaskDocument("1.0", "failed", [attempt], 4, None, text)],
        "explain": [ExplainDocument("1.0", "queued", "next", text)],
        "definition": [
            DefinitionShowDocument(
                "render", text, text, Definition("render", text, text, "command", [text], env={"TOKEN": text}), [text]
            )
        ],
        "job": [msgspec.structs.replace(job(1), definition="render")],
    }


def test_the_plain_port_says_nothing_of_what_is_secret(tmp_path: Path) -> None:
    with site(tmp_path, secure=True, answers=planted()) as it:
        data = SECRET.encode()
        blob = BlobStore(it.blobs).put_bytes(data * 10_000)
        it.fill_journal(*job_records(1, [data, blob, b"x"], [data, blob], SECRET))
        token = bearer(it.grant("SESSION", "", "admin", user=SECRET))
        assert SECRET.encode() in it.fetch("/tasks/1.0", data=True, **token).body, "it is there to be found"
        assert SECRET in it.fetch("/api/v1/workers", data=True, **token).body.decode()
        paths = [rule.asks.replace("LARGE", blob.sha256.hex()) for rule in RULES]
        paths += ["/static/style.css", "/static/icon.svg", "/nothing", "/tasks/1.1", "/.."]
        for path in paths:
            for method in ("GET", "HEAD", "POST", "PUT", "OPTIONS"):
                for headers in NO_PROOF, token, {"Range": "bytes=0-9"}:
                    body = b"{}" if method in ("POST", "PUT") else None
                    answer = it.fetch(path, method=method, body=body, **headers)
                    seen = repr(answer.headers).encode() + answer.body
                    assert SECRET.encode() not in seen, (method, path)
                    assert token["Authorization"][7:].encode() not in seen
        page = it.fetch("/").body.decode()
        assert "1 waits to be let in" in page
        assert "TLS and certificates" in page
        assert "Insecure" not in page
        assert it.fetch("/stats.json").json()["workers"]["pending"] == 1
        assert it.fetch("/stats.json").json()["workers"]["total"] == 1
        log = it.log.read_text()
        assert SECRET not in log
        assert token["Authorization"][7:] not in log
