"""The worker runtime on the embedded bus and store, whole or with outages."""

from __future__ import annotations

import errno
import io
import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import structlog

from dpstream.shared import messages as m
from dpstream.shared.bus.memory import InProcessBus
from dpstream.shared.codec import MAX_BODY, decode, encode
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
from dpstream.shared.runtime.worker import claim_uri
from dpstream.shared.store.dead_letters import MOST_BYTES
from dpstream.shared.values import FrameRef, Ref, Rejected
from tests.support.adapters.dead_letters import buried_bodies
from tests.support.adapters.faulty_adapters import FaultyBus, FlakyBus, FlakyStore, first
from tests.support.log_lines import log_lines
from tests.support.workers.worker import PROMPT, SPEC, WorkerHarness, label, patient, succeed


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


# ------------------------------------------------------------------------------ the order of things


def test_claim_then_acknowledge_then_work(workers: WorkerHarness) -> None:
    journal = Journal(InProcessBus(workers.broker), workers.store)

    def handler(resources: Any, command: m.Label, context: Context) -> m.LabelsDone:
        journal.entries.append("work")
        return succeed(resources, command, context)

    workers.send(label())
    workers.worker(handler, bus=journal, store=journal)
    claimed, done = workers.next_event(), workers.next_event()
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
    assert decode(workers.store.get(claim_uri("methane", "t1", 1))) == claimed


def test_a_busy_worker_holds_no_second_delivery(workers: WorkerHarness) -> None:
    working, go_on = threading.Event(), threading.Event()

    def handler(resources: Any, command: m.Label, context: Context) -> m.LabelsDone:
        working.set()
        assert go_on.wait(PROMPT)
        return succeed(resources, command, context)

    workers.send(label("t1"))
    workers.worker(handler)
    assert working.wait(PROMPT)
    workers.send(label("t2"))
    assert workers.bus.depth("label.toy") == 1
    other = workers.bus.consume("label.toy").next(PROMPT)
    assert other is not None
    assert not other.redelivered
    go_on.set()
    other.ack()
    assert workers.next_types(2) == [m.TaskClaimed, m.LabelsDone]


def test_one_worker_does_task_after_task(workers: WorkerHarness) -> None:
    workers.send(*(label(f"t{n}") for n in range(5)))
    workers.worker()
    events = [workers.next_event() for _ in range(10)]
    assert [e.task for e in events if isinstance(e, m.LabelsDone)] == [f"t{n}" for n in range(5)]


def test_seconds_worked_are_reported(workers: WorkerHarness) -> None:
    def handler(resources: Any, command: m.Label, context: Context) -> m.LabelsDone:
        time.sleep(0.1)
        return succeed(resources, command, context)

    workers.send(label())
    workers.worker(handler)
    workers.next_event()
    assert 0.1 <= workers.next_event().seconds < 5


def test_the_scratch_folder_is_private_and_removed(workers: WorkerHarness) -> None:
    seen: list[Path] = []

    def handler(resources: Any, command: m.Label, context: Context) -> m.LabelsDone:
        assert list(context.scratch.iterdir()) == []
        (context.scratch / "wavefunction").write_bytes(b"x")
        seen.append(context.scratch)
        return succeed(resources, command, context)

    workers.send(label("t1"), label("t1", attempt=2))
    workers.worker(handler)
    assert workers.next_types(4)[1::2] == [m.LabelsDone, m.LabelsDone]
    assert len(set(seen)) == 2
    assert not any(path.exists() for path in seen)


# -------------------------------------------------------------------------------- who has the claim


def test_a_second_delivery_is_not_worked_and_the_winner_is_named_again(
    workers: WorkerHarness,
) -> None:
    worked: list[str] = []

    def handler(resources: Any, command: m.Label, context: Context) -> m.LabelsDone:
        worked.append(command.task)
        return succeed(resources, command, context)

    workers.send(label())
    workers.worker(handler)
    claimed, _ = workers.next_event(), workers.next_event()
    workers.send(label())
    assert workers.next_event() == claimed
    assert workers.no_event()
    assert worked == ["t1"]
    assert workers.bus.depth("label.toy") == 0


def test_many_workers_and_a_bad_bus_do_every_task_once(workers: WorkerHarness) -> None:
    worked: list[str] = []

    def handler(resources: Any, command: m.Label, context: Context) -> m.LabelsDone:
        worked.append(command.task)
        return succeed(resources, command, context)

    tasks = [f"t{n}" for n in range(30)]
    bad = FaultyBus(InProcessBus(workers.broker), seed=1, double=0.5)
    bad.publish([Outgoing(encode(label(task)), queue="label.toy") for task in tasks])
    for seed in range(4):
        workers.worker(handler, bus=FaultyBus(InProcessBus(workers.broker), seed=seed, double=0.0))
    done: set[str] = set()
    while len(done) < len(tasks):
        event = workers.next_event()
        if isinstance(event, m.LabelsDone):
            done.add(event.task)
    assert sorted(worked) == sorted(tasks)


