"""What the workers of a deployment have cost; kept in the store, so that it survives restarts."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel

from dpstream.services.coordinator.fleet.pools import FleetBudget, PoolSettings
from dpstream.shared.errors import Refused
from dpstream.shared.ports import Store
from dpstream.shared.values import FLEET_PREFIX

DAY = 86400.0


class Spent(BaseModel):
    """Hours of workers, those of them without a task (by slots), and their cost; `cost_today`: of
    the present day (UTC)."""

    hours: float = 0.0
    idle_hours: float = 0.0
    cost: float = 0.0
    cost_today: float = 0.0


class Spending(BaseModel):
    """Of each pool since the deployment began."""

    pools: dict[str, Spent] = {}
    labels: int = 0
    """Frames labelled in this time, without reused labels."""
    day: int = 0
    """Of `cost_today`, since the epoch."""
    time: float = 0.0
    """Up to which it is counted, seconds since the epoch; 0: nothing is counted yet."""

    @property
    def hours(self) -> float:
        return sum(each.hours for each in self.pools.values())

    @property
    def idle_share(self) -> float:
        return sum(each.idle_hours for each in self.pools.values()) / max(self.hours, 1e-9)

    @property
    def cost(self) -> float:
        return sum(each.cost for each in self.pools.values())

    @property
    def cost_today(self) -> float:
        return sum(each.cost_today for each in self.pools.values())

    @property
    def cost_per_label(self) -> float | None:
        return self.cost / self.labels if self.labels and self.cost else None

    def describe(self) -> str:
        """Worker-hours, idle share and cost, in one line."""
        words = f"{self.hours:.2f} worker-hours, {self.idle_share:.0%} of them idle"
        if self.cost:
            words += f"; cost {self.cost:.2f}"
        if self.cost_per_label is not None:
            words += f", {self.cost_per_label:.3g} per computed label"
        return words

    def add(
        self,
        started: Mapping[str, int],
        idle: Mapping[str, float],
        pools: Mapping[str, PoolSettings],
        now: float,
    ) -> None:
        """Counts the time since the last call for the workers that run now, `idle` of them without
        a task: a fraction where workers have several slots. Those that ran while no coordinator did
        are counted, too."""
        hours = max(0.0, now - (self.time or now)) / 3600
        if int(now // DAY) != self.day:
            self.day = int(now // DAY)
            for spent in self.pools.values():
                spent.cost_today = 0.0
        for name, count in started.items():
            spent, cost = self.pools.setdefault(name, Spent()), count * hours * pools[name].price
            spent.hours += count * hours
            spent.idle_hours += idle.get(name, 0) * hours
            spent.cost += cost
            spent.cost_today += cost
        self.time = now

    def share(self, budget: FleetBudget, pool: str | None = None) -> float:
        """The used part of the budget of the deployment, or of a pool; 1 and more: used up."""
        spent = self if pool is None else self.pools.get(pool, Spent())
        hours = spent.hours / budget.worker_hours if budget.worker_hours else 0.0
        cost = spent.cost_today / budget.currency_per_day if budget.currency_per_day else 0.0
        return max(hours, cost)


def spending_uri(deployment: str) -> str:
    return f"{FLEET_PREFIX}{deployment}/spent.json"


def spending_by_deployment(store: Store) -> dict[str, Spending]:
    """Of every deployment that has started workers; empty for a user whose rights were granted by
    an earlier release."""
    try:
        names = [
            key.split("/")[1] for key in store.list(FLEET_PREFIX) if key.endswith("/spent.json")
        ]
        return {name: Spending.model_validate_json(store.get(spending_uri(name))) for name in names}
    except Refused:
        return {}
