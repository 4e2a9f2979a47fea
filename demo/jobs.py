"""The demonstration's three jobs: what is submitted, what is broken meanwhile, and how the result is checked.

Each is watched with `dctl`'s own progress bar and checked against the same work done in this one process.
"""

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sysconfig
import threading
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Final

from demo.cluster import Cluster, ClusterError, script, wait_until
from demo.screen import blow, fact, good, step, wrong
from districomp.client import Client
from districomp.documents import JobDocument, TaskDocument

TASKS: Final = Path(__file__).resolve().parents[1] / "tasks"
NAMES: Final = frozenset(("render", "identifiers", "checksum"))
STRIPS: Final = 100
WIDTH, HEIGHT = 1200, 800
SHOWN_RETRIES: Final = 3
DAMAGE_AT: Final = 0.3
"""How much of a job is done when something is killed."""


def install(folder: Path) -> None:
    """Drop the definitions and their bundles into a `tasks.d`."""
    for name in sorted(NAMES):
        shutil.copy(TASKS / f"{name}.yaml", folder)
        if (TASKS / name).is_dir():
            shutil.copytree(TASKS / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))


def library_files() -> list[Path]:
    """Every Python file of the running interpreter's standard library."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    return sorted(path for path in stdlib.rglob("*.py") if "site-packages" not in path.parts)


def load(path: Path) -> ModuleType:
    """A program of a bundle, as a module: the check in one process runs the very same code."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class DemoJob:
    """A job: submitted, watched, perhaps damaged, then checked."""

    title = ""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def arguments(self) -> Sequence[str]:
        """What follows `dctl submit`."""
        raise AssertionError("a job says what it submits")

    def damage(self, client: Client, job: int) -> None:
        """Break something while the job runs."""

    def check(self, client: Client, job: int) -> bool:
        """Whether the result is right; says what it found."""
        raise AssertionError("a job checks its result")

    def run(self, client: Client) -> bool:
        """The whole of it; whether every task succeeded and the result is right."""
        step(self.title)
        # One process from submission to end, so that nothing is shot before it watches.
        with subprocess.Popen(
            [script("dctl"), "submit", *self.arguments(), "--progress"],
            env=self.cluster.environment, stdout=subprocess.PIPE,
        ) as watching:  # fmt: skip
            try:
                number = self._number_of(watching)
                damage = threading.Thread(target=self._damage_safely, args=(client, number), daemon=True)
                damage.start()
                watched = watching.wait()
                damage.join()
            except BaseException:
                watching.kill()
                raise
        document = client.document(number)
        retried = self._tell_shares(client, document)
        broken = type(self).damage is not DemoJob.damage
        self._tell_retries(retried)
        if watched != 0 or document.state != "done" or self._damage_failed:
            wrong(f"job {number} is {document.state}: {document.counts}; {self._damage_failed}")
            return False
        return self.check(client, number) and (not broken or self._damage_seen)

    _damage_failed = ""
    _damage_seen = False

    @staticmethod
    def _number_of(watching: "subprocess.Popen[bytes]") -> int:
        """The job's number, which is printed as soon as the submission is on disk."""
        assert watching.stdout is not None
        line = watching.stdout.readline()
        if not line.strip().isdigit():
            raise ClusterError(f"dctl submit gave no job number but {line!r}")
        return int(line)

    def _damage_safely(self, client: Client, number: int) -> None:
        try:
            self.damage(client, number)
        except Exception as error:  # noqa: BLE001 - a thread's error must reach the verdict
            self._damage_failed = f"{type(error).__name__}: {error}"

    def _wait_for_part(self, client: Client, job: int) -> None:
        def part() -> bool:
            document = client.document(job)
            assert document.state in ("queued", "running"), "the job ended before anything could be broken"
            return document.counts.done >= DAMAGE_AT * document.tasks

        wait_until(part, f"{DAMAGE_AT:.0%} of job {job}", 60)

    def _tell_shares(self, client: Client, document: JobDocument) -> list[TaskDocument]:
        names = {worker.worker: worker.name for worker in client.workers()}
        tasks = client.tasks(document.job)
        shares = Counter(names.get(t.attempts[-1].worker, "?") for t in tasks if t.state == "done" and t.attempts)
        seconds = _seconds(document)
        share = ", ".join(f"{name} {count}" for name, count in sorted(shares.items()))
        fact(f"{document.counts.done} tasks in {seconds:.1f} s, {document.tasks / seconds:,.0f} tasks/s: {share}")
        for task in tasks:
            for attempt in task.attempts:
                attempt.worker = names.get(attempt.worker, attempt.worker)
        return [task for task in tasks if len(task.attempts) > 1]

    @staticmethod
    def _tell_retries(retried: list[TaskDocument]) -> None:
        for task in retried[:SHOWN_RETRIES]:
            story = " -> ".join(f"{attempt.reason} on {attempt.worker}" for attempt in task.attempts)
            fact(f"retried: task {task.task}: {story}")
        if len(retried) > SHOWN_RETRIES:
            fact(f"and {len(retried) - SHOWN_RETRIES} more retried tasks")