def test_a_dead_owner_is_named_and_nobody_else_works(workers: WorkerHarness) -> None:
    # The first owner created the claim and died before it said so, and before acknowledging.
    dead = m.TaskClaimed(
        id="dead", campaign="methane", time=1.0, task="t1", attempt=1, worker="dead"
    )
    workers.store.create(claim_uri("methane", "t1", 1), encode(dead))
    workers.send(label())
    workers.worker()
    assert workers.next_event() == dead
    assert workers.no_event()
    workers.send(label(attempt=2))  # the coordinator's next issue, after the lease
    assert workers.next_types(2) == [m.TaskClaimed, m.LabelsDone]


def test_a_revoked_task_is_dropped(workers: WorkerHarness) -> None:
    revoked = m.TaskRevoked(id="r", campaign="methane", time=1.0, task="t1", attempt=1)
    workers.store.create(claim_uri("methane", "t1", 1), encode(revoked))
    workers.send(label("t1"), label("t2"))
    workers.worker()
    events = [workers.next_event(), workers.next_event()]
    assert [(type(e), e.task) for e in events] == [(m.TaskClaimed, "t2"), (m.LabelsDone, "t2")]
    assert workers.no_event()
    assert workers.bus.depth("label.toy") == 0


@pytest.mark.parametrize("body", [b"{}", b"\xff\x00 no JSON", b""])
def test_a_task_whose_claim_cannot_be_read_fails_and_is_issued_again(
    workers: WorkerHarness, body: bytes
) -> None:
    workers.store.create(claim_uri("methane", "t1", 1), body)
    workers.send(label("t1"), label("t1"), label("t2"))
    workers.worker()
    failed, again, *others = [workers.next_event() for _ in range(4)]
    assert (failed.task, failed.reason) == ("t1", "the claim of this attempt cannot be read")
    assert again.id == failed.id
    assert not failed.permanent
    assert [type(e) for e in others] == [m.TaskClaimed, m.LabelsDone]
    workers.send(label("t1", attempt=2))
    assert workers.next_types(2) == [m.TaskClaimed, m.LabelsDone]
    assert workers.bus.depth("label.toy") == 0


def test_a_lost_answer_to_the_claim_is_read_back(workers: WorkerHarness) -> None:
    workers.send(label())
    workers.worker(store=FlakyStore(workers.store, first(2, "created")))
    assert workers.next_types(2) == [m.TaskClaimed, m.LabelsDone]


# ------------------------------------------------------------------------------------ how tasks end


def ending(workers: WorkerHarness, error: Exception) -> Any:
    def handler(resources: Any, command: m.Label, context: Context) -> m.LabelsDone:
        raise error

    workers.send(label())
    workers.worker(handler)
    assert isinstance(workers.next_event(), m.TaskClaimed)
    event = workers.next_event()
    assert (event.task, event.attempt) == ("t1", 1)
    assert workers.alive()
    return event


def test_a_temporary_error_releases_with_its_delay(workers: WorkerHarness) -> None:
    event = ending(workers, Temporary("licence server busy", delay=42.0))
    assert isinstance(event, m.TaskReleased)
    assert (event.reason, event.delay) == ("licence server busy", 42.0)


def test_a_store_outage_releases(workers: WorkerHarness) -> None:
    event = ending(workers, StoreError("disk full"))
    assert isinstance(event, m.TaskReleased)
    assert (event.reason, event.delay) == ("disk full", 5.0)


def test_a_full_disk_releases(workers: WorkerHarness) -> None:
    event = ending(workers, OSError(errno.ENOSPC, "No space left on device", "/scratch/x"))
    assert isinstance(event, m.TaskReleased)
    assert (event.reason, event.delay) == ("this worker's machine: No space left on device", 60.0)


def test_a_scratch_that_cannot_be_made_ends_the_task_not_the_worker(workers: WorkerHarness) -> None:
    (workers.folder / "worker-0").write_bytes(b"a file where the folder should be")
    workers.send(label())
    workers.worker()
    assert workers.next_types(2) == [m.TaskClaimed, m.TaskFailed]
    assert workers.alive()


