"""Task data, results and blobs over HTTP, from a real journal and a real blob store, without any coordinator."""

import contextlib
import hashlib
import http.client
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dcoord.blobs import BlobStore
from districomp.model import File
from tests.integration.weblab import Site, exchange, job_records, numbered_job_records, site, until
from tests.patience import PATIENCE_S

LARGE = os.urandom(3_000_000)
SMALL = b"0123456789"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("payloads")
    with site(root, coordinator=False) as it:
        blob = BlobStore(it.blobs).put_bytes(LARGE)
        files = [File("a/b.txt", b"content"), File("c", blob)]
        it.fill_journal(
            *job_records(1, [SMALL, blob, b"", b"failed", b"queued"], [b"result 0", blob, None]),
            *job_records(2, [*files, b"x"], []),
            *numbered_job_records(3, 10, -3, 4),
        )
        yield it


@pytest.fixture
def connection(web: Site) -> Iterator[http.client.HTTPConnection]:
    it = http.client.HTTPConnection("127.0.0.1", web.data_port, timeout=PATIENCE_S)
    yield it
    it.close()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tasks/1.0", SMALL), ("/tasks/1.1", LARGE), ("/tasks/1.2", b""), ("/tasks/2.0", b"content"), ("/tasks/2.1", LARGE),
        ("/tasks/3.0", b"10"), ("/tasks/3.3", b"1"),
        ("/results/1.0", b"result 0"), ("/results/1.1", LARGE), ("/results/1.2", b""),
    ],
)  # fmt: skip
def test_a_payload_comes_whole_with_its_digest(connection: http.client.HTTPConnection, path: str, body: bytes) -> None:
    answer = exchange(connection, path)
    assert answer.status == 200
    assert answer.body == body
    assert answer.headers["etag"] == f'"{sha256(body)}"'
    assert answer.headers["content-length"] == str(len(body))
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == "attachment"
    assert "connection" not in answer.headers
    head = exchange(connection, path, "HEAD")
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(len(body)))
    again = exchange(connection, path, If_None_Match=f'W/"other", "{sha256(body)}"')
    assert (again.status, again.body) == (304, b"")


