"""The data port against its own description: schemathesis asks the real process, with the real coordinator behind it.

It has a session, as `dctl ui` has one, and tries for itself that without one nothing is answered.
Seeded, so that a run says something about the change and not about luck; DISTRICOMP_API_SEED=N tries another.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from demo.cluster import Cluster, wait_until
from districomp.client import Client
from districomp.client_pool import DataPlace

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

SEED = os.environ.get("DISTRICOMP_API_SEED", "1")
EXAMPLES = 40
DESCRIPTION = Path(__file__).resolve().parents[2] / "docs" / "openapi.json"
# A schema cannot say which definitions, jobs and tasks there are, nor what a definition takes.
CONFIG = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "304", "400", "404", "413", "416", "422"]
"""
DEFINITION = """
version: 1
description: The first lines of what it gets
command: [head, -n, "{lines}"]
params: {lines: {type: int, default: 2}}
"""


def test_every_answer_is_as_described(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        folder = cluster.config / "tasks.d"
        # Whatever is made up here must never run as a command of this machine.
        (folder / "shell.yaml").symlink_to("/dev/null")
        (folder / "head.yaml").write_text(DEFINITION)
        cluster.start_coordinator()
        worker = cluster.start_worker("w")
        assert cluster.dctl_json("submit", "head", "--range", "0..9", "--wait")["job"] == 1
        worker.stop()
        with Client(str(cluster.runtime / "control.sock")) as client:
            place, session = client.data_place(), client.grant("SESSION", "").grant
        ended = schemathesis(place, session, tmp_path)
        assert ended.returncode == 0, ended.stdout
        operations = re.search(r"Tested: (\d+)", ended.stdout)
        assert operations is not None, ended.stdout
        assert int(operations[1]) == sum(map(len, json.loads(DESCRIPTION.read_bytes())["paths"].values()))
        cases = re.search(r"(\d+) generated", ended.stdout)
        assert cases is not None and int(cases[1]) > 500, ended.stdout
        print(f"{cases[1]} requests to {operations[1]} operations, all answered as described")
        assert cluster.coordinator is not None
        log = cluster.coordinator.log_text()
        assert "Traceback" not in log, log
        wait_until(lambda: cluster.dctl_json("status")["cluster"], "the coordinator is there as before")


def schemathesis(place: DataPlace, session: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    config = folder / "schemathesis.toml"
    config.write_text(CONFIG)
    command = [
        str(Path(sys.executable).parent / "st"), "--config-file", str(config), "run", str(DESCRIPTION), "--url", place.url,
        # The certificate is for the cluster's name, and this tool can only ask for an address.
        "--tls-verify", "false", "--header", f"Authorization: Bearer {session}",
        "--checks", "all", "--seed", SEED, "--max-examples", str(EXAMPLES), "--continue-on-failure", "--no-color",
    ]  # fmt: skip
    return subprocess.run(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
