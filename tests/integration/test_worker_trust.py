"""Whom a worker believes, how it becomes somebody, and what it does when that ends: real daemons, real TLS, real liars."""

import asyncio
import os
import re
import stat
import time

from msgspec.structs import replace

from districomp import filelock
from districomp.messages import Authorities, Renew
from districomp.tokens import format_token
from tests.integration.worker_trustlab import QUIET_S, Rogue, TrustLab, in_trust_lab, rogue
from tests.integration.workerlab import command_line, is_alive
from tests.priority import timed


def is_untouched(liar: Rogue) -> bool:
    """Whether it heard nothing but greetings of guests, which hold no secret."""
    return not liar.hellos and not liar.enrols


# ---- becoming somebody ----


@in_trust_lab
async def test_a_token_file_is_enough_and_the_cluster_is_found_by_mdns(lab: TrustLab) -> None:
    async with lab.advertised():
        worker = await lab.join(coordinator=False, config=f"token_file: {lab.token_file()}\n")
    (enrol,) = lab.enrols
    assert (enrol.role, enrol.secret, enrol.slots) == ("worker", lab.token.secret, 2)
    assert len(lab.serials) == 1, "it came with its certificate"
    kept = lab.kept()
    assert (kept.source, kept.clusters, kept.identity) == ("token", [lab.cluster], lab.hellos[0].worker)
    assert kept.addresses == [("127.0.0.1", lab.port)]
    folder = lab.identity_folder.path
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {
        "identity.json": 0o600,
        "identity.pem": 0o600,
        "authorities.pem": 0o600,
    }
    assert (await lab.run(["echo", "for the cluster"]))[0].result == b"for the cluster\n"
    worker.terminate()
    assert await worker.exit_code() == 0
    await lab.join()
    assert len(lab.enrols) == 1, "the second time it is known"
    assert lab.serials[0] == lab.serials[1]


@in_trust_lab
async def test_a_worker_that_knows_nobody_contacts_nobody_until_a_token_comes(lab: TrustLab) -> None:
    file = lab.folder / "token"
    async with lab.advertised():
        worker = await lab.start(coordinator=False, config=f"token_file: {file}\n")
        await lab.says(worker, "contacts nobody; run: dctl join TOKEN")
        await asyncio.sleep(QUIET_S)
        assert not lab.connections
        assert worker.log_text().count("dctl join TOKEN") == 1
        with timed() as took:
            lab.token_file()
            await lab.until(lambda: lab.connection is not None)
        assert took.alone_s < 2


@in_trust_lab
async def test_a_name_pins_nobody(lab: TrustLab) -> None:
    async with lab.advertised(name="wanted"):
        worker = await lab.start(coordinator=False, config="cluster: wanted\n")
        await lab.says(worker, "dctl join TOKEN")
        await asyncio.sleep(QUIET_S)
    assert not lab.connections


@in_trust_lab
async def test_an_address_alone_is_no_trust_either(lab: TrustLab) -> None:
    worker = await lab.start()
    await lab.says(worker, "dctl join TOKEN")
    await asyncio.sleep(QUIET_S)
    assert not lab.connections


@in_trust_lab
async def test_an_identity_that_is_put_there_is_used_within_half_a_second(lab: TrustLab) -> None:
    worker = await lab.start()
    await lab.says(worker, "dctl join TOKEN")
    identity = lab.new_identity()
    with timed() as took:
        lab.give(identity)
        await lab.until(lambda: lab.connection is not None)
    assert took.alone_s < 1
    assert lab.hellos[0].worker == identity.identity


@in_trust_lab
async def test_on_its_own_machine_nothing_is_typed(lab: TrustLab) -> None:
    worker = await lab.start()
    await lab.says(worker, "dctl join TOKEN")
    with timed() as took:
        await lab.listen_locally()
        await lab.until(lambda: lab.connection is not None)
    assert took.alone_s < 2
    (enrol,) = lab.enrols
    assert enrol.secret == b""
    assert lab.kept().source == "local"


@in_trust_lab
async def test_a_socket_of_another_cluster_than_the_pinned_one_is_not_believed(lab: TrustLab) -> None:
    await lab.listen_locally()
    async with rogue(lab) as other:
        worker = await lab.start(config=f"cluster: {other.authority.cluster}\n")
        await lab.says(worker, "another cluster")
        await asyncio.sleep(QUIET_S)
    assert not lab.enrols


