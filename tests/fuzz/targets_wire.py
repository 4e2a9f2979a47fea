"""Targets: what comes over the wire, as far as the cores that act upon it."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import inspect

from dcoord.core.events import AuthoritiesChanged, Received
from dcoord.core.records import IdentityRecord, Record, TokenRecord
from dcoord.core.rights import GUEST, Principal
from dcoord.core.view import job_document, status_document, worker_documents
from dcoord.journal import Journal
from districomp import documents, keys, wire
from districomp.client import _document
from districomp.client_results import Ledger, stderr_of
from districomp.client_shelf import in_task_order
from districomp.errors import RemoteProtocolError, TrustError
from districomp.messages import (
    GREETING_BYTES_MAX,
    AnyMessage,
    HelloClient,
    HelloGuest,
    HelloWeb,
    HelloWorker,
    Message,
    Welcome,
)
from districomp.model import Blob
from districomp.outcome import Outcome
from districomp.taskdef import Definition, encode_definition
from districomp.tokens import cluster_id, secret_hash
from dworker.core import Settings, WorkerCore
from dworker.events import AttemptsEnded, Connected, Disconnected, SendMessage, StartAttempts, StopAttempts
from dworker.events import Received as WorkerReceived
from tests.fuzz.target import Run, Target, always, frame, framed, packed
from tests.unit.corelab import Lab, restore
from tests.unit.message_strategies import MESSAGE_TYPES

HELLO: Final = (HelloWorker, HelloClient, HelloWeb, HelloGuest)
DOCUMENTS: Final = [
    kind for kind in vars(documents).values() if isinstance(kind, type) and issubclass(kind, msgspec.Struct)
]
KEY: Final = keys.new_key()


def sample(type_: inspect.Type) -> Any:
    """Some value of a type, as it is sent."""
    match type_:
        case inspect.UnionType(types=types):
            return sample(next((one for one in types if not isinstance(one, inspect.NoneType)), types[0]))
        case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item):
            return [sample(item)]
        case inspect.TupleType(item_types=items):
            return [sample(item) for item in items]
        case inspect.DictType(key_type=key, value_type=value):
            return {sample(key): sample(value)}
        case inspect.StructType():
            values = [sample(field.type) for field in type_.fields]
            if not type_.array_like:
                return dict(zip([field.encode_name for field in type_.fields], values, strict=True))
            return values if type_.tag is None else [type_.tag, *values]
    plain = {
        inspect.BoolType: True, inspect.IntType: 1, inspect.FloatType: 1.5, inspect.StrType: "w1",
        inspect.BytesType: b"x" * 32, inspect.AnyType: [1, "a"], inspect.NoneType: None,
    }  # fmt: skip
    if isinstance(type_, inspect.LiteralType):
        return type_.values[0]
    return plain[type(type_)]


def body_of(kind: type) -> bytes:
    """A message or document with something in every field."""
    return msgspec.msgpack.encode(sample(inspect.type_info(kind)))


# ---- frames and messages ----


def frames(data: bytes) -> None:
    """The codec, with the stream cut in pieces: the same messages as in one piece, and back to the same bytes' meaning."""
    step = 1 + data[0] % 64 if data else 1
    whole, pieces, stranger = wire.Decoder(), wire.Decoder(), wire.Decoder()
    whole.greeted()
    pieces.greeted()
    got: list[AnyMessage] = []
    fault = ""
    try:
        for at in range(1, len(data), step):
            got += pieces.receive(data[at : at + step])
    except RemoteProtocolError:
        fault = "pieces"
    try:
        expected = whole.receive(data[1:])
    except RemoteProtocolError:
        assert fault, "an error only when it comes in one piece"
    else:
        assert not fault, "an error only when it comes in pieces"
        assert msgspec.msgpack.encode(got) == msgspec.msgpack.encode(expected)
        assert whole.pending_bytes == pieces.pending_bytes <= len(data)
        for message in got:
            (again,) = _decoded(wire.encode(message))
            assert wire.encode(again) == wire.encode(message)
    with contextlib.suppress(RemoteProtocolError):
        assert len(stranger.receive(data[1:])) <= wire.GREETING_MESSAGES_MAX
        assert stranger.pending_bytes <= GREETING_BYTES_MAX + 4


def _decoded(data: bytes) -> list[AnyMessage]:
    decoder = wire.Decoder()
    decoder.greeted()
    return decoder.receive(data)


