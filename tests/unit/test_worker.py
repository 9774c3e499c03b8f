"""The worker runtime on the embedded bus and store, whole or with outages."""

from __future__ import annotations

import errno
import io
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import structlog

from dpstream.shared import messages as m
from dpstream.shared.bus.memory import Broker, InProcessBus
from dpstream.shared.codec import MAX_BODY, decode, encode, queue_of
from dpstream.shared.errors import (
    DigestMismatch,
    EngineCrashed,
    EngineError,
    NotFound,
    Permanent,
    StoreError,
    Temporary,
)
from dpstream.shared.logs import configure
from dpstream.shared.ports import Bus, Outgoing, Store
from dpstream.shared.runtime.context import Context
from dpstream.shared.runtime.exit_limits import ExitLimits
from dpstream.shared.runtime.worker import Worker, claim_uri
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import FrameRef, Ref, Rejected
from tests.support.faulty_adapters import FaultyBus, FlakyBus, FlakyStore, first
from tests.unit.test_logs import lines, out

__all__ = ["out"]

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


class Journal:
    """Adapters around adapters that write down, in order, what a worker does."""

    def __init__(self, bus: Bus, store: Store) -> None:
        self.bus, self.store = bus, store
        self.entries: list[str] = []

    def publish(self, messages: Sequence[Outgoing]) -> None:
        self.bus.publish(messages)
        self.entries += [json.loads(message.body)["type"] for message in messages]

    def create(self, key: str, data: bytes) -> bool:
        made = self.store.create(key, data)
        self.entries.append(f"create {key}: {made}")
        return made

    def consume(self, queue: str, prefetch: int = 1) -> Any:
        self.entries.append(f"consume {prefetch}")
        return JournalSubscription(self, self.bus.consume(queue, prefetch))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store if hasattr(self.store, name) else self.bus, name)


class JournalSubscription:
    def __init__(self, journal: Journal, subscription: Any) -> None:
        self.journal, self.subscription = journal, subscription

    @property
    def open(self) -> bool:
        return self.subscription.open

    def next(self, timeout: float | None = None) -> Any:
        delivery = self.subscription.next(timeout)
        return None if delivery is None else JournalDelivery(self.journal, delivery)

    def cancel(self) -> None:
        self.subscription.cancel()
        self.journal.entries.append("cancel")


class JournalDelivery:
    def __init__(self, journal: Journal, delivery: Any) -> None:
        self.journal, self.delivery, self.body = journal, delivery, delivery.body

    def ack(self) -> None:
        self.delivery.ack()
        self.journal.entries.append("ack")

    def reject(self) -> None:
        self.delivery.reject()
        self.journal.entries.append("reject")


