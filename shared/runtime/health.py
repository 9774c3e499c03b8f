"""`/healthz`, `/readyz` and `/metrics` of a worker process, over HTTP.

Liveness depends on the process alone: restarting it would not end an outage of bus or store.
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
"""Time limit of the check of bus and store."""


@dataclass
class Health:
    """Checks of a worker process; each returns None or the reason of a failure."""

    registry: CollectorRegistry
    alive: Callable[[], str | None]
    reach: list[Callable[[], object]] = field(default_factory=list)
    """Calls that succeed while bus and store are reachable; empty until both are connected."""
    _checking: threading.Lock = field(default_factory=threading.Lock)

    def ready(self) -> str | None:
        """Check bus and store, one check at a time: during an outage each may take long."""
        if not self._checking.acquire(timeout=READINESS_SECONDS):
            return "broker or store does not answer"
        try:
            return self._failure() if self.reach else "not connected yet"
        finally:
            self._checking.release()

    def _failure(self) -> str | None:
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
            metrics: Iterable[bytes] = make_wsgi_app(self.registry)(environ, start)
            return metrics
        check = {"/healthz": self.alive, "/readyz": self.ready}.get(path)
        if check is None:
            return _answer(start, "404 Not Found", "try /healthz, /readyz, /metrics")
        reason = check()
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
    """Time limit in seconds for a request to arrive."""

    def log_message(self, format: str, *arguments: Any) -> None:
        """Not logged: probes arrive every few seconds."""


@contextmanager
def served(health: Health, host: str, port: int) -> Iterator[None]:
    """Serve at `host:port` during the block; port 0: not at all. Raises `SpecError` if it is
    taken."""
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
