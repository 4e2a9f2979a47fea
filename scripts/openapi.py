"""`make docs`: write docs/openapi.json, the description that dcoord-web serves at /api/v1/openapi.json.

`--check` changes nothing and fails when the file is not what would be written.
"""

import sys
from pathlib import Path
from typing import Final

from dcoord.web.openapi import render

ROOT: Final = Path(__file__).resolve().parent.parent
FILE: Final = ROOT / "docs" / "openapi.json"


def main() -> int:
    """Write it, or compare it."""
    text = render()
    if "--check" in sys.argv[1:]:
        if not FILE.exists() or FILE.read_bytes() != text:
            print(f"{FILE.relative_to(ROOT)} is not what the Structs say now; run `make docs`", file=sys.stderr)  # noqa: T201
            return 1
        return 0
    FILE.write_bytes(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
