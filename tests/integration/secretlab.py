"""Secrets that are planted everywhere in a real cluster, and where they may not turn up."""

import base64
import contextlib
import http.client
import json
import os
import re
import secrets
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from dcoord.core import grants
from districomp.client import Client
from districomp.tokens import parse_token
from tests.integration.client_cluster import Cluster, Elsewhere
from tests.integration.clientlab import BOUND_S, dctl

SETTINGS: Final = """\
name: secrets
listen: {address: 127.0.0.1, port: 0}
web: {port: 0}
data: {port: 0}
discovery: {interfaces: [lo]}
"""
TASK: Final = """\
version: 1
command: [sh, -c, 'cat; env; echo core=$(ulimit -c); echo "$COMPLAINT" >&2; until [ -e SEEN ]; do sleep .05; done; exit CODE', sh, "ARGUMENT", "{word}"]
params: {word: {type: str}}
env: {PLANTED: VARIABLE, COMPLAINT: ERROR}
retries: {max: 0}
"""
"""It sleeps so that whoever looks at command lines again and again meets its own."""
LARGE_BYTES: Final = 100_000
ARGUMENTS: Final = ("an argument of the definition", "a param")
"""What a definition's author puts into a command line is in that command's, and nowhere else."""
_GRANT: Final = re.compile(rb"[A-Za-z0-9_-]{40,}\.[A-Za-z0-9_-]{43}")


class Secrets:
    """What must not be seen, in every spelling, and what it is."""

    def __init__(self) -> None:
        self._spellings: dict[bytes, str] = {}
        self._grant_keys: list[bytes] = []

    def new(self, what: str) -> str:
        """A text that stands nowhere else."""
        made = f"planted{secrets.token_hex(12)}"
        self.add(what, made.encode())
        return made

    def add(self, what: str, secret: bytes) -> None:
        """Bytes, which a log could show in hex, base64 or base32 as well."""
        self._spellings[secret] = what
        for spelt in (
            secret.hex().encode(),
            base64.b64encode(secret),
            base64.urlsafe_b64encode(secret),
            base64.b32encode(secret).lower(),
        ):
            self._spellings[spelt.rstrip(b"=")] = what  # fmt: skip

    def add_key(self, what: str, pem: bytes) -> None:
        """A private key: its text, and its number."""
        for line in pem.splitlines():
            if not line.startswith(b"-----"):
                self._spellings[line] = what
        key = serialization.load_pem_private_key(pem, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        number = key.private_numbers().private_value
        self.add(what, number.to_bytes(32, "big"))
        self._spellings[str(number).encode()] = what

    def add_token(self, text: str) -> None:
        """A join token: whole, and its secret alone."""
        self._spellings[text.encode()] = "a join token"
        self.add("a join token's secret", parse_token(text).secret)

    def add_files(self, folder: Path) -> None:
        """The keys of the authority and of every identity below a folder."""
        for file in folder.rglob("authority.json"):
            kept = json.loads(file.read_bytes())
            self.add_key("the authority's key", kept["key"].encode())
            self._grant_keys.append(base64.b64decode(kept["grant_key"]))
            self.add("the key of grants", self._grant_keys[-1])
        for file in folder.rglob("identity.json"):
            self.add_key("an identity's key", base64.b64decode(json.loads(file.read_bytes())["key"]))

    def seen_in(self, data: bytes, but: tuple[str, ...] = ()) -> list[str]:
        """What of it is there, by what it is."""
        seen = [what for spelt, what in self._spellings.items() if what not in but and spelt in data]
        seen += ["a grant" for text in _GRANT.findall(data) if "a grant" not in but and self._is_grant(text.decode())]
        return sorted(set(seen))

    def _is_grant(self, text: str) -> bool:
        for key in self._grant_keys:
            with contextlib.suppress(grants.GrantError):
                grants.check(key, text, 0.0)
                return True
        return False


class CommandLines(threading.Thread):
    """Every command line of this machine, again and again: whatever our secrets are in is ours."""

    def __init__(self) -> None:
        super().__init__(name="command lines", daemon=True)
        self.seen: set[bytes] = set()
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.01):
            for process in Path("/proc").iterdir():
                if process.name.isdigit():
                    with contextlib.suppress(OSError):
                        self.seen.add((process / "cmdline").read_bytes())

    def stop(self) -> None:
        """No more than were seen."""
        self._done.set()
        self.join(BOUND_S)


