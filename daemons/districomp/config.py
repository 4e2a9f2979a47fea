"""Where things are, and what `dcoord.yaml` and `dworker.yaml` say.

Owns the folders, the environment variables, the keys of both files and their defaults. Knows nothing
of sockets or of what the daemons do; opens no file but the one that it is told to read.
"""

import ipaddress
import os
import re
import socket
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeVar

import msgspec
from msgspec.structs import replace

from districomp.errors import ConfigError
from districomp.home import home_folder
from districomp.units import parse_duration
from districomp.yamlfile import Document, YamlError
from districomp.yamltree import FILE_BYTES_MAX

LOOPBACK: Final = "127.0.0.1"
EVERYWHERE: Final = "::"
"""Every interface, IPv4 and IPv6: what is listened on unless the configuration says otherwise."""
CERTIFICATE_S_MIN: Final = 10.0
CERTIFICATE_S_MAX: Final = 3650 * 86400.0
CONTROL_PORT: Final = 8420
WEB_PORT: Final = 8421
DATA_PORT: Final = 8422
LEASE_S_MIN: Final = 0.1
LEASE_S_MAX: Final = 3600.0
SLOTS_MAX: Final = 4096
LIVE_AS_SHIPPED: Final = frozenset(("shell", "callable"))
"""Shipped definitions that are live without being copied; the others are examples."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_HOST: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
_SYSTEM_CONFIG: Final = Path("/etc/districomp")
_FOLDERS: Final = ("DISTRICOMP_STATE_DIR", "DISTRICOMP_CONFIG_DIR", "DISTRICOMP_RUNTIME_DIR")

C = TypeVar("C")


class Layer(NamedTuple):
    """A folder of definitions. `only`: the names that are live in it; None is all."""

    folder: Path
    only: frozenset[str] | None = None


class Paths(msgspec.Struct, frozen=True):
    """The three folders of a daemon or client, and what lies where below them."""

    state: Path
    config: Path
    runtime: Path
    system_tasks: bool = False
    """The folders of the whole machine hold definitions too (no DISTRICOMP_CONFIG_DIR)."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> "Paths":
        """DISTRICOMP_{STATE,CONFIG,RUNTIME}_DIR, else the system's folders for root, XDG's or LOCALAPPDATA's for others."""
        root = os.geteuid() == 0 if hasattr(os, "geteuid") else False
        # Who names every folder needs no home.
        home = Path() if all(environ.get(name) for name in _FOLDERS) else home_folder(environ)
        local_state = home / ".local" / "state"
        if root:
            state, config, runtime = Path("/var/lib/districomp"), _SYSTEM_CONFIG, Path("/run/districomp")
        elif sys.platform == "win32":
            # In the user's profile, which others cannot read; never in the part that roams.
            own = Path(environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "districomp"
            state, config, runtime = own / "state", own / "config", own / "run"
        else:
            state = _xdg(environ, "XDG_STATE_HOME", local_state) / "districomp"
            config = _xdg(environ, "XDG_CONFIG_HOME", home / ".config") / "districomp"
            runtime = _xdg(environ, "XDG_RUNTIME_DIR", state / "run") / "districomp"
        return cls(
            _folder(environ, "DISTRICOMP_STATE_DIR", state),
            _folder(environ, "DISTRICOMP_CONFIG_DIR", config),
            _folder(environ, "DISTRICOMP_RUNTIME_DIR", runtime),
            not environ.get("DISTRICOMP_CONFIG_DIR"),
        )

    @property
    def control_socket(self) -> Path:
        """The coordinator's Unix socket."""
        return self.runtime / "control.sock"

    @property
    def endpoint(self) -> Path:
        """Where a running coordinator says how to reach it (JSON)."""
        return self.runtime / "endpoint.json"

    @property
    def coordinator_state(self) -> Path:
        """What `dcoord` keeps: journal and blobs."""
        return self.state / "dcoord"

    @property
    def worker_state(self) -> Path:
        """What `dworker` keeps: its id, bundles, working directories."""
        return self.state / "dworker"

    @property
    def tasks_layers(self) -> list[Layer]:
        """Folders of definitions; a file in a later one takes the place of its namesakes in the earlier ones."""
        folders = []
        if self.system_tasks:
            folders = [Path("/usr/lib/districomp"), Path("/run/districomp"), _SYSTEM_CONFIG]
        folders += [self.runtime, self.config]
        layers = [Layer(shipped_tasks(), LIVE_AS_SHIPPED)]
        # dict.fromkeys: root's own folders are the system's.
        return layers + [Layer(folder / "tasks.d") for folder in dict.fromkeys(folders)]


class Listen(msgspec.Struct, frozen=True):
    """The control port. Port 0: the system chooses. No address: every interface, loopback alone if `insecure`."""

    address: str = ""
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = CONTROL_PORT


class Web(msgspec.Struct, frozen=True):
    """The plain HTTP port. `public: false` closes the page; `hosts`: names it may be asked by, beside its address.

    No address here and for Data: the control port's.
    """

    address: str = ""
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = WEB_PORT
    public: bool = True
    hosts: list[str] = []
    spawn: Literal["auto"] | bool = "auto"


class Data(msgspec.Struct, frozen=True):
    """The data port."""

    address: str = ""
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = DATA_PORT


class Journal(msgspec.Struct, frozen=True):
    """The journal's file; `load_coordinator` fills it in, so that it is never relative."""

    path: Path = Path()


class Discovery(msgspec.Struct, frozen=True):
    """Names or addresses of the interfaces used for mDNS; empty: those listened on."""

    interfaces: list[str] = []


Lease = Annotated[float, msgspec.Meta(extra={"parse": parse_duration, "what": "a duration such as 15s"})]
Lifetime = Annotated[float, msgspec.Meta(extra={"parse": parse_duration, "what": "a duration such as 30d"})]


class Certificates(msgspec.Struct, frozen=True):
    """How long those of workers and clients are good; they are renewed at two thirds of it."""

    lifetime_s: Lifetime = msgspec.field(name="lifetime", default=30 * 86400.0)


class CoordinatorConfig(msgspec.Struct, frozen=True):
    """`dcoord.yaml`, checked. `lease_s`: a worker that is silent so long is lost."""

    name: str = ""
    listen: Listen = Listen()
    web: Web = Web()
    data: Data = Data()
    journal: Journal = Journal()
    lease_s: Lease = msgspec.field(name="lease", default=15.0)
    advertise: bool = True
    discovery: Discovery = Discovery()
    certificates: Certificates = Certificates()
    insecure: bool = False
    insecure_network: bool = False


class WorkerConfig(msgspec.Struct, frozen=True):
    """`dworker.yaml`, checked. `slots` None: one a CPU; `coordinator` '': found by mDNS; `cluster` '': the only one."""

    cluster: str = ""
    name: str = ""
    slots: Annotated[int, msgspec.Meta(ge=1, le=SLOTS_MAX)] | None = None
    coordinator: str = ""
    token_file: Path | None = None
    labels: list[str] = []
    resources: dict[str, int] = {}
    discovery: Discovery = Discovery()
    insecure: bool = False
    insecure_network: bool = False


def load_coordinator(path: Path | None, paths: Paths) -> CoordinatorConfig:
    """`dcoord.yaml` (None: the one of the configuration folder, which may be absent). ConfigError with every fault."""
    return parse_coordinator_file(*_read(path, paths.config / "dcoord.yaml"), paths)


def parse_coordinator_file(data: bytes, file: str, paths: Paths) -> CoordinatorConfig:
    """The settings in the bytes of a `dcoord.yaml`. ConfigError with every fault."""
    document, config = _convert(data, file, CoordinatorConfig)
    _check_name(document, "name", config.name)
    addresses = _addresses(document, config)
    if not LEASE_S_MIN <= config.lease_s <= LEASE_S_MAX:
        document.problem(("lease",), f"must be from {LEASE_S_MIN * 1000:.0f}ms to {LEASE_S_MAX / 3600:.0f}h")
    if not CERTIFICATE_S_MIN <= config.certificates.lifetime_s <= CERTIFICATE_S_MAX:
        document.problem(("certificates", "lifetime"), "must be from 10s to 3650d")
    if config.journal.path != Path() and not config.journal.path.is_absolute():
        document.problem(("journal", "path"), "must be an absolute path; it begins with /")
    _check_interfaces(document, config.discovery)
    _finish(document)
    journal = config.journal if config.journal.path != Path() else Journal(paths.coordinator_state / "journal.sqlite")
    return replace(
        config,
        name=config.name or default_name(),
        listen=replace(config.listen, address=addresses[0]),
        web=replace(config.web, address=addresses[1]),
        data=replace(config.data, address=addresses[2]),
        journal=journal,
    )


def load_worker(path: Path | None, paths: Paths, environ: Mapping[str, str] = os.environ) -> WorkerConfig:
    """`dworker.yaml` (None: the one of the configuration folder, which may be absent). ConfigError with every fault.

    DISTRICOMP_COORDINATOR and DISTRICOMP_TOKEN_FILE stand above the file, the command line above both.
    """
    return parse_worker_file(*_read(path, paths.config / "dworker.yaml"), environ)


def parse_worker_file(data: bytes, file: str, environ: Mapping[str, str]) -> WorkerConfig:
    """The settings in the bytes of a `dworker.yaml`, the environment's above them. ConfigError with every fault."""
    document, config = _convert(data, file, WorkerConfig)
    _check_name(document, "name", config.name)
    _check_name(document, "cluster", config.cluster)
    if config.coordinator:
        _check(document, ("coordinator",), parse_coordinator, config.coordinator)
    if config.token_file is not None and not config.token_file.is_absolute():
        document.problem(("token_file",), "must be an absolute path; it begins with /")
    for i, label in enumerate(config.labels):
        if not _NAME.fullmatch(label):
            document.problem(("labels", i), f"{label!r} must be letters, digits, '.', '_' and '-', at most 63")
    for name, count in config.resources.items():
        if count < 0:
            document.problem(("resources", name), "must be a whole number of at least 0")
    _check_interfaces(document, config.discovery)
    _finish(document)
    if coordinator := environ.get("DISTRICOMP_COORDINATOR"):
        try:
            parse_coordinator(coordinator)
        except ConfigError as error:
            raise ConfigError(f"DISTRICOMP_COORDINATOR: {error}") from None
        config = replace(config, coordinator=coordinator)
    check_insecure(config)
    if token_file := _token_file(environ):
        config = replace(config, token_file=token_file)
    return replace(config, name=config.name or default_name())


def check_insecure(config: WorkerConfig) -> None:
    """ConfigError if an insecure worker would leave its machine without having been told to."""
    if config.insecure and not config.insecure_network and config.coordinator:
        try:
            check_loopback(parse_coordinator(config.coordinator)[0])
        except ConfigError as error:
            raise ConfigError(f"coordinator: {error}") from None


def default_name() -> str:
    """The machine's name, as a cluster's or worker's own when none is configured."""
    host = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname().partition(".")[0]).strip("-_")[:63]
    return host or "districomp"


