"""A real cluster whose coordinator has every definition of `tasks/`, for the tests that run them."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.cluster import Cluster, wait_until

ROOT = Path(__file__).resolve().parents[2]
TASKS = ROOT / "tasks"


class TasksLab:
    """A coordinator and one worker with two slots."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self.folder = folder
        self._jobs = 0

    @property
    def drop_ins(self) -> Path:
        """The coordinator's own `tasks.d`."""
        return self.cluster.config / "tasks.d"

    def wait_for(self, *names: str) -> None:
        """Until definitions are live."""
        wanted = set(names)

        def live() -> bool:
            entries = self.cluster.dctl_json("def", "list")
            wrong = [problem for entry in entries for problem in entry["problems"] if entry["name"] in wanted]
            # A bundle that is still being copied is wrong for a moment.
            return not wrong and wanted <= {entry["name"] for entry in entries if entry["version"]}

        wait_until(live, f"the definitions {names}")

    def results(self, *arguments: str) -> list[bytes]:
        """The results of a job, in task order, exactly. `arguments`: what follows `dctl submit`. All must be done."""
        self._jobs += 1
        folder = self.folder / f"results-{self._jobs}"
        number = self.cluster.dctl("submit", *arguments).stdout.decode().strip()
        self.cluster.dctl("wait", number, "--timeout", "50")
        self.cluster.dctl("results", number, "--dir", str(folder))
        return [path.read_bytes() for path in sorted(folder.iterdir(), key=lambda path: int(path.name))]

    def failed(self, *arguments: str) -> list[tuple[str, int | None, str]]:
        """Reason, exit code and end of the standard error of each attempt of a job's first task, which must fail."""
        number = self.cluster.dctl("submit", *arguments).stdout.decode().strip()
        assert self.cluster.dctl("wait", number, "--timeout", "50", check=False).returncode == 1
        attempts = self.cluster.dctl_json("task", "show", f"{number}.0")["attempts"]
        return [(attempt["reason"], attempt["exit_code"], attempt["stderr_tail"]) for attempt in attempts]


@pytest.fixture(scope="module")
def tasks_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TasksLab]:
    """All of `tasks/`, copied as its comments say, and live."""
    folder = tmp_path_factory.mktemp("tasks")
    with Cluster(folder) as cluster:
        lab = TasksLab(cluster, folder)
        names = sorted(path.stem for path in TASKS.glob("*.yaml"))
        for name in names:
            if (TASKS / name).is_dir():
                shutil.copytree(TASKS / name, lab.drop_ins / name, ignore=shutil.ignore_patterns("__pycache__"))
            shutil.copy(TASKS / f"{name}.yaml", lab.drop_ins)
        cluster.start_coordinator()
        cluster.start_worker("one", slots=2)
        cluster.wait_for_workers(1)
        lab.wait_for(*names)
        yield lab
