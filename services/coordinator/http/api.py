"""The HTTP API and the dashboard: reading only. What people want to say goes over the bus."""

from __future__ import annotations

import base64
import secrets
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import SecretStr
from starlette.middleware.trustedhost import TrustedHostMiddleware

from dpstream.services.coordinator.http.metrics import CoordinatorMetrics
from dpstream.services.coordinator.http.read_access import ReadAccess
from dpstream.services.coordinator.views.overview import (
    CampaignOverview,
    LabelLine,
    View,
    label_line,
    overview,
)
from dpstream.services.coordinator.views.tasks import TaskLine
from dpstream.services.coordinator.views.why import why
from dpstream.shared.errors import NotFound, SpecError, StoreError
from dpstream.shared.values import Name

OPEN = ("/healthz", "/readyz")
"""Asked by whatever keeps the process running, which has no token."""
STUCK = 300.0
"""Seconds without a turn of the service loop, after which it is not alive."""
PAGE = 1000
DASHBOARD = (Path(__file__).parent / "dashboard.html").read_text(encoding="utf-8")
POLICY = (
    "default-src 'none'; connect-src 'self'; img-src data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

Handler = Callable[[Request], Awaitable[Response]]
Limit = Annotated[int, Query(ge=1, le=PAGE, description="at most so many")]
Offset = Annotated[int, Query(ge=0, description="after so many")]


class Standing(View):
    """Campaigns, and messages nobody could use: undecodable ones (kept under `deadletters/`) and
    commands that no worker survived taking."""

    campaigns: tuple[CampaignOverview, ...]
    undecodable: int
    given_up: int


class Why(View):
    lines: tuple[str, ...]


def make_app(
    read_access: ReadAccess, metrics: CoordinatorMetrics, token: SecretStr | None
) -> FastAPI:
    """The API. With a `token`, everything but the two health checks asks for it."""
    app = FastAPI(
        title="dpstream",
        version=version("dpstream"),
        description="Campaigns of a dpstream coordinator, read only.",
        docs_url=None,  # would load scripts from elsewhere
        redoc_url=None,
    )
    _health(app, read_access)
    _campaigns(app, read_access)
    _pages(app, metrics)
    app.add_exception_handler(NotFound, _answer(404))
    app.add_exception_handler(SpecError, _answer(404))
    app.add_exception_handler(StoreError, _answer(503))
    if token is not None:
        app.middleware("http")(_guard(token))
    else:  # a page elsewhere must not reach us under a name of its own
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    return app


def _answer(status: int) -> Any:
    def answer(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status)

    return answer


def _guard(token: SecretStr) -> Callable[[Request, Handler], Awaitable[Response]]:
    """Programs send a bearer token; browsers, which cannot, ask for a name and a password, and
    the token is the password."""
    wanted = token.get_secret_value().encode()

    async def guard(request: Request, call_next: Handler) -> Response:
        given = _given(request.headers.get("authorization", ""))
        if request.url.path in OPEN or secrets.compare_digest(given, wanted):
            return await call_next(request)
        headers = {"WWW-Authenticate": 'Basic realm="dpstream"'}
        return JSONResponse({"detail": "a bearer token is needed"}, 401, headers)

    return guard


def _given(header: str) -> bytes:
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except ValueError:
            return b""
    return b""


def _health(app: FastAPI, read_access: ReadAccess) -> None:
    coordinator = read_access.coordinator

    @app.get("/healthz", summary="Whether the service loop turns")
    def healthz() -> JSONResponse:
        still = time.monotonic() - coordinator.turned
        return JSONResponse({"seconds_since_turn": round(still, 1)}, 503 if still > STUCK else 200)

    @app.get("/readyz", summary="Whether it is connected and hears events")
    def readyz() -> JSONResponse:
        return JSONResponse(
            {"connected": coordinator.connected}, 200 if coordinator.connected else 503
        )


def _campaigns(app: FastAPI, read_access: ReadAccess) -> None:
    @app.get("/campaigns", summary="All campaigns")
    def campaigns() -> Standing:
        inbox = read_access.coordinator.inbox
        return Standing(
            campaigns=tuple(read_access.campaigns()),
            undecodable=inbox.buried,
            given_up=inbox.given_up,
        )

    @app.get("/campaigns/{name}", summary="One campaign")
    def campaign(name: Name) -> CampaignOverview:
        return overview(read_access.state(name))

    @app.get("/campaigns/{name}/tasks", summary="Its tasks")
    def tasks(
        name: Name,
        status: str | None = None,
        kind: str | None = None,
        limit: Limit = 200,
        offset: Offset = 0,
    ) -> list[TaskLine]:
        wanted = (
            line
            for line in read_access.tasks(name)
            if status in (None, line.status) and kind in (None, line.kind)
        )
        return list(islice(wanted, offset, offset + limit))

    @app.get("/campaigns/{name}/labels", summary="Frames asked to be labelled")
    def labels(
        name: Name, status: str | None = None, limit: Limit = 200, offset: Offset = 0
    ) -> list[LabelLine]:
        frames = sorted(read_access.state(name).labels.frames.items())
        wanted = (frame for _, frame in frames if status in (None, frame.status))
        return [label_line(frame) for frame in islice(wanted, offset, offset + limit)]

    @app.get("/campaigns/{name}/why/{frame}", summary="The life of one frame")
    def life(name: Name, frame: str) -> Why:
        read_access.state(name)
        return Why(lines=tuple(why(read_access.coordinator.store, name, frame)))


def _pages(app: FastAPI, metrics: CoordinatorMetrics) -> None:
    @app.get("/metrics", summary="For Prometheus", response_class=Response)
    def prometheus() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/", include_in_schema=False)
    def dashboard() -> HTMLResponse:
        return HTMLResponse(DASHBOARD, headers={"Content-Security-Policy": POLICY})


@contextmanager
def serving(app: FastAPI, host: str, port: int) -> Iterator[tuple[str, int]]:
    """Serve from a thread; yields where. `SpecError` when the address cannot be had."""
    try:
        bound = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except OSError as error:
        raise SpecError(f"{host}:{port}: cannot serve there: {error.strerror}") from error
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", server_header=False)
    )
    thread = threading.Thread(target=server.run, args=([bound],), name="api", daemon=True)
    thread.start()
    try:
        yield bound.getsockname()[:2]
    finally:
        server.should_exit = True
        thread.join(timeout=5)
        bound.close()
