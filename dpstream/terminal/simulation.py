"""The tables of `dpstream simulate`."""

from __future__ import annotations

from rich.table import Table

from dpstream.services.coordinator.simulation.outcome import SimulationOutcome
from dpstream.terminal.tables import text_table
from dpstream.terminal.training_speed import duration


def facts_table(outcome: SimulationOutcome) -> Table:
    """What comes of the campaign."""
    table = text_table("", "", show_header=False)
    for name, value in _facts(outcome).items():
        table.add_row(name, value)
    return table


def pools_table(outcome: SimulationOutcome) -> Table:
    """The workers of each pool."""
    table = text_table("pool", "workers", "launched", "reclaimed", "hours", "with a task", "cost")
    for name, pool in outcome.pools.items():
        busy = f"{pool.busy_hours / pool.hours:.0%}" if pool.hours else "–"
        counts = (f"{pool.most:,}", f"{pool.launched:,}", f"{pool.preempted:,}")
        table.add_row(name, *counts, f"{pool.hours:,.1f}", busy, f"{pool.cost:,.2f}")
    return table


def _facts(outcome: SimulationOutcome) -> dict[str, str]:
    labels = f"{outcome.labels:,}" + f", {outcome.rejected:,} rejected" * bool(outcome.rejected)
    return {
        "ends": f"{outcome.verdict}: {outcome.why}",
        "takes": duration(outcome.seconds),
        "labels": labels,
        "committees": str(outcome.committees),
        "worker-hours": f"{outcome.hours:,.1f}",
        "cost": f"{outcome.cost:,.2f}" + _per_label(outcome),
        "workers in use": _use(outcome),
        "work repeated": f"{outcome.lost_seconds / 3600:,.1f} h",
    }


def _per_label(outcome: SimulationOutcome) -> str:
    return f", {outcome.cost / outcome.labels:.3g} per label" if outcome.labels else ""


def _use(outcome: SimulationOutcome) -> str:
    """Of each service, while tasks wait and in the whole run."""
    parts = [
        f"{name} {each.whole_run:.0%}"
        + (f", {each.while_work_waits:.0%} while work waits" if each.while_work_waits else "")
        for name, each in outcome.services.items()
        if each.whole_run is not None
    ]
    return "; ".join(parts)
