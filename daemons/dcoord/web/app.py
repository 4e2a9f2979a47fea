"""The web application, put together: which routes each of the two ports has.

Owns the wiring and the thread pools. Every route's meaning is in its own file.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from bottle import Bottle, HTTPResponse

import districomp
from dcoord.blobs import BlobStore
from dcoord.web.api_routes import JOBS, ApiRoutes, Asking
from dcoord.web.blob_routes import BlobRoutes
from dcoord.web.bridge import WsgiBridge
from dcoord.web.bundle_parts import BundleParts
from dcoord.web.gate import DataGate, PlainGate
from dcoord.web.guard import Guard, Hosts
from dcoord.web.http1 import App, Receive, Scope, Send
from dcoord.web.json_bodies import JsonBodies
from dcoord.web.link import CoordinatorLink
from dcoord.web.pages import PageRoutes
from dcoord.web.payload_routes import PayloadRoutes, Readers
from dcoord.web.problems import WebError, as_web_error, problem_body
from dcoord.web.rights import BLOBS
from dcoord.web.statistics import Gatherer
from dcoord.web.submitter import Submitter
from dcoord.web.trust import Trust
from districomp.errors import DistricompError

PAGE_THREADS: Final = 4
"""Threads for what asks the coordinator: at most so many wait for it at once."""
DATA_THREADS: Final = 4
"""Threads for what reads the journal, which must go on while the others wait."""
SUBMIT_THREADS: Final = 4
FILE_THREADS: Final = 4


class WebApps:
    """The applications of both ports, over one link, one journal and one blob store."""

    def __init__(
        self,
        link: CoordinatorLink,
        control_socket: Path,
        journal: Path,
        store: BlobStore,
        trust: Trust,
        *,
        public: bool,
    ) -> None:
        """Call from the running event loop."""
        asking = Asking(link, asyncio.get_running_loop())
        gatherer = Gatherer(link, districomp.__version__, insecure=trust.insecure)
        self._pools = [
            ThreadPoolExecutor(count, thread_name_prefix=name)
            for name, count in (
                ("page", PAGE_THREADS),
                ("data", DATA_THREADS),
                ("submit", SUBMIT_THREADS),
                ("file", FILE_THREADS),
            )
        ]
        page_pool, data_pool, submit_pool, file_pool = self._pools
        pages = PageRoutes(gatherer, asking)
        submitter = Submitter(control_socket, store, file_pool)
        asks = _bottle(pages, ApiRoutes(asking, submitter))
        reads = _bottle(PayloadRoutes(Readers(journal), store))
        self._plain = PlainGate(WsgiBridge(_bottle(pages), page_pool, file_pool), is_public=public)
        self._asks = WsgiBridge(asks, page_pool, file_pool)
        # The same application, in threads of its own: submissions never keep questions waiting.
        self._submits = WsgiBridge(asks, submit_pool, file_pool, JsonBodies())
        self._reads = WsgiBridge(reads, data_pool, file_pool)
        self._blobs = BlobRoutes(store, file_pool)
        self._data = DataGate(self._dispatch, trust, BundleParts(store, file_pool), is_public=public)

    def plain(self, hosts: Hosts) -> App:
        """The application of the port that anybody may read."""
        return Guard(self._plain, hosts)

    def data(self, hosts: Hosts) -> App:
        """The application of the data port."""
        return Guard(self._data, hosts)

    def close(self) -> None:
        """Let the threads go."""
        for pool in self._pools:
            pool.shutdown(wait=False, cancel_futures=True)

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path.startswith(BLOBS):
            app: App = self._blobs
        elif path.startswith(("/tasks/", "/results/")):
            app = self._reads
        elif path == JOBS and scope["method"] == "POST":
            app = self._submits
        else:
            app = self._asks
        await app(scope, receive, send)


def _bottle(*groups: PageRoutes | ApiRoutes | PayloadRoutes) -> Bottle:
    app = Bottle()
    app.config["catchall"] = False
    app.install(_operating_errors)
    for group in groups:
        group.add_to(app)
    return app


def _operating_errors(callback):  # type: ignore[no-untyped-def]  # bottle has no types
    """Bottle plugin: an operating error of ours is an answer, everything else a bug."""

    def answer(*args: object, **kwargs: object) -> HTTPResponse:
        try:
            return callback(*args, **kwargs)
        except DistricompError as error:
            return _problem(as_web_error(error))

    return answer


def _problem(error: WebError) -> HTTPResponse:
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
    return HTTPResponse(problem_body(error), error.status, headers)
