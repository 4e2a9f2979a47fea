"""Who believes whom: real handshakes over loopback, by blocking sockets and by asyncio, with one thing wrong at a time."""

import ssl
from pathlib import Path

import pytest
from cryptography import x509

from dcoord.authority import Authority
from districomp import tls
from tests.integration import tlslab
from tests.integration.tlslab import CLIENT, DAY_S, SERVER, Forger, Handshake, clock_off_by, dns, imitation, member, uri

YEARS_S = 3 * 365 * DAY_S


@pytest.fixture(params=[tlslab.blocking, tlslab.by_asyncio])
def handshake(request: pytest.FixtureRequest) -> Handshake:
    way: Handshake = request.param
    return way


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "dcoord" / "trust"


@pytest.fixture
def authority(folder: Path) -> Authority:
    return Authority.open(folder, "lab.example.org")


def server_of(certificates: list[bytes], key: bytes, authority: Authority) -> ssl.SSLContext:
    return tls.server_context(tls.to_pem(certificates), key, authority.authorities)


# ---- as it should be ----


def test_both_know_each_other(authority: Authority, handshake: Handshake) -> None:
    who = member(authority, "worker", "0123456789abcdef", "pc-07.lab.example.org")
    seen = handshake(
        authority.server_context(), who.context(*authority.authorities), tls.server_name(authority.cluster)
    )
    assert seen.good
    assert seen.version == "TLSv1.3"
    holder = tls.holder(seen.peercert)
    assert holder is not None
    assert holder[:4] == (authority.cluster, "worker", "0123456789abcdef", "pc-07.lab.example.org")
    assert abs(holder.expires - clock_off_by(30 * DAY_S)()) < 60


@pytest.mark.parametrize("name", ["pc", "a.b.example.com", "Zoë Ångström", "127.0.0.1", "*.example.com", "x" * 64])
def test_any_name_is_nobodys_business_but_peoples(authority: Authority, name: str) -> None:
    """OpenSSL judges a common name with a dot as if it were a server's, and the authority is constrained in those."""
    who = member(authority, name=name)
    seen = tlslab.blocking(
        authority.server_context(), who.context(*authority.authorities), tls.server_name(authority.cluster)
    )
    holder = tls.holder(seen.peercert)
    assert seen.good
    assert holder is not None
    assert holder.name == name


def test_a_guest_needs_no_certificate(authority: Authority, handshake: Handshake) -> None:
    for context in (tls.client_context(authority.authorities), tls.unverified_context()):
        seen = handshake(authority.server_context(), context, tls.server_name(authority.cluster))
        assert seen.good
        assert tls.holder(seen.peercert) is None


def test_web_has_a_key_of_its_own_and_is_believed(authority: Authority, handshake: Handshake) -> None:
    certificate, key = authority.web_chain()
    assert key != authority.web_chain()[1]
    seen = handshake(
        tls.server_context(certificate, key, authority.authorities),
        member(authority).context(*authority.authorities),
        tls.server_name(authority.cluster),
    )
    assert seen.good


@pytest.mark.parametrize("offset_s", [-YEARS_S, YEARS_S])
def test_the_time_of_who_joins_does_not_matter(folder: Path, handshake: Handshake, offset_s: float) -> None:
    """To a machine whose clock is three years off everything of the coordinator's is as old, or as far ahead."""
    authority = Authority.open(folder, "lab", clock=clock_off_by(offset_s))
    seen = handshake(
        authority.server_context(), tls.client_context(authority.authorities), tls.server_name(authority.cluster)
    )
    assert seen.good
    # And what is signed with the right time again, by an authority that was made in the wrong one, is good.
    authority = Authority.open(folder, "lab")
    who = member(authority)
    seen = handshake(
        authority.server_context(), who.context(*authority.authorities), tls.server_name(authority.cluster)
    )
    assert seen.good


# ---- the server is another one ----


