"""How a coordinator's address is written, and that nothing without TLS leaves the machine."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from districomp.client_address import CONTROL_PORT, given_addresses, identity_folder, parse_address
from districomp.config import Paths
from districomp.errors import UsageError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("tcp://127.0.0.1:9", "127.0.0.1", 9),
        ("tcp://127.0.0.1", "127.0.0.1", CONTROL_PORT),
        ("tcp://127.1.2.3:9", "127.1.2.3", 9),
        ("tcp://localhost:9", "127.0.0.1", 9),
        ("tcp://[::1]:9", "::1", 9),
    ],
)
def test_a_plain_address_is_one_of_this_machine(text: str, host: str, port: int) -> None:
    address = parse_address(text, "coordinator")
    assert (address.host, address.port, address.plain, address.is_tls) == (host, port, True, False)
    assert str(parse_address(str(address), "coordinator")) == str(address)


@pytest.mark.parametrize(
    "text",
    [
        "tcp://192.0.2.1:9",
        "tcp://0.0.0.0:9",
        "tcp://[::]:9",
        "tcp://example.org:9",
        "tcp://127.0.0.1.example.org:9",
        "tcp://[::ffff:127.0.0.1]:9",
        "tcp://2130706433:9",
        "tcp://localhost.:9",
    ],
)
def test_a_plain_address_elsewhere_is_refused(text: str) -> None:
    with pytest.raises(
        UsageError, match=r"^DISTRICOMP_COORDINATOR: .*only for an insecure coordinator of this machine"
    ):
        parse_address(text, "DISTRICOMP_COORDINATOR")


@pytest.mark.parametrize(
    "text", ["tcp://", "tcp://:1", "tcp:///run/control.sock", "tcp://127.0.0.1:0", "tcp://127.0.0.1:x"]
)
def test_what_is_no_plain_address(text: str) -> None:
    with pytest.raises(UsageError, match="is not a coordinator's address"):
        parse_address(text, "coordinator")


def test_what_is_written_without_a_scheme_is_tls() -> None:
    for text in ("127.0.0.1:9", "localhost", "[::1]:9", "example.org:9"):
        assert parse_address(text, "coordinator").is_tls
    assert not parse_address("/run/control.sock", "coordinator").is_tls


@given(st.text(max_size=40) | st.text(alphabet="tcp:/[]0123456789.localhost%", max_size=40))
def test_any_text_is_an_address_or_a_sentence(text: str) -> None:
    try:
        address = parse_address(text, "coordinator")
    except UsageError:
        return
    assert address.path is not None or 0 < address.port < 65536
    assert not address.plain or address.host.startswith("127.") or address.host == "::1"


@pytest.mark.parametrize("user", [0, 1000])
@pytest.mark.parametrize("environment", [{}, {"XDG_STATE_HOME": "/tmp/state"}, {"XDG_STATE_HOME": "relative"}])
@pytest.mark.parametrize("own", [{}, {"DISTRICOMP_STATE_DIR": "relative"}])
def test_the_identity_is_where_the_state_is(
    monkeypatch: pytest.MonkeyPatch, user: int, environment: dict[str, str], own: dict[str, str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    for name in ("XDG_STATE_HOME", "DISTRICOMP_STATE_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (environment | own).items():
        monkeypatch.setenv(name, value)
    assert identity_folder() == Paths.from_environment().state / "client"


def test_the_order_of_those_that_somebody_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTRICOMP_RUNTIME_DIR", "/tmp/run")
    monkeypatch.setenv("DISTRICOMP_COORDINATOR", "example.org")
    assert [str(one) for one in given_addresses(None)] == ["/tmp/run/control.sock", "example.org:8420"]
    assert [str(one) for one in given_addresses("tcp://127.0.0.1:9")] == ["tcp://127.0.0.1:9"]
    assert given_addresses(None)[0].path == Path("/tmp/run/control.sock")