@dataclass
class Shop:
    """A broker, a store, workers in threads, and an ear on everything they say."""

    folder: Path
    broker: Broker = field(default_factory=Broker)
    running: list[tuple[Worker[Any], threading.Thread]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = FolderStore(self.folder / "store")
        self.bus = InProcessBus(self.broker)
        self.ear = self.bus.consume("coordinator", prefetch=10**6)

    def send(self, *commands: m.Command) -> None:
        self.bus.publish([Outgoing(encode(c), queue=queue_of(c)) for c in commands])

    def hear(self) -> Any:
        """The next event, heartbeats included."""
        delivery = self.ear.next(PROMPT)
        assert delivery is not None, "no event"
        return decode(delivery.body)

    def hear_types(self, count: int) -> list[type[m.Message]]:
        return [type(self.hear()) for _ in range(count)]

    def silent(self, seconds: float = 0.2) -> bool:
        return self.ear.next(seconds) is None

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
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    monkeypatch.setattr("dpstream.shared.runtime.worker.IDLE_SECONDS", 0.02)  # they stop sooner
    shop = Shop(tmp_path)
    yield shop
    shop.stop()


# ------------------------------------------------------------------------------ the order of things


def test_claim_then_acknowledge_then_work(shop: Shop) -> None:
    journal = Journal(InProcessBus(shop.broker), shop.store)

    def handler(resources: Any, command: m.Label, context: Context) -> m.LabelsDone:
        journal.entries.append("work")
        return succeed(resources, command, context)

    shop.send(label())
    shop.worker(handler, bus=journal, store=journal)
    claimed, done = shop.hear(), shop.hear()
    assert journal.entries[:7] == [
        "consume 1",
        "create campaigns/methane/claims/t1/1: True",
        "task-claimed/1",
        "cancel",
        "ack",
        "work",
        "labels-done/1",
    ]
    assert isinstance(claimed, m.TaskClaimed)
    assert (claimed.task, claimed.attempt, claimed.worker) == ("t1", 1, "worker-0")
    assert (claimed.campaign, claimed.cause) == ("methane", "command-t1-1")
    assert isinstance(done, m.LabelsDone)
    assert (done.task, done.attempt, done.cause) == ("t1", 1, "command-t1-1")
    assert decode(shop.store.get(claim_uri("methane", "t1", 1))) == claimed


def test_a_busy_worker_holds_no_second_delivery(shop: Shop) -> None:
    working, go_on = threading.Event(), threading.Event()

    def handler(resources: Any, command: m.Label, context: Context) -> m.LabelsDone:
        working.set()
        assert go_on.wait(PROMPT)
        return succeed(resources, command, context)

    shop.send(label("t1"))
    shop.worker(handler)
    assert working.wait(PROMPT)
    shop.send(label("t2"))
    assert shop.bus.depth("label.toy") == 1
    other = shop.bus.consume("label.toy").next(PROMPT)
    assert other is not None
    assert not other.redelivered
    go_on.set()
    other.ack()
    assert shop.hear_types(2) == [m.TaskClaimed, m.LabelsDone]


def test_one_worker_does_task_after_task(shop: Shop) -> None:
    shop.send(*(label(f"t{n}") for n in range(5)))
    shop.worker()
    events = [shop.hear() for _ in range(10)]
    assert [e.task for e in events if isinstance(e, m.LabelsDone)] == [f"t{n}" for n in range(5)]


def test_seconds_worked_are_reported(shop: Shop) -> None:
    def handler(resources: Any, command: m.Label, context: Context) -> m.LabelsDone:
        time.sleep(0.1)
        return succeed(resources, command, context)

    shop.send(label())
    shop.worker(handler)
    shop.hear()
    assert 0.1 <= shop.hear().seconds < 5


def test_the_scratch_folder_is_private_and_removed(shop: Shop) -> None:
    seen: list[Path] = []

    def handler(resources: Any, command: m.Label, context: Context) -> m.LabelsDone:
        assert list(context.scratch.iterdir()) == []
        (context.scratch / "wavefunction").write_bytes(b"x")
        seen.append(context.scratch)
        return succeed(resources, command, context)

    shop.send(label("t1"), label("t1", attempt=2))
    shop.worker(handler)
    assert shop.hear_types(4)[1::2] == [m.LabelsDone, m.LabelsDone]
    assert len(set(seen)) == 2
    assert not any(path.exists() for path in seen)


# -------------------------------------------------------------------------------- who has the claim


def test_a_second_delivery_is_not_worked_and_the_winner_is_named_again(shop: Shop) -> None:
    worked: list[str] = []

    def handler(resources: Any, command: m.Label, context: Context) -> m.LabelsDone:
        worked.append(command.task)
        return succeed(resources, command, context)

    shop.send(label())
    shop.worker(handler)
    claimed, _ = shop.hear(), shop.hear()
    shop.send(label())
    assert shop.hear() == claimed
    assert shop.silent()
    assert worked == ["t1"]
    assert shop.bus.depth("label.toy") == 0


def test_many_workers_and_a_bad_bus_do_every_task_once(shop: Shop) -> None:
    worked: list[str] = []

    def handler(resources: Any, command: m.Label, context: Context) -> m.LabelsDone:
        worked.append(command.task)
        return succeed(resources, command, context)

    tasks = [f"t{n}" for n in range(30)]
    bad = FaultyBus(InProcessBus(shop.broker), seed=1, double=0.5)
    bad.publish([Outgoing(encode(label(task)), queue="label.toy") for task in tasks])
    for seed in range(4):
        shop.worker(handler, bus=FaultyBus(InProcessBus(shop.broker), seed=seed, double=0.0))
    done: set[str] = set()
    while len(done) < len(tasks):
        event = shop.hear()
        if isinstance(event, m.LabelsDone):
            done.add(event.task)
    assert sorted(worked) == sorted(tasks)


def test_a_dead_owner_is_named_and_nobody_else_works(shop: Shop) -> None:
    # The first owner created the claim and died before it said so, and before acknowledging.
    dead = m.TaskClaimed(
        id="dead", campaign="methane", time=1.0, task="t1", attempt=1, worker="dead"
    )
    shop.store.create(claim_uri("methane", "t1", 1), encode(dead))
    shop.send(label())
    shop.worker()
    assert shop.hear() == dead
    assert shop.silent()
    shop.send(label(attempt=2))  # the coordinator's next issue, after the lease
    assert shop.hear_types(2) == [m.TaskClaimed, m.LabelsDone]


@pytest.mark.parametrize(
    "body",
    [
        encode(m.TaskRevoked(id="r", campaign="methane", time=1.0, task="t1", attempt=1)),
        b"{}",
        b"\xff\x00 no JSON",
        b"",
    ],
    ids=["revoked", "no-message", "garbage", "empty"],
)
def test_a_task_whose_claim_is_no_workers_is_dropped(shop: Shop, body: bytes) -> None:
    shop.store.create(claim_uri("methane", "t1", 1), body)
    shop.send(label("t1"), label("t2"))
    shop.worker()
    events = [shop.hear(), shop.hear()]
    assert [(type(e), e.task) for e in events] == [(m.TaskClaimed, "t2"), (m.LabelsDone, "t2")]
    assert shop.silent()
    assert shop.bus.depth("label.toy") == 0


def test_a_lost_answer_to_the_claim_is_read_back(shop: Shop) -> None:
    shop.send(label())
    shop.worker(store=FlakyStore(shop.store, first(2, "created")))
    assert shop.hear_types(2) == [m.TaskClaimed, m.LabelsDone]


# ------------------------------------------------------------------------------------ how tasks end


def ending(shop: Shop, error: Exception) -> Any:
    def handler(resources: Any, command: m.Label, context: Context) -> m.LabelsDone:
        raise error

    shop.send(label())
    shop.worker(handler)
    assert isinstance(shop.hear(), m.TaskClaimed)
    event = shop.hear()
    assert (event.task, event.attempt) == ("t1", 1)
    assert shop.alive()
    return event


def test_a_temporary_error_releases_with_its_delay(shop: Shop) -> None:
    event = ending(shop, Temporary("licence server busy", delay=42.0))
    assert isinstance(event, m.TaskReleased)
    assert (event.reason, event.delay) == ("licence server busy", 42.0)


def test_a_store_outage_releases(shop: Shop) -> None:
    event = ending(shop, StoreError("disk full"))
    assert isinstance(event, m.TaskReleased)
    assert (event.reason, event.delay) == ("disk full", 5.0)


def test_a_full_disk_releases(shop: Shop) -> None:
    event = ending(shop, OSError(errno.ENOSPC, "No space left on device", "/scratch/x"))
    assert isinstance(event, m.TaskReleased)
    assert (event.reason, event.delay) == ("this worker's machine: No space left on device", 60.0)


def test_a_scratch_that_cannot_be_made_ends_the_task_not_the_worker(shop: Shop) -> None:
    (shop.folder / "worker-0").write_bytes(b"a file where the folder should be")
    shop.send(label())
    shop.worker()
    assert shop.hear_types(2) == [m.TaskClaimed, m.TaskFailed]
    assert shop.alive()


def test_a_permanent_error_fails_for_good(shop: Shop) -> None:
    event = ending(shop, Permanent("no such element: Xx"))
    assert isinstance(event, m.TaskFailed)
    assert event.permanent
    assert event.reason == "Permanent: no such element: Xx"


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("division by zero"),
        EngineCrashed("died"),
        NotFound("an input is gone"),
        DigestMismatch("an input is not what it was"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_a_crash_counts_and_keeps_its_trace(shop: Shop, error: Exception) -> None:
    event = ending(shop, error)
    assert isinstance(event, m.TaskFailed)
    assert not event.permanent
    assert event.reason.startswith(type(error).__name__)
    assert "raise error" in event.trace


def test_an_engines_own_trace_is_the_one_kept(shop: Shop) -> None:
    event = ending(shop, EngineError("lost atoms", "RuntimeError", "Traceback: in lammps"))
    assert isinstance(event, m.TaskFailed)
    assert event.trace == "Traceback: in lammps"


@pytest.mark.parametrize("text", ["x" * 10**6, "\udc80 no unicode", '"\x00' * 10**5])
@pytest.mark.parametrize("kind", [Temporary, Permanent, RuntimeError])
def test_what_an_error_says_never_breaks_the_worker(
    shop: Shop, kind: type[Exception], text: str
) -> None:
    event = ending(shop, kind(text))
    assert len(encode(event)) < MAX_BODY


def test_a_result_too_long_for_the_wire_fails_its_task(shop: Shop) -> None:
    def handler(resources: Any, command: m.Label, context: Context) -> m.LabelsDone:
        rejected = Rejected(key="0" * 32, rule="unconverged", detail="x" * 70_000)
        return m.LabelsDone(**context.envelope(), rejected=(rejected,))

    shop.send(label())
    shop.worker(handler)
    shop.hear()
    event = shop.hear()
    assert isinstance(event, m.TaskFailed)
    assert "above 65536" in event.reason


def test_a_handler_that_returns_nothing_fails_its_task(shop: Shop) -> None:
    shop.send(label())
    shop.worker(lambda resources, command, context: None)
    assert shop.hear_types(2) == [m.TaskClaimed, m.TaskFailed]


# ----------------------------------------------------------------------------------------- stopping


def patient(resources: Any, command: m.Label, context: Context) -> m.LabelsDone:
    """Works until it is stopped."""
    context.progress("scf cycle 7")
    deadline = time.monotonic() + PROMPT
    while time.monotonic() < deadline:
        context.check()
        time.sleep(0.01)
    raise AssertionError("never stopped")


def test_a_stop_object_ends_the_task(shop: Shop) -> None:
    shop.send(label())
    shop.worker(patient, heartbeat_seconds=0.05)
    assert isinstance(shop.hear(), m.TaskClaimed)
    beat = shop.hear()
    assert isinstance(beat, m.TaskHeartbeat)
    assert (beat.worker, beat.progress) == ("worker-0", "scf cycle 7")
    shop.store.create(claim_uri("methane", "t1", 1) + ".stop", b"")
    event = shop.hear()
    while isinstance(event, m.TaskHeartbeat):
        event = shop.hear()
    assert isinstance(event, m.TaskReleased)
    assert event.reason == "cancelled"
    assert shop.silent(0.3), "a heartbeat after the end"
    assert shop.alive()


def test_the_stop_object_of_another_attempt_means_nothing(shop: Shop) -> None:
    shop.store.create(claim_uri("methane", "t1", 1) + ".stop", b"")
    shop.send(label(attempt=2))
    shop.worker(patient, heartbeat_seconds=0.02)
    assert shop.hear_types(6) == [m.TaskClaimed] + [m.TaskHeartbeat] * 5


def test_a_worker_asked_to_go_releases_its_task_and_ends(shop: Shop) -> None:
    shop.send(label())
    worker = shop.worker(patient)
    assert isinstance(shop.hear(), m.TaskClaimed)
    worker.stopping.set()
    event = shop.hear()
    assert isinstance(event, m.TaskReleased)
    assert (event.reason, event.delay) == ("the worker is stopping", 0.0)
    shop.running[0][1].join(PROMPT)
    assert not shop.alive()


def test_an_idle_worker_asked_to_go_takes_nothing_with_it(shop: Shop) -> None:
    worker = shop.worker()
    time.sleep(0.1)
    worker.stopping.set()
    shop.stop()
    shop.send(label())
    assert shop.bus.depth("label.toy") == 1


def test_a_broken_heartbeat_does_not_stop_the_work(shop: Shop) -> None:
    def handler(resources: Any, command: m.Label, context: Context) -> m.LabelsDone:
        time.sleep(0.3)
        return succeed(resources, command, context)

    shop.send(label())
    store = FlakyStore(shop.store, lambda operation: operation == "exists")
    shop.worker(handler, store=store, heartbeat_seconds=0.05)
    types = shop.hear_types(4)
    assert types[:3] == [m.TaskClaimed, m.TaskHeartbeat, m.TaskHeartbeat]


# ---------------------------------------------------------------------- several queues, and shifts


def test_a_worker_of_several_queues_serves_each_in_turn(shop: Shop) -> None:
    commands = [label(f"t{n}").model_copy(update={"capability": c}) for n, c in enumerate("abbc")]
    shop.send(*commands)
    shop.worker(others=("label.a", "label.b", "label.c"))
    done = [e.task for e in (shop.hear() for _ in range(8)) if isinstance(e, m.LabelsDone)]
    assert done[:3] == ["t0", "t1", "t3"], "c has not waited until b was empty"
    assert done[3] == "t2"


def test_a_queue_that_is_not_declared_keeps_no_other_waiting(shop: Shop) -> None:
    shop.worker(others=("nowhere",))
    for number in range(3):
        shop.send(label(f"t{number}"))
        assert shop.hear_types(2) == [m.TaskClaimed, m.LabelsDone]


def test_nobody_listens_at_an_empty_queue_while_another_holds_work(shop: Shop) -> None:
    shop.send(*(label(f"t{n}").model_copy(update={"capability": "c"}) for n in range(3)))
    journal = Journal(InProcessBus(shop.broker), shop.store)
    shop.worker(bus=journal, store=journal, others=("label.a", "label.b", "label.c"))
    shop.hear_types(6)
    entries = list(journal.entries)
    first, last = entries.index("consume 1"), len(entries) - entries[::-1].index("labels-done/1")
    assert entries[first:last].count("consume 1") == 3


def test_a_shift_ends_after_so_many_tasks(shop: Shop) -> None:
    shop.send(label("t1"), label("t1"), label("t2"), label("t3"))  # a lost claim does not count
    shop.worker(limits=ExitLimits(max_tasks=2))
    assert shop.hear_types(5).count(m.LabelsDone) == 2
    shop.running[0][1].join(PROMPT)
    assert not shop.alive()
    assert shop.silent()
    left = shop.bus.consume("label.toy").next(PROMPT)
    assert left is not None
    assert not left.redelivered, "looked at, though there was no room for it"


def test_workers_of_one_shift_take_no_task_too_many(shop: Shop) -> None:
    limits = ExitLimits(max_tasks=3)
    for _ in range(3):
        shop.worker(limits=limits)
    shop.send(*(label(f"t{n}") for n in range(6)))
    for _, thread in shop.running:
        thread.join(PROMPT)
    assert not any(thread.is_alive() for _, thread in shop.running)
    assert shop.hear_types(6).count(m.LabelsDone) == 3
    assert shop.silent()
    assert shop.bus.depth("label.toy") == 3


def test_an_idle_worker_goes_home(shop: Shop) -> None:
    shop.send(label())
    shop.worker(limits=ExitLimits(idle_exit=0.2))
    assert shop.hear_types(2) == [m.TaskClaimed, m.LabelsDone]
    shop.running[0][1].join(PROMPT)
    assert not shop.alive()


def test_lines_about_a_task_name_it(shop: Shop, out: io.StringIO) -> None:
    def handler(resources: Any, command: m.Label, context: Context) -> m.LabelsDone:
        structlog.get_logger().info("from the handler")
        time.sleep(0.1)
        return succeed(resources, command, context)

    configure(form="json", stream=out, service="labeler")
    shop.send(label("t1", attempt=2))
    store = FlakyStore(shop.store, lambda operation: operation == "exists")
    shop.worker(handler, store=store, heartbeat_seconds=0.03)
    while not isinstance(shop.hear(), m.LabelsDone):
        pass
    shop.stop()
    said = lines(out)
    events = {line["event"] for line in said}
    assert {
        "task started",
        "from the handler",
        "stop object could not be checked",
        "task ended",
    } <= events
    expected = ("labeler", "worker-0", "methane", "t1", 2)
    keys = ("service", "worker", "campaign", "task", "attempt")
    for line in said:
        assert tuple(line[key] for key in keys) == expected


def test_a_password_in_an_error_is_not_published(shop: Shop) -> None:
    event = ending(shop, RuntimeError("no answer from amqp://user:hunter2@host"))
    assert isinstance(event, m.TaskFailed)
    assert "hunter2" not in encode(event).decode()
    assert "amqp://***@host" in event.reason


def test_a_password_at_the_cut_is_not_published_in_part(shop: Shop) -> None:
    event = ending(shop, RuntimeError("x" * 1970 + " amqp://user:hunter2hunter2hunter2@host"))
    assert "hunter" not in encode(event).decode()


# --------------------------------------------------------------------------- what is not understood


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00\xff",
        b"{}",
        b'{"type": "label/2"}',
        b"[" * 60_000,
        encode(label()).ljust(MAX_BODY + 1),
        encode(label()).replace(b'"t1"', b'"../../etc"'),
        encode(m.TaskRevoked(id="r", campaign="methane", time=1.0, task="t1", attempt=1)),
        encode(
            m.Verify(
                id="v",
                campaign="methane",
                time=0.0,
                task="v1",
                title="verify",
                max_seconds=1.0,
                spec=SPEC,
                model=SPEC,
                type_map=("C",),
                structure=FrameRef(batch=SPEC, index=0, key="0" * 32),
                seed=1,
            )
        ),
    ],
    ids=[
        "empty",
        "binary",
        "object",
        "future",
        "deep",
        "huge",
        "traversal",
        "event",
        "other-command",
    ],
)
def test_what_is_not_understood_is_buried_and_never_blocks(shop: Shop, body: bytes) -> None:
    shop.bus.publish([Outgoing(body, queue="label.toy")])
    shop.send(label())
    shop.worker(store=FlakyStore(shop.store, first(1, "create")))
    assert shop.hear_types(2) == [m.TaskClaimed, m.LabelsDone]
    digest = Ref.to("x", body).sha256
    assert list(shop.store.list("deadletters/")) == [f"deadletters/{digest}"]
    assert shop.store.get(f"deadletters/{digest}") == body
    assert shop.bus.depth("label.toy") == 0


