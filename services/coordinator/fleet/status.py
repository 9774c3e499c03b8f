"""What the last turn of the reconciler found and decided, for the API, metrics and people."""

from __future__ import annotations

from pydantic import Field

from dpstream.services.coordinator.views.overview import View


class PoolStatus(View):
    wanted: int = Field(description="workers for which there is enough work")
    waiting: int = Field(description="launched, and not started by the fleet engine")
    starting: int
    running: int
    launched: int = Field(description="workers launched since the coordinator started")
    ended: dict[str, int] = Field(description="workers by exit status or the engine's word")
    reason: str = Field(description="what limits or holds the pool; empty: nothing")
    stale_since: float | None = Field(
        description="since when the engine does not answer, seconds since the epoch"
    )
    programs: dict[str, str] = Field(
        description="codes and engines of its workers, with their versions where they are known"
    )


class FleetStatus(View):
    deployment: str
    pools: dict[str, PoolStatus]
    worker_hours: float = Field(description="of all workers, since the deployment began")
    cost_today: float = Field(description="of the present day (UTC), in the file's currency")
    budget_used: float = Field(description="share of the budget; 1: used up")
