"""What a fuzz target is, and how MessagePack is mutated so that it stays MessagePack.

A target is a function of bytes that raises nothing but what it must: whatever leaves it is a find. It is used by
`make fuzz` (coverage-guided, `engine.py`) and by the suite (tests/integration/test_fuzz_targets.py: seeds, finds of
before, and a few hundred mutations of them, always the same).
"""

import contextlib
import random
import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Final, NamedTuple

import msgspec

Run = Callable[[bytes], None]
Mutate = Callable[[bytes, random.Random], bytes]

WALL: Final = 4096
"""Mutations beyond it are not worth their time."""
ODD: Final[list[Any]] = [
    None, True, False, 0, 1, -1, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63),
    0.0, -0.5, 1e-300, 1e308, float("nan"), float("inf"), float("-inf"), "", "\0", "a", "../..", "\N{RIGHT-TO-LEFT OVERRIDE}\x1b[2J",
    "x" * 300, "\U0001f600", b"", b"\0", b"x" * 33, [], {}, [[]], {"": None},
]  # fmt: skip


class Target(NamedTuple):
    """`open` gives the function, for as long as its context lasts. `seeds`: good and nearly good inputs to begin with.

    `words`: what a mutation may put in. `mutate`: one that keeps the outer form.
    """

    open: Callable[[], AbstractContextManager[Run]]
    seeds: Callable[[], list[bytes]]
    words: tuple[str, ...] = ()
    mutate: Mutate | None = None
    bytes_max: int = WALL


def always(run: Run) -> Callable[[], AbstractContextManager[Run]]:
    """A function that needs no place to work in."""
    return lambda: contextlib.nullcontext(run)


def packed(data: bytes, rng: random.Random) -> bytes:
    """MessagePack with a thing or two in it changed."""
    try:
        tree = msgspec.msgpack.decode(data)
    except (ValueError, RecursionError):
        return edited(data, rng)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        tree = _changed(tree, rng)
    if rng.random() < 0.1:
        return edited(msgspec.msgpack.encode(tree), rng)
    return msgspec.msgpack.encode(tree)


def framed(data: bytes, rng: random.Random) -> bytes:
    """Frames of the wire protocol, one of them changed, doubled, moved or left out."""
    frames = list(split_frames(data))
    if not frames:
        return edited(data, rng)
    at = rng.randrange(len(frames))
    choice = rng.random()
    if choice < 0.7:
        frames[at] = packed(frames[at], rng)
    elif choice < 0.8:
        frames.insert(at, frames[rng.randrange(len(frames))])
    elif choice < 0.9:
        del frames[at]
    else:
        return edited(data, rng)
    return b"".join(frame(each) for each in frames)


def edited(data: bytes, rng: random.Random, words: tuple[str, ...] = ()) -> bytes:
    """Bytes with some of them changed, left out, doubled, or with a word put in."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(changed) + 1)
        choice = rng.randrange(6 if words else 5)
        if choice == 0:
            changed[at : at + 1] = bytes((rng.randrange(256),))
        elif choice == 1:
            del changed[at : at + rng.choice((1, 2, 8, 100))]
        elif choice == 2:
            changed[at:at] = changed[at : at + rng.choice((1, 4, 40))]
        elif choice == 3:
            changed[at : at + 1] = bytes(byte ^ 1 << rng.randrange(8) for byte in changed[at : at + 1])
        elif choice == 4:
            changed[at:at] = bytes(rng.choice(b" \n\r\t\0:,-[]{}'\"%/.\xff\x80") for _ in range(rng.choice((1, 2))))
        else:
            changed[at:at] = rng.choice(words).encode()
    return bytes(changed)


def frame(body: bytes) -> bytes:
    """A frame of the wire protocol."""
    return struct.pack(">I", len(body)) + body


def split_frames(data: bytes) -> Iterator[bytes]:
    """The bodies of whole frames; what is left at the end is none."""
    at = 0
    while len(data) - at >= 4:
        (size,) = struct.unpack_from(">I", data, at)
        at += 4
        if size > len(data) - at:
            return
        yield data[at : at + size]
        at += size


def _changed(tree: Any, rng: random.Random) -> Any:
    """The tree with one node other than before; nearer to the root less often."""
    if isinstance(tree, list) and tree and rng.random() < 0.85:
        at = rng.randrange(len(tree))
        choice = rng.random()
        if choice < 0.8:
            return [*tree[:at], _changed(tree[at], rng), *tree[at + 1 :]]
        if choice < 0.87:
            return [*tree[:at], *tree[at + 1 :]]
        if choice < 0.94:
            return [*tree[:at], tree[rng.randrange(len(tree))], *tree[at:]]
        other = rng.randrange(len(tree))
        swapped = list(tree)
        swapped[at], swapped[other] = swapped[other], swapped[at]
        return swapped
    if isinstance(tree, dict) and tree and rng.random() < 0.85:
        key = rng.choice(list(tree))
        if rng.random() < 0.2:
            return {("" if each == key else each): value for each, value in tree.items()}
        return {**tree, key: _changed(tree[key], rng)}
    if isinstance(tree, bool) or tree is None:
        return rng.choice(ODD)
    if isinstance(tree, int) and rng.random() < 0.6:
        return max(-(2**63), min(2**64 - 1, tree + rng.choice((-1, 1, -tree, tree, 2**32, -2 * tree))))
    if isinstance(tree, float) and rng.random() < 0.6:
        return rng.choice((tree * 2, -tree, tree + 0.5, 0.0, float("nan"), float("inf"), 1e300))
    if isinstance(tree, str | bytes) and rng.random() < 0.5:
        text = edited(tree if isinstance(tree, bytes) else tree.encode(), rng)
        return text if isinstance(tree, bytes) else text.decode("utf-8", "replace")
    odd = rng.choice(ODD)
    return [odd] * rng.choice((1, 2, 9)) if rng.random() < 0.15 else odd