def test_a_permanent_error_fails_for_good(workers: WorkerHarness) -> None:
    event = ending(workers, Permanent("no such element: Xx"))
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
def test_a_crash_counts_and_keeps_its_trace(workers: WorkerHarness, error: Exception) -> None:
    event = ending(workers, error)
    assert isinstance(event, m.TaskFailed)
    assert not event.permanent
    assert event.reason.startswith(type(error).__name__)
    assert "raise error" in event.trace


def test_an_engines_own_trace_is_the_one_kept(workers: WorkerHarness) -> None:
    event = ending(workers, EngineError("lost atoms", "RuntimeError", "Traceback: in lammps"))
    assert isinstance(event, m.TaskFailed)
    assert event.trace == "Traceback: in lammps"


@pytest.mark.parametrize("text", ["x" * 10**6, "\udc80 no unicode", '"\x00' * 10**5])
@pytest.mark.parametrize("kind", [Temporary, Permanent, RuntimeError])
def test_what_an_error_says_never_breaks_the_worker(
    workers: WorkerHarness, kind: type[Exception], text: str
) -> None:
    event = ending(workers, kind(text))
    assert len(encode(event)) < MAX_BODY


def test_a_result_too_long_for_the_wire_fails_its_task(workers: WorkerHarness) -> None:
    def handler(resources: Any, command: m.Label, context: Context) -> m.LabelsDone:
        rejected = Rejected(key="0" * 32, rule="unconverged", detail="x" * 70_000)
        return m.LabelsDone(**context.envelope(), rejected=(rejected,))

    workers.send(label())
    workers.worker(handler)
    workers.next_event()
    event = workers.next_event()
    assert isinstance(event, m.TaskFailed)
    assert "at most 65536 allowed" in event.reason


def test_a_handler_that_returns_nothing_fails_its_task(workers: WorkerHarness) -> None:
    workers.send(label())
    workers.worker(lambda resources, command, context: None)
    assert workers.next_types(2) == [m.TaskClaimed, m.TaskFailed]


# ----------------------------------------------------------------------------------------- stopping


def test_a_stop_object_ends_the_task(workers: WorkerHarness) -> None:
    workers.send(label())
    workers.worker(patient, heartbeat_seconds=0.05)
    assert isinstance(workers.next_event(), m.TaskClaimed)
    beat = workers.next_event()
    assert isinstance(beat, m.TaskHeartbeat)
    assert (beat.worker, beat.progress) == ("worker-0", "scf cycle 7")
    workers.store.create(claim_uri("methane", "t1", 1) + ".stop", b"")
    event = workers.next_event()
    while isinstance(event, m.TaskHeartbeat):
        event = workers.next_event()
    assert isinstance(event, m.TaskReleased)
    assert event.reason == "cancelled"
    assert workers.no_event(0.3), "a heartbeat after the end"
    assert workers.alive()


def test_the_stop_object_of_another_attempt_means_nothing(workers: WorkerHarness) -> None:
    workers.store.create(claim_uri("methane", "t1", 1) + ".stop", b"")
    workers.send(label(attempt=2))
    workers.worker(patient, heartbeat_seconds=0.02)
    assert workers.next_types(6) == [m.TaskClaimed] + [m.TaskHeartbeat] * 5


def test_a_worker_asked_to_go_releases_its_task_and_ends(workers: WorkerHarness) -> None:
    workers.send(label())
    worker = workers.worker(patient)
    assert isinstance(workers.next_event(), m.TaskClaimed)
    worker.stopping.set()
    event = workers.next_event()
    assert isinstance(event, m.TaskReleased)
    assert (event.reason, event.delay) == ("the worker is stopping", 0.0)
    workers.running[0][1].join(PROMPT)
    assert not workers.alive()


def test_an_idle_worker_asked_to_go_takes_nothing_with_it(workers: WorkerHarness) -> None:
    worker = workers.worker()
    time.sleep(0.1)
    worker.stopping.set()
    workers.stop()
    workers.send(label())
    assert workers.bus.depth("label.toy") == 1


def test_a_broken_heartbeat_does_not_stop_the_work(workers: WorkerHarness) -> None:
    def handler(resources: Any, command: m.Label, context: Context) -> m.LabelsDone:
        time.sleep(0.3)
        return succeed(resources, command, context)

    workers.send(label())
    store = FlakyStore(workers.store, lambda operation: operation == "exists")
    workers.worker(handler, store=store, heartbeat_seconds=0.05)
    types = workers.next_types(4)
    assert types[:3] == [m.TaskClaimed, m.TaskHeartbeat, m.TaskHeartbeat]


