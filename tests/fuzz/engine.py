"""One target under atheris (libFuzzer), in a process of its own: `python -m tests.fuzz.engine NAME SECONDS FOLDER`.

A find does not end it: each kind of it (type of exception, and where in our code) is kept once as FOLDER/NAME-*. What
hangs, or takes more memory than there should be, ends it: libFuzzer keeps that input as FOLDER/NAME-timeout-* or -oom-*.
Writes FOLDER/NAME.json. Must know no target; not imported by the suite, which does without atheris.
"""

import contextlib
import hashlib
import json
import os
import random
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Final

import atheris

HANG_S: Final = 10
"""For one input, on a machine that others use too."""
MEMORY_MB: Final = 768
ADDRESS_SPACE_BYTES: Final = 1536 * 1024 * 1024
"""More than this process needs, and less than a hostile length asks for: taking too much at once is a MemoryError, a find."""
OURS: Final = ["districomp", "dcoord", "dworker"]


class Session:
    """A target's run: counts, and finds by their kind."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.executions = 0
        self.begun = time.monotonic()
        self.finds: dict[str, str] = {}

    def write(self, growth_kb: int) -> None:
        """What became of it, so far."""
        elapsed = time.monotonic() - self.begun
        content = {
            "target": self.name, "executions": self.executions, "seconds": round(elapsed, 1),
            "executions_per_s": round(self.executions / elapsed, 1), "growth_kb": growth_kb, "finds": self.finds,
        }  # fmt: skip
        (self.folder / f"{self.name}.json").write_text(json.dumps(content, indent=2) + "\n")

    def note(self, error: BaseException, data: bytes) -> None:
        """Keep the input of a new kind of find."""
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f for f in frames if any(f"/{package}/" in f.filename for package in OURS)] or frames
        kind = f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].lineno}"
        if kind in self.finds:
            return
        file = self.folder / f"{self.name}-{hashlib.sha256(data).hexdigest()[:12]}"
        file.write_bytes(data)
        self.finds[kind] = file.name
        print(f"FIND {self.name}: {kind}: {error!s:.200} ({file})", file=sys.stderr, flush=True)
        traceback.print_exception(error, limit=-12)


def resident_kb() -> int:
    """Memory in use now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024


def main(name: str, seconds: str, place: str) -> None:
    """Never returns: libFuzzer ends the process."""
    with atheris.instrument_imports(include=OURS):
        from tests.fuzz.table import TARGETS
    target = TARGETS[name]
    folder = Path(place)
    corpus = folder / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds():
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    words = folder / f"{name}.dict"
    words.write_text(
        "".join('"' + "".join(f"\\x{byte:02x}" for byte in word.encode()) + '"\n' for word in target.words)
    )
    session = Session(name, folder)
    opened = contextlib.ExitStack()
    run = opened.enter_context(target.open())
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    rng = random.Random(0)
    settled_kb = 0
    end = session.begun + float(seconds)

    def one(data: bytes) -> None:
        nonlocal settled_kb
        session.executions += 1
        try:
            run(data)
        except BaseException as error:  # noqa: BLE001 - the boundary: everything that gets here is a find
            session.note(error, data)
        if session.executions % 256 == 0:
            if not settled_kb and time.monotonic() - session.begun > float(seconds) / 3:
                settled_kb = resident_kb()
            session.write(resident_kb() - settled_kb if settled_kb else 0)
            if time.monotonic() > end:
                # libFuzzer looks at its own clock between inputs only when it feels like it.
                opened.close()
                session.write(resident_kb() - settled_kb if settled_kb else 0)
                os._exit(0)

    def mutate(data: bytes, size_max: int, _seed: int) -> bytes:
        if target.mutate is not None and rng.random() < 0.7:
            return target.mutate(bytes(data), rng)[:size_max]
        mutated: Any = atheris.Mutate(data, size_max)
        return bytes(mutated)

    arguments = [
        sys.argv[0], str(corpus), f"-max_len={target.bytes_max}", f"-max_total_time={int(float(seconds)) + 5}",
        f"-timeout={HANG_S}", f"-rss_limit_mb={MEMORY_MB}", f"-artifact_prefix={folder}/{name}-", "-print_final_stats=1",
        *([f"-dict={words}"] if target.words else []),
    ]  # fmt: skip
    atheris.Setup(arguments, one, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
