"""What the last turn of the reconciler found and decided, for the API, metrics and people."""

from __future__ import annotations

from pydantic import Field

from dpstream.services.coordinator.views.overview import View


class PoolStatus(View):
    wanted: int = Field(description="workers for which there is enough work")
    waiting: int = Field(description="launched, and not started by the fleet engine")
    starting: int
    busy: int = Field(description="running, with at least one task")
    idle: int = Field(description="running, without a task")
    idle_slots: int = Field(description="slots of the running workers without a task")
    launched: int = Field(description="workers launched since the coordinator started")
    ended: dict[str, int] = Field(description="workers by exit status or the engine's word")
    paused: bool = Field(description="whether failures pause the pool")
    reason: str = Field(description="what limits or holds the pool; empty: nothing")
    stale_since: float | None = Field(
        description="since when the engine does not answer, seconds since the epoch"
    )
    programs: dict[str, str] = Field(
        description="codes and engines of its workers, with their versions where they are known"
    )
    devices: tuple[str, ...] = Field(default=(), description="models of its workers' GPUs")
    budget_used: float = Field(description="share of its own budget; 1: used up")
    worker_hours: float = Field(description="of its workers, since the deployment began")
    idle_hours: float = Field(
        description="those without a task; a worker with one of two slots in use counts half"
    )
    cost: float = Field(description="since the deployment began, in the file's currency")

    @property
    def running(self) -> int:
        return self.busy + self.idle


class Sample(View):
    """The workers and the tasks at one time."""

    time: float = Field(description="seconds since the epoch")
    workers: int = Field(description="started workers of all pools")
    waiting: int = Field(description="launched workers that have not started")
    tasks: int = Field(description="tasks that wait for a worker")


class FleetStatus(View):
    deployment: str
    pools: dict[str, PoolStatus]
    worker_hours: float = Field(description="of all workers, since the deployment began")
    idle_share: float = Field(description="share of these hours without a task, by slots")
    cost: float = Field(description="since the deployment began, in the file's currency")
    cost_per_label: float | None = Field(description="of all workers, per computed label")
    cost_today: float = Field(description="of the present day (UTC), in the file's currency")
    budget_used: float = Field(description="share of the deployment's budget; 1: used up")
    is_current: bool = Field(
        description="whether it is of the last minute, and broker and store answered in it"
    )
    history: tuple[Sample, ...] = Field(description="of the last hours, the newest last")
