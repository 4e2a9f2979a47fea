"""Refusals in the log: each address a few, whatever it does."""

import logging

import pytest

from dcoord import refusals
from dcoord.refusals import Refusals


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_an_address_cannot_fill_the_log_nor_hide_another(caplog: pytest.LogCaptureFixture) -> None:
    it = Refusals("the port")
    for number in range(1000):
        it.add("10.0.0.1", f"knock {number}")
    it.add("10.0.0.2", "another")
    assert len(logged(caplog)) == refusals.LOGGED_PER_WINDOW_MAX + 1
    assert logged(caplog)[-1] == "the port refuses another"


def test_it_is_heard_again_later(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "WINDOW_S", 0.0)
    it = Refusals("the port")
    for number in range(100):
        it.add("10.0.0.1", f"knock {number}")
    assert len(logged(caplog)) == 100


def test_any_number_of_addresses_costs_bounded_memory() -> None:
    it = Refusals("the port")
    for number in range(3 * refusals.LOGGED_ADDRESSES_MAX):
        it.add(str(number), "knock")
    assert len(it._logged) == refusals.LOGGED_ADDRESSES_MAX
