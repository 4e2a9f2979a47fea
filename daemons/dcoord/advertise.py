"""`python -m dcoord.advertise`: the coordinator's child that answers mDNS, so that a flood never slows scheduling.

Reads one line of JSON on standard input (`discovery.Advertisement`), prints `registered` once it is
announced, and says goodbye when standard input ends or on SIGTERM. Knows nothing else of the
coordinator: standard input ends with it, however it ends.
"""

import asyncio
import os
import signal
import sys
from typing import Final

import msgspec

from districomp import log
from districomp.discovery import Advertisement, Advertiser
from districomp.errors import ConfigError, DistricompError

LINE_BYTES_MAX: Final = 64 * 1024


def main() -> int:
    """Run until told to stop; the exit code."""
    log.setup("dcoord-mdns")
    try:
        asyncio.run(_advertise(_read_advertisement()))
    except DistricompError as error:
        sys.stderr.write(f"dcoord-mdns: {error}\n")
        return error.exit_code
    return 0


def _read_advertisement() -> Advertisement:
    """The first line of standard input, read unbuffered: its end must stay visible to `_stdin_ends`."""
    line = bytearray()
    while not line.endswith(b"\n") and len(line) < LINE_BYTES_MAX:
        char = os.read(0, 1)
        if not char:
            break
        line += char
    try:
        return msgspec.json.decode(line, type=Advertisement)
    except msgspec.DecodeError as error:
        raise ConfigError(f"standard input is to be one line of JSON, what to advertise: {error}") from error


async def _advertise(what: Advertisement) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    advertiser = Advertiser(what)
    await advertiser.start()
    sys.stdout.write("registered\n")
    sys.stdout.flush()
    reading = asyncio.create_task(_stdin_ends(stopping))
    try:
        await stopping.wait()
    finally:
        reading.cancel()
        await advertiser.close()


async def _stdin_ends(stopping: asyncio.Event) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.read(4096):
        pass
    stopping.set()


if __name__ == "__main__":
    sys.exit(main())
