"""Every target of `make fuzz` without its engine: seeds, what was found before, and mutations of them, always the same.

Nothing but errors of ours may come out, and what a target takes of memory is bounded.
"""

import random
import tracemalloc
from pathlib import Path

import pytest

from tests.fuzz.table import TARGETS
from tests.fuzz.target import edited

CORPUS = Path(__file__).resolve().parents[1] / "fuzz" / "corpus"
MUTATIONS = 300
GROWTH_BYTES_MAX = 8 * 1024 * 1024


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_finds_nothing(name: str) -> None:
    target = TARGETS[name]
    found_before = [file.read_bytes() for file in sorted((CORPUS / name).glob("*"))]
    inputs = [*target.seeds(), *found_before, b""]
    rng = random.Random(name)
    with target.open() as run:
        for data in inputs:
            run(data)
        for _ in range(MUTATIONS):
            data = rng.choice(inputs)
            run(target.mutate(data, rng) if target.mutate is not None else edited(data, rng, target.words))


@pytest.mark.parametrize("name", [name for name in TARGETS if name not in ("http", "enrolment")])
def test_a_target_keeps_nothing(name: str) -> None:
    """The same inputs again take no more memory than the first time, and none of them much."""
    target = TARGETS[name]
    inputs = target.seeds()[:40]
    with target.open() as run:
        for data in inputs:
            run(data)
        tracemalloc.start()
        try:
            for data in inputs:
                run(data)
            before, _ = tracemalloc.get_traced_memory()
            for data in inputs:
                run(data)
            after, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert after - before < 256 * 1024
    assert peak < GROWTH_BYTES_MAX
