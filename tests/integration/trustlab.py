"""For the tests of who may what at dcoord-web: a secure site with something of everything, and who asks it."""

import contextlib
import http.client
import ssl
from typing import Any, NamedTuple

import msgspec

from dcoord.authority import Authority
from dcoord.blobs import BlobStore
from districomp import keys, tls
from districomp.documents import (
    DefinitionShowDocument,
    ExplainDocument,
    TaskDocument,
)
from districomp.model import Blob
from districomp.taskdef import BundleFile, Definition
from tests.integration.weblab import (
    Answer,
    Party,
    SecureConnection,
    Site,
    exchange,
    job,
    job_records,
    until,
)
from tests.priority import timed

ANN = "ann/s-ann"
LARGE = b"large" * 50_000
PROGRAM = b"#!/bin/sh\necho of the bundle\n"
JSON = {"Content_Type": "application/json"}


class Rule(NamedTuple):
    """What is asked of a route, the roles that are let in, and the status that they get."""

    route: str
    asks: str
    may: str
    status: int = 200


RULES = [
    Rule("GET /healthz", "/healthz", "worker submit read admin"),
    Rule("GET /", "/", "submit read admin"),
    Rule("GET /stats.json", "/stats.json", "submit read admin"),
    Rule("GET /static/{name}", "/static/page.js", "submit read admin"),
    Rule("GET /favicon.ico", "/favicon.ico", "submit read admin"),
    Rule("GET /tasks/{task}", "/tasks/1.0", "submit read admin"),
    Rule("GET /results/{task}", "/results/1.0", "submit read admin"),
    Rule("GET /blobs/{sha256}", "/blobs/LARGE", "read admin"),
    Rule("HEAD /blobs/{sha256}", "/blobs/LARGE", "submit read admin"),
    Rule("PUT /blobs/{sha256}", "/blobs/LARGE", "submit admin"),
    Rule("GET /api/v1/status", "/api/v1/status", "worker submit read admin"),
    Rule("GET /api/v1/jobs", "/api/v1/jobs", "submit read admin"),
    Rule("POST /api/v1/jobs", "/api/v1/jobs", "submit admin", 201),
    Rule("GET /api/v1/jobs/{job}", "/api/v1/jobs/1", "submit read admin"),
    Rule("GET /api/v1/jobs/{job}/tasks", "/api/v1/jobs/1/tasks", "submit read admin"),
    Rule("GET /api/v1/tasks/{task}", "/api/v1/tasks/1.0", "submit read admin"),
    Rule("GET /api/v1/tasks/{task}/explain", "/api/v1/tasks/1.0/explain", "submit read admin"),
    Rule("GET /api/v1/workers", "/api/v1/workers", "read admin"),
    Rule("GET /api/v1/definitions", "/api/v1/definitions", "submit read admin"),
    Rule("GET /api/v1/definitions/{name}", "/api/v1/definitions/render", "submit read admin"),
    Rule("GET /api/v1/openapi.json", "/api/v1/openapi.json", "submit read admin"),
]
IDS = [rule.route for rule in RULES]
ROLES = ("worker", "submit", "read", "admin")
END_S = 6.0
"""What is over at once, or was given three seconds, is over by then, where nobody else uses the processors."""
NO_PROOF: dict[str, Any] = {}
TASK = TaskDocument("1.0", "done", [], 4, 6, None)


class Lab:
    """A secure site with something of everything, and the parties that ask it."""

    def __init__(self, it: Site) -> None:
        self.site = it
        assert it.authority is not None
        self.authority = it.authority
        store = BlobStore(it.blobs)
        self.large = store.put_bytes(LARGE)
        self.program = store.put_bytes(PROGRAM)
        manifest = [BundleFile("run.sh", 0o555, len(PROGRAM), self.program.sha256.hex())]
        self.bundle = store.put_bytes(msgspec.msgpack.encode(manifest)).sha256.hex()
        it.fill_journal(
            *job_records(1, [b"data", self.large, b"x"], [b"result", self.large], ANN),
            *job_records(2, [b"bob's data", b"y"], [b"bob's result"], "bob/s-bob"),
        )
        self.parties = {role: it.party(role, f"{role[0]}-ann", "ann") for role in ROLES}
        it.coordinator.accepts_as = 7
        it.coordinator.answers |= {
            "tasks": [TASK], "task": [TASK], "job": [job(1)],
            "explain": [ExplainDocument("1.0", "done", "next", "it is done")],
            "definition": [DefinitionShowDocument("render", "abc", "", Definition("render", "abc", "", "command", ["true"]), [])],
        }  # fmt: skip

    def name(self, blob: Blob) -> str:
        return f"/blobs/{blob.sha256.hex()}"

    def session(self, role: str) -> dict[str, Any]:
        return bearer(self.site.grant("SESSION", "", role, user=f"ann/{role[0]}-ann"))

    def ask(self, path: str, method: str = "GET", **options: Any) -> Answer:
        """One request to the data port; with what belongs to its method, unless it is said otherwise."""
        if method == "POST":
            options = {"body": b'{"definition": "render"}', **JSON, **options}
        if method == "PUT":
            options = {"body": LARGE, **options}
        return self.site.fetch(path.replace("LARGE", self.large.sha256.hex()), data=True, method=method, **options)


def bearer(grant: str) -> dict[str, Any]:
    return {"Authorization": f"Bearer {grant}"}


def ended(connection: http.client.HTTPConnection, path: str, **headers: str) -> Answer:
    """What a connection is answered once it is not let in any more."""
    answers: list[Answer] = []

    def is_over() -> bool:
        answers[:] = [exchange(connection, path, **headers)]
        return answers[0].status != 200

    with timed() as took:
        until(is_over, "the end of what was allowed")
    assert took.alone_s < END_S
    return answers[0]


def said(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.json()["error"]


def refused_handshake(it: Site, party: Party, name: str = "") -> bool:
    """Whether this party is not let in at all; TLS 1.3 tells a client so only when it reads."""
    assert it.authority is not None
    name = name or tls.server_name(it.authority.cluster)
    connection = SecureConnection(it.data_port, party.context(), name)
    with contextlib.closing(connection):
        try:
            exchange(connection, "/healthz")
        except (ssl.SSLError, ConnectionError, http.client.RemoteDisconnected):
            return True
    return False


def signed(authority: Authority, role: str, identity: str, trusts: list[bytes] | None = None) -> Party:
    key = keys.new_key()
    issued = authority.sign(key.csr, role, identity, "eve")
    return Party(trusts or authority.authorities, tls.to_pem([issued.certificate, *issued.chain]), key.key)
