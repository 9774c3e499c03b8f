"""A coordinator in this process, with a worker that completes every task at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from structlog.testing import capture_logs

import dpstream.services.coordinator.service as service
from dpstream.services.coordinator.open_campaign import OpenCampaign
from dpstream.services.coordinator.service import Coordinator
from dpstream.services.coordinator.state import State
from dpstream.shared import messages as m
from dpstream.shared.bus.memory import InProcessBus
from dpstream.shared.bus.topology import COORDINATOR, PROPOSALS
from dpstream.shared.codec import decode, encode, topic_of
from dpstream.shared.ports import Bus, Outgoing, Store
from dpstream.shared.runtime.worker import claim_uri
from dpstream.shared.spec import Spec
from dpstream.shared.values import campaign_uri
from tests.support.campaigns.archived import tasks_of
from tests.support.campaigns.campaign_simulator import CampaignSimulator, spec, submission

LEASE, REISSUE = 100.0, 1000.0
QUEUES = ("train", "explore", "judge", "screen", "label.tblite")


@dataclass
class CoordinatorHarness:
    """A store, a broker, a coordinator and a worker that completes every task at once."""

    store: Store
    bus: Bus = field(default_factory=InProcessBus)
    world: CampaignSimulator = field(default_factory=CampaignSimulator)
    now: float = 1000.0
    clock_error: float = 0.0
    """Of the machine's clock, s."""

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> Coordinator:
        """A new coordinator, which reads everything from the store."""
        self.coordinator = Coordinator(
            self.bus,
            self.store,
            LEASE,
            REISSUE,
            clock=lambda: self.now + self.clock_error,
            timer=lambda: self.now,
        )
        return self.coordinator

    def submit(self, of: Spec, frames: int = 6) -> OpenCampaign:
        body = of.model_dump_json().encode()
        self.store.put(campaign_uri(of.name, "spec.json"), body)
        self.publish(submission(of, frames))
        self.step()
        return self.coordinator.open_campaigns[of.name]

    def publish(self, *events: m.Message) -> None:
        """Publish events; of a claim, the object too, as workers do first."""
        for event in events:
            if isinstance(event, m.TaskClaimed):
                key = claim_uri(event.campaign, event.task, event.attempt)
                self.store.create(key, encode(event))
        self.bus.publish([Outgoing(encode(e), topic=topic_of(e)) for e in events])

    def step(self, of: Coordinator | None = None) -> None:
        """One turn of a coordinator: whatever has come in, then the clock."""
        coordinator = of or self.coordinator
        ended = coordinator.processes.ended
        queues = (COORDINATOR, PROPOSALS)
        subscriptions = [self.bus.consume(queue, prefetch=service.BATCH) for queue in queues]
        deliveries = []
        for subscription in subscriptions:
            while (delivery := subscription.next(timeout=0.0)) is not None:
                deliveries.append(delivery)
        try:
            coordinator.receive(deliveries)
            coordinator.check_clock(ended)
        finally:
            for subscription in subscriptions:
                subscription.cancel()

    def pass_time(self, seconds: float) -> None:
        """Time passes while the coordinator runs."""
        for _ in range(10):
            self.now += seconds / 10
            self.step()

    def published(self, *queues: str) -> list[Any]:
        """Commands taken off the work queues."""
        return [c for queue in queues or QUEUES for c in self._drained(queue)]

    def _drained(self, queue: str) -> Iterator[Any]:
        subscription = self.bus.consume(queue)
        while (delivery := subscription.next(timeout=0.0)) is not None:
            delivery.ack()
            yield decode(delivery.body)
        subscription.cancel()

    def claim(self, command: m.Command, worker: str = "w") -> bool:
        claimed = m.TaskClaimed(**CampaignSimulator.envelope(command, "claim"), worker=worker)
        key = claim_uri(command.campaign, command.task, command.attempt)
        return self.store.create(key, encode(claimed))

    def work(self) -> int:
        """Complete every published command; returns how many. If another worker holds a claim, its
        event is published once more."""
        published = self.published()
        commands = [c for c in published if self.claim(c)]
        for lost in [c for c in published if c not in commands]:
            self.publish(decode(self.store.get(claim_uri(lost.campaign, lost.task, lost.attempt))))
        for command in commands:
            for key in list(self.store.list(f"campaigns/{command.campaign}/manifests/")):
                self.world.manifests[key] = self.store.get(key).decode()
            self.publish(*self.world.answer(command))
        return len(commands)

    def finish(self, campaign: str = "world") -> State:
        """Run coordinator and worker in turn until the campaign ends or nothing is left to do."""
        still = 0
        while still < 3:
            self.step()
            still = 0 if self.work() else still + 1
            if campaign in self.coordinator.open_campaigns:
                state = self.coordinator.open_campaigns[campaign].state
                if state.finished or state.paused:
                    break
        return self.coordinator.open_campaigns[campaign].state

    def heartbeat(self, command: m.Command) -> None:
        fields = CampaignSimulator.envelope(command, "beat")
        self.publish(m.TaskHeartbeat(**fields, worker="w", progress="half way"))


@pytest.fixture
def no_log_lines() -> Iterator[None]:
    """No log lines."""
    with capture_logs():
        yield


SMALL: dict[str, Any] = {
    "stages": [{"name": "cold", "systems": ["methane"], "temperatures": [50.0]}],
    "training": {"members": 2},
    "verification": {},
}


def small(name: str = "world", **changes: Any) -> Spec:
    return spec(**SMALL | {"name": name} | changes)


def first_task(
    harness: CoordinatorHarness, of: Spec | None = None
) -> tuple[OpenCampaign, m.Command]:
    """A campaign and one published task of it."""
    open_campaign = harness.submit(of or small())
    return open_campaign, harness.published()[0]


def status(open_campaign: OpenCampaign, command: m.Command) -> str:
    return tasks_of(open_campaign.state)[command.task].status


def serving(coordinator: Coordinator) -> tuple[threading.Event, threading.Thread, list[Any]]:
    stopping, errors = threading.Event(), list[Any]()

    def guarded() -> None:
        try:
            coordinator.run(stopping)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    return stopping, thread, errors
