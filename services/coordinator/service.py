"""The coordinator's main loop: connects the pure policy to bus, store and clock.

One pass takes a batch of events and, for each campaign among them,

1. decides: `policy.decide` applies the event and returns the decisions;
2. appends events and decisions to the ledger as one segment;
3. acts on the decisions: stores manifests, publishes public events, cancels tasks;
4. publishes queued commands, and acknowledges the events.

The order matters. An event is acknowledged only when it is in the ledger, and nothing is published
that is not. If the coordinator dies in between, the bus delivers the events again and `_recover`
repeats the actions of the last segment; both have no further effect. Between batches,
`check_clock` looks for leases that have ended and tasks that are due. Before each batch, the
requests of operators are taken from a queue of their own; after it, proposals of generators.

A failure of bus or store (`BusError`, `StoreError`) leaves the affected campaigns marked
`needs_recovery` and is retried. `Fenced`, raised when a newer coordinator has taken over, ends the
process.
"""

from __future__ import annotations

import threading
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import chain

from dpstream.services.coordinator.apply import apply
from dpstream.services.coordinator.fleet.plan import Demand
from dpstream.services.coordinator.fleet.processes import ABOUT_PROCESSES, Processes
from dpstream.services.coordinator.fleet.status import FleetStatus
from dpstream.services.coordinator.inbox import Inbox
from dpstream.services.coordinator.leases import Leases
from dpstream.services.coordinator.ledger.ledger import (
    Ledger,
    LedgerEntry,
    Segment,
    begun_and_ended,
    finished_uri,
)
from dpstream.services.coordinator.open_campaign import OpenCampaign, header
from dpstream.services.coordinator.parked import ParkedEvents
from dpstream.services.coordinator.policy import decide
from dpstream.services.coordinator.state import State, Task
from dpstream.services.coordinator.task_queue import TaskQueue
from dpstream.services.coordinator.untrusted import read_message
from dpstream.shared import messages as m
from dpstream.shared.bus.batch import take, take_ready
from dpstream.shared.bus.topology import CONTROL, COORDINATOR, DEADLETTERS, PROPOSALS
from dpstream.shared.codec import encode, topic_of
from dpstream.shared.errors import (
    BusError,
    CorruptLedger,
    DigestMismatch,
    Fenced,
    Refused,
    StoreError,
)
from dpstream.shared.logs import logger
from dpstream.shared.ports import Bus, Delivery, Outgoing, Store, Subscription
from dpstream.shared.programs import Programs
from dpstream.shared.runtime.worker import claim_uri
from dpstream.shared.spec.training import GPU_BATCH
from dpstream.shared.values import PROGRAMS, campaign_uri, stable_id

log = logger()

DAMAGE = (CorruptLedger, DigestMismatch)
"""What is wrong with one campaign, and no outage."""
BATCH = 64
WELL_STOCKED = 10
"""Published tasks per queue above which no worker is about to run out of work."""
WITHOUT = {
    CONTROL: "operators' requests wait behind all other events",
    PROPOSALS: "generators cannot propose",
}
"""What follows if a queue may not be read."""
WAIT = 0.5
"""Longest time without checking the clock, s."""
PAUSE, LONGEST_PAUSE = 0.1, 30.0
"""Delay before a retry during an outage, s: the first one, doubled up to the second."""
PROCESS_CHECK = 1.0
"""Interval at which all running tasks are compared with the processes of the workers, s: as often
as the reconciler brings news."""
FENCE_CHECK = 20.0
"""Interval of checks for a newer coordinator, s. An idle coordinator needs them: it writes no
segment that would reveal that it was overtaken, but consumes heartbeats."""


