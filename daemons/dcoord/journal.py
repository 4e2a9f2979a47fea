"""The coordinator's memory on disk: commits a batch of records, and gives everything back after a restart.

Owns the database file and its one writing connection, used by one thread at a time (the daemon's
journal thread). Must not know the core's decisions, messages to peers, or time.
"""

import base64
import contextlib
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Final, Self

import apsw

from dcoord import journal_read, journal_rows
from dcoord.core.records import Record, Restored, WorkerRecord
from dcoord.journal_read import NotDoneError, Reader, UnknownTaskError, query, reported
from dcoord.journal_rows import pack_outcome
from districomp.errors import JournalError
from districomp.model import Item

__all__ = ["Journal", "NotDoneError", "Reader", "UnknownTaskError", "pack_outcome"]

STATEMENT_ROWS_MAX: Final = 512
"""Rows a statement: its text must stay below the 16 KiB that apsw keeps prepared."""
CHECKPOINT_PAGES: Final = 4000
"""The log is copied back into the file when it has this many pages (16 MB)."""
LOG_BYTES_KEPT: Final = 64 * 1024 * 1024
"""A log that grew beyond this (a slow reader, a huge batch) is cut back to it."""
LOG_BYTES_FIRST: Final = CHECKPOINT_PAGES * (4096 + 24) + 1024 * 1024
"""So long is the log made beforehand: what it has when it is copied back, and a large batch more."""
LENGTHEN_BYTES: Final = 1024 * 1024
"""That much at once: a commit may be waiting."""
LENGTHEN_SPACE: Final = 16
"""It is not, unless the disk has that many times as much free."""
PROBE_BYTES: Final = 64 * 1024
"""What `probe` writes: more than the file system's last free block."""

_PRAGMAS: Final = (
    "synchronous = FULL",
    "temp_store = MEMORY",
    f"wal_autocheckpoint = {CHECKPOINT_PAGES}",
    f"journal_size_limit = {LOG_BYTES_KEPT}",
)
_SCHEMAS: Final = ("schema.sql", "schema_2.sql")
"""Version N of the tables is what the first N of these make."""
_PADDING: Final = (None,) * journal_rows.COLUMNS


