"""A broker in virtual time whose messages are delayed, lost and doubled (`ports.Bus`).

Queues and deliveries are those of the in-process bus. A publisher never learns that a message was
lost: to the coordinator and the workers this is a broker that has failed after its confirmation.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dpstream.services.coordinator.fleet.assumptions import Messages
from dpstream.services.coordinator.simulation.agenda import Agenda
from dpstream.shared.bus.memory import InProcessBus, InProcessSubscription
from dpstream.shared.bus.topology import COORDINATOR
from dpstream.shared.ports import Outgoing


@dataclass
class LossyBus:
    agenda: Agenda
    fate: Messages
    random: random.Random
    arrived: Callable[[str], object] = lambda queue: None
    """Called with the work queue, or with the coordinator's, in which a message has arrived."""
    counts: Counter[str] = field(default_factory=Counter)
    """Messages published, lost and doubled."""
    user = None
    _inner: InProcessBus = field(default_factory=InProcessBus)

    def publish(self, messages: Sequence[Outgoing]) -> None:
        """Messages arrive after a delay, if at all."""
        for message in messages:
            self._inner.broker.route(message)  # raises Unroutable
            self.counts["published"] += 1
            if self.random.random() < self.fate.lost:
                self.counts["lost"] += 1
                continue
            self._send(message)
            if self.random.random() < self.fate.doubled:
                self.counts["doubled"] += 1
                self._send(message)

    def deliver(self, message: Outgoing) -> None:
        """Delivers a message at once and without loss."""
        self._inner.publish([message])
        self.arrived(message.queue or COORDINATOR)

    def _send(self, message: Outgoing) -> None:
        delay = self.random.expovariate(1 / self.fate.delay) if self.fate.delay else 0.0
        self.agenda.after(delay, self.deliver, message)

    def consume(self, queue: str, prefetch: int = 1) -> InProcessSubscription:
        return self._inner.consume(queue, prefetch)

    def bind(self, queue: str, pattern: str) -> None:
        self._inner.bind(queue, pattern)

    def depth(self, queue: str) -> int:
        return self._inner.depth(queue)

    def close(self) -> None:
        self._inner.close()
