"""The HTTP API and the dashboard, both read-only. Requests to a campaign go over the bus.

`make_app` builds the application on `ReadAccess`, so that a slow client never delays the
coordinator. With a token, everything but the health checks requires it. Without one, the
coordinator listens on the loopback interface only (`CoordinatorSettings`), and requests under
another host name are refused.
"""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import SecretStr
from starlette.middleware.trustedhost import TrustedHostMiddleware

from dpstream.services.coordinator.fleet.status import FleetStatus
from dpstream.services.coordinator.http.metrics import CoordinatorMetrics
from dpstream.services.coordinator.http.read_access import ReadAccess
from dpstream.services.coordinator.views.overview import (
    CampaignOverview,
    LabelLine,
    View,
)
from dpstream.services.coordinator.views.tasks import TaskLine
from dpstream.services.coordinator.views.why import why
from dpstream.shared.errors import CorruptLedger, NotFound, SpecError, StoreError
from dpstream.shared.programs import Programs
from dpstream.shared.values import Name

UNGUARDED = ("/healthz", "/readyz")
"""Paths of the health checks, which supervisors call without a token."""
STUCK_AFTER = 300.0
"""Seconds without a pass of the main loop after which `/healthz` reports a failure."""
PAGE = 1000
DASHBOARD = (Path(__file__).parent / "dashboard.html").read_text(encoding="utf-8")
POLICY = (
    "default-src 'none'; connect-src 'self'; img-src data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

Handler = Callable[[Request], Awaitable[Response]]
Limit = Annotated[int, Query(ge=1, le=PAGE, description="largest number of entries")]
Offset = Annotated[int, Query(ge=0, le=10**9, description="number of entries to skip")]


class DeploymentStatus(View):
    """All campaigns, and the numbers of archived ones and of dead letters: bodies that could not be
    decoded (stored under `deadletters/`), and commands that the broker gave up delivering."""

    campaigns: tuple[CampaignOverview, ...]
    archived: int
    undecodable: int
    given_up: int


class Wanted(View):
    wanted: int


class Why(View):
    lines: tuple[str, ...]


def make_app(
    read_access: ReadAccess, metrics: CoordinatorMetrics, token: SecretStr | None
) -> FastAPI:
    """The application. With a `token`, everything but the two health checks requires it."""
    app = FastAPI(
        title="dpstream",
        version=version("dpstream"),
        description="Campaigns of a dpstream coordinator, read only.",
        docs_url=None,  # it would load scripts from another host
        redoc_url=None,
    )
    _health(app, read_access)
    _campaigns(app, read_access)
    _fleet(app, read_access)
    _pages(app, metrics)
    app.add_exception_handler(NotFound, _answer(404))
    app.add_exception_handler(SpecError, _answer(404))
    app.add_exception_handler(StoreError, _answer(503))
    app.add_exception_handler(CorruptLedger, _answer(503))
    if token is not None:
        app.middleware("http")(_guard(token))
    else:  # against DNS rebinding: a foreign page must not reach it under another name
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    return app


def _answer(status: int) -> Any:
    def answer(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status)

    return answer


def _guard(token: SecretStr) -> Callable[[Request, Handler], Awaitable[Response]]:
    """Checks the token of every request. Programs send it as a bearer token; browsers send it as
    the password of HTTP basic authentication."""
    expected = token.get_secret_value().encode()

    async def guard(request: Request, call_next: Handler) -> Response:
        token_sent = _token_of(request.headers.get("authorization", ""))
        if request.url.path in UNGUARDED or secrets.compare_digest(token_sent, expected):
            return await call_next(request)
        headers = {"WWW-Authenticate": 'Basic realm="dpstream"'}
        return JSONResponse({"detail": "bearer token required"}, 401, headers)

    return guard


def _token_of(header: str) -> bytes:
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

    @app.get("/healthz", summary="Whether the main loop is running")
    def healthz() -> JSONResponse:
        idle = time.monotonic() - coordinator.last_pass
        status = 503 if idle > STUCK_AFTER else 200
        return JSONResponse({"seconds_since_turn": round(idle, 1)}, status)

    @app.get("/readyz", summary="Whether the coordinator is connected and receives events")
    def readyz() -> JSONResponse:
        connected = coordinator.connected
        return JSONResponse({"connected": connected}, 200 if connected else 503)


def _campaigns(app: FastAPI, read_access: ReadAccess) -> None:
    @app.get("/campaigns", summary="All campaigns, archived ones on request")
    def campaigns(archived: bool = False) -> DeploymentStatus:
        inbox, every = read_access.coordinator.inbox, read_access.campaigns()
        listed = tuple(one for one in every if archived or one.archived is None)
        return DeploymentStatus(
            campaigns=listed,
            archived=sum(one.archived is not None for one in every),
            undecodable=inbox.dead_letters.count,
            given_up=inbox.given_up,
        )

    @app.get("/campaigns/{name}", summary="One campaign")
    def campaign(name: Name) -> CampaignOverview:
        return read_access.campaign(name)

    @app.get("/campaigns/{name}/tasks", summary="Tasks of one campaign")
    def tasks(
        name: Name,
        status: str | None = None,
        kind: str | None = None,
        limit: Limit = 200,
        offset: Offset = 0,
    ) -> list[TaskLine]:
        return read_access.tasks(name, status, kind, offset, limit)

    @app.get("/campaigns/{name}/labels", summary="Frames whose label was requested")
    def labels(
        name: Name, status: str | None = None, limit: Limit = 200, offset: Offset = 0
    ) -> list[LabelLine]:
        return read_access.labels(name, status, offset, limit)

    @app.get("/campaigns/{name}/why/{frame}", summary="The history of one frame")
    def life(name: Name, frame: str) -> Why:
        read_access.state(name)
        return Why(lines=tuple(why(read_access.coordinator.store, name, frame)))


def _fleet(app: FastAPI, read_access: ReadAccess) -> None:
    @app.get("/fleet", summary="The workers started on demand, by pool")
    def fleet() -> FleetStatus:
        status = read_access.coordinator.fleet_status()
        if status is None:
            raise NotFound("no fleet file: DPSTREAM_FLEET is not set")
        return status

    @app.get("/workers", summary="What labelers have stated to run, by queue and group of workers")
    def workers() -> Programs:
        return Programs.read(read_access.coordinator.store)

    @app.get("/fleet/wanted/{pool}", summary="The wanted workers of one pool, for KEDA")
    def wanted(pool: Name) -> Wanted:
        status = fleet()
        if pool not in status.pools:
            raise NotFound(f"no pool {pool!r}")
        if not status.is_current:  # KEDA then creates nothing
            raise StoreError("broker or store do not answer")
        return Wanted(wanted=status.pools[pool].wanted)


def _pages(app: FastAPI, metrics: CoordinatorMetrics) -> None:
    @app.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
    def prometheus() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/", include_in_schema=False)
    def dashboard() -> HTMLResponse:
        return HTMLResponse(DASHBOARD, headers={"Content-Security-Policy": POLICY})