@in_trust_lab
async def test_a_pinned_worker_waits_for_a_person_and_shows_the_same_words(lab: TrustLab) -> None:
    lab.pending = {}
    async with lab.advertised():
        worker = await lab.start(coordinator=False, config=f"cluster: {lab.cluster}\n")
        await lab.until(lambda: lab.pending)
        ((_, words),) = lab.pending.values()
        await lab.says(worker, words)
        assert re.fullmatch(r"[a-z]{5}-[a-z]{5}-[a-z]{5}", words)
        assert "dctl worker approve" in worker.log_text()
        await asyncio.sleep(QUIET_S)
        assert not lab.hellos
        assert lab.enrols[0].secret == b""
        lab.approve()
        await lab.until(lambda: lab.connection is not None)
    assert lab.kept().source == "person"


@in_trust_lab
async def test_a_token_ends_the_waiting_for_a_person(lab: TrustLab) -> None:
    lab.pending = {}
    worker = await lab.start(config=f"cluster: {lab.cluster}\ntoken_file: {lab.folder / 'token'}\n")
    await lab.says(worker, "waits to be let in")
    lab.pending = None
    lab.token_file()
    await lab.until(lambda: lab.connection is not None)
    assert lab.kept().source == "token"


@in_trust_lab
async def test_a_token_that_is_refused_is_named_and_another_is_tried_at_once(lab: TrustLab) -> None:
    lab.refuse = ("token_used_up", "this token has been used as often as it may be")
    file = lab.token_file()
    worker = await lab.start(config=f"token_file: {file}\n")
    await lab.says(worker, f"the join token in {file} is refused")
    assert "used as often as it may be" in worker.log_text()
    await asyncio.sleep(QUIET_S)
    assert len(lab.enrols) == 1, "it asks again slowly"
    lab.refuse = None
    file.write_text(format_token(lab.token._replace(secret=b"x" * 16)))
    await lab.until(lambda: lab.connection is not None)
    assert lab.enrols[-1].secret == b"x" * 16


@in_trust_lab
async def test_what_is_wrong_with_a_token_file_is_said_and_nothing_is_sent(lab: TrustLab) -> None:
    file = lab.folder / "token"
    for text, words in (
        ("not a token", "not a join token"),
        (format_token(lab.token._replace(role="admin")), "is for role admin"),
        (format_token(lab.token)[:-3], "damaged"),
    ):
        file.write_text(text)
        worker = await lab.start(config=f"token_file: {file}\n")
        await lab.says(worker, words)
        worker.terminate()
        assert await worker.exit_code() == 0
    assert not lab.connections


# ---- liars ----


@in_trust_lab
async def test_a_liar_with_the_right_id_in_its_advertisement_gets_no_secret(lab: TrustLab) -> None:
    """It shows its own authority: the hash is not the token's."""
    async with rogue(lab) as liar, lab.advertised(liar.port):
        worker = await lab.start(coordinator=False, config=f"token_file: {lab.token_file()}\n")
        await lab.says(worker, f"127.0.0.1:{liar.port}: another cluster")
        await asyncio.sleep(QUIET_S)
        assert liar.guests
        assert is_untouched(liar)


@in_trust_lab
async def test_a_liar_that_shows_the_real_authority_gets_no_secret(lab: TrustLab) -> None:
    """A certificate is no secret, its key is: the second, verified connection does not come about."""
    async with rogue(lab, claims=lab.authority.authorities) as liar, lab.advertised(liar.port):
        worker = await lab.start(coordinator=False, config=f"token_file: {lab.token_file()}\n")
        await lab.says(worker, f"127.0.0.1:{liar.port}: shows a certificate that is not this cluster's")
        await asyncio.sleep(QUIET_S)
        assert is_untouched(liar)


@in_trust_lab
async def test_a_pinned_worker_shows_no_words_for_a_liar(lab: TrustLab) -> None:
    async with rogue(lab, claims=lab.authority.authorities) as liar, lab.advertised(liar.port):
        worker = await lab.start(coordinator=False, config=f"cluster: {lab.cluster}\n")
        await lab.says(worker, "not let in by a person")
        assert is_untouched(liar)
        assert "its words are" not in worker.log_text()


@in_trust_lab
async def test_beside_a_liar_the_right_one_is_found(lab: TrustLab) -> None:
    async with (
        rogue(lab, claims=lab.authority.authorities) as liar,
        lab.advertised(liar.port),
        lab.advertised(),
    ):
        await lab.join(coordinator=False, config=f"token_file: {lab.token_file()}\n")
        assert is_untouched(liar)


@in_trust_lab
async def test_an_enrolled_worker_says_nothing_to_a_liar(lab: TrustLab) -> None:
    lab.give()
    async with rogue(lab) as liar, lab.advertised(liar.port):
        worker = await lab.start(coordinator=False)
        await lab.says(worker, f"not connecting: 127.0.0.1:{liar.port}: shows a certificate")
        await asyncio.sleep(QUIET_S)
        assert is_untouched(liar)
        async with lab.advertised():
            await lab.until(lambda: lab.connection is not None)


