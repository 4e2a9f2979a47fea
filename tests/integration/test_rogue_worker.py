"""Workers that are none, or that are no good ones: the first are refused and logged, the others get nowhere beyond what is their own."""

import contextlib
import hashlib
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec.structs import replace

from dcoord.authority import Authority
from demo.cluster import wait_until
from districomp import tls
from districomp.identity import Identity
from districomp.keys import new_key
from districomp.messages import (
    PROTOCOL_VERSION,
    Ack,
    Admit,
    AskGrant,
    Cancel,
    CreateToken,
    Enrol,
    Enrolled,
    Granted,
    HelloClient,
    HelloGuest,
    HelloWeb,
    Inventory,
    Items,
    Message,
    OpenEnrolment,
    Query,
    Refused,
    Reply,
    Reports,
    Results,
    Retry,
    Returned,
    Revoke,
    RevokeToken,
    RotateAuthority,
    Started,
    Stop,
    Submit,
    Watch,
)
from districomp.model import task_text
from districomp.tokens import parse_token
from tests.integration.tlslab import clock_off_by, imitation, uri
from tests.integration.trustpeers import (
    LARGE,
    NOTHING_HELD,
    Site,
    TlsPeer,
    Two,
    authorities,
    call,
    client,
    enrol,
    fetch,
    guest,
    hello,
    joined,
    journal,
    new_address,
)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    # Nobody is declared lost, and struck out of the journal, while a test looks at it twice.
    with Site(tmp_path_factory.mktemp("rogues"), lease="1h") as site:
        site.start_coordinator()
        yield site


@pytest.fixture
def site(started: Site) -> Iterator[Site]:
    yield started
    with started.client() as own:
        for job in own.jobs():
            own.cancel(job.job)


def is_logged(site: Site, *parts: str) -> None:
    """One line of the coordinator's log has all these: the address and the reason."""
    wait_until(lambda: any(all(part in line for part in parts) for line in site.log.splitlines()), f"a line of {parts}")


def workers(site: Site) -> list[str]:
    with site.client() as own:
        return sorted(one.worker for one in own.workers() if one.state not in ("revoked", "lost"))


# ---- those that are refused ----


@pytest.fixture
def nobody_else(site: Site) -> Iterator[None]:
    before, rows = workers(site), journal(site)["workers"]
    yield
    assert workers(site) == before
    assert journal(site)["workers"] == rows


@pytest.mark.usefixtures("nobody_else")
def test_without_a_certificate(site: Site) -> None:
    context = tls.client_context(authorities(site.control))
    with TlsPeer(site.control, context, tls.server_name(site.id), source=new_address()) as peer:
        peer.send(hello("w1"))
        assert peer.goodbye().code == "not_allowed"
        is_logged(site, peer.local_address, "refuses", "no certificate")
    for message in (NOTHING_HELD, hello("w1")):
        with guest(site) as peer:
            peer.send(message)
            assert peer.goodbye().code in ("not_allowed", "protocol")


def of_another_cluster(site: Site, folder: Path) -> Identity:
    other = Authority.open(folder / "other", site.name)
    return signed(other, site, "w1", other.authorities)


def of_an_imitated_authority(site: Site, folder: Path) -> Identity:
    """The names of a worker that exists, signed by an authority that has every name of the real one."""
    real = enrol(site)
    certificate, key = imitation(real.authorities[0]).make(uri(site.id, "worker", real.identity), None)
    return replace(real, certificate=tls.to_pem([certificate]), key=key)


def expired(site: Site, folder: Path) -> Identity:
    real = enrol(site)
    return signed(past(site), site, real.identity, real.authorities)


def past(site: Site) -> Authority:
    """The cluster's own authority, three days ago."""
    return Authority.open(
        site.state / "dcoord" / "trust", site.name, lifetime_s=86400.0, clock=clock_off_by(-3 * 86400.0)
    )


