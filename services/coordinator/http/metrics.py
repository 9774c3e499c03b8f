"""Metrics of the coordinator and its open campaigns for Prometheus.

Gauges are computed from the campaigns' states when `/metrics` is read, so the loop keeps no
counters for them. Only the duration of `decide` is recorded while it runs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dpstream.services.coordinator.fleet.status import FleetStatus
from dpstream.services.coordinator.http.read_access import ReadAccess
from dpstream.services.coordinator.state import State
from dpstream.services.coordinator.views.overview import (
    label_counts,
    pool_size,
    standing,
    task_counts,
)
from dpstream.shared.codec import queue_of

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0)


class CoordinatorMetrics:
    """The metrics of one coordinator, in a registry of their own."""

    def __init__(self, read_access: ReadAccess) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Gauges(read_access))
        decide = Histogram(
            "dpstream_decide_seconds",
            "Duration of the decision on one event",
            buckets=SECONDS,
            registry=self._registry,
        )
        read_access.coordinator.on_decided = decide.observe

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _Gauges(Collector):
    def __init__(self, read_access: ReadAccess) -> None:
        self._read_access = read_access

    def collect(self) -> Iterator[Metric]:
        states = self._read_access.states()
        yield self._standings()
        yield self._dead_letters()
        yield _waiting(states.values())
        yield _tasks(states.items())
        yield _labels(states.items())
        yield from _numbers(states.items())
        yield from _lost_work(states.items())
        status = self._read_access.coordinator.fleet_status()
        if status is not None:
            yield from _fleet(status)

    def _standings(self) -> Metric:
        metric = _gauge("campaigns", "Campaigns by status", "standing")
        coordinator = self._read_access.coordinator
        counts = Counter(standing(state) for state in self._read_access.states().values())
        ended = set(coordinator.ended) - set(dict(coordinator.open_campaigns))
        for name in ("running", "paused", "finished"):
            metric.add_metric([name], counts[name] + (len(ended) if name == "finished" else 0))
        metric.add_metric(["broken"], len(coordinator.broken))
        return metric

    def _dead_letters(self) -> Metric:
        metric = _counter("dead_letters", "Messages that could not be decoded or delivered", "kind")
        inbox = self._read_access.coordinator.inbox
        metric.add_metric(["undecodable"], inbox.dead_letters.count)
        metric.add_metric(["given-up"], inbox.given_up)
        return metric


def _gauge(name: str, meaning: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"dpstream_{name}", meaning, labels=labels)


def _counter(name: str, meaning: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"dpstream_{name}", meaning, labels=labels)


def _waiting(states: Iterable[State]) -> Metric:
    metric = _gauge("tasks_waiting", "Tasks that no worker has started", "queue")
    waiting = Counter(
        queue_of(task.command)
        for state in states
        if state.paused is None and state.finished is None
        for task in state.under_way()
        if task.status == "open"
    )
    for queue, count in sorted(waiting.items()):
        metric.add_metric([queue], count)
    return metric


def _tasks(states: Iterable[tuple[str, State]]) -> Metric:
    metric = _gauge("tasks", "Tasks by kind and status", "campaign", "kind", "status")
    for name, state in states:
        for kind, by_status in task_counts(state).items():
            for status, count in by_status.items():
                metric.add_metric([name, kind, status], count)
    return metric


def _labels(states: Iterable[tuple[str, State]]) -> Metric:
    metric = _gauge("labels", "Frames whose label was requested", "campaign", "status")
    for name, state in states:
        for status, count in label_counts(state).model_dump().items():
            metric.add_metric([name, status], count)
    return metric


def _numbers(states: Iterable[tuple[str, State]]) -> Iterator[Metric]:
    families = {
        key: _gauge(key, meaning, "campaign")
        for key, meaning in {
            "pool_frames": "Candidate frames in the pool",
            "committee_version": "Version of the newest committee",
            "stage": "Running stage, counted from 1",
            "round": "Round of the running stage",
            "audit_force_rmse": "Force RMSE on audit frames, eV/Å",
            "audit_force_rmse_upper": "Its 95 % upper bound, eV/Å",
        }.items()
    }
    for name, state in states:
        for key, number in _numbers_of(state).items():
            families[key].add_metric([name], number)
    yield from families.values()


def _numbers_of(state: State) -> dict[str, float]:
    audit = state.exploration.stage.audit
    numbers: dict[str, float] = {
        "pool_frames": pool_size(state),
        "committee_version": state.committee.version,
        "stage": state.exploration.stage.index + 1,
        "round": state.exploration.stage.rounds,
    }
    if audit is not None and math.isfinite(audit.force):
        numbers |= {"audit_force_rmse": audit.force, "audit_force_rmse_upper": audit.force_upper}
    return numbers


def _lost_work(states: Iterable[tuple[str, State]]) -> Iterator[Metric]:
    preemptions = _counter(
        "fleet_preemptions", "Attempts released because their worker had to stop", "campaign"
    )
    seconds = _counter(
        "fleet_work_lost_seconds",
        "Work of stopped and lost workers that was done again",
        "campaign",
    )
    for name, state in states:
        preemptions.add_metric([name], state.lost.preemptions)
        seconds.add_metric([name], state.lost.microseconds / 1e6)
    yield from (preemptions, seconds)


def _fleet(status: FleetStatus) -> Iterator[Metric]:
    wanted = _gauge("fleet_wanted", "Workers that a pool wants", "pool")
    workers = _gauge("fleet_workers", "Workers of a pool by status", "pool", "status")
    paused = _gauge("fleet_paused", "Whether failures pause a pool", "pool")
    stale = _gauge("fleet_stale", "Whether the fleet engine of a pool does not answer", "pool")
    launched = _counter("fleet_launched", "Workers launched", "pool")
    ended = _counter("fleet_ended", "Workers that ended, by status or reason", "pool", "how")
    seconds = _counter("fleet_worker_seconds", "Time of a pool's workers", "pool")
    idle = _counter("fleet_idle_seconds", "Time of a pool's workers without a task", "pool")
    spent = _counter("fleet_spent", "Cost of a pool, in the fleet file's currency", "pool")
    used = _gauge("fleet_budget_used", "Used share of a budget; no pool: the deployment's", "pool")
    used.add_metric([""], status.budget_used)
    for name, pool in status.pools.items():
        wanted.add_metric([name], pool.wanted)
        for key in ("waiting", "starting", "busy", "idle"):
            workers.add_metric([name, key], getattr(pool, key))
        paused.add_metric([name], pool.paused)
        stale.add_metric([name], pool.stale_since is not None)
        launched.add_metric([name], pool.launched)
        seconds.add_metric([name], 3600 * pool.worker_hours)
        idle.add_metric([name], 3600 * pool.idle_hours)
        spent.add_metric([name], pool.cost)
        used.add_metric([name], pool.budget_used)
        for how, count in pool.ended.items():
            ended.add_metric([name, how], count)
    yield from (wanted, workers, paused, stale, launched, ended, seconds, idle, spent, used)
