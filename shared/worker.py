"""The runtime every worker service runs in: claim, acknowledge, then work.

A worker is subscribed only while idle. It takes one delivery, creates the claim of that attempt,
says so, cancels its subscription, acknowledges, works, publishes the result, and subscribes again.
Whoever loses a claim publishes the winner's word once more and acknowledges.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import structlog
from pydantic import ValidationError

from shared.errors import DigestMismatch, Permanent, Stopped, StoreError, Temporary
from shared.messages import (
    Command,
    Message,
    Result,
    TaskClaimed,
    TaskFailed,
    TaskHeartbeat,
    TaskReleased,
    decode,
    encode,
    topic_of,
)
from shared.ports import Bus, Delivery, Outgoing, Store
from shared.spec import Spec
from shared.values import Ref, campaign_uri

log = structlog.get_logger()

Bench = TypeVar("Bench")
Handler = Callable[[Any, Any, "Context"], Result]
"""`handler(bench, command, context) -> result`; `bench` holds the service's warm engines."""

_spec_cache: dict[str, Spec] = {}


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
        return fetch(self.store, ref)

    def download(self, ref: Ref, path: Path) -> Path:
        """The object as a file, digest checked."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.fetch(ref))
        return path

    def put(self, name: str, data: bytes) -> Ref:
        """Store a result of this attempt under `name`; never over another object."""
        uri = f"{self.prefix}/{name}"
        ref = Ref.to(uri, data)
        if not self.store.create(uri, data):
            self.fetch(ref)  # the same bytes are fine: a lost reply; others raise
        return ref

    def publish(self, event: Message) -> None:
        """Publish an event and wait for the broker's confirmation."""
        self.bus.publish([Outgoing(encode(event), topic=topic_of(event))])

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
        """Work until `stopping` is set; the task in hand is then released."""
        while not self.stopping.is_set():
            subscription = self.bus.consume(self.queue, prefetch=1)
            delivery = subscription.next(timeout=1.0)
            while delivery is None and not self.stopping.is_set():
                delivery = subscription.next(timeout=1.0)
            if delivery is None:
                subscription.cancel()
                return
            command = self._claim(delivery)
            subscription.cancel()
            delivery.ack()
            if command is not None:
                self._work(command)

    def _claim(self, delivery: Delivery) -> Command | None:
        """The command, if its claim is ours; None if the delivery needs no work."""
        try:
            command = decode(delivery.body)
        except ValidationError:
            command = None
        if not isinstance(command, Command) or type(command) not in self.handlers:
            self._bury(delivery.body)
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
        key = claim_uri(command.campaign, command.task, command.attempt)
        body = encode(claimed)
        won = self.store.create(key, body)
        winner = body if won else self.store.get(key)
        won = won or winner == body
        if won or json.loads(winner).get("type") == claimed.type:
            self.bus.publish([Outgoing(winner, topic=topic_of(claimed))])
        return command if won else None

    def _bury(self, body: bytes) -> None:
        """Keep what cannot be understood where people can look at it; it never blocks a queue."""
        ref = Ref.to("x", body)
        self.store.create(f"deadletters/{ref.sha256}", body)
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
            result = self.handlers[type(command)](self.bench, command, context)
            return result.model_copy(update={"seconds": time.monotonic() - started})
        except Stopped as stop:
            return TaskReleased(**context.envelope(), reason=str(stop))
        except Temporary as error:
            return TaskReleased(**context.envelope(), reason=str(error), delay=error.delay)
        except StoreError as error:
            return TaskReleased(**context.envelope(), reason=str(error), delay=5.0)
        except Exception as error:
            log.warning("task failed", task=command.title, reason=str(error))
            return TaskFailed(
                **context.envelope(),
                permanent=isinstance(error, Permanent),
                reason=f"{type(error).__name__}: {error}"[:2000],
                trace=traceback.format_exc()[-4000:],
            )

    def _beat(self, context: Context, finished: threading.Event) -> None:
        """Heartbeats while the handler works; with each, a look for the stop object."""
        command = context.command
        stop = claim_uri(command.campaign, command.task, command.attempt) + ".stop"
        while not finished.wait(self.heartbeat_seconds):
            try:
                heartbeat = TaskHeartbeat(
                    **context.envelope(), worker=self.name, progress=context._progress
                )
                context.publish(heartbeat)
                if self.store.exists(stop):
                    context._stop_asked.set()
            except Exception as error:  # a beat lost is a beat lost; the lease decides
                log.warning("heartbeat failed", task=command.title, reason=str(error))


def claim_uri(campaign: str, task: str, attempt: int) -> str:
    return campaign_uri(campaign, "claims", task, attempt)
