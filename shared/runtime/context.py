"""The context of one attempt of a task, passed to its handler.

Gives a handler its command, the campaign's spec, objects of the store, a place for its results, the
bus, progress messages, and the check whether the result is still needed.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from dpstream.shared.codec import encode, topic_of
from dpstream.shared.errors import DigestMismatch, Stopped, Stuck
from dpstream.shared.files import write_whole
from dpstream.shared.logs import logger
from dpstream.shared.messages import (
    CheckpointSaved,
    Chunk,
    Command,
    Message,
    Result,
    TaskCancelled,
)
from dpstream.shared.ports import Bus, Outgoing, Store
from dpstream.shared.proof import digest
from dpstream.shared.runtime.retry import retry_outages
from dpstream.shared.runtime.telemetry import NoTelemetry, Telemetry
from dpstream.shared.spec import Spec
from dpstream.shared.values import Ref, campaign_uri

log = logger()

Handler = Callable[[Any, Any, "Context"], Result]
"""`handler(resources, command, context) -> result`; `resources` are the service's warm engines."""

Unserved = Callable[[Any, Any, "Context"], str | None]
"""`unserved(resources, command, context) -> reason`: what this worker lacks to serve the command;
None if it lacks nothing."""

PATIENCE = 600.0
"""Seconds for which a handler's reads and writes are retried during an outage of the store."""

KEEPS = (CheckpointSaved, Chunk)
"""Events from which another attempt continues."""

_spec_cache: dict[str, Spec] = {}

T = TypeVar("T")


def fetch(store: Store, ref: Ref) -> bytes:
    """The object that `ref` names. Raises `DigestMismatch` if its content differs from `ref`."""
    data = store.get(ref.uri, most=ref.size)
    if Ref.to(ref.uri, data) != ref:
        raise DigestMismatch(f"{ref.uri}: {len(data)} bytes are not the {ref.size} referred to")
    return data


@dataclass
class Context:
    """The context of one attempt of one task."""

    store: Store
    bus: Bus
    command: Command
    scratch: Path
    """A private empty folder, deleted after the attempt."""
    worker: str
    stopping: threading.Event
    """Set when the worker is to stop (SIGTERM)."""
    telemetry: Telemetry = field(default_factory=NoTelemetry)
    restart: Ref | None = None
    """Restart files of the calculation that the stop of the worker interrupted."""
    secret: str | None = field(default=None, repr=False)
    """That of the attempt's claim; it accompanies all events of the attempt."""
    _stop_asked: threading.Event = field(default_factory=threading.Event)
    _stuck: str | None = None
    """Why the task counts as stuck."""
    _progress: str = ""
    _progressed: float = field(default_factory=time.monotonic)
    """When the task last made progress, monotonic clock."""
    _kept: float = field(default_factory=time.monotonic)
    """When the last checkpoint or chunk was published, or the attempt began, monotonic clock."""

    @property
    def prefix(self) -> str:
        c = self.command
        return campaign_uri(c.campaign, "results", c.task, c.attempt)

    def retry(self, call: Callable[[], T]) -> T:
        """The result of a call to the store, retried during outages for `PATIENCE` seconds."""
        return retry_outages(self._counted(call), self.stopping, PATIENCE, self.telemetry)

    def _counted(self, call: Callable[[], T]) -> Callable[[], T]:
        """`call`, which counts as progress: an outage of store or broker makes no task stuck."""

        def counted() -> T:
            self.progressed()
            return call()

        return counted

    def spec(self) -> Spec:
        """The campaign's spec, cached by digest."""
        ref = self.command.spec
        if ref.sha256 not in _spec_cache:
            _spec_cache[ref.sha256] = Spec.model_validate_json(self.fetch(ref))
        return _spec_cache[ref.sha256]

    def fetch(self, ref: Ref) -> bytes:
        """The object that `ref` names, as `fetch`; retried during outages of the store."""
        return self.retry(lambda: fetch(self.store, ref))

    def download(self, ref: Ref, path: Path) -> Path:
        """Write the object that `ref` names to `path`."""
        write_whole(path, self.fetch(ref))
        return path

    def put(self, name: str, data: bytes) -> Ref:
        """Store a result of this attempt under `name`; never replaces an object."""
        uri = f"{self.prefix}/{name}"
        ref = Ref.to(uri, data)
        if not self.retry(lambda: self.store.create(uri, data)):
            self.fetch(ref)  # equal content: an earlier reply was lost; different content raises
        return ref

    def put_restart(self, name: str, data: bytes, seconds: float) -> None:
        """Store restart files of the interrupted calculation, for the release of the task. Gives up
        after `seconds`: the worker has to release the task before its grace period ends."""
        thread = threading.Thread(target=self._put_restart, args=(name, data), daemon=True)
        thread.start()
        thread.join(seconds)
        if self.restart is None:
            log.warning("restart files not stored: the next attempt starts from the beginning")

    def _put_restart(self, name: str, data: bytes) -> None:
        try:
            self.restart = self.put(name, data)
            self._kept = time.monotonic()
        except Exception as error:
            log.warning("cannot store restart files", reason=str(error))

    def publish(self, event: Message) -> None:
        """Publish an event and wait for the broker's confirmation; retried during outages."""
        outgoing = [self.outgoing(event)]
        publish = self._counted(lambda: self.bus.publish(outgoing))
        retry_outages(publish, self.stopping, telemetry=self.telemetry)
        if isinstance(event, KEEPS):
            self._kept = time.monotonic()

    def outgoing(self, event: Message) -> Outgoing:
        return Outgoing(encode(event), topic=topic_of(event), secret=self.secret)

    @property
    def proof(self) -> str:
        """Shows beside a result in the store that it comes from this attempt; no secret."""
        return digest(self.secret or "")

    def envelope(self) -> dict[str, Any]:
        """Fields common to all events of this attempt: `Event(**envelope(), …)`."""
        return envelope_of(self.command)

    def progress(self, text: str) -> None:
        """Set the progress message of the next heartbeats. A new one is progress."""
        if text != self._progress:
            self._progress = text
            self.progressed()

    def progressed(self) -> None:
        """The task made progress: a step, a frame, bytes read, processor time of its program.
        Without any for `Command.STUCK_AFTER` seconds it counts as stuck."""
        self._progressed = time.monotonic()

    @property
    def idle(self) -> float:
        """Seconds without progress."""
        return time.monotonic() - self._progressed

    @property
    def is_cancelled(self) -> bool:
        return self._stop_asked.is_set()

    @property
    def is_preempted(self) -> bool:
        """Whether the task ends because the worker is to stop, although its result is needed."""
        return self.stopping.is_set() and not self.is_cancelled

    @property
    def unsaved(self) -> float:
        """Seconds of work that another attempt would repeat."""
        return time.monotonic() - self._kept

    def check(self) -> None:
        """Raise `Stopped` if the task was cancelled or the worker is to stop, and `Stuck` if it
        makes no progress or should have ended long ago. Used as the `tick` of engine calls."""
        if self.is_cancelled:
            raise Stopped("cancelled")
        if self.stopping.is_set():
            raise Stopped("the worker is stopping")
        if self._stuck is not None:
            raise Stuck(self._stuck)


def envelope_of(attempt: Command | TaskCancelled) -> dict[str, Any]:
    """Fields common to all events about an attempt, with a new id and the present time."""
    return {
        "id": str(uuid.uuid4()),
        "campaign": attempt.campaign,
        "time": time.time(),
        "cause": attempt.id,
        "task": attempt.task,
        "attempt": attempt.attempt,
    }
