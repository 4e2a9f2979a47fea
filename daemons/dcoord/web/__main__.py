"""`dcoord-web`: reads dcoord.yaml, binds the plain and the data port, and serves until it is told to stop.

Owns the process: command line, event loop, signals, and the end with its parent. What is served is `app`'s matter.
"""

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import districomp
from dcoord.blobs import BlobStore
from dcoord.web.app import WebApps
from dcoord.web.guard import Hosts
from dcoord.web.link import CoordinatorLink
from dcoord.web.server import Listener
from dcoord.web.trust import Trust
from districomp import config as configuration
from districomp import log as logging_form
from districomp import openfiles, program, systemd
from districomp.errors import DistricompError
from districomp.secrecy import hide_memory

log = logging.getLogger("dcoord.web")

OPEN_FILES: Final = 8192
"""Both listeners' connections and those that knock, with room for files and the journal."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script: ends by SystemExit with 0, 1 (cannot serve) or 78 (configuration)."""
    parsed = _parser().parse_args(arguments)
    logging_form.setup("dcoord-web")
    hide_memory()
    with program.exits(log):
        paths = configuration.Paths.from_environment()
        settings = configuration.load_coordinator(parsed.config, paths)
        if parsed.check_config:
            sys.stderr.write("the configuration is good\n")
            return
        openfiles.allow(OPEN_FILES)
        program.run(_serve(settings, paths, with_parent=parsed.parent_pipe))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dcoord-web", description="The web server of a districomp coordinator.")
    parser.add_argument("--config", type=Path, metavar="FILE", help="instead of CONFIG_DIR/dcoord.yaml")
    parser.add_argument("--check-config", action="store_true", help="read the configuration and end")
    parser.add_argument("--version", action="version", version=f"dcoord-web {districomp.__version__}")
    parser.add_argument("--parent-pipe", action="store_true", help="end when standard input is closed")
    return parser


async def _serve(
    settings: configuration.CoordinatorConfig, paths: configuration.Paths, *, with_parent: bool = False
) -> None:
    stopping = asyncio.Event()
    _stop_on_signals(stopping)
    if with_parent:
        _stop_with_parent(stopping)
    trust = Trust(insecure=settings.insecure)
    link = CoordinatorLink(paths.control_socket, trust)
    store = BlobStore(paths.coordinator_state / "blobs")
    apps = WebApps(link, paths.control_socket, settings.journal.path, store, trust, public=settings.web.public)
    plain = Listener(apps.plain(Hosts(settings.web.address, settings.web.hosts, trust)), "the web port")
    data = Listener(
        apps.data(Hosts(settings.data.address, settings.web.hosts, trust)), "the data port", context=trust.context
    )
    web_url = await _bind(plain, "web", settings.web.address, settings.web.port)
    data_url = await _bind(data, "data", settings.data.address, settings.data.port)
    linking = asyncio.create_task(link.run(web_url, data_url))
    alive = asyncio.create_task(systemd.keep_alive())
    log.info("the statistics page is at %s, data at %s", web_url, data_url)
    systemd.ready(f"page {web_url}")
    # What is here now stays: keep the collector from walking it again and again.
    gc.collect()
    gc.freeze()
    await stopping.wait()
    systemd.stopping()
    alive.cancel()
    linking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await linking
    await asyncio.gather(plain.stop(), data.stop())
    apps.close()


async def _bind(listener: Listener, key: str, address: str, port: int) -> str:
    try:
        address, port = await listener.start(address, port)
    except OSError as error:
        raise DistricompError(
            f"cannot listen on {address} port {port}: {os.strerror(error.errno or 0)}; set {key}.port in dcoord.yaml"
            " to a free one, or to 0"
        ) from error
    return f"{listener.scheme}://{f'[{address}]' if ':' in address else address}:{port}"


def _stop_on_signals(stopping: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)


def _stop_with_parent(stopping: asyncio.Event) -> None:
    """The parent holds the other end of standard input: when it dies, however it dies, that closes."""
    loop = asyncio.get_running_loop()
    handle = sys.stdin.fileno()

    def readable() -> None:
        if not os.read(handle, 4096):
            loop.remove_reader(handle)
            stopping.set()

    loop.add_reader(handle, readable)


if __name__ == "__main__":
    main()
