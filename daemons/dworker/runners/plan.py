"""What the tasks of a job have in common, and what differs by their index: params and arguments.

Owns what the runners remember of jobs. Must not know how anything runs.
"""

from functools import cached_property
from typing import Any, Final

import msgspec

from districomp.arguments import Arguments
from districomp.taskdef import Definition, matrix_params
from dworker.cache import Bundle
from dworker.events import StartAttempts
from dworker.hold import arguments_vary

_PLANS_MAX: Final = 256


class Plan:
    """One job. A definition that nobody checked makes this, `params` and `arguments` raise anything."""

    def __init__(self, effect: StartAttempts) -> None:
        self.definition: Definition = effect.definition
        self.given = effect.params
        self.matrix = effect.matrix
        self.bundle: Bundle | None = None
        self._vary = arguments_vary(self.definition, self.matrix)
        self._arguments = Arguments(self.definition, self.params(0))

    def params(self, index: int) -> dict[str, Any]:
        """A task's params; the same object for all tasks without a matrix."""
        return self.given | matrix_params(self.matrix, index) if self.matrix else self.given

    def arguments(self, index: int) -> Arguments:
        """A task's arguments, in which only the item and the index are still open."""
        return Arguments(self.definition, self.params(index)) if self._vary else self._arguments

    @cached_property
    def given_bytes(self) -> bytes:
        """The params that all tasks share, in a form that can be compared."""
        return msgspec.msgpack.encode(self.given, order="deterministic")


class Plans:
    """The plans of the jobs used lately."""

    def __init__(self) -> None:
        self._plans: dict[tuple[int, str], Plan] = {}

    def get(self, effect: StartAttempts) -> Plan:
        """The plan of an effect's job."""
        key = effect.job, effect.definition.digest
        plan = self._plans.get(key)
        # Another cluster has other jobs of the same numbers.
        if plan is None or plan.given is not effect.params or plan.matrix is not effect.matrix:
            if len(self._plans) >= _PLANS_MAX:
                del self._plans[next(iter(self._plans))]
            plan = self._plans[key] = Plan(effect)
        return plan
