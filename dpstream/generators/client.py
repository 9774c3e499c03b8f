"""The Python client for structure generators: offers frames to a campaign and receives verdicts.

    with Generator.connect(broker, store, campaign="methane", name="my-ga") as generator:
        generator.propose(frames)
        for verdict in generator.verdicts(timeout=600):
            print(verdict.index, verdict.verdict, verdict.deviation, verdict.energy)

Any other AMQP client can do the same; see `docs/generators.md`.
"""

from __future__ import annotations

import io
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from dpstream.running.connection import open_bus, open_store
from dpstream.shared.atoms.frames import Frame, as_frame, to_ase
from dpstream.shared.codec import decode, encode, topic_of
from dpstream.shared.errors import BusError, NotFound, QueueFull, SpecError
from dpstream.shared.files import write_whole
from dpstream.shared.logs import logger
from dpstream.shared.messages import StructuresJudged, StructuresProposed
from dpstream.shared.ports import Bus, Outgoing, Store, Subscription
from dpstream.shared.runtime.context import fetch
from dpstream.shared.spec.errors import NAMES
from dpstream.shared.values import Committee, Name, OfferedFrame, Ref, campaign_uri, stable_id

log = logger()

PART = 100
"""Largest number of frames per message."""
POLL = 0.5
"""Seconds to wait for a delivery before the timeout is checked."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds between attempts to publish while the queue of proposals is full: the first, doubled up
to the second."""


@dataclass(frozen=True)
class Verdict:
    """The verdict on frame `index` of the proposal `correlation`; fields as in
    `dpstream.shared.values.FrameVerdict`. `version`: the committee that judged, 0 for none."""

    correlation: str
    index: int
    verdict: str
    deviation: float | None = None
    """eV/Å."""
    energy: float | None = None
    """eV."""
    version: int = 0
    key: str | None = None
    reason: str = ""

    @property
    def is_final(self) -> bool:
        return self.verdict != "candidate"


