"""Finding coordinators by mDNS: `Browser` for the worker, `Advertiser` for the coordinator's child process.

Owns the service type, its TXT keys (`id`, `name`, `v`) and which interfaces are used. Finding is not
trusting: whatever is found is only where somebody claims to be, and is bounded and cleaned here. Does
not connect to anything. zeroconf is imported when the first browser or advertiser starts, because a
daemon with a given address never needs it.
"""

import asyncio
import contextlib
import hashlib
import ipaddress
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec.structs import replace

from districomp import __version__
from districomp.errors import ConfigError
from districomp.netlink import AddressWatch

if TYPE_CHECKING:
    from zeroconf import ServiceInfo, ServiceStateChange, Zeroconf
    from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf

SERVICE_TYPE: Final = "_districomp._tcp.local."
INSTANCES_MAX: Final = 256
"""More instances than this on one network are not looked at: anyone can advertise."""
ADDRESSES_MAX: Final = 16
TEXT_CHARS_MAX: Final = 100
RESOLVE_MS: Final = 3000
QUICK_S: Final = 2.5
"""How long the one-shot query of a start is listened for."""

_log = logging.getLogger(__name__)


class Found(msgspec.Struct, frozen=True):
    """A cluster that is advertised: its id, its name, its coordinator's version and (address, port) to try, newest first."""

    cluster: str
    name: str
    version: str
    addresses: list[tuple[str, int]]