def test_another_cluster_is_refused(authority: Authority, tmp_path: Path, handshake: Handshake) -> None:
    other = Authority.open(tmp_path / "other" / "trust", "lab.example.org")
    # By the name that it is asked for, too: any authority can sign that.
    certificate, key = Forger.of(tmp_path / "other" / "trust").make(dns(authority.cluster), SERVER)
    for context in (other.server_context(), server_of([certificate], key, other)):
        seen = handshake(context, tls.client_context(authority.authorities), tls.server_name(authority.cluster))
        assert "certificate verify failed" in seen.client_error
        assert seen.server_error


def test_an_authority_that_copies_everything_but_the_key_is_refused(authority: Authority, handshake: Handshake) -> None:
    forger = imitation(authority.authorities[0])
    copy = tlslab.der(forger.certificate)
    certificate, key = forger.make(dns(authority.cluster), SERVER)
    for chain in ([certificate], [certificate, copy], [certificate, copy, *authority.authorities]):
        seen = handshake(
            server_of(chain, key, authority),
            tls.client_context(authority.authorities),
            tls.server_name(authority.cluster),
        )
        assert "certificate verify failed" in seen.client_error


def test_the_name_must_be_the_clusters(authority: Authority, tmp_path: Path, handshake: Handshake) -> None:
    other = Authority.open(tmp_path / "other" / "trust", "lab").cluster
    for name in (tls.server_name(other), "127.0.0.1", "localhost", "districomp.internal", f"x.{authority.cluster}"):
        seen = handshake(authority.server_context(), tls.client_context(authority.authorities), name)
        assert "certificate verify failed" in seen.client_error


def test_a_common_name_is_no_name_of_a_server(authority: Authority, folder: Path, handshake: Handshake) -> None:
    name = tls.server_name(authority.cluster)
    certificate, key = Forger.of(folder).make([], SERVER, common_name=name[:64])
    seen = handshake(server_of([certificate], key, authority), tls.client_context(authority.authorities), name[:64])
    assert "certificate verify failed" in seen.client_error


def test_an_identity_cannot_serve(authority: Authority, folder: Path, handshake: Handshake) -> None:
    who = member(authority, "admin", "a1")
    name = tls.server_name(authority.cluster)
    seen = handshake(
        server_of([who.certificate], who.key.key, authority), tls.client_context(authority.authorities), name
    )
    assert "certificate verify failed" in seen.client_error
    # Each of its two lacks is enough: it has the name of no server, and is not for serving.
    for names, use, good in ((dns, CLIENT, False), (uri, SERVER, False), (dns, SERVER, True)):
        certificate, key = Forger.of(folder).make(names(authority.cluster), use)
        seen = handshake(server_of([certificate], key, authority), tls.client_context(authority.authorities), name)
        assert seen.good == good


def test_an_identity_cannot_sign(authority: Authority, handshake: Handshake) -> None:
    who = member(authority, "admin", "a1")
    forger = Forger(who.certificate, who.key.key)
    name = tls.server_name(authority.cluster)
    for ca in (False, True):
        certificate, key = forger.make(dns(authority.cluster), SERVER, ca=ca)
        chain = [certificate, who.certificate]
        seen = handshake(server_of(chain, key, authority), tls.client_context(authority.authorities), name)
        assert "certificate verify failed" in seen.client_error
        certificate, key = forger.make(uri(authority.cluster, "admin", "a2"), CLIENT, ca=ca)
        context = tls.client_context(authority.authorities, tls.to_pem([certificate, who.certificate]), key)
        assert "certificate verify failed" in handshake(authority.server_context(), context, name).server_error


def test_the_coordinator_of_the_cluster_can_vouch_for_no_other_site(
    authority: Authority, folder: Path, handshake: Handshake
) -> None:
    """Somebody gave the authority to a browser to trust: its key is still good for nothing outside."""
    names: dict[str, list[x509.GeneralName]] = {
        "www.example.org": [x509.DNSName("www.example.org")],
        "127.0.0.1": [x509.IPAddress(tlslab.LOOPBACK)],
    }
    for name, names_of in names.items():
        certificate, key = Forger.of(folder).make(names_of, SERVER)
        seen = handshake(server_of([certificate], key, authority), tls.client_context(authority.authorities), name)
        assert "permitted subtree violation" in seen.client_error or "excluded subtree" in seen.client_error