def _seconds(document: JobDocument) -> float:
    begun, ended = document.started, document.ended
    if begun is None or ended is None:
        return 1e-3
    return max(1e-3, (datetime.fromisoformat(ended) - datetime.fromisoformat(begun)).total_seconds())


class Render(DemoJob):
    """A picture in strips; a busy worker is killed."""

    title = f"render: a {WIDTH} x {HEIGHT} picture in {STRIPS} strips, its program shipped as the definition's bundle"

    def __init__(self, cluster: Cluster, output: Path) -> None:
        super().__init__(cluster)
        self._output = output

    def arguments(self) -> Sequence[str]:
        """One task a strip."""
        sizes = {"strips": STRIPS, "width": WIDTH, "height": HEIGHT}
        params = [part for key, value in sizes.items() for part in ("--param", f"{key}={value}")]
        return ["render", "--range", f"0..{STRIPS - 1}", *params, "--name", "picture"]

    def damage(self, client: Client, job: int) -> None:
        """Kill a busy worker; then start another machine in its place."""
        self._wait_for_part(client, job)
        busy = wait_until(lambda: [w for w in client.workers() if w.running and w.name in self.cluster.workers], "work")
        victim = busy[-1].name
        self.cluster.workers[victim].kill()
        blow(f"kill -9 {victim}, a busy worker")
        wait_until(lambda: [w for w in client.workers() if w.name == victim and w.state == "lost"], f"{victim} lost")
        blow(f"{victim} is lost, its task is queued again; carla joins in its place")
        del self.cluster.workers[victim]
        self.cluster.start_worker("carla")
        self._damage_seen = True

    def check(self, client: Client, job: int) -> bool:
        """Stitch the strips; the pixels' digest is known."""
        stitch = load(TASKS / "render" / "stitch.py")
        expected = (TASKS / "render" / "picture.sha256").read_text().split()[0]
        pixels = b"".join(result.read() for result in client.job(job).results())
        self._output.mkdir(exist_ok=True)
        (self._output / "picture.png").write_bytes(stitch.png(pixels, WIDTH, HEIGHT))
        digest = hashlib.sha256(pixels).hexdigest()
        if digest != expected:
            wrong(f"the picture's digest is {digest}, not {expected}")
            return False
        good(f"{self._output / 'picture.png'}: the digest is as expected, {digest[:16]}...")
        return True


class Identifiers(DemoJob):
    """Names in the standard library, counted by a stream runner."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        self._files = library_files()
        large = sum(path.stat().st_size > 64 * 1024 for path in self._files)
        self.title = (
            f"identifiers: {len(self._files):,} files of Python's standard library through a stream runner; "
            f"{large} above 64 KiB are fetched from GET /tasks/ID"
        )

    def arguments(self) -> Sequence[str]:
        """One task a file."""
        return ["identifiers", "--each-file", *map(str, self._files), "--name", "names"]

    def check(self, client: Client, job: int) -> bool:
        """The merged counts are those of one process."""
        merged: Counter[str] = Counter()
        for result in client.job(job).results():
            merged.update(json.loads(result.read()))
        program = load(TASKS / "identifiers" / "identifiers.py")
        alone: Counter[str] = Counter()
        for path in self._files:
            alone.update(program.count(path.read_bytes()))
        top = merged.most_common(20)
        for row in range(0, 20, 5):
            fact("  ".join(f"{count:7,} {name:<12}" for name, count in top[row : row + 5]))
        if merged != alone:
            wrong("the counts differ from those of one process")
            return False
        good(f"{sum(merged.values()):,} names, {len(merged):,} different, equal to a count in one process")
        return True


class Checksum(DemoJob):
    """The system's sha256sum over the same files, a process each; the coordinator is killed."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        self._files = library_files()
        self.title = f"checksum: the system's own sha256sum over the same {len(self._files):,} files, a process each"

    def arguments(self) -> Sequence[str]:
        """One task a file."""
        return ["checksum", "--each-file", *map(str, self._files), "--name", "digests"]

    def damage(self, client: Client, job: int) -> None:
        """Kill the coordinator, and start it again."""
        self._wait_for_part(client, job)
        assert self.cluster.coordinator is not None
        self.cluster.coordinator.kill()
        blow("kill -9 dcoord, the coordinator; the workers keep their tasks running")
        self.cluster.start_coordinator()
        status = client.status()
        blow(f"dcoord is started again: epoch {status.epoch}, {status.tasks.done:,} results still there")
        self._damage_seen = True

    def check(self, client: Client, job: int) -> bool:
        """Every digest is what Python's hashlib says."""
        count = 0
        for path, result in zip(self._files, client.job(job).results(), strict=True):
            if result.read().split()[0].decode() != hashlib.sha256(path.read_bytes()).hexdigest():
                wrong(f"{path}: task {result.task} has another digest")
                return False
            count += 1
        good(f"{count:,} digests, equal to Python's own")
        return True
