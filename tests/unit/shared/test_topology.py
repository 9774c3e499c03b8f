"""The table of queues, and topic matching."""

from __future__ import annotations

import pytest

from dpstream.shared.bus.topology import CONTROL, COORDINATOR, declared, matches
from dpstream.shared.codec import kind_of, topic_of
from dpstream.shared.messages import EVENTS, CampaignFinished, Event


@pytest.mark.parametrize(
    ("pattern", "topic", "expected"),
    [
        ("*.*", "methane.labels-done", True),
        ("*.*", "methane", False),
        ("*.*", "a.b.c", False),
        ("#", "a.b.c", True),
        ("a.#", "a", True),
        ("a.#.c", "a.c", True),
        ("a.#.c", "a.b.b.c", True),
        ("a.#.c", "a.b.b", False),
        ("#.c.#", "a.b.c.d", True),
        ("a.*.c", "a.c", False),
        ("a*", "ab", False),
        ("a.b", "a.b", True),
        ("a.b", "A.b", False),
    ],
)
def test_topics_match_as_in_amqp(pattern: str, topic: str, expected: bool) -> None:
    assert matches(pattern, topic) is expected


@pytest.mark.parametrize("queue", ["train", "explore", "label.pyscf", "label.tblite", COORDINATOR])
def test_queues_of_the_table(queue: str) -> None:
    assert declared(queue) is not None


@pytest.mark.parametrize("queue", ["", "label", "label.", "label.*", "trainer", "train.x", "*"])
def test_other_queues_are_nobodys(queue: str) -> None:
    assert declared(queue) is None


def test_the_coordinator_hears_every_event() -> None:
    row = declared(COORDINATOR)
    assert row is not None
    event = CampaignFinished(id="1", campaign="a_b-c", time=0.0, verdict="converged", why="")
    (pattern,) = row.patterns
    assert matches(pattern, topic_of(event))


@pytest.mark.parametrize("kind", EVENTS, ids=kind_of)
def test_operators_requests_have_a_queue_of_their_own(kind: type[Event]) -> None:
    row = declared(CONTROL)
    assert row is not None
    bound = any(matches(pattern, f"methane.{kind_of(kind)}") for pattern in row.patterns)
    assert bound == ("operator" in kind.PUBLISHERS)