def check_address(address: str) -> str:
    """An IP address, normalised, for a socket's sake: localhost may be two. ConfigError."""
    try:
        return str(ipaddress.ip_address(LOOPBACK if address == "localhost" else address.strip("[]")))
    except ValueError:
        raise ConfigError(
            f"{address!r} is not an IP address; write for example 192.168.1.10, 127.0.0.1 or ::"
        ) from None


def check_loopback(address: str) -> str:
    """The address, normalised, if it is one of this machine alone. ConfigError says why any other is refused."""
    parsed = ipaddress.ip_address(check_address(address))
    if not parsed.is_loopback or getattr(parsed, "ipv4_mapped", None) is not None:
        raise ConfigError(
            f"{address} is reachable by other machines, and with `insecure: true` connections are neither encrypted nor "
            "authenticated, so anyone there could run programs here; use 127.0.0.1 or ::1, or remove `insecure`"
        )
    return str(parsed)


def parse_coordinator(text: str) -> tuple[str, int]:
    """(host, port) of `HOST:PORT`, `[::1]:PORT` or `HOST`; a host is an address or a name. ConfigError."""
    host, colon, port_text = text.rpartition(":")
    if not colon or (":" in host and not host.endswith("]")):
        host, port_text = text, str(CONTROL_PORT)
    if not (port_text.isascii() and port_text.isdigit() and 0 < int(port_text[:9]) < 65536):
        raise ConfigError(f"{text!r} is not HOST:PORT; write for example 127.0.0.1:{CONTROL_PORT}")
    host = LOOPBACK if host == "localhost" else host.strip("[]")
    if not _HOST.fullmatch(host) and not _is_address(host):
        raise ConfigError(
            f"{host!r} is neither a machine's name nor an address; write for example 192.168.1.10:{CONTROL_PORT}"
        )
    return host, int(port_text)


