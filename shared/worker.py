"""The runtime every worker service runs in: claim, acknowledge, then work.

A worker is subscribed only while idle. It takes one delivery, creates the claim of that attempt,
says so, cancels its subscription, acknowledges, works, publishes the result, and subscribes again.
Whoever loses a claim publishes the winner's word once more and acknowledges.
"""

from __future__ import annotations

import shutil
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import structlog
from pydantic import ValidationError
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_after_delay,
    stop_any,
    stop_when_event_set,
    wait_random_exponential,
)

from shared.codec import decode, encode, topic_of
from shared.errors import (
    BusError,
    DigestMismatch,
    NotFound,
    Permanent,
    Stopped,
    StoreError,
    Temporary,
)
from shared.messages import (
    Command,
    Message,
    Result,
    TaskClaimed,
    TaskFailed,
    TaskHeartbeat,
    TaskReleased,
)
from shared.ports import Bus, Delivery, Outgoing, Store, Subscription
from shared.spec import Spec
from shared.values import Ref, campaign_uri

log = structlog.get_logger()

Bench = TypeVar("Bench")
Handler = Callable[[Any, Any, "Context"], Result]
"""`handler(bench, command, context) -> result`; `bench` holds the service's warm engines."""

_spec_cache: dict[str, Spec] = {}

IDLE_SECONDS = 1.0
"""How long an idle worker takes at most to notice that it was asked to stop."""

PATIENCE = 600.0
"""Seconds for which a handler's reads and writes wait out an outage of the store."""

T = TypeVar("T")


def insist(call: Callable[[], T], stopping: threading.Event, patience: float = float("inf")) -> T:
    """The result of `call`, tried again at growing intervals (to 30 s) while bus or store fail.
    Their error passes on once `stopping` is set or `patience` seconds are over; what another try
    cannot mend (`NotFound`, `DigestMismatch`) passes on at once."""
    retrying = Retrying(
        retry=retry_if_exception(is_outage),
        wait=wait_random_exponential(multiplier=0.1, max=30),
        stop=stop_any(stop_when_event_set(stopping), stop_after_delay(patience)),
        sleep=sleep_using_event(stopping),
        before_sleep=_say_again,
        reraise=True,
    )
    return retrying(call)


def is_outage(error: BaseException) -> bool:
    """Whether the same call may succeed later."""
    lasting = isinstance(error, (NotFound, DigestMismatch))
    return isinstance(error, (BusError, StoreError)) and not lasting


def _say_again(state: RetryCallState) -> None:
    assert state.outcome is not None
    log.warning("bus or store failed, trying again", reason=str(state.outcome.exception()))


def fetch(store: Store, ref: Ref) -> bytes:
    """The object a reference names, its digest checked (`DigestMismatch`)."""
    data = store.get(ref.uri)
    if Ref.to(ref.uri, data) != ref:
        raise DigestMismatch(f"{ref.uri}: {len(data)} bytes are not the {ref.size} referred to")
    return data


