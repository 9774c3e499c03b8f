"""Two campaigns on one real broker, one of them far larger: they take turns."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.services import campaigns
from benchmarks.services.crew import label_nothing
from dpstream.deploy.devcluster.rabbitmq import RabbitNode
from dpstream.services.coordinator.service import Coordinator
from dpstream.services.coordinator.task_queue import MINIMUM
from dpstream.shared import messages as m
from dpstream.shared.bus.rabbit import RabbitBus, RabbitSettings
from dpstream.shared.runtime.context import Context
from dpstream.shared.runtime.worker import Worker
from dpstream.shared.store.folder import FolderStore

MANY, FEW = 400, MINIMUM
PROMPT = 60.0


class Crew:
    """A coordinator and a worker, each with a connection of its own; `done` names the campaign of
    every task in the order of working."""

    def __init__(self, url: str, folder: Path) -> None:
        self.store, self.done = FolderStore(folder / "store"), list[str]()
        self.buses = [RabbitBus(RabbitSettings.model_validate({"url": url})) for _ in range(2)]
        self.stopping, self.more = threading.Event(), threading.Condition()
        queue = m.Label.QUEUE.format(campaigns.CAPABILITY)
        handlers = {m.Label: self.label}
        self.coordinator = Coordinator(self.buses[0], self.store)
        self.worker = Worker("w", self.buses[1], self.store, queue, handlers, None, folder / "tmp")
        self.worker.stopping = self.stopping

    def label(self, resources: None, command: m.Label, context: Context) -> m.LabelsDone:
        with self.more:
            self.done.append(command.campaign)
            self.more.notify()
        return label_nothing(resources, command, context)

    def submit(self, name: str, tasks: int) -> None:
        campaigns.empty(self.store, name, tasks, bundle=1)
        campaigns.wake(self.buses[1], name)

    def wait_for(self, name: str, tasks: int) -> None:
        with self.more:
            assert self.more.wait_for(lambda: self.done.count(name) >= tasks, PROMPT)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        works = (lambda: self.coordinator.run(self.stopping), self.worker.run)
        threads = [threading.Thread(target=work) for work in works]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.stopping.set()
            for thread in threads:
                thread.join(PROMPT)
            for bus in self.buses:
                bus.close()


def test_a_small_campaign_is_not_starved_by_a_large_one(
    rabbit_node: RabbitNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # its power does not fail here
    rabbit_node.purge()
    crew = Crew(rabbit_node.url, tmp_path)
    with crew.at_work():
        crew.submit("large", MANY)
        crew.wait_for("large", 5)
        crew.submit("small", FEW)
        crew.wait_for("small", FEW)
        done = list(crew.done)
    first = done.index("small")
    meanwhile = done[first:].count("large")
    assert first < 4 * MINIMUM, "it waits for what was published before, and no longer"
    assert meanwhile <= 2 * FEW, "then they take turns"
    assert done.count("large") < MANY / 2
