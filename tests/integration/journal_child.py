"""A process of its own for test_journal: commits until it is killed, or until its files may not grow.

`python journal_child.py forever PATH`: prints the number of each batch whose commit has returned.
`python journal_child.py full|close PATH BYTES`: until RLIMIT_FSIZE refuses, then what happened, as JSON.
"""

import json
import resource
import sys
from pathlib import Path

from dcoord.core.records import JobRecord, OutcomeRecord, Record
from dcoord.journal import PROBE_BYTES, Journal
from districomp.errors import JournalError
from districomp.outcome import Outcome

TASKS = 10_000_000
JOBS = 2
ROWS_OF_A_LARGE_BATCH = 600
"""More than a statement takes: such a batch is several statements."""


def jobs() -> list[Record]:
    """Two jobs, so that half a batch would be seen."""
    return [JobRecord(n, f"r{n}", "", "", "d", "n", {}, TASKS, (0, 1), None, 1.0) for n in range(1, JOBS + 1)]


def batch(number: int, size: int) -> list[Record]:
    """The rows of batch `number` = 1, 2, ...: every third is large, its rows spread over both jobs' serials."""
    serial = (number - 1) * ROWS_OF_A_LARGE_BATCH + 1
    rows = ROWS_OF_A_LARGE_BATCH if number % 3 == 0 else 1
    return [
        OutcomeRecord(Outcome(job, serial + row, "w", [serial + row], results=[b"r" * size]))
        for row in range(rows)
        for job in range(1, JOBS + 1)
    ]


def forever(path: Path) -> None:
    """Commit batch after batch and say so; ends by being killed."""
    journal = Journal.open(path)
    journal.commit(jobs())
    number = 0
    while True:
        number += 1
        journal.commit(batch(number, 300))
        print(number, flush=True)


def full(path: Path, file_bytes: int) -> None:
    """Commit until the disk is full, look around, then go on with more space."""
    journal = Journal.open(path)
    journal.commit(jobs())
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, hard))
    number = 0
    errors: list[str] = []
    while not errors:
        try:
            journal.commit(batch(number + 1, 20_000))
            number += 1
        except JournalError as error:
            errors.append(str(error))
    try:
        journal.commit(batch(number + 1, 20_000))
    except JournalError as error:
        errors.append(str(error))
    try:
        for _ in range(file_bytes // PROBE_BYTES):  # the batch was larger than what is left
            journal.probe()
    except JournalError as error:
        errors.append(str(error))
    serials_full = [job.last_serial for job in journal.restore().jobs]
    rows_full = journal.rows(1, 0, 1)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    journal.probe()
    journal.commit(batch(number + 1, 20_000))
    serials_healed = [job.last_serial for job in journal.restore().jobs]
    journal.close()
    print(json.dumps([number, errors, serials_full, rows_full, serials_healed]))


def full_to_the_end(path: Path, file_bytes: int) -> None:
    """Commit until the disk is full, and close while it is."""
    journal = Journal.open(path)
    journal.commit(jobs())
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    number = 0
    try:
        while True:
            journal.commit(batch(number + 1, 20_000))
            number += 1
    except JournalError:
        journal.close()
    print(json.dumps(number))


if __name__ == "__main__":
    what, where, *limit = sys.argv[1:]
    if what == "forever":
        forever(Path(where))
    elif what == "full":
        full(Path(where), int(limit[0]))
    else:
        full_to_the_end(Path(where), int(limit[0]))
