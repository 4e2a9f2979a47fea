"""Where the coordinator may be: what mDNS finds, what was configured, where it was last time.

Owns the browser, and which of the clusters found is meant. Finding is not trusting: whoever connects to what is found
here must have the cluster's authority prove it, but for `insecure`, where loopback is the whole trust there is.
"""

import asyncio
import contextlib
import logging
import time
from typing import Final

from districomp import systemd
from districomp.addresses import address_text
from districomp.config import check_loopback
from districomp.dial import Address
from districomp.discovery import Browser, Found
from districomp.errors import ConfigError

log = logging.getLogger(__name__)

ALONE_S: Final = 1.0
"""A worker that was not told its cluster joins the one that is the only one for so long (`insecure` alone)."""
NAMED_S: Final = 0.15
"""One that was told a name joins the only one of that name after so long: answers come within 0.12 s (RFC 6762, 6)."""
REMEMBERED_S: Final = 0.3
"""What is not found by mDNS within this is tried where it was last time."""
SILENT_S: Final = 3.0
"""After so long without an answer it is said what is being waited for."""
NOTED_MAX: Final = 1000


class Search:
    """Finds addresses; `changed` is set when there may be others than before."""

    def __init__(self, fixed: Address | None, interfaces: list[str] | None) -> None:
        self.fixed = fixed
        """The configured address: then nothing is searched for."""
        self.changed = asyncio.Event()
        self._interfaces = interfaces
        self._found: list[Found] = []
        self._browser: Browser | None = None
        self._said = ""

    async def start(self) -> None:
        """Begin to browse, if there is anything to be found. ConfigError if mDNS is needed and cannot be used."""
        if self.fixed is None and self._browser is None:
            self._browser = Browser(self._interfaces, self._on_found)
            await self._browser.start()

    async def close(self) -> None:
        """Stop browsing."""
        if self._browser is not None:
            await self._browser.close()

    def _on_found(self, found: list[Found]) -> None:
        self._found = found
        self.changed.set()

    # ---- a cluster that can prove what it is ----

    async def addresses(self, clusters: list[str], remembered: list[Address], wait_s: float | None) -> list[Address]:
        """Where somebody claims to be a cluster with one of these ids. Waits `wait_s` (None: for ever), then []."""
        if self.fixed is not None:
            return [self.fixed]
        await self.start()
        begun = time.monotonic()
        while True:
            self.changed.clear()
            found = [address for one in self._found if one.cluster in clusters for address in one.addresses]
            now = time.monotonic() - begun
            if found or (remembered and now >= REMEMBERED_S):
                return list(dict.fromkeys([*found, *remembered]))
            if wait_s is not None and now >= wait_s:
                return []
            steps = [REMEMBERED_S] if remembered else []
            steps += [SILENT_S] if now < SILENT_S else []
            steps += [wait_s] if wait_s is not None else []
            if now >= SILENT_S:
                self._say(f"waiting for the cluster {clusters[0]}" + self._seen())
            await self._wait(min(steps) - now if steps else None)

    # ---- `insecure`: nobody can prove anything ----

    async def unproven(self, wanted: str, any_network: bool) -> tuple[list[Address], str]:
        """Addresses of the one cluster with this name or id ('' any), and its id; waits until there is an answer.

        any_network: also addresses of other machines.
        """
        if self.fixed is not None:
            return [self.fixed], ""
        await self.start()
        choice = _Choice(wanted)
        patient_until = time.monotonic() + ALONE_S
        while True:
            self.changed.clear()
            now = time.monotonic()
            chosen, wait_s = choice.make(self._found, now)
            if chosen is not None:
                usable = chosen.addresses if any_network else self._of_this_machine(chosen)
                if usable:
                    return usable, chosen.cluster
            if wait_s is None:
                if now < patient_until:  # an answer may be on its way
                    wait_s = patient_until - now
                else:
                    several = choice.several(self._found)
                    self._say(several or choice.words() + self._seen(), bool(several))
            await self._wait(wait_s)

    def _of_this_machine(self, found: Found) -> list[Address]:
        usable = []
        for address, port in found.addresses:
            try:
                usable.append((check_loopback(address), port))
            except ConfigError:
                self._say(
                    f"{found.name} advertises {address}, another machine: `insecure` does not connect there", True
                )
        return usable

    # ---- both ----

    async def _wait(self, wait_s: float | None) -> None:
        # Not asyncio.wait_for, which in Python 3.11 can swallow a cancellation that comes together with the event.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self.changed.wait()

    def _seen(self) -> str:
        seen = ", ".join(f"{one.name} ({one.cluster})" for one in self._found[:10])
        return f"; seen: {seen}" if seen else ""

    def _say(self, text: str, is_warning: bool = False) -> None:
        """Log it, once."""
        if text != self._said:
            self._said = text
            systemd.status(text)
            log.log(logging.WARNING if is_warning else logging.INFO, "%s", text)


class _Choice:
    """Which of the clusters found is the one; an id is one cluster's, a name may be that of several."""

    def __init__(self, wanted: str) -> None:
        self._wanted = wanted
        self._alone: tuple[str, float] | None = None

    def make(self, found: list[Found], now: float) -> tuple[Found | None, float | None]:
        """The cluster to join, or how long to wait before asking again (None: until something changes)."""
        candidates = self.candidates(found)
        if len(candidates) != 1:
            self._alone = None
            return None, None
        only = candidates[0]
        if self._wanted == only.cluster:
            return only, None
        if self._alone is None or self._alone[0] != only.cluster:
            self._alone = (only.cluster, now + (NAMED_S if self._wanted else ALONE_S))
        left = self._alone[1] - now
        return (only, None) if left <= 0 else (None, left)

    def candidates(self, found: list[Found]) -> list[Found]:
        """The clusters that may be meant."""
        if not self._wanted:
            return found
        exact = [one for one in found if one.cluster == self._wanted]
        return exact or [one for one in found if one.name == self._wanted]

    def several(self, found: list[Found]) -> str:
        """What to say if more than one may be meant."""
        candidates = sorted(self.candidates(found), key=lambda one: one.cluster)
        if len(candidates) < 2:
            return ""
        if not self._wanted:
            seen = ", ".join(f"{one.name} ({one.cluster})" for one in candidates[:10])
            return f"several clusters are here: {seen}; name one as `cluster` in dworker.yaml"
        each = "; ".join(
            f"{one.cluster} at {', '.join(map(address_text, one.addresses[:4]))}" for one in candidates[:10]
        )
        return (
            f"{len(candidates)} clusters are called {self._wanted}: {each}; joining none of them: "
            "write the id of the right one as `cluster` in dworker.yaml"
        )

    def words(self) -> str:
        """What is being waited for."""
        return f"waiting for the cluster {self._wanted}" if self._wanted else "waiting for a coordinator to be found"
