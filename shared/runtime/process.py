"""A worker service as a process: `python -m dpstream.services.<name>`.

Reads the settings, connects to bus and store, and runs the service's workers, one per thread, until
the process is to stop or an exit limit is reached. The exit status says what happened: 0 there was
nothing left to do, or the process was idle when it was to stop; 75 it released a task because it
was to stop; 1 a worker died or did not stop in time; 2 invalid settings, credentials or rights that
broker or store refuse, or no answer from one of them before an exit limit.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from dpstream.shared.bus.topology import COORDINATOR
from dpstream.shared.codec import encode, topic_of
from dpstream.shared.connect import FOREVER, connect
from dpstream.shared.errors import BusError, DpstreamError, Refused, SpecError
from dpstream.shared.logs import configure, logger, redacted
from dpstream.shared.messages import Command, Train, TrainerStarted, WorkerStarted
from dpstream.shared.ports import Bus, Outgoing, Store
from dpstream.shared.runtime.confinement.children import confinement
from dpstream.shared.runtime.context import Handler, Unserved
from dpstream.shared.runtime.device import Device, gpus
from dpstream.shared.runtime.exit_limits import ExitLimits
from dpstream.shared.runtime.health import Health, served
from dpstream.shared.runtime.scratch import private_folder
from dpstream.shared.runtime.signals import asked_to_stop, end_at_once
from dpstream.shared.runtime.telemetry import WorkerMetrics
from dpstream.shared.runtime.worker import Worker
from dpstream.shared.settings import (
    WorkerSettings,
    misspelt_variables,
    read_settings,
    secrets_in,
    variables,
)

log = logger()

DIED, BAD_INPUT, DECLINED, GAVE_BACK = 1, 2, 69, 75
"""Exit statuses; 75 is EX_TEMPFAIL of sysexits.h: another worker has to go on."""
FREEING_SECONDS = 60.0
"""Seconds in which a worker has to be free after its stuck task was aborted."""
NO_OBJECT = "labels/none"
"""Key that the readiness check looks up: every worker may read it, whether or not it exists."""


class Resources(Protocol):
    """A service's warm engines."""

    def start(self) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class WorkerPlan:
    """One worker of the process: the queues it serves, with its handlers and engines."""

    queues: tuple[str, ...]
    handlers: Mapping[type[Command], Handler]
    resources: Resources
    programs: Mapping[str, str] = field(default_factory=dict)
    """Codes and engines that its tasks may use, with their versions where they are known."""
    device: Device | None = None
    """What its engines compute on; None: what its programs choose."""
    unserved: Unserved = lambda resources, command, context: None


S = TypeVar("S", bound=WorkerSettings)


class Useless(SpecError):
    """A worker can serve none of the tasks that it was offered."""


@dataclass(frozen=True)
class WorkerService(Generic[S]):
    """The parts in which one worker service differs from another."""

    name: str
    description: str
    settings: type[S]
    plans: Callable[[S, Path], Sequence[WorkerPlan]]
    """`plans(settings, scratch)`; raises SpecError for settings that this machine does not
    support."""
    check: Callable[[S, Store], None] = lambda settings, store: None
    """Raises SpecError for settings that do not fit what is in the store."""


def main(service: WorkerService[S], arguments: Sequence[str] | None = None) -> int:
    """Run the service by its command line and environment; returns the exit status."""
    options = _parser(service).parse_args(arguments)
    try:
        settings = read_settings(service.settings, **vars(options))
        secrets = secrets_in(settings)
        configure(settings.log_level, settings.log_format, secrets, service=service.name)
        return _run(service, settings)
    except DpstreamError as error:
        print(f"{service.name}: {redacted(' '.join(str(error).split()))}", file=sys.stderr)
        return DECLINED if isinstance(error, Useless) else BAD_INPUT


