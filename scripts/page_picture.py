"""Take docs/page.png anew: the statistics page of a real cluster amid real work. Needs chromium, and playwright for Python.

Owns the scene: which workers, which jobs, and the moment. Everything runs below a temporary folder.
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from playwright.sync_api import Page, sync_playwright

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from demo import jobs  # noqa: E402 - the repository's root has to be found first
from demo.cluster import Cluster, wait_until  # noqa: E402
from districomp.client import Client  # noqa: E402

PICTURE: Final = ROOT / "docs" / "page.png"
CHROMIUM: Final = os.environ.get("DISTRICOMP_CHROMIUM", "/usr/bin/chromium")
FLAGS: Final = [
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
]
WORKERS: Final = {"pc-01": 2, "pc-02": 2, "pc-03": 1, "pc-04": 1}
WIDTH: Final = 1280


def main() -> int:
    """Write the picture."""
    with tempfile.TemporaryDirectory(prefix="dc-page-") as folder, Cluster(Path(folder), name="room-12") as cluster:
        jobs.install(cluster.config / "tasks.d")
        cluster.start_coordinator()
        for name, slots in WORKERS.items():
            cluster.start_worker(name, slots)
        cluster.wait_for_workers(len(WORKERS))
        with Client(str(cluster.runtime / "control.sock")) as client:
            wait_until(lambda: {d.name for d in client.definitions()} >= jobs.NAMES, "the definitions to be live")
            prepare(client)
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
                page = browser.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme="light")
                page.goto(cluster.endpoint()["web"])
                play(client, page)
                page.locator("body").screenshot(path=PICTURE)
                browser.close()
    print(f"{PICTURE.relative_to(ROOT)}: {PICTURE.stat().st_size:,} bytes")  # noqa: T201
    return 0


def prepare(client: Client) -> None:
    """What is done when the page is opened."""
    client.submit("checksum", files=jobs.library_files(), name="backup of the library").wait()
    size = {"strips": 100, "width": 600, "height": 400}
    client.submit("render", range=range(100), params=size, name="fjord, draft").wait()


def play(client: Client, page: Page) -> None:
    """Small tasks and large ones side by side, as long as the page's line reaches back; returns in the middle of it."""
    client.submit("identifiers", files=jobs.library_files() * 10, name="names, all versions")
    size = {"strips": 160, "width": 1800, "height": 1280}
    for name in ("fjord at dusk", "fjord at noon", "fjord at dawn"):
        began = time.monotonic()
        picture = client.submit("render", range=range(160), params=size, name=name)
        wait_until(lambda job=picture: job.document().counts.done > 100, f"{name} to be under way", 240)  # type: ignore[misc]
        if name != "fjord at dawn":
            page.wait_for_timeout(1000 * max(20.0, 60 - (time.monotonic() - began)))


if __name__ == "__main__":
    sys.exit(main())