# ------------------------------------------------------------------------------------------ outages


@pytest.mark.parametrize("operation", ["publish", "published", "consume"])
def test_a_worker_outlives_an_outage_of_the_bus(shop: Shop, operation: str) -> None:
    worked: list[str] = []

    def handler(resources: Any, command: m.Label, context: Context) -> m.LabelsDone:
        worked.append(command.task)
        return succeed(resources, command, context)

    shop.send(label("t1"), label("t2"))
    shop.worker(handler, bus=FlakyBus(InProcessBus(shop.broker), first(3, operation)))
    done: list[str] = []
    while "t2" not in done:
        event = shop.hear()
        done += [event.task] if isinstance(event, m.LabelsDone) else []
    assert worked == ["t1", "t2"]
    assert sorted(set(done)) == ["t1", "t2"]


@pytest.mark.parametrize("operation", ["create", "created", "get"])
def test_a_worker_outlives_an_outage_of_the_store(shop: Shop, operation: str) -> None:
    shop.send(label("t1"), label("t1"), label("t2"))
    shop.worker(store=FlakyStore(shop.store, first(3, operation)))
    types = shop.hear_types(5)
    assert types == [m.TaskClaimed, m.LabelsDone, m.TaskClaimed, m.TaskClaimed, m.LabelsDone]


