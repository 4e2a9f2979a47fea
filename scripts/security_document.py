"""`make docs`: draw the table of docs/security.md from the mutants that prove it.

Each protection is a file of tests/mutants with `protects`: what is protected, what happens without it, which test
notices, and the mutant that takes it away; `make mutants` runs them all. `--check` changes nothing and fails when the
document is not what would be drawn.
"""

import re
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
DOCUMENT: Final = ROOT / "docs" / "security.md"
MUTANTS: Final = ROOT / "tests" / "mutants"
_PART: Final = re.compile(r"(<!-- drawn: protections .*?-->\n).*?(<!-- end -->)", re.DOTALL)


def protections() -> str:
    """The table."""
    lines = ["| protection | without it | test | mutant |", "|---|---|---|---|"]
    rows = [(mutant["protects"], name, mutant) for name, mutant in _mutants() if mutant.get("protects")]
    for what, name, mutant in sorted(rows, key=lambda row: row[:2]):
        tests = "<br>".join(_test(test) for test in mutant["tests"])
        lines.append(f"| {_cell(what)} | {_cell(mutant['why'])} | {tests} | [{name}](../tests/mutants/{name}.toml) |")
    return "\n".join(lines)


def render(text: str) -> str:
    """The document with its drawn part made anew. ValueError if it has none."""
    if not _PART.search(text):
        raise ValueError("docs/security.md has no part `protections`")
    return _PART.sub(lambda match: f"{match[1]}{protections()}\n{match[2]}", text)


def _mutants() -> list[tuple[str, dict[str, Any]]]:
    return [(path.stem, tomllib.loads(path.read_text(encoding="utf-8"))) for path in sorted(MUTANTS.glob("*.toml"))]


def _test(test: str) -> str:
    path, _, name = test.partition("::")
    return f"[{name or Path(path).stem}](../{path})"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def main() -> int:
    """0; with --check 1 if the document is not current."""
    text = DOCUMENT.read_text(encoding="utf-8")
    drawn = render(text)
    if "--check" in sys.argv[1:]:
        if drawn != text:
            sys.stderr.write("docs/security.md is not what the mutants say: run `make docs`\n")
        return int(drawn != text)
    DOCUMENT.write_text(drawn, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