@in_trust_lab
async def test_a_worker_of_the_cluster_cannot_play_its_coordinator(lab: TrustLab) -> None:
    """Its certificate is of the right authority, but of another name, and no server's."""
    from districomp import tls

    thief = lab.new_identity("fedcba9876543210")
    context = tls.server_context(thief.certificate, thief.key, thief.authorities)
    heard: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(1000))
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    lab.give()
    async with lab.advertised(port):
        worker = await lab.start(coordinator=False)
        await lab.says(worker, f"not connecting: 127.0.0.1:{port}: shows a certificate")
    server.close()
    assert not heard


@in_trust_lab
async def test_nothing_is_ever_said_in_plain(lab: TrustLab) -> None:
    heard: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(1000))
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    lab.give()
    await lab.start("--coordinator", f"127.0.0.1:{port}", coordinator=False)
    await lab.until(lambda: len(heard) > 2)
    server.close()
    assert all(data[:1] == b"\x16" for data in heard), "a TLS ClientHello and nothing else"
    assert not any(b"tester" in data for data in heard)


# ---- living with a certificate ----


@in_trust_lab
async def test_a_certificate_is_renewed_on_the_live_connection(lab: TrustLab) -> None:
    before = lab.give()
    lab.renew_s = 0.6
    worker = await lab.join()
    await lab.until(lambda: len(lab.messages(Renew)) >= 2)
    lab.renew_s = 0.0
    assert len(lab.hellos) == 1, "the connection went on"
    csrs = {message.csr for message in lab.messages(Renew)}
    assert len(csrs) == len(lab.messages(Renew)), "each time for a new key"
    await lab.until(lambda: lab.kept().key != before.key)
    await lab.says(worker, "the certificate is renewed")
    count = len(lab.serials)
    await lab.hang_up()
    await lab.listen()
    await lab.until(lambda: len(lab.serials) > count)
    assert lab.serials[-1] != lab.serials[0]


@in_trust_lab
async def test_a_rotation_interrupts_nothing(lab: TrustLab) -> None:
    first = lab.give()
    worker = await lab.join(slots=1)
    (lease,) = lab.assign(lab.define(["sh", "-c", "sleep 2; echo through it all"]), 1)
    await lab.started(lease)
    lab.rotate()
    lab.send(Authorities(lab.cluster, "lab", lab.authority.authorities))
    await lab.until(lambda: lab.messages(Renew))
    await lab.until(lambda: lab.kept().cluster == lab.cluster != first.cluster)
    assert lab.kept().clusters == [lab.cluster, first.cluster]
    assert len(lab.hellos) == 1
    await lab.hang_up()
    await lab.listen()
    await lab.until(lambda: len(lab.hellos) == 2)
    (row,) = await lab.ended([lease])
    assert (row.reason, row.result) == ("done", b"through it all\n"), "another id is not another cluster"
    worker.terminate()
    assert await worker.exit_code() == 0


