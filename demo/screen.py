"""What the demonstration prints: steps, facts and verdicts, in colour on a terminal that wants it."""

import os
import sys

_COLOURED = sys.stdout.isatty() and "NO_COLOR" not in os.environ


def _paint(code: str, text: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if _COLOURED else text


def bold(text: str) -> str:
    """Text that matters."""
    return _paint("1", text)


def step(text: str) -> None:
    """What happens next."""
    print(_paint("1;34", f"==> {text}"), flush=True)


def fact(text: str) -> None:
    """Something seen."""
    print(f"    {text}", flush=True)


def blow(text: str) -> None:
    """Damage that is done on purpose."""
    print(_paint("1;33", f"  ! {text}"), flush=True)


def good(text: str) -> None:
    """A check that held."""
    print(_paint("1;32", f"  ok {text}"), flush=True)


def wrong(text: str) -> None:
    """A check that did not hold."""
    print(_paint("1;31", f"  WRONG {text}"), flush=True)
