"""Folders, environment variables, and the two daemons' settings."""

from pathlib import Path

import pytest

from districomp.config import (
    LIVE_AS_SHIPPED,
    CoordinatorConfig,
    Data,
    Discovery,
    Journal,
    Layer,
    Listen,
    Paths,
    Web,
    WorkerConfig,
    check_loopback,
    default_name,
    parse_coordinator,
    parse_coordinator_file,
    parse_worker_file,
    shipped_tasks,
)
from districomp.errors import ConfigError

PATHS = Paths(Path("/s"), Path("/c"), Path("/r"))
ROOT = Path(__file__).resolve().parents[2]


def coordinator(text: str) -> CoordinatorConfig:
    return parse_coordinator_file(text.encode(), "dcoord.yaml", PATHS)


def worker(text: str, environ: dict[str, str] | None = None) -> WorkerConfig:
    return parse_worker_file(text.encode(), "dworker.yaml", environ or {})


def test_the_defaults_are_every_interface_and_secure() -> None:
    assert coordinator("") == CoordinatorConfig(
        name=default_name(),
        listen=Listen("::", 8420),
        web=Web("::", 8421, True, [], "auto"),
        data=Data("::", 8422),
        journal=Journal(Path("/s/dcoord/journal.sqlite")),
        lease_s=15.0,
        advertise=True,
        discovery=Discovery([]),
        insecure=False,
        insecure_network=False,
    )
    assert worker("") == WorkerConfig("", default_name(), None, "", None, [], {}, Discovery([]))


def test_every_key_of_the_coordinator() -> None:
    assert coordinator(
        "name: lab\nlisten: {address: '::1', port: 0}\nweb: {address: 127.0.0.2, port: 1, public: false, hosts: [a], spawn: true}\n"
        "data: {address: localhost, port: 65535}\njournal: {path: /j/x}\nlease: 500ms\nadvertise: false\n"
        "discovery: {interfaces: [lo, 127.0.0.1]}\ninsecure: true\ninsecure_network: true\n"
    ) == CoordinatorConfig(
        name="lab",
        listen=Listen("::1", 0),
        web=Web("127.0.0.2", 1, False, ["a"], True),
        data=Data("127.0.0.1", 65535),
        journal=Journal(Path("/j/x")),
        lease_s=0.5,
        advertise=False,
        discovery=Discovery(["lo", "127.0.0.1"]),
        insecure=True,
        insecure_network=True,
    )


def test_every_key_of_the_worker() -> None:
    assert worker(
        "cluster: lab\nname: pc-7\nslots: 3\ncoordinator: 127.0.0.1:5\ntoken_file: /t\nlabels: [room-12]\n"
        "resources: {licence: 2}\ndiscovery: {interfaces: [lo]}\n"
    ) == WorkerConfig("lab", "pc-7", 3, "127.0.0.1:5", Path("/t"), ["room-12"], {"licence": 2}, Discovery(["lo"]))


def test_the_environment_stands_above_the_workers_file() -> None:
    environ = {"DISTRICOMP_COORDINATOR": "[::1]:7", "DISTRICOMP_TOKEN_FILE": "/e"}
    found = worker("coordinator: 127.0.0.1:5\ntoken_file: /t", environ)
    assert (found.coordinator, found.token_file) == ("[::1]:7", Path("/e"))
    assert worker("", {"DISTRICOMP_COORDINATOR": "10.0.0.1:7"}).coordinator == "10.0.0.1:7"
    with pytest.raises(ConfigError, match=r"^DISTRICOMP_COORDINATOR: 'a b' is neither"):
        worker("", {"DISTRICOMP_COORDINATOR": "a b:7"})


@pytest.mark.parametrize("address", ["10.0.0.1:7", "coordinator.example:7", "[fe80::1]:7"])
def test_an_insecure_worker_stays_on_its_machine(address: str) -> None:
    in_file, in_environment = f"insecure: true\ncoordinator: '{address}'", {"DISTRICOMP_COORDINATOR": address}
    for text, environ in ((in_file, {}), ("insecure: true", in_environment)):
        with pytest.raises(ConfigError, match="coordinator: "):
            worker(text, environ)
        assert worker(f"{text}\ninsecure_network: true", environ).coordinator == address


def test_all_ports_follow_the_control_ports_address() -> None:
    found = coordinator("listen: {address: 127.0.0.1}\ndata: {address: '::1'}")
    assert (found.listen.address, found.web.address, found.data.address) == ("127.0.0.1", "127.0.0.1", "::1")
    found = coordinator("insecure: true")
    assert (found.listen.address, found.web.address, found.data.address) == ("127.0.0.1",) * 3


@pytest.mark.parametrize("lifetime", ["9s", "3651d"])
def test_how_long_certificates_may_be_good(lifetime: str) -> None:
    assert coordinator("certificates: {lifetime: 10s}").certificates.lifetime_s == 10
    with pytest.raises(ConfigError, match=r"certificates\.lifetime: must be from 10s to 3650d"):
        coordinator(f"certificates: {{lifetime: {lifetime}}}")


@pytest.mark.parametrize("key", ["listen", "web", "data"])
@pytest.mark.parametrize("address", ["0.0.0.0", "'::'", "192.168.1.5", "'fe80::1'", "'::ffff:127.0.0.1'", "126.0.0.1"])
def test_no_insecure_listener_can_leave_this_machine(key: str, address: str) -> None:
    text = f"{key}: {{address: {address}}}\ninsecure: true"
    with pytest.raises(ConfigError) as caught:
        coordinator(text)
    assert f"dcoord.yaml:1:{len(key) + 13}: {key}.address: " in str(caught.value)
    assert "neither encrypted nor authenticated" in str(caught.value)
    assert "use 127.0.0.1 or ::1" in str(caught.value)
    coordinator(f"{text}\ninsecure_network: true")
    coordinator(f"{key}: {{address: {address}}}")