def test_what_the_system_trusts_is_not_trusted(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handshake: Handshake
) -> None:
    """OpenSSL's own list of authorities, wherever it may be, is never asked."""
    other = Authority.open(tmp_path / "other" / "trust", "lab")
    (tmp_path / "system.pem").write_bytes(tls.to_pem(other.authorities))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "system.pem"))
    certificate, key = Forger.of(tmp_path / "other" / "trust").make(dns(authority.cluster), SERVER)
    seen = handshake(
        server_of([certificate], key, other),
        tls.client_context(authority.authorities),
        tls.server_name(authority.cluster),
    )
    assert "certificate verify failed" in seen.client_error


# ---- who connects is another one ----


@pytest.mark.parametrize(
    ("offset_s", "reason"),
    [(-31 * DAY_S, "expired"), (2 * DAY_S, "not yet valid"), (-29 * DAY_S, ""), (0.9 * DAY_S, "")],
)
def test_the_coordinator_judges_the_time(
    authority: Authority, folder: Path, handshake: Handshake, offset_s: float, reason: str
) -> None:
    who = member(Authority.open(folder, "lab", clock=clock_off_by(offset_s)))
    seen = handshake(
        authority.server_context(), who.context(*authority.authorities), tls.server_name(authority.cluster)
    )
    assert reason in seen.server_error
    assert seen.good == (not reason)


def test_a_member_of_another_cluster_is_refused(authority: Authority, tmp_path: Path, handshake: Handshake) -> None:
    other = Authority.open(tmp_path / "other" / "trust", "lab.example.org")
    certificate, key = imitation(authority.authorities[0]).make(uri(authority.cluster, "admin"), CLIENT)
    stranger = member(other, "admin")
    for context in (
        stranger.context(*authority.authorities),
        tls.client_context(authority.authorities, tls.to_pem([certificate]), key),
        # It brings its own authority along.
        tls.client_context(
            authority.authorities, tls.to_pem([stranger.certificate, *other.authorities]), stranger.key.key
        ),
    ):
        seen = handshake(authority.server_context(), context, tls.server_name(authority.cluster))
        assert "certificate verify failed" in seen.server_error
        assert not seen.peercert


def test_the_coordinators_own_certificate_is_nobodys_identity(authority: Authority, handshake: Handshake) -> None:
    certificate, key = authority.web_chain()
    context = tls.client_context(authority.authorities, certificate, key)
    seen = handshake(authority.server_context(), context, tls.server_name(authority.cluster))
    assert "certificate verify failed" in seen.server_error


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["districomp://{}/worker"],
        ["districomp://{}/boss/w1"],
        ["districomp://{}/worker/w1/w2"],
        ["districomp://{}/worker/../admin"],
        ["districomp://{}/worker/w1?x"],
        ["districomp://{}/worker/w1\n"],
        ["districomp://UPPER/worker/w1"],
        ["https://{}/worker/w1"],
        ["districomp://{}/worker/w1", "districomp://{}/admin/a1"],
        ["districomp://{}/worker/" + "w" * 65],
    ],
)
def test_a_certificate_that_names_nobody_well_is_nobodys(authority: Authority, folder: Path, names: list[str]) -> None:
    uris: list[x509.GeneralName] = [x509.UniformResourceIdentifier(name.format(authority.cluster)) for name in names]
    certificate, key = Forger.of(folder).make(uris, CLIENT, common_name="pc")
    context = tls.client_context(authority.authorities, tls.to_pem([certificate]), key)
    seen = tlslab.blocking(authority.server_context(), context, tls.server_name(authority.cluster))
    assert seen.good
    assert tls.holder(seen.peercert) is None


# ---- downgrade and resumption ----


@pytest.mark.parametrize("side", ["server", "client"])
def test_nothing_below_tls_1_3(authority: Authority, handshake: Handshake, side: str) -> None:
    server, client = authority.server_context(), member(authority).context(*authority.authorities)
    old = server if side == "server" else client
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    seen = handshake(server, client, tls.server_name(authority.cluster))
    assert seen.server_error
    assert seen.client_error