def _run(service: WorkerService[S], settings: S) -> int:
    for variable, suggestion in misspelt_variables(service.settings):
        log.warning("unknown variable ignored", variable=variable, did_you_mean=suggestion)
    how = confinement()
    if how.gaps:
        log.warning("engines and programs are not fully confined", open=how.gaps, how=str(how))
    with asked_to_stop(again=_end_on_ctrl_c) as stopping, ExitStack() as stack:
        scratch = stack.enter_context(private_folder(settings.scratch))
        plans = service.plans(settings, scratch)
        name = settings.name or f"{service.name}-{socket.gethostname()}-{os.getpid()}"
        threads = WorkerThreads(name, plans, scratch, settings)
        stack.callback(threads.close)
        health = Health(threads.metrics.registry, threads.trouble)
        stack.enter_context(served(health, settings.http_host, settings.http_port))
        limits = filter(None, (settings.idle_exit, settings.lifetime))
        connected = connect(settings, stopping, min(limits, default=FOREVER))
        if connected is None:
            return 0
        bus, store = connected
        stack.enter_context(closing(bus))
        service.check(settings, store)
        health.reach += [
            lambda: bus.depth(COORDINATOR),
            lambda: store.exists(NO_OBJECT),
            threads.check_rights,
        ]
        return threads.work(bus, store, stopping)


def _end_on_ctrl_c(number: int) -> None:
    """A second SIGTERM changes nothing: Slurm sends two, and scripts forward what they received."""
    if number == signal.SIGINT:
        end_at_once(number)


