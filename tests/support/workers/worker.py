"""Workers in threads on a broker and a store in the process, and every event they publish."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dpstream.shared import messages as m
from dpstream.shared.bus.memory import Broker, InProcessBus
from dpstream.shared.codec import decode, encode, queue_of
from dpstream.shared.errors import Stopped
from dpstream.shared.ports import Bus, Outgoing, Store
from dpstream.shared.runtime.context import Context
from dpstream.shared.runtime.worker import Worker
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import Ref

PROMPT = 15.0
SPEC = Ref.to("campaigns/methane/spec.json", b"{}")
RECIPE = "0123456789abcdef"


def label(task: str = "t1", attempt: int = 1) -> m.Label:
    return m.Label(
        id=f"command-{task}-{attempt}",
        campaign="methane",
        time=0.0,
        task=task,
        attempt=attempt,
        title=f"label {task}",
        max_seconds=60.0,
        spec=SPEC,
        capability="toy",
        recipe=RECIPE,
        frames=(),
    )


def succeed(resources: Any, command: m.Label, context: Context) -> m.LabelsDone:
    return m.LabelsDone(**context.envelope())


@dataclass
class WorkerHarness:
    """A broker, a store, workers in threads, and a subscription to all their events."""

    folder: Path
    broker: Broker = field(default_factory=Broker)
    running: list[tuple[Worker[Any], threading.Thread]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = FolderStore(self.folder / "store")
        self.bus = InProcessBus(self.broker)
        self.events = self.bus.consume("coordinator", prefetch=10**6)

    def send(self, *commands: m.Command) -> None:
        self.bus.publish([Outgoing(encode(c), queue=queue_of(c)) for c in commands])

    def next_event(self) -> Any:
        """The next event about a task, heartbeats included."""
        delivery = self.events.next(PROMPT)
        assert delivery is not None, "no event"
        event = decode(delivery.body)
        return self.next_event() if isinstance(event, m.ProcessStarted) else event

    def next_types(self, count: int) -> list[type[m.Message]]:
        return [type(self.next_event()) for _ in range(count)]

    def no_event(self, seconds: float = 0.2) -> bool:
        return self.events.next(seconds) is None

    def worker(
        self,
        handler: Callable[..., Any] = succeed,
        bus: Bus | None = None,
        store: Store | None = None,
        **settings: Any,
    ) -> Worker[Any]:
        """A worker with a connection of its own, started."""
        name = f"worker-{len(self.running)}"
        worker: Worker[Any] = Worker(
            name=name,
            bus=bus or InProcessBus(self.broker),
            store=store or self.store,
            queue="label.toy",
            handlers={m.Label: handler},
            resources=None,
            scratch=self.folder / name,
            **settings,
        )
        thread = threading.Thread(target=worker.run)
        self.running.append((worker, thread))
        thread.start()
        return worker

    def stop(self) -> None:
        for worker, _ in self.running:
            worker.stopping.set()
        for _, thread in self.running:
            thread.join(PROMPT)
            assert not thread.is_alive()

    def alive(self) -> bool:
        return all(thread.is_alive() for _, thread in self.running)


@pytest.fixture
def workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerHarness]:
    monkeypatch.setattr("dpstream.shared.runtime.worker.IDLE_SECONDS", 0.02)  # they stop sooner
    workers = WorkerHarness(tmp_path)
    yield workers
    workers.stop()


def stop_after(seconds: float) -> Callable[[], None]:
    """What `Context.check` does in a worker that is to stop that much later."""
    at = time.monotonic() + seconds

    def tick() -> None:
        if time.monotonic() > at:
            raise Stopped("the worker is stopping")

    return tick


def patient(resources: Any, command: m.Label, context: Context) -> m.LabelsDone:
    """Works until it is stopped."""
    context.progress("scf cycle 7")
    deadline = time.monotonic() + PROMPT
    while time.monotonic() < deadline:
        context.check()
        time.sleep(0.01)
    raise AssertionError("never stopped")
