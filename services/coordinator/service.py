"""The coordinator at its edge: hear, fold, append, publish, acknowledge — in that order.

Everything decided is in `policy.decide`; everything remembered is in the ledger. Here are only the
clock (leases, re-issues), the bus, and the objects that decisions ask for.
"""

from __future__ import annotations

import threading
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

from dpstream.services.coordinator.apply import apply
from dpstream.services.coordinator.inbox import Inbox
from dpstream.services.coordinator.ledger.ledger import (
    Ledger,
    LedgerEntry,
    Segment,
    begun_and_ended,
    finished_uri,
)
from dpstream.services.coordinator.open_campaign import OpenCampaign, envelope
from dpstream.services.coordinator.policy import decide
from dpstream.services.coordinator.state import State, Task
from dpstream.services.coordinator.task_queue import TaskQueue
from dpstream.shared import messages as m
from dpstream.shared.bus.batch import take, waiting
from dpstream.shared.bus.topology import COORDINATOR, DEADLETTERS
from dpstream.shared.codec import decode, encode, topic_of
from dpstream.shared.errors import BusError, CorruptLedger, Fenced, StoreError
from dpstream.shared.logs import logger
from dpstream.shared.ports import Bus, Delivery, Outgoing, Store, Subscription
from dpstream.shared.runtime.worker import claim_uri
from dpstream.shared.values import campaign_uri

log = logger()

BATCH = 64
AMPLE = 10
"""Tasks in flight per queue, so many that nobody will soon wait for more."""
WAIT = 0.5
"""Seconds between looks at the clock when nothing is heard."""
PAUSE, LONGEST_PAUSE = 0.1, 30.0
"""Seconds before another try during an outage: doubled every time."""
FENCE_CHECK = 20.0
"""Seconds between looks for a newer coordinator while there is nothing to write: an overtaken one
would go on taking heartbeats off the queue."""


