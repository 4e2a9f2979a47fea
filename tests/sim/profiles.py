"""What kinds of tasks there are in the simulated world: their definitions, and how their attempts go."""

import hashlib
from random import Random
from typing import Final

import msgspec

from districomp.model import Blob, Item, Payload
from districomp.taskdef import Definition, Retries, with_digest

BIG_BYTES: Final = 100_000
LIMIT_S: Final = 20.0
"""The time limit of what would never end; only the healed world enforces it."""


class Profile(msgspec.Struct, frozen=True):
    """A kind of task. `mean_s`: of an attempt; `fails`, `hangs`: how probable that is; `big`: results are blobs; `spikes`: so many take a hundred times as long."""

    definition: Definition
    mean_s: float
    fails: float = 0.0
    hangs: float = 0.0
    big: bool = False
    spikes: float = 0.0


class Fate(msgspec.Struct):
    """How an attempt goes if nobody stops it. `took_s` None: it never ends."""

    took_s: float | None
    reason: str
    exit_code: int | None
    signal: int | None
    result: Payload | None


def draw_profiles(random: Random) -> dict[str, Profile]:
    """By the definition's name."""

    def profile(name: str, low: float, high: float, **keys: object) -> Profile:
        fields: dict[str, object] = {
            "description": "",
            "runner": "command",
            "argv": ["true"],
            "digest": "",
            "retries": Retries(max=random.randint(0, 4), backoff_s=random.choice((0.0, 0.1, 1.0)), never_on=[2]),
        }
        fields |= {key: keys.pop(key) for key in ("runner", "rerun") if key in keys}
        definition = with_digest(Definition(name=name, **fields))  # type: ignore[arg-type]
        return Profile(definition, random.uniform(low, high), **keys)  # type: ignore[arg-type]

    profiles = [
        profile("quick", 0.01, 0.2, fails=random.uniform(0.0, 0.02)),
        profile("slow", 1.0, 6.0, fails=random.uniform(0.0, 0.05)),
        profile("stream", 0.001, 0.02, runner="stream", fails=random.uniform(0.0, 0.02), spikes=0.03),
        profile("once", 0.2, 3.0, rerun="never", fails=random.uniform(0.0, 0.1)),
        profile("flaky", 0.05, 1.5, fails=random.uniform(0.2, 0.6)),
        profile("large", 0.1, 1.0, big=True, fails=random.uniform(0.0, 0.05)),
        profile("hanging", 0.1, 2.0, hangs=random.uniform(0.02, 0.1), fails=0.02),
    ]
    return {entry.definition.name: entry for entry in profiles}


def stretched(profiles: dict[str, Profile], factor: float) -> dict[str, Profile]:
    """The same, with all attempts taking `factor` times as long."""
    return {name: msgspec.structs.replace(entry, mean_s=entry.mean_s * factor) for name, entry in profiles.items()}


def edited(definition: Definition, version: int) -> Definition:
    """The definition as somebody changed it."""
    return with_digest(msgspec.structs.replace(definition, description=f"version {version}", digest=""))


def item_bytes(item: Item | None) -> bytes:
    """What a task gets, as bytes that name it."""
    return b"-" if item is None else msgspec.msgpack.encode(item)


def result_of(job: int, index: int, item: Item | None, lease: int, big: bool) -> Payload:
    """What an attempt produces: different for each task, item and lease."""
    content = b"%d.%d|%d|" % (job, index, lease) + item_bytes(item)
    return Blob(hashlib.sha256(content).digest(), BIG_BYTES + lease % 1000) if big else content


def draw_fate(random: Random, profile: Profile, result: Payload, is_healed: bool) -> Fate:
    """How an attempt goes; in the healed world what would never end meets its time limit."""
    took_s = random.expovariate(1.0 / profile.mean_s)
    if profile.spikes and random.random() < profile.spikes:
        took_s *= 100
    if random.random() < profile.hangs:
        return Fate(LIMIT_S if is_healed else None, "timeout", None, 15, None)
    if random.random() < profile.fails:
        reason = random.choice(("exit", "exit", "exit", "signal", "memory", "output_invalid"))
        code = random.choice((1, 1, 1, 2, 77)) if reason == "exit" else None
        return Fate(took_s, reason, code, 9 if reason == "signal" else None, None)
    return Fate(took_s, "done", None, None, result)
