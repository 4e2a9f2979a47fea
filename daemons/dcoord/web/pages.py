"""What tells nobody's data: the statistics page, its numbers, its static files, and `/healthz`.

Owns how numbers become HTML. Which numbers those are is `statistics`' matter.
"""

import hashlib
from importlib import resources
from typing import Any, Final

from bottle import Bottle, HTTPResponse, SimpleTemplate, request

from dcoord.web import figures
from dcoord.web.api_routes import Asking, json_response
from dcoord.web.files import etag_matches
from dcoord.web.problems import WebError
from dcoord.web.statistics import Gatherer, Statistics

STATIC_TYPES: Final = {
    "style.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


class _StaticFile:
    """A file of the package, read once."""

    def __init__(self, name: str) -> None:
        self.body = resources.files("dcoord.web").joinpath("static", name).read_bytes()
        self.type = STATIC_TYPES[name]
        self.etag = f'"{hashlib.sha256(self.body).hexdigest()[:32]}"'


class PageRoutes:
    """The routes; `add_to` puts them into a Bottle application."""

    def __init__(self, gatherer: Gatherer, asking: Asking) -> None:
        self._gatherer = gatherer
        self._asking = asking
        self._files = {name: _StaticFile(name) for name in STATIC_TYPES}
        source = resources.files("dcoord.web").joinpath("templates", "index.html").read_text(encoding="utf-8")
        self._template = SimpleTemplate(source)

    def add_to(self, app: Bottle) -> None:
        """Register the routes."""
        app.get("/", callback=self._index)
        app.get("/stats.json", callback=self._stats)
        app.get("/healthz", callback=self._health)
        app.get("/static/<name>", callback=self._static)
        app.get("/favicon.ico", callback=lambda: self._static("icon.svg"))

    def _index(self) -> HTTPResponse:
        html = self._template.render(**_page_values(self._statistics()))
        headers = {"Content-Type": "text/html; charset=utf-8", "Cache-Control": "no-store"}
        return HTTPResponse(html.encode(), 200, headers)

    def _stats(self) -> HTTPResponse:
        return json_response(self._statistics())

    def _health(self) -> HTTPResponse:
        statistics = self._asking.wait(self._gatherer.gather())
        reachable = statistics.coordinator.reachable
        answer = json_response({"web": "ok", "coordinator": "ok" if reachable else "unreachable"})
        answer.status = 200 if reachable else 503
        return answer

    def _static(self, name: str) -> HTTPResponse:
        file = self._files.get(name)
        if file is None:
            raise WebError("not_found", f"there is no static file {name!r:.60}")
        headers = {"ETag": file.etag, "Cache-Control": "no-cache", "Content-Type": file.type}
        if etag_matches(request.headers.get("If-None-Match", ""), file.etag):
            return HTTPResponse(b"", 304, headers)
        return HTTPResponse(file.body, 200, headers)

    def _statistics(self) -> Statistics:
        return self._asking.wait(self._gatherer.gather())


def _page_values(statistics: Statistics) -> dict[str, Any]:
    return {"s": statistics, "f": figures}
