"""The whole system in one process: embedded bus, folder store, services as threads.

Only the engines are processes of their own. Killing the process equals a wiped broker: the ledger
in the folder knows everything that was finished.
"""

from __future__ import annotations

import fcntl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dpstream.services.explorer.handlers as explorer
import dpstream.services.explorer.resources as explorer_bench
import dpstream.services.labeler.handlers as labeler
import dpstream.services.trainer.handlers as trainer
from dpstream.services.coordinator.open_campaign import OpenCampaign
from dpstream.services.coordinator.service import Coordinator
from dpstream.services.labeler.resources import LabelerResources
from dpstream.services.trainer.resources import MODELS, TrainerResources
from dpstream.services.trainer.training_input import BACKENDS
from dpstream.shared.bus.memory import InProcessBus
from dpstream.shared.errors import SpecError
from dpstream.shared.messages import CampaignResumed, CampaignSubmitted
from dpstream.shared.runtime.scratch import private_folder
from dpstream.shared.runtime.worker import Worker
from dpstream.shared.spec import Spec
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import stable_id

HEARTBEAT = 2.0
"""Seconds between heartbeats of workers in this process."""


@dataclass
class LocalCluster:
    """Workers and a coordinator over one folder, for one campaign."""

    root: Path
    workers: Mapping[str, int]
    """Number of workers by service."""
    bus: InProcessBus = field(default_factory=InProcessBus)
    stopping: threading.Event = field(default_factory=threading.Event)
    errors: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = FolderStore(self.root)
        self.coordinator = Coordinator(self.bus, self.store, lease_seconds=60 * HEARTBEAT)
        self._leaving = ExitStack()
        self.scratch = self._leaving.enter_context(private_folder(None))
        self.benches: list[Any] = []
        self.threads: list[threading.Thread] = []
        self.crew: list[Worker[Any]] = []

    def start(self, submitted: CampaignSubmitted) -> OpenCampaign:
        """Take the campaign over and set everybody to work."""
        open_campaign = self.coordinator.open(submitted.campaign, workers_are_gone=True)
        if open_campaign.state.paused is not None:
            open_campaign.own_events.append(_resume(submitted.campaign))
        for service, count in {**self.workers, "judge": 1}.items():
            for number in range(count):
                self._hire(service, number, open_campaign.state.spec)
        self._run("coordinator", self.coordinator.run, self.stopping)
        return open_campaign

    @contextmanager
    def at_work(self, submitted: CampaignSubmitted) -> Iterator[OpenCampaign]:
        """Started, and stopped in good order; at once on KeyboardInterrupt."""
        try:
            try:
                yield self.start(submitted)
            except Exception:
                self.stop()
                raise
            self.stop()
        except KeyboardInterrupt:
            self.kill()
            raise

    def stop(self) -> None:
        """Ask everybody to release their work, wait until the ledger knows, and clean up."""
        workers = [thread for thread in self.threads if thread.name != "coordinator"]
        for worker in self.crew:
            worker.stopping.set()
        for thread in workers:
            thread.join(timeout=20)
        time.sleep(0.1)
        self.stopping.set()
        for thread in self.threads:
            thread.join(timeout=10)
        for resources in self.benches:
            resources.close()
        self.bus.close()
        self._leaving.close()

    def kill(self) -> None:
        """End everything at once. The coordinator goes first: it must not hear of engines that
        were killed as of engines that crashed."""
        self.stopping.set()
        for thread in self.threads:
            if thread.name == "coordinator":
                thread.join(timeout=5)
        for worker in self.crew:
            worker.stopping.set()
        for resources in self.benches:
            resources.close()
        self._leaving.close()

    def _hire(self, service: str, number: int, spec: Spec) -> None:
        name = f"{service}-{number}"
        scratch = self.scratch / name
        scratch.mkdir()
        queue, handlers, resources = _service(service, scratch, spec)
        self.benches.append(resources)
        resources.start()
        worker: Worker[Any] = Worker(
            name, self.bus, self.store, queue, handlers, resources, scratch, HEARTBEAT
        )
        self.crew.append(worker)
        self._run(name, worker.run)

    def _run(self, name: str, target: Any, *arguments: Any) -> None:
        def guarded() -> None:
            try:
                target(*arguments)
            except BaseException as error:
                self.errors.append(error)

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        self.threads.append(thread)
        thread.start()


def _service(service: str, scratch: Path, spec: Spec) -> tuple[str, Mapping[Any, Any], Any]:
    """Queue, handlers and bench of one service. The models are the user's own, given or trained
    here: they are loaded whatever they could do."""
    formats = frozenset({BACKENDS[spec.training.backend].suffix})
    if service == "trainer":
        return "train", trainer.HANDLERS, TrainerResources(scratch, models=MODELS)
    if service == "explorer":
        return (
            "explore",
            explorer.HANDLERS,
            explorer_bench.ExplorerResources(scratch, formats=formats),
        )
    if service == "judge":
        return (
            "judge",
            explorer.HANDLERS,
            explorer_bench.ExplorerResources(scratch, formats=formats),
        )
    resources = LabelerResources.for_local_run(scratch, spec.labels)
    return f"label.{spec.labels.capability}", labeler.HANDLERS, resources


def _resume(campaign: str) -> CampaignResumed:
    now = time.time()
    return CampaignResumed(id=stable_id("resume", campaign, now), campaign=campaign, time=now)


@contextmanager
def sole_runner(root: Path, campaign: str) -> Iterator[None]:
    """Two runs of one campaign in one folder would fence each other off: the second is told."""
    folder = root / "campaigns" / campaign
    made = _absent(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        _remove(made)
        raise SpecError(f"--root: {root}: cannot be written: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SpecError(f"{campaign}: another dpstream run is at work in {root}") from error
        try:
            yield
        finally:
            if made and not (folder / "spec.json").exists():  # nothing was begun
                (folder / "lock").unlink(missing_ok=True)
                _remove(made)


def _absent(folder: Path) -> list[Path]:
    """The folder and those above it that are not there, the innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):  # somebody else's files are in it by now
            folder.rmdir()