def shipped_tasks() -> Path:
    """The folder of shipped definitions: `tasks/` of a checkout, else of the installation's shared data."""
    packages = Path(__file__).resolve().parents[1]
    if packages.name == "daemons" and (packages.parent / "tasks").is_dir():
        return packages.parent / "tasks"
    # Where pip puts a wheel's data: below the prefix, the user's own, or beside the packages (--target).
    user = sysconfig.get_preferred_scheme("user")
    prefixes = [Path(sysconfig.get_path("data")), Path(sysconfig.get_path("data", user)), packages]
    folders = [prefix / "share" / "districomp" / "tasks" for prefix in prefixes]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def _is_address(text: str) -> bool:
    # A link-local address may name its interface: fe80::1%eth0.
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _addresses(document: Document, config: CoordinatorConfig) -> list[str]:
    """Where the control, web and data ports listen, checked."""
    chosen = config.listen.address or (LOOPBACK if config.insecure else EVERYWHERE)
    check = check_loopback if config.insecure and not config.insecure_network else check_address
    found = []
    for key, own in (("listen", chosen), ("web", config.web.address), ("data", config.data.address)):
        try:
            found.append(check(own or chosen))
        except ConfigError as error:
            document.problem((key, "address"), str(error))
    return found if len(found) == 3 else [LOOPBACK] * 3