@dataclass
class Context:
    """What a handler has to work with, for one attempt of one task."""

    store: Store
    bus: Bus
    command: Command
    scratch: Path
    """A private empty folder, removed afterwards."""
    worker: str
    stopping: threading.Event
    """Set when the worker was asked to go (SIGTERM)."""
    _stop_asked: threading.Event = field(default_factory=threading.Event)
    _progress: str = ""

    @property
    def prefix(self) -> str:
        c = self.command
        return campaign_uri(c.campaign, "results", c.task, c.attempt)

    def spec(self) -> Spec:
        """The campaign's spec, cached by digest."""
        ref = self.command.spec
        if ref.sha256 not in _spec_cache:
            _spec_cache[ref.sha256] = Spec.model_validate_json(self.fetch(ref))
        return _spec_cache[ref.sha256]

    def fetch(self, ref: Ref) -> bytes:
        """The object a reference names, its digest checked; outages of the store are waited out."""
        return insist(lambda: fetch(self.store, ref), self.stopping, PATIENCE)

    def download(self, ref: Ref, path: Path) -> Path:
        """The object as a file, digest checked."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.fetch(ref))
        return path

    def put(self, name: str, data: bytes) -> Ref:
        """Store a result of this attempt under `name`; never over another object."""
        uri = f"{self.prefix}/{name}"
        ref = Ref.to(uri, data)
        if not insist(lambda: self.store.create(uri, data), self.stopping, PATIENCE):
            self.fetch(ref)  # the same bytes are fine: a lost reply; others raise
        return ref

    def publish(self, event: Message) -> None:
        """Publish an event and wait for the broker's confirmation, through outages if need be."""
        outgoing = [Outgoing(encode(event), topic=topic_of(event))]
        insist(lambda: self.bus.publish(outgoing), self.stopping)

    def envelope(self) -> dict[str, Any]:
        """The fields every event about this attempt begins with: `Event(**envelope(), …)`."""
        c = self.command
        return {
            "id": str(uuid.uuid4()),
            "campaign": c.campaign,
            "time": time.time(),
            "cause": c.id,
            "task": c.task,
            "attempt": c.attempt,
        }

    def progress(self, text: str) -> None:
        """What the next heartbeats say about this task."""
        self._progress = text

    def check(self) -> None:
        """Raise `Stopped` if nobody wants this result any more, or this worker was asked to go.
        Made to be an engine call's `tick`."""
        if self._stop_asked.is_set():
            raise Stopped("cancelled")
        if self.stopping.is_set():
            raise Stopped("worker asked to stop")


