"""Whoever has stolen dcoord-web's key cannot pose as the coordinator, although its certificate has the coordinator's name."""

import shutil
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from dcoord.authority import Authority
from demo.cluster import wait_until
from districomp import tls
from districomp.client import Client
from districomp.errors import TrustError
from districomp.identity import IdentityFolder
from tests.integration.trustliars import Liar
from tests.integration.trustpeers import LIMIT_S, Site, advertised, enrol

NAME = "stolen-tests"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Site(tmp_path / "real", name=NAME) as real:
        real.start_coordinator()
        yield real


@pytest.fixture
def thief(site: Site, tmp_path: Path) -> Iterator[Liar]:
    """A control port with the data port's certificate and key."""
    copied = tmp_path / "trust"
    shutil.copytree(site.state / "dcoord" / "trust", copied)
    authority = Authority.open(copied, NAME)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_chain(context, *authority.web_chain())
    with Liar(context, site.id, authority.authorities, tmp_path) as liar:
        yield liar


def test_no_worker_takes_the_data_port_for_the_coordinator(site: Site, thief: Liar) -> None:
    with advertised(site.id, NAME, thief.where):
        worker = site.far_worker("far", token=site.token("worker"))
        wait_until(lambda: "shows the certificate of a data port" in worker.log_text(), "it to be noticed", LIMIT_S)
        with advertised(site.id, NAME, site.control):
            site.wait_done(site.submit(["true"]))
        told, seen = sum(map(len, thief.told())), worker.log_text().count("data port")
        site.kill_coordinator()
        wait_until(lambda: worker.log_text().count("data port") > seen, "it to be noticed with a certificate", LIMIT_S)
        assert sum(map(len, thief.told())) == told
    assert not thief.evidence.exists()


def test_no_client_takes_the_data_port_for_the_coordinator(
    site: Site, thief: Liar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTRICOMP_STATE_DIR", str(tmp_path / "state"))
    IdentityFolder(tmp_path / "state" / "client").save(enrol(site, "submit", token=site.token("submit")))
    host, port = thief.where
    with pytest.raises(TrustError, match="the certificate of a data port"), Client(f"{host}:{port}"):
        pass
    assert not thief.messages()
