"""Who may what at dcoord-web's ports: every route by every kind of asker, grants, and one's own jobs."""

import base64
import contextlib
import re
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from bottle import Bottle

from dcoord.core import grants
from dcoord.core.grants import Grant
from dcoord.web.api_routes import ApiRoutes
from dcoord.web.pages import PageRoutes
from dcoord.web.payload_routes import PayloadRoutes
from dcoord.web.rights import ROUTES
from districomp.messages import Refused, Submit
from tests.integration.trustlab import (
    ANN,
    IDS,
    NO_PROOF,
    PROGRAM,
    ROLES,
    RULES,
    Lab,
    Rule,
    bearer,
    ended,
    said,
)
from tests.integration.weblab import (
    exchange,
    site,
    until,
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with site(tmp_path_factory.mktemp("trust"), secure=True) as it:
        yield Lab(it)


# ---- the table ----


def test_every_route_has_a_rule_here_and_a_row_there() -> None:
    assert [f"{route.method} {route.path}" for route in ROUTES] == IDS
    app = Bottle()
    none: Any = None
    for group in (PageRoutes(none, none), ApiRoutes(none, none), PayloadRoutes(none, none)):
        group.add_to(app)
    routed = {f"{route.method} {re.sub('<(.*?)>', '{?}', route.rule)}" for route in app.routes}
    assert routed == {re.sub(r"\{.*?\}", "{?}", route) for route in IDS if "/blobs/" not in route}


@pytest.mark.parametrize("rule", RULES, ids=IDS)
@pytest.mark.parametrize("shows", ["certificate", "session"])
def test_each_role_gets_what_the_table_says(lab: Lab, rule: Rule, shows: str) -> None:
    method = rule.route.partition(" ")[0]
    for role in ROLES:
        proof: Any = {"party": lab.parties[role]} if shows == "certificate" else lab.session(role)
        answer = lab.ask(rule.asks, method, **proof)
        if role in rule.may.split():
            assert answer.status == rule.status, (role, answer.status, answer.body[:300])
        else:
            assert answer.status == 403, (role, answer.status, answer.body[:300])
            assert method == "HEAD" or said(answer) == (403, "not_allowed")


@pytest.mark.parametrize("rule", RULES, ids=IDS)
def test_nobody_and_whoever_is_void_gets_nothing_anywhere(lab: Lab, rule: Rule) -> None:
    method = rule.route.partition(" ")[0]
    it = lab.site
    void = {
        "nobody": {},
        "a cookie": {"Cookie": f"session={it.grant('SESSION', '', 'admin')}"},
        "a password": {"Authorization": "Basic YWRtaW46YWRtaW4="},
        "no grant": bearer(""),
        "a grant by another name": {"Authorization": f"Drover {it.grant('SESSION', '', 'admin')}"},
        "expired": bearer(it.grant("SESSION", "", "admin", expires=time.time() - 1)),
        "another cluster's": bearer(grants.mint(b"k" * 32, Grant("SESSION", "", "", "admin", "", 0, time.time() + 60))),
        "for nothing here": bearer(it.grant("GET", "/tasks/9.9", "admin")),
        "no role": bearer(it.grant("SESSION", "", "guest")),
        "the web server's own role": bearer(it.grant("SESSION", "", "web")),
        "a submitter without a name": bearer(it.grant("SESSION", "", "submit")),
    }
    for name, headers in void.items():
        answer = lab.ask(rule.asks, method, **headers)
        assert answer.status in (401, 403), (name, answer.status, answer.body[:200])
        assert ("www-authenticate" in answer.headers) == (answer.status == 401), name
        assert answer.status == 401 or name in (
            "for nothing here",
            "no role",
            "the web server's own role",
            "a submitter without a name",
        )


@pytest.mark.parametrize("rule", RULES, ids=IDS)
def test_the_plain_port_has_only_what_anybody_may_read(
    lab: Lab, rule: Rule, tmp_path_factory: pytest.TempPathFactory
) -> None:
    method = rule.route.partition(" ")[0]
    path = rule.asks.replace("LARGE", lab.large.sha256.hex())
    for headers in NO_PROOF, lab.session("admin"):
        answer = lab.site.fetch(path, method=method, body=b"{}" if method in ("POST", "PUT") else None, **headers)
        if path in ("/", "/stats.json", "/healthz", "/static/page.js", "/favicon.ico"):
            assert answer.status == 200
        else:
            assert answer.status == 404
            assert method == "HEAD" or said(answer) == (404, "not_found")


def test_a_closed_page_leaves_only_healthz_on_the_plain_port_and_is_not_for_submitters(tmp_path: Path) -> None:
    with site(tmp_path, "web: {port: 0, public: false}\ndata: {port: 0}\n", secure=True) as it:
        for path in ("/", "/stats.json", "/static/page.js", "/favicon.ico"):
            assert said(it.fetch(path)) == (403, "closed")
        assert it.fetch("/healthz").status == 200
        for path in ("/", "/stats.json"):
            assert it.fetch(path, data=True, party=it.party("submit", "s")).status == 403
            assert it.fetch(path, data=True, party=it.party("read", "r")).status == 200


# ---- one's own jobs ----


@pytest.mark.parametrize("noun", ["tasks", "results"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_submitter_reads_its_own_payloads_alone(lab: Lab, noun: str, method: str) -> None:
    for proof in ({"party": lab.parties["submit"]}, lab.session("submit")):
        assert lab.ask(f"/{noun}/1.0", method, **proof).status == 200
        assert lab.ask(f"/{noun}/2.0", method, **proof).status == 403
        assert lab.ask(f"/{noun}/9.0", method, **proof).status == 404, "how many jobs there are is no secret"
    assert b"bob" not in lab.ask(f"/{noun}/2.0", party=lab.parties["submit"], Range="bytes=0-3").body
    assert lab.ask(f"/{noun}/2.0", party=lab.parties["read"]).status == 200


def test_the_coordinator_is_told_on_whose_behalf(lab: Lab) -> None:
    paths = {"jobs": "/api/v1/jobs", "job": "/api/v1/jobs/1", "tasks": "/api/v1/jobs/1/tasks", "task": "/api/v1/tasks/1.0",
             "explain": "/api/v1/tasks/1.0/explain"}  # fmt: skip
    for noun, path in paths.items():
        for role, user in (("submit", ANN), ("read", "")):
            lab.site.coordinator.asked.clear()
            asks = partial(lab.ask, path, party=lab.parties[role])
            until(lambda asks=asks: asks().status == 200 and lab.site.coordinator.asked, "asked anew")  # type: ignore[misc]
            assert {query.user for query in lab.site.coordinator.asked} == {user}, (noun, role)


def test_a_submission_belongs_to_who_asked(lab: Lab) -> None:
    for proof, user in (
        ({"party": lab.parties["submit"]}, ANN),
        ({"party": lab.parties["admin"]}, "ann/a-ann"),
        (bearer(lab.site.grant("SESSION", "", "admin", user="local")), "local"),
    ):
        assert lab.ask("/api/v1/jobs", "POST", **proof).status == 201
        submitted = lab.site.coordinator.submitted[-1]
        assert isinstance(submitted, Submit)
        assert submitted.user == user
    pretended = lab.ask("/api/v1/jobs", "POST", party=lab.parties["submit"], body=b'{"definition": "x", "user": "bob"}')
    assert said(pretended) == (400, "bad_request")


def test_what_the_coordinator_forbids_is_forbidden(lab: Lab) -> None:
    lab.site.coordinator.answers[("job", 2, 0)] = Refused(0, "not_allowed", "job 2 is not yours")
    assert said(lab.ask("/api/v1/jobs/2", party=lab.parties["submit"])) == (403, "not_allowed")


# ---- grants ----


def test_a_grant_is_for_its_object_and_verb_alone(lab: Lab) -> None:
    large = lab.name(lab.large)
    cases: list[tuple[str, str, str, str, int]] = [
        ("GET", "/tasks/1.0", "GET", "/tasks/1.0", 200), ("GET", "/tasks/1.0", "HEAD", "/tasks/1.0", 200),
        ("GET", "/tasks/1.0", "GET", "/tasks/1.1", 403), ("GET", "/tasks/1.0", "GET", "/results/1.0", 403),
        ("GET", "/tasks/1.0", "GET", "/api/v1/jobs", 403), ("GET", "/tasks/1.0", "GET", "/tasks/1.0/", 404),
        ("GET", "/results/2.0", "GET", "/results/2.0", 200), ("GET", large, "PUT", large, 403),
        ("PUT", large, "PUT", large, 200), ("PUT", large, "HEAD", large, 200), ("PUT", large, "GET", large, 403),
        ("PUT", large, "PUT", lab.name(lab.program), 403), ("PUT", "/api/v1/jobs", "POST", "/api/v1/jobs", 403),
        ("GET", "", "GET", "/", 403), ("SESSION", "/tasks/1.0", "GET", "/api/v1/workers", 403),
    ]  # fmt: skip
    for verb, granted, method, path, expected in cases:
        answer = lab.ask(path, method, **bearer(lab.site.grant(verb, granted, "worker", lease=5)))
        assert answer.status == expected, (verb, granted, method, path, answer.status)


def test_a_bundles_grant_is_for_its_manifest_and_files(lab: Lab) -> None:
    grant = bearer(lab.site.grant("GET", f"/bundles/{lab.bundle}"))
    for _ in range(2):
        assert lab.ask(f"/blobs/{lab.bundle}", **grant).status == 200
        assert lab.ask(lab.name(lab.program), **grant).body == PROGRAM
        assert lab.ask(lab.name(lab.program), "HEAD", **grant).status == 200
        assert lab.ask(lab.name(lab.large), **grant).status == 403
        assert lab.ask(lab.name(lab.program), "PUT", body=PROGRAM, **grant).status == 403
        assert lab.ask("/tasks/1.0", **grant).status == 403
    missing = bearer(lab.site.grant("GET", "/bundles/" + "a" * 64))
    assert said(lab.ask("/blobs/" + "a" * 64, **missing)) == (404, "blob_missing")
    assert lab.ask(lab.name(lab.program), **missing).status == 403
    no_manifest = bearer(lab.site.grant("GET", f"/bundles/{lab.large.sha256.hex()}"))
    assert lab.ask(lab.name(lab.program), **no_manifest).status == 403
    elsewhere = bearer(lab.site.grant("GET", "/bundles/../../trust"))
    assert lab.ask(lab.name(lab.program), **elsewhere).status == 403


def test_no_byte_of_a_grant_can_be_changed(lab: Lab) -> None:
    grant = lab.site.grant("GET", "/tasks/1.0")
    connection = lab.site.connect()
    with contextlib.closing(connection):
        assert exchange(connection, "/tasks/1.0", **bearer(grant)).status == 200
        for i in range(len(grant)):
            other = "A" if grant[i] != "A" else "B"
            answer = exchange(connection, "/tasks/1.0", **bearer(grant[:i] + other + grant[i + 1 :]))
            # The last character of base64 may carry bits that mean nothing.
            assert answer.status == 401 or i in (grant.index(".") - 1, len(grant) - 1), (i, answer.status)
        body, _, signature = grant.partition(".")
        mine = base64.urlsafe_b64encode(msgspec.msgpack.encode(Grant("SESSION", "", "", "admin", "", 0, 9e9))).decode()
        for forged in (
            f"{mine}.{signature}",
            f"{mine}.",
            mine,
            f".{signature}",
            f"{body}.{body}",
            "." * 500,
            "é.é",
            "a" * 5000,
        ):
            answer = exchange(connection, "/api/v1/jobs", **bearer(forged))
            assert (answer.status, "www-authenticate" in answer.headers) == (401, True), forged[:50]


def test_a_grant_ends(lab: Lab) -> None:
    grant = bearer(lab.site.grant("GET", "/tasks/1.0", expires=time.time() + 1.5))
    connection = lab.site.connect()
    with contextlib.closing(connection):
        assert exchange(connection, "/tasks/1.0", **grant).status == 200
        over = ended(connection, "/tasks/1.0", **grant)
        assert said(over) == (401, "not_authenticated")
        assert "expired" in over.json()["message"]


def test_a_bad_grant_is_not_made_up_for_by_a_certificate(lab: Lab) -> None:
    admin = lab.parties["admin"]
    assert lab.ask("/api/v1/jobs", party=admin, **bearer("x.y")).status == 401
    assert lab.ask("/api/v1/jobs", party=admin, **bearer(lab.site.grant("GET", "/tasks/1.0"))).status == 403
    connection = lab.site.connect(admin)
    with contextlib.closing(connection):
        connection.putrequest("GET", "/api/v1/jobs")
        for _ in range(2):
            connection.putheader("Authorization", lab.session("admin")["Authorization"])
        connection.endheaders()
        assert connection.getresponse().status == 400


def test_a_grant_is_not_for_another_certificate(lab: Lab) -> None:
    grant = bearer(lab.site.grant("GET", "/tasks/1.0", identity="w-ann"))
    assert lab.ask("/tasks/1.0", party=lab.parties["worker"], **grant).status == 200
    assert lab.ask("/tasks/1.0", **grant).status == 200, "a connection without a certificate will do"
    assert said(lab.ask("/tasks/1.0", party=lab.parties["submit"], **grant)) == (403, "not_allowed")
    local = bearer(lab.site.grant("GET", "/tasks/1.0", identity=""))
    assert lab.ask("/tasks/1.0", party=lab.parties["worker"], **local).status == 200
