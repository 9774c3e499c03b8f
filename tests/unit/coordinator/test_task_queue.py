"""What waits is ranked; what is published is bounded, and published again when nobody claims it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from dpstream.services.coordinator.task_queue import MINIMUM, TaskQueue
from dpstream.shared.bus.memory import InProcessBus
from dpstream.shared.codec import decode
from dpstream.shared.errors import BusError
from dpstream.shared.messages import Command, Explore, Label, Reference, Train
from dpstream.shared.values import FrameRef
from tests.support.adapters.faulty_adapters import FlakyBus, first
from tests.support.campaigns.campaign_simulator import key, ref
from tests.support.campaigns.single_tasks import train_command

FRAME = FrameRef(batch=ref("batch"), index=0, key=key("frame"))


def command(kind: type[Command], number: int = 0, attempt: int = 1) -> Any:
    common: dict[str, Any] = train_command(number).model_dump()
    common |= {
        "task": f"{kind.__name__.lower()}-{number}",
        "attempt": attempt,
        "stage": 0,
        "committee": ref("committee"),
        "capability": "tblite",
        "recipe": "r",
        "frames": (FRAME,),
        "trajectory": "t" if kind is Explore else 0,
        "condition": {"system": "methane", "temperature": 300.0},
        "structure": FRAME,
        "driver": 0,
        "trust": {"low": 0.1, "high": 0.3},
        "pinned": True,
    }
    known = kind.model_fields.keys() - {"type"}
    return kind.model_validate({name: common[name] for name in common.keys() & known})


def drained(bus: InProcessBus, queue: str) -> list[Any]:
    subscription, found = bus.consume(queue, prefetch=10**6), []
    while (delivery := subscription.next(timeout=0.0)) is not None:
        delivery.ack()
        found.append(decode(delivery.body))
    subscription.cancel()
    return found


def tasks(bus: InProcessBus, queue: str) -> list[str]:
    return [message.task for message in drained(bus, queue)]


def task_queue_of(count: int, kind: type[Command] = Explore) -> TaskQueue:
    task_queue = TaskQueue(reissue_after=600.0)
    for number in range(count):
        task_queue.add(command(kind, number), 0.0)
    return task_queue


def test_no_more_than_the_limit_is_in_flight_and_claims_make_room() -> None:
    bus, task_queue = InProcessBus(), task_queue_of(100)
    task_queue.publish(bus, 0.0, share=1)
    assert tasks(bus, "explore") == [f"explore-{i}" for i in range(MINIMUM)]
    task_queue.publish(bus, 1.0, share=1)
    assert tasks(bus, "explore") == []
    for number in (3, 5):
        task_queue.claimed(f"explore-{number}")
    task_queue.publish(bus, 2.0, share=1)
    assert tasks(bus, "explore") == ["explore-20", "explore-21"]


def test_the_next_attempt_takes_the_place_of_the_interrupted_one() -> None:
    """Behind 80 other tasks it would run when the other workers have nothing left to do."""
    bus, task_queue = InProcessBus(), task_queue_of(100)
    task_queue.publish(bus, 0.0, share=1)
    assert len(tasks(bus, "explore")) == MINIMUM
    task_queue.started(command(Explore, 3))
    task_queue.started(command(Explore, 5))
    task_queue.add(command(Explore, 3, attempt=2), 0.0)
    task_queue.publish(bus, 1.0, share=1)
    assert tasks(bus, "explore") == ["explore-3", "explore-20"]
    task_queue.ended("explore-3")
    task_queue.add(command(Explore, 3, attempt=3), 0.0)  # tried again by an operator
    task_queue.publish(bus, 2.0, share=1)
    assert tasks(bus, "explore") == ["explore-21"]


def test_the_limit_of_a_queue_is_twice_its_busy_workers() -> None:
    bus, task_queue = InProcessBus(), task_queue_of(50)
    for number in range(50):
        task_queue.add(command(Label, number), 0.0)
    task_queue.publish(bus, 0.0, share=1, busy={"explore": 15, "label.tblite": 3})
    assert len(tasks(bus, "explore")) == 30
    assert len(tasks(bus, "label.tblite")) == MINIMUM


def test_workers_are_busy_from_claim_to_end() -> None:
    task_queue = task_queue_of(3)
    for number in (0, 1, 1):  # heard of twice
        task_queue.started(command(Explore, number))
    assert task_queue.busy == {"explore": 2}
    task_queue.ended("explore-0")
    task_queue.ended("explore-0")
    task_queue.add(command(Explore, 1, attempt=2), 0.0)  # its worker is lost
    assert task_queue.busy["explore"] == 0


@pytest.mark.parametrize(("share", "published"), [(1, 20), (2, 10), (3, 6), (50, 1)])
def test_campaigns_share_equally(share: int, published: int) -> None:
    bus, task_queue = InProcessBus(), task_queue_of(100)
    task_queue.publish(bus, 0.0, share)
    assert len(tasks(bus, "explore")) == published


def test_labels_go_before_reference_dynamics_whenever_they_came() -> None:
    bus, task_queue = InProcessBus(), task_queue_of(MINIMUM, Reference)
    task_queue.add(command(Label), 0.0)
    task_queue.publish(bus, 0.0, share=1)
    assert tasks(bus, "label.tblite") == ["label-0", "reference-0"]


def test_one_reference_dynamics_at_a_time_waits_for_a_worker() -> None:
    bus, task_queue = InProcessBus(), task_queue_of(3, Reference)
    seen = []
    for _ in range(3):
        task_queue.publish(bus, now=1.0, share=1)
        seen.append(tasks(bus, "label.tblite"))
        task_queue.started(command(Reference, len(seen) - 1))
    assert seen == [["reference-0"], ["reference-1"], ["reference-2"]]


def test_an_unclaimed_task_is_published_again_under_the_same_attempt() -> None:
    bus, task_queue = InProcessBus(), task_queue_of(2, Train)
    task_queue.publish(bus, 0.0, share=1)
    task_queue.claimed("train-0")
    tasks(bus, "train")
    task_queue.publish(bus, 600.0, share=1)
    assert tasks(bus, "train") == []
    task_queue.publish(bus, 600.1, share=1)
    assert [(c.task, c.attempt) for c in drained(bus, "train")] == [("train-1", 1)]
    task_queue.publish(bus, 1200.0, share=1)
    assert tasks(bus, "train") == []


def test_what_waits_out_a_delay_takes_no_place() -> None:
    bus, task_queue = InProcessBus(), TaskQueue(reissue_after=600.0)
    for number in range(MINIMUM):
        task_queue.add(command(Explore, number), 50.0)
    task_queue.add(command(Explore, 99), 0.0)
    task_queue.publish(bus, 49.9, share=1)
    assert tasks(bus, "explore") == ["explore-99"]
    task_queue.publish(bus, 50.0, share=1)
    assert tasks(bus, "explore") == [f"explore-{i}" for i in range(MINIMUM - 1)]


def test_a_newer_attempt_replaces_the_older_one() -> None:
    bus, task_queue = InProcessBus(), task_queue_of(1, Train)
    task_queue.add(command(Train, 0, attempt=2), 0.0)
    task_queue.publish(bus, 0.0, share=1)
    assert [c.attempt for c in drained(bus, "train")] == [2]
    task_queue.add(command(Train, 0, attempt=3), 0.0)
    task_queue.publish(bus, 0.0, share=1)
    assert [c.attempt for c in drained(bus, "train")] == [3]


def test_a_claimed_task_is_never_published_again() -> None:
    bus, task_queue = InProcessBus(), task_queue_of(1)
    task_queue.claimed("explore-0")
    task_queue.claimed("unheard-of")
    task_queue.publish(bus, 0.0, share=1)
    task_queue.publish(bus, 1e9, share=1)
    assert tasks(bus, "explore") == []


@pytest.mark.parametrize("when", ["publish", "published"])
def test_an_outage_loses_no_task(when: str) -> None:
    bus, task_queue = InProcessBus(), task_queue_of(30)
    flaky = FlakyBus(bus, first(1, when))
    with pytest.raises(BusError):
        task_queue.publish(flaky, 0.0, share=1)
    task_queue.publish(flaky, 0.0, share=1)
    for number in range(MINIMUM):
        task_queue.claimed(f"explore-{number}")
    for number in range(MINIMUM, 30):
        task_queue.claimed(f"explore-{number}")
    seen = Counter(tasks(bus, "explore"))
    assert len(seen) >= MINIMUM
    assert set(seen) <= {f"explore-{i}" for i in range(30)}


def test_every_task_is_published_in_the_end_whatever_the_outages() -> None:
    bus, task_queue = InProcessBus(), task_queue_of(100)
    calls = iter(range(10**6))
    flaky, seen = FlakyBus(bus, lambda operation: next(calls) % 3 == 0), set[str]()
    for now in range(200):
        try:
            task_queue.publish(flaky, float(now), share=1)
        except BusError:
            continue
        for task in tasks(bus, "explore"):
            seen.add(task)
            task_queue.claimed(task)
    assert len(seen) == 100
