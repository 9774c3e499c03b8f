"""The runtime every worker service runs in: claim, acknowledge, then work.

A worker is subscribed only while idle. It takes one delivery, creates the claim of that attempt,
says so, cancels its subscription, acknowledges, works, publishes the result, and subscribes again.
Whoever loses a claim publishes the winner's word once more and acknowledges.
"""

from __future__ import annotations

import contextvars
import shutil
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from dpstream.shared.codec import encode, topic_of, understood
from dpstream.shared.errors import BusError, NotFound, StoreError
from dpstream.shared.logs import logger
from dpstream.shared.messages import Command, Message, TaskClaimed, TaskHeartbeat
from dpstream.shared.ports import Bus, Delivery, Outgoing, Store, Subscription
from dpstream.shared.runtime.context import Context, Handler
from dpstream.shared.runtime.exit_limits import ExitLimits
from dpstream.shared.runtime.retry import insist
from dpstream.shared.runtime.task_outcome import ending_of, outcome_of
from dpstream.shared.runtime.telemetry import Phase, Silence, Telemetry
from dpstream.shared.store.dead_letters import bury
from dpstream.shared.values import campaign_uri

log = logger()

Bench = TypeVar("Bench")
IDLE_SECONDS = 1.0
"""How long an idle worker takes at most to notice that it was asked to stop."""

TURN_SECONDS = 0.25
"""How long a worker of several queues listens to each in turn while all are empty."""

GRACE = 900.0
"""Seconds beyond its `max_seconds` after which a task in hand counts as stuck."""

T = TypeVar("T")


