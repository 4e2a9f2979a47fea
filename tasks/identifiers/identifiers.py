"""Counts the names in Python source: a `stream` program with `format: json`, one task a line in and out.

A name is an identifier that is no keyword, outside of strings and comments. Source that is not valid
Python is counted as far as it can be told apart, so any bytes have an answer.
"""

import base64
import json
import keyword
import re
import sys
from collections import Counter

KEYWORDS = frozenset(keyword.kwlist)

# Comments and strings first, so that what is in them is passed over; a name is the only group.
# A quote that nothing closes matches none of these and is passed over alone.
TOKEN = re.compile(
    r"""
      \#[^\n]*
    | (?:[rRbBuUfF]{1,2}(?=["']))?
      (?: \"\"\" (?: [^"\\] | \\. | "(?!"") )* \"\"\"
        | ''' (?: [^'\\] | \\. | '(?!'') )* '''
        | "   (?: [^"\\\n] | \\. )* "
        | '   (?: [^'\\\n] | \\. )* '
      )
    | [0-9][\w.]*
    | ( [^\W\d] \w* )
    """,
    re.VERBOSE | re.DOTALL,
)


def count(source: bytes) -> dict[str, int]:
    """How often each name occurs, by name."""
    names = Counter(TOKEN.findall(source.decode("utf-8", "replace")))
    return {name: names[name] for name in sorted(names) if name and name not in KEYWORDS}


def answer(line: str) -> str:
    """The line out for a line in."""
    task = json.loads(line)
    source = base64.b64decode(task["item_base64"]) if "item_base64" in task else task["item"].encode()
    return json.dumps({"id": task["id"], "result": json.dumps(count(source), ensure_ascii=False)})


def main() -> int:
    """Answer each line until there are no more."""
    for line in sys.stdin:
        # Without the flush the worker would wait for an answer that is still in a buffer here.
        print(answer(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
