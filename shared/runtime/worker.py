"""The worker loop of every worker service: claim, acknowledge, then work.

A worker subscribes only while idle. It takes one delivery, creates the claim object of that
attempt, publishes task-claimed, cancels its subscription, acknowledges the delivery, works,
publishes the result and subscribes again. A long task thus holds no unacknowledged message; its
claim and heartbeats show that it is running. The claim names the worker's user and the proof of a
new secret, which accompanies every later event of the attempt. A worker that loses a claim
publishes the winner's task-claimed once more, in case the winner died before publishing, and
acknowledges.
"""

from __future__ import annotations

import contextvars
import secrets
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from dpstream.shared.codec import (
    decode_leniently,
    decode_or_none,
    encode,
    kind_of,
    queue_of,
    topic_of,
)
from dpstream.shared.errors import (
    BusError,
    DigestMismatch,
    NotFound,
    Refused,
    StoreError,
    TaskError,
)
from dpstream.shared.logs import logger
from dpstream.shared.messages import (
    Command,
    Message,
    Result,
    TaskClaimed,
    TaskDeclined,
    TaskFailed,
    TaskHeartbeat,
)
from dpstream.shared.ports import Bus, Delivery, Outgoing, Store, Subscription
from dpstream.shared.proof import digest
from dpstream.shared.runtime.context import Context, Handler, Unserved, envelope_of
from dpstream.shared.runtime.exit_limits import ExitLimits
from dpstream.shared.runtime.retry import Rests, refused_for_long, retry_outages
from dpstream.shared.runtime.task_outcome import ending_of, outcome_of
from dpstream.shared.runtime.telemetry import NoTelemetry, Phase, Telemetry
from dpstream.shared.store.dead_letters import DeadLetter, bury
from dpstream.shared.values import campaign_uri, stable_id

log = logger()

R = TypeVar("R")
IDLE_SECONDS = 1.0
"""Interval at which an idle worker checks whether it is to stop."""

TURN_SECONDS = 0.25
"""How long a worker of several queues waits at each in turn while all are empty."""

GRACE = 900.0
"""Seconds beyond `max_seconds` after which a running task counts as stuck."""

T = TypeVar("T")


