"""The coordinator at its edge: the order of its acts, leases, claims, outages, other campaigns."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

import dpstream.services.coordinator.service as service
from dpstream.services.coordinator.inbox import take
from dpstream.services.coordinator.ledger.ledger import load_state, read_segments
from dpstream.services.coordinator.open_campaign import OpenCampaign
from dpstream.services.coordinator.policy import decide
from dpstream.services.coordinator.records import replace
from dpstream.services.coordinator.service import Coordinator
from dpstream.services.coordinator.state import State
from dpstream.shared import messages as m
from dpstream.shared.bus.memory import Broker, InProcessBus
from dpstream.shared.bus.topology import COORDINATOR
from dpstream.shared.codec import decode, encode, topic_of
from dpstream.shared.errors import BusError, Fenced, StoreError
from dpstream.shared.ports import Bus, Outgoing, Store
from dpstream.shared.runtime.worker import claim_uri
from dpstream.shared.spec import Spec
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import campaign_uri
from tests.support.campaign_simulator import CampaignSimulator, spec, submission
from tests.support.faulty_adapters import FaultyBus, FlakyBus, FlakyStore

LEASE, REISSUE = 100.0, 1000.0
QUEUES = ("train", "explore", "judge", "label.tblite")


@dataclass
class Site:
    """A store, a broker, a coordinator and one quick hand that does every task by `world`."""

    store: Store
    bus: Bus = field(default_factory=InProcessBus)
    world: CampaignSimulator = field(default_factory=CampaignSimulator)
    now: float = 1000.0

    def __post_init__(self) -> None:
        self.hire()

    def hire(self) -> Coordinator:
        """A new coordinator, which knows nothing but the store."""
        self.coordinator = Coordinator(self.bus, self.store, LEASE, REISSUE, clock=lambda: self.now)
        return self.coordinator

    def submit(self, of: Spec, frames: int = 6) -> OpenCampaign:
        body = of.model_dump_json().encode()
        self.store.put(campaign_uri(of.name, "spec.json"), body)
        self.say(submission(of, frames))
        self.step()
        return self.coordinator.open_campaigns[of.name]

    def say(self, *events: m.Message) -> None:
        self.bus.publish([Outgoing(encode(e), topic=topic_of(e)) for e in events])

    def step(self, of: Coordinator | None = None) -> None:
        """One turn of a coordinator: whatever has come in, then the clock."""
        coordinator = of or self.coordinator
        subscription = self.bus.consume(COORDINATOR, prefetch=service.BATCH)
        deliveries = []
        while (delivery := subscription.next(timeout=0.0)) is not None:
            deliveries.append(delivery)
        try:
            coordinator.receive(deliveries)
            coordinator.check_clock()
        finally:
            subscription.cancel()

    def pass_time(self, seconds: float) -> None:
        """Time passes under the coordinator's eyes."""
        for _ in range(10):
            self.now += seconds / 10
            self.step()

    def published(self, *queues: str) -> list[Any]:
        """Commands taken off the work queues."""
        return [c for queue in queues or QUEUES for c in self._drained(queue)]

    def _drained(self, queue: str) -> Iterator[Any]:
        subscription = self.bus.consume(queue)
        while (delivery := subscription.next(timeout=0.0)) is not None:
            delivery.ack()
            yield decode(delivery.body)
        subscription.cancel()

    def claim(self, command: m.Command, worker: str = "w") -> bool:
        claimed = m.TaskClaimed(**CampaignSimulator.envelope(command, "claim"), worker=worker)
        key = claim_uri(command.campaign, command.task, command.attempt)
        return self.store.create(key, encode(claimed))

    def work(self) -> int:
        """Do everything that is published; how much that was. Where somebody else has the claim,
        say so once more."""
        published = self.published()
        commands = [c for c in published if self.claim(c)]
        for lost in [c for c in published if c not in commands]:
            self.say(decode(self.store.get(claim_uri(lost.campaign, lost.task, lost.attempt))))
        for command in commands:
            for key in list(self.store.list(f"campaigns/{command.campaign}/manifests/")):
                self.world.manifests[key] = self.store.get(key).decode()
            self.say(*self.world.answer(command))
        return len(commands)

    def finish(self, campaign: str = "world") -> State:
        """Turn and work until the campaign is over or nothing moves any more."""
        still = 0
        while still < 3:
            self.step()
            still = 0 if self.work() else still + 1
            if campaign in self.coordinator.open_campaigns:
                state = self.coordinator.open_campaigns[campaign].state
                if state.finished or state.paused:
                    break
        return self.coordinator.open_campaigns[campaign].state

    def heartbeat(self, command: m.Command) -> None:
        fields = CampaignSimulator.envelope(command, "beat")
        self.say(m.TaskHeartbeat(**fields, worker="w", progress="half way"))


