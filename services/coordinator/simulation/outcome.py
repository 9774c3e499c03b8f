"""What came of a simulated campaign."""

from __future__ import annotations

from pydantic import Field

from dpstream.services.coordinator.views.overview import View


class PoolOutcome(View):
    hours: float = Field(description="of its workers, from the start of a machine to its end")
    busy_hours: float = Field(description="those with a task")
    cost: float = Field(description="in the fleet file's currency")
    launched: int
    most: int = Field(description="workers at once")
    preempted: int


class ServiceOutcome(View):
    """Share of the time that workers have a task, from their first message to their end."""

    while_work_waits: float | None = Field(description="None: no task ever waited")
    whole_run: float | None = Field(description="None: no worker ever ran")


class Moment(View):
    """The workers and the tasks at one time."""

    time: float = Field(description="seconds since the submission")
    waiting: int = Field(description="workers that the fleet engine has not started")
    starting: int
    idle: int
    busy: int
    tasks: int = Field(description="tasks that wait for a worker")
    labels: int = Field(description="labels so far")
    cost: float = Field(description="so far")


class SimulationOutcome(View):
    campaign: str
    seed: int
    verdict: str = Field(description="of the campaign; paused or standing still if it did not end")
    why: str
    seconds: float = Field(description="from the submission to the verdict")
    labels: int = Field(description="labelled frames")
    rejected: int
    lost: int = Field(description="frames that still wait for a label")
    doubled: int = Field(description="labels that are in the dataset twice")
    computed_again: int = Field(description="computations of a label that was computed already")
    committees: int
    tasks: int
    events: int = Field(description="that the coordinator decided on")
    pools: dict[str, PoolOutcome]
    services: dict[str, ServiceOutcome]
    lost_seconds: float = Field(description="work of interrupted attempts that was repeated")
    messages: dict[str, int] = Field(description="published, lost and doubled")
    calls: dict[str, int] = Field(description="requests to the fleet engine, by method")
    ledger_bytes: int
    moments: tuple[Moment, ...]

    @property
    def ended(self) -> bool:
        """Whether the campaign has reached its end."""
        return self.verdict in ("converged", "not-converged", "cancelled")

    @property
    def hours(self) -> float:
        return sum(pool.hours for pool in self.pools.values())

    @property
    def busy_hours(self) -> float:
        return sum(pool.busy_hours for pool in self.pools.values())

    @property
    def cost(self) -> float:
        return sum(pool.cost for pool in self.pools.values())

    @property
    def preempted(self) -> int:
        return sum(pool.preempted for pool in self.pools.values())
