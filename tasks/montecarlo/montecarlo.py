"""Darts at a quarter circle: a function for the runner `python`."""

import random


def throw(data: bytes, darts: int) -> str:
    """Throw darts at the unit square, seeded by the data; how many hit the quarter circle, and how many there were."""
    chance = random.Random(data)
    inside = 0
    for _ in range(darts):
        x, y = chance.random(), chance.random()
        inside += x * x + y * y <= 1.0
    return f"{inside} {darts}"