@pytest.fixture(autouse=True)
def quietly() -> Iterator[None]:
    """No log lines."""
    with capture_logs():
        yield


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path)


@pytest.fixture
def site(store: FolderStore) -> Site:
    return Site(store)


SMALL: dict[str, Any] = {
    "stages": [{"name": "cold", "systems": ["methane"], "temperatures": [50.0]}],
    "training": {"members": 2},
    "verification": {},
}


def small(name: str = "world", **changes: Any) -> Spec:
    return spec(**SMALL | {"name": name} | changes)


def first_task(site: Site, of: Spec | None = None) -> tuple[OpenCampaign, m.Command]:
    """A campaign and one published task of it."""
    open_campaign = site.submit(of or small())
    return open_campaign, site.published()[0]


def status(open_campaign: OpenCampaign, command: m.Command) -> str:
    return open_campaign.state.tasks[command.task].status


def test_a_campaign_from_submission_to_verdict(site: Site, store: FolderStore) -> None:
    site.submit(spec())
    state = site.finish()
    assert state.finished is not None
    assert state.finished.verdict == "converged"
    assert load_state(store, "world").dumps() == state.dumps()
    assert not site.coordinator.open_campaigns["world"].leases


def test_an_explorer_of_an_earlier_release_uses_the_former_name_of_its_event(site: Site) -> None:
    open_campaign = site.submit(small())
    while not open_campaign.state.alive(m.Explore):
        site.work()
        site.step()
    commands = site.published("explore")
    for command in commands:
        claimed, *chunks = site.world.answer(command)
        site.say(claimed)
        for chunk in chunks:
            body = encode(chunk).replace(b"chunk-explored/1", b"candidates-found/1")
            site.bus.publish([Outgoing(body, topic="world.candidates-found")])
    site.step()
    assert {status(open_campaign, command) for command in commands} == {"done"}
    assert site.coordinator.inbox.undecodable == 0


# ------------------------------------------------------------------------- order and crashes


class Recorder:
    """Writes down, in order, what is done to the store, the bus and the deliveries; and fails
    for good at step number `deadly`."""

    def __init__(self, deadly: int | None = None) -> None:
        self.deadly, self.acts = deadly, list[str]()

    def act(self, what: str) -> None:
        if self.deadly is not None and len(self.acts) >= self.deadly:
            raise Died
        self.acts.append(what)


class Died(BaseException):
    """The process is gone: nobody catches this."""


class RecordedStore(FolderStore):
    def __init__(self, root: Path, recorder: Recorder) -> None:
        super().__init__(root)
        self.recorder = recorder

    def create(self, key: str, data: bytes) -> bool:
        self.recorder.act("append" if "/ledger/" in key else f"create {key.split('/')[2]}")
        return super().create(key, data)


class RecordedBus(InProcessBus):
    def __init__(self, broker: Broker, recorder: Recorder) -> None:
        super().__init__(broker)
        self.recorder = recorder

    def publish(self, messages: Sequence[Outgoing]) -> None:
        self.recorder.act("publish")
        super().publish(messages)