def _frame_seeds() -> list[bytes]:
    each = [frame(body_of(kind)) for kind in MESSAGE_TYPES]
    return [b"\x05" + one for one in each] + [b"\x00" + b"".join(each)]


# ---- documents ----


def document(data: bytes) -> None:
    """A document as clients read it; the first byte says which."""
    if not data:
        return
    kind, body = DOCUMENTS[data[0] % len(DOCUMENTS)], data[1:]
    with contextlib.suppress(RemoteProtocolError):
        _document(body, kind)


def _read_rows(rows: list[bytes]) -> None:
    ledger = Ledger(1, 8)
    read = [ledger.read(row) for row in rows]
    ledger.must_look_ahead(read)
    for _ in in_task_order(record for row in read for record in ledger.take(row)):
        pass
    for record in ledger.swept():
        assert 0 <= record.index < 8
    for row in rows:
        stderr_of(row, 1)


def rows_of(data: bytes) -> None:
    """Rows of results as a client reads them, one after another; what is no list of rows is one row."""
    try:
        rows = msgspec.msgpack.decode(data, type=list[bytes])
    except (ValueError, RecursionError):
        rows = [data]
    with contextlib.suppress(RemoteProtocolError):
        _read_rows(rows)


def _row_seeds() -> list[bytes]:
    rows = [
        Outcome(1, 1, "w1", [0, 1]),
        Outcome(1, 2, "w1", [2], [2], [1], ["exit"], [1], [None], [1.0], [2.0], [0.5], [1], [b"no"], [b"r"]),
        Outcome(1, 3, "", [], [2], sweep=0),
        Outcome(1, 4, "", [], sweep=3),
    ]
    packed_rows = [msgspec.msgpack.encode(row) for row in rows]
    return [*packed_rows, msgspec.msgpack.encode(packed_rows)]


# ---- the coordinator's core, and its journal ----

AUTHORITY: Final = b"the certificate of an authority"
END: Final = 2e6
SECRET: Final = b"s" * 16


def _holder(role: str, identity: str, name: str) -> Principal:
    return Principal(role, identity, f"{name}/{identity}", name, END, cluster_id(AUTHORITY))


ASKERS: Final = [
    GUEST,
    _holder("worker", "w1", "pc"),
    _holder("worker", "w2", "pc2"),
    _holder("submit", "s1", "ann"),
    Principal("admin", user="root"),
    Principal("web", name="web"),
    Principal("enrol"),
    _holder("read", "r1", "eve"),
]
KNOWN: Final[list[Record]] = [
    TokenRecord("t1", secret_hash(SECRET), "worker", 1e6, END, 3, 0, ["lab"]),
    *(IdentityRecord(who.identity, who.role, who.name, "", [], 1e6, END) for who in ASKERS if who.identity),
]


class Coordinator:
    """A core as the listener and the daemon drive it, then its records in a real journal, and a restart from them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def run(self, data: bytes) -> None:
        """`data`: MessagePack of (asker, message) and (seconds) in a list."""
        try:
            steps = msgspec.msgpack.decode(data)
        except (ValueError, RecursionError):
            return
        lab = Lab(restore(KNOWN, 1), insecure=False, grant_key=b"k" * 32)
        lab.records += KNOWN
        lab.feed(AuthoritiesChanged([AUTHORITY], [1e10], b"k" * 32))
        greeted: dict[int, None] = {}
        for step in steps if isinstance(steps, list) else []:
            if isinstance(step, int | float) and 0 <= step < 1e6:
                lab.advance(step)
            elif isinstance(step, list) and len(step) == 2 and isinstance(step[0], int):
                self._say(lab, step[0] % len(ASKERS), step[1], greeted)
        for shown in (*worker_documents(lab.core, lab.now), status_document(lab.core, lab.now)):
            msgspec.json.encode(shown)
        for job in lab.core.jobs.values():
            msgspec.json.encode(job_document(job, lab.now))
        self._keep(lab)

    def _say(self, lab: Lab, peer: int, tree: Any, greeted: dict[int, None]) -> None:
        try:
            (message,) = _decoded(frame(msgspec.msgpack.encode(tree)))
        except RemoteProtocolError:
            return
        if isinstance(message, HELLO) == (peer in greeted):
            return
        greeted[peer] = None
        if isinstance(message, HelloWeb) and ASKERS[peer].role != "web":
            return
        event = Received(peer, message, lab.now, "127.0.0.1:1", None, ASKERS[peer], b"e" * 16)
        if hasattr(message, "csr"):
            try:
                event.spki = keys.check_csr(message.csr)
            except TrustError as error:
                event.fault = "bad_request", str(error)
        lab.feed(event)

    def _keep(self, lab: Lab) -> None:
        if len(lab.records) == len(KNOWN):
            return
        self._count += 1
        path = self._folder / f"{self._count}.sqlite"
        journal = Journal.open(path)
        try:
            journal.commit(lab.records)
            restored = journal.restore()
        finally:
            journal.close()
            for file in self._folder.glob(f"{path.name}*"):
                file.unlink()
        reference = restore(lab.records, 2)
        assert {job.record.job for job in restored.jobs} <= {job.record.job for job in reference.jobs}
        Lab(restored, lab.now).advance(100.0)


@contextlib.contextmanager
def coordinator() -> Iterator[Run]:
    """In memory: a file system that does not wait for a disk."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="dc-fuzz-", dir=shm if shm.is_dir() else None) as folder:
        yield Coordinator(Path(folder)).run


