"""The coordinator at its edge: hear, fold, append, publish, acknowledge — in that order.

Everything decided is in `policy.decide`; everything remembered is in the ledger. Here are only the
clock (leases, re-issues), the bus, and the objects that decisions ask for.
"""

from __future__ import annotations

import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import structlog
from pydantic import ValidationError

from services.coordinator.backlog import Backlog
from services.coordinator.evolve import evolve
from services.coordinator.ledger import Entry, Ledger, Segment
from services.coordinator.policy import decide
from services.coordinator.state import State
from shared import messages as m
from shared.errors import Fenced, NotFound
from shared.ports import Bus, Delivery, Outgoing, Store
from shared.topology import COORDINATOR
from shared.values import Ref, stable_id
from shared.worker import claim_uri

log = structlog.get_logger()

BATCH = 64
PUBLIC = (m.ModelsReady, m.StageEnded, m.CampaignFinished, m.CampaignPaused)
"""Decisions that the outside may listen to."""


@dataclass
class Desk:
    """One campaign at hand."""

    ledger: Ledger
    state: State
    backlog: Backlog
    leases: dict[str, float] = field(default_factory=dict)
    """Deadlines of running tasks."""
    progress: dict[str, str] = field(default_factory=dict)
    inbox: list[m.Message] = field(default_factory=list)
    """Events that this edge says itself."""


