"""`python -m demo`: a coordinator and two workers find each other by mDNS and do three real jobs; two of them are shot.

Owns the order of events and the verdict. What is computed and checked is in `jobs.py`, processes are
`cluster.py`'s. Everything lies in a temporary folder and is gone afterwards; KEEP=1 leaves it running.
"""

import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

from demo import jobs
from demo.cluster import Cluster, ClusterError, wait_until
from demo.screen import blow, bold, fact, good, step, wrong
from districomp.client import Client

LEASE_S = 2
"""Short, so that a killed worker's task need not wait long here; the default is 15 s."""
WORKERS = ("anna", "bert")


def main() -> int:
    """Run the demonstration; 0 only if every task succeeded and every check held."""
    folder = Path(tempfile.mkdtemp(prefix="districomp-demo-"))
    keep = os.environ.get("KEEP", "") not in ("", "0")
    signal.signal(signal.SIGTERM, _interrupt)
    cluster = Cluster(folder, lease=f"{LEASE_S}s")
    kept = False
    try:
        verdict = run(cluster, Path.cwd() / "demo-output")
        if keep:
            kept = True
            _say_how_to_go_on(cluster)
        return verdict
    except KeyboardInterrupt:
        print()
        blow("interrupted; stopping everything")
        return 130
    except ClusterError as error:
        wrong(str(error))
        return 1
    finally:
        if not kept:
            cluster.stop()
            shutil.rmtree(folder, ignore_errors=True)


def _interrupt(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def run(cluster: Cluster, output: Path) -> int:
    """The three jobs; the exit code."""
    begun = time.monotonic()
    step("A coordinator and two workers, no address given: mDNS on the loopback interface finds it")
    jobs.install(cluster.config / "tasks.d")
    cluster.start_coordinator()
    for name in WORKERS:
        cluster.start_worker(name)
    cluster.wait_for_workers(len(WORKERS))
    page = wait_until(lambda: cluster.endpoint()["web"], "the statistics page")
    fact(f"cluster {cluster.name}: {', '.join(WORKERS)} joined; statistics page {bold(page)}")
    with Client(str(cluster.runtime / "control.sock")) as client:
        wait_until(lambda: {d.name for d in client.definitions()} >= jobs.NAMES, "the definitions to be live")
        todo = (jobs.Render(cluster, output), jobs.Identifiers(cluster), jobs.Checksum(cluster))
        checks = [job.run(client) for job in todo]
    seconds = time.monotonic() - begun
    if all(checks):
        good(
            f"all three jobs are right, nothing was lost, {seconds:.0f} s in all; the picture: {output / 'picture.png'}"
        )
        return 0
    wrong("not everything held: see above")
    return 1


def _say_how_to_go_on(cluster: Cluster) -> None:
    print()
    step("KEEP=1: the cluster goes on")
    fact(f"statistics page  {bold(cluster.endpoint()['web'])}")
    for key, value in sorted(cluster.environment.items()):
        if key.startswith("DISTRICOMP_"):
            fact(f"export {key}={value}")
    fact(f"then, for example:  {Path(sys.executable).parent / 'dctl'} run 'factor {{}}' ::: 12 15")
    pids = [process.pid for process in (*cluster.workers.values(), cluster.coordinator) if process]
    alive = " ".join(str(pid) for pid in pids if Path(f"/proc/{pid}").exists())
    fact(f"to stop it:  kill {alive}; rm -r {cluster.folder}")


if __name__ == "__main__":
    sys.exit(main())