def _tree(message: Message | type) -> Any:
    if isinstance(message, type):
        return sample(inspect.type_info(message))
    return msgspec.msgpack.decode(msgspec.msgpack.encode(message))


def _coordinator_seeds() -> list[bytes]:
    from districomp import messages as m
    from districomp.model import Machine

    hello_worker = _tree(m.HelloWorker(m.PROTOCOL_VERSION, "", "w1", "pc", 2, Machine(), 1))
    other = _tree(m.HelloWorker(m.PROTOCOL_VERSION, "", "w2", "pc2", 1, Machine(), 1))
    hello_client = _tree(m.HelloClient(m.PROTOCOL_VERSION, "test"))
    hello_guest = _tree(m.HelloGuest(m.PROTOCOL_VERSION, "test"))
    nothing = _tree(m.Inventory(0, [], [], [], [], True))
    submit = _tree(m.Submit(7, "id", "work", {}, count=4, numbers=(0, 1)))
    lease = 2**40
    report = _tree(m.Reports(1, 1, [lease], [0], ended=[1e6], started=[1e6], results=[b"r"]))
    failed = _tree(
        m.Reports(2, 1, [lease + 1], [1], [1], ["exit"], [1], [None], [1e6], [1e6], [0.1], [5], [b"no"], [None])
    )
    start: list[Any] = [[1, hello_worker], [1, nothing], [4, hello_client], [4, submit], 0.1]
    enrol = _tree(m.Enrol(1, "worker", KEY.csr, SECRET, "w9", "pc9", 2, Machine()))
    unasked = _tree(m.Enrol(1, "worker", KEY.csr, b"", "w9", "pc9", 2, Machine()))
    seeds: list[Any] = [
        [*start, [1, report], [1, failed], 5.0, [4, _tree(m.Cancel(3, 1))]],
        [*start, [2, other], [2, nothing], [1, _tree(m.Started([lease], [1e6]))], 40.0],
        [*start, [4, _tree(m.Submit(8, "", "params", {"size": 3}, items=[b"a", b"b"]))], [4, _tree(m.Retry(9, 1))], 1.0],
        [*start, [4, _tree(m.Submit(8, "", "params", {}, matrix=[("size", [1, 2])]))], 1.0],
        [*start, [1, _tree(m.Returned([lease]))], [1, _tree(m.Renew(3, KEY.csr))], [1, _tree(m.AskGrant(4, "GET", "/tasks/1.0", lease))]],
        [*start, [3, hello_client], [3, submit], [3, _tree(m.AskGrant(5, "SESSION", ""))], [7, hello_client]],
        [[0, hello_guest], [0, enrol], 1.0, [1, hello_worker], 60.0],
        [[0, hello_guest], [0, unasked], [4, hello_client], [4, _tree(m.Admit(3, "pc9", "a-b-c"))]],
        [[4, hello_client], [4, _tree(m.OpenEnrolment(3, 60.0))], [0, hello_guest], [0, unasked], 70.0],
        [[4, hello_client], [4, _tree(m.CreateToken(1, "worker", 60.0, 1, ["lab"]))], [4, _tree(m.RevokeToken(2, "x"))], 99.0],
        [[4, hello_client], [4, _tree(m.RotateAuthority(1, 60.0))], [4, _tree(m.Revoke(2, "w1", True))], 99.0],
        [[5, _tree(m.HelloWeb(m.PROTOCOL_VERSION, 1, "u", "d"))], [5, submit], 1.0],
        [[1, hello_worker], [1, _tree(m.Inventory(1, [lease], [0], [1], [1e6], True))], 20.0],
        [[4, hello_client], [4, _tree(m.Submit(1, "r", "picky", {}, items=[b"a"], last=False))], [4, _tree(m.Items(1, [b"b"], True))], [1, hello_worker], [1, nothing], [1, _tree(m.Has(["povray"], ["povray"]))], 3.0],
    ]  # fmt: skip
    seeds += [[*start, [peer, _tree(kind)]] for kind in MESSAGE_TYPES for peer in (1, 4)]
    return [msgspec.msgpack.encode(seed) for seed in seeds]


