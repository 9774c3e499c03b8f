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

import services.explorer.bench as explorer_bench
import services.explorer.handlers as explorer
import services.labeler.handlers as labeler
import services.trainer.handlers as trainer
from services.coordinator.desk import Desk
from services.coordinator.service import Coordinator
from services.trainer.training_input import BACKENDS
from shared.embedded import FolderStore, InProcessBus
from shared.errors import SpecError
from shared.messages import CampaignResumed, CampaignSubmitted
from shared.scratch import private_folder
from shared.spec import Spec
from shared.values import stable_id
from shared.worker import Worker

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

    def start(self, submitted: CampaignSubmitted) -> Desk:
        """Take the campaign over and set everybody to work."""
        desk = self.coordinator.open(submitted.campaign, workers_are_gone=True)
        if desk.state.paused is not None:
            desk.inbox.append(_resume(submitted.campaign))
        for service, count in {**self.workers, "judge": 1}.items():
            for number in range(count):
                self._hire(service, number, desk.state.spec)
        self._run("coordinator", self.coordinator.run, self.stopping)
        return desk

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
        for bench in self.benches:
            bench.close()
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
        for bench in self.benches:
            bench.close()
        self._leaving.close()

    def _hire(self, service: str, number: int, spec: Spec) -> None:
        name = f"{service}-{number}"
        scratch = self.scratch / name
        scratch.mkdir()
        queue, handlers, bench = _service(service, scratch, spec)
        self.benches.append(bench)
        bench.start()
        worker: Worker[Any] = Worker(
            name, self.bus, self.store, queue, handlers, bench, scratch, HEARTBEAT
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
        return "train", trainer.HANDLERS, trainer.Bench(scratch, models=trainer.MODELS)
    if service == "explorer":
        return "explore", explorer.HANDLERS, explorer_bench.Bench(scratch, formats=formats)
    if service == "judge":
        return "judge", explorer.HANDLERS, explorer_bench.Bench(scratch, formats=formats)
    bench = labeler.Bench.at_home(scratch, spec.labels)
    return f"label.{spec.labels.capability}", labeler.HANDLERS, bench


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