# ---------------------------------------------------------------------- several queues, and shifts


def test_a_worker_of_several_queues_serves_each_in_turn(workers: WorkerHarness) -> None:
    commands = [label(f"t{n}").model_copy(update={"capability": c}) for n, c in enumerate("abbc")]
    workers.send(*commands)
    workers.worker(others=("label.a", "label.b", "label.c"))
    done = [e.task for e in (workers.next_event() for _ in range(8)) if isinstance(e, m.LabelsDone)]
    assert done[:3] == ["t0", "t1", "t3"], "c has not waited until b was empty"
    assert done[3] == "t2"


def test_a_queue_that_is_not_declared_keeps_no_other_waiting(workers: WorkerHarness) -> None:
    workers.worker(others=("nowhere",))
    for number in range(3):
        workers.send(label(f"t{number}"))
        assert workers.next_types(2) == [m.TaskClaimed, m.LabelsDone]


def test_nobody_listens_at_an_empty_queue_while_another_holds_work(workers: WorkerHarness) -> None:
    workers.send(*(label(f"t{n}").model_copy(update={"capability": "c"}) for n in range(3)))
    journal = Journal(InProcessBus(workers.broker), workers.store)
    workers.worker(bus=journal, store=journal, others=("label.a", "label.b", "label.c"))
    workers.next_types(6)
    entries = list(journal.entries)
    first, last = entries.index("consume 1"), len(entries) - entries[::-1].index("labels-done/1")
    assert entries[first:last].count("consume 1") == 3


def test_a_shift_ends_after_so_many_tasks(workers: WorkerHarness) -> None:
    workers.send(label("t1"), label("t1"), label("t2"), label("t3"))  # a lost claim does not count
    workers.worker(limits=ExitLimits(max_tasks=2))
    assert workers.next_types(5).count(m.LabelsDone) == 2
    workers.running[0][1].join(PROMPT)
    assert not workers.alive()
    assert workers.no_event()
    left = workers.bus.consume("label.toy").next(PROMPT)
    assert left is not None
    assert not left.redelivered, "looked at, though there was no room for it"


def test_workers_of_one_shift_take_no_task_too_many(workers: WorkerHarness) -> None:
    limits = ExitLimits(max_tasks=3)
    for _ in range(3):
        workers.worker(limits=limits)
    workers.send(*(label(f"t{n}") for n in range(6)))
    for _, thread in workers.running:
        thread.join(PROMPT)
    assert not any(thread.is_alive() for _, thread in workers.running)
    assert workers.next_types(6).count(m.LabelsDone) == 3
    assert workers.no_event()
    assert workers.bus.depth("label.toy") == 3


def test_an_idle_worker_goes_home(workers: WorkerHarness) -> None:
    workers.send(label())
    workers.worker(limits=ExitLimits(idle_exit=0.2))
    assert workers.next_types(2) == [m.TaskClaimed, m.LabelsDone]
    workers.running[0][1].join(PROMPT)
    assert not workers.alive()


@pytest.mark.slow
def test_no_task_begins_that_usually_outlasts_the_lifetime(workers: WorkerHarness) -> None:
    def slow(resources: Any, command: m.Label, context: Context) -> m.LabelsDone:
        time.sleep(1.0)
        return succeed(resources, command, context)

    workers.send(label("t1"), label("t2"))
    workers.worker(slow, limits=ExitLimits(lifetime=1.8))  # at least 1.62 s, and 0.6 s are left
    workers.running[0][1].join(PROMPT)
    assert not workers.alive()
    assert workers.next_types(2) == [m.TaskClaimed, m.LabelsDone]
    assert workers.bus.depth("label.toy") == 1


def test_a_worker_past_its_lifetime_takes_no_task(workers: WorkerHarness) -> None:
    workers.worker(limits=ExitLimits(lifetime=0.05))
    workers.running[0][1].join(PROMPT)
    assert not workers.alive()
    assert not ExitLimits(lifetime=0.0).admit()


def test_lines_about_a_task_name_it(workers: WorkerHarness, log_stream: io.StringIO) -> None:
    def handler(resources: Any, command: m.Label, context: Context) -> m.LabelsDone:
        structlog.get_logger().info("from the handler")
        time.sleep(0.1)
        return succeed(resources, command, context)

    configure(form="json", stream=log_stream, service="labeler")
    workers.send(label("t1", attempt=2))
    store = FlakyStore(workers.store, lambda operation: operation == "exists")
    workers.worker(handler, store=store, heartbeat_seconds=0.03)
    while not isinstance(workers.next_event(), m.LabelsDone):
        pass
    workers.stop()
    said = log_lines(log_stream)
    events = {line["event"] for line in said}
    assert {
        "task started",
        "from the handler",
        "cannot check whether the task was cancelled; trying again later",
        "task ended",
    } <= events
    expected = ("labeler", "worker-0", "methane", "t1", 2)
    keys = ("service", "worker", "campaign", "task", "attempt")
    for line in said:
        assert tuple(line[key] for key in keys) == expected


