"""Reading the journal: the queries, and `Reader`, a connection that never writes.

Owns every SELECT and what is checked before a file is believed to be a journal. Must not know the
core, and must never leave a query unfinished: an open one would keep the log from being cut.
`dcoord-web` uses a Reader of its own beside the writing coordinator.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final

import apsw

from dcoord import journal_rows as rows_of
from dcoord.core.records import Head, IdentityRecord, JobRecord, RestoredJob, TokenRecord
from districomp.errors import JournalError
from districomp.model import DONE, QUEUED, STATE_NAMES, Item, Payload
from districomp.outcome import Outcome
from districomp.wire import UNREADABLE

APPLICATION_ID: Final = 0x64636D70
"""'dcmp' in the file's header: PRAGMA application_id."""
VERSION: Final = 2
"""PRAGMA user_version: the tables of `schema.sql` and of what was added since."""
VERSION_OLDEST: Final = 1
"""What a coordinator makes a file of this version from."""
BUSY_MS: Final = 5000
"""How long a connection waits for another one's lock; held only for moments (recovery, checkpoint)."""

ENTRIES_KEPT: Final = 4
"""Of submissions, unpacked rows and unpacked chunks each, that a Reader keeps at hand."""

_OUR_BUGS: Final = (
    apsw.BindingsError,
    apsw.ConstraintError,
    apsw.MismatchError,
    apsw.MisuseError,
    apsw.ThreadingViolationError,
)
_JOB_COLUMNS: Final = "jobs.job, request_id, user, name, definition, definition_name, count, {details}, submitted"
_HEAD_COLUMNS: Final = "serial, first, count, offsets, states, reasons, sweep"


class UnknownTaskError(LookupError):
    """There is no such job, or it has no task of that index."""


class NotDoneError(LookupError):
    """The task has no result: it has not ended, or not well; `state` names what is known of it."""

    def __init__(self, message: str, state: str) -> None:
        super().__init__(message)
        self.state = state


def query(connection: apsw.Connection, sql: str, bindings: Any = ()) -> list[Any]:
    """Every row of a query at once, so that none is left open."""
    return connection.execute(sql, bindings).fetchall()


@contextlib.contextmanager
def reported(path: Path, doing: str) -> Iterator[None]:
    """Turn what the database or the file system says into a JournalError that names the file."""
    try:
        yield
    except _OUR_BUGS:
        raise
    except apsw.NotADBError as error:
        raise JournalError(f"{path} is not a journal of dcoord; move it away or set another state folder") from error
    except apsw.CorruptError as error:
        raise JournalError(
            f"{path} is damaged, {doing} failed: {error}; stop dcoord and put back a copy of it"
        ) from error
    except apsw.FullError as error:
        raise JournalError(f"{doing} failed in {path}: its file system is full; make free space there") from error
    except apsw.IOError as error:
        code = apsw.mapping_extended_result_codes.get(getattr(error, "extendedresult", 0), "no further code")
        raise JournalError(
            f"{doing} failed in {path}: {error} ({code}); look for free space on its file system, "
            "for a quota, and for disk errors in the system's log"
        ) from error
    except (apsw.Error, OSError) as error:
        raise JournalError(f"{doing} failed in {path}: {error}") from error
    except UNREADABLE as error:
        raise JournalError(f"{path} is damaged, {doing} failed: an entry cannot be read: {error}") from error


def check_version(connection: apsw.Connection, path: Path, oldest: int = VERSION) -> int:
    """The version of a journal; JournalError with what to do for any other file, or a version that is not `oldest` to ours."""
    application = connection.pragma("application_id")
    if application != APPLICATION_ID:
        raise JournalError(f"{path} is not a journal of dcoord; move it away or set another state folder")
    version = connection.pragma("user_version")
    if 0 < version < oldest:
        raise JournalError(f"{path} has version {version} of the journal; start this dcoord, which makes it {VERSION}")
    if version not in range(oldest, VERSION + 1):
        raise JournalError(
            f"{path} has version {version} of the journal, this dcoord reads version {VERSION}; "
            f"install the dcoord that wrote it, or a newer one"
        )
    return int(version)