class RecordedDelivery:
    redelivered = False

    def __init__(self, event: m.Message, recorder: Recorder) -> None:
        self.body, self.recorder = encode(event), recorder

    def ack(self) -> None:
        self.recorder.act("ack")

    def reject(self) -> None:
        self.recorder.act("reject")


def test_fold_append_publish_acknowledge_in_that_order(site: Site, tmp_path: Path) -> None:
    site.submit(small())
    recorder = Recorder()
    again = Site(RecordedStore(tmp_path, recorder), RecordedBus(Broker(), recorder))
    events = [e for c in site.published() for e in site.world.answer(c)]
    again.coordinator.receive([RecordedDelivery(e, recorder) for e in events])
    acts = [act for act in recorder.acts if not act.startswith("create epoch")]
    opened = acts.index("append")
    assert acts[opened:] == ["append", "create manifests", "publish", *["ack"] * len(events)]


@pytest.mark.parametrize("deadly", range(8))
def test_a_crash_between_any_two_acts_loses_nothing(
    site: Site, tmp_path: Path, deadly: int
) -> None:
    site.submit(small())
    events = [e for c in site.published() for e in site.world.answer(c)]
    recorder = Recorder(deadly)
    dying = Site(RecordedStore(tmp_path, recorder), RecordedBus(Broker(), recorder))
    with pytest.raises(Died):
        dying.coordinator.receive([RecordedDelivery(e, recorder) for e in events])
    after = Site(FolderStore(tmp_path), world=site.world)
    after.coordinator.open("world", workers_are_gone=True)
    if "ack" not in recorder.acts:
        after.say(*events)  # the broker delivers again what nobody acknowledged
    state = after.finish()
    undisturbed = Site(FolderStore(tmp_path / "quiet"))
    undisturbed.submit(small())
    assert state.dumps() == undisturbed.finish().dumps()