@dataclass
class Coordinator:
    """Serves any number of campaigns, one event batch after the other."""

    bus: Bus
    store: Store
    lease_seconds: float = 900.0
    reissue_after: float = 600.0
    clock: Callable[[], float] = time.time
    open_campaigns: dict[str, OpenCampaign] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    """Campaigns whose ledger cannot be read, and why."""
    ended: set[str] = field(default_factory=set)
    """Campaigns that had ended when this coordinator began."""
    timed: Callable[[float], object] = lambda seconds: None
    """Told how long each `decide` took, s."""
    connected: bool = False
    turned: float = field(default_factory=time.monotonic)
    """When the service loop was last seen alive, by the monotonic clock."""
    _tended: float | None = None
    _fences_checked: float = 0.0

    def __post_init__(self) -> None:
        self.inbox = Inbox(self.store, self.clock)

    def open_all(self) -> None:
        """Take over every campaign in the store that has not ended."""
        self.inbox.count()
        begun, self.ended = begun_and_ended(self.store)
        for campaign in sorted(begun - self.ended):
            self._opened(campaign)
            self.turned = time.monotonic()

    def run(self, stopping: threading.Event) -> None:
        """Serve until `stopping` is set; outages of bus and store are waited out. Raises `Fenced`
        when a newer coordinator is at work."""
        pause = PAUSE
        while not stopping.is_set():
            try:
                for _ in self._served(stopping):
                    pause, self.connected, self.turned = PAUSE, True, time.monotonic()
            except (BusError, StoreError) as error:
                self.connected, self.turned = False, time.monotonic()
                log.warning("bus or store failed, trying again", reason=str(error), after=pause)
                stopping.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    def _served(self, stopping: threading.Event) -> Iterator[None]:
        """Our subscriptions, until one fails or `stopping` is set; yields after every turn."""
        with ExitStack() as until_then:
            events, dead = (
                self._subscribed(queue, until_then) for queue in (COORDINATOR, DEADLETTERS)
            )
            while not stopping.is_set():
                self.hear(take(events, BATCH, WAIT, self.can_wait))
                self.hear(waiting(dead, BATCH))
                self.tend()
                if not (events.open and dead.open):
                    raise BusError("the subscription ended")
                yield

    def can_wait(self, event: m.Message) -> bool:
        """Whether nobody is idle because of it: nothing follows from a claim, and the answer to a
        result is waited for only where a queue runs dry."""
        if isinstance(event, m.Result):
            open_campaign = self.open_campaigns.get(event.campaign)
            queue = open_campaign.task_queue.whence(event.task) if open_campaign else None
            return queue is not None and self._in_flight(queue) >= AMPLE
        return isinstance(event, (m.TaskClaimed, m.TaskHeartbeat))

    def _in_flight(self, queue: str) -> int:
        return sum(
            open_campaign.task_queue.in_flight(queue)
            for open_campaign in self.open_campaigns.values()
        )

    def _subscribed(self, queue: str, until: ExitStack) -> Subscription:
        subscription = self.bus.consume(queue, prefetch=BATCH)

        def cancel() -> None:
            with suppress(BusError):
                subscription.cancel()

        until.callback(cancel)
        return subscription

    def open(self, campaign: str, workers_are_gone: bool = False) -> OpenCampaign:
        """Take a campaign over: rebuild its state, say the last segment's messages again. With
        `workers_are_gone` (everything ran in one process, which ended) claimed tasks are free."""
        ledger, state = Ledger.open(self.store, campaign)
        open_campaign = OpenCampaign(ledger, state, TaskQueue(self.reissue_after))
        for task in state.tasks.values():
            if workers_are_gone and self._is_claimed(task):
                open_campaign.own_events.append(self._released(task.command))
            elif task.status == "open":
                open_campaign.task_queue.add(task.command, task.not_before)
            elif task.status == "running":
                open_campaign.leases[task.command.task] = self.clock() + self.lease_seconds
                open_campaign.task_queue.started(task.command)
        open_campaign.own_events += ledger.orphans
        if state.submitted is None and (submitted := self.inbox.submission(campaign)):
            open_campaign.own_events.append(submitted)
        self.open_campaigns[campaign] = open_campaign
        self._recover(open_campaign)
        if open_campaign.state.finished is not None:
            self._mark_finished(open_campaign.state.finished)
        return open_campaign

    def _mark_finished(self, finished: m.CampaignFinished) -> None:
        """For those who would otherwise have to read the whole ledger to know."""
        self.store.create(finished_uri(finished.campaign), encode(finished))

    def _recover(self, open_campaign: OpenCampaign) -> None:
        """Take up what an outage or a restart cut off: a segment written though nobody said so,
        the last segment's messages."""
        open_campaign.in_doubt = True
        state = open_campaign.ledger.recover(open_campaign.state)
        if state is not open_campaign.state and open_campaign.ledger.last is not None:
            open_campaign.state = state
            open_campaign.track(open_campaign.ledger.last)
        if open_campaign.ledger.last is not None:
            self._act(open_campaign, open_campaign.ledger.last)
        open_campaign.in_doubt = False

    def hear(self, deliveries: Sequence[Delivery]) -> None:
        """One batch: fold it, append it, publish what follows, then acknowledge. What an outage
        (`BusError`, `StoreError`, raised in the end) kept from the ledger goes back to the bus."""
        read: list[tuple[Delivery, m.Message | None]] = []
        try:
            read = [(delivery, self.inbox.read(delivery)) for delivery in deliveries]
            self._hear(read)
        except (BusError, StoreError, Fenced):
            with suppress(BusError):
                for delivery in reversed(deliveries):
                    delivery.reject()  # has no effect on what is acknowledged
            raise

    def _hear(self, read: Sequence[tuple[Delivery, m.Message | None]]) -> None:
        by_campaign: dict[str | None, list[tuple[Delivery, m.Message | None]]] = {}
        for delivery, event in read:
            by_campaign.setdefault(event.campaign if event else None, []).append((delivery, event))
        outage: Exception | None = None
        for campaign, batch in by_campaign.items():
            try:
                if campaign is not None:
                    self._serve(campaign, [event for _, event in batch if event is not None])
            except (BusError, StoreError) as error:  # the other campaigns may fare better
                outage = error
                continue
            for delivery, _ in batch:
                delivery.ack()
        if outage is not None:
            raise outage

    def tend(self) -> None:
        """What the clock asks for: leases, events of our own, tasks to publish."""
        now = self.clock()
        self._excuse_absence(now)
        self._check_fences(now)
        for campaign, open_campaign in list(self.open_campaigns.items()):
            lapsed = self._lapsed(open_campaign, now)
            if open_campaign.own_events or lapsed or open_campaign.in_doubt:
                self._serve(campaign, lapsed)
            self._publish_tasks(open_campaign)

    def _excuse_absence(self, now: float) -> None:
        """Nobody's lease runs while this coordinator is not looking: a laptop asleep, an outage."""
        absence = 0.0 if self._tended is None else now - self._tended
        self._tended = now
        if absence > self.lease_seconds / 4:
            for open_campaign in self.open_campaigns.values():
                open_campaign.leases = {
                    task: end + absence for task, end in open_campaign.leases.items()
                }

    def _check_fences(self, now: float) -> None:
        if abs(now - self._fences_checked) < FENCE_CHECK:
            return
        self._fences_checked = now
        for open_campaign in self.open_campaigns.values():
            if open_campaign.state.finished is None:
                open_campaign.ledger.check()

    def _publish_tasks(self, open_campaign: OpenCampaign) -> None:
        if open_campaign.active:
            share = sum(other.active for other in self.open_campaigns.values())
            busy = sum(
                (other.task_queue.busy for other in self.open_campaigns.values()), Counter[str]()
            )
            open_campaign.task_queue.publish(self.bus, self.clock(), share, busy)

    def _serve(self, campaign: str, events: Sequence[m.Message]) -> None:
        open_campaign = self._opened(campaign)
        if open_campaign is None:
            return
        try:
            if open_campaign.in_doubt:
                self._recover(open_campaign)
            own = tuple(open_campaign.own_events)
            self._handle(open_campaign, [*own, *events])
        except (BusError, StoreError):
            open_campaign.in_doubt = True
            raise
        del open_campaign.own_events[: len(own)]
        self._publish_tasks(open_campaign)

    def _opened(self, campaign: str) -> OpenCampaign | None:
        """The campaign's desk, opened if need be; None for one that is unknown or broken."""
        if campaign in self.open_campaigns or campaign in self.broken:
            return self.open_campaigns.get(campaign)
        if not self.store.exists(campaign_uri(campaign, "spec.json")):
            log.warning("event of an unknown campaign", campaign=campaign)
            return None
        try:
            return self.open(campaign)
        except (CorruptLedger, ValueError) as error:  # or a spec that this version cannot read
            log.error("ledger cannot be read", campaign=campaign, reason=str(error))
            self.broken[campaign] = str(error)
            return None

    def _handle(self, open_campaign: OpenCampaign, events: Iterable[m.Message]) -> None:
        entries: list[LedgerEntry] = []
        state = open_campaign.state
        for event in events:
            if open_campaign.is_sign_of_life(event, self.clock() + self.lease_seconds):
                continue
            after, decided = self._decide(state, event)
            if after is not state:
                entries.append(LedgerEntry(event, decided))
                state = after
        if not entries:
            return
        segment = open_campaign.ledger.append(entries)
        open_campaign.state = state
        open_campaign.track(segment)
        self._act(open_campaign, segment)
        open_campaign.ledger.snapshot(state)

    def _decide(self, state: State, event: m.Message) -> tuple[State, tuple[m.Message, ...]]:
        """`decide`; an event it raises on pauses its campaign, and nothing else."""
        try:
            began = time.perf_counter()
            after, decided = decide(state, event)
            self.timed(time.perf_counter() - began)
            for command in decided:
                if isinstance(command, m.Command):
                    encode(command)  # refuses what is too long for the wire
            return after, decided
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
            return apply(state, paused), (paused,)

    def _act(self, open_campaign: OpenCampaign, segment: Segment) -> None:
        """Carry a segment's decisions out. Doing it again changes nothing."""
        public: list[Outgoing] = []
        for entry in segment.entries:
            for decision in entry.decided:
                if isinstance(decision, m.ManifestFrozen):
                    self.store.create(decision.manifest.uri, decision.body.encode())
                elif isinstance(decision, m.TaskCancelled):
                    self._cancel(open_campaign, decision)
                elif isinstance(decision, m.Event) and "coordinator" in decision.PUBLISHERS:
                    public.append(Outgoing(encode(decision), topic=topic_of(decision)))
                if isinstance(decision, m.CampaignFinished):
                    self._mark_finished(decision)
        if public:
            self.bus.publish(public)

    def _cancel(self, open_campaign: OpenCampaign, decision: m.TaskCancelled) -> None:
        """Win the task's claim, so that nobody starts it; or, where it runs, ask for its end
        (labels are let finish: they are worth keeping)."""
        revoked = m.TaskRevoked(**envelope(decision, "revoked", self.clock()))
        key = claim_uri(decision.campaign, decision.task, decision.attempt)
        if self.store.create(key, encode(revoked)) or self._is_revoked(key):
            open_campaign.task_queue.claimed(decision.task)
            open_campaign.own_events.append(revoked)
        elif not isinstance(open_campaign.state.tasks[decision.task].command, m.Label):
            self.store.put(f"{key}.stop", b"{}")

    def _is_revoked(self, key: str) -> bool:
        return isinstance(decode(self.store.get(key)), m.TaskRevoked)

    def _lapsed(self, open_campaign: OpenCampaign, now: float) -> list[m.Message]:
        late = open_campaign.overdue(now)
        if late and self.bus.depth(COORDINATOR):
            # Their heartbeats may be waiting in our own queue: nobody lapses while we lag behind.
            open_campaign.leases.update(dict.fromkeys(late, now + self.lease_seconds))
            return []
        return [open_campaign.lapse(task, now) for task in late]

    def _is_claimed(self, task: Task) -> bool:
        """Whether a worker has it, be it that nobody has heard of that yet."""
        command = task.command
        if task.status != "open":
            return task.status == "running"
        return self.store.exists(claim_uri(command.campaign, command.task, command.attempt))

    def _released(self, command: m.Command) -> m.Message:
        ended = envelope(command, "released", self.clock())
        return m.TaskReleased(**ended, reason="the process ended")