@dataclass
class Coordinator:
    """Serves any number of campaigns in one thread, one batch of events after the other."""

    bus: Bus
    store: Store
    lease_seconds: float = 900.0
    reissue_after: float = 600.0
    patience: float = 600.0
    """Seconds after which a campaign pauses whose tasks are declined by all workers."""
    clock: Callable[[], float] = time.time
    """For the times in messages, seconds since the epoch."""
    timer: Callable[[], float] = time.monotonic
    """For leases and delays, which a change of the machine's clock must not move, s."""
    open_campaigns: dict[str, OpenCampaign] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    """Campaigns whose ledger cannot be read, and why."""
    ended: set[str] = field(default_factory=set)
    """Campaigns that had ended when this coordinator started."""
    on_decided: Callable[[float], object] = lambda seconds: None
    """Called with the duration of each `decide`, s."""
    on_demand: Callable[[Mapping[str, Demand]], object] | None = None
    """Called with the demand for workers, by queue, after every pass."""
    fleet_status: Callable[[], FleetStatus | None] = lambda: None
    """The workers started on demand, as of the last turn; None without a fleet file."""
    wanted: Mapping[str, int] = field(default_factory=dict)
    """Workers that the fleet wants for each queue; set from another thread."""
    processes: Processes = field(default_factory=Processes)
    """Of the workers; shared with the reconciler."""
    programs: Programs | None = None
    """Of the workers, as in the store; None: not read yet."""
    connected: bool = False
    last_pass: float = field(default_factory=time.monotonic)
    """When the loop last completed a pass or noticed an outage, monotonic clock."""
    _fences_checked: float = -FENCE_CHECK
    _processes_checked: float = -PROCESS_CHECK
    _compared: Collection[str] = ()
    """Ended processes of the last comparison."""

    def __post_init__(self) -> None:
        self.parked = ParkedEvents(self.store)
        users = self.bus.user is not None
        self.inbox = Inbox(self.store, self.clock, self.parked, users=users)
        self.leases = Leases(self.bus, self.store, self.lease_seconds, self.clock, self.timer)

    @property
    def computed_labels(self) -> int:
        """Labels that were computed since the coordinator started."""
        return sum(each.computed_labels for each in list(self.open_campaigns.values()))

    def open_all(self) -> None:
        """Takes over every campaign in the store that has not ended."""
        self.inbox.dead_letters.take_over()
        begun, self.ended = begun_and_ended(self.store)
        for campaign in sorted(begun - self.ended):
            self._opened(campaign)
            self.last_pass = time.monotonic()

    def run(self, stopping: threading.Event) -> None:
        """Serves until `stopping` is set; retries through outages of bus and store. Raises `Fenced`
        if a newer coordinator has taken over."""
        pause = PAUSE
        while not stopping.is_set():
            try:
                for _ in self._passes(stopping):
                    pause, self.connected, self.last_pass = PAUSE, True, time.monotonic()
            except (BusError, StoreError) as error:
                self.connected, self.last_pass = False, time.monotonic()
                log.warning("broker or store failed, trying again", reason=str(error), after=pause)
                stopping.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
        self._write_heads()

    def _write_heads(self) -> None:
        """Notes where each ledger ends, so that a loss of its last segments is noticed."""
        with suppress(StoreError):
            for open_campaign in self.open_campaigns.values():
                open_campaign.ledger.write_head()
                open_campaign.state = open_campaign.ledger.written(open_campaign.state)

    def _passes(self, stopping: threading.Event) -> Iterator[None]:
        """Yields after every pass, until a subscription fails or `stopping` is set."""
        with ExitStack() as subscriptions:
            requests = self._subscribe_if_granted(CONTROL, subscriptions)
            proposals = self._subscribe_if_granted(PROPOSALS, subscriptions)
            events = self._subscribe(COORDINATOR, subscriptions)
            dead = self._subscribe(DEADLETTERS, subscriptions)
            while not stopping.is_set():
                ended = self.processes.ended
                if requests is not None:
                    self.receive(take_ready(requests, BATCH))
                taken = take(events, BATCH, WAIT, self.can_wait)
                self.receive(taken)
                self.receive(take_ready(dead, BATCH))
                if proposals is not None:
                    self.receive(take_ready(proposals, BATCH))
                # After a full batch, more messages of theirs may be on the way.
                self.check_clock(ended if len(taken) < BATCH else frozenset())
                every = (requests, proposals, events, dead)
                if not all(each.open for each in every if each is not None):
                    raise BusError("the subscription ended")
                yield

    def can_wait(self, event: m.Message) -> bool:
        """Whether the event can be handled a moment later without leaving a worker idle. Claims and
        heartbeats lead to no new task. A result may, but it is urgent only if its queue is about to
        run empty."""
        if isinstance(event, m.Result):
            open_campaign = self.open_campaigns.get(event.campaign)
            queue = open_campaign.task_queue.queue_of_task(event.task) if open_campaign else None
            return queue is not None and self._in_flight(queue) >= WELL_STOCKED
        return isinstance(event, ABOUT_PROCESSES)

    def _in_flight(self, queue: str) -> int:
        return sum(each.task_queue.in_flight(queue) for each in self.open_campaigns.values())

    def _subscribe_if_granted(self, queue: str, subscriptions: ExitStack) -> Subscription | None:
        """None where this user has the rights of an earlier release: operators' requests then wait
        with all other events, and generators of this release cannot propose."""
        try:
            return self._subscribe(queue, subscriptions)
        except Refused as error:
            log.warning(
                f"{WITHOUT[queue]}; write the rights of this user anew with dpstream access",
                queue=queue,
                reason=str(error),
            )
            return None

    def _subscribe(self, queue: str, subscriptions: ExitStack) -> Subscription:
        subscription = self.bus.consume(queue, prefetch=BATCH)

        def cancel() -> None:
            with suppress(BusError):
                subscription.cancel()

        subscriptions.callback(cancel)
        return subscription

    def open(self, campaign: str, workers_are_gone: bool = False) -> OpenCampaign:
        """Takes a campaign over: rebuilds its state and repeats the actions of the last segment.
        With `workers_are_gone` (everything ran in one process, which has ended) claimed tasks are
        released."""
        ledger, state = Ledger.open(self.store, campaign)
        open_campaign = OpenCampaign(ledger, state, TaskQueue(self.reissue_after))
        for task in state.tasks.values():
            if workers_are_gone and self._is_claimed(task):
                open_campaign.own_events.append(self._released(task.command))
            elif task.status == "open":
                open_campaign.add_task(task, self.timer())
            elif task.status == "running":
                open_campaign.leases[task.command.task] = self.timer() + self.lease_seconds
                open_campaign.task_queue.started(task.command)
        open_campaign.take_in_orphans()
        open_campaign.parked = self.parked.of(campaign)
        open_campaign.own_events += open_campaign.parked.values()
        if state.submitted is None and (submitted := self.inbox.submission(campaign)):
            open_campaign.own_events.append(submitted)
        self.open_campaigns[campaign] = open_campaign
        self._recover(open_campaign)
        if open_campaign.state.finished is not None:
            self._mark_finished(open_campaign.state.finished)
        return open_campaign

    def _mark_finished(self, finished: m.CampaignFinished) -> None:
        """Stores the verdict where it can be read without the ledger."""
        self.store.create(finished_uri(finished.campaign, finished.plan), encode(finished))

    def _recover(self, open_campaign: OpenCampaign) -> None:
        """Completes what an outage or a restart interrupted: applies a segment that was written
        although `append` failed, and repeats the actions of the last segment."""
        open_campaign.needs_recovery = True
        state = open_campaign.ledger.recover(open_campaign.state)
        if state is not open_campaign.state and open_campaign.ledger.last is not None:
            open_campaign.state = state
            open_campaign.track(open_campaign.ledger.last, self.timer())
        if open_campaign.ledger.last is not None:
            self._act(open_campaign, open_campaign.ledger.last)
        open_campaign.needs_recovery = False

    def receive(self, deliveries: Sequence[Delivery]) -> None:
        """Handles one batch and acknowledges it. Deliveries that an outage kept out of the ledger
        go back to the bus; then `BusError` or `StoreError` is raised."""
        try:
            self._receive(self.inbox.read_all(deliveries))
        except (BusError, StoreError, Fenced):
            with suppress(BusError):
                for delivery in reversed(deliveries):
                    delivery.reject()  # has no effect on what is acknowledged
            raise

    def _receive(self, read: Sequence[tuple[Delivery, m.Message | None]]) -> None:
        by_campaign: dict[str | None, list[tuple[Delivery, m.Message | None]]] = {}
        for delivery, event in read:
            self.processes.take_in(event, self.clock())
            if isinstance(event, m.ProcessStarted):
                self._keep_programs(event)
            by_campaign.setdefault(_campaign_of(event), []).append((delivery, event))
        outage: Exception | None = None
        for campaign, batch in by_campaign.items():
            try:
                if campaign is not None:
                    self._serve(campaign, [event for _, event in batch if event is not None])
            except (BusError, StoreError) as error:  # other campaigns may still succeed
                outage = error
                continue
            for delivery, _ in batch:
                delivery.ack()
        if outage is not None:
            raise outage

    def _keep_programs(self, started: m.ProcessStarted) -> None:
        """Keeps what a worker runs for those who submit campaigns. Nothing else depends on it."""
        try:
            known = self.programs or Programs.read(self.store)
            self.programs = known.started(started, self.clock())
            if self.programs is not known:
                self.store.put(PROGRAMS, self.programs.model_dump_json().encode())
        except StoreError as error:
            self.programs = None
            log.warning("programs of the workers not kept in the store", reason=str(error))

    def check_clock(self, ended: Collection[str] = ()) -> None:
        """Does what is due: ends leases, handles the coordinator's own events, publishes tasks.
        `ended`: processes of workers that had ended before the last batch was taken, so that all
        their messages have been received."""
        now = self.timer()
        self.leases.extend_after_absence(self.open_campaigns.values(), now)
        self._check_fences(now)
        with_processes = self._is_process_check_due(now, ended)
        for campaign, open_campaign in list(self.open_campaigns.items()):
            # Kept until they are in the ledger: a lapse ends the lease.
            lapsed = self.leases.lapsed(open_campaign, now, ended if with_processes else ())
            open_campaign.own_events += lapsed + self._missing(open_campaign, now)
            resolved = self._batch_on_gpu(open_campaign)
            is_due = open_campaign.own_events or open_campaign.needs_recovery or resolved
            if is_due or open_campaign.ledger.missing is not None:
                self._serve(campaign, ())
            if campaign not in self.open_campaigns:  # damage was found
                continue
            self._publish_tasks(open_campaign)
            open_campaign.ledger.write_due_head(now)
        if self.on_demand is not None:
            if with_processes:
                every = self.open_campaigns.values()
                self.processes.occupied = frozenset().union(
                    *(each.processes.names for each in every)
                )
            self.on_demand(self.demand())

    def _missing(self, open_campaign: OpenCampaign, now: float) -> list[m.Message]:
        """Reports queues whose tasks no worker has served for too long."""
        if not open_campaign.state.declined and not open_campaign.declined_since:
            return []
        queues = open_campaign.unserved(now, self.patience, self._busy())
        return [self._without_workers(open_campaign.state, queue) for queue in queues]

    def _without_workers(self, state: State, queue: str) -> m.WorkersMissing:
        reasons = "; ".join(state.declined[queue].reasons)
        return m.WorkersMissing(
            id=str(uuid.uuid4()),
            campaign=state.spec.name,
            time=self.clock(),
            queue=queue,
            why=f"no worker serves {queue}: {reasons}. The campaign continues as soon as one does, "
            "or after dpstream resume",
        )

    def _is_process_check_due(self, now: float, ended: Collection[str]) -> bool:
        """Whether to compare the running tasks with the processes: after news, and at intervals,
        because claims may arrive after the news that their process has ended."""
        is_news = bool(ended) and ended is not self._compared
        if not is_news and now - self._processes_checked < PROCESS_CHECK:
            return False
        self._compared, self._processes_checked = ended or self._compared, now
        return True

    def demand(self) -> dict[str, Demand]:
        """The tasks of active campaigns by queue. Those of paused and ended ones need no worker,
        except one that a campaign waits for because no worker serves its queue."""
        served = [each for each in self.open_campaigns.values() if each.active]
        waits = [each for each in self.open_campaigns.values() if each.state.missing]
        queues = {*chain(*(each.task_queue.waiting + each.task_queue.busy for each in served))}
        queues |= {*chain(*(each.state.missing for each in waits))}
        now = self.timer()
        return {queue: _demand(queue, now, served, waits) for queue in queues}

    def _check_fences(self, now: float) -> None:
        if now - self._fences_checked < FENCE_CHECK:
            return
        self._fences_checked = now
        for open_campaign in self.open_campaigns.values():
            if open_campaign.state.finished is None:
                open_campaign.ledger.check()

    def _publish_tasks(self, open_campaign: OpenCampaign) -> None:
        missing = open_campaign.state.missing
        if not open_campaign.active and not missing:
            return
        self._confirm_published(open_campaign.task_queue)
        if open_campaign.active:
            share = sum(other.active for other in self.open_campaigns.values())
            workers = self._busy() | Counter(self.wanted)
            open_campaign.task_queue.publish(self.bus, self.timer(), share, workers)
        else:
            open_campaign.task_queue.publish_one(self.bus, self.timer(), missing)

    def _confirm_published(self, task_queue: TaskQueue) -> None:
        """Without this, the queues of workers that are all away or busy for long would fill with
        copies of the same tasks."""
        for queue in task_queue.overdue(self.timer()):
            if self.bus.depth(queue) >= self._in_flight(queue):
                task_queue.confirm(queue, self.timer())

    def _busy(self) -> Counter[str]:
        """Workers that are busy, by queue."""
        every = self.open_campaigns.values()
        return sum((each.task_queue.busy for each in every), Counter[str]())

    def _serve(self, campaign: str, events: Sequence[m.Message]) -> None:
        if any(isinstance(event, m.CampaignResumed) for event in events):
            self.broken.pop(campaign, None)
        open_campaign = self._opened(campaign)
        if open_campaign is None:
            self._park(campaign, events)
            return
        try:
            if open_campaign.needs_recovery:
                self._recover(open_campaign)
            own = tuple(open_campaign.own_events)
            self._handle(open_campaign, [*self._batch_on_gpu(open_campaign), *own, *events])
        except DAMAGE as error:
            del self.open_campaigns[campaign]
            self._leave(campaign, error)
            self._park(campaign, events)
            return
        except (BusError, StoreError):
            open_campaign.needs_recovery = True
            raise
        del open_campaign.own_events[: len(own)]
        if open_campaign.parked:
            self.parked.forget(campaign, tuple(open_campaign.parked))
            open_campaign.parked = {}
        self._publish_tasks(open_campaign)

    def _batch_on_gpu(self, open_campaign: OpenCampaign) -> tuple[m.BatchResolved, ...]:
        """What `training.batch_atoms: auto` means, if a trainer on a GPU fixes it now."""
        state = open_campaign.state
        why = self.processes.gpu_trainers.get(state.spec.training.backend)
        waits = open_campaign.active and state.batch_atoms is None
        if why is None or not waits or state.spec.mode == "lockstep":
            return ()
        return (
            m.BatchResolved(
                id=stable_id("batch", state.spec.name),
                campaign=state.spec.name,
                time=self.clock(),
                batch_atoms=GPU_BATCH,
                why=why,
            ),
        )

    def _opened(self, campaign: str) -> OpenCampaign | None:
        """The campaign, opened if it is not yet; None if it is unknown or damaged."""
        self._forget_if_deleted(campaign)
        if campaign in self.open_campaigns or campaign in self.broken:
            return self.open_campaigns.get(campaign)
        if not self.store.exists(campaign_uri(campaign, "spec.json")):
            log.warning("event ignored: no such campaign in the store", campaign=campaign)
            return None
        try:
            return self.open(campaign)
        except (*DAMAGE, ValueError) as error:  # ValueError: a spec that this version cannot read
            self._leave(campaign, error)
        except (BusError, StoreError, Fenced):
            raise
        except Exception as error:
            log.exception("a segment cannot be applied", campaign=campaign)
            reason = f"its ledger does not make sense: {type(error).__name__} {error}"
            self._leave(campaign, CorruptLedger(reason))
        return None

    def _forget_if_deleted(self, campaign: str) -> None:
        """Another campaign may begin under the name of one that has ended and was deleted."""
        known = self.open_campaigns.get(campaign)
        if known is not None and known.state.finished is not None and not known.ledger.is_there():
            del self.open_campaigns[campaign]

    def _leave(self, campaign: str, error: Exception) -> None:
        """Serves a campaign no longer whose ledger or spec cannot be read, until an operator
        resumes it or the coordinator restarts. Its events are kept."""
        log.error(
            "campaign not served until it is resumed: cannot read its ledger or spec",
            campaign=campaign,
            reason=str(error),
        )
        self.broken[campaign] = str(error)

    def _park(self, campaign: str, events: Sequence[m.Message]) -> None:
        """Keeps events of a campaign that is not served. Those of unknown campaigns are dropped."""
        if campaign in self.broken:
            self.parked.keep(campaign, events)

    def _handle(self, open_campaign: OpenCampaign, events: Iterable[m.Message]) -> None:
        if open_campaign.ledger.missing is not None:
            raise open_campaign.ledger.missing
        entries: list[LedgerEntry] = []
        state = open_campaign.state
        for event in events:
            if open_campaign.extend_lease(event, self.timer(), self.lease_seconds):
                continue
            if isinstance(event, m.TaskDeclined):
                open_campaign.put_back(event, self.timer())
            after, decided = self._decide(state, event)
            if after is not state:
                entries.append(LedgerEntry(event, decided))
                state = after
        if not entries:
            return
        segment = open_campaign.ledger.append(entries)
        open_campaign.state = state
        open_campaign.track(segment, self.timer())
        self._act(open_campaign, segment)
        open_campaign.state = open_campaign.ledger.snapshot(state)

    def _decide(self, state: State, event: m.Message) -> tuple[State, tuple[m.Message, ...]]:
        """Calls `decide`. If it raises, the event has no effect but to pause its campaign."""
        try:
            began = time.perf_counter()
            after, decided = decide(state, event)
            self.on_decided(time.perf_counter() - began)
            for command in decided:
                if isinstance(command, m.Command):
                    encode(command)  # raises if it is too long for a message
            return after, decided
        except Exception as error:
            log.exception(
                "campaign paused: cannot process event",
                campaign=event.campaign,
                type=type(event).__name__,
            )
            paused = m.CampaignPaused(
                id=str(uuid.uuid4()),
                campaign=event.campaign,
                time=self.clock(),
                cause=event.id,
                why=f"cannot process {type(event).__name__} {event.id}: {error}; fix the cause, "
                "then resume the campaign",
                trace=traceback.format_exc()[-8000:],
            )
            return apply(state, paused), (paused,)

    def _act(self, open_campaign: OpenCampaign, segment: Segment) -> None:
        """Acts on the decisions of a segment. Repeating this has no further effect."""
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
                elif isinstance(decision, m.PlanChanged):
                    self.ended = self.ended - {decision.campaign}  # other threads iterate over it
        if public:
            self.bus.publish(public)

    def _cancel(self, open_campaign: OpenCampaign, decision: m.TaskCancelled) -> None:
        """Takes the claim of the task, so that no worker starts it. If a worker already has the
        claim, requests its stop; running label tasks are allowed to finish, because labels are
        worth keeping."""
        revoked = m.TaskRevoked(**header(decision, "revoked", self.clock()))
        key = claim_uri(decision.campaign, decision.task, decision.attempt)
        if self.store.create(key, encode(revoked)) or self._is_revoked(key):
            open_campaign.task_queue.claimed(decision.task)
            open_campaign.own_events.append(revoked)
        elif decision.task not in open_campaign.state.tasks:  # cancelled, or done meanwhile
            self.store.put(f"{key}.stop", b"{}")

    def _is_revoked(self, key: str) -> bool:
        """Whether no worker has this claim: the coordinator does, or it cannot be read."""
        return not isinstance(read_message(self.store, key), m.TaskClaimed)

    def _is_claimed(self, task: Task) -> bool:
        """Whether a worker holds the claim, even if its task-claimed event has not arrived."""
        command = task.command
        if task.status != "open":
            return task.status == "running"
        return self.store.exists(claim_uri(command.campaign, command.task, command.attempt))

    def _released(self, command: m.Command) -> m.Message:
        fields = header(command, "released", self.clock())
        return m.TaskReleased(**fields, reason="the process has ended")


def _campaign_of(event: m.Message | None) -> str | None:
    return None if event is None or isinstance(event, m.ProcessStarted) else event.campaign


def _demand(
    queue: str, now: float, active: Sequence[OpenCampaign], waits: Sequence[OpenCampaign] = ()
) -> Demand:
    """`waits`: campaigns that are paused until a worker serves some queues."""
    missing = [each for each in waits if queue in each.state.missing]
    queues = [each.task_queue for each in active]
    paused = sum(each.task_queue.waiting[queue] > 0 for each in missing)
    declined = (each.task_queue for each in active if each.is_declined(queue, now))
    times = [each.usual_seconds[queue] for each in active if queue in each.usual_seconds]
    return Demand(
        waiting=sum(each.waiting[queue] for each in queues) + paused,
        declined=sum(each.waiting[queue] for each in declined) + paused,
        running=sum(each.busy[queue] for each in queues),
        seconds=sum(times) / len(times) if times else None,
    )
