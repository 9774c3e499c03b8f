"""The whole system in one process: in-memory bus, folder store, services as threads.

Only the engines are separate processes. Killing the process is equivalent to losing the broker: the
ledger in the folder contains all finished work.
"""

from __future__ import annotations

import fcntl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import dpstream.services.explorer.handlers as explorer
import dpstream.services.labeler.handlers as labeler
import dpstream.services.trainer.handlers as trainer
from dpstream.running.connection import publish
from dpstream.running.requests import RequestFolder
from dpstream.services.coordinator.open_campaign import OpenCampaign
from dpstream.services.coordinator.service import Coordinator
from dpstream.services.coordinator.views.amendment import plan_to_amend
from dpstream.services.explorer.resources import ExplorerResources, SharedResources
from dpstream.services.labeler.resources import LabelerResources
from dpstream.services.trainer.resources import MODELS, TrainerResources
from dpstream.services.trainer.training_input import BACKENDS
from dpstream.shared.bus.memory import InProcessBus
from dpstream.shared.errors import BusError, SpecError
from dpstream.shared.messages import CampaignAmended, CampaignResumed, CampaignSubmitted
from dpstream.shared.programs import DISTRIBUTIONS, gpu_backends
from dpstream.shared.runtime.device import Device
from dpstream.shared.runtime.process import WorkerPlan, versions_of
from dpstream.shared.runtime.scratch import private_folder
from dpstream.shared.runtime.worker import Worker
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import stable_id

HEARTBEAT = 2.0
"""Seconds between heartbeats of a worker."""
REACH_IT = "dpstream status, pause, resume, cancel, retry and amend reach it"
ASKED = 0.3
"""Seconds after which a command that asked whether a run is at work has let go of the lock."""
LOOK = 0.2
"""Seconds between two looks for requests of other terminals."""


