"""HTTP servers that fail on demand, in front of or instead of a real S3 server."""

from __future__ import annotations

import http.client
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

HOP_BY_HOP = {"connection", "transfer-encoding", "expect", "keep-alive"}


class Handler(BaseHTTPRequestHandler):
    """Reads whole requests and passes them to `answer`."""

    protocol_version = "HTTP/1.1"

    def answer(self, body: bytes) -> None:
        raise NotImplementedError

    def respond(
        self, status: int, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def fail(self, status: int, code: str) -> None:
        self.respond(
            status, f"<Error><Code>{code}</Code><Message>on demand</Message></Error>".encode()
        )

    def _take(self) -> None:
        self.answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _take

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@contextmanager
def serving(handler: type[Handler]) -> Iterator[str]:
    """The URL of a server on a free port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Proxy:
    """Forwards requests to `upstream`. Each takes the next of `faults`, if there is one left:
    "" (none), "503", "409", "lose" (done, but never answered), "swallow" (neither), "sleep" (late),
    "cut" (half of the answer), "flip" (a bit of the request), "spoil" (a bit of the answer)."""

    SLEEP = 1.5
    """Seconds."""

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.faults: deque[str] = deque()
        self.seen: list[str] = []

    @contextmanager
    def serving(self) -> Iterator[str]:
        proxy = self

        class Forwarder(Handler):
            def answer(self, body: bytes) -> None:
                proxy.handle(self, body)

        with serving(Forwarder) as url:
            yield url

    def handle(self, request: Handler, body: bytes) -> None:
        fault = self.faults.popleft() if self.faults else ""
        self.seen.append(f"{request.command} {request.path}")
        if fault == "503":
            return request.fail(503, "SlowDown")
        if fault == "409":
            return request.fail(409, "ConditionalRequestConflict")
        if fault == "sleep":
            time.sleep(self.SLEEP)
        request.close_connection = request.close_connection or fault in ("lose", "swallow", "cut")
        if fault == "swallow":
            return None
        status, headers, data = self._forward(request, _flipped(body) if fault == "flip" else body)
        if fault == "lose":
            return None
        data = _flipped(data) if fault == "spoil" else data
        request.respond(status, data[: len(data) // 2] if fault == "cut" else data, headers)
        return None

    def _forward(self, request: Handler, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.upstream, timeout=30)
        try:
            connection.putrequest(
                request.command, request.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in request.headers.items():
                if name.lower() not in HOP_BY_HOP:
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            kept = {n: v for n, v in answer.getheaders() if n.lower() not in HOP_BY_HOP}
            return answer.status, kept, answer.read()
        finally:
            connection.close()


def _flipped(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:] if data else data


class Bucket:
    """Objects in memory, which behaves like Alibaba OSS: `If-None-Match` of a PUT is ignored, and
    with `forbids` the header `x-oss-forbid-overwrite` is obeyed. Signatures are not checked."""

    def __init__(self, forbids: bool) -> None:
        self.forbids = forbids
        self.objects: dict[str, tuple[bytes, dict[str, str]]] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self._lock = threading.Lock()

    @contextmanager
    def serving(self) -> Iterator[str]:
        bucket = self

        class Server(Handler):
            def answer(self, body: bytes) -> None:
                with bucket._lock:
                    bucket.handle(self, body)

        with serving(Server) as url:
            yield url

    def handle(self, request: Handler, body: bytes) -> None:
        headers = {name.lower(): value for name, value in request.headers.items()}
        key = urlsplit(request.path).path
        self.requests.append((request.command, request.path, headers))
        if request.command == "PUT":
            return self._put(request, key, headers, body)
        if request.command == "DELETE":
            self.objects.pop(key, None)
            return request.respond(204)
        if key not in self.objects:
            return request.fail(404, "NoSuchKey")
        data, metadata = self.objects[key]
        return request.respond(200, data, metadata)

    def _put(self, request: Handler, key: str, headers: dict[str, str], body: bytes) -> None:
        forbidden = self.forbids and headers.get("x-oss-forbid-overwrite") == "true"
        if forbidden and key in self.objects:
            return request.fail(409, "FileAlreadyExists")
        metadata = {n: v for n, v in headers.items() if n.startswith("x-amz-meta-")}
        self.objects[key] = body, metadata
        return request.respond(200, headers={"ETag": '"0"'})
