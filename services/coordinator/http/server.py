"""The server of the API, which shares its process with the coordinator's main loop.

Open connections hold file descriptors that the main loop needs for the ledger, so that their number
is bounded, and a client has little time to send a request. At the bound the connection that has
waited longest without a request is closed, so that many open connections keep no request out.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from dpstream.shared.errors import SpecError

MOST_CONNECTIONS = 64
"""Connections at once."""
REQUEST_SECONDS = 10.0
"""Time for a request to arrive, from the connection or from the end of the request before."""


class BoundedProtocol(H11Protocol):
    """HTTP connections within the two limits."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_request()
        if len(self.connections) > MOST_CONNECTIONS:
            self._longest_waiting()._abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        if self._is_busy:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        self._await_request()
        super().on_response_complete()

    def _longest_waiting(self) -> BoundedProtocol:
        """The connection whose time for a request ends first; at worst this one."""
        opened = (each for each in self.connections if isinstance(each, BoundedProtocol))
        deadlines = {each: each._late.when() for each in opened if each._late is not None}
        return min(deadlines, key=deadlines.__getitem__)

    def _abort(self) -> None:
        self._stop_waiting()
        self.transport.abort()

    @property
    def _is_busy(self) -> bool:
        """Whether a request has arrived and is not answered yet."""
        return self.cycle is not None and not self.cycle.response_complete

    def _await_request(self) -> None:
        self._stop_waiting()
        self._late = self.loop.call_later(REQUEST_SECONDS, self._close_if_idle)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _close_if_idle(self) -> None:
        if not self._is_busy:
            self._abort()


@contextmanager
def serving(app: FastAPI, host: str, port: int) -> Iterator[tuple[str, int]]:
    """Serves from a thread; yields host and port. Raises SpecError if it cannot listen there."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        bound = socket.create_server((host, port), family=family)
    except OSError as error:
        raise SpecError(f"DPSTREAM_HTTP_PORT: {host}:{port}: {error.strerror}") from error
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=BoundedProtocol,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
        )
    )
    thread = threading.Thread(target=server.run, args=([bound],), name="api", daemon=True)
    thread.start()
    try:
        yield bound.getsockname()[:2]
    finally:
        server.should_exit = True
        thread.join(timeout=5)
        bound.close()
