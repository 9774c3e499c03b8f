"""Exchanges and queues of the bus as one table, the same for every broker.

Commands go through `TASKS` to the work queue of their service. Events go through `EVENTS` to the
coordinator's queue and to temporary queues of other subscribers; those of operators also go to a
queue that the coordinator reads first. Those of generators go through `OFFERS` to a bounded queue
of their own. Messages that no consumer could settle go through `DEAD` to the dead-letter queue.
"""

from __future__ import annotations

from dataclasses import dataclass

from dpstream.shared.codec import names_of
from dpstream.shared.messages import EVENTS as KINDS

EVENTS = "dpstream.events"
"""The topic exchange of public events; topics are `<campaign>.<event>`."""

OFFERS = "dpstream.proposals"
"""The topic exchange of what generators publish."""

TASKS = "dpstream.tasks"
"""The direct exchange of commands; the routing key is the queue's name."""

DEAD = "dpstream.deadletters"
"""The fanout exchange of dead letters, bound to the queue `DEADLETTERS`."""

COORDINATOR = "coordinator"
"""The coordinator's queue: receives every event of every campaign."""

CONTROL = "control"
"""The queue of operators' requests, so that a backlog of other events does not delay them. They are
in the coordinator's queue too, where releases without this queue find them; each takes effect
once."""

PROPOSALS = "proposals"
"""The queue of what generators publish. At its limit the broker refuses more: a backlog of
proposals neither delays other events nor fills the broker's disk."""

DEADLETTERS = "deadletters"
"""Dead-letter queue: messages redelivered too often. The coordinator stores and reports them."""


@dataclass(frozen=True)
class Queue:
    """A durable queue. A `name` that ends in `*` stands for one queue per capability, declared on
    demand. `patterns` bind the queue to events of an `exchange` (`*` one word, `#` any number).
    `most`: messages beyond which the broker refuses further ones. `single`: one
    active consumer, the others stand by, if the broker supports that. A message redelivered
    `redeliveries` times, because its consumers rejected it or died, becomes a dead letter, if the
    broker counts deliveries (quorum queues)."""

    name: str
    patterns: tuple[str, ...] = ()
    exchange: str = EVENTS
    most: int | None = None
    single: bool = False
    redeliveries: int = 20


UNLIMITED = 1_000_000
"""Redeliveries: during an outage of the store the coordinator requeues events that it cannot write
to the ledger. (RabbitMQ 3.10 has no value for "no limit"; 4.0 defaults to 20.)"""

REQUESTS = tuple(
    f"*.{name}" for kind in KINDS if "operator" in kind.PUBLISHERS for name in names_of(kind)
)
"""Topics of the events that operators publish."""

OFFERED = tuple(name for kind in KINDS if "generator" in kind.PUBLISHERS for name in names_of(kind))
"""Kinds of events that generators publish."""
MOST_OFFERED = 1000
"""Messages of up to 64 KB and 100 frames."""

TOPOLOGY = (
    Queue("train"),
    Queue("explore"),
    Queue("judge"),
    Queue("screen"),
    Queue("label.*"),
    Queue(COORDINATOR, patterns=("*.*",), single=True, redeliveries=UNLIMITED),
    Queue(CONTROL, patterns=REQUESTS, single=True, redeliveries=UNLIMITED),
    Queue(
        PROPOSALS,
        patterns=tuple(f"*.{name}" for name in OFFERED),
        exchange=OFFERS,
        most=MOST_OFFERED,
        single=True,
        redeliveries=UNLIMITED,
    ),
    Queue(DEADLETTERS, redeliveries=UNLIMITED),
)


def exchange_of(topic: str) -> str:
    """The exchange for events of this topic, or of this kind."""
    return OFFERS if topic.rpartition(".")[2] in OFFERED else EVENTS


def declared(queue: str) -> Queue | None:
    """The row of the table that `queue` belongs to; None for an undeclared queue."""
    for row in TOPOLOGY:
        stem = row.name.removesuffix("*")
        if queue == row.name or (stem != row.name and queue.startswith(stem) and queue != stem):
            return row if not queue.endswith("*") else None
    return None


def matches(pattern: str, topic: str) -> bool:
    """AMQP topic matching, word by word: `*` stands for one word, `#` for any number of words."""
    return _match(pattern.split("."), topic.split("."))


def _match(pattern: list[str], words: list[str]) -> bool:
    if not pattern:
        return not words
    if pattern[0] == "#":
        return any(_match(pattern[1:], words[i:]) for i in range(len(words) + 1))
    return bool(words) and pattern[0] in ("*", words[0]) and _match(pattern[1:], words[1:])