class Advertisement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to advertise: a coordinator that listens on `address`. `interfaces` as for Browser, None: those of `address`.

    `former`: ids by which the cluster was known before a rotation, and is still looked for.
    """

    cluster: str
    name: str
    address: str
    port: int
    interfaces: list[str] | None = None
    version: str = __version__
    former: list[str] = []


class Browser:
    """Watches for coordinators and calls `on_change` with all those known whenever that changes.

    `interfaces`: names or addresses, None for all. A killed coordinator says no goodbye: its
    addresses stay candidates beside newer ones until their records expire.
    """

    def __init__(self, interfaces: list[str] | None, on_change: Callable[[list[Found]], None]) -> None:
        self._interfaces = interfaces
        self._on_change = on_change
        self._instances: dict[str, Found] = {}
        self._told: list[Found] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._zeroconf: AsyncZeroconf | None = None
        self._browsers: list[AsyncServiceBrowser] = []
        self._watch: AddressWatch | None = None

    async def start(self) -> None:
        """Begin to browse. ConfigError if mDNS cannot be used on this machine."""
        self._zeroconf = _open(self._interfaces)
        self._browsers.append(self._browse(self._zeroconf))
        self._spawn(self._browse_quickly())
        self._watch = AddressWatch(self._update_interfaces)
        self._watch.start()

    async def close(self) -> None:
        """Stop browsing; `on_change` is not called any more."""
        if self._watch is not None:
            await self._watch.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for browser in self._browsers:
            await browser.async_cancel()
        self._browsers.clear()
        if self._zeroconf is not None:
            await self._zeroconf.async_close()
            self._zeroconf = None

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _browse(self, zeroconf: "AsyncZeroconf", one_shot: bool = False) -> "AsyncServiceBrowser":
        from zeroconf import DNSQuestionType
        from zeroconf.asyncio import AsyncServiceBrowser

        # A unicast answer to port 5353 reaches only one of the processes of this machine that share
        # the port, and with a coordinator and two workers rarely us: there the question is multicast.
        # The one-shot question is answered to its own port, and must be QU, because zeroconf takes
        # equal questions of others within a second for one that was repeated, and is silent.
        kind = DNSQuestionType.QU if one_shot else DNSQuestionType.QM
        return AsyncServiceBrowser(zeroconf.zeroconf, SERVICE_TYPE, handlers=[self._state_changed], question_type=kind)

    async def _browse_quickly(self) -> None:
        """Ask once from a port of our own (RFC 6762 section 6.7).

        Such a question is answered at once and to us alone, while an answer by multicast may be put
        off for a second when somebody else has just had one.
        """
        quick = _open(self._interfaces, one_shot=True)
        browser = self._browse(quick, one_shot=True)
        try:
            await asyncio.sleep(QUICK_S)
        finally:
            await browser.async_cancel()
            await quick.async_close()

    async def _update_interfaces(self) -> None:
        if self._zeroconf is not None:
            await _update(self._zeroconf, self._interfaces)

    def _state_changed(
        self, zeroconf: "Zeroconf", service_type: str, name: str, state_change: "ServiceStateChange"
    ) -> None:
        from zeroconf import ServiceStateChange

        if state_change is ServiceStateChange.Removed:
            if self._instances.pop(name, None) is not None:
                self._tell()
        elif name in self._instances or len(self._instances) + len(self._tasks) < INSTANCES_MAX:
            self._spawn(self._resolve(zeroconf, name))

    async def _resolve(self, zeroconf: "Zeroconf", name: str) -> None:
        from zeroconf import DNSQuestionType, Error
        from zeroconf.asyncio import AsyncServiceInfo

        try:
            info = AsyncServiceInfo(SERVICE_TYPE, name)
            if not info.load_from_cache(zeroconf):
                await info.async_request(zeroconf, RESOLVE_MS, DNSQuestionType.QM)
        except Error as error:
            # Not a service's name, or one that cannot be asked for.
            _log.debug("an advertisement is named %.100r: %.200s", name, error)
            return
        found = _read(info)
        if found is None:
            _log.debug("an advertisement named %.100s is not a coordinator's", name)
            return
        self._instances.pop(name, None)
        self._instances[name] = found
        self._tell()

    def _tell(self) -> None:
        found = _by_cluster(list(self._instances.values()))
        if found != self._told:
            self._told = found
            self._on_change(list(found))


class Advertiser:
    """Advertises one coordinator, on addresses that belong to what it listens on, until closed with a goodbye."""

    def __init__(self, what: Advertisement) -> None:
        self._what = what
        ids = list(dict.fromkeys((what.cluster, *what.former)))
        for key, text in (("name", what.name), ("v", what.version), *(("id", one) for one in ids)):
            if not _is_clean(text):
                raise ConfigError(
                    f"the coordinator's {key} {text!r} cannot be advertised: use 1 to {TEXT_CHARS_MAX} printable characters"
                )
        # Who looks for a former id must find it: an instance each, since an instance has one id.
        self._instances = [replace(what, cluster=one) for one in ids]
        self._interfaces = what.interfaces if what.interfaces is not None else _listening_interfaces(what.address)
        self._addresses: list[str] = []
        self._zeroconf: AsyncZeroconf | None = None
        self._announcing: list[Any] = []
        self._watch: AddressWatch | None = None

    async def start(self) -> None:
        """Announce; returns when the first announcement is sent. ConfigError if mDNS cannot be used here."""
        self._zeroconf = _open(self._interfaces)
        self._addresses = advertised_addresses(self._what.address, self._interfaces)
        # The instance's name is unique by construction, so there is nothing to probe for, and a
        # start is not 0.7 s longer for it.
        for what in self._instances:
            task = await self._zeroconf.async_register_service(self._info(what), cooperating_responders=True)
            self._announcing.append(task)
        await asyncio.sleep(0)
        self._watch = AddressWatch(self._update_interfaces)
        self._watch.start()

    async def close(self) -> None:
        """Say goodbye and stop."""
        if self._watch is not None:
            await self._watch.close()
        for task in self._announcing:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if self._zeroconf is not None:
            await self._zeroconf.async_close()
            self._zeroconf = None

    async def _update_interfaces(self) -> None:
        if self._zeroconf is None:
            return
        await _update(self._zeroconf, self._interfaces)
        addresses = advertised_addresses(self._what.address, self._interfaces)
        if addresses != self._addresses:
            self._addresses = addresses
            for what in self._instances:
                await (await self._zeroconf.async_update_service(self._info(what)))

    def _info(self, what: Advertisement) -> "ServiceInfo":
        from zeroconf import ServiceInfo

        label = instance_name(what)
        return ServiceInfo(
            SERVICE_TYPE,
            f"{label}.{SERVICE_TYPE}",
            port=what.port,
            properties={"id": what.cluster, "name": what.name, "v": what.version},
            server=f"{label}.local.",
            parsed_addresses=self._addresses,
        )


def instance_name(what: Advertisement) -> str:
    """A DNS label for a coordinator. Two with one label would silently merge, so cluster, address and port are in it."""
    digest = hashlib.sha256(f"{what.cluster} {what.address} {what.port}".encode()).hexdigest()[:8]
    plain = "".join(char if char.isascii() and char.isalnum() else "-" for char in what.name)[:40].strip("-")
    return f"{plain or 'districomp'}-{digest}"


def _listening_interfaces(address: str) -> list[str] | None:
    """The interfaces on which to advertise what listens on `address`; None: all."""
    return None if ipaddress.ip_address(address).is_unspecified else [address]


def advertised_addresses(listening: str, interfaces: list[str] | None) -> list[str]:
    """The addresses at which a listener on `listening` is reached through these interfaces."""
    listener = ipaddress.ip_address(listening)
    if not listener.is_unspecified:
        return [listening]
    here = [ipaddress.ip_address(text.partition("%")[0]) for text in _own_addresses(interfaces)]
    # A dual-stack listener on :: takes IPv4 as well; one on 0.0.0.0 takes nothing else.
    usable = [one for one in here if one.version == 4 or listener.version == 6]
    outside = [one for one in usable if not one.is_loopback]
    return [str(one) for one in outside or usable][:ADDRESSES_MAX]


def interface_addresses(interfaces: list[str]) -> list[str]:
    """The addresses of the named interfaces as they are now; an address stands for itself; a missing interface for none."""
    addresses: list[str] = []
    for interface in interfaces:
        if _is_address(interface):
            addresses.append(interface)
            continue
        addresses += _adapter_addresses(interface)
    return list(dict.fromkeys(addresses))


def _own_addresses(interfaces: list[str] | None) -> list[str]:
    if interfaces is not None:
        return interface_addresses(interfaces)
    return [address for name in _adapters() for address in _adapter_addresses(name)]


def _adapters() -> dict[str, list[str]]:
    """Every interface's addresses by its name."""
    import ifaddr

    return {
        str(adapter.name): [ip.ip if isinstance(ip.ip, str) else ip.ip[0] for ip in adapter.ips]
        for adapter in ifaddr.get_adapters()
    }


