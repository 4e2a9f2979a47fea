"""One HTTP request as far as it has arrived, and its answer as far as it is: what a connection has one or several of.

Owns how an answer's head frames its body. Must not know sockets, nor what is asked.
"""

from collections import deque
from typing import Final

REASONS: Final = {
    200: "OK", 201: "Created", 204: "No Content", 206: "Partial Content", 304: "Not Modified", 400: "Bad Request",
    401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed", 408: "Request Timeout", 411: "Length Required",
    412: "Precondition Failed", 413: "Content Too Large", 414: "URI Too Long", 416: "Range Not Satisfiable",
    421: "Misdirected Request", 422: "Unprocessable Content", 431: "Request Header Fields Too Large",
    500: "Internal Server Error", 501: "Not Implemented", 502: "Bad Gateway", 503: "Service Unavailable",
    507: "Insufficient Storage",
}  # fmt: skip


class Exchange:
    """A request as far as it has arrived, and how far its answer is."""

    def __init__(self) -> None:
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.head_bytes = 0
        self.method = ""
        self.version = "1.1"
        self.keep_alive = True
        self.expects_continue = False
        self.body: deque[bytes] = deque()
        self.body_bytes = 0
        self.complete = False
        # the answer
        self.status = 0
        self.answer_headers: list[tuple[bytes, bytes]] = []
        self.head_sent = False
        self.chunked = False
        self.left_bytes: int | None = None
        self.answered = False

    @property
    def has_no_answer_body(self) -> bool:
        """Whether HTTP allows none."""
        return self.method == "HEAD" or self.status in (204, 304)

    def answer_head(self, body_bytes: int | None, date: bytes, *, is_last: bool) -> bytes:
        """The answer's head, which decides how its body is framed.

        body_bytes: the whole body's size when it is known. is_last: the connection ends after this answer.
        """
        self.head_sent = True
        lines = [b"HTTP/1.1 %d %b" % (self.status, REASONS.get(self.status, "Status").encode())]
        length: bytes | None = None
        for name, value in self.answer_headers:
            lines.append(name + b": " + value)
            if name.lower() == b"content-length":
                length = value
        if length is not None:
            self.left_bytes = int(length)
        elif self.has_no_answer_body:
            if body_bytes:  # of a HEAD: what a GET would have had
                lines.append(b"content-length: %d" % body_bytes)
        elif body_bytes is not None:
            self.left_bytes = body_bytes
            lines.append(b"content-length: %d" % body_bytes)
        elif self.version == "1.1":
            self.chunked = True
            lines.append(b"transfer-encoding: chunked")
        else:
            self.keep_alive = False
        if not self.complete or is_last:
            self.keep_alive = False
        if not self.keep_alive:
            lines.append(b"connection: close")
        elif self.version == "1.0":
            lines.append(b"connection: keep-alive")
        lines += (b"date: " + date, b"", b"")
        return b"\r\n".join(lines)