@dataclass
class WorkerThreads:
    """The workers of this process, one thread each."""

    name: str
    plans: Sequence[WorkerPlan]
    scratch: Path
    settings: WorkerSettings
    metrics: WorkerMetrics = field(init=False)
    limits: ExitLimits = field(init=False)
    workers: list[Worker[Any]] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)
    failed: bool = False
    refused: Refused | None = None
    _aborted: dict[str, float] = field(default_factory=dict)
    """When the task of a worker was aborted, by the worker's name, monotonic clock."""

    def __post_init__(self) -> None:
        self.metrics, own = WorkerMetrics(self.device), self.settings
        self.limits = ExitLimits(own.max_tasks, own.idle_exit, own.lifetime)

    @property
    def device(self) -> Device | None:
        """That of all plans."""
        return next((plan.device for plan in self.plans), None)

    @property
    def queues(self) -> list[str]:
        """The queues that the process serves, each once."""
        return list(dict.fromkeys(queue for plan in self.plans for queue in plan.queues))

    def work(self, bus: Bus, store: Store, stopping: threading.Event) -> int:
        """Work until `stopping` is set or an exit limit is reached; returns the exit status. Raises
        `Refused` if broker or store keep refusing a worker's rights, Useless if an exit limit was
        reached and every task was declined."""
        self.limits.begin()
        self._start(bus, store, stopping)
        self._announce(bus)
        where = {"device": str(self.device)} if self.device else {}
        facts = {"queues": self.queues, "slots": len(self.plans), "confined": str(confinement())}
        log.info("ready", **facts, **where)
        deadline: float | None = None
        while self._has_workers():
            if stopping.is_set():
                deadline = deadline or time.monotonic() + self.settings.grace
                if time.monotonic() > deadline:
                    log.error(
                        f"a running task did not stop within {self.settings.grace:g} s; the "
                        "coordinator issues it again when its lease ends"
                    )
                    return DIED
            if not stopping.is_set() and self._is_hung():
                log.error("a task did not end although it was aborted")
                self.failed = True
                stopping.set()  # the other workers release their tasks
        if self.refused is not None:
            raise self.refused
        log.info("stopped")
        if self.failed:
            return DIED
        useless = None if stopping.is_set() else self.limits.declined_all
        if useless is not None:
            raise Useless(f"every task was declined: {useless}")
        return GAVE_BACK if any(worker.gave_back for worker in self.workers) else 0

    def _is_hung(self) -> bool:
        """Aborts stuck tasks; True if a worker is not free a minute after that."""
        now = time.monotonic()
        stuck = {worker.name: worker.stuck for worker in self.workers}
        self._aborted = {name: at for name, at in self._aborted.items() if stuck[name]}
        for worker in self.workers:
            reason = stuck[worker.name]
            if reason is not None and worker.name not in self._aborted:
                log.error("task aborted", worker=worker.name, reason=reason)
                self._aborted[worker.name] = now
                worker.abort(reason)
        return any(now - at > FREEING_SECONDS for at in self._aborted.values())

    def trouble(self) -> str | None:
        """Reason why this process must be restarted, or None."""
        stuck = next(filter(None, (worker.stuck for worker in self.workers)), None)
        if stuck is not None:
            return f"a task is stuck: {stuck}"
        if self.failed:
            return "a worker died"
        return None

    def check_rights(self) -> None:
        """Raises BusError if a worker is refused its queue."""
        for worker in self.workers:
            if worker.refusal is not None:
                raise BusError(worker.refusal)

    def close(self) -> None:
        for plan in self.plans:
            plan.resources.close()

    def _start(self, bus: Bus, store: Store, stopping: threading.Event) -> None:
        settings = self.settings
        self.metrics.has_slots(len(self.plans))
        for number, plan in enumerate(self.plans):
            plan.resources.start()
            worker: Worker[Any] = Worker(
                name=f"{self.name}.{number}" if len(self.plans) > 1 else self.name,
                bus=bus,
                store=store,
                queue=plan.queues[0],
                others=plan.queues[1:],
                handlers=plan.handlers,
                resources=plan.resources,
                scratch=self.scratch / "tasks",
                heartbeat_seconds=settings.task_heartbeat,
                stuck_after=settings.longest_pauses,
                stopping=stopping,
                telemetry=self.metrics,
                limits=self.limits,
                process=settings.process,
                unserved=plan.unserved,
            )
            self.workers.append(worker)
            thread = threading.Thread(target=self._guarded, args=(worker,), daemon=True)
            self.threads.append(thread)
            thread.start()

    def _announce(self, bus: Bus) -> None:
        """Publishes that the process is up. Nothing depends on it, so that a failure, such as
        access rights of an earlier release, changes nothing."""
        kind = TrainerStarted if Train.QUEUE in self.queues else WorkerStarted
        started = kind(
            id=str(uuid.uuid4()),
            time=time.time(),
            worker=self.name,
            host=socket.gethostname(),
            process=self.settings.process,
            pool=self.settings.pool,
            slots=len(self.plans),
            queues=tuple(self.queues),
            programs={name: text for plan in self.plans for name, text in plan.programs.items()},
            devices=self._gpu_names(),
        )
        try:
            bus.publish([Outgoing(encode(started), topic=topic_of(started))])
        except (BusError, ValueError) as error:
            log.info("not announced to the coordinator", reason=str(error))

    def _gpu_names(self) -> tuple[str, ...]:
        """Models of the GPUs that its engines, or its programs, may use."""
        if self.device is None:
            return tuple(gpu.name for gpu in gpus())
        return (self.device.gpu.name,) if self.device.gpu else ()

    def _guarded(self, worker: Worker[Any]) -> None:
        """Run a worker; if it dies, stop the process, which its supervisor restarts."""
        try:
            worker.run()
        except Refused as error:
            self.refused = error
            worker.stopping.set()
        except BaseException:
            log.exception("worker died", worker=worker.name)
            self.failed = True
            worker.stopping.set()

    def _has_workers(self) -> bool:
        """Whether a worker is running, after waiting a moment for it to end."""
        for thread in self.threads:
            thread.join(timeout=0.2)
            if thread.is_alive():
                return True
        return False


def version_of(distribution: str) -> str:
    """Version of an installed Python distribution; empty if it is not installed."""
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(distribution)
    return ""


def versions_of(distributions: Iterable[str]) -> dict[str, str]:
    """The installed ones of these distributions, with their versions."""
    found = {name: version_of(name) for name in distributions}
    return {name: version for name, version in found.items() if version}


def _parser(service: WorkerService[S]) -> argparse.ArgumentParser:
    lines = "\n".join(f"  {name}\n      {text}" for name, text in variables(service.settings))
    parser = argparse.ArgumentParser(
        prog=f"python -m dpstream.services.{service.name}",
        description=service.description,
        epilog=f"environment, [default] in brackets:\n{lines}\n\n"
        "exit status: 0 nothing left to do, or idle when stopped; 75 released a task when stopped; "
        "1 a worker died; 2 invalid settings or refused rights; 69 every task was declined\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--max-tasks", metavar="N", help="exit after N tasks")
    parser.add_argument("--idle-exit", metavar="SECONDS", help="exit after SECONDS without a task")
    parser.add_argument("--name", help="name of this process, shown in status and logs")
    return parser