@pytest.mark.parametrize("address", ["127.0.0.1", "127.255.255.254", "::1", "[::1]", "localhost"])
def test_loopback_addresses_are_taken(address: str) -> None:
    assert check_loopback(address) in ("127.0.0.1", "127.255.255.254", "::1")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:8420", ("127.0.0.1", 8420)),
        ("127.0.0.1", ("127.0.0.1", 8420)),
        ("localhost:1", ("127.0.0.1", 1)),
        ("host.example:5", ("host.example", 5)),
        ("fe80::1%eth0", ("fe80::1%eth0", 8420)),
        ("[::1]:5", ("::1", 5)),
        ("::1", ("::1", 8420)),
    ],
)
def test_the_coordinators_address(text: str, expected: tuple[str, int]) -> None:
    assert parse_coordinator(text) == expected


@pytest.mark.parametrize(
    "text", ["127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:x", "127.0.0.1:", ":5", "", "a b:5", "-x:5", "http://a:5"]
)
def test_what_is_no_address_of_a_coordinator(text: str) -> None:
    with pytest.raises(ConfigError, match="write for example"):
        parse_coordinator(text)


def test_all_of_a_files_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        coordinator(
            "name: a b\nlisten: {port: 70000}\nwbe: {}\nlease: 1ms\njournal: {path: x}\ndiscovery: {interfaces: [a/b]}"
        )
    places = [line.split(": ")[0:2] for line in str(caught.value).splitlines() if line.startswith("dcoord.yaml:")]
    assert places == [
        ["dcoord.yaml:1:7", "name"],
        ["dcoord.yaml:2:16", "listen.port"],
        ["dcoord.yaml:3:1", "wbe"],
        ["dcoord.yaml:4:8", "lease"],
        ["dcoord.yaml:5:17", "journal.path"],
        ["dcoord.yaml:6:26", "discovery.interfaces[0]"],
    ]
    with pytest.raises(ConfigError) as caught:
        worker("slots: 0\nlabels: [a b]\nresources: {x: -1}\ntoken_file: t\ncluster: '!'\ncoordinator: ':x'")
    keys = [line.split(": ")[1] for line in str(caught.value).splitlines() if line.startswith("dworker.yaml:")]
    assert keys == ["slots", "labels[0]", "resources.x", "token_file", "cluster", "coordinator"]
    assert caught.value.exit_code == 78


def test_folders_come_from_the_environment() -> None:
    paths = Paths.from_environment(
        {"DISTRICOMP_STATE_DIR": "/a", "DISTRICOMP_CONFIG_DIR": "/b", "DISTRICOMP_RUNTIME_DIR": "/c"}
    )
    assert paths == Paths(Path("/a"), Path("/b"), Path("/c"), False)
    assert paths.control_socket == Path("/c/control.sock")
    assert paths.endpoint == Path("/c/endpoint.json")
    assert paths.coordinator_state == Path("/a/dcoord")
    assert paths.worker_state == Path("/a/dworker")
    assert paths.tasks_layers == [
        Layer(shipped_tasks(), LIVE_AS_SHIPPED),
        Layer(Path("/c/tasks.d")),
        Layer(Path("/b/tasks.d")),
    ]


def test_a_relative_folder_is_made_absolute() -> None:
    assert Paths.from_environment({"DISTRICOMP_STATE_DIR": "a"}).state == Path.cwd() / "a"


def test_root_has_the_systems_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    paths = Paths.from_environment({"HOME": "/h", "XDG_STATE_HOME": "/x"})
    assert paths == Paths(Path("/var/lib/districomp"), Path("/etc/districomp"), Path("/run/districomp"), True)
    assert [str(layer.folder) for layer in paths.tasks_layers[1:]] == [
        "/usr/lib/districomp/tasks.d",
        "/run/districomp/tasks.d",
        "/etc/districomp/tasks.d",
    ]


def test_others_have_xdgs_folders_above_the_systems_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    plain = Paths.from_environment({"HOME": "/h", "XDG_CONFIG_HOME": "relative/is/ignored"})
    assert plain == Paths(
        Path("/h/.local/state/districomp"),
        Path("/h/.config/districomp"),
        Path("/h/.local/state/districomp/run/districomp"),
        True,
    )
    set_by_xdg = Paths.from_environment(
        {"HOME": "/h", "XDG_STATE_HOME": "/s", "XDG_CONFIG_HOME": "/c", "XDG_RUNTIME_DIR": "/r"}
    )
    assert set_by_xdg == Paths(Path("/s/districomp"), Path("/c/districomp"), Path("/r/districomp"), True)
    assert [str(layer.folder) for layer in set_by_xdg.tasks_layers[1:]] == [
        "/usr/lib/districomp/tasks.d",
        "/run/districomp/tasks.d",
        "/etc/districomp/tasks.d",
        "/r/districomp/tasks.d",
        "/c/districomp/tasks.d",
    ]


def test_shipped_definitions_are_those_of_the_checkout() -> None:
    assert shipped_tasks() == ROOT / "tasks"


def test_an_account_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs as any user's number."""

    def nobody_knows() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody_knows)
    with pytest.raises(ConfigError, match="set HOME, or else DISTRICOMP_STATE_DIR"):
        Paths.from_environment({})
    folders = {f"DISTRICOMP_{name}_DIR": f"/of/{name}" for name in ("STATE", "CONFIG", "RUNTIME")}
    assert Paths.from_environment(folders).runtime == Path("/of/RUNTIME")
