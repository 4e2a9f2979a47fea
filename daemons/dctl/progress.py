"""Waiting for jobs in front of a person: a bar on a terminal, plain lines elsewhere, and what Ctrl-C means.

Owns standard error while a command waits. Must not know how a job was submitted or what is done with it.
"""

import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

import click

from dctl.output import clean, message, span
from districomp.client import ENDED_JOB_STATES, Client
from districomp.client_job import WATCH_S
from districomp.documents import JobDocument

if TYPE_CHECKING:
    from rich.progress import TaskID

LINE_S: Final = 2.0
RATE_WINDOW_S: Final = 10.0
NARROW_COLUMNS: Final = 72
EXIT_NOT_DONE: Final = 1
EXIT_TIMEOUT: Final = 124
EXIT_INTERRUPTED: Final = 130


class Display(Protocol):
    """Where progress is shown."""

    def show(self, document: JobDocument) -> None:
        """A job as it is now."""

    def close(self) -> None:
        """No more is to come."""


def wait_for(client: Client, jobs: Sequence[int], timeout: float | None, *, progress: bool) -> list[JobDocument]:
    """The documents of jobs once all have ended, with a display if wanted. TimeoutError after `timeout` seconds."""
    display = _display() if progress else _Silence()
    latest: dict[int, JobDocument] = {}
    try:
        for documents in client.watch(jobs, WATCH_S if progress else 1.0, timeout):
            for document in documents:
                latest[document.job] = document
                display.show(document)
    finally:
        display.close()
    return [latest[number] for number in sorted(latest)]


@contextmanager
def going_on(jobs: Sequence[int]) -> Iterator[None]:
    """Interrupted or out of time: the jobs go on, and the message says how to watch or cancel them."""
    numbers = " ".join(map(str, jobs))
    subject = f"job {numbers} goes on" if len(jobs) == 1 else f"jobs {numbers} go on"
    advice = f"{subject}; watch: dctl wait {numbers} --progress; cancel: dctl cancel {numbers}"
    try:
        yield
    except KeyboardInterrupt:
        message(f"interrupted; {advice}")
        raise click.exceptions.Exit(EXIT_INTERRUPTED) from None
    except TimeoutError:
        message(f"the time is up; {advice}")
        raise click.exceptions.Exit(EXIT_TIMEOUT) from None


def exit_code(documents: Sequence[JobDocument]) -> int:
    """0 if every job is done; else 1, with a sentence for each that is not."""
    code = 0
    for document in documents:
        if document.state == "done":
            continue
        code = EXIT_NOT_DONE
        counts = document.counts
        bad = [(counts.failed, "failed"), (counts.cancelled, "cancelled"), (counts.skipped, "skipped")]
        said = ", ".join(f"{number} {word}" for number, word in bad if number)
        look = f"; see: dctl task list {document.job} --state failed" if counts.failed else ""
        message(f"job {document.job} {document.state}: of {document.tasks} tasks {said or 'none ended'}{look}")
    return code


def _display() -> Display:
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        return _Bars()
    return _Lines()


class _Silence:
    def show(self, document: JobDocument) -> None: ...

    def close(self) -> None: ...


class _Pace:
    """Tasks a second, over the last seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def rate(self, document: JobDocument) -> float | None:
        now = time.monotonic()
        self._seen.append((now, ended_count(document)))
        while len(self._seen) > 2 and self._seen[1][0] < now - RATE_WINDOW_S:
            self._seen.popleft()
        start, count = self._seen[0]
        if now - start < 0.2:
            return None
        return (self._seen[-1][1] - count) / (now - start)


def ended_count(document: JobDocument) -> int:
    """Tasks that have ended, whichever way."""
    counts = document.counts
    return counts.done + counts.failed + counts.cancelled + counts.skipped


def summary(document: JobDocument, rate: float | None) -> str:
    """`37/100  1 failed  8 running  35.2/s  ETA 2 s`."""
    counts = document.counts
    parts = [f"{counts.done}/{document.tasks}"]
    if counts.failed:
        parts.append(f"{counts.failed} failed")
    if counts.cancelled:
        parts.append(f"{counts.cancelled} cancelled")
    if document.state in ENDED_JOB_STATES:
        parts.append(document.state)
        return "  ".join(parts)
    parts.append(f"{counts.running} running")
    if rate is not None:
        parts.append(f"{rate:.1f}/s" if rate < 100 else f"{rate:.0f}/s")
    eta_s = document.eta_s
    if eta_s is None and rate:
        eta_s = (document.tasks - ended_count(document)) / rate
    if eta_s is not None:
        parts.append(f"ETA {span(max(0.0, eta_s)) if eta_s >= 1 else '1 s'}")
    return "  ".join(parts)


class _Lines:
    """A line every few seconds, where there is no terminal."""

    def __init__(self) -> None:
        self._paces: dict[int, _Pace] = {}
        self._shown: dict[int, float] = {}

    def show(self, document: JobDocument) -> None:
        rate = self._paces.setdefault(document.job, _Pace()).rate(document)
        now = time.monotonic()
        ended = document.state in ENDED_JOB_STATES
        if not ended and now < self._shown.get(document.job, 0.0):
            return
        self._shown[document.job] = now + LINE_S
        message(f"job {document.job} {document.definition}  {summary(document, rate)}")

    def close(self) -> None: ...


class _Bars:
    """A bar a job, kept in place by rich."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn

        self._paces: dict[int, _Pace] = {}
        self._bars: dict[int, TaskID] = {}
        columns: list[ProgressColumn] = [TextColumn("{task.description}", markup=False)]
        if shutil.get_terminal_size().columns >= NARROW_COLUMNS:
            columns.append(BarColumn(bar_width=None))
        columns.append(TextColumn("{task.fields[said]}", markup=False))
        self._progress = Progress(
            *columns, console=Console(stderr=True, highlight=False), expand=True, redirect_stdout=False
        )
        self._progress.start()

    def show(self, document: JobDocument) -> None:
        rate = self._paces.setdefault(document.job, _Pace()).rate(document)
        bar = self._bars.get(document.job)
        if bar is None:
            label = clean(f"job {document.job} {document.definition}")
            bar = self._bars[document.job] = self._progress.add_task(label, total=document.tasks, said="")
        self._progress.update(bar, completed=ended_count(document), said=summary(document, rate))

    def close(self) -> None:
        self._progress.stop()