def test_a_claim_shares_a_segment_with_the_result_not_far_behind(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpstream.services.coordinator.inbox.BATCH_SECONDS", 60.0)
    _, command = first_task(site)
    claimed, *results = site.world.answer(command)
    subscription = site.bus.consume(COORDINATOR, prefetch=service.BATCH)
    site.say(claimed)
    later = threading.Timer(0.05, site.say, results)
    later.start()
    found = take(subscription, service.BATCH, 1.0, site.coordinator.can_wait)
    later.join()
    assert [decode(delivery.body) for delivery in found] == [claimed, *results]


def test_a_claim_alone_is_heard_all_the_same(site: Site) -> None:
    _, command = first_task(site)
    claimed, *_ = site.world.answer(command)
    subscription = site.bus.consume(COORDINATOR, prefetch=service.BATCH)
    site.say(claimed)
    found = take(subscription, service.BATCH, 1.0, site.coordinator.can_wait)
    assert [decode(delivery.body) for delivery in found] == [claimed]


def test_results_wait_for_company_until_a_queue_runs_dry(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpstream.services.coordinator.inbox.BATCH_SECONDS", 60.0)
    monkeypatch.setattr("dpstream.services.coordinator.inbox.BATCH_ENOUGH", 3)
    open_campaign = site.submit(
        spec(labels={"bundle": 1}, verification={}), frames=2 * service.WELL_STOCKED
    )
    answers = [site.world.answer(command) for command in site.published()]
    subscription = site.bus.consume(COORDINATOR, prefetch=service.BATCH)

    def taken() -> list[m.Message]:
        found = take(subscription, service.BATCH, 1.0, site.coordinator.can_wait)
        site.coordinator.receive(found)
        return [decode(delivery.body) for delivery in found]

    (_, one), (_, two), (_, three), *rest = answers
    site.say(one)
    later = threading.Timer(0.05, site.say, (two, three))
    later.start()
    assert taken() == [one, two, three]
    site.say(*(claimed for claimed, _ in rest))
    while open_campaign.task_queue.in_flight("label.tblite") >= service.WELL_STOCKED:
        taken()
    site.say(rest[0][1])
    assert rest[0][1] in taken()


def test_a_wiped_broker_at_any_moment_loses_nothing(site: Site) -> None:
    site.submit(small())
    for turn in range(200):
        site.step()
        site.work()
        if turn % 2:
            site.bus = InProcessBus()
            site.hire().open("world", workers_are_gone=True)
        if site.coordinator.open_campaigns["world"].state.finished:
            return
    raise AssertionError(site.coordinator.open_campaigns["world"].state)


def test_a_restart_says_the_last_segments_messages_again(site: Site) -> None:
    open_campaign = site.submit(small())
    while not open_campaign.state.committee.version:
        site.work()
        site.step()
    site.bus = InProcessBus()
    site.bus.bind("listener", "world.models-ready")
    listener = site.bus.consume("listener")
    for _ in range(2):
        site.hire().open("world")
        delivery = listener.next(timeout=0.0)
        assert delivery is not None
        assert isinstance(decode(delivery.body), m.ModelsReady)
        delivery.ack()
    assert len(list(read_segments(site.store, "world"))) == open_campaign.ledger.seq


# ---------------------------------------------------------------------------- leases and claims


def test_a_task_whose_worker_falls_silent_is_issued_again(site: Site) -> None:
    open_campaign, command = first_task(site)
    site.say(site.world.answer(command)[0])
    site.step()
    site.pass_time(LEASE)
    assert status(open_campaign, command) == "running"
    site.pass_time(20.0)
    again = site.published()
    assert [(c.task, c.attempt) for c in again] == [(command.task, 2)]
    assert open_campaign.state.tasks[command.task].lapses == 1


def test_heartbeats_renew_a_lease_and_are_not_ledgered(site: Site) -> None:
    open_campaign, command = first_task(site)
    site.say(site.world.answer(command)[0])
    site.step()
    before = open_campaign.ledger.seq
    for _ in range(5):
        site.heartbeat(command)
        site.pass_time(LEASE * 0.8)
    assert (status(open_campaign, command), open_campaign.ledger.seq) == ("running", before)
    assert open_campaign.progress == {command.task: "half way"}


def test_the_heartbeat_of_an_older_attempt_renews_nothing(site: Site) -> None:
    open_campaign, command = first_task(site)
    site.say(site.world.answer(command)[0])
    site.pass_time(LEASE * 1.2)
    (second,) = site.published()
    site.say(site.world.answer(second)[0])
    for _ in range(5):
        site.heartbeat(command)
        site.pass_time(LEASE * 0.4)
    assert open_campaign.state.tasks[command.task].command.attempt == 3


def test_leases_start_again_in_full_after_a_restart(site: Site) -> None:
    _, command = first_task(site)
    site.say(site.world.answer(command)[0])
    site.step()
    site.pass_time(LEASE * 0.9)
    site.hire().open("world")
    open_campaign = site.coordinator.open_campaigns["world"]
    site.pass_time(LEASE * 0.9)
    assert status(open_campaign, command) == "running"
    site.pass_time(LEASE * 0.3)
    assert status(open_campaign, command) == "open"


def test_nobody_lapses_while_the_coordinators_queue_is_backlogged(site: Site) -> None:
    open_campaign, command = first_task(site)
    site.say(site.world.answer(command)[0])
    site.step()
    site.heartbeat(command)
    for _ in range(20):  # it tends, and does not get round to hearing
        site.now += LEASE * 0.2
        site.coordinator.check_clock()
    assert status(open_campaign, command) == "running"
    site.step()
    site.pass_time(LEASE * 1.2)
    assert status(open_campaign, command) == "open"


def test_nobody_lapses_while_the_coordinator_was_not_looking(site: Site) -> None:
    open_campaign, command = first_task(site)
    site.say(site.world.answer(command)[0])
    site.step()
    site.now += 8 * 3600.0  # the laptop was asleep
    site.step()
    assert status(open_campaign, command) == "running"
    site.pass_time(LEASE * 1.2)
    assert status(open_campaign, command) == "open"


def test_the_claim_of_a_worker_that_died_unheard_is_found_by_reissue(site: Site) -> None:
    open_campaign, command = first_task(site)
    assert site.claim(command, "dead")
    site.pass_time(REISSUE * 0.9)
    assert site.published() == []
    site.pass_time(REISSUE * 0.2)
    same = next(c for c in site.published() if c.task == command.task)
    assert (same.task, same.attempt) == (command.task, 1)
    assert not site.claim(same, "alive")
    winner = decode(site.store.get(claim_uri("world", command.task, 1)))
    site.say(winner)  # the loser publishes the winner's word once more
    site.step()
    assert status(open_campaign, command) == "running"
    site.pass_time(LEASE * 1.2)
    assert open_campaign.state.tasks[command.task].command.attempt == 2


def cancelled(command: m.Command) -> m.TaskCancelled:
    return m.TaskCancelled(
        id=f"cancel-{command.task}",
        campaign="world",
        time=0.0,
        task=command.task,
        attempt=command.attempt,
        why="not wanted",
    )


@pytest.fixture
def cancelling(monkeypatch: pytest.MonkeyPatch) -> Callable[[m.Command], None]:
    """Makes the next event lead to the cancellation of a task."""

    def arm(command: m.Command) -> None:
        def once(state: State, event: m.Message) -> Any:
            after, decided = decide(state, event)
            if not isinstance(event, m.CheckpointSaved):
                return after, decided
            order = cancelled(command)
            return replace(service.apply(state, order)), (order,)

        monkeypatch.setattr(service, "decide", once)

    return arm


def trigger(command: m.Command) -> m.CheckpointSaved:
    fields = CampaignSimulator.envelope(command, "trigger")
    ref = m.Ref.to("checkpoint", b"")
    return m.CheckpointSaved(**fields, checkpoint=ref, step=1)


def test_a_revocation_that_wins_the_claim_ends_the_task(
    site: Site, cancelling: Callable[[m.Command], None]
) -> None:
    open_campaign, command = first_task(site)
    assert isinstance(command, m.Label)
    cancelling(command)
    site.say(trigger(command))
    site.step()
    site.step()
    assert status(open_campaign, command) == "cancelled"
    assert not site.claim(command), "no worker can start it any more"
    assert open_campaign.own_events == []
    asked = {f.key for c in site.published() for f in c.frames}
    assert asked == {f.key for f in command.frames}, "its frames are asked for by another task"


def test_a_revocation_that_loses_the_claim_lets_a_label_finish(
    site: Site, cancelling: Callable[[m.Command], None]
) -> None:
    open_campaign, command = first_task(site)
    cancelling(command)
    assert site.claim(command)
    site.say(trigger(command))
    site.step()
    assert status(open_campaign, command) == "open"
    key = claim_uri("world", command.task, 1)
    assert not site.store.exists(f"{key}.stop")
    site.say(*site.world.answer(command))
    site.step()
    assert status(open_campaign, command) == "done"


def test_a_running_task_other_than_a_label_is_asked_to_stop(
    site: Site, cancelling: Callable[[m.Command], None]
) -> None:
    open_campaign = site.submit(small())
    while not (commands := site.published("explore")):
        site.work()
        site.step()
    command, other = commands
    cancelling(command)
    assert site.claim(command)
    site.say(trigger(other))
    site.step()
    assert status(open_campaign, command) == "cancelled"
    assert site.store.exists(claim_uri("world", command.task, 1) + ".stop")
    site.pass_time(REISSUE * 1.2)
    assert command.task not in {c.task for c in site.published()}


def test_with_all_workers_gone_their_claims_are_free_at_once(site: Site) -> None:
    _, command = first_task(site)
    assert site.claim(command), "and it is killed before anybody hears of it"
    site.hire().open("world", workers_are_gone=True)
    site.step()
    attempts = {c.task: c.attempt for c in site.published()}
    assert attempts[command.task] == 2
    assert set(attempts.values()) == {1, 2}, "who had no claim has not been tried"
    assert site.coordinator.open_campaigns["world"].state.tasks[command.task].lapses == 0


def test_a_revocation_cut_off_by_a_crash_is_taken_up_again(
    site: Site, cancelling: Callable[[m.Command], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, command = first_task(site)
    cancelling(command)
    site.say(trigger(command))
    monkeypatch.setattr(site.coordinator, "check_clock", lambda: None)  # dies before its own event
    site.step()
    assert site.store.exists(claim_uri("world", command.task, 1))
    site.hire().open("world")
    site.step()
    assert status(site.coordinator.open_campaigns["world"], command) == "cancelled"


# ------------------------------------------------------------------------------ several campaigns


def test_an_unprocessable_event_pauses_its_campaign_and_no_other(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def brittle(state: State, event: m.Message) -> Any:
        if event.campaign == "sick" and isinstance(event, m.LabelsDone):
            raise KeyError("a bug")
        return decide(state, event)

    monkeypatch.setattr(service, "decide", brittle)
    site.submit(small("sick"))
    site.submit(small("sound"))
    assert site.finish("sound").finished
    sick = site.coordinator.open_campaigns["sick"].state
    assert sick.paused is not None
    assert "unprocessable LabelsDone" in sick.paused
    told = [d for s in read_segments(site.store, "sick") for e in s.entries for d in e.decided]
    (pause,) = [d for d in told if isinstance(d, m.CampaignPaused)][:1]
    assert "KeyError: 'a bug'" in pause.trace
    assert load_state(site.store, "sick").dumps() == sick.dumps()


def test_a_repaired_campaign_goes_on_after_an_unprocessable_event(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(state: State, event: m.Message) -> Any:
        raise KeyError("a bug")

    open_campaign = site.submit(small())
    monkeypatch.setattr(service, "decide", broken)
    site.work()
    site.step()
    assert open_campaign.state.paused
    monkeypatch.undo()
    site.hire().open("world")
    site.say(m.CampaignResumed(id="r", campaign="world", time=0.0))
    site.step()
    site.work()  # the claims are taken, by workers long gone
    site.step()
    site.pass_time(LEASE * 1.2)
    assert site.finish().finished


def test_a_command_too_long_for_the_wire_pauses_its_campaign(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpstream.shared.codec.MAX_BODY", 3000)
    open_campaign = site.submit(small(labels={"bundle": 100}))
    assert open_campaign.state.paused is None or "above 3000" in open_campaign.state.paused
    monkeypatch.setattr("dpstream.shared.codec.MAX_BODY", 900)
    monkeypatch.setattr(
        "dpstream.services.coordinator.inbox.decode_or_none", decode
    )  # any length is heard
    site.store.put(campaign_uri("long", "spec.json"), small("long").model_dump_json().encode())
    delivery = RecordedDelivery(trigger(cancelled_label()), Recorder())
    delivery.body = submission(small("long")).model_dump_json().encode()
    site.coordinator.receive([delivery])
    assert "above 900" in (site.coordinator.open_campaigns["long"].state.paused or "")


def cancelled_label() -> m.Command:
    _, decided = decide(State(spec=small()), submission(small()))
    return next(d for d in decided if isinstance(d, m.Command))


def test_two_campaigns_share_what_is_published(site: Site) -> None:
    of = {"labels": {"bundle": 1}}
    for name in ("one", "two"):
        body = small(name, **of).model_dump_json().encode()
        site.store.put(campaign_uri(name, "spec.json"), body)
        site.coordinator.open(name)
        site.say(submission(small(name, **of), frames=30))
    site.step()
    assert Counter(c.campaign for c in site.published()) == {"one": 10, "two": 10}


def test_a_campaign_that_is_over_takes_no_share(site: Site) -> None:
    site.submit(small("over"))
    assert site.finish("over").finished
    of = small("next", labels={"bundle": 1})
    site.store.put(campaign_uri("next", "spec.json"), of.model_dump_json().encode())
    site.say(submission(of, frames=30))
    site.step()
    assert len(site.published()) == 20


def test_a_paused_campaign_publishes_nothing(site: Site) -> None:
    open_campaign = site.submit(small(labels={"bundle": 1}))
    site.published()
    open_campaign.state = replace(open_campaign.state, paused="a person looks at it")
    site.pass_time(REISSUE * 1.2)
    assert site.published() == []


def test_events_of_unknown_campaigns_are_ignored(site: Site) -> None:
    site.say(submission(small("nobody")))
    site.step()
    assert site.coordinator.open_campaigns == {}
    assert site.bus.depth(COORDINATOR) == 0
    site.submit(small())
    assert site.finish().finished


def test_what_cannot_be_decoded_is_buried_and_blocks_nothing(site: Site) -> None:
    bodies = [b"", b"{", b'{"type": "future/9"}', b"\xff\xfe", b"[]"]
    for body in bodies:
        site.bus.publish([Outgoing(body, topic="world.labels-done")])
    site.submit(small())
    buried = [site.store.get(key) for key in site.store.list("deadletters/")]
    assert sorted(buried) == sorted(bodies)
    assert site.finish().finished


def test_a_campaign_whose_ledger_is_damaged_is_left_alone(site: Site) -> None:
    site.submit(small("sick"))
    site.submit(small("sound"))
    site.store.put("campaigns/sick/ledger/00000001-000001.json", b"damage")
    site.hire().open("sound")
    site.say(submission(small("sick")), submission(small("sick")))
    assert site.finish("sound").finished
    assert "00000001-000001.json" in site.coordinator.broken["sick"]


def test_the_coordinator_does_not_react_to_its_own_words(site: Site) -> None:
    open_campaign = site.submit(small())
    site.finish()
    seq = open_campaign.ledger.seq
    entries = [e for s in read_segments(site.store, "world") for e in s.entries]
    site.say(*(d for e in entries for d in e.decided if not isinstance(d, m.Command)))
    site.say(*(e.event for e in entries))
    site.step()
    assert open_campaign.ledger.seq == seq


# ----------------------------------------------------------------------------- outages, two at once


def serving(coordinator: Coordinator) -> tuple[threading.Event, threading.Thread, list[Any]]:
    stopping, errors = threading.Event(), list[Any]()

    def guarded() -> None:
        try:
            coordinator.run(stopping)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    return stopping, thread, errors


class NowAndThen:
    """Fails a share of all calls, of every kind."""

    def __init__(self, share: float, seed: int) -> None:
        self.share, self.random, self.enabled = share, random.Random(seed), True

    def __call__(self, operation: str) -> bool:
        return self.enabled and self.random.random() < self.share


@pytest.mark.slow
@pytest.mark.parametrize(("share", "seed"), [(0.05, 1), (0.2, 2)])
def test_outages_at_any_call_lose_no_event(
    store: FolderStore, share: float, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Store and bus fail at any call, before or after doing what was asked; what is delivered
    comes doubled and in any order."""
    fails, bus = NowAndThen(share, seed), InProcessBus()
    site = Site(store, bus)
    faulty = FlakyBus(FaultyBus(bus, seed), fails)
    site.coordinator = Coordinator(faulty, FlakyStore(store, fails), clock=lambda: site.now)
    monkeypatch.setattr(service, "PAUSE", 0.001)
    monkeypatch.setattr(service, "LONGEST_PAUSE", 0.002)
    store.put(campaign_uri("world", "spec.json"), small().model_dump_json().encode())
    site.say(submission(small()))
    stopping, thread, errors = serving(site.coordinator)
    try:
        state = worked_to_the_end(site, thread)
    finally:
        fails.enabled = False
        stopping.set()
        thread.join(timeout=10)
    assert not errors
    quiet = Site(FolderStore(Path(str(store.root) + "-quiet")))
    quiet.submit(small())
    assert state.dumps() == quiet.finish().dumps()


def worked_to_the_end(site: Site, thread: threading.Thread) -> State:
    ticks = threading.Event()
    for _ in range(3000):
        assert thread.is_alive(), "the coordinator died"
        site.work()
        ticks.wait(0.005)
        open_campaign = site.coordinator.open_campaigns.get("world")
        if (
            open_campaign is not None
            and open_campaign.state.finished is not None
            and not open_campaign.needs_recovery
        ):
            return open_campaign.state
    raise AssertionError("it did not finish")


@pytest.mark.parametrize("operation", ["create", "created", "exists"])
def test_an_outage_acknowledges_nothing_and_the_same_events_count_once(
    store: FolderStore, operation: str
) -> None:
    site = Site(store)
    open_campaign = site.submit(small())
    site.work()
    failing = [True]
    flaky = FlakyStore(store, lambda asked: failing[0] and asked == operation)
    site.coordinator.store = flaky
    open_campaign.ledger.store = flaky
    waiting = site.bus.depth(COORDINATOR)
    with pytest.raises(StoreError):
        site.step()
    assert site.bus.depth(COORDINATOR) == waiting
    failing[0] = False
    assert site.finish().finished
    assert load_state(store, "world").dumps() == open_campaign.state.dumps()
    assert site.coordinator.open_campaigns["world"] is open_campaign, (
        "whoever watches it goes on watching"
    )


def test_an_outage_of_one_campaigns_objects_holds_up_no_other(store: FolderStore) -> None:
    class Half(FolderStore):
        def create(self, key: str, data: bytes) -> bool:
            if "/sick/ledger" in key and failing:
                raise StoreError("access denied")
            return super().create(key, data)

    failing = [True]
    site = Site(Half(store.root))
    for name in ("sick", "sound"):
        site.store.put(campaign_uri(name, "spec.json"), small(name).model_dump_json().encode())
        site.say(submission(small(name)))
    for _ in range(200):
        with suppress(StoreError):
            site.step()
        site.work()
        if site.coordinator.open_campaigns["sound"].state.finished:
            break
    assert site.coordinator.open_campaigns["sound"].state.finished
    failing.clear()
    assert site.finish("sick").finished


def test_events_of_our_own_survive_an_outage(site: Site) -> None:
    open_campaign = site.submit(small())
    open_campaign.state = replace(open_campaign.state, paused="a person looks at it")
    open_campaign.own_events.append(m.CampaignResumed(id="r", campaign="world", time=0.0))
    good = open_campaign.ledger.store
    open_campaign.ledger.store = FlakyStore(good, lambda operation: operation == "create")
    with pytest.raises(StoreError):
        site.step()
    assert [type(event) for event in open_campaign.own_events] == [m.CampaignResumed]


def test_the_older_of_two_coordinators_stops_without_acknowledging(site: Site) -> None:
    site.submit(small())
    older = site.coordinator
    site.work()
    newer = site.hire()
    newer.open("world")
    waiting = site.bus.depth(COORDINATOR)
    with pytest.raises(Fenced):
        site.step(older)
    assert site.bus.depth(COORDINATOR) == waiting
    assert site.finish().finished


def test_a_fenced_coordinator_ends_its_service(site: Site) -> None:
    site.submit(small())
    older = site.coordinator
    site.hire().open("world")
    stopping, thread, errors = serving(older)
    site.work()
    thread.join(timeout=10)
    stopping.set()
    assert [type(error) for error in errors] == [Fenced]
    assert site.finish().finished


def test_a_coordinator_stops_when_asked_even_during_an_outage(site: Site) -> None:
    site.bus.close()
    stopping, thread, errors = serving(site.coordinator)
    stopping.wait(0.05)
    stopping.set()
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert not errors


def test_a_bus_that_fails_when_a_task_is_published_gets_it_later(site: Site) -> None:
    failing = [True]
    site.coordinator.bus = FlakyBus(site.bus, lambda asked: failing[0] and asked == "publish")
    of = small()
    site.store.put(campaign_uri("world", "spec.json"), of.model_dump_json().encode())
    site.say(submission(of))
    with pytest.raises(BusError):
        site.step()
    failing[0] = False
    site.step()
    assert len(site.published()) == 2
