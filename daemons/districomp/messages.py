"""Every message of the wire protocol, both directions; `docs/protocol.md` is its specification.

A frame is one message: a MessagePack array `[tag, field, ...]`. Columns (lists of one length, one
entry a task) instead of an object a task, because a frame carries many tasks; an EMPTY column means
that every entry has the default named beside it.

Changing the protocol: a message's fields are only ever appended, with a default, and only together
with a higher PROTOCOL_VERSION; a peer of another version is refused with both versions named.
"""

from typing import Any, Final

import msgspec

from districomp.model import Item, Machine, Now, Payload, Time

PROTOCOL_VERSION: Final = 2
FRAME_BYTES_MAX: Final = 1024 * 1024
"""Largest frame once a peer has said who it is."""
GREETING_BYTES_MAX: Final = 64 * 1024
"""Largest frame before that, and GREETING_S the time it has for it."""
GREETING_S: Final = 5.0
BATCH_BYTES: Final = 256 * 1024
"""Senders cut their batches at about this size, so that a cancel never waits behind megabytes."""
BATCH_TASKS: Final = 1024


class Message(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """The base of all messages."""


# ---- greeting: the first message of a connection says who is there ----


class HelloWorker(Message, tag=1):
    """worker: joins. `worker` is its lasting id, `process` a random number of this process, `cluster` the name or id that it wants ('' any)."""

    version: int
    cluster: str
    worker: str
    name: str
    slots: int
    machine: Machine
    process: int = 0


class HelloClient(Message, tag=2):
    """client: asks and submits. `program` is for the log."""

    version: int
    program: str


class HelloWeb(Message, tag=3):
    """dcoord-web, on the control socket only: where it serves; answered like a client from then on."""

    version: int
    pid: int
    web_url: str
    data_url: str


class Welcome(Message, tag=4):
    """coordinator: the greeting was accepted. `now` is its clock (Unix seconds), which all times in reports follow.

    `data_url` with the host 0.0.0.0 or [::]: the host at which the peer reached the coordinator. `role` and `user`:
    what the coordinator takes the peer for. `authorities`: the certificates (DER) that it can be known by, the newest
    first, none if it is insecure. `renew_s`: when to renew one's own certificate; 0 never. `fence`: leases below it are
    of before a restart, and a worker must prove them (Sealed).
    """

    version: int
    cluster: str
    name: str
    epoch: int
    lease_s: float
    data_url: str
    now: Now
    role: str = ""
    user: str = ""
    authorities: list[bytes] = []
    renew_s: float = 0.0
    fence: int = 0


class Goodbye(Message, tag=5):
    """either side: the connection ends, and why; `code` is stable, the text is for people."""

    code: str
    text: str


class Heartbeat(Message, tag=6):
    """worker, every third of a lease; the coordinator answers with the same."""


class HelloGuest(Message, tag=7):
    """whoever has no certificate, to enrol: answered by Authorities. Over TLS, or on the control socket."""

    version: int
    program: str


class Authorities(Message, tag=8):
    """coordinator: the certificates (DER) that it can be known by, the newest first. To a guest, who believes it only if
    the hash of one is the token's; to everybody else when they have changed: trust these now, and renew at once.
    """

    cluster: str
    name: str
    authorities: list[bytes]


# ---- coordinator to worker ----


class DataAt(Message, tag=10):
    """The data port has moved."""

    url: str


class Define(Message, tag=11):
    """A definition, before the first job that uses it: `taskdef.Definition` in MessagePack."""

    digest: str
    body: bytes


class JobSpec(Message, tag=12):
    """A job, before its first lease on this connection. `numbers` is (start, step): item k is start + k * step.

    `matrix`: (param, values) pairs; task k has the k-th combination, the last pair varying fastest.
    """

    job: int
    definition: str
    params: dict[str, Any]
    numbers: tuple[int, int] | None = None
    matrix: list[tuple[str, list[Any]]] = []


class Assign(Message, tag=13):
    """Leases of one job; their tokens are lease, lease + 1, ...

    `seal`: the coordinator's proof to itself that this worker has them, to be kept and shown to it after its restart.
    """

    job: int
    lease: int
    indexes: list[int]
    attempts: list[int] = []  # all 1
    items: list[Item] = []  # numbers, or no input at all
    grants: list[str] = []  # none has a blob; '' for one without
    seal: bytes = b""


class Recall(Message, tag=14):
    """Give these back if they have not started; answered by Returned."""

    leases: list[int]


class Stop(Message, tag=15):
    """End these attempts: TERM, KILL later. Answered by a report when each has ended."""

    leases: list[int]


class Ack(Message, tag=16):
    """These reports are recorded or refused for good: forget them."""

    serials: list[int]


class Resend(Message, tag=17):
    """The journal works again: send every report that has no Ack."""


class Ask(Message, tag=18):
    """Which of these programs does the machine have? Answered by Has."""

    programs: list[str]


# ---- worker to coordinator ----


class Inventory(Message, tag=20):
    """After Welcome and the Reports that are sent again: every lease held and not yet reported. The last one has `last`.

    What neither they nor the Reports before them name, the worker does not have.
    """

    job: int
    leases: list[int]
    indexes: list[int]
    attempts: list[int]
    started: list[Time | None]
    last: bool


class Started(Message, tag=21):
    """Attempts that run by now; those shorter than the worker's reporting interval are never named."""

    leases: list[int]
    times: list[Time]


class Returned(Message, tag=22):
    """Leases given back unstarted, all those of a Recall that could be."""

    leases: list[int]


class Reports(Message, tag=23):
    """Attempts of one job that ended, in their order. Kept by the worker until `serial` is acknowledged."""

    serial: int
    job: int
    leases: list[int]
    indexes: list[int]
    attempts: list[int] = []  # all 1
    reasons: list[str] = []  # all "done"
    exit_codes: list[int | None] = []  # all None
    signals: list[int | None] = []  # all None
    started: list[Time | None] = []  # all None; Unix seconds by the coordinator's clock
    ended: list[Time] = []
    cpu_s: list[float | None] = []  # all None
    memory_bytes: list[int | None] = []  # all None
    stderr: list[bytes] = []  # all empty
    results: list[Payload | None] = []  # all None


class Has(Message, tag=24):
    """The answer to Ask: what was asked for, and those of it that are there."""

    programs: list[str]
    found: list[str]


class Sealed(Message, tag=25):
    """After Welcome, before Reports and Inventory: an Assign of before its `fence`, of which something is held or unreported."""

    job: int
    lease: int
    indexes: list[int]
    seal: bytes


# ---- client to coordinator; `request` numbers the connection's requests, replies carry it back ----


class Submit(Message, tag=30):
    """A job. Exactly one of: `numbers` (start, step) with `count`; items, here and in Items until `last`; `matrix`; `count` = 1 alone (no input)."""

    request: int
    request_id: str
    definition: str
    params: dict[str, Any]
    name: str = ""
    numbers: tuple[int, int] | None = None
    count: int = 0
    items: list[Item] = []
    last: bool = True
    max_fails: int | None = None
    user: str = ""
    matrix: list[tuple[str, list[Any]]] = []


class Items(Message, tag=31):
    """More items of a submission that is under way."""

    request: int
    items: list[Item]
    last: bool


class Accepted(Message, tag=32):
    """The submission is on disk."""

    request: int
    job: int
    tasks: int


class Refused(Message, tag=33):
    """A request was refused and nothing of it was kept."""

    request: int
    code: str
    text: str


class Watch(Message, tag=34):
    """Reply with these jobs' documents now, and again on a change at most every `interval_s`, until all ended (`last`)."""

    request: int
    jobs: list[int]
    interval_s: float = 0.2


class Results(Message, tag=35):
    """Reply with the next rows of a job after `after` (0 at first); with `wait`, only when there are some or the job has ended.
    `follow`: reply again whenever there are more, as fast as the client takes them, until `ended`.
    """

    request: int
    job: int
    after: int
    wait: bool
    follow: bool = False


class ResultRows(Message, tag=36):
    """Rows of the journal, each an Outcome in MessagePack; `after`: the serial of the last, for the next request; `ended`: no more will come."""

    request: int
    rows: list[bytes]
    after: int
    ended: bool


class Cancel(Message, tag=37):
    """Cancel a whole job (no indexes) or some of its tasks; answered by the job's document once recorded."""

    request: int
    job: int
    indexes: list[int] = []


class Query(Message, tag=38):
    """Ask for documents: status, jobs (of `user`, '' all), job, tasks, task, explain, workers, definitions, definition (`name`), tokens."""

    request: int
    noun: str
    job: int = 0
    index: int = 0
    state: str = ""
    name: str = ""
    user: str = ""


class Reply(Message, tag=39):
    """Documents (`districomp.documents`), each in MessagePack; `last`: the request is answered."""

    request: int
    documents: list[bytes]
    last: bool = True


class Retry(Message, tag=40):
    """Queue a job's failed tasks again (`failed_only`), or its cancelled and skipped ones too; answered by the job's document."""

    request: int
    job: int
    failed_only: bool = False


# ---- trust: who one is, and what one may fetch ----


class Enrol(Message, tag=41):
    """guest: asks for a certificate. `csr`: PKCS#10 (DER), its subject ignored. `secret`: the token's, b'' without one.

    `role`: the one wanted. `worker`: a worker's lasting id, '' for clients. Answered by Enrolled, Pending or Refused.
    """

    request: int
    role: str
    csr: bytes
    secret: bytes = b""
    worker: str = ""
    name: str = ""
    slots: int = 0
    machine: Machine = Machine()


class Pending(Message, tag=42):
    """A person has to let this worker in; `nonce` goes into the words that both sides show. Enrolled follows, or Goodbye."""

    request: int
    nonce: bytes


class Enrolled(Message, tag=43):
    """A certificate (DER) for the key of the request, valid from now on for whoever trusts one of `authorities`.

    `chain`: certificates (DER) to be shown with it. `identity` is what it is known by; `renew_s`: when to renew it.
    """

    request: int
    role: str
    identity: str
    certificate: bytes
    chain: list[bytes]
    authorities: list[bytes]
    renew_s: float


class Renew(Message, tag=44):
    """whoever has a certificate: a new one for this key, answered by Enrolled. The connection lives on by the new one."""

    request: int
    csr: bytes


class AskGrant(Message, tag=45):
    """The right to do `verb` (GET, PUT, or SESSION: everything that the asker may) at `path` of the data port.

    A worker names the lease that needs it. `path`: /tasks/ID, /results/ID, /blobs/SHA256, /bundles/SHA256 (GET of a
    bundle's manifest and files, by their /blobs/ paths), '' with SESSION. Answered by Granted or Refused.
    """

    request: int
    verb: str
    path: str
    lease: int = 0


class Granted(Message, tag=46):
    """A grant, to be sent as `Authorization: Bearer GRANT`; good for `expires_s` seconds, at a request's start."""

    request: int
    grant: str
    expires_s: float


class WebTrust(Message, tag=47):
    """coordinator to dcoord-web, after Welcome and whenever it changes: its certificate with chain, private key (both PEM,
    both b'' if insecure), the authorities (DER), the key of grants, and the identities that are refused.
    `now`: the clock by which grants expire (Unix seconds), which may not be the calendar's.
    """

    certificate: bytes
    key: bytes
    authorities: list[bytes]
    grant_key: bytes
    refused: list[str]
    now: float = 0.0


# ---- administration, by role admin; each is answered by Reply or Refused ----


class CreateToken(Message, tag=50):
    """A join token; Reply has one TokenDocument, whose `token` is never shown again. `uses` None: any number."""

    request: int
    role: str
    expires_s: float
    uses: int | None = None
    labels: list[str] = []


class RevokeToken(Message, tag=51):
    """A token by its id, and with it every certificate that was given for it."""

    request: int
    token: str


class Admit(Message, tag=52):
    """Let a pending worker in: by name or id, and the words that were compared."""

    request: int
    worker: str
    words: str


class Revoke(Message, tag=53):
    """Refuse a worker (by name or id) from now on, also if it is connected; `remove`: and forget it."""

    request: int
    worker: str
    remove: bool = False


class OpenEnrolment(Message, tag=54):
    """Let every pending worker in, for so many seconds; 0 closes."""

    request: int
    for_s: float


class RotateAuthority(Message, tag=55):
    """A new authority; the old one is good for `overlap_s` more. Reply has one AuthorityDocument."""

    request: int
    overlap_s: float


AnyMessage = (
    HelloWorker | HelloClient | HelloWeb | Welcome | Goodbye | Heartbeat | HelloGuest | Authorities
    | DataAt | Define | JobSpec | Assign | Recall | Stop | Ack | Resend | Ask
    | Inventory | Started | Returned | Reports | Has | Sealed
    | Submit | Items | Accepted | Refused | Watch | Results | ResultRows | Cancel | Query | Reply | Retry
    | Enrol | Pending | Enrolled | Renew | AskGrant | Granted | WebTrust
    | CreateToken | RevokeToken | Admit | Revoke | OpenEnrolment | RotateAuthority
)  # fmt: skip
