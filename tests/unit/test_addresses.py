"""Addresses as texts: what people read, what limits count together, where a data port is reached."""

import pytest

from districomp.addresses import address_group, address_text, host_of, is_everywhere, near, plain_host, reached_url


@pytest.mark.parametrize(
    ("host", "group"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("2001:db8:1:2::9", "2001:db8:1:2::"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::"),
        ("fe80::1", "fe80::1"),
        ("fe80::2%eth0", "fe80::2"),
        ("local", "local"),
    ],
)
def test_whom_an_address_belongs_to(host: str, group: str) -> None:
    """The machines of one network share the /64 of link-local addresses: each of them counts for itself."""
    assert address_group(host) == group


def test_addresses_as_people_read_them() -> None:
    assert address_text(("::ffff:10.0.0.7", 5)) == "10.0.0.7:5"
    assert address_text(("2001:db8::1", 5)) == "[2001:db8::1]:5"
    assert (host_of("10.0.0.7:5"), host_of("[2001:db8::1]:5"), host_of("local")) == ("10.0.0.7", "2001:db8::1", "local")
    assert plain_host("a.example") == "a.example"


@pytest.mark.parametrize(
    ("url", "host", "expected"),
    [
        ("https://0.0.0.0:8422", "10.0.0.7", "https://10.0.0.7:8422"),
        ("https://[::]:8422", "2001:db8::1", "https://[2001:db8::1]:8422"),
        ("https://10.0.0.8:8422", "10.0.0.7", "https://10.0.0.8:8422"),
        ("", "10.0.0.7", ""),
    ],
)
def test_where_a_data_port_is_reached(url: str, host: str, expected: str) -> None:
    assert reached_url(url, host) == expected


def test_where_everywhere_is_near() -> None:
    assert [is_everywhere(host) for host in ("0.0.0.0", "::", "127.0.0.1", "name")] == [True, True, False, False]
    assert (near("::"), near("10.0.0.7")) == ("127.0.0.1", "10.0.0.7")
