"""Tokens as somebody has them who should not: recorded, guessed, old, damaged; and TLS that is talked down or resumed."""

import contextlib
import os
import secrets
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.cluster import wait_until
from districomp import keys, tls, wire
from districomp.errors import TokenError
from districomp.messages import (
    PROTOCOL_VERSION,
    Authorities,
    Enrol,
    Enrolled,
    Goodbye,
    HelloClient,
    HelloGuest,
    HelloWorker,
    Message,
    Refused,
    Welcome,
)
from districomp.tokens import SECRET_BYTES, parse_token
from tests.integration.trustliars import Relay
from tests.integration.trustpeers import (
    LIMIT_S,
    Site,
    TlsPeer,
    advertised,
    authorities,
    call,
    context_of,
    enrol,
    guest,
    hello,
    join_by,
    joined,
    journal,
    new_address,
)

GUESSES = 1000


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("tokens"), lease="60s") as started:
        started.start_coordinator()
        yield started


# ---- replay ----


def test_recorded_bytes_are_of_no_use(site: Site) -> None:
    token = site.token("worker", uses=5)
    with Relay(site.control) as relay:
        identity = join_by(relay.where, token, name="heard")
        recorded = [bytes(data) for data in relay.up]
    assert identity.identity
    assert all(parse_token(token).secret not in data for data in recorded)
    before = journal(site)
    for data in recorded:
        with socket.create_connection(site.control, LIMIT_S) as peer:
            peer.sendall(data)
            answer = everything(peer)
        # A ServerHello of its own, and then nothing that the recorded rest could answer.
        assert b"districomp" not in answer
    assert journal(site)["identities"] == before["identities"]
    assert journal(site)["tokens"] == before["tokens"]


def everything(peer: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionError):
        while part := peer.recv(65536):
            data += part
    return data


def test_the_messages_of_another_connection_are_of_no_use_without_their_key(site: Site) -> None:
    """Even whoever sees what is inside: a request is for its key, and gives a certificate for that alone."""
    secret = parse_token(site.token("worker", uses=1)).secret
    key = keys.new_key()
    request = Enrol(1, "worker", key.csr, secret, "once", "once", 1)
    with guest(site) as peer:
        peer.send(request)
        certificate = peer.expect(Enrolled).certificate
        # Once a connection; and the token was for one.
        with contextlib.suppress(OSError):
            peer.send(request)
        assert not [one for one in peer.rest() if isinstance(one, Enrolled)]
    with guest(site) as peer:
        peer.send(request)
        assert peer.expect(Refused).code == "token_used_up"
    context = tls.unverified_context()
    with pytest.raises(Exception, match="do not belong together"):
        tls.load_chain(context, tls.to_pem([certificate]), keys.new_key().key)


def test_a_request_for_anothers_key_is_refused(site: Site) -> None:
    """The signature under a request proves that whoever asks has the key."""
    csr = bytearray(keys.new_key().csr)
    csr[-1] ^= 1
    before = journal(site)["tokens"]
    for damaged in (bytes(csr), b"", b"\x30\x03\x02\x01\x00", os.urandom(300), bytes(csr) * 60):
        with guest(site) as peer:
            peer.send(Enrol(1, "worker", damaged, secrets.token_bytes(SECRET_BYTES), "w", "eve", 1))
            assert peer.expect(Refused).code in ("bad_request", "bad_token")
    assert journal(site)["tokens"] == before


# ---- TLS talked down, and resumed ----


@pytest.mark.parametrize("where", ["control", "data"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.MINIMUM_SUPPORTED])
def test_nothing_below_tls_1_3(site: Site, where: str, version: ssl.TLSVersion) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    if version is not ssl.TLSVersion.MINIMUM_SUPPORTED:
        context.minimum_version = version
    with pytest.raises((ssl.SSLError, ConnectionError)):
        TlsPeer(getattr(site, where), context, tls.server_name(site.id))