def signed(authority: Authority, site: Site, identity: str, trusts: list[bytes]) -> Identity:
    key = new_key()
    issued = authority.sign(key.csr, "worker", identity, "rogue")
    chain = tls.to_pem([issued.certificate, *issued.chain])
    return Identity(site.id, site.name, "worker", identity, trusts, chain, key.key, "token")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (of_another_cluster, "unable to get local issuer certificate"),
        (of_an_imitated_authority, "certificate signature failure"),
        (expired, "certificate has expired"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.usefixtures("nobody_else")
def test_a_certificate_that_is_no_good(
    site: Site, tmp_path: Path, make: Callable[[Site, Path], Identity], reason: str
) -> None:
    identity = make(site, tmp_path)
    # It believes whoever is there: it wants in.
    context = tls.unverified_context()
    tls.load_chain(context, identity.certificate, identity.key)
    for port, where in (("control", site.control), ("data", site.data)):
        with TlsPeer(where, context, tls.server_name(site.id), source=new_address()) as peer:
            with contextlib.suppress(OSError):
                peer.send(hello(identity.identity))
            assert is_cut(peer)
            is_logged(site, f"the {port} port refuses {peer.local_address}: its certificate is refused: {reason}")


def is_cut(peer: TlsPeer) -> bool:
    """Whether the handshake's server hung up without a word; with TLS 1.3 that is noticed when something is read."""
    try:
        return peer.tls.recv(1) == b""
    except (ssl.SSLError, ConnectionError):
        return True


@pytest.mark.usefixtures("nobody_else")
def test_one_that_was_revoked(site: Site) -> None:
    identity = enrol(site)
    with site.client() as own:
        own.admin.revoke(identity.identity)
    with call(site, identity, source=new_address()) as peer:
        peer.send(hello(identity.identity))
        assert peer.goodbye().code == "revoked"
        is_logged(site, peer.local_address, "your certificate was revoked")


@pytest.mark.usefixtures("nobody_else")
def test_one_that_the_coordinator_never_gave_out(site: Site) -> None:
    """The authority's key alone, without an identity in the journal (a backup that was put back)."""
    now = Authority.open(site.state / "dcoord" / "trust", site.name)
    with call(site, signed(now, site, "unknown", now.authorities), source=new_address()) as peer:
        peer.send(hello("unknown"))
        assert peer.goodbye().code == "not_allowed"
        is_logged(site, peer.local_address, "does not know your certificate")


@pytest.mark.parametrize("role", ["submit", "read", "admin"])
@pytest.mark.usefixtures("nobody_else")
def test_a_role_that_does_not_work(site: Site, role: str) -> None:
    identity = enrol(site, role, name=role)
    with call(site, identity, source=new_address()) as peer:
        peer.send(hello(identity.identity))
        assert peer.goodbye().code == "not_allowed"
        is_logged(site, peer.local_address, f"the role {role} may not send HelloWorker")


@pytest.mark.usefixtures("nobody_else")
def test_one_with_the_name_of_another(site: Site) -> None:
    mine, others = enrol(site, name="mine"), enrol(site, name="others")
    with call(site, mine, source=new_address()) as peer:
        peer.send(hello(others.identity))
        assert peer.goodbye().code == "not_allowed"
        is_logged(site, peer.local_address, f"your certificate is for {mine.identity}")


@pytest.mark.usefixtures("nobody_else")
def test_nobody_becomes_another_by_enrolling_under_its_id(site: Site) -> None:
    known = enrol(site, worker="w7", name="known")
    again = enrol(site, worker="w7", name="eve")
    assert known.identity == "w7"
    assert again.identity not in ("w7", "")


@pytest.mark.parametrize("role", ["submit", "admin", "read", "web", "enrol", ""])
def test_a_token_gives_its_own_role_alone(site: Site, role: str) -> None:
    secret = parse_token(site.token("worker")).secret
    before = journal(site)["identities"]
    with guest(site) as peer:
        peer.send(Enrol(1, role, new_key().csr, secret, "", "eve", 1))
        assert peer.expect(Refused).code in ("bad_token", "bad_request")
    assert journal(site)["identities"] == before


def test_a_request_cannot_name_its_holder(site: Site) -> None:
    """What a request says of itself is not used; what it is for is decided by the coordinator."""
    secret = parse_token(site.token("worker")).secret
    key = ec.generate_private_key(ec.SECP256R1())
    wish = x509.SubjectAlternativeName([*uri(site.id, "admin", "root"), x509.DNSName(tls.server_name(site.id))])
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.USER_ID, "root")]))
        .add_extension(wish, critical=True)
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .sign(key, hashes.SHA256())
    )
    with guest(site) as peer:
        peer.send(Enrol(1, "worker", request.public_bytes(Encoding.DER), secret, "w9", "eve", 1))
        enrolled = peer.expect(Enrolled)
    certificate = x509.load_der_x509_certificate(enrolled.certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == uri(site.id, "worker", "w9")
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert "root" not in certificate.subject.rfc4514_string()


# ---- one that was let in, and wants more ----


@pytest.fixture
def two(site: Site) -> Iterator[Two]:
    with contextlib.ExitStack() as stack:
        yield Two(site, stack)


@pytest.mark.parametrize("reason", ["done", "exit", "cancelled", "worker_lost"])
@pytest.mark.parametrize("lease", ["its own", "an earlier one", "a later one", "none"])
def test_it_cannot_report_anothers_attempt(two: Two, reason: str, lease: str) -> None:
    number = {"its own": two.assign.lease, "an earlier one": 5, "a later one": two.assign.lease + 9, "none": 0}[lease]
    before = journal(two.site)
    reasons = [] if reason == "done" else [reason]
    two.peer.send(
        Reports(1, two.job, [number], [0], reasons=reasons, ended=[time.time()], results=[b"forged"], attempts=[2])
    )
    assert two.peer.expect(Ack).serials == [1], "it is told that this needs not be said again"
    two.peer.heard_before_heartbeat()
    assert journal(two.site) == before
    two.end_well()


def test_it_cannot_claim_anothers_lease(two: Two) -> None:
    before = journal(two.site)
    lease = two.assign.lease
    two.peer.send(Inventory(two.job, [lease, 7], [0, 0], [1, 1], [time.time(), None], True))
    assert two.peer.expect(Stop).leases == [lease, 7]
    two.peer.send(Returned([lease]), Started([lease], [time.time()]))
    two.peer.heard_before_heartbeat()
    assert journal(two.site) == before
    two.end_well()


def asks(two: Two) -> list[AskGrant]:
    text, lease = task_text(two.job, 0), two.assign.lease
    digest = hashlib.sha256(LARGE).hexdigest()
    bundle = "0" * 64
    paths = [
        *(("GET", f"/{noun}") for noun in (f"tasks/{text}", f"results/{text}", f"blobs/{digest}", f"bundles/{bundle}")),
        ("PUT", f"/blobs/{digest}"), ("SESSION", ""), ("GET", "/api/v1/jobs"), ("POST", "/api/v1/jobs"), ("GET", "/"),
        ("GET", f"/tasks/{text}/../../results/{text}"), ("HEAD", f"/tasks/{text}"), ("get", f"/tasks/{text}"),
    ]  # fmt: skip
    return [AskGrant(10 + place, verb, path, lease) for place, (verb, path) in enumerate(paths)]


def test_it_gets_no_grant_for_anothers_task(two: Two) -> None:
    questions = asks(two)
    for question in [*questions, *(AskGrant(one.request + 100, one.verb, one.path) for one in questions)]:
        two.peer.send(question)
        assert two.peer.expect(Refused).code == "not_allowed", question
    two.peer.heard_before_heartbeat()
    two.worker.send(questions[0])
    assert two.worker.expect(Granted).grant
    # With a lease of its own it is the same for what that does not need.
    two.worker.send(AskGrant(3, "GET", f"/results/{task_text(two.job, 0)}", two.assign.lease))
    assert two.worker.expect(Refused).code == "not_allowed"
    two.end_well()


def test_its_certificate_opens_no_data(two: Two) -> None:
    digest, text = hashlib.sha256(LARGE).hexdigest(), task_text(two.job, 0)
    for path in (f"/tasks/{text}", f"/results/{text}", f"/blobs/{digest}", "/api/v1/jobs", "/api/v1/workers", "/"):
        for identity in (two.rogue, two.honest):
            status, body = fetch(two.site, path, identity)
            assert status == 403, path
            assert LARGE[:9] not in body
        status, body = fetch(two.site, path)
        assert status == 401, path
    assert fetch(two.site, f"/blobs/{digest}", two.rogue, method="PUT", body=LARGE)[0] == 403
    # The other's grant is of no use to who has another certificate, which does not come without its key.
    (grant,) = two.assign.grants
    assert fetch(two.site, f"/tasks/{text}", two.rogue, grant=grant)[0] in (401, 403)
    assert fetch(two.site, f"/tasks/{text}", two.honest, grant=grant) == (200, LARGE)
    two.end_well()


COMMANDS: list[Message] = [
    Submit(1, "", "shell", {"argv": ["id"]}, count=1),
    Items(1, [b"x"], True),
    Cancel(1, 1),
    Retry(1, 1),
    Query(1, "jobs"),
    Query(1, "task", job=1),
    Query(1, "tokens"),
    Query(1, "workers"),
    Watch(1, [1]),
    Results(1, 1, 0, False),
    CreateToken(1, "admin", 60.0),
    RevokeToken(1, "x"),
    Admit(1, "rogue", "babab-babab-babab"),
    Revoke(1, "honest"),
    OpenEnrolment(1, 60.0),
    RotateAuthority(1, 0.0),
]


@pytest.mark.parametrize("message", COMMANDS, ids=lambda message: type(message).__name__)
def test_it_commands_nothing(two: Two, message: Message) -> None:
    before, authority = journal(two.site), authorities(two.site.control)
    two.peer.send(message)
    assert two.peer.expect(Refused).code == "not_allowed"
    two.peer.heard_before_heartbeat()
    assert journal(two.site) == before
    assert authorities(two.site.control) == authority
    with guest(two.site) as nobody:
        nobody.send(message)
        assert nobody.expect(Refused).code == "not_allowed"
    two.end_well()


@pytest.mark.parametrize(
    "greeting",
    [
        HelloClient(PROTOCOL_VERSION, "x"),
        HelloGuest(PROTOCOL_VERSION, "x"),
        HelloWeb(PROTOCOL_VERSION, 1, "http://127.0.0.1:1", "https://127.0.0.1:1"),
    ],
    ids=lambda message: type(message).__name__,
)
def test_it_cannot_come_as_something_else(site: Site, greeting: Message) -> None:
    rogue = enrol(site)
    before = site.endpoint()
    with call(site, rogue) as peer:
        peer.send(greeting)
        assert peer.goodbye().code in ("not_allowed", "protocol")
    with joined(site, rogue) as peer:
        peer.send(greeting)
        assert peer.goodbye().code == "protocol"
    assert site.endpoint() == before, "nobody moves the data port"


def test_the_others_of_its_cluster_are_no_less_careful_with_clients(site: Site) -> None:
    """The role read, and a submitter with others' jobs, by hand and without the client's manners."""
    reader, eve = enrol(site, "read"), enrol(site, "submit", name="eve")
    job = site.submit(["true"])
    before = journal(site)
    with client(site, reader) as peer:
        for message in COMMANDS:
            if isinstance(message, Query | Watch | Results):
                continue
            peer.send(message)
            assert peer.expect(Refused).code == "not_allowed", message
    with client(site, eve) as peer:
        for message in (
            Cancel(1, job),
            Retry(1, job),
            Results(1, job, 0, False),
            Watch(1, [job]),
            Query(1, "job", job=job),
        ):
            peer.send(message)
            assert peer.expect(Refused).code in ("not_allowed", "unknown_job"), message
        for user in ("", "root", "admin"):
            peer.send(Query(2, "jobs", user=user))
            assert peer.expect(Reply).documents == []
    assert journal(site) == before
