"""What the simulator found in the coordinator's core, each as the shortest story that shows it."""

from dcoord.core.core import Core
from dcoord.core.events import Degraded
from dcoord.core.records import OutcomeRecord, WorkerRecord
from districomp.messages import PROTOCOL_VERSION, HelloWorker, Machine
from districomp.model import FAILED
from tests.unit.corelab import SETTINGS, Lab, restore


def test_a_core_that_starts_on_a_full_disk_serves_nothing_and_is_sound() -> None:
    lab = Lab()
    lab.submit(3)
    core = Core(SETTINGS, restore(lab.records, 1), lab.now)
    assert core.handle_batch([Degraded("disk full")], lab.now) + core.tick(lab.now) == []
    core.check()


def test_what_may_run_once_does_not_run_again_when_its_worker_comes_back_as_another_process() -> None:
    lab = Lab()
    lab.join(1, process=1)
    job = lab.submit(1, "once")
    assert lab.leases(1)
    later = lab.restart()
    later.join(2, worker="w1", process=2)
    assert later.leases(2) == []
    assert later.core.jobs[job].counts[FAILED] == 1
    assert later.recorded(OutcomeRecord)[-1].outcome.reasons == ["outcome_unknown"]


def test_a_worker_that_is_late_with_its_inventory_is_still_here_after_the_next_restart() -> None:
    lab = Lab()
    lab.join(1)
    later = lab.restart()
    later.advance(14.0)
    later.receive(2, HelloWorker(PROTOCOL_VERSION, "", "w1", "w1", 1, Machine(), 1))
    later.advance(2.0)
    assert later.recorded(WorkerRecord)[-1].present
    assert list(later.restart().core.returning) == ["w1"]
