"""Targets: what strangers on the network say before and beside the protocol, and what is fetched."""

import asyncio
import contextlib
import hashlib
import logging
import random
import struct
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any, Final, cast

import msgspec
from zeroconf import Error, ServiceInfo, Zeroconf
from zeroconf._cache import DNSCache
from zeroconf._protocol.incoming import DNSIncoming

from dcoord.authority import Authority
from dcoord.blobs import BlobStore
from dcoord.web.bundle_parts import BundleParts
from districomp import discovery, keys
from districomp.client_dataport import connection_to
from districomp.client_pool import DataPlace
from districomp.discovery import SERVICE_TYPE
from districomp.enrolment import assemble, enrol
from districomp.errors import DistricompError, TrustError
from districomp.messages import PROTOCOL_VERSION, Authorities, Enrolled, Goodbye, HelloGuest, Message, Pending, Refused
from districomp.taskdef import BundleFile
from districomp.wire import encode
from dworker.cache import CacheError, read_manifest
from tests.fuzz.target import Run, Target, always, edited, framed, packed

# ---- bundles ----


@contextlib.contextmanager
def manifest() -> Iterator[Run]:
    """A bundle's manifest: in the worker nothing of it leads out of the bundle's folder; in dcoord-web it is one or none."""
    with _folder() as path, ThreadPoolExecutor(1) as threads:
        store = BlobStore(path)
        parts = BundleParts(store, threads)

        def run(data: bytes) -> None:
            with contextlib.suppress(CacheError):
                for file in read_manifest(data):
                    inside = (path / "bundle" / file.path).resolve()
                    assert inside.is_relative_to(path / "bundle") and inside != path / "bundle"
                    assert ".." not in PurePosixPath(file.path).parts
                    assert file.size >= 0 and len(bytes.fromhex(file.sha256)) == 32
            digest = hashlib.sha256(data).hexdigest()
            store.put_bytes(data)
            parts._read(digest)
            store.path(digest).unlink()

        yield run


def _manifest_seeds() -> list[bytes]:
    files = [BundleFile("run.sh", 0o755, 3, "ab" * 32), BundleFile("lib/a.py", 0o644, 2**40, "cd" * 32)]
    return [msgspec.msgpack.encode(each) for each in (files, [], [BundleFile("../a", 0, 1, "ab" * 32)])]


# ---- mDNS ----


def advertisement(data: bytes) -> None:
    """One packet of multicast DNS, as far as our own words about it; what zeroconf itself refuses is refused."""
    try:
        packet = DNSIncoming(data)
        records = packet.answers()
    except Exception:  # noqa: BLE001 - zeroconf catches all that its parser raises, at the socket
        return
    cache = DNSCache()
    cache.async_add_records(records)
    zeroconf = cast(Zeroconf, SimpleNamespace(cache=cache))
    found = []
    for name in {record.name for record in records if record.name.endswith(SERVICE_TYPE)} | {INSTANCE}:
        try:
            info = ServiceInfo(SERVICE_TYPE, name)
        except Error:  # as Browser takes it
            continue
        info.load_from_cache(zeroconf, 0.0)
        one = discovery._read(info)
        if one is not None:
            found.append(one)
    for each in discovery._by_cluster(found):
        for text in (each.cluster, each.name, each.version):
            assert text == "" or (text.isprintable() and len(text) <= discovery.TEXT_CHARS_MAX)
        assert all(0 < port < 65536 for _, port in each.addresses)
        assert len(each.addresses) <= 4 * discovery.ADDRESSES_MAX


INSTANCE: Final = f"room-12-aabbccdd.{SERVICE_TYPE}"


def _packet(texts: list[bytes], port: int = 8420, addresses: tuple[bytes, ...] = (b"\x7f\0\0\1",)) -> bytes:
    """An answer as a coordinator sends it: PTR, SRV, TXT, and A or AAAA."""

    def name(text: str) -> bytes:
        return b"".join(bytes((len(part),)) + part.encode() for part in text.rstrip(".").split(".")) + b"\0"

    def record(owner: str, kind: int, body: bytes) -> bytes:
        return name(owner) + struct.pack(">HHIH", kind, 1, 120, len(body)) + body

    host = "room-12-aabbccdd.local."
    parts = [
        record(SERVICE_TYPE, 12, name(INSTANCE)),
        record(INSTANCE, 33, struct.pack(">HHH", 0, 0, port) + name(host)),
        record(INSTANCE, 16, b"".join(bytes((len(text),)) + text for text in texts)),
        *(record(host, 1 if len(address) == 4 else 28, address) for address in addresses),
    ]
    return struct.pack(">HHHHHH", 0, 0x8400, 0, len(parts), 0, 0) + b"".join(parts)


