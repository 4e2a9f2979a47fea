"""One task: the data comes in on standard input, the result goes out on standard output."""

import sys


def main() -> int:
    """Count the words of at least as many letters as the argument says."""
    least = int(sys.argv[1])
    data = sys.stdin.buffer.read()
    print(sum(len(word) >= least for word in data.split()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