@dataclass
class Worker(Generic[Bench]):
    """One worker: one queue, one task at a time."""

    name: str
    bus: Bus
    store: Store
    queue: str
    handlers: Mapping[type[Command], Handler]
    bench: Bench
    scratch: Path
    heartbeat_seconds: float = 60.0
    stopping: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Work until `stopping` is set; the task in hand is then released. Outages of bus and
        store are waited out."""
        try:
            while not self.stopping.is_set():
                command = insist(self._take, self.stopping)
                if command is not None:
                    self._work(command)
        except (BusError, StoreError) as error:
            log.warning("stopped during an outage", worker=self.name, reason=str(error))

    def _take(self) -> Command | None:
        """Wait for a delivery and settle it; the command, if it is ours to work on."""
        subscription = self.bus.consume(self.queue, prefetch=1)
        try:
            delivery = self._wait(subscription)
            if delivery is None:
                return None
            command = self._claim_or_reject(delivery)
        finally:
            with suppress(BusError):
                subscription.cancel()
        with suppress(BusError):  # the claim is ours: a lost acknowledgement changes nothing
            delivery.ack()
        return command

    def _wait(self, subscription: Subscription) -> Delivery | None:
        while not self.stopping.is_set():
            asked = time.monotonic()
            delivery = subscription.next(timeout=IDLE_SECONDS)
            if delivery is not None:
                return delivery
            if time.monotonic() - asked < IDLE_SECONDS / 2 and not self.stopping.is_set():
                raise BusError("the subscription ended")
        return None

    def _claim_or_reject(self, delivery: Delivery) -> Command | None:
        try:
            return self._claim(delivery.body)
        except (BusError, StoreError):
            with suppress(BusError):
                delivery.reject()
            raise

    def _claim(self, delivered: bytes) -> Command | None:
        """The command, if its claim is ours; None if the delivery needs no work."""
        command = _decoded(delivered)
        if not isinstance(command, Command) or type(command) not in self.handlers:
            self._bury(delivered)
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
        if isinstance(_decoded(winner), TaskClaimed):  # a revocation is the coordinator's to say
            said = [Outgoing(winner, topic=topic_of(claimed))]
            insist(lambda: self.bus.publish(said), self.stopping)
        return command if winner == encode(claimed) else None

    def _winner(self, claimed: TaskClaimed) -> bytes:
        """The body of the claim object: this very one, or that of whoever came first. Its id is
        new with every claim, so an ambiguous create that reads back its own body was ours."""
        key, body = claim_uri(claimed.campaign, claimed.task, claimed.attempt), encode(claimed)

        def create_or_get() -> bytes:
            while not self.store.create(key, body):
                with suppress(NotFound):  # removed in between
                    return self.store.get(key)
            return body

        return insist(create_or_get, self.stopping)

    def _bury(self, body: bytes) -> None:
        """Keep what cannot be understood where people can look at it; it never blocks a queue."""
        ref = Ref.to("body", body)
        insist(lambda: self.store.create(f"deadletters/{ref.sha256}", body), self.stopping)
        log.warning("undecodable message buried", queue=self.queue, sha256=ref.sha256)

    def _work(self, command: Command) -> None:
        scratch = self.scratch / f"{command.task}-{command.attempt}"
        scratch.mkdir(parents=True, exist_ok=True)
        context = Context(self.store, self.bus, command, scratch, self.name, self.stopping)
        finished = threading.Event()
        beat = threading.Thread(target=self._beat, args=(context, finished), daemon=True)
        beat.start()
        try:
            outcome = self._outcome(command, context)
        finally:
            finished.set()
            beat.join()
            shutil.rmtree(scratch, ignore_errors=True)
        context.publish(outcome)

    def _outcome(self, command: Command, context: Context) -> Message:
        """The handler's result, or its failure as an event."""
        started = time.monotonic()
        try:
            context.check()
            result = self.handlers[type(command)](self.bench, command, context)
            result = result.model_copy(update={"seconds": time.monotonic() - started})
            encode(result)  # refuses what is too long for the wire, while it can still be said
            return result
        except Exception as error:
            log.info("task ended without a result", task=command.title, reason=str(error))
            return _ending(error, context)

    def _beat(self, context: Context, finished: threading.Event) -> None:
        """Heartbeats while the handler works; with each, a look for the stop object."""
        command = context.command
        stop = claim_uri(command.campaign, command.task, command.attempt) + ".stop"
        while not finished.wait(self.heartbeat_seconds):
            try:
                if self.store.exists(stop):
                    context._stop_asked.set()
            except Exception as error:  # asked again at the next beat
                log.warning("stop object not looked for", task=command.title, reason=str(error))
            try:
                self._say_alive(context)
            except Exception as error:  # a beat lost is a beat lost; the lease decides
                log.warning("heartbeat failed", task=command.title, reason=str(error))

    def _say_alive(self, context: Context) -> None:
        heartbeat = TaskHeartbeat(
            **context.envelope(), worker=self.name, progress=context._progress
        )
        self.bus.publish([Outgoing(encode(heartbeat), topic=topic_of(heartbeat))])


def _decoded(body: bytes) -> Any:
    try:
        return decode(body)
    except ValidationError:
        return None


def _ending(error: Exception, context: Context) -> TaskReleased | TaskFailed:
    """What a handler's exception means for its task. Whatever nobody foresaw counts as a crash."""
    if isinstance(error, Stopped):
        return TaskReleased(**context.envelope(), reason=_text(str(error)))
    if isinstance(error, Temporary) or is_outage(error):
        delay = getattr(error, "delay", 5.0)
        return TaskReleased(**context.envelope(), reason=_text(str(error)), delay=delay)
    trace = getattr(error, "trace", "") or "".join(traceback.format_exception(error))
    return TaskFailed(
        **context.envelope(),
        permanent=isinstance(error, Permanent),
        reason=_text(f"{type(error).__name__}: {error}"),
        trace=_text(trace[-4000:], 4000),
    )


def _text(text: str, limit: int = 2000) -> str:
    """Fit for a message, whatever an engine printed: bounded, and without lone surrogates."""
    return text[:limit].encode(errors="replace").decode()


def claim_uri(campaign: str, task: str, attempt: int) -> str:
    return campaign_uri(campaign, "claims", task, attempt)