@dataclass
class Coordinator:
    """Serves any number of campaigns, one event batch after the other."""

    bus: Bus
    store: Store
    lease_seconds: float = 900.0
    reissue_after: float = 600.0
    clock: Callable[[], float] = time.time
    desks: dict[str, Desk] = field(default_factory=dict)
    fenced: dict[str, str] = field(default_factory=dict)

    def run(self, stopping: threading.Event) -> None:
        """Serve until `stopping` is set."""
        subscription = self.bus.consume(COORDINATOR, prefetch=BATCH)
        while not stopping.is_set():
            self.hear(self._take(subscription.next(timeout=0.5), subscription.next))
            self.tend()
        subscription.cancel()

    def open(self, campaign: str, workers_are_gone: bool = False) -> Desk:
        """Take a campaign over: rebuild its state, say the last segment's messages again. With
        `workers_are_gone` (everything ran in one process, which ended) running tasks are free."""
        ledger, state = Ledger.open(self.store, campaign)
        desk = Desk(ledger, state, Backlog(self.reissue_after))
        self.desks[campaign] = desk
        for task in state.tasks.values():
            if task.status == "open":
                desk.backlog.add(task.command, task.not_before)
            elif task.status == "running" and workers_are_gone:
                desk.inbox.append(self._released(task.command))
            elif task.status == "running":
                desk.leases[task.command.task] = self.clock() + self.lease_seconds
        desk.inbox += ledger.orphans
        if ledger.last is not None:
            self._act(desk, ledger.last)
        return desk

    def hear(self, deliveries: Sequence[Delivery]) -> None:
        """One batch: fold it, append it, publish what follows, then acknowledge."""
        by_campaign: dict[str, list[m.Message]] = {}
        for delivery in deliveries:
            event = self._read(delivery)
            if event is not None:
                by_campaign.setdefault(event.campaign, []).append(event)
        for campaign, events in by_campaign.items():
            self._serve(campaign, events)
        for delivery in deliveries:
            delivery.ack()

    def tend(self) -> None:
        """What the clock asks for: leases, events of our own, tasks to publish."""
        now = self.clock()
        for campaign, desk in list(self.desks.items()):
            lapsed = self._lapsed(desk, now)
            if desk.inbox or lapsed:
                events, desk.inbox = [*desk.inbox, *lapsed], []
                self._serve(campaign, events)
        for desk in self.desks.values():
            if desk.state.paused is None and desk.state.finished is None:
                desk.backlog.publish(self.bus, now, share=len(self.desks))

    def _serve(self, campaign: str, events: Iterable[m.Message]) -> None:
        if campaign in self.fenced:
            return
        try:
            desk = self.desks.get(campaign) or self.open(campaign)
            self._handle(desk, events)
        except NotFound:
            log.warning("event of an unknown campaign", campaign=campaign)
        except Fenced as error:
            log.error("fenced off", campaign=campaign, reason=str(error))
            self.fenced[campaign] = str(error)
            self.desks.pop(campaign, None)

    def _handle(self, desk: Desk, events: Iterable[m.Message]) -> None:
        entries: list[Entry] = []
        state = desk.state
        for event in events:
            if self._is_sign_of_life(desk, event):
                continue
            after, decided = self._decide(state, event)
            if after is not state:
                entries.append(Entry(event, decided))
                state = after
        if not entries:
            return
        segment = desk.ledger.append(entries)
        desk.state = state
        desk.ledger.snapshot(state)
        self._track(desk, segment)
        self._act(desk, segment)

    def _decide(self, state: State, event: m.Message) -> tuple[State, tuple[m.Message, ...]]:
        """`decide`; an event it raises on pauses its campaign, and nothing else."""
        try:
            return decide(state, event)
        except Exception as error:
            log.exception("unprocessable event", campaign=event.campaign, type=type(event).__name__)
            paused = m.CampaignPaused(
                id=str(uuid.uuid4()),
                campaign=event.campaign,
                time=self.clock(),
                cause=event.id,
                why=f"unprocessable {type(event).__name__} {event.id}: {error}",
                trace=traceback.format_exc()[-8000:],
            )
            return evolve(state, paused), (paused,)

    def _is_sign_of_life(self, desk: Desk, event: m.Message) -> bool:
        """Heartbeats are neither ledgered nor decided: they renew a lease."""
        if isinstance(event, (m.TaskHeartbeat, m.TaskClaimed, m.ChunkExplored)):
            task = desk.state.tasks.get(event.task)
            if task is not None and task.command.attempt == event.attempt:
                desk.leases[event.task] = self.clock() + self.lease_seconds
        if isinstance(event, m.TaskHeartbeat):
            desk.progress[event.task] = event.progress
            return True
        return False

    def _track(self, desk: Desk, segment: Segment) -> None:
        """Keep the backlog and the leases in step with the ledger."""
        for entry in segment.entries:
            if isinstance(entry.heard, m.TaskEvent):
                task = desk.state.tasks.get(entry.heard.task)
                if task is None or task.status != "open":
                    desk.backlog.claimed(entry.heard.task)
                if task is None or task.status != "running":
                    desk.leases.pop(entry.heard.task, None)
                    desk.progress.pop(entry.heard.task, None)
            for decision in entry.decided:
                if isinstance(decision, m.Command):
                    task = desk.state.tasks[decision.task]
                    desk.backlog.add(decision, task.not_before)

    def _act(self, desk: Desk, segment: Segment) -> None:
        """Carry a segment's decisions out. Doing it again changes nothing."""
        public: list[Outgoing] = []
        for entry in segment.entries:
            for decision in entry.decided:
                if isinstance(decision, m.ManifestFrozen):
                    self.store.create(decision.manifest.uri, decision.body.encode())
                elif isinstance(decision, m.TaskCancelled):
                    self._cancel(desk, decision)
                elif isinstance(decision, PUBLIC):
                    public.append(Outgoing(m.encode(decision), topic=m.topic_of(decision)))
        if public:
            self.bus.publish(public)

    def _cancel(self, desk: Desk, decision: m.TaskCancelled) -> None:
        """Win the task's claim, so that nobody starts it; or, where it runs, ask for its end
        (labels are let finish: they are worth keeping)."""
        revoked = m.TaskRevoked(
            id=stable_id("revoked", decision.task, decision.attempt),
            campaign=decision.campaign,
            time=self.clock(),
            cause=decision.id,
            task=decision.task,
            attempt=decision.attempt,
        )
        key = claim_uri(decision.campaign, decision.task, decision.attempt)
        if self.store.create(key, m.encode(revoked)) or self._is_revoked(key):
            desk.backlog.claimed(decision.task)
            desk.inbox.append(revoked)
        elif not isinstance(desk.state.tasks[decision.task].command, m.Label):
            self.store.put(f"{key}.stop", b"{}")

    def _is_revoked(self, key: str) -> bool:
        return isinstance(m.decode(self.store.get(key)), m.TaskRevoked)

    def _lapsed(self, desk: Desk, now: float) -> list[m.Message]:
        late = [task for task, deadline in desk.leases.items() if now > deadline]
        if late and self.bus.depth(COORDINATOR):
            # Their heartbeats may be waiting in our own queue: nobody lapses while we lag behind.
            desk.leases.update(dict.fromkeys(late, now + self.lease_seconds))
            return []
        events: list[m.Message] = []
        for task in late:
            del desk.leases[task]
            attempt = desk.state.tasks[task].command.attempt
            events.append(
                m.LeaseLapsed(
                    id=stable_id("lapsed", task, attempt),
                    campaign=desk.ledger.campaign,
                    time=now,
                    task=task,
                    attempt=attempt,
                )
            )
        return events

    def _released(self, command: m.Command) -> m.Message:
        return m.TaskReleased(
            id=stable_id("released", command.task, command.attempt),
            campaign=command.campaign,
            time=self.clock(),
            task=command.task,
            attempt=command.attempt,
            reason="the process ended",
        )

    def _read(self, delivery: Delivery) -> m.Message | None:
        """The event in a delivery; what cannot be decoded is kept aside and never blocks."""
        try:
            message = m.decode(delivery.body)
        except ValidationError:
            ref = Ref.to("x", delivery.body)
            self.store.create(f"deadletters/{ref.sha256}", delivery.body)
            log.warning("undecodable event buried", sha256=ref.sha256)
            return None
        assert isinstance(message, m.Message)
        return message

    def _take(
        self, first: Delivery | None, following: Callable[[float], Delivery | None]
    ) -> list[Delivery]:
        """What has come in by now, up to a batch."""
        taken = [] if first is None else [first]
        while taken and len(taken) < BATCH:
            delivery = following(0.0)
            if delivery is None:
                break
            taken.append(delivery)
        return taken