@dataclass
class Worker(Generic[Bench]):
    """One worker: one task at a time, from one queue or, in turn, from `others` too."""

    name: str
    bus: Bus
    store: Store
    queue: str
    handlers: Mapping[type[Command], Handler]
    resources: Bench
    scratch: Path
    heartbeat_seconds: float = 60.0
    stopping: threading.Event = field(default_factory=threading.Event)
    others: tuple[str, ...] = ()
    telemetry: Telemetry = field(default_factory=Silence)
    shift: ExitLimits = field(default_factory=ExitLimits)
    _deadline: float | None = None
    """On the monotonic clock: when the task in hand counts as stuck."""

    def run(self) -> None:
        """Work until `stopping` is set, when the task in hand is released, or until the shift is
        over. Outages of bus and store are waited out."""
        with structlog.contextvars.bound_contextvars(worker=self.name):
            try:
                self._run()
            except (BusError, StoreError) as error:
                log.warning("stopped during an outage", reason=str(error))

    @property
    def is_stuck(self) -> bool:
        """Whether the task in hand should have ended long ago."""
        deadline = self._deadline
        return deadline is not None and time.monotonic() > deadline

    def _run(self) -> None:
        queues = deque((self.queue, *self.others))
        while self._is_on_duty():
            command = self._insist(partial(self._take, self._next_in_turn(queues)))
            if command is not None:
                self._work_on(command)

    def _next_in_turn(self, queues: deque[str]) -> str:
        """The first queue that has anything, or else the first there is; it is the last from now
        on. One that nobody has declared yet is passed over, so that it keeps no other waiting."""
        if self.others:
            depths = {queue: self._depth(queue) for queue in queues}
            there = [queue for queue in queues if depths[queue] is not None]
            filled = (queue for queue in there if depths[queue])
            found = next(filled, there[0] if there else queues[0])
            queues.remove(found)
            queues.append(found)
        return queues[-1]

    def _depth(self, queue: str) -> int | None:
        """None where it cannot be told."""
        try:
            return self.bus.depth(queue)
        except BusError:
            return None

    def _is_on_duty(self) -> bool:
        return not (self.stopping.is_set() or self.shift.over)

    def _insist(self, call: Callable[[], T]) -> T:
        return insist(call, self.stopping, telemetry=self.telemetry)

    def _take(self, queue: str) -> Command | None:
        """Wait for a delivery and settle it; the command, if it is ours to work on."""
        subscription = self.bus.consume(queue, prefetch=1)
        try:
            delivery = self._wait(subscription)
            if delivery is None:
                return None
            with self._spending("claim"):
                command = self._admitted(delivery)
        finally:
            with suppress(BusError):
                subscription.cancel()
        with suppress(BusError):  # the claim is ours: a lost acknowledgement changes nothing
            delivery.ack()
        return command

    def _wait(self, subscription: Subscription) -> Delivery | None:
        """The next delivery; None when there is a reason to listen no longer."""
        patience = TURN_SECONDS if self.others else IDLE_SECONDS
        with self._spending("wait"):
            while self._is_on_duty():
                delivery = subscription.next(timeout=patience)
                if delivery is not None:
                    return delivery
                if not subscription.open and not self.stopping.is_set():
                    raise BusError("the subscription ended")
                if self.others:
                    return None
        return None

    @contextmanager
    def _spending(self, phase: Phase) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.telemetry.spent(phase, time.monotonic() - started)

    def _admitted(self, delivery: Delivery) -> Command | None:
        """The command, if the shift has room for it and its claim is ours."""
        if not self.shift.admit():
            delivery.reject()
            return None
        command = None
        try:
            command = self._claim_or_reject(delivery)
        finally:
            if command is None:
                self.shift.left(worked=False)
        return command

    def _claim_or_reject(self, delivery: Delivery) -> Command | None:
        try:
            return self._claim(delivery.body)
        except (BusError, StoreError):
            with suppress(BusError):
                delivery.reject()
            raise

    def _claim(self, delivered: bytes) -> Command | None:
        """The command, if its claim is ours; None if the delivery needs no work."""
        command = understood(delivered)
        if not isinstance(command, Command) or type(command) not in self.handlers:
            self._insist(lambda: bury(self.store, delivered))
            self.telemetry.buried()
            return None
        claimed = TaskClaimed(
            id=str(uuid.uuid4()),
            campaign=command.campaign,
            time=time.time(),
            cause=command.id,
            task=command.task,
            attempt=command.attempt,
            worker=self.name,
        )
        winner = self._winner(claimed)
        if isinstance(understood(winner), TaskClaimed):  # a revocation is the coordinator's to say
            said = [Outgoing(winner, topic=topic_of(claimed))]
            self._insist(lambda: self.bus.publish(said))
        if winner == encode(claimed):
            return command
        self.telemetry.lost_claim(command)
        return None

    def _winner(self, claimed: TaskClaimed) -> bytes:
        """The body of the claim object: this very one, or that of whoever came first. Its id is
        new with every claim, so an ambiguous create that reads back its own body was ours."""
        key, body = claim_uri(claimed.campaign, claimed.task, claimed.attempt), encode(claimed)

        def create_or_get() -> bytes:
            while not self.store.create(key, body):
                with suppress(NotFound):  # removed in between
                    return self.store.get(key)
            return body

        return self._insist(create_or_get)

    def _work_on(self, command: Command) -> None:
        """Work on a task that is ours, every log line naming it."""
        about = {"campaign": command.campaign, "task": command.task, "attempt": command.attempt}
        self._deadline = time.monotonic() + command.max_seconds + GRACE
        self.telemetry.began(command)
        with structlog.contextvars.bound_contextvars(**about):
            log.info("task begun", title=command.title)
            try:
                self._work(command)
            finally:
                self._deadline = None
                self.shift.left(worked=True)

    def _work(self, command: Command) -> None:
        scratch = self.scratch / f"{command.task}-{command.attempt}"
        context = Context(
            self.store, self.bus, command, scratch, self.name, self.stopping, self.telemetry
        )
        finished = threading.Event()
        bound = contextvars.copy_context()
        beat = threading.Thread(target=bound.run, args=(self._beat, context, finished), daemon=True)
        beat.start()
        try:
            with self._spending("work"):
                event = self._event(command, context)
        finally:
            finished.set()
            beat.join()
            shutil.rmtree(scratch, ignore_errors=True)
        outcome = outcome_of(event, context)
        self.telemetry.ended(command, outcome)
        with self._spending("publish"):
            context.publish(event)
        log.info("task ended", title=command.title, outcome=outcome)

    def _event(self, command: Command, context: Context) -> Message:
        """The handler's result, or its failure as an event."""
        started = time.monotonic()
        try:
            context.scratch.mkdir(parents=True, exist_ok=True)
            context.check()
            result = self.handlers[type(command)](self.resources, command, context)
            result = result.model_copy(update={"seconds": time.monotonic() - started})
            encode(result)  # refuses what is too long for the wire, while it can still be said
            return result
        except Exception as error:
            log.info("task ended without a result", title=command.title, reason=str(error))
            return ending_of(error, context)

    def _beat(self, context: Context, finished: threading.Event) -> None:
        """Heartbeats while the handler works; with each, a look for the stop object."""
        command = context.command
        stop = claim_uri(command.campaign, command.task, command.attempt) + ".stop"
        while not finished.wait(self.heartbeat_seconds):
            try:
                if self.store.exists(stop):
                    context._stop_asked.set()
            except Exception as error:  # asked again at the next beat
                log.warning("stop object not looked for", reason=str(error))
            try:
                self._say_alive(context)
            except Exception as error:  # a beat lost is a beat lost; the lease decides
                log.warning("heartbeat failed", reason=str(error))

    def _say_alive(self, context: Context) -> None:
        heartbeat = TaskHeartbeat(
            **context.envelope(), worker=self.name, progress=context._progress
        )
        self.bus.publish([Outgoing(encode(heartbeat), topic=topic_of(heartbeat))])


def claim_uri(campaign: str, task: str, attempt: int) -> str:
    return campaign_uri(campaign, "claims", task, attempt)
