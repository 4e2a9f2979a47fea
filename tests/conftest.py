"""What holds for every test: no trace of the developer's own cluster, and hypothesis at one speed everywhere."""

import os
import resource
import shutil
import signal
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from districomp import openfiles

# The clock is no judge on a shared machine: no deadline, no complaint about slow drawing. Derandomized,
# so that a run of CI says something about the change and not about luck; HYPOTHESIS_PROFILE=search looks for more.
settings.register_profile(
    "fixed", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)
settings.register_profile("search", deadline=None, max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

_OWN_BASE = pytest.StashKey[str]()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Keep `tmp_path` short: a socket's path has at most 107 bytes, and pytest's own with xdist's leaves too few."""
    if config.option.basetemp is None and not hasattr(config, "workerinput"):
        config.option.basetemp = tempfile.mkdtemp(prefix="dc-")
        config.stash[_OWN_BASE] = config.option.basetemp
    # A shell starts what runs in its background deaf to Ctrl-C, and so would be all that tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    # Files that only their owner may read must be so by what made them, not by how the developer's shell is set.
    os.umask(0o022)
    if "CI" in os.environ:
        config.pluginmanager.register(_Prompt(config))


class _Prompt:
    """Shows a failure as it happens: a run that is ended from outside shows none in the end."""

    def __init__(self, config: pytest.Config) -> None:
        self._plugins = config.pluginmanager

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        shown = self._plugins.get_plugin("terminalreporter")
        if report.failed and shown is not None:
            shown.ensure_newline()
            shown.section(f"{report.nodeid} ({report.when}, {report.duration:.1f} s)", sep="!")
            shown.line(report.longreprtext)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """What failed stays to be looked at."""
    own = session.config.stash.get(_OWN_BASE, None)
    if own is not None and exitstatus == pytest.ExitCode.OK:
        shutil.rmtree(own, ignore_errors=True)


@pytest.fixture
def many_files() -> Iterator[None]:
    """For a test that itself holds hundreds of connections or pipes: a login's usual limit is 1,024 open files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert openfiles.allow(8192) >= 4096, "the hard limit on open files is too low for this test: ulimit -Hn 8192"
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture(autouse=True)
def _no_cluster_of_the_developers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands and clients would join the coordinator that these name; systemd's socket would be told that a test is ready."""
    for name in list(os.environ):
        if name.startswith("DISTRICOMP_") or name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
            monkeypatch.delenv(name)
