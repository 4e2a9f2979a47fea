"""tasks/definition.schema.json in an editor: the YAML language server that VS Code, Neovim and others use, spoken to over stdio."""

import json
import re
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.patience import PATIENCE_S

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = ROOT / "tasks" / "definition.schema.json"
SERVER = "yaml-language-server@1.25.0"
INSTALL_S = 120
SILENCE_S = PATIENCE_S


class Editor:
    """One language server, with our schema set for every file as a person sets it in an editor."""

    def __init__(self, program: Path) -> None:
        self._process = subprocess.Popen(
            [str(program), "--stdio"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._buffer = b""
        self._requests = 0
        self._files = 0
        self._settings = {
            "validate": True, "completion": True, "hover": True,
            "schemaStore": {"enable": False}, "schemas": {SCHEMA.as_uri(): "*.yaml"},
        }  # fmt: skip
        capabilities = {"textDocument": {"completion": {"completionItem": {"snippetSupport": True}}}}
        self.request("initialize", {"processId": None, "rootUri": None, "capabilities": capabilities})
        self._notify("initialized", {})
        self._notify("workspace/didChangeConfiguration", {"settings": {"yaml": self._settings}})

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def problems(self, text: str) -> list[str]:
        """`LINE: message` of all that the editor underlines in a definition."""
        uri = self._open(text)
        found = self._until(
            lambda m: m.get("method") == "textDocument/publishDiagnostics" and m["params"]["uri"] == uri
        )
        entries = found["params"]["diagnostics"]
        return [f"{entry['range']['start']['line'] + 1}: {entry['message']}" for entry in entries]

    def completions(self, text: str, line: int, column: int) -> dict[str, str]:
        """What the editor offers at a place (from 0), with the explanation shown beside it."""
        return {item["label"]: _explanation(item) for item in self._ask_at("completion", text, line, column)["items"]}

    def hover(self, text: str, line: int, column: int) -> str:
        """What the editor shows when the mouse rests on a place (from 0)."""
        return str(self._ask_at("hover", text, line, column)["contents"]["value"])

    def _ask_at(self, what: str, text: str, line: int, column: int) -> Any:
        uri = self._open(text)
        place = {"textDocument": {"uri": uri}, "position": {"line": line, "character": column}}
        return self.request(f"textDocument/{what}", place)["result"]

    def _open(self, text: str) -> str:
        self._files += 1
        uri = Path(f"/definitions/{self._files}.yaml").as_uri()
        document = {"uri": uri, "languageId": "yaml", "version": 1, "text": text}
        self._notify("textDocument/didOpen", {"textDocument": document})
        return uri

    def request(self, method: str, params: Any) -> Any:
        self._requests += 1
        number = self._requests
        self._send({"id": number, "method": method, "params": params})
        return self._until(lambda message: message.get("id") == number and "method" not in message)

    def _notify(self, method: str, params: Any) -> None:
        self._send({"method": method, "params": params})

    def _send(self, message: dict[str, Any]) -> None:
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        assert self._process.stdin
        self._process.stdin.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        self._process.stdin.flush()

    def _until(self, wanted: Any) -> dict[str, Any]:
        deadline = time.monotonic() + SILENCE_S
        while time.monotonic() < deadline:
            message = self._receive(deadline)
            if wanted(message):
                return message
            if message.get("method") == "workspace/configuration":
                asked = message["params"]["items"]
                answer = [self._settings if item.get("section") == "yaml" else {} for item in asked]
                self._send({"id": message["id"], "result": answer})
            elif "id" in message and "method" in message:
                self._send({"id": message["id"], "result": None})
        raise AssertionError("the language server does not answer")

    def _receive(self, deadline: float) -> dict[str, Any]:
        assert self._process.stdout
        while True:
            head, separator, rest = self._buffer.partition(b"\r\n\r\n")
            size = int(head.split(b"Content-Length:")[1].split()[0]) if separator else 0
            if separator and len(rest) >= size:
                self._buffer = rest[size:]
                message: dict[str, Any] = json.loads(rest[:size])
                return message
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the language server does not answer"
            data = self._process.stdout.read1(65536)  # type: ignore[attr-defined]
            assert data, "the language server has ended"
            self._buffer += data


def _explanation(item: dict[str, Any]) -> str:
    said = item.get("documentation") or ""
    return said if isinstance(said, str) else str(said["value"])


@pytest.fixture(scope="module")
def editor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Editor]:
    folder = tmp_path_factory.mktemp("editor")
    install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder), SERVER]
    subprocess.run(install, check=True, capture_output=True, timeout=INSTALL_S)
    editor = Editor(folder / "node_modules" / ".bin" / "yaml-language-server")
    yield editor
    editor.close()


