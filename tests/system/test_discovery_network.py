"""Discovery between machines whose network comes late: the interface appears after both daemons have started."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.patience import PATIENCE_S

from .netlab import Machine, plug_in

pytestmark = pytest.mark.system

LIMIT_S = PATIENCE_S


@pytest.fixture
def pair() -> Iterator[tuple[Machine, Machine]]:
    with ExitStack() as stack:
        yield Machine(stack), Machine(stack)


def test_a_network_that_comes_late_is_used(pair: tuple[Machine, Machine]) -> None:
    coordinator, worker = pair
    coordinator.advertise("late", "0.0.0.0")
    until = worker.browse()
    plug_in(coordinator, worker)
    for machine, address in ((coordinator, "10.99.0.1/24"), (worker, "10.99.0.2/24")):
        machine.run("ip", "addr", "add", address, "dev", "eth0")
        machine.run("ip", "link", "set", "eth0", "up")
    assert "10.99.0.1" in until(lambda addresses: "10.99.0.1" in addresses, LIMIT_S)


def test_an_address_that_changes_is_heard_of(pair: tuple[Machine, Machine]) -> None:
    coordinator, worker = pair
    plug_in(coordinator, worker)
    for machine, address in ((coordinator, "10.99.0.1/24"), (worker, "10.99.0.2/24")):
        machine.run("ip", "addr", "add", address, "dev", "eth0")
        machine.run("ip", "link", "set", "eth0", "up")
    coordinator.advertise("moved", "0.0.0.0")
    until = worker.browse()
    until(lambda addresses: "10.99.0.1" in addresses, LIMIT_S)
    coordinator.run("ip", "addr", "del", "10.99.0.1/24", "dev", "eth0")
    coordinator.run("ip", "addr", "add", "10.99.0.7/24", "dev", "eth0")
    until(lambda addresses: "10.99.0.7" in addresses, LIMIT_S)


def test_ipv6_alone_is_enough_although_its_address_is_tentative_at_first(pair: tuple[Machine, Machine]) -> None:
    coordinator, worker = pair
    coordinator.advertise("six", "::")
    until = worker.browse()
    plug_in(coordinator, worker)
    for machine in pair:
        machine.run("ip", "link", "set", "eth0", "up")
    addresses = until(lambda addresses: any(address.startswith("fe80:") for address in addresses), LIMIT_S)
    assert all("%" in address for address in addresses if address.startswith("fe80:")), "no interface, no connection"