@pytest.mark.parametrize(
    "message",
    [HelloWorker(PROTOCOL_VERSION, "", "w1", "w1", 1, hello("w").machine), HelloClient(PROTOCOL_VERSION, "x"),
     HelloGuest(PROTOCOL_VERSION, "x")],
    ids=lambda message: type(message).__name__,
)  # fmt: skip
def test_in_plain_there_is_nothing_but_a_goodbye(site: Site, message: Message) -> None:
    with socket.create_connection(site.control, LIMIT_S) as peer:
        peer.sendall(wire.encode(message))
        decoder = wire.Decoder()
        (said,) = decoder.receive(everything(peer))
        assert isinstance(said, Goodbye)
        assert said.code == "insecure"
    with socket.create_connection(site.data, LIMIT_S) as peer:
        peer.sendall(b"GET /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert not everything(peer).startswith(b"HTTP/1.1 200")


def test_no_session_is_ever_resumed(site: Site) -> None:
    """It would outlive its certificate's end. Whoever tries is asked for everything anew, so a revoked one stays out."""
    identity = enrol(site, name="resumes")
    context = context_of(identity)
    with TlsPeer(site.control, context, tls.server_name(site.id)) as peer:
        peer.send(hello(identity.identity))
        peer.expect(Welcome)
        session = peer.tls.session
        assert session is not None
        assert not session.has_ticket, "a ticket was given"
    with site.client() as own:
        own.admin.revoke(identity.identity)
    for where in (site.control, site.data):
        with contextlib.closing(TlsPeer(where, context, tls.server_name(site.id), session=session)) as again:
            assert not again.tls.session_reused
            if where == site.control:
                again.send(hello(identity.identity))
                assert again.goodbye().code == "revoked"


# ---- used up, expired, guessed ----


def refusal(site: Site, secret: bytes, *, source: str = "", role: str = "worker") -> str:
    with guest(site, source=source or new_address()) as peer:
        peer.send(Enrol(1, role, keys.new_key().csr, secret, "", "eve", 1))
        return peer.expect(Refused).code


def test_a_token_is_good_so_often_and_so_long(site: Site) -> None:
    twice = site.token("worker", uses=2)
    for _ in range(2):
        enrol(site, token=twice)
    assert refusal(site, parse_token(twice).secret) == "token_used_up"
    lasts_s = 5.0
    soon, made = site.token("worker", expires_s=lasts_s), time.monotonic()
    enrol(site, token=soon)
    secret = parse_token(soon).secret
    time.sleep(max(0.0, made + lasts_s - time.monotonic()))
    assert refusal(site, secret) == "token_expired"
    site.kill_coordinator()
    site.start_coordinator()
    assert refusal(site, parse_token(twice).secret) == "token_used_up"
    assert refusal(site, secret) == "token_expired"


def test_uses_are_counted_right_when_many_come_at_once(site: Site) -> None:
    secret = parse_token(site.token("worker", uses=3)).secret
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(guest(site, source=new_address())) for _ in range(12)]
        for number, peer in enumerate(peers):
            peer.send(Enrol(1, "worker", keys.new_key().csr, secret, f"many{number}", "many", 1))
        answers = [peer.expect(Enrolled | Refused) for peer in peers]  # type: ignore[arg-type]
    assert sum(isinstance(answer, Enrolled) for answer in answers) == 3


