"""The cluster's pages in a browser, without a certificate in it: by a proxy of this user, on this machine."""

import contextlib
import html
import os
import signal
import sys
import tempfile
import webbrowser
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from dctl import output
from dctl.options import connect, output_options
from dctl.output import Mode, message


class UiDocument(msgspec.Struct):
    """`dctl ui --json`, printed when it is ready."""

    url: str


@click.command(
    epilog="\b\nExamples:\n  dctl ui\n  dctl ui --port 8500 --no-browser\n  ssh -t -L 8500:127.0.0.1:8500 there dctl ui --port 8500 --no-browser"
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, metavar="N", help="The local port.  [default: any free one]"
)
@click.option("--no-browser", is_flag=True, help="Only print the address, which can be opened once.")
@output_options
def ui(port: int, no_browser: bool, mode: Mode = "text") -> None:
    """Open the cluster's pages in a browser, with your rights. Ctrl-C ends it.

    They come by a proxy that only this machine's browsers reach, and only with the key in the address, which works once.
    """
    from dctl.ui_proxy import Proxy

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with connect() as client, Proxy(client, port) as proxy:
        proxy.check()
        url = proxy.first_url()
        opened = not no_browser and mode == "text" and _has_display()
        if mode == "json":
            output.print_json(UiDocument(url))
        else:
            output.write(f"{url}\n")
        sys.stdout.flush()
        if mode == "text":
            message("your browser opens it" if opened else "open it in a browser of this machine; it works once")
            message("Ctrl-C ends it")
        with contextlib.suppress(KeyboardInterrupt), _opened(url) if opened else contextlib.nullcontext():
            proxy.serve()


def _has_display() -> bool:
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


@contextlib.contextmanager
def _opened(url: str) -> Iterator[None]:
    """Have a browser go there, by way of a file that only we may read: an argument every user of the machine could."""
    with tempfile.TemporaryDirectory(prefix="districomp-ui-") as folder:
        page = Path(folder) / "open.html"
        page.touch(mode=0o600)
        target = html.escape(url, quote=True)
        page.write_text(
            f'<!doctype html><meta charset="utf-8"><meta name="referrer" content="no-referrer">'
            f'<meta http-equiv="refresh" content="0; url={target}"><p><a href="{target}">To the cluster</a>\n',
            "utf-8",
        )
        if not webbrowser.open(page.as_uri()):
            message("no browser could be started; open the address above")
        yield
