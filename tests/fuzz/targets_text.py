"""Targets: what is read from files, command lines and environments, and small texts from strangers."""

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from dcoord.core import grants
from dcoord.core.grants import Grant, GrantError
from dcoord.web.files import choose_part
from dcoord.web.problems import WebError
from dcoord.web.submission import read_submission
from districomp import addresses, client_address, config, keys, tls
from districomp.errors import ConfigError, DistricompError, TokenError, TrustError, UsageError
from districomp.identity import Identity, IdentityFolder
from districomp.placeholders import run_template, split_argument
from districomp.ranges import parse_range
from districomp.taskdef import BundleFile, ParamsError, check_params
from districomp.taskfile import Draft
from districomp.tokens import JoinToken, format_token, is_cluster_id, parse_token
from districomp.units import parse_duration, parse_size
from districomp.yamlfile import render_problems
from tests.fuzz.target import Run, Target, always

ROOT: Final = Path(__file__).resolve().parents[2]
PATHS: Final = config.Paths.from_environment({})
NOW: Final = 1e6
KEY: Final = b"k" * 32
TOKEN: Final = JoinToken("worker", b"a" * 16, b"s" * 16)
FILES: Final = [BundleFile("run.sh", 0o755, 3, "ab" * 32), BundleFile("lib/a.py", 0o644, 3, "cd" * 32)]


log = logging.getLogger("dcoord.authority")


def checked(check: Callable[[str], object], text: str) -> None:
    """A text that is what it should be, or a ValueError (as `units` has it) or an error of ours."""
    with contextlib.suppress(DistricompError, ValueError):
        check(text)


# ---- YAML ----


def definition(data: bytes) -> None:
    """A definition, as the catalog and `dctl def check` read it."""
    draft = Draft(data, "tasks.d/fuzzed.yaml", "fuzzed")
    draft.check_programs(FILES if draft.bundle else [])
    render_problems([*draft.problems, *draft.warnings])
    with contextlib.suppress(ConfigError):
        finished = draft.finish("ab" * 32 if draft.bundle else "")
        with contextlib.suppress(ParamsError):
            check_params(finished, {"size": 3, "name": "x"})


def coordinator_file(data: bytes) -> None:
    """dcoord.yaml."""
    with contextlib.suppress(ConfigError):
        config.parse_coordinator_file(data, "dcoord.yaml", PATHS)


def worker_file(data: bytes) -> None:
    """dworker.yaml."""
    with contextlib.suppress(ConfigError):
        config.parse_worker_file(data, "dworker.yaml", {})


def _files(*patterns: str) -> list[bytes]:
    return [file.read_bytes()[:4096] for pattern in patterns for file in sorted(ROOT.glob(pattern))]


_YAML: Final = (
    "version: 1\n", "command: [", "stream: ", "python: 'b:run'\n", "params:\n  size: {type: int, min: 1}\n", "bundle: b\n", "env: {A: b}\n",
    "{size}", "{data}", "{{", "limits: {time: 1h}\n", "retries: {max: 3, backoff: 1s}\n", "isolation: sandbox\n", "network: false\n",
    "requires: {programs: [a]}\n", "&a ", "*a", "!!python/object ", "<<: ", "---\n", "? ", "|\n  ", ">-\n  ", "0x", "1e999", ".nan", "\ufeff", "\u2028",
    "listen: {address: '::'}\n", "web: {port: 0}\n", "lease: 15s\n", "discovery: {interfaces: [lo]}\n", "certificates: {lifetime: 30d}\n", "slots: 2\n",
    "insecure: true\n", "coordinator: 127.0.0.1:1\n", "labels: [a]\n", "resources: {gpu: 1}\n", "token_file: /t\n", "cluster: c\n",
)  # fmt: skip