def test_a_thousand_guesses_are_not_even_looked_at_and_keep_nobody_else_out(site: Site) -> None:
    """From one address; the right one from another works all the while, and from the first when a minute is over."""
    right = parse_token(site.token("worker", uses=10)).secret
    csr = keys.new_key().csr
    codes: dict[str, int] = {}
    source = new_address()
    begun = time.monotonic()
    slowest_s = 0.0
    for number in range(GUESSES):
        with guest_quickly(site, source) as peer:
            peer.send(Enrol(1, "worker", csr, secrets.token_bytes(SECRET_BYTES), "", "eve", 1))
            code = peer.expect(Refused).code
        codes[code] = codes.get(code, 0) + 1
        if number % 100 == 50:
            before = time.monotonic()
            with guest_quickly(site, new_address()) as peer:
                peer.send(Enrol(1, "worker", csr, right, f"right{number}", "right", 1))
                peer.expect(Enrolled)
            slowest_s = max(slowest_s, time.monotonic() - before)
    print(
        f"{GUESSES} guesses in {time.monotonic() - begun:.1f} s: {codes}; the right one took {slowest_s * 1000:.0f} ms at most"
    )
    assert codes == {"bad_token": 10, "too_many": GUESSES - 10}
    with guest_quickly(site, source) as peer:
        peer.send(Enrol(1, "worker", csr, right, "", "eve", 1))
        assert peer.expect(Refused).code == "too_many", "the right secret too, or guessing would go on"
    assert "too_many" not in refusal(site, secrets.token_bytes(SECRET_BYTES), source=new_address())


_KNOWN: dict[str, ssl.SSLContext] = {}


def guest_quickly(site: Site, source: str) -> TlsPeer:
    """As `guest`, with one context for all."""
    if site.id not in _KNOWN:
        _KNOWN[site.id] = tls.client_context(authorities(site.control))
    peer = TlsPeer(site.control, _KNOWN[site.id], tls.server_name(site.id), source=source)
    peer.send(HelloGuest(PROTOCOL_VERSION, "test"))
    peer.expect(Authorities)
    return peer


# ---- what is no token ----


def test_random_bytes_are_no_token(site: Site, tmp_path: Path) -> None:
    """As the file of a worker that runs: it says what is wrong, repeats nothing of it, asks nobody, and takes the right one."""
    token = site.token("worker")
    file = tmp_path / "token"
    contents = [b"", b"\0" * 1000, b"\xff\xfe" + os.urandom(200), os.urandom(1 << 20), token.encode()[:-1], b"-" * 100,
                token.replace("dcw1", "dcw2").encode(), token[:-4].encode() + b"!!!!", f"{token} {token}".encode()]  # fmt: skip
    file.write_bytes(contents[0])
    with advertised(site.id, site.name, site.control):
        worker = site.far_worker("blind", settings=f"token_file: {file}\n")
        for content in contents:
            said = worker.log_text().count(str(file))
            file.write_bytes(content)
            os.utime(file, ns=(time.time_ns(), time.time_ns()))
            wait_until(lambda said=said: worker.log_text().count(str(file)) > said or said > 0, "a word")  # type: ignore[misc]
            assert worker.returncode is None
        assert "is no" in worker.log_text() or "not a join token" in worker.log_text()
        assert site.worker_state("blind") == ""
        assert token.split("-")[2] not in worker.log_text()
        file.write_text(token.upper() + "\n")
        wait_until(lambda: site.worker_state("blind") == "idle", "the right one", LIMIT_S)
        assert "Traceback" not in worker.log_text()
    site.end_worker("blind")


def test_a_token_whose_bits_are_changed_is_none_or_is_refused(site: Site) -> None:
    """Each character in turn: damaged, of another cluster, or a wrong secret; never let in."""
    token = site.token("worker")
    before = journal(site)["identities"]
    for place in range(len(token)):
        changed = token[:place] + ("a" if token[place] != "a" else "b") + token[place + 1 :]
        with contextlib.suppress(TokenError):
            parsed = parse_token(changed)
            if parsed.role != "worker" or parsed.cluster != site.id:
                continue
            assert refusal(site, parsed.secret) == "bad_token"
    assert journal(site)["identities"] == before


def test_who_is_in_is_not_asked_for_a_token_again(site: Site) -> None:
    """The rate limit is for strangers: an address full of them does not cut its good neighbours off."""
    identity = enrol(site, name="neighbour")
    source = new_address()
    for _ in range(15):
        refusal(site, secrets.token_bytes(SECRET_BYTES), source=source)
    with call(site, identity, source=source) as peer:
        peer.send(hello(identity.identity))
        peer.expect(Welcome)
    with joined(site, identity) as peer:
        peer.heard_before_heartbeat()
