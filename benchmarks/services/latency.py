"""Measures the coordinator: deciding and encoding alone, then the time from an event on the broker
to the command that follows from it, through a ledger in the store."""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Iterator

from benchmarks.services import campaigns
from benchmarks.services.figures import Figure, milliseconds
from benchmarks.services.site import Servers, Site, at
from dpstream.services.coordinator.ledger.ledger import LedgerEntry, Segment
from dpstream.services.coordinator.policy import decide
from dpstream.services.coordinator.state import State
from dpstream.shared import messages as m
from dpstream.shared.codec import encode, topic_of
from dpstream.shared.ports import Outgoing
from dpstream.shared.runtime.worker import claim_uri
from tests.support.campaigns.campaign_simulator import CampaignSimulator, spec, submission

ANCHOR = 5.2, 9.6
"""Median and 95th percentile of Colmena's decisions, ms."""
TIMEOUT = 30.0
"""Longest wait for the command that follows one event, s."""


def measure(servers: Servers, trajectories: int, events: int) -> Iterator[Figure]:
    """`trajectories`: per condition, of the simulated campaign; `events`: on the broker."""
    yield milliseconds("decide + encode, one event", decided(trajectories), *ANCHOR)
    with at(servers, "latency") as site:
        yield milliseconds("durable event → command", list(answered(site, events)), *ANCHOR)


def decided(trajectories: int) -> list[float]:
    """Times for each event of a simulated campaign, s: deciding, encoding the commands and the
    entry of the ledger."""
    of = spec(
        md={"steps": 100, "every": 10, "trajectories": trajectories, "chunk": 5},
        selection={"per_round": trajectories, "select_every": 4},
        budget={"labels": 100_000},
        initial={"perturb": {"copies": 50}},
        labels={"bundle": 1},
        mode="streaming",
    )
    world, state, spent = CampaignSimulator(ripe=5), State(spec=of), list[float]()
    events = deque[m.Message]([submission(of, frames=50)])
    while events:
        event = events.popleft()
        began = time.perf_counter()
        state, decisions = decide(state, event)
        Segment(1, 1, "", (LedgerEntry(event, decisions),)).dumps()
        commands = [command for command in decisions if isinstance(command, m.Command)]
        for command in commands:
            encode(command)
        spent.append(time.perf_counter() - began)
        for decision in decisions:
            world.learn(decision)
        for command in commands:
            events += world.answer(command)
    return spent


def answered(site: Site, events: int) -> Iterator[float]:
    """Times from publishing that a task was released to receiving its next attempt, s."""
    campaigns.empty(site.store, "release", labels=1, bundle=1)
    site.start_process("coordinator")
    queue = m.Label.QUEUE.format(campaigns.CAPABILITY)
    subscription, began = site.bus.consume(queue), 0.0
    for number in range(events + 1):
        delivery = subscription.next(timeout=TIMEOUT)
        arrived = time.monotonic()
        assert delivery is not None, "no command has arrived"
        delivery.ack()
        if number:
            yield arrived - began
        command = m.Label.model_validate_json(delivery.body)
        claimed = CampaignSimulator().answer(command)[0]
        site.store.create(
            claim_uri(command.campaign, command.task, command.attempt), encode(claimed)
        )
        released = _released(command)
        began = time.monotonic()
        site.bus.publish([Outgoing(encode(released), topic=topic_of(released))])
    site.end()


def _released(command: m.Label) -> m.TaskReleased:
    return m.TaskReleased(
        id=str(uuid.uuid4()),
        campaign=command.campaign,
        time=time.time(),
        task=command.task,
        attempt=command.attempt,
        reason="benchmark",
    )
