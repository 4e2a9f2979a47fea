"""What everybody in a simulated world shares. Holds it, and does nothing with it."""

from random import Random

import msgspec

from tests.sim.faults import Rates, Tally
from tests.sim.loop import Loop
from tests.sim.network import Network
from tests.sim.oracle import Oracle
from tests.sim.profiles import Profile


class Stage(msgspec.Struct):
    """One world: its time, its dice, its network, and who watches. `check_rate`: how often a worker's core is checked."""

    loop: Loop
    random: Random
    rates: Rates
    tally: Tally
    network: Network
    oracle: Oracle
    profiles: dict[str, Profile]
    lease_s: float
    certificate_s: float
    check_rate: float