def test_no_session_is_resumed(authority: Authority) -> None:
    """A resumed session is asked for no certificate: whoever has expired would go on."""
    name = tls.server_name(authority.cluster)
    server, client = authority.server_context(), member(authority).context(*authority.authorities)
    assert not tlslab.blocking(server, client, name).ticket
    # A server that gives tickets, to know that the line above would see one.
    certificate, key = authority.coordinator_chain()
    generous = tls.server_context(certificate, key, authority.authorities)
    generous.num_tickets = 2
    assert tlslab.blocking(generous, client, name).ticket


# ---- rotation ----


def test_during_an_overlap_everybody_believes_everybody(authority: Authority, handshake: Handshake) -> None:
    known: list[tuple[bytes, str, tlslab.Member]] = []
    for n in range(3):
        known.append((authority.authorities[0], authority.cluster, member(authority, identity=f"w{n}")))
        authority.rotate(3600)
    known.append((authority.authorities[0], authority.cluster, member(authority, identity="w3")))
    assert [certificate for certificate, _, _ in reversed(known)] == authority.authorities
    web = tls.server_context(*authority.web_chain(), authority.authorities)
    for (certificate, cluster, who), identity in zip(known, ("w0", "w1", "w2", "w3"), strict=True):
        for server in (authority.server_context(), web):
            seen = handshake(server, who.context(certificate), tls.server_name(cluster))
            assert seen.good
            holder = tls.holder(seen.peercert)
            assert holder is not None
            assert (holder.cluster, holder.identity) == (cluster, identity)


def test_a_live_context_goes_on_until_it_is_asked_for_anew(authority: Authority) -> None:
    before = authority.server_context()
    assert authority.server_context() is before
    authority.rotate(3600)
    assert authority.server_context() is not before


@pytest.mark.parametrize("how", ["ended", "at once"])
def test_after_the_overlap_the_old_one_is_nobody(authority: Authority, handshake: Handshake, how: str) -> None:
    old, old_cluster, who = authority.authorities[0], authority.cluster, member(authority)
    new_too = who.context(old)
    authority.rotate(3600 if how == "ended" else 0)
    assert authority.expire(clock_off_by(3601)()) == (how == "ended")
    name = tls.server_name(authority.cluster)
    new_too.load_verify_locations(cadata=authority.authorities[0])
    assert "certificate verify failed" in handshake(authority.server_context(), new_too, name).server_error
    # Whoever missed the overlap believes the server no more, by either name.
    for asked in (name, tls.server_name(old_cluster)):
        seen = handshake(authority.server_context(), tls.client_context([old]), asked)
        assert "certificate verify failed" in seen.client_error


def test_a_former_id_is_a_name_no_more(authority: Authority, handshake: Handshake) -> None:
    former = authority.cluster
    authority.rotate(3600)
    client = tls.client_context(authority.authorities[:1])
    assert handshake(authority.server_context(), client, tls.server_name(former)).good
    authority.expire(clock_off_by(3601)())
    assert not handshake(authority.server_context(), client, tls.server_name(former)).good


# ---- other programs ----


def test_strict_verifiers_accept_what_is_made_here(authority: Authority, handshake: Handshake) -> None:
    """Python 3.13's own default, for one: X509_V_FLAG_X509_STRICT and times that are checked."""
    old = authority.authorities[0]
    authority.rotate(3600)
    for trusted, server in ((old, authority.server_context()), (authority.authorities[0], authority.server_context())):
        context = ssl.create_default_context(cadata=trusted)
        context.verify_flags = ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_TRUSTED_FIRST
        assert handshake(server, context, tls.server_name(authority.cluster)).good
        strict = authority.server_context()
        strict.verify_flags = ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_TRUSTED_FIRST
        who = member(authority)
        assert handshake(strict, who.context(*authority.authorities), tls.server_name(authority.cluster)).good