class SecretCluster(Cluster):
    """A coordinator and workers that log all they can, under a umask that takes nothing away, with secrets everywhere."""

    def __init__(self, folder: Path, lines: CommandLines) -> None:
        super().__init__(folder, SETTINGS)
        self.lines = lines
        """Every command line of the machine while it ran."""
        # A traceback of every thread when it is killed by SIGABRT.
        self.environment |= {"PYTHONFAULTHANDLER": "1"}
        self.secrets = Secrets()
        self.environment["AWS_SECRET_ACCESS_KEY"] = self.secrets.new("a variable of the daemon's environment")
        self.said: dict[str, bytes] = {}
        """What programs printed, by what they are."""
        self.plain: dict[str, bytes] = {}
        """What the plain port answered, by what was asked."""
        self.running: dict[int, bytes] = {}
        """Our daemons' at its end."""
        self._define("leaks", "0")
        self._define("fails", "7")
        self.param = self.secrets.new("a param")
        self.data = self.secrets.new("the data of a task")

    def _define(self, name: str, code: str) -> None:
        text = (
            TASK.replace("CODE", code)
            .replace("SEEN", str(self.folder / "seen"))
            .replace("ERROR", self.secrets.new("what a task wrote to standard error"))
        )
        text = text.replace("ARGUMENT", self.secrets.new("an argument of the definition"))
        text = text.replace("VARIABLE", self.secrets.new("a variable of the definition"))
        (self.folder / f"config/tasks.d/{name}.yaml").write_text(text)

    def start_coordinator(self) -> None:
        """With -v."""
        self.endpoint.unlink(missing_ok=True)
        self.coordinator = self._start("dcoord", "-v")
        self.wait_for(
            lambda: self.endpoint.exists() and bool(json.loads(self.endpoint.read_text())["data"]), "endpoint"
        )

    def start(self, program: str, elsewhere: Elsewhere | None = None) -> "subprocess.Popen[bytes]":
        """A daemon with -v, of this machine or another."""
        environment = self.environment | (elsewhere.environment if elsewhere else {})
        return self._start(program, "-v", environment=environment, log=f"{elsewhere.name}.log" if elsewhere else "")

    def dctl(self, *arguments: str, stdin: bytes = b"", elsewhere: Elsewhere | None = None, code: int = 0) -> bytes:
        """What it prints; kept."""
        environment = elsewhere.environment if elsewhere else self.environment
        done = dctl(*arguments, stdin=stdin, code=code, environment=environment)
        self.said[f"dctl {' '.join(arguments)} ({len(self.said)})"] = done.stdout + done.stderr
        return done.stdout

    def token(self, role: str) -> str:
        """A new one; the only command that may show it is not kept."""
        shown = dctl("token", "create", role, "--json", environment=self.environment).stdout
        text: str = json.loads(shown)["token"]
        self.secrets.add_token(text)
        return text

    def run_jobs(self) -> int:
        """Jobs with small and large data, good and failing; the number of the last."""
        params = {"word": self.param}
        with Client(self.socket) as client:
            first = client.submit("leaks", params=params, data=self.data)
            # It runs until its command line was seen.
            seen = sorted(ARGUMENTS)
            self.wait_for(lambda: any(self.secrets.seen_in(line) == seen for line in self.lines.seen.copy()), "task")
            (self.folder / "seen").touch()
            first.wait(BOUND_S)
            large = self.data.encode() + os.urandom(LARGE_BYTES)
            for result in client.submit("leaks", params=params, data=large).results(timeout=BOUND_S):
                assert self.data.encode() in result.read()
            failing = client.submit("fails", params=params, data=self.data)
            failing.wait(BOUND_S)
            return failing.number

    def logs(self) -> dict[str, bytes]:
        """Every log, by its name."""
        return {path.name: path.read_bytes() for path in sorted(self.folder.glob("*.log"))}

    def daemons(self) -> dict[int, bytes]:
        """Every process of ours that runs, but for tasks: its command line by its number."""
        ours = {process.pid for process in self._processes}
        found: dict[int, bytes] = {}
        for process in Path("/proc").iterdir():
            if not process.name.isdigit():
                continue
            with contextlib.suppress(OSError, ValueError):
                parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
                if int(process.name) in ours or parent in ours:
                    found[int(process.name)] = (process / "cmdline").read_bytes()
        return found

    def abort(self) -> None:
        """SIGABRT to all of them: each says where it was, and dies."""
        for pid in self.daemons():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGABRT)
        for process in self._processes:
            process.wait(BOUND_S)


class Browser:
    """`dctl ui` of somebody, and a browser with its cookie; `secrets` learns of both."""

    def __init__(self, cluster: SecretCluster, somebody: Elsewhere) -> None:
        self._log = (cluster.folder / "dctl-ui.log").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "dctl", "ui", "--no-browser"],
            stdout=subprocess.PIPE, stderr=self._log, env=os.environ | cluster.environment | somebody.environment,
        )  # fmt: skip
        assert self._process.stdout is not None
        url = urlsplit(self._process.stdout.readline().decode().strip())
        cluster.secrets.add("the key of dctl ui", url.query.partition("=")[2].encode())
        self._port = url.port
        cookie = self._get(f"/?{url.query}", "")[1].partition(";")[0]
        assert cookie
        cluster.secrets.add("the cookie of dctl ui", cookie.partition("=")[2].encode())
        self._cookie = cookie

    def get(self, path: str) -> bytes:
        """A page."""
        return self._get(path, self._cookie)[0]

    def _get(self, path: str, cookie: str) -> tuple[bytes, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=BOUND_S)
        with contextlib.closing(connection):
            connection.request("GET", path, headers={"Cookie": cookie} if cookie else {})
            answer = connection.getresponse()
            return answer.read(), answer.getheader("Set-Cookie") or ""

    def end(self) -> None:
        self._process.send_signal(signal.SIGINT)
        assert self._process.stdout is not None
        with self._process.stdout:
            self._process.wait(BOUND_S)
        self._log.close()


def plain_port(cluster: SecretCluster, paths: list[str]) -> Iterator[tuple[str, bytes]]:
    """Everything that the plain port answers to these paths: head and body."""
    port = urlsplit(json.loads(cluster.endpoint.read_bytes())["web"]).port
    for method in ("GET", "HEAD", "POST", "PUT", "DELETE"):
        for path in paths:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=BOUND_S)
            with contextlib.closing(connection):
                connection.request(method, path)
                answer = connection.getresponse()
                yield f"{method} {path}", str(answer.getheaders()).encode() + answer.read()


def open_files(root: Path) -> Iterator[Path]:
    """Every file below a folder that somebody else may read: it, and the way to it."""
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        folders[:] = [name for name in folders if stat.S_IMODE((here / name).lstat().st_mode) & 0o011]
        for name in files:
            status = (here / name).lstat()
            if stat.S_ISREG(status.st_mode) and status.st_mode & 0o044:
                yield here / name


__all__ = ["ARGUMENTS", "Browser", "CommandLines", "SecretCluster", "Secrets", "open_files", "plain_port"]
