"""The Debian packages on a machine that boots systemd: installed, started, used, restarted, broken, and removed."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.priority import timed

from .machinelab import Machine, machine

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

ROOT: Final = Path(__file__).resolve().parents[2]
UNITS: Final = ("dcoord.service", "dcoord-web.service", "dworker.service")
TOKEN: Final = "dcw1-machine-given"
EXPOSURE: Final = {"dcoord.service": 15, "dcoord-web.service": 15, "dworker.service": 40}
"""What `systemd-analyze security` may say at most, in tenths: tasks need more of the system than the coordinator."""
INSTALL: Final = "apt-get install --yes --no-install-recommends /packages/*.deb"
# Of systemd's catalogue: a unit begins to start, has started.
STARTING: Final = "7d4958e842da4a758f6c1cdc7b36dcc5"
STARTED: Final = "39f53479d3a045ac8e11786248231fbf"


def build(output: Path, **environment: str) -> list[Path]:
    """`make packages` as a fresh checkout would, into a folder."""
    subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "packages.py"), "--output", str(output)],
        check=True,
        cwd=output.parent,
        env={**os.environ, **environment},
        timeout=170,
    )
    return sorted(output.glob("*.deb"))


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    build(folder, SOURCE_DATE_EPOCH="1700000000")
    return folder


@pytest.fixture(scope="module")
def site(packages: Path) -> Iterator[Machine]:
    """A machine with everything installed and the coordinator started, which stands for a site."""
    with machine("site", binds=[(packages, "/packages")]) as found:
        found.sh(INSTALL)
        found.sh("useradd --create-home --groups districomp ann; useradd --create-home bob")
        found.run("systemctl", "start", "dcoord")
        found.wait("test $(dctl worker list -q | wc -l) = 1 && systemctl is-active dcoord-web")
        yield found


def entries(on: Machine, *arguments: str) -> list[dict[str, Any]]:
    """What the journal has, oldest first."""
    text = on.run("journalctl", "--output=json", "--no-pager", "--quiet", *arguments).stdout
    return [json.loads(line) for line in text.splitlines()]


def document(on: Machine, command: str, user: str = "") -> Any:
    """What a `dctl` command says with --json."""
    return json.loads(on.sh(f"dctl {command} --json", user=user))


# ---- building ----


def test_the_same_tree_gives_the_same_bytes(packages: Path, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        again = build(tmp_path / "again", SOURCE_DATE_EPOCH="1700000000", TZ="Asia/Tokyo", LANG="C")
    finally:
        os.umask(before)
    names = ["dcoord", "districomp-client", "dworker", "python3-districomp"]
    assert [path.name.partition("_")[0] for path in again] == names
    for path in again:
        one, other = (hashlib.sha256(each.read_bytes()).hexdigest() for each in (path, packages / path.name))
        assert one == other, path.name


# ---- installing and starting ----


def test_installing_starts_a_worker_and_no_coordinator(packages: Path) -> None:
    with machine("fresh", binds=[(packages, "/packages")]) as fresh:
        fresh.sh(INSTALL)
        assert fresh.run("systemctl", "is-active", *UNITS, check=False).stdout.split() == [
            "inactive",
            "inactive",
            "active",
        ]
        assert fresh.run("systemctl", "is-enabled", *UNITS, check=False).stdout.split() == [
            "disabled",
            "static",
            "enabled",
        ]
        with timed() as took:
            fresh.run("systemctl", "start", "dcoord")
        begun, ready = (
            next(
                int(entry["__MONOTONIC_TIMESTAMP"]) for entry in entries(fresh, "-u", "dcoord", f"MESSAGE_ID={message}")
            )
            for message in (STARTING, STARTED)
        )
        print(f"dcoord ready {(ready - begun) / 1000:.0f} ms after systemd began to start it, its authority made")
        assert (ready - begun) * took.alone_s / took.s < 1_000_000
        fresh.wait("systemctl is-active dcoord-web")
        fresh.wait("systemctl show --property=StatusText dcoord | grep --quiet 'page http://.*:8421'")
        assert not entries(fresh, "-p", "warning", "-u", "dcoord", "-u", "dcoord-web")
        # By the control socket of its own machine, without a word from a person.
        fresh.wait("test $(dctl worker list -q | wc -l) = 1")
        warnings = [entry["MESSAGE"] for entry in entries(fresh, "-p", "warning", "-u", "dworker")]
        assert [text for text in warnings if "belongs to no cluster" not in text] == []


def test_the_units_are_sound_and_locked_down(site: Machine) -> None:
    verified = site.run("systemd-analyze", "verify", "--man=no", *UNITS)
    assert verified.stdout + verified.stderr == ""
    for unit, threshold in EXPOSURE.items():
        site.run("systemd-analyze", "security", "--no-pager", f"--threshold={threshold}", unit)


def test_each_daemon_is_a_user_of_its_own_and_secrets_are_its_own(site: Machine) -> None:
    users = [site.sh(f"ps -o user:20= -p {site.show(unit, 'MainPID')['MainPID']}").strip() for unit in UNITS]
    assert users == ["dcoord", "dcoord-web", "dworker"]
    state = "/var/lib/districomp"
    as_web = "setpriv --reuid=dcoord-web --regid=dcoord-web --groups=dcoord"
    site.sh(f"{as_web} test -r {state}/dcoord/journal.sqlite; {as_web} test -w {state}/dcoord/blobs")
    for path in ("trust", "trust/authority.json", "journal.sqlite-lock"):
        assert site.run(*as_web.split(), "cat", f"{state}/dcoord/{path}", check=False).returncode == 1
    for user, path in [
        ("dcoord-web", f"{state}/dcoord/trust"),
        ("dcoord-web", f"{state}/dworker"),
        ("dworker", f"{state}/dcoord"),
        ("dcoord", f"{state}/dworker"),
        ("ann", f"{state}/dcoord"),
        ("ann", f"{state}/dworker"),
    ]:
        assert site.run("ls", path, user=user, check=False).returncode == 2, (user, path)


def test_the_journal_reads_well(site: Machine) -> None:
    site.sh("bash -c 'printf hello > /dev/tcp/127.0.0.1/8420'")
    site.wait("journalctl -u dcoord -p warning --quiet | grep -q 'control port refuses'")
    own = entries(site, "_SYSTEMD_UNIT=dcoord.service") + entries(site, "_SYSTEMD_UNIT=dcoord-web.service")
    assert own
    for entry in own:
        assert entry["SYSLOG_IDENTIFIER"] in ("dcoord", "dcoord-web")
        # Neither a priority nor a time nor a name that the journal has already.
        assert re.match(r"(?!<\d>|\d\d:\d\d|\d{4}-|dcoord)\S", entry["MESSAGE"]), entry["MESSAGE"]
    levels = {entry["PRIORITY"] for entry in own}
    assert levels == {"4", "6"}


# ---- working ----

BLOBS = "find /var/lib/districomp/dcoord/blobs -type f -printf '%f %u:%g:%m\\n'"


def test_a_job_of_a_group_member_runs_and_big_payloads_pass_through_the_web_server(site: Machine) -> None:
    # The coordinator's own are of the bundles that it offers.
    of_bundles = set(site.sh(BLOBS).splitlines())
    assert {line.split()[1] for line in of_bundles} <= {"dcoord:dcoord:640"}
    site.sh("head -c 300000 /dev/urandom > /tmp/big; chmod 644 /tmp/big")
    assert site.sh("dctl run -- sh -c 'echo $DISTRICOMP_TASK; id -un'", user="ann").split()[1] == "dworker"
    returned = site.sh(
        "dctl run --each-line - -- sh -c 'head -c 200000 /dev/zero | tr \"\\0\" x' sh < /etc/debian_version", user="ann"
    )
    assert returned.strip() == "x" * 200000
    owners = {line.split()[1] for line in set(site.sh(BLOBS).splitlines()) - of_bundles}
    assert owners == {"dcoord-web:dcoord:640"}


def test_others_may_not_use_the_coordinator(site: Machine) -> None:
    refused = site.run("dctl", "status", user="bob", check=False)
    assert refused.returncode in (3, 4), refused.stderr
    assert refused.stderr


def test_the_systems_python_imports_the_library_and_sees_no_other_of_ours(site: Machine) -> None:
    script = "import districomp; print(districomp.Client.__name__, districomp.__version__)"
    assert site.run("python3", "-c", script).stdout.startswith("Client ")
    assert site.run("python3", "-c", "import msgspec", check=False).returncode == 1


def test_sandboxes_work_below_the_worker(site: Machine) -> None:
    """Which its unit could easily forbid: user namespaces, mounts, a /proc of its own."""
    command = (
        "ls -d /proc/[0-9]* | wc -l; ls -A /tmp | wc -l; id -un; ls /var/lib/districomp /etc/districomp 2>&1 | wc -l"
    )
    definition = {"version": 1, "command": ["sh", "-c", command], "isolation": "sandbox"}
    site.sh(f"cat > /etc/districomp/tasks.d/boxed.yaml <<'END'\n{json.dumps(definition)}\nEND")
    site.wait("dctl def show boxed")
    printed = site.sh("dctl submit boxed --results --timeout 100s").split()
    print(printed)
    assert int(printed[0]) < 10
    site.sh("rm /etc/districomp/tasks.d/boxed.yaml")


def test_a_restart_keeps_the_queue(site: Machine) -> None:
    site.run("systemctl", "stop", "dworker")
    job = document(site, "submit shell --range 1..500 --param argv=true")["job"]
    for how in ("systemctl restart dcoord", "systemctl kill --signal=KILL --kill-whom=main dcoord"):
        before = site.show("dcoord", "MainPID")["MainPID"]
        site.sh(how)
        site.wait(f"systemctl is-active dcoord && test $(systemctl show dcoord -P MainPID) != {before}")
        site.wait("dctl status")
        assert document(site, f"job show {job}")["counts"]["queued"] == 500
    site.run("systemctl", "start", "dworker")
    site.sh(f"dctl wait {job} --timeout 100s")
    assert document(site, f"job show {job}")["counts"]["done"] == 500


def test_stopping_the_worker_ends_its_tasks_and_hands_them_back(site: Machine) -> None:
    job = document(site, "submit shell --param argv=sleep --param argv=4321")["job"]
    site.wait("pgrep -u dworker sleep")
    site.run("systemctl", "stop", "dworker")
    assert site.show("dworker", "Result")["Result"] == "success"
    assert site.run("pgrep", "-u", "dworker", check=False).stdout == ""
    assert document(site, f"job show {job}")["counts"]["queued"] == 1
    site.run("systemctl", "start", "dworker")
    site.sh(f"dctl cancel {job} --yes")


def test_a_worker_that_is_killed_leaves_no_process_and_comes_back(site: Machine) -> None:
    job = document(site, "submit shell --param argv=sleep --param argv=4321")["job"]
    sleeping = site.wait("pgrep -u dworker sleep").strip()
    site.sh("systemctl kill --signal=KILL --kill-whom=main dworker")
    site.wait(f"! kill -0 {sleeping} && systemctl is-active dworker")
    site.sh(f"dctl cancel {job} --yes")


def test_a_coordinator_that_hangs_is_started_again(site: Machine) -> None:
    site.sh(
        "mkdir -p /run/systemd/system/dcoord.service.d; cd /run/systemd/system/dcoord.service.d;"
        " printf '[Service]\\nWatchdogSec=2s\\n' > watchdog.conf; systemctl daemon-reload; systemctl restart dcoord"
    )
    pid = site.show("dcoord", "MainPID")["MainPID"]
    site.sh(f"kill -STOP {pid}")
    site.wait(f"systemctl is-active dcoord && test $(systemctl show dcoord -P MainPID) != {pid}")
    assert any("watchdog" in entry["MESSAGE"].lower() for entry in entries(site, "-u", "dcoord", "-p", "err"))
    site.sh("rm -r /run/systemd/system/dcoord.service.d; systemctl daemon-reload; systemctl restart dcoord")


def test_a_wrong_configuration_is_said_once(site: Machine) -> None:
    site.sh("cp /etc/districomp/dcoord.yaml /tmp/kept; echo 'leese: 15s' > /etc/districomp/dcoord.yaml")
    assert site.run("systemctl", "restart", "dcoord", check=False).returncode == 1
    site.sh("cp /tmp/kept /etc/districomp/dcoord.yaml")
    state = site.show("dcoord", "ActiveState", "ExecMainStatus", "NRestarts")
    assert state == {"ActiveState": "failed", "ExecMainStatus": "78", "NRestarts": "0"}
    assert [entry for entry in entries(site, "-u", "dcoord", "-p", "err") if "leese" in entry["MESSAGE"]]
    site.run("systemctl", "start", "dcoord")


# ---- a machine that is given its token ----


@pytest.mark.parametrize("given", [True, False])
def test_a_token_comes_with_the_machine_or_else_with_its_configuration(packages: Path, given: bool) -> None:
    options = [f"--set-credential=districomp.token:{TOKEN}"] if given else []
    credential, configured = "/run/credentials/dworker.service/districomp.token", "/etc/districomp/token"
    with machine("given", binds=[(packages, "/packages")], options=options) as one:
        one.sh(INSTALL)
        assert one.sh(f"cat {credential}").strip() == (TOKEN if given else "")
        one.sh(f"echo {TOKEN} > {configured}; echo token_file: {configured} > /etc/districomp/dworker.yaml")
        one.run("systemctl", "restart", "dworker")
        # It is no good, and the worker says which it was.
        used, other = (credential, configured) if given else (configured, credential)
        one.wait(f"journalctl -u dworker --quiet | grep -q '{used}: '")
        restarted = one.sh("journalctl _SYSTEMD_INVOCATION_ID=$(systemctl show dworker -P InvocationID)")
        assert used in restarted
        assert other not in restarted


# ---- removing ----


def everything(on: Machine) -> set[str]:
    """Every file, user and group, less what the system writes by itself."""
    own = r"^/(proc|sys|dev|tmp|run/(systemd|log|host|mount|credentials|udev)|packages|var/(log|cache|tmp|lib/(dpkg|apt|systemd)))(/|$)"
    found = on.sh("find / -xdev; find /run /etc -xdev; getent passwd; getent group").splitlines()
    return {line for line in found if not re.match(own, line)}


def test_purging_leaves_nothing(packages: Path) -> None:
    with machine("gone", binds=[(packages, "/packages")]) as gone:
        gone.sh("apt-get --version; ldconfig")
        before = everything(gone)
        gone.sh(INSTALL)
        gone.run("systemctl", "start", "dcoord")
        gone.wait("dctl run -- true")
        gone.sh("apt-get purge --yes dcoord dworker districomp-client python3-districomp")
        left = sorted(everything(gone) - before)
        assert left == ["/etc/.pwd.lock"] or not left
        assert not gone.sh("systemctl list-units --all --no-legend 'dcoord*' 'dworker*'")