def select_tokens(connection: apsw.Connection) -> list[TokenRecord]:
    """All join tokens, the oldest first."""
    columns = "id, hash, role, created, expires, uses_left, used, labels, revoked"
    found = query(connection, f"SELECT {columns} FROM tokens ORDER BY created, id")
    return [rows_of.unpack_token(columns) for columns in found]


def select_identities(connection: apsw.Connection) -> list[IdentityRecord]:
    """All holders of certificates, the oldest first."""
    columns = "id, role, name, token, labels, since, expires, revoked, removed, key"
    found = query(connection, f"SELECT {columns} FROM identities ORDER BY since, id")
    return [rows_of.unpack_identity(columns) for columns in found]


def select_rows(connection: apsw.Connection, job: int, after: int, bytes_max: int) -> tuple[list[bytes], int]:
    """A job's packed outcomes with a serial above `after`, of at most `bytes_max` together but at least one.

    In one step, as text: a step a row would wait for the interpreter's lock at every row (decision 002).
    """
    found = query(
        connection,
        """
        WITH RECURSIVE
          taken (key, total) AS (
            SELECT min(key), 0 FROM outcomes WHERE key > :after AND key <= :last
            UNION ALL
            SELECT next.key, total + length(this.body) AS total
            FROM taken
            JOIN outcomes AS this ON this.key = taken.key
            JOIN outcomes AS next
              ON next.key = (SELECT min(key) FROM outcomes WHERE key > taken.key AND key <= :last)
            WHERE total + length(this.body) + length(next.body) <= :bytes_max
          )
        SELECT group_concat(hex(body), ' ' ORDER BY key), max(key)
        FROM outcomes WHERE key > :after AND key <= (SELECT max(key) FROM taken)
        """,
        {
            "after": rows_of.key(job, after),
            "last": rows_of.key(job, rows_of.LOW_MASK),
            "bytes_max": bytes_max,
        },
    )
    text, last = found[0]
    if text is None:
        return [], after
    return [bytes.fromhex(body) for body in text.split(" ")], last & rows_of.LOW_MASK


def select_payload(connection: apsw.Connection, job: int, first: int) -> list[Item]:
    """The chunk of a job's items that begins at index `first`; LookupError if there is none."""
    for (items,) in query(connection, "SELECT items FROM payloads WHERE key = ?", (rows_of.key(job, first),)):
        return rows_of.unpack_items(items)
    raise LookupError(f"job {job} has no items that begin at index {first}")


def select_outcome(connection: apsw.Connection, job: int, serial: int) -> Outcome:
    """A row of a job's outcomes that a head names."""
    for (body,) in query(connection, "SELECT body FROM outcomes WHERE key = ?", (rows_of.key(job, serial),)):
        return rows_of.unpack_outcome(body)
    raise JournalError(f"{connection.filename} is damaged: row {serial} of job {job} is missing")


def select_jobs(connection: apsw.Connection, job: int | None = None) -> list[RestoredJob]:
    """All jobs by number, those that have ended without their details; or one.

    With everything else but the chunks, the heads and an unended job's last serial.
    """
    details = "CASE WHEN ends.job IS NULL THEN details END" if job is None else "details"
    found = query(
        connection,
        f"""
        SELECT {_JOB_COLUMNS.format(details=details)}, frontier, started, state, counts, ended, last_serial
        FROM jobs LEFT JOIN frontiers USING (job) LEFT JOIN ends USING (job)
        {"" if job is None else "WHERE jobs.job = ?"} ORDER BY jobs.job
        """,
        () if job is None else (job,),
    )
    return [_restored_job(columns) for columns in found]


def select_record(connection: apsw.Connection, job: int) -> JobRecord:
    """A submission as it was made; LookupError if there is no such job."""
    for found in select_jobs(connection, job):
        return found.record
    raise LookupError(f"there is no job {job}")