# ---- the worker's core ----


def worker(data: bytes) -> None:
    """A worker's core and a coordinator out of its mind. `data`: messages and seconds in a list; attempts end by themselves."""
    try:
        steps = msgspec.msgpack.decode(data)
    except (ValueError, RecursionError):
        return
    core, now = WorkerCore(Settings(slots=2, first_serial=1000)), 100.0
    connected = False
    for step in steps if isinstance(steps, list) else []:
        if isinstance(step, int | float) and 0 <= step < 1e6:
            now += step
            effects = core.handle_batch([], now) + core.tick(now)
        else:
            try:
                (message,) = _decoded(frame(msgspec.msgpack.encode(step)))
            except RemoteProtocolError:
                continue
            if isinstance(message, Welcome) == connected:
                core.handle_batch([Disconnected()], now)
                connected = False
                continue
            event = Connected(message, now) if isinstance(message, Welcome) else WorkerReceived(message, now)
            connected = True
            try:
                effects = core.handle_batch([event], now) + core.tick(now)
            except RemoteProtocolError:
                return
        while effects:
            following: list[Any] = []
            for effect in effects:
                if isinstance(effect, SendMessage):
                    _decoded(wire.encode(effect.message))
                elif isinstance(effect, StartAttempts):
                    now += 0.01
                    ended = AttemptsEnded(effect.slot, effect.leases, [now] * len(effect.leases))
                    following += core.handle_batch([ended], now) + core.tick(now)
                elif isinstance(effect, StopAttempts):
                    continue
            core.check()
            effects = following
    core.deadline()


def _worker_seeds() -> list[bytes]:
    from districomp import messages as m

    welcome = _tree(Welcome(m.PROTOCOL_VERSION, "c1", "lab", 1, 15.0, "http://127.0.0.1:1", 1e9))
    body = encode_definition(Definition("d", "digest1", "", "command", argv=["true"]))
    defined = [_tree(m.Define("digest1", body)), _tree(m.JobSpec(1, "digest1", {}, (0, 1)))]
    assign = _tree(m.Assign(1, 2**40, [0, 1, 2]))
    items = _tree(m.Assign(1, 2**40, [0, 1], [1, 2], [b"a", Blob(b"x" * 32, 99)], ["g", "h"]))
    seeds: list[Any] = [
        [welcome, *defined, assign, 1.0, _tree(m.Ack([1000])), _tree(m.Resend())],
        [welcome, defined[0], _tree(m.JobSpec(1, "digest1", {"a": 1})), items, _tree(m.Recall([2**40 + 1])), 9.0],
        [welcome, *defined, assign, _tree(m.Stop([2**40])), _tree(m.Ask(["sh"])), _tree(m.DataAt("http://x"))],
        [welcome, defined[0], _tree(m.JobSpec(1, "digest1", {}, matrix=[("a", [1, 2, 3])])), assign, 20.0],
    ]
    seeds += [[welcome, *defined, _tree(kind), 1.0] for kind in MESSAGE_TYPES]
    return [msgspec.msgpack.encode(seed) for seed in seeds]


def _first_byte_then_packed(data: bytes, rng: Any) -> bytes:
    return data[:1] + packed(data[1:], rng)


def _first_byte_then_framed(data: bytes, rng: Any) -> bytes:
    return data[:1] + framed(data[1:], rng)


TARGETS: Final = {
    "wire": Target(always(frames), _frame_seeds, mutate=_first_byte_then_framed, bytes_max=16384),
    "documents": Target(
        always(document),
        lambda: [bytes((i,)) + body_of(kind) for i, kind in enumerate(DOCUMENTS)],
        mutate=_first_byte_then_packed,
    ),
    "results": Target(always(rows_of), _row_seeds, mutate=packed),
    "coordinator": Target(coordinator, _coordinator_seeds, mutate=packed),
    "worker": Target(always(worker), _worker_seeds, mutate=packed),
}
