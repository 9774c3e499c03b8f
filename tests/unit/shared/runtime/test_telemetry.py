"""Metrics of a worker's own work, and the HTTP endpoints that tell them."""

from __future__ import annotations

import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import generate_latest

from dpstream.shared import messages as m
from dpstream.shared.bus.memory import Broker, InProcessBus
from dpstream.shared.errors import BusError, Permanent, SpecError, Stopped, Temporary
from dpstream.shared.ports import Outgoing
from dpstream.shared.runtime.context import Context
from dpstream.shared.runtime.device import Device, chosen
from dpstream.shared.runtime.exit_limits import ExitLimits
from dpstream.shared.runtime.health import Health, served
from dpstream.shared.runtime.telemetry import WorkerMetrics
from dpstream.shared.runtime.worker import Worker
from dpstream.shared.values import Ref
from tests.support.adapters.faulty_adapters import FlakyStore, first
from tests.support.workers.nvml import DRIVER, H200, has_gpus
from tests.support.workers.worker import PROMPT, WorkerHarness, label, patient, succeed


def value(metrics: WorkerMetrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(f"dpstream_worker_{name}", labels) or 0.0


def next_events(workers: WorkerHarness, count: int) -> None:
    for _ in range(count):
        workers.next_event()


def test_what_a_worker_did_is_counted(workers: WorkerHarness) -> None:
    metrics = WorkerMetrics()
    ends: dict[str, Exception] = {"t2": Temporary("busy"), "t3": Permanent("never")}

    def handler(resources: Any, command: Any, context: Any) -> Any:
        assert value(metrics, "busy") == 1
        if command.task in ends:
            raise ends[command.task]
        return succeed(resources, command, context)

    workers.bus.publish([Outgoing(b"{}", queue="label.toy")])
    workers.send(label("t1"), label("t1"), label("t2", attempt=2), label("t3"))
    worker = workers.worker(
        handler, store=FlakyStore(workers.store, first(1, "create")), telemetry=metrics
    )
    next_events(workers, 7)
    worker.stopping.set()
    workers.stop()
    for outcome in ("done", "released", "failed-for-good"):
        assert value(metrics, "tasks_total", kind="label", outcome=outcome) == 1
    assert value(metrics, "attempts_total", kind="label", repeated="false") == 2
    assert value(metrics, "attempts_total", kind="label", repeated="true") == 1
    assert value(metrics, "claims_lost_total", kind="label") == 1
    assert value(metrics, "deadletters_total") == 1
    assert value(metrics, "retries_total", port="store") == 1
    assert value(metrics, "busy") == 0
    for phase in ("work", "publish"):
        assert value(metrics, "phase_seconds_count", phase=phase) == 3
    assert value(metrics, "phase_seconds_count", phase="claim") >= 5
    assert value(metrics, "phase_seconds_count", phase="wait") >= 5


def test_a_preemption_is_told_from_other_releases(workers: WorkerHarness) -> None:
    metrics = WorkerMetrics()
    workers.send(label())
    worker = workers.worker(patient, telemetry=metrics)
    workers.next_event()
    worker.stopping.set()
    workers.stop()
    released = workers.next_event()
    assert isinstance(released, m.TaskReleased)
    assert released.preempted
    assert 0 < released.seconds < PROMPT
    assert value(metrics, "preemptions_total", kind="label") == 1
    assert value(metrics, "tasks_total", kind="label", outcome="preempted") == 1


def test_what_a_checkpoint_has_saved_is_not_lost(workers: WorkerHarness) -> None:
    def saving(resources: Any, command: Any, context: Context) -> Any:
        time.sleep(0.5)
        ref = Ref.to("checkpoint", b"")
        context.publish(m.CheckpointSaved(**context.envelope(), checkpoint=ref, step=1))
        raise Stopped("the worker is stopping")

    workers.send(label())
    workers.worker(saving)
    assert workers.next_types(2) == [m.TaskClaimed, m.CheckpointSaved]
    released = workers.next_event()
    assert not released.preempted
    assert released.seconds < 0.5


def test_the_device_and_its_use_are_read_at_each_scrape(monkeypatch: pytest.MonkeyPatch) -> None:
    has_gpus(monkeypatch, H200)
    metrics = WorkerMetrics(chosen("cuda"))
    about = {"kind": "cuda", "model": "NVIDIA H200", "memory_mib": "143771", "driver": DRIVER}
    assert value(metrics, "device_info", **about) == 1
    assert value(metrics, "device_utilisation_ratio") == 0.25
    has_gpus(monkeypatch, replace(H200, utilisation=None, used_mib=2048))
    text = generate_latest(metrics.registry).decode()
    assert "utilisation" not in text
    assert value(metrics, "device_memory_used_bytes") == 2 * 2**30
    has_gpus(monkeypatch, broken="the driver was updated")
    assert value(metrics, "device_info", **about) == 1


def test_a_cpu_has_no_gauges() -> None:
    metrics = WorkerMetrics(Device("cpu"))
    assert value(metrics, "device_info", kind="cpu") == 1
    assert "utilisation" not in generate_latest(metrics.registry).decode()


def test_two_processes_share_nothing() -> None:
    one, other = WorkerMetrics(), WorkerMetrics()
    one.buried()
    assert value(other, "deadletters_total") == 0


# -------------------------------------------------------------------------------------------- HTTP


class State:
    def __init__(self) -> None:
        self.trouble: str | None = None
        self.metrics = WorkerMetrics()
        self.health = Health(self.metrics.registry, lambda: self.trouble)


@pytest.fixture
def state() -> State:
    return State()


@pytest.fixture
def port(state: State, free_port: int) -> Iterator[int]:
    with served(state.health, "127.0.0.1", free_port):
        yield free_port


@pytest.fixture
def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        found: int = listener.getsockname()[1]
        return found


def ask(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_liveness_is_the_process_itself(state: State, port: int) -> None:
    assert ask(port, "/healthz") == (200, "ok\n")
    state.trouble = "a worker died"
    assert ask(port, "/healthz") == (503, "a worker died\n")


def test_readiness_is_bus_and_store(state: State, port: int) -> None:
    assert ask(port, "/readyz") == (503, "not connected yet\n")
    bus = InProcessBus(Broker())
    state.health.reach.append(lambda: bus.depth("train"))
    assert ask(port, "/readyz") == (200, "ok\n")
    bus.close()
    assert ask(port, "/readyz") == (503, "the connection to the broker is closed\n")
    assert ask(port, "/healthz")[0] == 200


def test_readiness_answers_while_the_bus_does_not(
    state: State, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpstream.shared.runtime.health.READINESS_SECONDS", 0.05)
    hanging, done = threading.Event(), threading.Event()

    def hang() -> None:
        hanging.set()
        done.wait(10)
        raise BusError("gone")

    state.health.reach.append(hang)
    first_probe = threading.Thread(target=ask, args=(port, "/readyz"))
    first_probe.start()
    assert hanging.wait(10)
    assert ask(port, "/readyz") == (503, "broker or store does not answer\n")
    assert ask(port, "/healthz")[0] == 200
    done.set()
    first_probe.join()


def test_metrics_are_in_the_format_of_prometheus(state: State, port: int) -> None:
    state.metrics.spent("wait", 0.02)
    status, text = ask(port, "/metrics")
    assert status == 200
    assert 'dpstream_worker_phase_seconds_bucket{le="0.03",phase="wait"} 1.0' in text
    assert ask(port, "/")[0] == 404
    assert ask(port, "/metrics", "POST")[0] == 405


def test_a_taken_port_is_told(state: State, port: int) -> None:
    with (
        pytest.raises(SpecError, match="DPSTREAM_HTTP_PORT"),
        served(state.health, "127.0.0.1", port),
    ):
        pass


# ------------------------------------------------------------------------------------ being stuck


def test_a_task_far_beyond_its_time_is_stuck(
    workers: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpstream.shared.runtime.worker.GRACE", -60.0 + 0.05)  # label() has 60 s
    worker: Worker[Any] = workers.worker(patient)
    assert worker.stuck is None
    workers.send(label())
    workers.next_event()
    waited = threading.Event()
    while worker.stuck is None:
        assert not waited.wait(0.01)
    worker.stopping.set()
    workers.stop()
    assert worker.stuck is None


def test_idle_time_counts_from_when_the_process_is_connected() -> None:
    limits = ExitLimits(idle_exit=0.05)
    threading.Event().wait(0.1)
    limits.begin()
    assert not limits.over


def test_an_idle_shift_ends_only_when_nobody_works() -> None:
    limits = ExitLimits(idle_exit=0.05)
    assert limits.admit()
    threading.Event().wait(0.1)
    assert not limits.over
    limits.release(worked=True)
    assert not limits.over
    threading.Event().wait(0.1)
    assert limits.over