def _adapter_addresses(name: str) -> list[str]:
    """IPv4 addresses, and one of IPv6: a socket an interface is enough there, best on its link-local address.

    ::1 is left out, multicast does not work on it.
    """
    found = _adapters().get(name, [])
    six = [address for address in found if ":" in address and address != "::1"]
    six.sort(key=lambda address: not ipaddress.ip_address(address).is_link_local)
    return [address for address in found if ":" not in address] + six[:1]


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _open(interfaces: list[str] | None, one_shot: bool = False) -> "AsyncZeroconf":
    from zeroconf.asyncio import AsyncZeroconf

    # It warns of what is usual while addresses come and go, with tracebacks; we look again by ourselves.
    if not _log.isEnabledFor(logging.DEBUG):
        logging.getLogger("zeroconf").setLevel(logging.ERROR)
    chosen = _choice(interfaces)
    try:
        return AsyncZeroconf(interfaces=chosen, unicast=one_shot)
    except (OSError, RuntimeError) as error:
        where = "any interface" if interfaces is None else ", ".join(interfaces)
        raise ConfigError(
            f"mDNS cannot be used on {where}: {error}; name other interfaces in discovery.interfaces, "
            "or give the workers the coordinator's address"
        ) from error


async def _update(zeroconf: "AsyncZeroconf", interfaces: list[str] | None) -> None:
    from zeroconf import NotRunningException

    with contextlib.suppress(NotRunningException):
        await zeroconf.async_update_interfaces(_choice(interfaces))


def _choice(interfaces: list[str] | None) -> list[Any]:
    """What zeroconf is to use: the addresses that exist now, because it fails on one that does not."""
    present = _own_addresses(None)
    wanted = present if interfaces is None else interface_addresses(interfaces)
    return [address for address in wanted if ":" not in address or address in present]


def _read(info: "ServiceInfo") -> Found | None:
    """What a resolved advertisement says; None if it is incomplete or not clean."""
    texts = [info.decoded_properties.get(key) for key in ("id", "name", "v")]
    cluster, name, version = (text if text and _is_clean(text) else "" for text in texts)
    addresses = info.parsed_scoped_addresses()[:ADDRESSES_MAX]
    if not (cluster and info.port and addresses):
        return None
    return Found(cluster, name, version, [(address, info.port) for address in addresses])


def _is_clean(text: str) -> bool:
    return 0 < len(text) <= TEXT_CHARS_MAX and text.isprintable()


def _by_cluster(found: list[Found]) -> list[Found]:
    """One entry a cluster, what was seen last first."""
    merged: dict[str, Found] = {}
    for one in reversed(found):
        known = merged.get(one.cluster)
        if known is None:
            merged[one.cluster] = one
            continue
        addresses = list(dict.fromkeys([*known.addresses, *one.addresses]))[: 4 * ADDRESSES_MAX]
        merged[one.cluster] = Found(known.cluster, known.name, known.version, addresses)
    return list(merged.values())
