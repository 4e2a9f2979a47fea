"""Peers of a real cluster that are written by hand: guests, workers and clients with any certificate, and who only claims to be a coordinator.

They speak the protocol over real TLS and keep to no rule of it that a test wants broken.
"""

import contextlib
import itertools
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self, TypeVar

import msgspec

from demo.cluster import Cluster, Process, script, wait_until
from districomp import enrolment, keys, tls, wire
from districomp.client import Client
from districomp.identity import Identity
from districomp.messages import (
    PROTOCOL_VERSION,
    AnyMessage,
    Assign,
    Authorities,
    Define,
    Enrol,
    Enrolled,
    Goodbye,
    HelloClient,
    HelloGuest,
    HelloWorker,
    Inventory,
    JobSpec,
    Machine,
    Message,
    Pending,
    Welcome,
)
from districomp.taskdef import Definition, encode_definition
from districomp.tokens import cluster_id, parse_token
from tests.integration.daemonlab import Peer
from tests.integration.weblab import SecureConnection

M = TypeVar("M")
Where = tuple[str, int]

LIMIT_S = 30.0
FAR_WORKER_YAML = """\
name: {name}
slots: {slots}
discovery: {{interfaces: [lo]}}
{settings}"""


class Site(Cluster):
    """A cluster, and machines that share nothing with the coordinator's but the network."""

    def __init__(
        self, folder: Path, *, advertise: bool = False, lease: str = "2s", name: str = "", yaml: str = ""
    ) -> None:
        super().__init__(folder, name=name, lease=lease, yaml=f"advertise: {str(advertise).lower()}\n{yaml}")
        self._client: Client | None = None

    # ---- where and who it is ----

    @property
    def control(self) -> Where:
        host, port = self.endpoint()["control"]
        return host, port

    @property
    def data(self) -> Where:
        host, port = self.endpoint()["data"].removeprefix("https://").rsplit(":", 1)
        return host, int(port)

    @property
    def id(self) -> str:
        return str(self.endpoint()["cluster"])

    @property
    def state(self) -> Path:
        return Path(self.environment["DISTRICOMP_STATE_DIR"])

    @property
    def log(self) -> str:
        assert self.coordinator is not None
        return self.coordinator.log_text()

    def kill_coordinator(self) -> None:
        assert self.coordinator is not None
        self.coordinator.kill()

    # ---- as its administrator ----

    @property
    def socket(self) -> Path:
        return self.runtime / "control.sock"

    def client(self) -> Client:
        return Client(str(self.socket))

    def token(self, role: str, uses: int | None = None, expires_s: float = 3600.0) -> str:
        with self.client() as client:
            token = client.admin.create_token(role, expires_s, uses).token
        assert isinstance(token, str)
        return token

    def submit(self, argv: list[str], count: int = 1) -> int:
        with self.client() as client:
            return client.submit("shell", params={"argv": argv}, range=range(count)).number

    def wait_done(self, job: int) -> None:
        with self.client() as client:
            wait_until(lambda: client.document(job).state == "done", f"the end of job {job}", LIMIT_S)

    def worker_state(self, name: str) -> str:
        with self.client() as client:
            return next((one.state for one in client.workers() if one.name == name), "")

    # ---- machines elsewhere ----

    def far_worker(self, name: str, *, slots: int = 1, token: str = "", settings: str = "") -> Process:
        """A `dworker` on a machine of its own: it has what it is given, and finds the coordinator by mDNS."""
        environment = self._environment(name)
        config = Path(environment["DISTRICOMP_CONFIG_DIR"])
        config.mkdir(parents=True, exist_ok=True)
        if token:
            (config / "token").write_text(token)
            settings += f"token_file: {config / 'token'}\n"
        (config / "dworker.yaml").write_text(FAR_WORKER_YAML.format(name=name, slots=slots, settings=settings))
        process = Process(name, [script("dworker"), "-v"], environment, self.folder / f"{name}.log", config)
        self.workers[name] = process
        return process

    def end_worker(self, name: str) -> None:
        self.workers.pop(name).stop()


