"""A `dpstream run` without engines: the lock, the coordinator and the requests of a real one, and a
simulator that answers its tasks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dpstream.running.local_cluster import sole_runner
from dpstream.running.requests import RequestFolder
from dpstream.services.coordinator.state import State
from dpstream.shared.store.folder import FolderStore
from tests.support.campaigns.coordinator import CoordinatorHarness

LOOK = 0.02
"""Seconds between two looks for requests."""


@dataclass
class LocalRun:
    root: Path
    campaign: str
    _alone: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.harness = CoordinatorHarness(FolderStore(self.root))
        self.requests = RequestFolder.of(self.root, self.campaign)
        self.harness.coordinator.open(self.campaign)

    @property
    def state(self) -> State:
        return self.harness.coordinator.open_campaigns[self.campaign].state

    def step(self) -> None:
        with self._alone:
            self.harness.publish(*self.requests.take())
            self.harness.step()

    def until(self, met: Callable[[State], object]) -> State:
        """Work until `met`."""
        for _ in range(200):
            if met(self.state):
                return self.state
            with self._alone:
                self.harness.work()
            self.step()
        raise AssertionError("that never happens")


@contextmanager
def at_work(root: Path, campaign: str) -> Iterator[LocalRun]:
    """A run that accepts requests, and works on its tasks only when the test calls it."""
    with sole_runner(root, campaign):
        run, stopping = LocalRun(root, campaign), threading.Event()

        def listen() -> None:
            while not stopping.wait(LOOK):
                run.step()

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield run
        finally:
            stopping.set()
            thread.join()