class Journal:
    """The journal of one coordinator, open for writing; made by `Journal.open`."""

    def __init__(self, path: Path, connection: apsw.Connection, lock: int) -> None:
        self._path = path
        self._connection = connection
        self._lock = lock
        self._epoch = 0
        self._cluster = ""
        self._closed = False

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the journal, made if there is none, and begin the next epoch.

        JournalError if the file is in use, foreign, damaged or of another version, or cannot be written.
        """
        with reported(path, "opening"):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = _take_lock(path)
            try:
                _make_file(path)
                connection = apsw.Connection(str(path))
            except BaseException:
                os.close(lock)
                raise
        journal = cls(path, connection, lock)
        try:
            with reported(path, "opening"):
                journal._begin()
        except BaseException:
            journal.close()
            raise
        return journal

    def commit(self, records: Sequence[Record]) -> None:
        """Write the records durably, in their order, all or none.

        JournalError (disk full, I/O error): none was written, and the journal can be used again.
        """
        if not records:
            return
        rows = [journal_rows.row(record) for record in records]
        parts = [rows[start : start + STATEMENT_ROWS_MAX] for start in range(0, len(rows), STATEMENT_ROWS_MAX)]
        with reported(self._path, "writing"):
            if len(parts) == 1:
                self._insert(parts[0])  # a statement alone is a transaction of its own
            else:
                with self._transaction():
                    for part in parts:
                        self._insert(part)

    def restore(self) -> Restored:
        """Everything that the core starts from; forgets payloads and definitions of submissions that never ended."""
        with reported(self._path, "reading"):
            self._forget_unfinished()
            with journal_read.reading(self._connection, self._path, "reading"):
                return self._restored()

    def forget(self, before: float) -> None:
        """Forget whose certificates had ended by then (Unix seconds), and the tokens that had and gave none that is left.

        On a full disk they stay: they harm nobody, and the next start tries again.
        """
        with (
            reported(self._path, "writing"),
            contextlib.suppress(apsw.FullError, apsw.IOError),
            self._transaction(),
        ):
            self._connection.execute("DELETE FROM identities WHERE expires < ?", (before,))
            self._connection.execute(
                "DELETE FROM tokens WHERE expires < ? AND id NOT IN (SELECT token FROM identities)", (before,)
            )

    def rows(self, job: int, after: int, bytes_max: int) -> tuple[list[bytes], int]:
        """A job's packed outcomes with serial > `after`, in order, and the last serial given (`after` if none).

        Of at most `bytes_max` bytes together, but at least one if there is one.
        """
        with reported(self._path, "reading"):
            return journal_read.select_rows(self._connection, job, after, bytes_max)

    def read_payload(self, job: int, first: int) -> list[Item]:
        """The chunk of a job's items that begins at index `first`; LookupError if there is none."""
        with reported(self._path, "reading"):
            return journal_read.select_payload(self._connection, job, first)

    def probe(self) -> None:
        """Write something durably; JournalError with the reason if that cannot be done now."""
        with reported(self._path, "writing"):
            self._connection.execute("INSERT OR REPLACE INTO meta VALUES ('probe', zeroblob(?))", (PROBE_BYTES,))

    def free_bytes(self) -> int:
        """How many bytes the journal's file system still takes."""
        with reported(self._path, "asking for free space"):
            return shutil.disk_usage(self._path.parent).free

    def lengthen_log(self) -> bool:
        """Make the log's file a step longer, with zeros after what is in it; whether there are more steps to do.

        A commit that overwrites is on the disk after one write. One that makes the file longer waits for the file system's
        own journal as well, and so for all others who use the disk. SQLite reads a log up to the first page that is none, and
        writes over what follows. Where this cannot be done, commits are as they would have been.
        """
        log = self._path.with_name(self._path.name + "-wal")
        try:
            if shutil.disk_usage(self._path.parent).free < LENGTHEN_SPACE * LOG_BYTES_FIRST:
                return False
            # SQLite holds no lock on this file that closing it could drop, and nobody else writes to it.
            with log.open("r+b", buffering=0) as file:
                there = file.seek(0, os.SEEK_END)
                missing = min(LENGTHEN_BYTES, LOG_BYTES_FIRST - there)
                if missing <= 0:
                    return False
                zeros = memoryview(bytes(missing))
                try:
                    while zeros:
                        zeros = zeros[file.write(zeros) :]
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(there)
                    raise
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Copy the log into the file as far as readers allow, and close; safe twice."""
        if self._closed:
            return
        self._closed = True
        try:
            with contextlib.suppress(apsw.Error):  # a full disk: the log stays, and is read at the next start
                self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
            self._connection.close()
        finally:
            os.close(self._lock)

    def _begin(self) -> None:
        connection = self._connection
        connection.set_busy_timeout(journal_read.BUSY_MS)
        tables = query(connection, "SELECT count(*) FROM sqlite_schema")[0][0]
        is_new = tables == 0 and connection.pragma("application_id") == 0 and connection.pragma("user_version") == 0
        version = 0 if is_new else journal_read.check_version(connection, self._path, journal_read.VERSION_OLDEST)
        mode = connection.pragma("journal_mode", "wal")
        if mode != "wal":
            raise JournalError(f"{self._path}: this file system cannot keep a write-ahead log; use a local one")
        for pragma in _PRAGMAS:
            query(connection, f"PRAGMA {pragma}")
        with self._transaction():
            self._make_tables(version)
            connection.execute("INSERT OR IGNORE INTO meta VALUES ('seal_key', ?)", (secrets.token_bytes(32),))
            meta = dict(
                query(connection, "UPDATE meta SET value = value + 1 WHERE name = 'epoch' RETURNING name, value")
                + query(connection, "SELECT name, value FROM meta WHERE name IN ('cluster', 'seal_key')")
            )
        self._epoch, self._cluster, self._seal_key = meta["epoch"], meta["cluster"], meta["seal_key"]

    def _make_tables(self, version: int) -> None:
        """Make what the tables of this version (0: an empty file) lack."""
        for schema in _SCHEMAS[version:]:
            self._connection.execute(resources.files("dcoord").joinpath(schema).read_text(encoding="utf-8"))
        if version == 0:
            cluster = base64.b32encode(secrets.token_bytes(16)).decode("ascii").rstrip("=").lower()
            self._connection.execute(
                "INSERT INTO meta VALUES ('cluster', ?), ('epoch', 0), ('last_job', 0)", (cluster,)
            )
            self._connection.execute(f"PRAGMA application_id = {journal_read.APPLICATION_ID}")
        if version < journal_read.VERSION:
            self._connection.execute(f"PRAGMA user_version = {journal_read.VERSION}")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # some errors have rolled back already
                self._connection.execute("ROLLBACK")
            raise

    def _insert(self, rows: list[journal_rows.Row]) -> None:
        """Insert rows in one statement, padded to a power of two so that few statements are ever prepared."""
        size = 1 << (len(rows) - 1).bit_length()
        values = [value for row in rows for value in row]
        values += _PADDING * (size - len(rows))
        self._connection.execute(_STATEMENTS[size], values)

    def _forget_unfinished(self) -> None:
        """Delete what no job uses. On a full disk it stays: it harms nobody, and the next start tries again."""
        with contextlib.suppress(apsw.FullError, apsw.IOError), self._transaction():
            self._connection.execute(
                """
                UPDATE meta SET value = max(value, coalesce((SELECT max(key) >> 32 FROM payloads), 0))
                WHERE name = 'last_job';
                DELETE FROM payloads WHERE key >> 32 NOT IN (SELECT job FROM jobs);
                DELETE FROM definitions WHERE digest NOT IN (SELECT definition FROM jobs);
                """
            )

    def _restored(self) -> Restored:
        connection = self._connection
        jobs = journal_read.select_jobs(connection)
        for job in jobs:
            if job.end is None:
                job.chunks = journal_read.select_chunks(connection, job.record.job)
                job.heads = journal_read.select_heads(connection, job.record.job)
                job.last_serial = job.heads[-1].serial if job.heads else 0
        definitions = dict(query(connection, "SELECT digest, body FROM definitions"))
        workers = query(connection, "SELECT worker, name, at FROM workers ORDER BY worker")
        highest = query(
            connection,
            """
            SELECT max(value, coalesce((SELECT max(job) FROM jobs), 0), coalesce((SELECT max(key) >> 32 FROM payloads), 0))
            FROM meta WHERE name = 'last_job'
            """,
        )
        return Restored(
            epoch=self._epoch,
            cluster=self._cluster,
            definitions=definitions,
            jobs=jobs,
            workers=[WorkerRecord(worker, name, True, at) for worker, name, at in workers],
            last_job=highest[0][0],
            tokens=journal_read.select_tokens(connection),
            identities=journal_read.select_identities(connection),
            seal_key=self._seal_key,
        )


def _statement(size: int) -> str:
    row = f"({','.join('?' * journal_rows.COLUMNS)})"
    return f"INSERT INTO batch VALUES{','.join([row] * size)}"


_STATEMENTS: Final = {1 << power: _statement(1 << power) for power in range(STATEMENT_ROWS_MAX.bit_length())}


def _take_lock(path: Path) -> int:
    """Hold the file beside the journal that says it is in use; JournalError if another process holds it.

    Not the journal itself: closing any descriptor of it would drop SQLite's own locks.
    """
    lock = os.open(path.with_name(path.name + "-lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise JournalError(f"{path} is in use by another dcoord; stop it first, or set another state folder") from error
    return lock


def _make_file(path: Path) -> None:
    """Make the file so that only its owner reads it; SQLite gives the log's files the same mode.

    A folder with the set-group-ID bit is shared with its group, which reads then: systemd makes one for dcoord-web.
    """
    if path.exists():
        return
    mode = 0o640 if path.parent.stat().st_mode & stat.S_ISGID else 0o600
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode))
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