def _advertisement_seeds() -> list[bytes]:
    good = [b"id=" + b"a" * 26, b"name=room-12", b"v=0.1.0"]
    return [
        _packet(good),
        _packet(good, addresses=(b"\xfe\x80" + b"\0" * 13 + b"\1", b"\0" * 15 + b"\1", b"\x0a\0\0\1")),
        _packet([b"id=\xff\xfe", b"name=\x1b[2J", b"v"]),
        _packet([b"ID=x", b"id", b"=", b""], port=0),
        _packet([b"id=" + b"x" * 250, *good]),
    ]


# ---- enrolment ----


@contextlib.contextmanager
def enrolment() -> Iterator[Run]:
    """What a guest gets as answers at the control socket: an identity, or an error of ours."""
    quiet = logging.getLogger("districomp.stream")
    before, quiet.disabled = quiet.disabled, True
    loop = asyncio.new_event_loop()
    with _folder() as path:
        try:
            socket = path / "s"
            said: list[bytes] = [b""]

            async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                with contextlib.suppress(OSError):
                    await reader.readexactly(4)
                    writer.write(said[0])
                    writer.close()
                    await writer.wait_closed()

            server = loop.run_until_complete(asyncio.start_unix_server(answer, str(socket)))

            async def ask() -> None:
                with contextlib.suppress(DistricompError):
                    await enrol(socket, role="worker", worker="w1", name="pc")

            def run(data: bytes) -> None:
                said[0] = data
                loop.run_until_complete(ask())

            yield run
            server.close()
            loop.run_until_complete(server.wait_closed())
        finally:
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()
            quiet.disabled = before


def enrolled(data: bytes) -> None:
    """The certificate that somebody answers with: it fits our key, or is refused."""
    try:
        message = msgspec.msgpack.decode(data, type=Enrolled)
    except (ValueError, RecursionError):
        return
    with contextlib.suppress(TrustError):
        assemble(message, KEY, role="worker", name="lab", source="token")


KEY: Final = keys.new_key()


def _enrolled() -> Enrolled:
    with _folder() as path:
        authority = Authority.open(path / "trust", "lab")
        issued = authority.sign(KEY.csr, "worker", "w1", "pc")
        return Enrolled(1, "worker", "w1", issued.certificate, issued.chain, authority.authorities, issued.renew_s)


def _enrolment_seeds() -> list[bytes]:
    good = _enrolled()
    hello = Authorities("a" * 26, "lab", good.authorities)
    answers: list[list[Message]] = [
        [hello, good], [hello, Pending(1, b"n" * 16), good], [hello, Refused(1, "bad_token", "it is used up")],
        [Goodbye("protocol", "no")], [HelloGuest(PROTOCOL_VERSION, "x")], [hello], [],
    ]  # fmt: skip
    return [b"".join(map(encode, each)) for each in answers]


# ---- where the data port is ----


def data_port(data: bytes) -> None:
    """The URL of the data port as a coordinator names it, its authorities, and what is asked of it."""
    try:
        url, cluster, authorities = msgspec.msgpack.decode(data, type=tuple[str, str, list[bytes]])
    except (ValueError, RecursionError):
        return
    with contextlib.suppress(DistricompError):
        connection_to(DataPlace(url, cluster, authorities), 1.0).close()


def _data_port_seeds() -> list[bytes]:
    good = _enrolled().authorities
    urls = ("https://127.0.0.1:8422", "https://[::1]:8422", "http://h:1", "https://[", "https://h:99999", "")
    return [msgspec.msgpack.encode((url, "a" * 26, there)) for url in urls for there in (good, [])]


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="dc-fuzz-", dir=shm if shm.is_dir() else None) as folder:
        yield Path(folder)


def _frames_or_bytes(data: bytes, rng: random.Random) -> bytes:
    return framed(data, rng) if rng.random() < 0.8 else edited(data, rng)


TARGETS: Final[dict[str, Any]] = {
    "manifest": Target(manifest, _manifest_seeds, mutate=packed),
    "advertisement": Target(
        always(advertisement), _advertisement_seeds, ("id=", "name=", "v=", "\xc0\x0c", "local"), bytes_max=1500
    ),
    "enrolment": Target(enrolment, _enrolment_seeds, mutate=_frames_or_bytes, bytes_max=8192),
    "enrolled": Target(always(enrolled), lambda: [msgspec.msgpack.encode(_enrolled())], mutate=packed),
    "data-port": Target(always(data_port), _data_port_seeds, mutate=packed),
}
