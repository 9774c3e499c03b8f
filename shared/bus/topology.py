"""Which queues there are and what flows into them: one table, the same for every broker."""

from __future__ import annotations

from dataclasses import dataclass

EVENTS = "dpstream.events"
"""The topic exchange of public events; topics are `<campaign>.<event>`."""

TASKS = "dpstream.tasks"
"""The direct exchange of commands; the routing key is the queue's name."""

DEAD = "dpstream.deadletters"
"""The fanout exchange through which messages that were given up reach `DEADLETTERS`."""

COORDINATOR = "coordinator"
"""Its queue, which hears every event of every campaign."""

DEADLETTERS = "deadletters"
"""What nobody could take off its queue ends here; the coordinator reads it."""


@dataclass(frozen=True)
class Queue:
    """A durable queue. `name` may end in `*`: one queue for every capability that is asked for,
    declared on demand. `pattern` binds it to public events (`*` one word, `#` any number).
    `single`: one consumer at a time, the others stand by, where the broker can do that. A message
    that came back `redeliveries` times, because its consumers rejected it or died, goes to the
    dead letters, where the broker counts (quorum queues)."""

    name: str
    pattern: str | None = None
    single: bool = False
    redeliveries: int = 20


FOR_EVER = 1_000_000
"""Redeliveries: the coordinator puts back what an outage of the store kept from its ledger, for as
long as that lasts. (RabbitMQ 3.10 has no word for "no limit", 4.0 a default of 20.)"""

TOPOLOGY = (
    Queue("train"),
    Queue("explore"),
    Queue("judge"),
    Queue("label.*"),
    Queue(COORDINATOR, pattern="*.*", single=True, redeliveries=FOR_EVER),
    Queue(DEADLETTERS, redeliveries=FOR_EVER),
)


def declared(queue: str) -> Queue | None:
    """The row of the table that `queue` belongs to; None for a queue nobody should use."""
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
