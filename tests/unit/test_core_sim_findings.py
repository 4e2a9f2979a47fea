"""What the simulator found in the coordinator's core, each as the shortest story that shows it."""

from dcoord.core.core import Core
from dcoord.core.events import Degraded
from tests.unit.corelab import SETTINGS, Lab, restore


def test_a_core_that_starts_on_a_full_disk_serves_nothing_and_is_sound() -> None:
    lab = Lab()
    lab.submit(3)
    core = Core(SETTINGS, restore(lab.records, 1), lab.now)
    assert core.handle_batch([Degraded("disk full")], lab.now) + core.tick(lab.now) == []
    core.check()
