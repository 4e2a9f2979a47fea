"""Every target by its name."""

from typing import Final

from tests.fuzz import targets_net, targets_text, targets_web, targets_wire
from tests.fuzz.target import Target

TARGETS: Final[dict[str, Target]] = {
    **targets_wire.TARGETS,
    **targets_text.TARGETS,
    **targets_net.TARGETS,
    **targets_web.TARGETS,
}
