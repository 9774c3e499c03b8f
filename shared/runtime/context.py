"""What a handler has to work with: its command, its place in the store, its way to the bus."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from dpstream.shared.codec import encode, topic_of
from dpstream.shared.errors import DigestMismatch, Stopped
from dpstream.shared.files import write_whole
from dpstream.shared.messages import Command, Message, Result
from dpstream.shared.ports import Bus, Outgoing, Store
from dpstream.shared.runtime.retry import insist
from dpstream.shared.runtime.telemetry import Silence, Telemetry
from dpstream.shared.spec import Spec
from dpstream.shared.values import Ref, campaign_uri

Handler = Callable[[Any, Any, "Context"], Result]
"""`handler(bench, command, context) -> result`; `resources` holds the service's warm engines."""

PATIENCE = 600.0
"""Seconds for which a handler's reads and writes wait out an outage of the store."""

_spec_cache: dict[str, Spec] = {}

T = TypeVar("T")


def fetch(store: Store, ref: Ref) -> bytes:
    """The object a reference names, its digest checked (`DigestMismatch`)."""
    data = store.get(ref.uri, most=ref.size)
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
    telemetry: Telemetry = field(default_factory=Silence)
    _stop_asked: threading.Event = field(default_factory=threading.Event)
    _progress: str = ""

    @property
    def prefix(self) -> str:
        c = self.command
        return campaign_uri(c.campaign, "results", c.task, c.attempt)

    def insist(self, call: Callable[[], T]) -> T:
        """The result of a call to the store; outages are waited out with patience."""
        return insist(call, self.stopping, PATIENCE, self.telemetry)

    def spec(self) -> Spec:
        """The campaign's spec, cached by digest."""
        ref = self.command.spec
        if ref.sha256 not in _spec_cache:
            _spec_cache[ref.sha256] = Spec.model_validate_json(self.fetch(ref))
        return _spec_cache[ref.sha256]

    def fetch(self, ref: Ref) -> bytes:
        """The object a reference names, its digest checked; outages of the store are waited out."""
        return self.insist(lambda: fetch(self.store, ref))

    def download(self, ref: Ref, path: Path) -> Path:
        """The object as a file, digest checked."""
        write_whole(path, self.fetch(ref))
        return path

    def put(self, name: str, data: bytes) -> Ref:
        """Store a result of this attempt under `name`; never over another object."""
        uri = f"{self.prefix}/{name}"
        ref = Ref.to(uri, data)
        if not self.insist(lambda: self.store.create(uri, data)):
            self.fetch(ref)  # the same bytes are fine: a lost reply; others raise
        return ref

    def publish(self, event: Message) -> None:
        """Publish an event and wait for the broker's confirmation, through outages if need be."""
        outgoing = [Outgoing(encode(event), topic=topic_of(event))]
        insist(lambda: self.bus.publish(outgoing), self.stopping, telemetry=self.telemetry)

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

    @property
    def is_cancelled(self) -> bool:
        return self._stop_asked.is_set()

    def check(self) -> None:
        """Raise `Stopped` if nobody wants this result any more, or this worker was asked to go.
        Made to be an engine call's `tick`."""
        if self.is_cancelled:
            raise Stopped("cancelled")
        if self.stopping.is_set():
            raise Stopped("worker asked to stop")
