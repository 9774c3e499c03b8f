"""What every bus must do, in the order of `shared/ports.py`. Delivery may be asynchronous."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest

from dpstream.shared.bus.memory import InProcessSubscription
from dpstream.shared.bus.topology import MOST_OFFERED
from dpstream.shared.errors import BusError, QueueFull, Unroutable
from dpstream.shared.ports import Bus, Delivery, Outgoing, Subscription
from tests.support.adapters.faulty_adapters import FaultyBus

Connect = Callable[[], Bus]

PROMPT = 10.0
"""Seconds within which what must happen happens."""


def quiet(subscription: Subscription) -> float:
    """Seconds without a delivery that count as none; in one process, publishing delivers."""
    return 0.05 if isinstance(subscription, InProcessSubscription) else 0.3


def is_quiet(subscription: Subscription) -> bool:
    return subscription.next(quiet(subscription)) is None


def command(body: bytes, queue: str = "train") -> Outgoing:
    return Outgoing(body, queue=queue)


def event(body: bytes, topic: str = "methane.labels-done") -> Outgoing:
    return Outgoing(body, topic=topic)


def take(subscription: Subscription) -> Delivery:
    delivery = subscription.next(PROMPT)
    assert delivery is not None
    return delivery


def drain(subscription: Subscription) -> list[bytes]:
    bodies = []
    while (delivery := subscription.next(quiet(subscription))) is not None:
        bodies.append(delivery.body)
        delivery.ack()
    return bodies


def is_unroutable(bus: Bus, topic: str) -> bool:
    try:
        bus.publish([event(b"x", topic)])
    except Unroutable:
        return True
    return False


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PROMPT
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ----------------------------------------------------------------------------------------- publish


def test_a_command_reaches_its_work_queue_and_no_other(bus: Bus) -> None:
    bus.publish([command(b"t", "train"), command(b"e", "explore")])
    assert drain(bus.consume("train")) == [b"t"]
    assert drain(bus.consume("explore")) == [b"e"]
    assert drain(bus.consume("coordinator")) == []


def test_a_full_queue_of_proposals_rejects_more_and_delays_no_other_event(bus: Bus) -> None:
    proposal = event(b"p", "methane.structures-proposed")
    with pytest.raises(QueueFull):
        bus.publish([proposal] * (3 * MOST_OFFERED))
    bus.publish([event(b"e")])
    assert drain(bus.consume("coordinator")) == [b"e"]
    waiting = bus.consume("proposals", prefetch=1000)
    assert len(drain(waiting)) >= MOST_OFFERED
    bus.publish([proposal])
    assert take(waiting).topic == "methane.structures-proposed"


def test_bodies_arrive_to_the_bit(bus: Bus) -> None:
    bodies = [bytes(range(256)), b"", b"x" * 64 * 1024]
    bus.publish([command(body) for body in bodies])
    assert drain(bus.consume("train")) == bodies


def test_a_secret_travels_beside_the_body_and_the_user_is_stated(bus: Bus) -> None:
    sent = [Outgoing(b"s", topic="methane.labels-done", secret="secret"), event(b"none")]
    assert "secret'" not in repr(sent)
    bus.publish(sent)
    subscription = bus.consume("coordinator", prefetch=2)
    found = [take(subscription), take(subscription)]
    assert [(each.body, each.secret) for each in found] == [(b"s", "secret"), (b"none", None)]
    assert {each.user for each in found} == {bus.user}
    assert "secret'" not in repr(found)


def test_order_is_kept_within_a_queue(bus: Bus) -> None:
    bodies = [str(i).encode() for i in range(50)]
    bus.publish([command(body) for body in bodies[:20]])
    subscription = bus.consume("train", prefetch=7)
    for body in bodies[20:]:
        bus.publish([command(body)])
    assert drain(subscription) == bodies


def test_an_event_is_copied_to_every_queue_bound_to_it(bus: Bus) -> None:
    bus.bind("listener-a", "*.labels-done")
    bus.bind("listener-b", "methane.*")
    bus.bind("listener-c", "water.*")
    names = ["coordinator", "listener-a", "listener-b", "listener-c"]
    subscriptions = [bus.consume(name) for name in names]
    bus.publish([event(b"e")])
    assert [drain(s) for s in subscriptions] == [[b"e"], [b"e"], [b"e"], []]


@pytest.mark.parametrize(
    ("pattern", "heard"),
    [
        ("*.models-ready", {"a.models-ready", "b.models-ready"}),
        ("a.*", {"a.models-ready", "a.labels-done"}),
        ("*", set()),
        ("#", {"a.models-ready", "b.models-ready", "a.labels-done"}),
        ("a.#", {"a.models-ready", "a.labels-done"}),
        ("#.models-ready", {"a.models-ready", "b.models-ready"}),
        ("a.models", set()),
    ],
)
def test_patterns_match_word_by_word(bus: Bus, pattern: str, heard: set[str]) -> None:
    bus.bind("listener", pattern)
    subscription = bus.consume("listener")
    topics = ["a.models-ready", "b.models-ready", "a.labels-done"]
    bus.publish([event(topic.encode(), topic) for topic in topics])
    assert {body.decode() for body in drain(subscription)} == heard


@pytest.mark.parametrize("queue", ["trian", "label", "label.", "label.*", "", "coordinator.x"])
def test_a_command_to_an_undeclared_queue_is_unroutable(bus: Bus, queue: str) -> None:
    with pytest.raises(Unroutable):
        bus.publish([command(b"x", queue)])


@pytest.mark.parametrize("topic", ["one-word", "three.words.here", ""])
def test_an_event_nobody_is_bound_to_is_unroutable(bus: Bus, topic: str) -> None:
    with pytest.raises(Unroutable):
        bus.publish([event(b"x", topic)])


def test_a_message_goes_to_a_queue_or_to_a_topic_never_both_or_neither(bus: Bus) -> None:
    for wrong in (Outgoing(b"x"), Outgoing(b"x", queue="train", topic="a.b")):
        with pytest.raises(BusError):
            bus.publish([wrong])
    assert drain(bus.consume("train")) == []


def test_publishing_nothing_is_allowed(bus: Bus) -> None:
    bus.publish([])


def test_what_was_published_outlives_its_publisher(bus_factory: Connect) -> None:
    publisher = bus_factory()
    publisher.publish([command(b"c"), event(b"e")])
    publisher.close()
    bus = bus_factory()
    assert drain(bus.consume("train")) == [b"c"]
    assert drain(bus.consume("coordinator")) == [b"e"]


# ------------------------------------------------------------------------------------ consume, bind


def test_label_queues_exist_as_soon_as_their_capability_is_named(bus_factory: Connect) -> None:
    publisher, worker = bus_factory(), bus_factory()
    early = worker.consume("label.pyscf")
    publisher.publish([command(b"p", "label.pyscf"), command(b"t", "label.tblite")])
    assert drain(early) == [b"p"]
    assert drain(worker.consume("label.tblite")) == [b"t"]


@pytest.mark.parametrize("queue", ["trian", "label", "label.", ""])
def test_consuming_an_undeclared_queue_is_refused(bus: Bus, queue: str) -> None:
    with pytest.raises(BusError):
        bus.consume(queue)
    with pytest.raises(BusError):
        bus.depth(queue)


def test_a_temporary_queue_goes_with_its_last_subscription(bus: Bus) -> None:
    bus.bind("listener", "a.b.c")
    one, two = bus.consume("listener"), bus.consume("listener")
    bus.publish([event(b"x", "a.b.c")])
    one.cancel()
    bus.publish([event(b"y", "a.b.c")])
    assert sorted(drain(two)) == [b"x", b"y"]
    two.cancel()
    eventually(lambda: is_unroutable(bus, "a.b.c"))


def test_a_temporary_queue_goes_with_its_connection(bus_factory: Connect) -> None:
    listener, bus = bus_factory(), bus_factory()
    listener.bind("listener", "a.b.c")
    listener.consume("listener")
    listener.close()
    eventually(lambda: is_unroutable(bus, "a.b.c"))


def test_a_queue_name_is_taken_once(bus_factory: Connect) -> None:
    bus, other = bus_factory(), bus_factory()
    bus.bind("listener", "a.*")
    for taken in ("listener", "train", "coordinator", "label.pyscf"):
        with pytest.raises(BusError):
            other.bind(taken, "b.*")


def test_prefetch_bounds_what_a_consumer_holds(bus: Bus) -> None:
    bus.publish([command(str(i).encode()) for i in range(5)])
    subscription = bus.consume("train", prefetch=2)
    first, second = take(subscription), take(subscription)
    assert is_quiet(subscription)
    second.ack()
    assert take(subscription).body == b"2"
    assert is_quiet(subscription)
    first.ack()
    assert take(subscription).body == b"3"


def test_a_busy_consumer_leaves_the_rest_to_others(bus_factory: Connect) -> None:
    bus = bus_factory()
    busy = bus.consume("train", prefetch=1)
    bus.publish([command(str(i).encode()) for i in range(4)])
    held = take(busy)
    assert drain(bus_factory().consume("train")) == [b"1", b"2", b"3"]
    held.ack()


def test_next_gives_up_after_its_timeout(bus: Bus) -> None:
    subscription = bus.consume("train")
    began = time.monotonic()
    assert subscription.next(0.2) is None
    assert 0.15 < time.monotonic() - began < PROMPT
    assert subscription.next(0.0) is None


def test_a_subscription_is_open_until_it_is_cancelled(bus: Bus) -> None:
    subscription = bus.consume("train")
    assert subscription.next(0.0) is None
    assert subscription.open
    subscription.cancel()
    assert not subscription.open


def test_next_waits_for_a_message_as_long_as_it_takes(bus_factory: Connect) -> None:
    subscription = bus_factory().consume("train")
    late = threading.Timer(0.3, lambda: bus_factory().publish([command(b"late")]))
    late.start()
    delivery = subscription.next()
    late.join()
    assert delivery is not None
    assert delivery.body == b"late"
    assert not delivery.redelivered


# ------------------------------------------------------------------------------------------ settle


def test_a_rejected_message_goes_to_another_consumer_marked(bus_factory: Connect) -> None:
    one, two = bus_factory(), bus_factory()
    subscription = one.consume("train")
    one.publish([command(b"x")])
    delivery = take(subscription)
    assert not delivery.redelivered
    other = two.consume("train")
    subscription.cancel()
    delivery.reject()
    again = take(other)
    assert (again.body, again.redelivered) == (b"x", True)


def test_an_acknowledged_message_never_comes_back(bus_factory: Connect) -> None:
    bus = bus_factory()
    bus.publish([command(b"x")])
    take(bus.consume("train")).ack()
    bus.close()
    assert drain(bus_factory().consume("train")) == []


def test_acknowledging_is_allowed_after_cancelling(bus_factory: Connect) -> None:
    bus, other = bus_factory(), bus_factory()
    subscription = bus.consume("train")
    bus.publish([command(b"x")])
    delivery = take(subscription)
    subscription.cancel()
    waiting = other.consume("train")
    assert is_quiet(waiting)  # still its consumer's to settle
    delivery.ack()
    bus.close()
    assert is_quiet(waiting)


def test_settling_twice_has_no_effect(bus: Bus) -> None:
    bus.publish([command(b"x"), command(b"y")])
    subscription = bus.consume("train")
    delivery = take(subscription)
    delivery.ack()
    delivery.ack()
    delivery.reject()
    assert drain(subscription) == [b"y"]
    assert drain(subscription) == []


def test_a_rejection_counts_once(bus: Bus) -> None:
    bus.publish([command(b"x")])
    subscription = bus.consume("train", prefetch=3)
    delivery = take(subscription)
    delivery.reject()
    delivery.reject()
    delivery.ack()
    assert drain(subscription) == [b"x"]


def test_settling_after_the_connection_was_lost_has_no_effect(bus_factory: Connect) -> None:
    bus = bus_factory()
    bus.publish([command(b"x")])
    delivery = take(bus.consume("train"))
    bus.close()
    delivery.ack()
    delivery.reject()
    again = take(bus_factory().consume("train"))
    assert (again.body, again.redelivered) == (b"x", True)


# ------------------------------------------------------------------------------------ cancel, close


def test_a_cancelled_subscription_gives_back_what_it_prefetched(bus_factory: Connect) -> None:
    bus = bus_factory()
    bus.publish([command(str(i).encode()) for i in range(5)])
    subscription = bus.consume("train", prefetch=3)
    handed_out = take(subscription)
    eventually(lambda: bus.depth("train") == 2)
    subscription.cancel()
    assert is_quiet(subscription)
    other = bus_factory().consume("train", prefetch=5)
    rest = [take(other) for _ in range(4)]
    assert [d.body for d in rest] == [b"1", b"2", b"3", b"4"]
    assert [d.redelivered for d in rest] == [True, True, False, False]
    handed_out.ack()
    subscription.cancel()  # twice is fine
    assert is_quiet(other)


def test_a_lost_consumer_gives_back_everything_unsettled(bus_factory: Connect) -> None:
    bus, other = bus_factory(), bus_factory()
    bus.publish([command(str(i).encode()) for i in range(4)])
    subscription = bus.consume("train", prefetch=3)
    take(subscription).ack()
    take(subscription)
    bus.close()
    waiting = other.consume("train", prefetch=4)
    rest = [take(waiting) for _ in range(3)]
    assert [d.body for d in rest] == [b"1", b"2", b"3"]
    assert rest[0].redelivered
    assert rest[1].redelivered


def test_what_a_cancelled_consumer_had_not_settled_outlives_it(bus_factory: Connect) -> None:
    bus = bus_factory()
    bus.publish([command(b"x")])
    subscription = bus.consume("train")
    take(subscription)
    subscription.cancel()
    bus.close()
    assert take(bus_factory().consume("train")).redelivered


@pytest.mark.parametrize("end", ["cancel", "close"])
def test_ending_wakes_whoever_waits(bus_factory: Connect, end: str) -> None:
    bus = bus_factory()
    subscription = bus.consume("train")
    got: list[object] = []
    waiting = threading.Thread(target=lambda: got.append(subscription.next()))
    waiting.start()
    time.sleep(0.1)
    if end == "cancel":
        subscription.cancel()
    else:
        bus.close()
    waiting.join(PROMPT)
    assert got == [None]
    assert subscription.next() is None


def test_a_closed_bus_refuses_everything(bus_factory: Connect) -> None:
    bus = bus_factory()
    bus.close()
    bus.close()
    for call in (
        lambda: bus.publish([command(b"x")]),
        lambda: bus.consume("train"),
        lambda: bus.depth("train"),
        lambda: bus.bind("listener", "#"),
    ):
        with pytest.raises(BusError):
            call()


def test_closing_one_connection_leaves_the_others(bus_factory: Connect) -> None:
    one, two = bus_factory(), bus_factory()
    subscription = two.consume("train")
    one.close()
    two.publish([command(b"x")])
    assert drain(subscription) == [b"x"]


def test_depth_counts_what_is_ready(bus: Bus) -> None:
    assert bus.depth("train") == 0
    bus.publish([command(b"x") for _ in range(3)])
    eventually(lambda: bus.depth("train") == 3)
    subscription = bus.consume("train", prefetch=1)
    eventually(lambda: bus.depth("train") == 2)
    take(subscription).ack()
    eventually(lambda: bus.depth("train") == 1)


# ------------------------------------------------------------------------------------------- races


def consumers(
    count: int,
    connect: Connect,
    bodies: list[bytes],
    handle: Callable[[Delivery], None],
    is_complete: Callable[[], bool],
) -> None:
    """Publish `bodies` to `count` waiting consumers, each on a connection of its own, and run them
    until all is complete and nothing comes any more."""
    publisher = connect()
    ready = threading.Barrier(count, lambda: publisher.publish([command(b) for b in bodies]))

    def consume() -> None:
        subscription = connect().consume("train", prefetch=3)
        ready.wait(PROMPT)
        deadline = time.monotonic() + PROMPT
        while time.monotonic() < deadline:
            delivery = subscription.next(2 * quiet(subscription))
            if delivery is not None:
                handle(delivery)
            elif is_complete():
                return

    threads = [threading.Thread(target=consume) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def test_racing_consumers_share_a_queue_without_doubles(bus_factory: Connect) -> None:
    bodies = [str(i).encode() for i in range(400)]
    seen: Counter[bytes] = Counter()
    workers: Counter[str] = Counter()
    lock = threading.Lock()

    def handle(delivery: Delivery) -> None:
        with lock:
            seen[delivery.body] += 1
            workers[threading.current_thread().name] += 1
        delivery.ack()

    consumers(8, bus_factory, bodies, handle, lambda: set(seen) == set(bodies))
    assert seen == Counter(bodies)
    assert len(workers) == 8


def test_nothing_is_lost_when_consumers_keep_rejecting(bus_factory: Connect) -> None:
    bodies = [str(i).encode() for i in range(200)]
    done: Counter[bytes] = Counter()
    chance, lock = random.Random(3), threading.Lock()

    def handle(delivery: Delivery) -> None:
        with lock:
            fails = chance.random() < 0.4
            done[delivery.body] += not fails
        if fails:
            delivery.reject()
        else:
            delivery.ack()

    consumers(6, bus_factory, bodies, handle, lambda: sum(done.values()) >= len(bodies))
    assert done == Counter(bodies)


def test_publishers_do_not_disturb_one_another(bus_factory: Connect) -> None:
    def publish(name: int) -> None:
        bus = bus_factory()
        for i in range(50):
            bus.publish([command(f"{name} {i}".encode())])

    threads = [threading.Thread(target=publish, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    subscription, got = bus_factory().consume("train", prefetch=10), list[bytes]()
    while len(got) < 300:
        delivery = take(subscription)
        got.append(delivery.body)
        delivery.ack()
    got += drain(subscription)
    for thread in threads:
        thread.join(PROMPT)
    assert len(got) == 300
    for name in range(6):
        mine = [int(body.split()[1]) for body in got if body.startswith(f"{name} ".encode())]
        assert mine == list(range(50))


def test_a_bus_with_faults_still_delivers_everything(bus_factory: Connect) -> None:
    bodies = [str(i).encode() for i in range(200)]
    bus = FaultyBus(bus_factory(), seed=5)
    bus.publish([command(body) for body in bodies])
    subscription, got = bus.consume("train"), list[bytes]()
    while not set(bodies) <= set(got):
        delivery = take(subscription)
        got.append(delivery.body)
        delivery.ack()
    got += drain(subscription)
    assert set(got) == set(bodies)
    assert len(got) > len(bodies)
    assert got != sorted(got, key=int)
