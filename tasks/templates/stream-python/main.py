"""Loops over tasks: a line in is a task's data, a line out is its result."""

import sys


def main() -> int:
    """Answer each line until there are no more."""
    least = int(sys.argv[1])
    for line in sys.stdin.buffer:
        # Without the flush the worker would wait for an answer that is still in a buffer here.
        print(sum(len(word) >= least for word in line.split()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
