"""`/healthz`, `/readyz` and `/metrics` of a worker process, over HTTP.

Liveness asks nobody but the process itself: an outage elsewhere is no reason to restart it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from dpstream.shared.errors import DpstreamError, SpecError

READINESS_SECONDS = 10.0
"""How long a look at bus and store may take until the answer is no."""


@dataclass
class Health:
    """What is asked; `None` is good, else it is the reason why not."""

    registry: CollectorRegistry
    alive: Callable[[], str | None]
    reach: list[Callable[[], object]] = field(default_factory=list)
    """Calls that succeed when bus and store are connected; empty until there are any."""
    _looking: threading.Lock = field(default_factory=threading.Lock)

    def ready(self) -> str | None:
        """One look at a time: during an outage each may take long."""
        if not self._looking.acquire(timeout=READINESS_SECONDS):
            return "bus or store do not answer"
        try:
            return self._unreached() if self.reach else "not connected yet"
        finally:
            self._looking.release()

    def _unreached(self) -> str | None:
        try:
            for call in self.reach:
                call()
        except DpstreamError as error:
            return " ".join(str(error).split())
        return None

    def application(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        """The WSGI application."""
        path = environ.get("PATH_INFO", "/")
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _answer(start, "405 Method Not Allowed", "only GET")
        if path == "/metrics":
            found: Iterable[bytes] = make_wsgi_app(self.registry)(environ, start)
            return found
        asked = {"/healthz": self.alive, "/readyz": self.ready}.get(path)
        if asked is None:
            return _answer(start, "404 Not Found", "try /healthz, /readyz, /metrics")
        reason = asked()
        return _answer(start, "503 Service Unavailable" if reason else "200 OK", reason or "ok")


def _answer(start: Callable[..., Any], status: str, text: str) -> list[bytes]:
    body = f"{text}\n".encode()
    start(
        status, [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
    )
    return [body]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    timeout = 30.0
    """Seconds for a request to arrive."""

    def log_message(self, format: str, *arguments: Any) -> None:
        """Probes come every few seconds; nobody wants to read that."""


@contextmanager
def served(health: Health, host: str, port: int) -> Iterator[None]:
    """Answer at `host:port` meanwhile; port 0: do not. Raises `SpecError` when it is taken."""
    if not port:
        yield
        return
    try:
        server = make_server(host, port, health.application, _Server, _Quiet)
    except OSError as error:
        raise SpecError(f"DPSTREAM_HTTP_PORT: {host}:{port}: {error.strerror}") from error
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="http", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