def test_a_result_is_published_when_the_bus_is_back(shop: Shop) -> None:
    down = threading.Event()

    def handler(resources: Any, command: m.Label, context: Context) -> m.LabelsDone:
        down.set()
        threading.Timer(0.5, down.clear).start()
        return succeed(resources, command, context)

    shop.send(label())
    shop.worker(handler, bus=FlakyBus(InProcessBus(shop.broker), lambda operation: down.is_set()))
    assert shop.hear_types(2) == [m.TaskClaimed, m.LabelsDone]


def test_a_worker_asked_to_go_during_an_outage_goes(shop: Shop) -> None:
    shop.send(label())
    worker = shop.worker(bus=FlakyBus(InProcessBus(shop.broker), lambda o: o == "publish"))
    while not shop.store.exists(claim_uri("methane", "t1", 1)):
        time.sleep(0.01)
    worker.stopping.set()
    shop.stop()
    delivery = shop.bus.consume("label.toy").next(PROMPT)
    assert delivery is not None
    assert delivery.redelivered


def test_a_worker_whose_bus_was_closed_waits_without_spinning(shop: Shop) -> None:
    bus = InProcessBus(shop.broker)
    asked: list[str] = []

    def count(operation: str) -> bool:
        asked.append(operation)
        return False

    shop.worker(bus=FlakyBus(bus, count))
    time.sleep(0.1)
    bus.close()
    time.sleep(0.5)
    assert shop.alive()
    assert len(asked) < 50