@pytest.mark.parametrize(
    ("range_", "first", "end"),
    [
        ("bytes=0-0", 0, 1), ("bytes=2-5", 2, 6), ("bytes=2-", 2, None), ("bytes=-4", -4, None), ("bytes=0-999999999", 0, None),
        ("bytes=-999999999", 0, None), ("bytes=1048570-1048590", 1048570, 1048591),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/tasks/1.1", "/results/1.1", "blob"])
def test_a_range_is_that_part(
    connection: http.client.HTTPConnection, path: str, range_: str, first: int, end: int | None
) -> None:
    path = f"/blobs/{sha256(LARGE)}" if path == "blob" else path
    part = LARGE[first:end]
    answer = exchange(connection, path, Range=range_)
    assert answer.status == 206
    assert answer.body == part
    start = first % len(LARGE)
    assert answer.headers["content-range"] == f"bytes {start}-{start + len(part) - 1}/{len(LARGE)}"
    assert exchange(connection, path, Range=range_, If_Range=f'"{sha256(LARGE)}"').status == 206
    assert exchange(connection, path, Range=range_, If_Range='"another"').body == LARGE


@pytest.mark.parametrize("range_", ["bytes=5-2", "bytes=-", "bytes=a-b", "lines=1-2", "bytes=0-1,3-4", "bytes 0-1"])
def test_a_range_that_is_not_understood_is_the_whole(connection: http.client.HTTPConnection, range_: str) -> None:
    answer = exchange(connection, "/tasks/1.0", Range=range_)
    assert (answer.status, answer.body) == (200, SMALL)


@pytest.mark.parametrize(
    ("path", "range_"), [("/tasks/1.0", "bytes=10-"), ("/tasks/1.2", "bytes=0-0"), ("/tasks/1.0", "bytes=-0")]
)
def test_a_range_outside_is_refused_with_the_size(
    connection: http.client.HTTPConnection, path: str, range_: str
) -> None:
    answer = exchange(connection, path, Range=range_)
    assert answer.status == 416
    assert answer.headers["content-range"] in ("bytes */10", "bytes */0")


def test_what_is_not_there_says_so(web: Site) -> None:
    for path, status, code in [
        ("/tasks/1.5", 404, "unknown_task"),
        ("/tasks/9.0", 404, "unknown_task"),
        ("/results/9.0", 404, "unknown_task"),
        ("/results/1.3", 404, "no_result"),
        ("/results/1.4", 404, "no_result"),
        ("/blobs/" + sha256(b"nowhere"), 404, "blob_missing"),
    ]:
        answer = web.fetch(path, data=True)
        assert (answer.status, answer.json()["error"]) == (status, code), path
        assert answer.json()["message"]
    assert "failed" in web.fetch("/results/1.3", data=True).json()["message"]


def test_a_blob_is_put_once_and_read_back(web: Site, connection: http.client.HTTPConnection) -> None:
    data = os.urandom(2_500_000)
    path = f"/blobs/{sha256(data)}"
    assert exchange(connection, path, "HEAD").status == 404
    first = exchange(connection, path, "PUT", data)
    assert (first.status, first.body) == (201, b"")
    assert first.headers["etag"] == f'"{sha256(data)}"'
    assert exchange(connection, path, "PUT", data).status == 200
    assert exchange(connection, path).body == data
    head = exchange(connection, path, "HEAD")
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(len(data)))
    assert "immutable" in head.headers["cache-control"]
    assert BlobStore(web.blobs).read_bytes(sha256(data)) == data


def test_a_blob_may_come_in_chunks_and_be_empty(connection: http.client.HTTPConnection) -> None:
    pieces = [b"a" * 100_000, b"b" * 3, b"c" * 70_000]
    data = b"".join(pieces)
    assert exchange(connection, f"/blobs/{sha256(data)}", "PUT", iter(pieces)).status == 201
    assert exchange(connection, f"/blobs/{sha256(data)}").body == data
    assert exchange(connection, f"/blobs/{sha256(b'')}", "PUT", b"").status == 201
    assert exchange(connection, f"/blobs/{sha256(b'')}").body == b""


def test_other_bytes_than_the_name_says_are_refused(web: Site, connection: http.client.HTTPConnection) -> None:
    name = sha256(b"what was meant")
    answer = exchange(connection, f"/blobs/{name}", "PUT", b"what came")
    assert answer.status == 422
    assert answer.json()["error"] == "digest_mismatch"
    assert sha256(b"what came") in answer.json()["message"]
    assert exchange(connection, f"/blobs/{name}", "HEAD").status == 404
    assert list((web.blobs / "tmp").iterdir()) == []


@pytest.mark.parametrize("header", ["Content-Range", "Content-Encoding"])
def test_a_partial_or_encoded_upload_is_refused(web: Site, header: str) -> None:
    with contextlib.closing(web.connect()) as connection:
        answer = exchange(connection, f"/blobs/{sha256(b'x')}", "PUT", b"x", **{header: "bytes 0-0/2"})
    assert answer.status == 400
    assert header in answer.json()["message"]


def test_an_upload_that_breaks_off_leaves_nothing(web: Site) -> None:
    data = os.urandom(4_000_000)
    with socket.create_connection(("127.0.0.1", web.data_port), timeout=PATIENCE_S) as peer:
        peer.sendall(
            f"PUT /blobs/{sha256(data)} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        )
        peer.sendall(data[:3_000_000])
        until(lambda: list((web.blobs / "tmp").iterdir()), "the upload is being written")
    until(lambda: not list((web.blobs / "tmp").iterdir()), "what was written is gone")
    assert web.fetch(f"/blobs/{sha256(data)}", data=True, method="HEAD").status == 404


def test_an_upload_is_written_as_it_comes_and_not_spooled(web: Site) -> None:
    size = 64 << 20
    with socket.create_connection(("127.0.0.1", web.data_port), timeout=PATIENCE_S) as peer:
        peer.sendall(f"PUT /blobs/{'0' * 64} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n".encode())
        for _ in range(40):
            peer.sendall(bytes(1 << 20))
        temporary = until(lambda: list((web.blobs / "tmp").iterdir()), "the upload is being written")[0]
        until(lambda: temporary.stat().st_size > 30 << 20, "most of what was sent is in the file")
        assert web.process is not None
        resident = Path(f"/proc/{web.process.pid}/statm").read_text().split()[1]
        assert int(resident) * os.sysconf("SC_PAGE_SIZE") < 100 << 20


def test_the_same_blob_from_many_at_once_is_one_file(web: Site) -> None:
    data = os.urandom(1_000_000)
    statuses: list[int] = []

    def put() -> None:
        statuses.append(web.fetch(f"/blobs/{sha256(data)}", data=True, method="PUT", body=data).status)

    threads = [threading.Thread(target=put) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert len(statuses) == 6
    assert set(statuses) <= {200, 201}
    assert web.fetch(f"/blobs/{sha256(data)}", data=True).body == data
    assert list((web.blobs / "tmp").iterdir()) == []


def test_a_damaged_blob_is_not_served_as_a_result(tmp_path: Path) -> None:
    with site(tmp_path, coordinator=False) as it:
        store = BlobStore(it.blobs)
        blob = store.put_bytes(LARGE)
        it.fill_journal(*job_records(1, [b"x", b"y"], [blob]))
        os.truncate(store.path(blob.sha256.hex()), 1000)
        assert it.fetch("/results/1.0", data=True).json()["error"] == "blob_missing"


def test_a_slow_reader_gets_everything_while_others_are_served(web: Site) -> None:
    with socket.create_connection(("127.0.0.1", web.data_port), timeout=PATIENCE_S) as slow:
        slow.sendall(b"GET /tasks/1.1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        got = bytearray()
        while len(got) < 200_000:
            got += slow.recv(4096)
            assert web.fetch("/tasks/1.0", data=True).body == SMALL if len(got) % 40 == 0 else True
        time.sleep(0.1)
        while piece := slow.recv(1 << 20):
            got += piece
    assert bytes(got.partition(b"\r\n\r\n")[2]) == LARGE