@in_trust_lab
async def test_a_second_rotation_before_the_first_is_on_the_disk_is_followed(lab: TrustLab) -> None:
    lab.give()
    await lab.join()
    job = lab.define(["true"])
    folder = os.open(lab.identity_folder.path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        filelock.lock(folder, wait=True)
        for rotations in (1, 2):
            lab.rotate()
            lab.send(Authorities(lab.cluster, "lab", lab.authority.authorities))
            await lab.until(lambda count=rotations: len(lab.messages(Renew)) == count)  # type: ignore[misc]
        # What was sent before a task has come when the task starts.
        (lease,) = lab.assign(job, 1)
        await lab.ended([lease])
    finally:
        os.close(folder)
    await lab.until(lambda: lab.kept().cluster == lab.cluster)
    assert len(lab.hellos) == 1


@in_trust_lab
async def test_a_rotation_while_the_worker_was_away_is_made_up_for(lab: TrustLab) -> None:
    first = lab.give()
    lab.rotate()
    async with lab.advertised(cluster=first.cluster):
        await lab.join(coordinator=False, config=f"cluster: {first.cluster}\n")
        await lab.until(lambda: lab.kept().clusters == [lab.cluster, first.cluster])
    assert lab.kept().pin == first.cluster, "what its image says goes on to be right"


@in_trust_lab
async def test_who_was_revoked_says_so_and_comes_back_as_somebody_else_at_once(lab: TrustLab) -> None:
    lab.give()
    worker = await lab.join()
    assert lab.connection is not None
    lab.greet = False
    lab.connection.close("revoked", "your certificate was revoked")
    await lab.says(worker, "your certificate was revoked")
    await lab.says(worker, "dctl join TOKEN")
    count = len(lab.connections)
    await asyncio.sleep(QUIET_S)
    assert len(lab.connections) == count, "there is no hurry"
    lab.greet = True
    with timed() as took:
        lab.give(lab.new_identity("fedcba9876543210"))
        await lab.until(lambda: lab.connection is not None)
    assert took.alone_s < 2
    assert lab.hellos[-1].worker == "fedcba9876543210"


@in_trust_lab
async def test_who_was_revoked_does_not_ask_by_itself_to_be_let_in_again(lab: TrustLab) -> None:
    """Neither by the token that it had, nor by the socket, nor by a person."""
    file = lab.token_file()
    path = await lab.listen_locally()
    lab.give()
    worker = await lab.join(config=f"token_file: {file}\ncluster: {lab.cluster}\n")
    assert lab.connection is not None
    lab.revoked = True
    lab.connection.close("revoked", "your certificate was revoked")
    await lab.says(worker, "your certificate was revoked")
    count = len(lab.hellos)
    os.utime(path)  # something changed: it looks again whether there is a way
    await lab.until(lambda: len(lab.hellos) > count)
    assert not lab.enrols
    file.write_text(format_token(lab.token._replace(secret=b"y" * 16)))
    await lab.until(lambda: lab.enrols)
    assert lab.enrols[0].secret == b"y" * 16


@in_trust_lab
async def test_another_identity_takes_the_place_of_the_one_in_use(lab: TrustLab) -> None:
    lab.give()
    await lab.join()
    lab.give(lab.new_identity("fedcba9876543210"))
    await lab.until(lambda: lab.hellos[-1].worker == "fedcba9876543210")


@in_trust_lab
async def test_a_certificate_that_has_ended_is_had_anew_by_the_socket(lab: TrustLab) -> None:
    from dcoord.authority import Authority

    early = Authority.open(lab.folder / "trust", "lab", lifetime_s=1.0, clock=lambda: time.time() - 100)
    late, lab.authority = lab.authority, early
    lab.give()
    lab.authority = late
    worker = await lab.start()
    await lab.says(worker, "its certificate seems not to be accepted")
    assert not lab.hellos
    await lab.listen_locally()
    await lab.until(lambda: lab.connection is not None)
    assert len(lab.enrols) == 1


@in_trust_lab
async def test_a_local_worker_follows_its_machine_into_a_new_cluster(lab: TrustLab) -> None:
    """The coordinator's folder was removed: another authority, the same socket."""
    async with rogue(lab) as before:
        old = before.new_identity()
    lab.give(replace(old, source="local"))
    await lab.listen_locally()
    async with lab.advertised():
        await lab.join(coordinator=False)
    assert lab.kept().cluster == lab.cluster


@in_trust_lab
async def test_identities_that_are_not_to_be_used(lab: TrustLab) -> None:
    lab.give(lab.new_identity(role="submit"))
    worker = await lab.start()
    await lab.says(worker, "is of role submit: not using it")
    worker.terminate()
    assert await worker.exit_code() == 0
    lab.give()
    async with rogue(lab) as other:
        worker = await lab.start(config=f"cluster: {other.authority.cluster}\n")
        await lab.says(worker, f"is of cluster {lab.cluster}, but")
    worker.terminate()
    assert await worker.exit_code() == 0
    (lab.identity_folder.path / "identity.json").write_text('{"cluster": "x"}')
    worker = await lab.start()
    assert await worker.exit_code() == 78
    assert "is damaged; remove the folder" in worker.log_text()
    assert not lab.hellos


@in_trust_lab
async def test_no_secret_gets_into_a_log_or_an_argument(lab: TrustLab) -> None:
    lab.refuse = ("bad_token", "no")
    file = lab.token_file()
    worker = await lab.start(config=f"token_file: {file}\n")
    await lab.says(worker, "is refused")
    file.write_text("dcw1-" + format_token(lab.token)[5:-1])
    await lab.says(worker, "damaged")
    lab.refuse = None
    lab.token_file()
    await lab.until(lambda: lab.connection is not None)
    await lab.says(worker, "joined")
    text = worker.log_text() + command_line(worker.pid)
    secret = format_token(lab.token).rpartition("-")[2]
    for fragment in (secret, secret[:10], lab.token.secret.hex(), "PRIVATE KEY", lab.kept().key.decode()[30:60]):
        assert fragment not in text
    assert is_alive(worker.pid)
