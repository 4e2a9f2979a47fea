"""The one clock never jumps, whatever is done to the machine's."""

import time

import pytest

from districomp import clock


@pytest.mark.parametrize("jump_s", [-3 * 365 * 86400.0, -1.0, 3600.0, 3 * 365 * 86400.0])
def test_setting_the_machines_clock_moves_nothing(monkeypatch: pytest.MonkeyPatch, jump_s: float) -> None:
    before = clock.now()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump_s)
    assert 0 <= clock.now() - before < 10


def test_it_is_unix_time() -> None:
    assert abs(clock.now() - time.time()) < 60
