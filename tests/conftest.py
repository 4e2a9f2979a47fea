"""What holds for every test: no trace of the developer's own cluster, and hypothesis at one speed everywhere."""

import os

import pytest
from hypothesis import HealthCheck, settings

# The clock is no judge on a shared machine: no deadline, no complaint about slow drawing. Derandomized,
# so that a run of CI says something about the change and not about luck; HYPOTHESIS_PROFILE=search looks for more.
settings.register_profile(
    "fixed", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)
settings.register_profile("search", deadline=None, max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


@pytest.fixture(autouse=True)
def _no_cluster_of_the_developers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands and clients would join the coordinator that these name; systemd's socket would be told that a test is ready."""
    for name in list(os.environ):
        if name.startswith("DISTRICOMP_") or name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
            monkeypatch.delenv(name)