DCOORD_YAML: Final = b"""\
name: room-12
listen: {address: '::', port: 8420}
web: {address: 127.0.0.1, port: 8421, public: false, hosts: [a.example], spawn: auto}
data: {port: 8422}
journal: {path: /var/lib/x.sqlite}
lease: 15s
advertise: true
discovery: {interfaces: [lo, eth0]}
certificates: {lifetime: 30d}
insecure: false
"""
DWORKER_YAML: Final = b"""\
cluster: room-12
name: pc
slots: 4
coordinator: '[::1]:8420'
token_file: /run/token
labels: [lab, gpu]
resources: {gpu: 1}
discovery: {interfaces: [lo]}
insecure: true
insecure_network: false
"""

# ---- tokens, grants, addresses ----


def token(data: bytes) -> None:
    """What somebody pastes after `dctl join`; never repeated by the error."""
    text = data.decode("utf-8", "surrogateescape")
    is_cluster_id(text)
    try:
        parsed = parse_token(text)
    except TokenError as error:
        assert len(text) < 12 or text not in str(error), "the error repeats the token"
    else:
        assert format_token(parsed) == text.strip().lower()


def grant(data: bytes) -> None:
    """The Authorization header's grant: none but ours is one."""
    text = data.decode("latin-1")
    try:
        found = grants.check(KEY, text, NOW)
    except GrantError:
        return
    assert grants.mint(KEY, found) in GRANTS, "it was never minted"


GRANTS: Final = [
    grants.mint(KEY, Grant("GET", "/tasks/1.0", "w1", "worker", "pc/w1", 2**40, NOW + 60)),
    grants.mint(KEY, Grant("SESSION", "", "", "admin", "root", 0, NOW - 60)),
    grants.mint(b"other" * 6, Grant("PUT", "/blobs/" + "ab" * 32, "", "submit", "", 0, NOW + 60)),
]


def texts(data: bytes) -> None:
    """Addresses, durations, sizes, ranges, arguments: small texts that people write and peers send."""
    text = data.decode("utf-8", "surrogateescape")
    for check in (
        lambda text: client_address.parse_address(text, "here"), config.parse_coordinator, config.check_address, config.check_loopback,
        parse_duration, parse_size, parse_range, lambda text: len(split_argument(text)), lambda text: run_template([text], True),
    ):  # fmt: skip
        checked(check, text)
    checked(lambda text: addresses.reached_url(text, "127.0.0.1"), text)
    choose_part(100, "ab" * 32, text, text, text)


def submission(data: bytes) -> None:
    """A job as JSON, as somebody posts it."""
    with contextlib.suppress(WebError, UsageError):
        read_submission(data)


# ---- files with keys, and requests for certificates ----


@contextlib.contextmanager
def identity() -> Iterator[Run]:
    """identity.json of a worker or client: an identity or a ConfigError that shows nothing of it."""
    with _folder() as path:
        folder = IdentityFolder(path / "identity")
        folder.save(_identity())

        def run(data: bytes) -> None:
            (folder.path / "identity.json").write_bytes(data)
            try:
                loaded = folder.load()
            except ConfigError as error:
                assert "PRIVATE" not in str(error), "the error shows the key"
                return
            assert loaded is not None
            assert "PRIVATE" not in repr(loaded)
            with contextlib.suppress(TrustError):
                tls.client_context(loaded.authorities, loaded.certificate, loaded.key)

        yield run


@contextlib.contextmanager
def authority() -> Iterator[Run]:
    """authority.json of the coordinator, through to the first certificate."""
    from dcoord.authority import Authority

    with _folder() as path:
        Authority.open(path / "trust", "lab")
        log.disabled = True
        (file,) = (path / "trust").glob("*.json")

        def run(data: bytes) -> None:
            file.write_bytes(data)
            file.chmod(0o600)
            with contextlib.suppress(ConfigError, TrustError), warnings.catch_warnings():
                # cryptography warns of what it will refuse one day.
                warnings.simplefilter("ignore")
                Authority.open(path / "trust", "lab")

        yield run
        log.disabled = False


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="dc-fuzz-", dir=shm if shm.is_dir() else None) as folder:
        yield Path(folder)


