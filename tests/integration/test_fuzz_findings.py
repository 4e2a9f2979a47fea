"""What `make fuzz` has found, each as a test of its own."""

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from zeroconf.asyncio import AsyncZeroconf

from dcoord.authority import Authority
from districomp import discovery
from districomp.addresses import reached_url
from districomp.client import _document
from districomp.client_dataport import connection_to
from districomp.client_pool import DataPlace
from districomp.client_results import Ledger, stderr_of
from districomp.documents import JobDocument
from districomp.errors import ConfigError, RemoteProtocolError
from districomp.messages import PROTOCOL_VERSION, Assign, Define, JobSpec, Welcome
from districomp.outcome import Outcome
from districomp.taskdef import BundleFile, Definition, encode_definition
from dworker.cache import CacheError, read_manifest
from dworker.core import Settings, WorkerCore
from dworker.events import Connected, Received, Reset
from tests.integration.weblab import Site, site
from tests.patience import PATIENCE_S

NO_TEXT = b"\xa2\xff\xfe"
"""Text in MessagePack that is no UTF-8."""
NESTED = b"\x91" * 100_000


@pytest.mark.parametrize("body", [NO_TEXT, b"\x81\xa4name" + NO_TEXT, b"\x81\xa4more" + NESTED])
def test_a_document_that_is_none_is_the_coordinators_error(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="JobDocument"):
        _document(body, JobDocument)


@pytest.mark.parametrize("body", [b"\x94\x01\x01" + NO_TEXT + b"\x90", b"\x94\x01\x01" + NESTED])
def test_a_row_that_is_none_is_the_coordinators_error(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="row"):
        Ledger(1, 4).read(body)
    with pytest.raises(RemoteProtocolError, match="row"):
        stderr_of(body, 0)


def test_a_row_with_columns_of_other_lengths_is_the_coordinators_error() -> None:
    row = msgspec.msgpack.encode(Outcome(1, 1, "w", [0, 1], [2, 2], [1], ["exit"], stderr=[b"a"]))
    with pytest.raises(RemoteProtocolError, match="row"):
        stderr_of(row, 1)


def welcomed() -> WorkerCore:
    core = WorkerCore(Settings(slots=1, first_serial=1))
    core.handle_batch([Connected(Welcome(PROTOCOL_VERSION, "c", "lab", 1, 15.0, "", 1e9), 1.0)], 1.0)
    return core


def test_a_definition_that_is_none_fails_its_tasks_alone() -> None:
    core = welcomed()
    core.handle_batch([Received(Define("d", b"\x81\xa3env" + NESTED), 1.0)], 1.0)
    core.handle_batch([Received(JobSpec(1, "d", {}), 1.0), Received(Assign(1, 5, [0]), 1.0)], 1.0)
    core.check()


@pytest.mark.parametrize("lease", [2**63, 2**64 - 1, -1])
def test_a_lease_that_cannot_be_named_again_is_no_lease(lease: int) -> None:
    core = welcomed()
    body = encode_definition(Definition("d", "d", "", "command", argv=["true"]))
    core.handle_batch([Received(Define("d", body), 1.0), Received(JobSpec(1, "d", {}), 1.0)], 1.0)
    effects = core.handle_batch([Received(Assign(1, lease, [0, 1]), 1.0)], 1.0)
    assert [effect.code for effect in effects if isinstance(effect, Reset)] == ["protocol"]


@pytest.mark.parametrize("digest", ["g" * 64, "\u0663" * 64, "AB" * 32, "ab" * 31, "../" + "a" * 61])
def test_a_bundles_file_has_a_digest_of_hex_digits(digest: str) -> None:
    good = msgspec.msgpack.encode([BundleFile("a", 0o644, 1, "ab" * 32)])
    assert len(read_manifest(good)) == 1
    with pytest.raises(CacheError, match="digest"):
        read_manifest(msgspec.msgpack.encode([BundleFile("a", 0o644, 1, digest)]))


def test_a_manifest_without_a_bottom_is_none() -> None:
    with pytest.raises(CacheError, match="manifest"):
        read_manifest(b"\x91\x95\xa1a\x01\x01\xa1b" + NESTED)


@pytest.mark.parametrize("url", ["https://[", "https://[\ufffd]:1", "https://h:99999", "https://h:x", "https://a\0b:1"])
def test_a_data_port_that_is_nowhere_is_the_coordinators_error(url: str) -> None:
    for there in (url, reached_url(url, "127.0.0.1")):
        with pytest.raises(RemoteProtocolError, match="data port"):
            connection_to(DataPlace(there, "a" * 26, []), 1.0)


def test_an_authority_of_a_version_that_is_none_is_damaged(tmp_path: Path) -> None:
    Authority.open(tmp_path / "trust", "lab")
    (file,) = (tmp_path / "trust").glob("*.json")
    kept = json.loads(file.read_bytes())
    certificate = x509.load_der_x509_certificate(
        msgspec.convert(kept["authorities"][0]["certificate"], bytes, strict=False)
    )
    der = certificate.public_bytes(serialization.Encoding.DER)
    assert der.count(b"\xa0\x03\x02\x01\x02") == 1, "the version, 3, once"
    text = msgspec.json.encode(der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x22")).decode().strip('"')
    kept["authorities"][0]["certificate"] = text
    file.write_text(json.dumps(kept))
    with pytest.raises(ConfigError, match="damaged"):
        Authority.open(tmp_path / "trust", "lab")


@pytest.mark.parametrize("label", ["\x01", "x" * 64, "\ufffd" * 30, ""])
def test_a_name_that_no_service_can_have_is_nobody(label: str) -> None:
    """Looking for it was a task that failed with a traceback in the log, whenever anybody on the network liked."""
    told: list[object] = []

    async def look() -> None:
        async with AsyncZeroconf(interfaces=["127.0.0.1"]) as here:
            await here.zeroconf.async_wait_for_start()
            browser = discovery.Browser(["127.0.0.1"], told.append)
            await browser._resolve(here.zeroconf, f"{label}.{discovery.SERVICE_TYPE}")

    asyncio.run(look())
    assert told == []


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("web")) as it:
        yield it


def said(served: Site, data: bytes) -> bytes:
    """All that is answered, until the other side ends it."""
    with socket.create_connection(("127.0.0.1", served.web_port), timeout=PATIENCE_S) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: sock.recv(65536), b""))


GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize("requests", [1, 2, 5])
def test_who_says_no_more_after_several_requests_is_answered_and_gone(served: Site, requests: int) -> None:
    """The connection stayed for its idle time, 75 s, although nobody could ask anything any more."""
    answer = said(served, (GET + b"\r\n") * requests)
    assert answer.count(b"HTTP/1.1 200 OK") == requests


@pytest.mark.parametrize("header", [b"If-None-Match", b"Range", b"If-Range", b"Cookie"])
def test_a_header_that_is_no_text_is_not_there(served: Site, header: bytes) -> None:
    request = b"GET /static/page.js HTTP/1.1\r\nHost: localhost\r\n" + header + b': \xc4"\r\n\r\n'
    assert said(served, request).startswith(b"HTTP/1.1 200 OK")
