"""What the daemons' command lines have in common: the event loop, and how an error ends the process.

Owns neither options nor configuration. uvloop where it was installed; Python's own loop elsewhere.
"""

import asyncio
import contextlib
import logging
import sys
from collections.abc import Coroutine, Iterator
from typing import Any

from districomp import log as logging_form
from districomp.errors import ConfigError, DistricompError


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end in a new event loop."""
    runner = asyncio.run
    with contextlib.suppress(ImportError):  # not made for every system
        import uvloop

        runner = uvloop.run
    runner(main)


@contextlib.contextmanager
def exits(log: logging.Logger) -> Iterator[None]:
    """Turn an operating error into the process' end: one sentence, and the error's exit code."""
    try:
        yield
    except ConfigError as error:
        logging_form.tell_error(str(error))
        sys.exit(error.exit_code)
    except DistricompError as error:
        log.error("%s", error)
        sys.exit(error.exit_code)
