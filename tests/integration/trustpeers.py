"""Peers of a real cluster that are written by hand: guests, workers and clients with any certificate.

They speak the protocol over real TLS and keep to no rule of it that a test wants broken.
"""

import asyncio
import contextlib
import itertools
import json
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self, TypeVar

import msgspec

from demo.cluster import Cluster, Process, script, wait_until
from districomp import enrolment, keys, tls, wire
from districomp.client import Client
from districomp.documents import TaskDocument
from districomp.identity import Identity
from districomp.messages import (
    PROTOCOL_VERSION,
    Ack,
    AnyMessage,
    Assign,
    Authorities,
    Enrol,
    Enrolled,
    Goodbye,
    HelloClient,
    HelloGuest,
    HelloWorker,
    Inventory,
    Reports,
    Welcome,
)
from districomp.model import Machine, task_text
from districomp.tokens import cluster_id, parse_token
from tests.integration.daemonlab import SILENCE_S, Peer
from tests.integration.weblab import SecureConnection
from tests.patience import PATIENCE_S

M = TypeVar("M")
Where = tuple[str, int]

LIMIT_S = PATIENCE_S
FAR_WORKER_YAML = """\
name: {name}
slots: {slots}
discovery: {{interfaces: [lo]}}
{settings}"""


class Site(Cluster):
    """A cluster, and machines that share nothing with the coordinator's but the network."""

    def __init__(
        self, folder: Path, *, advertise: bool = False, lease: str = "60s", name: str = "", yaml: str = ""
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
        # On a busy machine the coordinator may be ready before its web server is.
        url = wait_until(lambda: self.endpoint()["data"], "dcoord-web")
        host, port = url.removeprefix("https://").rsplit(":", 1)
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
        self._socket.settimeout(SILENCE_S)
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


def join_by(where: Where, token: str, name: str = "late") -> Identity:
    """What `dctl join` and a worker with a token do. TrustError if nobody there is the cluster of the token."""
    return asyncio.run(enrolment.enrol([where], role="worker", name=name, token=parse_token(token)))


def context_of(identity: Identity) -> ssl.SSLContext:
    return tls.client_context(identity.authorities, identity.certificate, identity.key)


def call(site: Site, identity: Identity, *, source: str = "") -> TlsPeer:
    """A connection that shows this certificate, and has said nothing."""
    return TlsPeer(site.control, context_of(identity), tls.server_name(identity.cluster), source=source)


def hello(worker: str, slots: int = 1, process: int = 1) -> HelloWorker:
    return HelloWorker(PROTOCOL_VERSION, "", worker, worker, slots, Machine(), process)


LARGE = b"of another\n" * 10_000
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


class Two:
    """A worker that has a lease with large data, and a rogue that was let in as well and has none."""

    def __init__(self, site: Site, stack: contextlib.ExitStack) -> None:
        self.site = site
        self.honest, self.rogue = enrol(site, name="honest"), enrol(site, name="rogue")
        self.worker = stack.enter_context(joined(site, self.honest))
        with site.client() as own:
            self.job = own.submit("shell", params={"argv": ["cat"]}, data=LARGE).number
        self.assign = self.worker.expect(Assign)
        self.peer = stack.enter_context(joined(site, self.rogue))
        self.peer.heard_before_heartbeat()

    def task(self) -> TaskDocument:
        with self.site.client() as own:
            return own.task(self.job, 0)

    def end_well(self) -> None:
        """The honest one still has what it had, and what it says counts."""
        assert self.task().state == "running"
        self.worker.send(
            Reports(1, self.job, [self.assign.lease], [0], ended=[time.time()], results=[b"of the honest one"])
        )
        self.worker.expect(Ack)
        assert self.task().state == "done"
        admin = enrol(self.site, "admin")
        assert fetch(self.site, f"/results/{task_text(self.job, 0)}", admin) == (200, b"of the honest one")