class Generator:
    """The connection of one generator to one campaign. It receives verdicts until `close`."""

    def __init__(self, bus: Bus, store: Store, campaign: str, name: str) -> None:
        """Raises `SpecError` for an unknown campaign or an invalid name."""
        for key, value in (("campaign", campaign), ("generator", name)):
            _check_name(key, value)
        if not store.exists(campaign_uri(campaign, "spec.json")):
            raise SpecError(f"--campaign: {campaign!r}: no such campaign in the store")
        self.bus, self.store, self.campaign, self.name = bus, store, campaign, name
        self._version = 0
        self._subscription = self._subscribe()

    @classmethod
    def connect(cls, broker: str, store: str, campaign: str, name: str) -> Generator:
        """Connect to `broker` (amqp://… URL) and `store` (s3://bucket/prefix or a folder);
        certificates and keys come from `DPSTREAM_BROKER_…` and `DPSTREAM_STORE_…`."""
        opened = open_bus(broker)
        try:
            return cls(opened, open_store(store), campaign, name)
        except BaseException:
            opened.close()
            raise

    def propose(
        self,
        frames: Sequence[Any],
        label: bool = False,
        priority: int = 0,
        correlation: str | None = None,
        first: int = 0,
    ) -> str:
        """Offer frames (`ase.Atoms` or `Frame`) to the campaign.

        The committee screens them first unless `label` is true. Labels of higher `priority` are
        computed earlier. Returns, once the broker has the frames, the correlation that their
        verdicts carry; waits while the queue of proposals is full. To add frames to an earlier
        `correlation`, give the index of the `first`.
        Raises `SpecError` for an invalid frame.
        """
        correlation = correlation or str(uuid.uuid4())
        plain = [as_frame(frame, f"frame {first + n}") for n, frame in enumerate(frames)]
        about = {
            "campaign": self.campaign,
            "generator": self.name,
            "correlation": correlation,
            "mode": "label" if label else "screen",
            "priority": priority,
        }
        starts = range(0, len(plain), PART)
        parts = [self._message(about, plain[n : n + PART], first + n) for n in starts]
        for part in parts:
            self._offer(Outgoing(encode(part), topic=topic_of(part)))
        return correlation

    def _offer(self, part: Outgoing) -> None:
        """Publish; while the queue of proposals is full, wait and try again."""
        pause = FIRST_PAUSE
        while True:
            try:
                return self.bus.publish([part])
            except QueueFull:
                log.warning("the queue of proposals is full, trying again", after=pause)
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    def verdicts(self, timeout: float | None = None) -> Iterator[Verdict]:
        """Yield verdicts on this generator's frames as they arrive, until none arrives for
        `timeout` seconds. Raises `BusError` if the connection is lost, since verdicts may have
        been missed."""
        latest = time.monotonic()
        while timeout is None or time.monotonic() - latest < timeout:
            for verdict in self._receive(POLL if timeout is None else min(POLL, timeout)):
                latest = time.monotonic()
                yield verdict

    def verdicts_on(self, correlation: str, count: int) -> Iterator[Verdict]:
        """Yield the verdicts on the `count` frames of one proposal as they arrive, until each frame
        has its final one. Raises as `verdicts`."""
        waiting = set(range(count))
        verdicts = self.verdicts()
        while waiting:
            verdict = next(verdicts)
            if verdict.correlation == correlation:
                if verdict.is_final:
                    waiting.discard(verdict.index)
                yield verdict

    def models(self, folder: Path) -> list[Path]:
        """Download the newest committee's models to `folder`; paths in the order of its members,
        empty if there is no committee yet."""
        newest = None
        while (committee := self._committee(self._version + 1)) is not None:
            newest, self._version = committee, self._version + 1
        newest = newest or self._committee(self._version)
        return [] if newest is None else [self._download(ref, folder) for ref in newest.models]

    def close(self) -> None:
        with suppress(BusError):
            self._subscription.cancel()
        self.bus.close()

    def __enter__(self) -> Generator:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------ sending

    def _message(
        self, about: dict[str, Any], frames: Sequence[Frame], first: int
    ) -> StructuresProposed:
        """The proposal, with its frames by value if they fit into a message, else by reference."""
        name = stable_id("proposal", *about.values(), first)
        envelope = {**about, "id": name, "time": time.time(), "first": first}
        message = StructuresProposed(**envelope, frames=tuple(_offered(f) for f in frames))
        try:
            encode(message)
            return message
        except ValueError:
            batch = self._upload(_extxyz(frames))
            return StructuresProposed(**envelope, batch=batch, count=len(frames))

    def _upload(self, data: bytes) -> Ref:
        name = f"{Ref.to('x', data).sha256[:32]}.extxyz"
        ref = Ref.to(campaign_uri(self.campaign, "proposals", name), data)
        self.store.create(ref.uri, data)
        return ref

    # ------------------------------------------------------------------------------ receiving

    def _subscribe(self) -> Subscription:
        queue = f"watch-{uuid.uuid4()}"
        self.bus.bind(queue, f"{self.campaign}.structures-judged")
        return self.bus.consume(queue, prefetch=100)

    def _receive(self, wait: float) -> list[Verdict]:
        start = time.monotonic()
        delivery = self._subscription.next(timeout=wait)
        if delivery is None:
            if time.monotonic() - start < wait / 2:
                raise BusError("the connection was lost; verdicts may have been missed")
            return []
        delivery.ack()
        try:
            event = decode(delivery.body)
        except ValidationError:  # not a message of dpstream
            return []
        return list(_verdicts(event)) if self._is_mine(event) else []

    def _is_mine(self, event: Any) -> bool:
        """Whether an event is a verdict on this generator's frames: others may use its name, but
        not its user. No user is stated by a coordinator without users and for proposals of release
        0.1.0."""
        return (
            isinstance(event, StructuresJudged)
            and event.generator == self.name
            and event.user in (None, self.bus.user)
        )

    def _committee(self, version: int) -> Committee | None:
        uri = campaign_uri(self.campaign, "committees", f"{version}.json")
        try:
            return Committee.model_validate_json(self.store.get(uri))
        except NotFound:
            return None

    def _download(self, ref: Ref, folder: Path) -> Path:
        path = folder / f"{ref.sha256[:16]}{Path(ref.uri).suffix}"
        if not path.exists():
            write_whole(path, fetch(self.store, ref))
        return path


def _check_name(key: str, value: str) -> None:
    try:
        TypeAdapter(Name).validate_python(value)
    except ValidationError as error:
        raise SpecError(f"--{key}: {value!r}: {NAMES}") from error


def _offered(frame: Frame) -> OfferedFrame:
    return OfferedFrame(
        species=frame.species,
        positions=tuple(map(tuple, frame.positions.tolist())),
        cell=None if frame.cell is None else tuple(map(tuple, frame.cell.tolist())),
    )


def _extxyz(frames: Sequence[Frame]) -> bytes:
    from ase.io import write  # deferred: ASE is slow to import

    text = io.StringIO()
    write(text, [to_ase(frame) for frame in frames], format="extxyz")
    return text.getvalue().encode()


def _verdicts(event: StructuresJudged) -> Iterator[Verdict]:
    """One verdict per frame, also if the proposal was refused as a whole."""
    if event.refused:
        for index in range(event.first, event.first + event.count):
            yield Verdict(event.correlation, index, "refused", reason=event.refused)
    for verdict in event.verdicts:
        yield Verdict(event.correlation, version=event.version, **verdict.model_dump())