# -------------------------------------------------------------------------- what handlers are given


@pytest.fixture
def context(shop: Shop) -> Context:
    bus = InProcessBus(shop.broker)
    return Context(shop.store, bus, label(), shop.folder, "worker", threading.Event())


def test_results_are_stored_under_their_attempt_and_never_over_another(context: Context) -> None:
    ref = context.put("lcurve.out", b"1 2 3")
    assert ref.uri == "campaigns/methane/results/t1/1/lcurve.out"
    assert context.fetch(ref) == b"1 2 3"
    assert context.put("lcurve.out", b"1 2 3") == ref
    with pytest.raises(DigestMismatch):
        context.put("lcurve.out", b"4 5 6")
    assert context.fetch(ref) == b"1 2 3"


def test_digests_are_checked(context: Context, tmp_path: Path) -> None:
    ref = context.put("model.pb", b"weights")
    assert context.download(ref, tmp_path / "a" / "model.pb").read_bytes() == b"weights"
    context.store.put(ref.uri, b"weightz")
    with pytest.raises(DigestMismatch, match=r"model\.pb"):
        context.fetch(ref)
    with pytest.raises(DigestMismatch):
        context.download(ref, tmp_path / "b")
    assert not (tmp_path / "b").exists()
    with pytest.raises(NotFound):
        context.fetch(Ref.to("absent", b""))


@pytest.mark.slow
def test_outages_are_waited_out(context: Context) -> None:
    context.store = FlakyStore(context.store, first(2, "get", "create", "created"))
    assert context.fetch(context.put("x", b"1")) == b"1"


def test_an_outage_passes_on_when_the_worker_must_go(context: Context) -> None:
    context.store = FlakyStore(context.store, lambda operation: True)
    context.stopping.set()
    with pytest.raises(StoreError, match="outage"):
        context.put("x", b"1")
