"""Payloads above 64 KiB: uploaded and fetched by HTTP, with a data port that stumbles, comes late or never."""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from districomp import client_blobs
from districomp.client import Client
from districomp.client_items import Lines
from districomp.errors import UsageError
from districomp.model import Blob, File
from tests.integration.clientlab import DataPort, Lab, in_background, running


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with running(tmp_path / "control.sock") as server:
        yield server


@pytest.fixture
def client(lab: Lab) -> Iterator[Client]:
    with Client(lab.address) as connected:
        yield connected


@pytest.fixture
def data_port(lab: Lab) -> Iterator[DataPort]:
    port = DataPort()
    lab.data_url = port.url
    try:
        yield port
    finally:
        port.close()


LARGE = b"0123456789abcdef" * 10_000
DIGEST = hashlib.sha256(LARGE)


def test_large_items_are_uploaded_once(lab: Lab, client: Client, data_port: DataPort, tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(LARGE)
    blob = Blob(DIGEST.digest(), len(LARGE))
    client.submit("d", items=[LARGE, b"small", File("p", LARGE), path])
    assert lab.jobs[max(lab.jobs)].items == [blob, b"small", File("p", blob), blob]
    client.submit("d", files=[path])
    assert lab.jobs[max(lab.jobs)].items == [File(str(path), blob)]
    assert data_port.blobs == {DIGEST.hexdigest(): LARGE}
    assert sum(request.startswith("PUT") for request in data_port.requests) == 1


def test_a_long_line_is_uploaded(lab: Lab, client: Client, data_port: DataPort, tmp_path: Path) -> None:
    path = tmp_path / "lines"
    edge = b"e" * 65536
    path.write_bytes(b"a\n" + LARGE + b"\n\n" + edge + b"\n" + LARGE)
    client.submit("d", items=Lines(str(path)))
    blob = Blob(DIGEST.digest(), len(LARGE))
    assert lab.jobs[max(lab.jobs)].items == [b"a", blob, b"", edge, blob]


def test_large_results_are_fetched_and_checked(
    lab: Lab, client: Client, data_port: DataPort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_port.blobs["1.0"] = LARGE
    job = client.submit("d", data="a")
    lab.end(1, [0], [Blob(DIGEST.digest(), len(LARGE))])
    (result,) = job.results()
    assert result.read() == LARGE
    result.save(tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == LARGE
    assert not list(tmp_path.glob("*.part"))
    monkeypatch.setattr(client_blobs, "PATIENCE_S", 0.1)
    for wrong in (LARGE[:-1] + b"?", LARGE + b"?", LARGE[:-1]):
        data_port.blobs["1.0"] = wrong
        with pytest.raises(client_blobs.DataPortError):
            result.read()


@pytest.mark.parametrize("faults", [[0], [503, 500], [0, 503, 0]])
def test_a_data_port_that_stumbles(lab: Lab, client: Client, data_port: DataPort, faults: list[int]) -> None:
    data_port.faults = faults.copy()
    client.submit("d", data=io.BytesIO(LARGE).getvalue())
    assert data_port.blobs == {DIGEST.hexdigest(): LARGE}
    assert not data_port.faults


def test_a_data_port_that_refuses(lab: Lab, client: Client, data_port: DataPort) -> None:
    data_port.faults = [404, 413]
    with pytest.raises(client_blobs.DataPortError, match="413"):
        client.submit("d", data=LARGE)
    assert not lab.jobs


def test_a_file_that_shrinks_while_it_is_sent(lab: Lab, client: Client, data_port: DataPort, tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(LARGE)

    class Shrinking(io.BytesIO):
        """Hashed whole, then half gone."""

        def seek(self, offset: int, whence: int = 0, /) -> int:
            if self.tell() == len(LARGE):
                self.truncate(len(LARGE) // 2)
            return super().seek(offset, whence)

    with pytest.raises(UsageError, match="became shorter"):
        client.upload(Shrinking(LARGE))
    assert not data_port.blobs


def test_a_data_port_that_comes_late(lab: Lab, client: Client) -> None:
    waiting = in_background(lambda: client.submit("d", data=LARGE))
    lab.wait_for(lambda: len(lab.received) > 2)
    port = DataPort()
    lab.data_url = port.url
    waiting.join(20)
    port.close()
    assert len(lab.jobs) == 1


def test_no_data_port_at_all(lab: Lab, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_blobs, "PATIENCE_S", 0.1)
    with pytest.raises(client_blobs.DataPortError, match="dcoord-web"):
        client.submit("d", data=LARGE)