@dataclass
class LocalCluster:
    """A coordinator and workers for one campaign in one folder."""

    root: Path
    workers: Mapping[str, int]
    """Number of workers by service."""
    device: Device
    """What models are trained and evaluated on."""
    bus: InProcessBus = field(default_factory=InProcessBus)
    stopping: threading.Event = field(default_factory=threading.Event)
    errors: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = FolderStore(self.root)
        # All workers are alike: what one declines, all decline.
        self.coordinator = Coordinator(
            self.bus, self.store, lease_seconds=60 * HEARTBEAT, patience=0.0
        )
        if self.device.gpu is not None:
            why = f"this machine has {self.device.gpu.name}"
            built = gpu_backends(versions_of(DISTRIBUTIONS))
            self.coordinator.processes.gpu_trainers |= dict.fromkeys(built, why)
        self._leaving = ExitStack()
        self.scratch = self._leaving.enter_context(private_folder(None))
        self.shared = SharedResources(self.scratch, device=self.device)
        self.resources_in_use: list[Any] = []
        self.threads: list[threading.Thread] = []
        self.crew: list[Worker[Any]] = []

    def start(
        self, submitted: CampaignSubmitted, amended: CampaignAmended | None = None
    ) -> OpenCampaign:
        """Take over the campaign, change its plan, and start all services."""
        open_campaign = self.coordinator.open(submitted.campaign, workers_are_gone=True)
        if amended is not None:
            open_campaign.own_events.append(amended)
        if open_campaign.state.paused is not None:
            open_campaign.own_events.append(_resume(submitted.campaign))
        self.coordinator.check_clock()  # workers start for the plan in force
        self.requests = RequestFolder.of(self.root, submitted.campaign)
        self.requests.clear()
        for service, count in {**self.workers, "judge": 1}.items():
            for number in range(count):
                self._start_worker(service, number, open_campaign)
        self._run("coordinator", self.coordinator.run, self.stopping)
        self._run("requests", self._take_requests, self.requests)
        return open_campaign

    def awaits_resume(self, open_campaign: OpenCampaign) -> bool:
        """Whether the campaign is paused because a person has asked this run for it."""
        why = open_campaign.state.paused
        return why is not None and why == self.requests.pause

    def _take_requests(self, requests: RequestFolder) -> None:
        """Hands requests from other terminals to the coordinator."""
        while not self.stopping.wait(LOOK):
            for message in requests.take():
                # The run is ending, and the command reports that it got no answer; or the message
                # is too long.
                with suppress(BusError, ValueError):
                    publish(self.bus, message)

    @contextmanager
    def at_work(
        self, submitted: CampaignSubmitted, amended: CampaignAmended | None = None
    ) -> Iterator[OpenCampaign]:
        """Started, and stopped in good order; at once on KeyboardInterrupt."""
        try:
            try:
                yield self.start(submitted, amended)
            except Exception:
                self.stop()
                raise
            self.stop()
        except KeyboardInterrupt:
            self.kill()
            raise

    def stop(self) -> None:
        """Let all workers return their tasks, wait until the ledger has them, and clean up."""
        others = ("coordinator", "requests")
        workers = [thread for thread in self.threads if thread.name not in others]
        for worker in self.crew:
            worker.stopping.set()
        for thread in workers:
            thread.join(timeout=20)
        time.sleep(0.1)
        self.stopping.set()
        for thread in self.threads:
            thread.join(timeout=10)
        for resources in self.resources_in_use:
            resources.close()
        self.bus.close()
        self._leaving.close()

    def kill(self) -> None:
        """Stop everything at once. The coordinator stops first, so that it does not record killed
        engines as crashed ones."""
        self.stopping.set()
        for thread in self.threads:
            if thread.name == "coordinator":
                thread.join(timeout=5)
        for worker in self.crew:
            worker.stopping.set()
        for resources in self.resources_in_use:
            resources.close()
        self._leaving.close()

    def _start_worker(self, service: str, number: int, of: OpenCampaign) -> None:
        name = f"{service}-{number}"
        scratch = self.scratch / name
        scratch.mkdir()
        plan = self._plan(service, number, scratch, of)
        self.resources_in_use.append(plan.resources)
        plan.resources.start()
        worker: Worker[Any] = Worker(
            name,
            self.bus,
            self.store,
            plan.queues[0],
            plan.handlers,
            plan.resources,
            scratch,
            HEARTBEAT,
            others=plan.queues[1:],
            unserved=plan.unserved,
        )
        self.crew.append(worker)
        self._run(name, worker.run)

    def _plan(self, service: str, number: int, scratch: Path, of: OpenCampaign) -> WorkerPlan:
        """All models are the user's own, so every model format is allowed. Labelers also serve the
        plan that waits for the end of a round."""
        spec = of.state.spec
        if service == "trainer":
            training = TrainerResources(scratch, models=MODELS, device=self.device)
            return WorkerPlan(("train",), trainer.HANDLERS, training, unserved=trainer.unserved)
        if service in ("explorer", "judge"):
            queues = ("explore",) if service == "explorer" else ("judge", "screen")
            formats = frozenset({BACKENDS[spec.training.backend].suffix})
            exploring = ExplorerResources(
                scratch,
                formats=formats,
                device=self.device,
                shared=self.shared,
                warm=number == 0,  # as in a service
            )
            return WorkerPlan(queues, explorer.HANDLERS, exploring, unserved=explorer.unserved)
        labeling = LabelerResources.for_local_run(scratch, spec.labels)
        plans = spec, plan_to_amend(of.state)[1]
        served = tuple(dict.fromkeys(f"label.{plan.labels.capability}" for plan in plans))
        return WorkerPlan(served, labeler.HANDLERS, labeling, unserved=labeler.unserved)

    def _run(self, name: str, target: Any, *arguments: Any) -> None:
        def guarded() -> None:
            try:
                target(*arguments)
            except BaseException as error:
                self.errors.append(error)

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        self.threads.append(thread)
        thread.start()


def _resume(campaign: str) -> CampaignResumed:
    now = time.time()
    return CampaignResumed(id=stable_id("resume", campaign, now), campaign=campaign, time=now)


@contextmanager
def sole_runner(root: Path, campaign: str) -> Iterator[None]:
    """Hold the campaign's lock. Raises `SpecError` if another run of the campaign holds it, because
    two coordinators of one ledger would fence each other, or if `root` is not writable."""
    folder = root / "campaigns" / campaign
    created = _absent(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        _remove(created)
        raise SpecError(f"--store: {root}: not writable: {error.strerror}") from error
    with lock:
        if not _is_locked(lock):
            raise SpecError(f"{campaign}: another dpstream run is using {root}; {REACH_IT}")
        try:
            yield
        finally:
            if created and not (folder / "spec.json").exists():  # nothing was started
                (folder / "lock").unlink(missing_ok=True)
                _remove(created)


def _is_locked(lock: IO[str]) -> bool:
    """Whether this process has the lock now."""
    for pause in (0.0, ASKED):
        time.sleep(pause)
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False


def _absent(folder: Path) -> list[Path]:
    """The folder and its parents that do not exist, innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):  # not empty
            folder.rmdir()
