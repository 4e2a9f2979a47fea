"""What it means that a promise is broken."""


class BrokenPromiseError(AssertionError):
    """The system did what it promises never to do."""


def promise(holds: bool, text: str) -> None:
    """A promise of the system."""
    if not holds:
        raise BrokenPromiseError(text)