@dataclass
class Worker(Generic[R]):
    """One worker: one task at a time, from one queue or, in turn, from `others` too."""

    name: str
    bus: Bus
    store: Store
    queue: str
    handlers: Mapping[type[Command], Handler]
    resources: R
    scratch: Path
    heartbeat_seconds: float = 60.0
    stuck_after: Mapping[str, float] = field(default_factory=dict)
    """Seconds without progress, by kind of command, in place of its `STUCK_AFTER`."""
    stopping: threading.Event = field(default_factory=threading.Event)
    others: tuple[str, ...] = ()
    telemetry: Telemetry = field(default_factory=NoTelemetry)
    limits: ExitLimits = field(default_factory=ExitLimits)
    process: str | None = None
    """Name of this process in the fleet engine that started it, if any did."""
    unserved: Unserved = lambda resources, command, context: None
    """Called before a task is claimed."""
    gave_back: bool = False
    """Whether a task was released because the worker is to stop."""
    refusal: str | None = None
    """Why broker or store refused the last attempt to take a task, or None."""
    _refused: Refused | None = None
    """The refusal that ended a task; the worker then ends, too."""
    _deadline: float | None = None
    """Time on the monotonic clock after which the running task counts as stuck."""
    _context: Context | None = None
    """Of the running task."""
    _rests: Rests = field(default_factory=Rests)
    _secret: str = field(default="", repr=False)
    """Of the last claim: it proves that the events of the attempt come from this worker."""

    def run(self) -> None:
        """Work until `stopping` is set, which releases a running task, or until an exit limit is
        reached. Calls to bus and store are retried during outages. Raises `Refused` if they keep
        refusing this worker's rights."""
        with structlog.contextvars.bound_contextvars(worker=self.name):
            try:
                self._run()
            except Refused:
                raise
            except (BusError, StoreError) as error:
                log.warning("stopped while broker or store did not answer", reason=str(error))

    @property
    def stuck(self) -> str | None:
        """Why the running task counts as stuck; None if it does not."""
        context, deadline = self._context, self._deadline
        if context is None or deadline is None:
            return None
        if time.monotonic() > deadline:
            return "still running long after the task's time limit"
        limit = self._longest_pause(context.command)
        return f"no progress for {limit:g} s" if context.idle > limit else None

    def abort(self, reason: str) -> None:
        """From another thread: the running task fails at its next check, which kills its
        engine."""
        context = self._context
        if context is not None:
            context._stuck = reason

    def _longest_pause(self, command: Command) -> float:
        return self.stuck_after.get(kind_of(command), command.STUCK_AFTER)

    def _run(self) -> None:
        queues = deque((self.queue, *self.others))
        while self._may_continue():
            if all(map(self._rests.includes, queues)):
                self.stopping.wait(TURN_SECONDS)
                continue
            command = self._taken(partial(self._take, self._next_in_turn(queues)))
            if command is not None:
                self._work_on(command)
            if self._refused is not None:
                raise self._refused

    def _taken(self, take: Callable[[], Command | None]) -> Command | None:
        """Retries `take` during outages, until the worker is to leave or is refused for long."""
        refused = refused_for_long()
        return retry_outages(
            take,
            self.stopping,
            telemetry=self.telemetry,
            given_up=lambda error: refused(error) or self.limits.over,
        )

    def _next_in_turn(self, queues: deque[str]) -> str:
        """The first queue with messages, else the first that exists; moved to the end of `queues`.
        Queues that are not declared yet are skipped, so that they do not delay the others; those
        that rest, too."""
        if self.others:
            awake = [queue for queue in queues if not self._rests.includes(queue)]
            depths = {queue: self._depth(queue) for queue in awake}
            existing = [queue for queue in awake if depths[queue] is not None]
            filled = (queue for queue in existing if depths[queue])
            chosen = next(filled, existing[0] if existing else awake[0])
            queues.remove(chosen)
            queues.append(chosen)
        return queues[-1]

    def _depth(self, queue: str) -> int | None:
        """Messages in a queue; None if it does not exist."""
        try:
            return self.bus.depth(queue)
        except BusError:
            return None

    def _may_continue(self) -> bool:
        return not (self.stopping.is_set() or self.limits.over)

    def _retry(self, call: Callable[[], T]) -> T:
        return retry_outages(call, self.stopping, telemetry=self.telemetry)

    def _take(self, queue: str) -> Command | None:
        """Wait for a delivery and settle it; the command, if this worker claimed it."""
        try:
            subscription = self.bus.consume(queue, prefetch=1)
            self.refusal = None
        except Refused as error:
            self.refusal = str(error)
            raise
        try:
            delivery = self._wait(subscription)
            if delivery is None:
                return None
            with self._spending("claim"):
                command = self._admitted(delivery)
        finally:
            with suppress(BusError):
                subscription.cancel()
        with suppress(BusError):  # with the claim won, a lost acknowledgement has no effect
            delivery.ack()
        return command

    def _wait(self, subscription: Subscription) -> Delivery | None:
        """The next delivery; None when the worker is to stop or to try its next queue."""
        patience = TURN_SECONDS if self.others else IDLE_SECONDS
        with self._spending("wait"):
            while self._may_continue():
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
        """The command, if the exit limits allow one more task and this worker wins its claim."""
        message = decode_or_none(delivery.body)
        if not self.limits.admit(None if message is None else type(message)):
            delivery.reject()
            return None
        command = None
        try:
            command = self._claim_or_reject(delivery, message)
        finally:
            if command is None:
                self.limits.release(worked=False)
        return command

    def _claim_or_reject(self, delivery: Delivery, message: Message | None) -> Command | None:
        try:
            return self._claim(delivery.body, message)
        except (BusError, StoreError):
            with suppress(BusError):
                delivery.reject()
            raise

    def _claim(self, delivered: bytes, command: Message | None) -> Command | None:
        """The command, if this worker wins its claim; None if the delivery needs no work."""
        if not isinstance(command, Command) or type(command) not in self.handlers:
            self._retry(lambda: bury(self.store, [DeadLetter(delivered)]))
            self.telemetry.buried()
            return None
        if self._declines(command):
            return None
        self._secret = secrets.token_urlsafe()
        claimed = TaskClaimed(
            **envelope_of(command),
            worker=self.name,
            process=self.process,
            user=self.bus.user,
            proof_sha256=digest(digest(self._secret)),
        )
        winner = self._winner(claimed)
        claim = decode_leniently(winner)
        if claim is None or isinstance(claim, TaskClaimed):  # the coordinator publishes its own
            event = claim or _unreadable(command)
            outgoing = [Outgoing(encode(event), topic=topic_of(event))]
            self._retry(lambda: self.bus.publish(outgoing))
        if winner == encode(claimed):
            return command
        self.telemetry.lost_claim(command)
        return None

    def _declines(self, command: Command) -> bool:
        """Whether this worker cannot serve the command. The coordinator then publishes it again,
        and the worker leaves the queue to others for a while."""
        queue = queue_of(command)
        reason = self._lacks(command)
        if reason is None:
            self._rests.forget(queue)
            return False
        event = TaskDeclined(**envelope_of(command), worker=self.name, reason=reason[:2000])
        outgoing = [Outgoing(encode(event), topic=topic_of(event))]
        self._retry(lambda: self.bus.publish(outgoing))
        seconds = self._rests.begin(queue, longer=self.limits.decline(command.task, reason))
        log.warning("task declined", queue=queue, reason=reason, next_in_seconds=seconds)
        return True

    def _lacks(self, command: Command) -> str | None:
        """What this worker lacks to serve the command. If that cannot be found out, the task is
        claimed, and fails with the reason."""
        try:
            return self.unserved(self.resources, command, self._context_of(command))
        except (TaskError, NotFound, DigestMismatch, ValueError) as error:
            log.info("not known whether this worker serves the task", reason=str(error))
            return None

    def _winner(self, claimed: TaskClaimed) -> bytes:
        """The body of the claim object: `claimed`, or that of an earlier claim. Every claim has a
        new id, so a create whose reply was lost is recognised by reading back its own body."""
        key, body = claim_uri(claimed.campaign, claimed.task, claimed.attempt), encode(claimed)

        def create_or_get() -> bytes:
            while not self.store.create(key, body):
                try:
                    return self.store.get(key)
                except DigestMismatch:
                    return b""
                except NotFound:  # deleted meanwhile
                    continue
            return body

        return self._retry(create_or_get)

    def _work_on(self, command: Command) -> None:
        """Work on a claimed task, which every log line names."""
        about = {"campaign": command.campaign, "task": command.task, "attempt": command.attempt}
        self._deadline = time.monotonic() + command.max_seconds + GRACE
        self.telemetry.began(command)
        with structlog.contextvars.bound_contextvars(**about):
            log.info("task started", title=command.title)
            try:
                self._work(command)
            finally:
                self._deadline = None
                self.limits.release(worked=True)

    def _work(self, command: Command) -> None:
        self._context = context = self._context_of(command)
        finished = threading.Event()
        bound = contextvars.copy_context()
        beat = threading.Thread(target=bound.run, args=(self._beat, context, finished), daemon=True)
        beat.start()
        try:
            with self._spending("work"):
                event = self._event(command, context)
        finally:
            self._context = None
            finished.set()
            beat.join()
            shutil.rmtree(context.scratch, ignore_errors=True)
        outcome = outcome_of(event, context)
        self.gave_back = self.gave_back or outcome == "preempted"
        if isinstance(event, Result):
            self.limits.learn(type(command), event.seconds)
        self.telemetry.ended(command, outcome)
        with self._spending("publish"):
            context.publish(event)
        log.info("task ended", title=command.title, outcome=outcome)

    def _context_of(self, command: Command) -> Context:
        return Context(
            self.store,
            self.bus,
            command,
            self.scratch / f"{command.task}-{command.attempt}",
            self.name,
            self.stopping,
            self.telemetry,
            secret=self._secret,
        )

    def _event(self, command: Command, context: Context) -> Message:
        """The handler's result, or its failure as an event."""
        started = time.monotonic()
        try:
            context.scratch.mkdir(parents=True, exist_ok=True)
            context.check()
            result = self.handlers[type(command)](self.resources, command, context)
            result = result.model_copy(update={"seconds": time.monotonic() - started})
            encode(result)  # a result too long for a message is reported as a failure
            return result
        except Exception as error:
            if isinstance(error, Refused):
                self._refused = error
            log.info("task failed or was released", title=command.title, reason=str(error))
            return ending_of(error, context)

    def _beat(self, context: Context, finished: threading.Event) -> None:
        """Publish heartbeats while the handler works and makes progress; with each, look for the
        stop object. A task that is stuck is aborted."""
        command = context.command
        stop = claim_uri(command.campaign, command.task, command.attempt) + ".stop"
        while not finished.wait(self.heartbeat_seconds):
            try:
                if self.store.exists(stop):
                    context._stop_asked.set()
            except Exception as error:
                log.warning(
                    "cannot check whether the task was cancelled; trying again later",
                    reason=str(error),
                )
            stuck = self.stuck
            if stuck is not None:
                self.abort(stuck)
                continue
            try:
                self._publish_heartbeat(context)
            except Exception as error:  # not retried: the lease allows for missed heartbeats
                log.warning("heartbeat not published", reason=str(error))

    def _publish_heartbeat(self, context: Context) -> None:
        heartbeat = TaskHeartbeat(
            **context.envelope(),
            worker=self.name,
            process=self.process,
            progress=context._progress,
        )
        self.bus.publish([context.outgoing(heartbeat)])


def _unreadable(command: Command) -> TaskFailed:
    """The failure of an attempt whose claim is damaged: no worker has it."""
    fields = {**envelope_of(command), "id": stable_id("unreadable", command.task, command.attempt)}
    return TaskFailed(**fields, permanent=False, reason="the claim of this attempt cannot be read")


def claim_uri(campaign: str, task: str, attempt: int) -> str:
    return campaign_uri(campaign, "claims", task, attempt)