def test_a_password_in_an_error_is_not_published(workers: WorkerHarness) -> None:
    event = ending(workers, RuntimeError("no answer from amqp://user:hunter2@host"))
    assert isinstance(event, m.TaskFailed)
    assert "hunter2" not in encode(event).decode()
    assert "amqp://***@host" in event.reason


def test_a_password_at_the_cut_is_not_published_in_part(workers: WorkerHarness) -> None:
    event = ending(workers, RuntimeError("x" * 1970 + " amqp://user:hunter2hunter2hunter2@host"))
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
def test_what_is_not_understood_is_buried_and_never_blocks(
    workers: WorkerHarness, body: bytes
) -> None:
    workers.bus.publish([Outgoing(body, queue="label.toy")])
    workers.send(label())
    workers.worker(store=FlakyStore(workers.store, first(1, "create")))
    assert workers.next_types(2) == [m.TaskClaimed, m.LabelsDone]
    assert buried_bodies(workers.store) == [body[:MOST_BYTES]]
    assert workers.bus.depth("label.toy") == 0


# ------------------------------------------------------------------------------------------ outages


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["publish", "published", "consume"])
def test_a_worker_outlives_an_outage_of_the_bus(workers: WorkerHarness, operation: str) -> None:
    worked: list[str] = []

    def handler(resources: Any, command: m.Label, context: Context) -> m.LabelsDone:
        worked.append(command.task)
        return succeed(resources, command, context)

    workers.send(label("t1"), label("t2"))
    workers.worker(handler, bus=FlakyBus(InProcessBus(workers.broker), first(3, operation)))
    done: list[str] = []
    while "t2" not in done:
        event = workers.next_event()
        done += [event.task] if isinstance(event, m.LabelsDone) else []
    assert worked == ["t1", "t2"]
    assert sorted(set(done)) == ["t1", "t2"]


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["create", "created", "get"])
def test_a_worker_outlives_an_outage_of_the_store(workers: WorkerHarness, operation: str) -> None:
    workers.send(label("t1"), label("t1"), label("t2"))
    workers.worker(store=FlakyStore(workers.store, first(3, operation)))
    types = workers.next_types(5)
    assert types == [m.TaskClaimed, m.LabelsDone, m.TaskClaimed, m.TaskClaimed, m.LabelsDone]


@pytest.mark.slow
def test_a_result_is_published_when_the_bus_is_back(workers: WorkerHarness) -> None:
    down = threading.Event()

    def handler(resources: Any, command: m.Label, context: Context) -> m.LabelsDone:
        down.set()
        threading.Timer(0.5, down.clear).start()
        return succeed(resources, command, context)

    workers.send(label())
    workers.worker(
        handler, bus=FlakyBus(InProcessBus(workers.broker), lambda operation: down.is_set())
    )
    assert workers.next_types(2) == [m.TaskClaimed, m.LabelsDone]


def test_a_worker_asked_to_go_during_an_outage_goes(workers: WorkerHarness) -> None:
    workers.send(label())
    worker = workers.worker(bus=FlakyBus(InProcessBus(workers.broker), lambda o: o == "publish"))
    while not workers.store.exists(claim_uri("methane", "t1", 1)):
        time.sleep(0.01)
    worker.stopping.set()
    workers.stop()
    delivery = workers.bus.consume("label.toy").next(PROMPT)
    assert delivery is not None
    assert delivery.redelivered


@pytest.mark.slow
def test_a_worker_whose_bus_was_closed_waits_without_spinning(workers: WorkerHarness) -> None:
    bus = InProcessBus(workers.broker)
    asked: list[str] = []

    def count(operation: str) -> bool:
        asked.append(operation)
        return False

    workers.worker(bus=FlakyBus(bus, count))
    time.sleep(0.1)
    bus.close()
    time.sleep(0.5)
    assert workers.alive()
    assert len(asked) < 50


# -------------------------------------------------------------------------- what handlers are given


@pytest.fixture
def context(workers: WorkerHarness) -> Context:
    bus = InProcessBus(workers.broker)
    return Context(workers.store, bus, label(), workers.folder, "worker", threading.Event())


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