@contextlib.contextmanager
def advertised(cluster: str, name: str, where: Where) -> Iterator[None]:
    """Somebody says by mDNS that this cluster is there."""
    what = {"cluster": cluster, "name": name, "address": where[0], "port": where[1], "interfaces": ["lo"]}
    with subprocess.Popen(
        [sys.executable, "-m", "dcoord.advertise"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(what) + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "registered\n"
        yield
        # Its end is what makes it say goodbye.
        process.stdin.close()
        process.wait(LIMIT_S)


# ---- peers ----


class TlsPeer(Peer):
    """A connection over TLS by hand. `session`: one of before, to be resumed."""

    def __init__(
        self,
        where: Where,
        context: ssl.SSLContext,
        name: str,
        *,
        source: str = "",
        session: ssl.SSLSession | None = None,
    ) -> None:
        plain = socket.create_connection(where, LIMIT_S, source_address=(source, 0) if source else None)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.local_address = f"{plain.getsockname()[0]}:{plain.getsockname()[1]}"
        try:
            self.tls = context.wrap_socket(plain, server_hostname=name, session=session)
        except BaseException:
            plain.close()
            raise
        self._socket = self.tls
        self._socket.settimeout(LIMIT_S)
        self._decoder = wire.Decoder()
        self._decoder.greeted()
        self._aside: list[AnyMessage] = []

    def __enter__(self) -> Self:
        return self

    def goodbye(self) -> Goodbye:
        """With what it was sent away; the connection must end with it."""
        said = self.expect(Goodbye)
        assert self.is_closed()
        return said

    def is_closed(self) -> bool:
        try:
            return super().is_closed()
        except ssl.SSLError:
            return True

    def rest(self) -> list[AnyMessage]:
        """Everything that still comes, until the other side ends the connection."""
        heard, self._aside = self._aside, []
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            while data := self._socket.recv(65536):
                heard += self._decoder.receive(data)
        return heard

    def heard_before_heartbeat(self) -> list[AnyMessage]:
        """Everything that came until now; the coordinator answers in order, so nothing that was asked before is missing."""
        from districomp.messages import Heartbeat

        self.send(Heartbeat())
        self.expect(Heartbeat)
        heard, self._aside = self._aside, []
        return heard


def authorities(where: Where) -> list[bytes]:
    """What the coordinator there says that it can be known by, believed without a proof."""
    with TlsPeer(where, tls.unverified_context(), "x") as peer:
        peer.send(HelloGuest(PROTOCOL_VERSION, "test"))
        return peer.expect(Authorities).authorities


def guest(site: Site, *, source: str = "") -> TlsPeer:
    """Somebody without a certificate, who has greeted."""
    context = tls.client_context(authorities(site.control))
    peer = TlsPeer(site.control, context, tls.server_name(site.id), source=source)
    peer.send(HelloGuest(PROTOCOL_VERSION, "test"))
    peer.expect(Authorities)
    return peer


def enrol(site: Site, role: str = "worker", *, token: str = "", worker: str = "", name: str = "rogue") -> Identity:
    """Somebody who was let in, with a certificate for a key of its own."""
    key = keys.new_key()
    with guest(site, source=new_address()) as peer:
        secret = parse_token(token or site.token(role)).secret
        peer.send(Enrol(1, role, key.csr, secret, worker or ("" if role != "worker" else name), name, 1))
        enrolled = peer.expect(Enrolled)
    return enrolment.assemble(enrolled, key, role=role, name=site.name, source="token")


def context_of(identity: Identity) -> ssl.SSLContext:
    return tls.client_context(identity.authorities, identity.certificate, identity.key)


def call(site: Site, identity: Identity, *, source: str = "") -> TlsPeer:
    """A connection that shows this certificate, and has said nothing."""
    return TlsPeer(site.control, context_of(identity), tls.server_name(identity.cluster), source=source)


def hello(worker: str, slots: int = 1, process: int = 1) -> HelloWorker:
    return HelloWorker(PROTOCOL_VERSION, "", worker, worker, slots, Machine(), process)


NOTHING_HELD = Inventory(0, [], [], [], [], True)


def joined(site: Site, identity: Identity, slots: int = 1) -> TlsPeer:
    """A worker that was welcomed and holds nothing."""
    peer = call(site, identity)
    peer.send(hello(identity.identity, slots))
    peer.expect(Welcome)
    peer.send(NOTHING_HELD)
    return peer


def client(site: Site, identity: Identity) -> TlsPeer:
    """A client that was welcomed."""
    peer = call(site, identity)
    peer.send(HelloClient(PROTOCOL_VERSION, "test"))
    peer.expect(Welcome)
    return peer


def fetch(
    site: Site, path: str, identity: Identity | None = None, *, method: str = "GET", grant: str = "", body: bytes = b""
) -> tuple[int, bytes]:
    """One request to the data port: with a certificate, with a grant, or with neither. OSError if TLS lets nobody in."""
    known = [*identity.authorities] if identity is not None else authorities(site.control)
    context = context_of(identity) if identity is not None else tls.client_context(known)
    connection = SecureConnection(site.data[1], context, tls.server_name(cluster_id(known[0])))
    with contextlib.closing(connection):
        headers = {"Authorization": f"Bearer {grant}"} if grant else {}
        connection.request(method, path, body=body or None, headers=headers)
        response = connection.getresponse()
        return response.status, response.read()


_addresses = itertools.count(2)


def new_address() -> str:
    """An address of this machine that nobody has used: refusals of one address are logged once in a while only."""
    number = next(_addresses)
    return f"127.1.{number // 250}.{number % 250 + 1}"


# ---- who only claims to be a coordinator ----

MARK = "evidence"


class Liar:
    """Listens, says whatever makes a worker go on, and keeps every byte that it is sent once the handshake is over.

    context: None speaks plain TCP. claims: what it says its authorities are. folder: where a task of it leaves a trace.
    """

    def __init__(self, context: ssl.SSLContext | None, cluster: str, claims: list[bytes], folder: Path) -> None:
        self.heard: list[bytes] = []
        self.tries = 0
        self.refusals: list[str] = []
        self.evidence = folder / MARK
        self._context = context
        self._cluster = cluster
        self._claims = claims
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self._open: list[socket.socket] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    @property
    def where(self) -> Where:
        host, port = self._listener.getsockname()
        return host, port

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(LIMIT_S)
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(LIMIT_S)

    def told(self) -> list[bytes]:
        """What it was told when TLS was over and done with, a connection each. In plain: what is no part of a handshake."""
        return list(self.heard) if self._context is not None else [_after_the_handshake(data) for data in self.heard]

    def messages(self) -> list[AnyMessage]:
        """The same as messages."""
        found: list[AnyMessage] = []
        for data in self.told():
            decoder = wire.Decoder()
            decoder.greeted()
            found += decoder.receive(data)
        return found

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            plain.settimeout(LIMIT_S)
            self._open.append(plain)
            thread = threading.Thread(target=self._serve, args=(plain,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, plain: socket.socket) -> None:
        place = len(self.heard)
        self.heard.append(b"")
        try:
            with self._secured(plain) as sock:
                self._talk(sock, place)
        except OSError as error:
            self.refusals.append(str(error))
        finally:
            plain.close()
            self.tries += 1

    def _secured(self, plain: socket.socket) -> socket.socket:
        return plain if self._context is None else self._context.wrap_socket(plain, server_side=True)

    def _talk(self, sock: socket.socket, place: int) -> None:
        if self._context is None:
            # Nobody who expects TLS says a thing that is a frame: do not wait for one.
            sock.sendall(b"".join(wire.encode(message) for message in self._answers(hello("w"))))
        decoder = wire.Decoder()
        while data := sock.recv(65536):
            self.heard[place] += data
            if self._context is not None:
                for message in decoder.receive(data):
                    sock.sendall(b"".join(wire.encode(answer) for answer in self._answers(message)))

    def _answers(self, message: AnyMessage) -> list[Message]:
        if isinstance(message, HelloGuest):
            return [Authorities(self._cluster, "lab", self._claims)]
        if isinstance(message, Enrol):
            return [Pending(message.request, b"0" * 16)]
        if isinstance(message, HelloWorker):
            definition = Definition("lab", "digest", "", runner="command", argv=["touch", str(self.evidence)])
            return [
                Welcome(PROTOCOL_VERSION, self._cluster, "lab", 1, 15.0, "", time.time(), authorities=self._claims),
                Define("digest", encode_definition(definition)),
                JobSpec(1, "digest", {}),
                Assign(1, 1 << 40, [0]),
            ]
        return []


class Replayer(Liar):
    """Says what a real coordinator once said to somebody else, byte for byte."""

    def __init__(self, recorded: bytes, folder: Path) -> None:
        super().__init__(None, "", [], folder)
        self._recorded = recorded

    def _talk(self, sock: socket.socket, place: int) -> None:
        self.heard[place] += sock.recv(65536)
        sock.sendall(self._recorded)
        while data := sock.recv(65536):
            self.heard[place] += data


def _after_the_handshake(data: bytes) -> bytes:
    """The rest of what a TLS client sent, after its ClientHello and an alert (RFC 8446, 5.1)."""
    while data[:1] in (b"\x14", b"\x15", b"\x16"):
        data = data[5 + int.from_bytes(data[3:5], "big") :]
    return data


class Relay:
    """Stands between: passes every byte on, and keeps it. `up`: what was sent to the real one, a connection each."""

    def __init__(self, target: Where) -> None:
        self.up: list[bytearray] = []
        self.down: list[bytearray] = []
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def where(self) -> Where:
        host, port = self._listener.getsockname()
        return host, port

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in [self._listener, *self._sockets]:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(LIMIT_S)
        for sock in [self._listener, *self._sockets]:
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            self._sockets += [near, far]
            self.up.append(bytearray())
            self.down.append(bytearray())
            for source, sink, record in ((near, far, self.up[-1]), (far, near, self.down[-1])):
                thread = threading.Thread(target=_pump, args=(source, sink, record), daemon=True)
                self._threads.append(thread)
                thread.start()


def _pump(source: socket.socket, sink: socket.socket, record: bytearray) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            record += data
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


# ---- what is written down ----


def journal(site: Site) -> dict[str, list[tuple[object, ...]]]:
    """Every row of every table that a peer's doings could change."""
    import apsw

    connection = apsw.Connection(str(site.state / "dcoord" / "journal.sqlite"), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {str(name): list(connection.execute(f"SELECT * FROM {name}")) for name in names}
    finally:
        connection.close()


def document(body: bytes, kind: type[M]) -> M:
    return msgspec.msgpack.decode(body, type=kind)