def examples() -> list[str]:
    """Every definition that we have: shipped ones, templates, those of the documentation."""
    files = [
        *ROOT.glob("tasks/*.yaml"),
        *ROOT.glob("tasks/templates/*/definition.yaml"),
        *ROOT.glob("config/tasks.d/*.yaml"),
    ]
    texts = [path.read_text().replace("@NAME@", "x").replace("@ARCH@", "x86_64") for path in sorted(files)]
    return texts + re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "tasks.md").read_text(), re.DOTALL)


def test_good_definitions_are_not_underlined(editor: Editor) -> None:
    found = {text: editor.problems(text) for text in examples()}
    assert len(found) > 30
    assert {text: problems for text, problems in found.items() if problems} == {}


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("version: 1\ncommand: [a]\nlimts: {}\n", 3, "limts is not allowed"),
        ("version: 1\ncommand: [a]\nlimits:\n  tiem: 3s\n", 4, "tiem is not allowed"),
        ("version: 1\ncommand: [a]\nlimits: {time: 10}\n", 3, "Incorrect type"),
        ("version: 1\ncommand: [a]\nlimits: {memory: 5M}\n", 3, "Write a size such as 64KiB"),
        ("version: 1\ncommand: [a]\nlimits: {cpus: 0}\n", 3, "minimum of 1"),
        ("version: 1\ncommand: [a]\nrerun: always\n", 3, 'Valid values: "lost", "never"'),
        ("version: 1\ncommand: [a]\nisolation: [rlimt]\n", 3, '"rlimit", "cgroup"'),
        ("version: 1\ncommand: [a]\nlimits: {time: 10mins}\n", 3, "Write a duration such as 500ms"),
        ("version: 1\ncommand: a b\n", 2, 'Expected "array"'),
        ("version: 1\ncommand: [a, '{p}']\nparams: {p: {type: integer}}\n", 3, 'Valid values: "bool"'),
        ("version: 1\ncommand: [a, '{p}']\nparams: {p: {}}\n", 3, 'Missing property "type"'),
        ("version: 2\ncommand: [a]\n", 1, "Value must be 1"),
        ("version: 1\ndescription: x\n", 1, 'Missing property "command"'),
        ("version: 1\ncommand: [a]\nstream: [b]\n", 1, "only one must validate"),
        ("version: 1\npython: 'a:b'\n", 1, "missing property bundle"),
        ("version: 1\npython: run\nbundle: b\n", 2, "Write module:function"),
    ],
)
def test_a_mistake_is_underlined_in_its_line(editor: Editor, text: str, line: int, says: str) -> None:
    found = editor.problems(text)
    assert any(entry.startswith(f"{line}: ") and re.search(says, entry) for entry in found), found


def test_completion_offers_the_keys_with_their_explanations(editor: Editor) -> None:
    found = editor.completions("version: 1\ncommand: [a]\nlim\n", 2, 3)
    assert "What one task may use." in found["limits"]
    inner = editor.completions("version: 1\ncommand: [a]\nlimits:\n  \n", 3, 2)
    assert {"time", "memory", "running"} <= inner.keys()
    assert "unlimited" in editor.completions("version: 1\ncommand: [a]\nlimits:\n  time: \n", 3, 8)
    assert {"lost", "never"} <= editor.completions("version: 1\ncommand: [a]\nrerun: \n", 2, 7).keys()


def test_a_key_explains_itself(editor: Editor) -> None:
    assert "TERM to all its processes" in editor.hover("version: 1\ncommand: [a]\nlimits:\n  time: 3s\n", 3, 3)
