"""Telemetry of workers, and its Prometheus metrics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from dpstream.shared.codec import kind_of
from dpstream.shared.errors import BusError
from dpstream.shared.messages import Command
from dpstream.shared.runtime.device import MIB, Device, usage

Phase = Literal["wait", "claim", "work", "publish"]
Outcome = Literal["done", "preempted", "cancelled", "released", "failed", "failed-for-good"]
"""How an attempt ended: `preempted` by a stop of its worker, `released` after a passing failure."""

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3600, 14400, 86400)


class Telemetry(Protocol):
    """Callbacks of `Worker`, called from several threads."""

    def spent(self, phase: Phase, seconds: float) -> None: ...

    def began(self, command: Command) -> None: ...

    def ended(self, command: Command, outcome: Outcome) -> None: ...

    def lost_claim(self, command: Command) -> None:
        """Another worker had claimed the task first."""

    def buried(self) -> None:
        """A message could not be decoded and became a dead letter."""

    def retried(self, error: BaseException) -> None:
        """A call to bus or store failed and is retried."""


class NoTelemetry:
    """Telemetry that discards everything."""

    def spent(self, phase: Phase, seconds: float) -> None: ...

    def began(self, command: Command) -> None: ...

    def ended(self, command: Command, outcome: Outcome) -> None: ...

    def lost_claim(self, command: Command) -> None: ...

    def buried(self) -> None: ...

    def retried(self, error: BaseException) -> None: ...


@dataclass(frozen=True)
class DeviceMetrics(Collector):
    """The device of the engines; of a GPU also its use by all processes, read at each scrape."""

    device: Device

    def describe(self) -> Iterator[Metric]:
        """Nothing: the metrics are not read before the first scrape."""
        yield from ()

    def collect(self) -> Iterator[Metric]:
        gpu = self.device.gpu
        about: dict[str, str] = {"kind": self.device.kind}
        if gpu is not None:
            memory = str(gpu.memory_mib)
            about |= {"model": gpu.name, "memory_mib": memory, "driver": gpu.driver}
        name = "dpstream_worker_device"
        yield InfoMetricFamily(name, "Where the engines compute", about)
        if gpu is None:
            return
        now = usage(gpu)
        if now.utilisation is not None:
            text = "Share of time in which the GPU ran a kernel"
            yield GaugeMetricFamily(f"{name}_utilisation_ratio", text, now.utilisation)
        if now.memory_mib is not None:
            text = "Memory in use on the GPU"
            yield GaugeMetricFamily(f"{name}_memory_used_bytes", text, now.memory_mib * MIB)


class WorkerMetrics:
    """Telemetry as Prometheus metrics, in a registry of its own."""

    def __init__(self, device: Device | None = None) -> None:
        self.registry = CollectorRegistry()
        if device is not None:
            self.registry.register(DeviceMetrics(device))
        self._tasks = self._counter("tasks", "Attempts that ended", "kind", "outcome")
        self._attempts = self._counter("attempts", "Attempts started", "kind", "repeated")
        self._preemptions = self._counter(
            "preemptions", "Tasks released by a stop of the worker", "kind"
        )
        self._lost = self._counter(
            "claims_lost", "Deliveries that another worker had claimed", "kind"
        )
        self._buried = self._counter("deadletters", "Messages that could not be decoded")
        self._retries = self._counter("retries", "Calls retried after an outage", "port")
        self._busy = Gauge(
            "dpstream_worker_busy", "Workers with a running task", registry=self.registry
        )
        self._slots = Gauge(
            "dpstream_worker_slots", "Tasks that the process runs at once", registry=self.registry
        )
        self._seconds = Histogram(
            "dpstream_worker_phase_seconds",
            "Time a worker spent, by phase",
            ["phase"],
            buckets=SECONDS,
            registry=self.registry,
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"dpstream_worker_{name}", text, labels, registry=self.registry)

    def has_slots(self, count: int) -> None:
        self._slots.set(count)

    def spent(self, phase: Phase, seconds: float) -> None:
        self._seconds.labels(phase).observe(seconds)

    def began(self, command: Command) -> None:
        self._busy.inc()
        self._attempts.labels(kind_of(command), str(command.attempt > 1).lower()).inc()

    def ended(self, command: Command, outcome: Outcome) -> None:
        self._busy.dec()
        self._tasks.labels(kind_of(command), outcome).inc()
        if outcome == "preempted":
            self._preemptions.labels(kind_of(command)).inc()

    def lost_claim(self, command: Command) -> None:
        self._lost.labels(kind_of(command)).inc()

    def buried(self) -> None:
        self._buried.inc()

    def retried(self, error: BaseException) -> None:
        self._retries.labels("bus" if isinstance(error, BusError) else "store").inc()