def _identity() -> Identity:
    from dcoord.authority import Authority

    with _folder() as path:
        made = Authority.open(path / "trust", "lab")
        key = keys.new_key()
        issued = made.sign(key.csr, "worker", "w1", "pc")
        chain = tls.to_pem([issued.certificate, *issued.chain])
        return Identity(
            made.cluster, "lab", "worker", "w1", made.authorities, chain, key.key, "token", [("127.0.0.1", 8420)]
        )


def _saved(name: str) -> list[bytes]:
    """A good file of this name, as it is written."""
    from dcoord.authority import Authority

    with _folder() as path:
        if name == "identity.json":
            IdentityFolder(path / "identity").save(_identity())
        else:
            Authority.open(path / "trust", "lab")
        return [file.read_bytes() for file in path.rglob("*.json")]


def request(data: bytes) -> None:
    """A certificate request: a P-256 key that is its own, or a TrustError."""
    with contextlib.suppress(TrustError):
        assert len(keys.check_csr(data)) == 91


def chain(data: bytes) -> None:
    """Certificates that somebody hands over, as PEM and DER."""
    with contextlib.suppress(TrustError):
        tls.from_pem(data)
    with contextlib.suppress(TrustError):
        tls.client_context([data])
    with contextlib.suppress(TrustError):
        tls.load_chain(tls.unverified_context(), data, data)


def _chain_seeds() -> list[bytes]:
    own = _identity()
    return [own.certificate, own.key + own.certificate, *own.authorities, tls.to_pem(own.authorities)]


_JSON: Final = ('"', "null", "[]", "{}", "1e999", '"\\ud800"', "-1", "[[[[", "0.5", "true")

TARGETS: Final = {
    "definition": Target(
        always(definition), lambda: _files("tasks/*.yaml", "config/tasks.d/*.yaml", "tasks/templates/*/*.yaml"), _YAML
    ),
    "dcoord-yaml": Target(always(coordinator_file), lambda: [*_files("config/dcoord.yaml"), DCOORD_YAML], _YAML),
    "dworker-yaml": Target(always(worker_file), lambda: [*_files("config/dworker.yaml"), DWORKER_YAML], _YAML),
    "token": Target(
        always(token),
        lambda: [format_token(TOKEN).encode(), format_token(TOKEN).upper().encode() + b"\n", b"dcw2-a-b"],
        ("dcw1-", "dcs1-", "-", "\u00df", " "),
        bytes_max=256,
    ),
    "grant": Target(always(grant), lambda: [text.encode() for text in GRANTS], (".", "=", "-", "_", "+"), bytes_max=2048),
    "texts": Target(
        always(texts),
        lambda: [b"127.0.0.1:8420", b"[::1%lo]:1", b"tcp://127.0.0.1:1", b"host", b"1h30m", b"4 GiB", b"1..9", b"0..100..7", b"a{size}b{{",
                 b"https://[::]:8422", b"https://0.0.0.0:1/x", b"bytes=0-9", b"bytes=-5"],
        ("[", "]", "::", "%", "//", "@", "{data}", "{", "}", "..", "ms", "KiB", "bytes=", "\u0663", "0.0.0.0"),
        bytes_max=512,
    ),
    "submission": Target(
        always(submission),
        lambda: [b'{"definition": "d", "items": ["a", {"base64": "eA=="}], "name": "n", "params": {"a": [1, 2.5, null]}}',
                 b'{"definition": "d", "range": "0..9", "max_fails": 2, "request_id": "3f2b8f5e-3b5e-4a52-9d57-5f8d2c5f7c11"}',
                 b'{"definition": "d", "matrix": {"a": [1, 2], "b": ["x"]}}', b'{"definition": "d", "data": "x"}'],
        _JSON,
    ),
    "identity": Target(identity, lambda: _saved("identity.json"), _JSON, bytes_max=8192),
    "authority": Target(authority, lambda: _saved("authority.json"), _JSON, bytes_max=8192),
    "request": Target(always(request), lambda: [keys.new_key().csr]),
    "chain": Target(always(chain), _chain_seeds, ("-----BEGIN CERTIFICATE-----\n", "-----END CERTIFICATE-----\n")),
}  # fmt: skip