def _token_file(environ: Mapping[str, str]) -> Path | None:
    """What DISTRICOMP_TOKEN_FILE names; None if that is a credential that the machine was not given (blank, or absent)."""
    file = environ.get("DISTRICOMP_TOKEN_FILE")
    if not file:
        return None
    if file.startswith(environ.get("CREDENTIALS_DIRECTORY") or "\0"):
        try:
            is_given = bool(Path(file).read_bytes().strip())
        except OSError:
            is_given = False
        return Path(file) if is_given else None
    return Path(file)


def _folder(environ: Mapping[str, str], variable: str, default: Path) -> Path:
    # Absolute, because daemons change their directory and hand the path to children.
    return Path(environ[variable]).absolute() if environ.get(variable) else default


def _xdg(environ: Mapping[str, str], variable: str, default: Path) -> Path:
    # The XDG specification: a relative path is to be ignored.
    value = environ.get(variable, "")
    return Path(value) if value.startswith("/") else default


def _read(path: Path | None, default: Path) -> tuple[bytes, str]:
    """A file's bytes and its name for messages; an absent default file is an empty one."""
    chosen = path or default
    try:
        # A little more than is allowed, so that the reader of the text can say that it is too much.
        with chosen.open("rb") as file:
            return file.read(FILE_BYTES_MAX + 1), str(chosen)
    except OSError as error:
        if path is None and isinstance(error, FileNotFoundError | NotADirectoryError):
            return b"", str(chosen)
        raise ConfigError(f"{chosen}: cannot be read: {error.strerror}") from error


def _convert(data: bytes, file: str, cls: type[C]) -> tuple[Document, C]:
    document = Document(data, file)
    config = document.convert(cls)
    if config is None:
        raise YamlError(document.problems)
    return document, config


def _check(document: Document, key: tuple[str, ...], check: Any, value: str) -> None:
    try:
        check(value)
    except ConfigError as error:
        document.problem(key, str(error))


def _check_name(document: Document, key: str, name: str) -> None:
    if name and not _NAME.fullmatch(name):
        document.problem((key,), f"{name!r} must be letters, digits, '.', '_' and '-', at most 63")


def _check_interfaces(document: Document, discovery: Discovery) -> None:
    for i, interface in enumerate(discovery.interfaces):
        if not interface or len(interface) > 63 or any(char.isspace() or char == "/" for char in interface):
            document.problem(("discovery", "interfaces", i), f"{interface!r} is not an interface's name or address")


def _finish(document: Document) -> None:
    if document.problems:
        raise YamlError(document.problems)