def _restored_job(columns: tuple[Any, ...]) -> RestoredJob:
    record = rows_of.unpack_job(columns[:9])
    frontier, started, state, counts, ended, last_serial = columns[9:]
    return RestoredJob(
        record=record,
        frontier=frontier or 0,
        started=started,
        chunks=[],
        heads=[],
        last_serial=last_serial or 0,
        end=None if state is None else rows_of.unpack_end(record.job, state, counts, ended),
    )


def select_heads(connection: apsw.Connection, job: int) -> list[Head]:
    """What became of a job's tasks, row by row, by serial."""
    found = query(connection, f"SELECT {_HEAD_COLUMNS} FROM heads WHERE job = ?", (job,))
    found.sort()  # by serial, which is unique in a job
    return [rows_of.unpack_head(columns) for columns in found]


def select_chunks(connection: apsw.Connection, job: int) -> list[int]:
    """The first index of each of a job's payload chunks, ascending."""
    found = query(
        connection,
        "SELECT key FROM payloads WHERE key BETWEEN ? AND ? ORDER BY key",
        (rows_of.key(job, 0), rows_of.key(job, rows_of.LOW_MASK)),
    )
    return [key & rows_of.LOW_MASK for (key,) in found]


class Reader:
    """A read-only connection to a journal that may be in use, for one thread at a time. Every method sees one moment."""

    def __init__(self, path: Path) -> None:
        """JournalError if the file is missing, foreign or of another version."""
        self._path = path
        if not path.is_file():
            raise JournalError(f"{path} does not exist; dcoord makes it when it first starts")
        with reported(path, "opening"):
            self._connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
            try:
                self._connection.set_busy_timeout(BUSY_MS)
                check_version(self._connection, path)
            except BaseException:
                self._connection.close()
                raise
        # Neighbouring tasks share these, which never change once written.
        self._record: Callable[[int], JobRecord] = lru_cache(ENTRIES_KEPT)(partial(select_record, self._connection))
        self._items: Callable[[int, int], list[Item]] = lru_cache(ENTRIES_KEPT)(
            partial(select_payload, self._connection)
        )
        self._outcome: Callable[[int, int], Outcome] = lru_cache(ENTRIES_KEPT)(
            partial(select_outcome, self._connection)
        )

    def item(self, job: int, index: int) -> Item | None:
        """What a task was given; None if there is no such task, b"" if its job has no input."""
        with self._reading(f"reading task {job}.{index}"):
            record = self._submission(job)
            if record is None or not 0 <= index < record.count:
                return None
            if record.numbers is not None:
                start, step = record.numbers
                return str(start + index * step).encode()
            chunk = query(
                self._connection,
                "SELECT key, count FROM payloads WHERE key BETWEEN ? AND ? ORDER BY key DESC LIMIT 1",
                (rows_of.key(job, 0), rows_of.key(job, index)),
            )
            if not chunk:
                return b""
            first: int = chunk[0][0] & rows_of.LOW_MASK
            if index - first >= chunk[0][1]:
                raise JournalError(f"{self._path} is damaged: the item of task {job}.{index} is missing")
            return self._items(job, first)[index - first]

    def result(self, job: int, index: int) -> Payload | None:
        """The recorded result of a task that is done; UnknownTaskError or NotDoneError if it is not one."""
        with self._reading(f"reading the result of task {job}.{index}"):
            record = self._submission(job)
            if record is None or not 0 <= index < record.count:
                raise UnknownTaskError(f"there is no task {job}.{index}")
            attempts = self._attempts(job, index)
            for attempt in reversed(attempts):
                if attempt.states[0] == DONE:
                    return attempt.results[0]
            code = self._state(job, attempts)
            state = "queued or running" if code == QUEUED else STATE_NAMES[code]
            raise NotDoneError(f"task {job}.{index} has no result: it is {state}", state)

    def attempts(self, job: int, index: int) -> list[Outcome]:
        """A task's ended attempts in order, each an outcome of one entry with every column filled in."""
        with self._reading(f"reading the attempts of task {job}.{index}"):
            return self._attempts(job, index)

    def state(self, job: int, index: int) -> int:
        """A task's state, as far as the journal knows: without looking at the others of its job."""
        with self._reading(f"reading the state of task {job}.{index}"):
            return self._state(job, self._attempts(job, index))

    def rows(self, job: int, after: int, bytes_max: int) -> tuple[list[bytes], int]:
        """As `Journal.rows`."""
        with self._reading(f"reading the results of job {job}"):
            return select_rows(self._connection, job, after, bytes_max)

    def heads(self, job: int) -> Iterator[Head]:
        """What became of a job's tasks, row by row, by serial."""
        with self._reading(f"reading job {job}"):
            return iter(select_heads(self._connection, job))

    def job(self, job: int, *, heads: bool = False) -> RestoredJob | None:
        """A job as the journal has it, its heads only if they are asked for; None if there is no such job."""
        with self._reading(f"reading job {job}"):
            found = select_jobs(self._connection, job)
            if not found:
                return None
            found[0].chunks = select_chunks(self._connection, job)
            if found[0].end is None:
                found[0].last_serial = last_serial(self._connection, job)
            if heads:
                found[0].heads = select_heads(self._connection, job)
            return found[0]

    def record(self, job: int) -> JobRecord | None:
        """A submission as it was made; None if there is no such job."""
        with self._reading(f"reading job {job}"):
            return self._submission(job)

    def close(self) -> None:
        """Close the connection; safe twice."""
        self._connection.close()

    def _reading(self, doing: str) -> contextlib.AbstractContextManager[None]:
        return reading(self._connection, self._path, doing)

    def _submission(self, job: int) -> JobRecord | None:
        try:
            return self._record(job)
        except LookupError:
            return None

    def _attempts(self, job: int, index: int) -> list[Outcome]:
        if not 0 <= index <= rows_of.LOW_MASK:
            return []
        nodes = rows_of.nodes_over(index)
        found = query(
            self._connection,
            f"""
            SELECT {_HEAD_COLUMNS} FROM heads
            WHERE job = ? AND node IN ({", ".join("?" * len(nodes))}) AND first <= ? AND last >= ?
            """,
            (job, *nodes, index, index),
        )
        serials = sorted(columns[0] for columns in found if index in rows_of.unpack_offsets(columns[3], *columns[1:3]))
        return [attempt for serial in serials for attempt in rows_of.attempts_in(self._outcome(job, serial), index)]

    def _state(self, job: int, attempts: list[Outcome]) -> int:
        """The state that a task with these attempts is in, as far as the journal knows (a running one is queued)."""
        sweeps = query(
            self._connection, "SELECT serial, sweep, states FROM heads WHERE job = ? AND sweep IS NOT NULL", (job,)
        )
        # A sweep takes only what is in one of its sources: what is queued, or what a person had queued again.
        changes: list[tuple[int, int, bytes | None]]
        changes = [(attempt.serial, attempt.states[0], None) for attempt in attempts]
        changes += [(serial, sweep, (states or b"") if sweep == QUEUED else b"\0") for serial, sweep, states in sweeps]
        state = QUEUED
        for _, new, sources in sorted(changes, key=lambda change: change[0]):
            if sources is None or state in sources:
                state = new
        return state


@contextlib.contextmanager
def reading(connection: apsw.Connection, path: Path, doing: str) -> Iterator[None]:
    """One moment of the journal for several queries: a transaction that is ended whatever happens."""
    with reported(path, doing):
        connection.execute("BEGIN")
        try:
            yield
        finally:
            if connection.in_transaction:  # an I/O error has ended it already
                connection.execute("ROLLBACK")


def last_serial(connection: apsw.Connection, job: int) -> int:
    """The serial of a job's newest row, 0 if it has none."""
    found = query(
        connection,
        "SELECT max(key) FROM outcomes WHERE key BETWEEN ? AND ?",
        (rows_of.key(job, 0), rows_of.key(job, rows_of.LOW_MASK)),
    )
    key = found[0][0]
    return 0 if key is None else key & rows_of.LOW_MASK
