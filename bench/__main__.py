"""`python -m bench`: the benchmarks that are kept. `peers`, `scale` and `draw`; each other script is `python -m bench.NAME`."""

import importlib
import sys
from typing import Final

COMMANDS: Final = {
    "peers": ("bench.comparison", "districomp and other systems in turn: writes bench/results/peers.json"),
    "scale": ("bench.scale", "against connected workers and queued tasks: writes bench/results/scale.json"),
    "draw": ("bench.draw", "the tables and plots of docs/benchmarks.md from those files; --check only compares"),
}


def main() -> int:
    """The exit code of the command; 2 if there is none of that name."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in COMMANDS:
        print("usage: python -m bench COMMAND [--help]\n")
        for command, (_, text) in COMMANDS.items():
            print(f"  {command:8} {text}")
        return 0 if name in ("-h", "--help") else 2
    code: int = importlib.import_module(COMMANDS[name][0]).main(sys.argv[2:])
    return code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted; everything that was started has been ended")
