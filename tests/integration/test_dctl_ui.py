"""`dctl ui`: who may use the pages' proxy, what passes through it, and with whose rights."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from districomp.client import Client
from tests.integration.client_cluster import Cluster, Elsewhere
from tests.integration.client_machines import as_admin, cluster, elsewhere, token
from tests.integration.clientlab import BOUND_S, DAEMONS, dctl

__all__ = ["as_admin", "cluster", "elsewhere"]


class Pages:
    """`dctl ui`, and a browser that keeps its cookie."""

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dctl", "ui", "--no-browser"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": str(DAEMONS)} | (environment or {}),
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().decode().strip()
        self.parts = urlsplit(self.url)
        self.origin = f"http://{self.parts.netloc}"
        self.cookie = ""

    def ask(
        self, method: str, path: str, body: bytes | None = None, host: str = "", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.parts.port, timeout=BOUND_S)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.cookie:
            sent.setdefault("Cookie", self.cookie)
        if host:
            sent["Host"] = host
        with contextlib.closing(connection):
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()

    def log_in(self) -> None:
        status, headers, body = self.ask("GET", f"/?{self.parts.query}")
        assert (status, b'url=/"' in body) == (200, True)
        self.cookie = headers["set-cookie"].partition(";")[0]
        assert headers["set-cookie"].endswith("; HttpOnly; SameSite=Strict; Path=/")

    def end(self) -> None:
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(BOUND_S) == 0
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def pages(cluster: Cluster) -> Iterator[Pages]:
    opened = Pages()
    yield opened
    opened.end()


def test_the_key_opens_the_pages_once(pages: Pages) -> None:
    assert pages.ask("GET", "/")[0] == 403
    assert pages.ask("GET", "/?key=" + "x" * 43)[0] == 403
    pages.log_in()
    status, headers, body = pages.ask("GET", "/")
    assert (status, b"trust-tests" in body) == (200, True)
    assert headers["content-security-policy"].startswith("default-src 'self'")
    assert json.loads(pages.ask("GET", "/api/v1/status")[2])["name"] == "trust-tests"
    assert pages.ask("HEAD", "/")[2] == b""
    # The key again: of no use to anybody else, and no harm in the same browser.
    assert pages.ask("GET", f"/?{pages.parts.query}")[0] == 200
    assert pages.ask("GET", f"/?{pages.parts.query}", Cookie="a=b")[0] == 403
    assert pages.ask("GET", "/", Cookie=pages.cookie[:-1] + "x")[0] == 403


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1", "127.0.0.1:1", "dcoord"])
def test_the_pages_have_no_other_name(pages: Pages, host: str) -> None:
    assert pages.ask("GET", f"/?{pages.parts.query}", host=host)[0] == 403
    pages.log_in()
    assert pages.ask("GET", "/", host=host)[0] == 403
    assert pages.ask("GET", "/", host=f"localhost:{pages.parts.port}")[0] == 200


JOB = b'{"definition": "copy", "data": "x"}'


def test_only_the_pages_themselves_write(cluster: Cluster, pages: Pages) -> None:
    pages.log_in()
    kind = {"Content_Type": "application/json"}
    for origin in ({}, {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1"}):
        assert pages.ask("POST", "/api/v1/jobs", JOB, **kind, **origin)[0] == 403
    with Client(cluster.socket) as client:
        assert not [job for job in client.jobs() if job.name == "by the page"]
        named = JOB.replace(b"}", b', "name": "by the page"}')
        assert pages.ask("POST", "/api/v1/jobs", named, Origin=pages.origin, **kind)[0] == 201
        assert [job.state for job in client.jobs() if job.name == "by the page"] == ["queued"]
    cluster.cancel_all()


def test_what_is_no_request_of_a_browser_gets_no_further(pages: Pages) -> None:
    pages.log_in()
    ours = b"This is no request of a browser.\n"
    for path, body in (("/", b"body"), ("http://evil.example/", None)):
        status, _headers, said = pages.ask("GET", path, body, host=pages.parts.netloc)
        assert (status, said) == (400, ours)
    assert pages.ask("POST", "/api/v1/jobs", iter([b"x"]), Origin=pages.origin)[0] == 411  # type: ignore[arg-type]
    assert pages.ask("GET", "/tasks/..%2f..%2fetc")[0] in (400, 404)


def test_who_still_sends_what_is_refused_can_read_why(pages: Pages) -> None:
    pages.log_in()
    head = f"POST / HTTP/1.1\r\nHost: {pages.parts.netloc}\r\nCookie: {pages.cookie}\r\nContent-Length: 3000000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", pages.parts.port or 0), BOUND_S) as browser:
        browser.sendall(head.encode())
        first = browser.recv(1)
        for _ in range(30):
            browser.sendall(bytes(100_000))
        browser.shutdown(socket.SHUT_WR)
        said = first + b"".join(iter(lambda: browser.recv(65536), b""))
    assert said.startswith(b"HTTP/1.1 403 ")
    assert said.endswith(b"A page of another site may not write here.\n")


def test_the_pages_have_the_rights_of_their_user(cluster: Cluster, elsewhere: Elsewhere) -> None:
    dctl("join", token("submit"), environment=elsewhere.environment)
    with Client(cluster.socket) as client:
        foreign = client.submit("copy", data="secret").number
    opened = Pages(elsewhere.environment)
    try:
        opened.log_in()
        assert json.loads(opened.ask("GET", "/api/v1/jobs")[2]) == []
        assert opened.ask("GET", f"/tasks/{foreign}.0")[0] in (403, 404)
    finally:
        opened.end()
        cluster.cancel_all()


def test_a_page_stays_open_over_a_restart_and_a_rotation(cluster: Cluster, pages: Pages) -> None:
    pages.log_in()
    assert pages.ask("GET", "/")[0] == 200
    dctl("ca", "rotate", "--overlap", "1h")
    cluster.wait_for(lambda: pages.ask("GET", "/")[0] == 200, "page after the rotation")
    cluster.kill_coordinator()
    cluster.start_coordinator()
    cluster.wait_for(lambda: pages.ask("GET", "/")[0] == 200, "page after the restart")


def test_the_pages_open_in_a_browser_without_the_key_in_an_argument(cluster: Cluster, tmp_path: Path) -> None:
    """A browser that keeps what it was given."""
    (tmp_path / "browser").write_text(
        f'#!/bin/sh\necho "$@" > {tmp_path}/given; cat "${{1#file://}}" > {tmp_path}/page\n'
    )
    (tmp_path / "browser").chmod(0o755)
    with subprocess.Popen(
        [sys.executable, "-m", "dctl", "ui"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(DAEMONS), "BROWSER": f"{tmp_path}/browser %s", "DISPLAY": ":none"},
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().decode().strip()
            cluster.wait_for(lambda: (tmp_path / "page").exists() and url in (tmp_path / "page").read_text(), "page")
            given = (tmp_path / "given").read_text().strip()
            assert "key" not in given
            process.send_signal(signal.SIGTERM)
            assert process.wait(BOUND_S) == 0
            assert not Path(given.removeprefix("file://")).exists()
        finally:
            process.kill()
