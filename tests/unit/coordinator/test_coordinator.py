"""The coordinator at its edge: the order of its acts, leases, claims, outages, other campaigns."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import dpstream.services.coordinator.service as service
from dpstream.services.coordinator.ledger.ledger import load_state, read_segments
from dpstream.services.coordinator.policy import decide
from dpstream.services.coordinator.records import replace
from dpstream.services.coordinator.service import Coordinator
from dpstream.services.coordinator.state import State
from dpstream.shared import messages as m
from dpstream.shared.bus.batch import take
from dpstream.shared.bus.memory import Broker, InProcessBus
from dpstream.shared.bus.topology import CONTROL, COORDINATOR
from dpstream.shared.codec import decode, encode
from dpstream.shared.errors import BusError, Fenced, StoreError
from dpstream.shared.ports import Outgoing
from dpstream.shared.proof import digest
from dpstream.shared.runtime.worker import claim_uri
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import TRAINED, campaign_uri
from tests.support.adapters.dead_letters import buried_bodies
from tests.support.adapters.faulty_adapters import FaultyBus, FlakyBus, FlakyStore
from tests.support.campaigns.archived import tasks_of
from tests.support.campaigns.campaign_simulator import CampaignSimulator, spec, submission
from tests.support.campaigns.coordinator import (
    LEASE,
    REISSUE,
    CoordinatorHarness,
    first_task,
    serving,
    small,
    status,
)

pytestmark = pytest.mark.usefixtures("no_log_lines")
LABELS = "label.tblite"


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path)


@pytest.fixture
def harness(store: FolderStore) -> CoordinatorHarness:
    return CoordinatorHarness(store)


def test_a_campaign_from_submission_to_verdict(
    harness: CoordinatorHarness, store: FolderStore
) -> None:
    harness.submit(spec())
    state = harness.finish()
    assert state.finished is not None
    assert state.finished.verdict == "converged"
    assert load_state(store, "world").dumps() == state.dumps()
    assert not harness.coordinator.open_campaigns["world"].leases


def test_an_explorer_of_an_earlier_release_uses_the_former_name_of_its_event(
    harness: CoordinatorHarness,
) -> None:
    open_campaign = harness.submit(small())
    while not open_campaign.state.alive(m.Explore):
        harness.work()
        harness.step()
    commands = harness.published("explore")
    for command in commands:
        claimed, *chunks = harness.world.answer(command)
        harness.publish(claimed)
        for chunk in chunks:
            body = encode(chunk).replace(b"chunk-explored/1", b"candidates-found/1")
            harness.bus.publish([Outgoing(body, topic="world.candidates-found")])
    harness.step()
    assert {status(open_campaign, command) for command in commands} == {"done"}
    assert harness.coordinator.inbox.dead_letters.count == 0


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
    redelivered, topic, user, secret, dropped = False, None, None, None, False

    def __init__(self, event: m.Message, recorder: Recorder) -> None:
        self.body, self.recorder = encode(event), recorder

    def ack(self) -> None:
        self.recorder.act("ack")

    def reject(self) -> None:
        self.recorder.act("reject")


def answered(harness: CoordinatorHarness, command: m.Command) -> list[m.Message]:
    """What the worker that claims a task publishes."""
    assert harness.claim(command)
    return harness.world.answer(command)


def test_fold_append_publish_acknowledge_in_that_order(
    harness: CoordinatorHarness, tmp_path: Path
) -> None:
    harness.submit(small())
    recorder = Recorder()
    again = CoordinatorHarness(RecordedStore(tmp_path, recorder), RecordedBus(Broker(), recorder))
    events = [e for c in harness.published() for e in answered(harness, c)]
    again.coordinator.receive([RecordedDelivery(e, recorder) for e in events])
    acts = [act for act in recorder.acts if not act.startswith("create epoch")]
    opened = acts.index("append")
    assert acts[opened:] == ["append", "create manifests", "publish", *["ack"] * len(events)]


@pytest.mark.slow
@pytest.mark.parametrize("deadly", range(8))
def test_a_crash_between_any_two_acts_loses_nothing(
    harness: CoordinatorHarness, tmp_path: Path, deadly: int
) -> None:
    harness.submit(small())
    events = [e for c in harness.published() for e in answered(harness, c)]
    recorder = Recorder(deadly)
    dying = CoordinatorHarness(RecordedStore(tmp_path, recorder), RecordedBus(Broker(), recorder))
    with pytest.raises(Died):
        dying.coordinator.receive([RecordedDelivery(e, recorder) for e in events])
    after = CoordinatorHarness(FolderStore(tmp_path), world=harness.world)
    after.coordinator.open("world")
    if "ack" not in recorder.acts:
        after.publish(*events)  # the broker delivers unacknowledged messages again
    state = after.finish()
    undisturbed = CoordinatorHarness(FolderStore(tmp_path / "quiet"))
    undisturbed.submit(small())
    assert state.dumps() == undisturbed.finish().dumps()


def test_a_claim_shares_a_segment_with_the_result_not_far_behind(
    harness: CoordinatorHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpstream.shared.bus.batch.BATCH_SECONDS", 60.0)
    _, command = first_task(harness)
    claimed, *results = harness.world.answer(command)
    subscription = harness.bus.consume(COORDINATOR, prefetch=service.BATCH)
    harness.publish(claimed)
    later = threading.Timer(0.05, harness.publish, results)
    later.start()
    found = take(subscription, service.BATCH, 1.0, harness.coordinator.can_wait)
    later.join()
    assert [decode(delivery.body) for delivery in found] == [claimed, *results]


def test_a_claim_alone_is_heard_all_the_same(harness: CoordinatorHarness) -> None:
    _, command = first_task(harness)
    claimed, *_ = harness.world.answer(command)
    subscription = harness.bus.consume(COORDINATOR, prefetch=service.BATCH)
    harness.publish(claimed)
    found = take(subscription, service.BATCH, 1.0, harness.coordinator.can_wait)
    assert [decode(delivery.body) for delivery in found] == [claimed]


def test_results_wait_for_company_until_a_queue_runs_dry(
    harness: CoordinatorHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpstream.shared.bus.batch.BATCH_SECONDS", 60.0)
    monkeypatch.setattr("dpstream.shared.bus.batch.BATCH_ENOUGH", 3)
    open_campaign = harness.submit(
        spec(labels={"bundle": 1}, verification={}), frames=2 * service.WELL_STOCKED
    )
    answers = [harness.world.answer(command) for command in harness.published()]
    subscription = harness.bus.consume(COORDINATOR, prefetch=service.BATCH)

    def taken() -> list[m.Message]:
        found = take(subscription, service.BATCH, 1.0, harness.coordinator.can_wait)
        harness.coordinator.receive(found)
        return [decode(delivery.body) for delivery in found]

    (_, one), (_, two), (_, three), *rest = answers
    harness.publish(one)
    later = threading.Timer(0.05, harness.publish, (two, three))
    later.start()
    assert taken() == [one, two, three]
    harness.publish(*(claimed for claimed, _ in rest))
    while open_campaign.task_queue.in_flight("label.tblite") >= service.WELL_STOCKED:
        taken()
    harness.publish(rest[0][1])
    assert rest[0][1] in taken()


@pytest.mark.slow
def test_a_wiped_broker_at_any_moment_loses_nothing(harness: CoordinatorHarness) -> None:
    harness.submit(small())
    for turn in range(200):
        harness.step()
        harness.work()
        if turn % 2:
            harness.bus = InProcessBus()
            harness.restart().open("world", workers_are_gone=True)
        if harness.coordinator.open_campaigns["world"].state.finished:
            return
    raise AssertionError(harness.coordinator.open_campaigns["world"].state)


def test_a_restart_says_the_last_segments_messages_again(harness: CoordinatorHarness) -> None:
    open_campaign = harness.submit(small())
    while not open_campaign.state.committee.version:
        harness.work()
        harness.step()
    harness.bus = InProcessBus()
    harness.bus.bind("listener", "world.models-ready")
    listener = harness.bus.consume("listener")
    for _ in range(2):
        harness.restart().open("world")
        delivery = listener.next(timeout=0.0)
        assert delivery is not None
        assert isinstance(decode(delivery.body), m.ModelsReady)
        delivery.ack()
    assert len(list(read_segments(harness.store, "world"))) == open_campaign.ledger.seq


# ---------------------------------------------------------------------------- leases and claims


def test_a_task_whose_worker_falls_silent_is_issued_again(harness: CoordinatorHarness) -> None:
    open_campaign, command = first_task(harness)
    harness.publish(harness.world.answer(command)[0])
    harness.step()
    harness.pass_time(LEASE)
    assert status(open_campaign, command) == "running"
    harness.pass_time(20.0)
    again = harness.published()
    assert [(c.task, c.attempt) for c in again] == [(command.task, 2)]
    assert tasks_of(open_campaign.state)[command.task].lapses == 1


def first_training(harness: CoordinatorHarness) -> m.Train:
    """Published and not claimed, in a new campaign."""
    harness.submit(small())
    while not (trainings := harness.published("train")):
        harness.work()
        harness.step()
    command: m.Train = trainings[0]
    return command


def test_an_outage_at_the_end_of_a_lease_loses_no_task(store: FolderStore) -> None:
    failing = list[str]()
    harness = CoordinatorHarness(FlakyStore(store, failing.__contains__))
    command = first_training(harness)
    harness.publish(harness.world.answer(command)[0])
    harness.step()
    harness.pass_time(LEASE)
    harness.now += 1.0
    failing.append("exists")
    with pytest.raises(StoreError):
        harness.step()
    failing.clear()
    harness.pass_time(20.0)
    again = [(c.task, c.attempt) for c in harness.published() if c.task == command.task]
    assert again == [(command.task, 2)]


@pytest.mark.parametrize("proof", ["right", "wrong"])
def test_a_stored_training_is_not_repeated_because_its_event_was_lost(
    harness: CoordinatorHarness, proof: str
) -> None:
    """An earlier coordinator, say, did not understand the event of a newer trainer."""
    command = first_training(harness)
    claimed, trained = harness.world.answer(command)
    harness.publish(claimed.model_copy(update={"proof_sha256": digest("right")}))
    stored = b"\n".join((encode(command), encode(trained), proof.encode()))
    harness.store.put(f"campaigns/world/results/{command.task}/1/{TRAINED}", stored)
    harness.pass_time(LEASE + 20.0)
    again = [(c.task, c.attempt) for c in harness.published() if c.task == command.task]
    assert again == ([] if proof == "right" else [(command.task, 2)])
    members = harness.coordinator.open_campaigns["world"].state.committee.members.values()
    assert (command.task in {member.task for member in members}) is (proof == "right")


class Looked(dict[str, float]):
    """Leases that count how often all of them are looked through."""

    times = 0

    def items(self) -> Any:
        self.times += 1
        return super().items()


def test_leases_are_looked_through_only_when_one_may_have_ended(
    harness: CoordinatorHarness,
) -> None:
    """Passes are many, and so are running tasks: their product must not grow."""
    open_campaign, command = first_task(harness)
    harness.publish(*harness.world.answer(command)[:1])
    harness.step()
    open_campaign.leases = looked = Looked(open_campaign.leases)
    for _ in range(1000):
        harness.now += LEASE / 2000
        harness.coordinator.check_clock()
    assert looked.times <= 1
    harness.heartbeat(command)
    harness.step()
    harness.pass_time(LEASE - 1)
    assert status(open_campaign, command) == "running"
    harness.pass_time(2)
    assert status(open_campaign, command) == "open"


def test_heartbeats_renew_a_lease_and_are_not_ledgered(harness: CoordinatorHarness) -> None:
    open_campaign, command = first_task(harness)
    harness.publish(harness.world.answer(command)[0])
    harness.step()
    before = open_campaign.ledger.seq
    for _ in range(5):
        harness.heartbeat(command)
        harness.pass_time(LEASE * 0.8)
    assert (status(open_campaign, command), open_campaign.ledger.seq) == ("running", before)
    assert open_campaign.progress == {command.task: "half way"}


def test_the_heartbeat_of_an_older_attempt_renews_nothing(harness: CoordinatorHarness) -> None:
    open_campaign, command = first_task(harness)
    harness.publish(harness.world.answer(command)[0])
    harness.pass_time(LEASE * 1.2)
    (second,) = harness.published()
    harness.publish(harness.world.answer(second)[0])
    for _ in range(5):
        harness.heartbeat(command)
        harness.pass_time(LEASE * 0.4)
    assert tasks_of(open_campaign.state)[command.task].attempt == 3


def test_leases_start_again_in_full_after_a_restart(harness: CoordinatorHarness) -> None:
    _, command = first_task(harness)
    harness.publish(harness.world.answer(command)[0])
    harness.step()
    harness.pass_time(LEASE * 0.9)
    harness.restart().open("world")
    open_campaign = harness.coordinator.open_campaigns["world"]
    harness.pass_time(LEASE * 0.9)
    assert status(open_campaign, command) == "running"
    harness.pass_time(LEASE * 0.3)
    assert status(open_campaign, command) == "open"


@pytest.mark.parametrize("error", [-86_400.0, 86_400.0])
def test_a_clock_that_is_set_moves_no_lease_and_no_delay(
    harness: CoordinatorHarness, error: float
) -> None:
    open_campaign, command = first_task(harness)
    harness.publish(harness.world.answer(command)[0])
    harness.step()
    harness.clock_error = error
    harness.pass_time(LEASE * 0.9)
    assert status(open_campaign, command) == "running"
    harness.pass_time(LEASE * 0.2)
    (second,) = harness.published()
    assert (second.task, second.attempt) == (command.task, 2)
    harness.publish(harness.world.answer(second)[0])
    harness.publish(released(second).model_copy(update={"delay": 30.0}))
    harness.step()
    harness.clock_error = 0.0
    assert harness.published() == []
    harness.pass_time(31.0)
    assert [third.attempt for third in harness.published()] == [3]


def test_nobody_lapses_while_the_coordinators_queue_is_backlogged(
    harness: CoordinatorHarness,
) -> None:
    open_campaign, command = first_task(harness)
    harness.publish(harness.world.answer(command)[0])
    harness.step()
    harness.heartbeat(command)
    for _ in range(20):  # it tends, and does not get round to hearing
        harness.now += LEASE * 0.2
        harness.coordinator.check_clock()
    assert status(open_campaign, command) == "running"
    harness.step()
    harness.pass_time(LEASE * 1.2)
    assert status(open_campaign, command) == "open"


def test_nobody_lapses_while_the_coordinator_was_not_looking(harness: CoordinatorHarness) -> None:
    open_campaign, command = first_task(harness)
    harness.publish(harness.world.answer(command)[0])
    harness.step()
    harness.now += 8 * 3600.0  # the laptop was asleep
    harness.step()
    assert status(open_campaign, command) == "running"
    harness.pass_time(LEASE * 1.2)
    assert status(open_campaign, command) == "open"


def test_the_claim_of_a_worker_that_died_unheard_is_found_by_reissue(
    harness: CoordinatorHarness,
) -> None:
    open_campaign, command = first_task(harness)
    assert harness.claim(command, "dead")
    harness.pass_time(REISSUE * 0.9)
    assert harness.published() == []
    harness.pass_time(REISSUE * 0.2)
    same = next(c for c in harness.published() if c.task == command.task)
    assert (same.task, same.attempt) == (command.task, 1)
    assert not harness.claim(same, "alive")
    winner = decode(harness.store.get(claim_uri("world", command.task, 1)))
    harness.publish(winner)  # the loser publishes the winner's word once more
    harness.step()
    assert status(open_campaign, command) == "running"
    harness.pass_time(LEASE * 1.2)
    assert tasks_of(open_campaign.state)[command.task].attempt == 2


def test_without_workers_a_queue_does_not_fill_with_copies(harness: CoordinatorHarness) -> None:
    harness.submit(spec())
    waiting = harness.bus.depth(LABELS)
    harness.pass_time(REISSUE * 5)
    assert harness.bus.depth(LABELS) == waiting > 0


def test_the_messages_of_one_campaign_do_not_stand_for_lost_ones_of_another(
    harness: CoordinatorHarness,
) -> None:
    harness.submit(spec())
    lost = {each.task for each in harness.published(LABELS)}
    harness.submit(spec(name="other"))
    assert harness.bus.depth(LABELS) >= len(lost) > 0
    harness.pass_time(REISSUE * 1.1)
    assert lost <= {each.task for each in harness.published(LABELS)}


# ------------------------------------------------------------------------------ ended processes


def claim_by(command: m.Command, process: str | None) -> m.TaskClaimed:
    fields = CampaignSimulator.envelope(command, "claim")
    return m.TaskClaimed(**fields, worker="w", process=process)


def beat_by(command: m.Command, process: str | None) -> m.TaskHeartbeat:
    fields = CampaignSimulator.envelope(command, "beat")
    return m.TaskHeartbeat(**fields, worker="w", process=process)


def released(command: m.Command) -> m.TaskReleased:
    fields = CampaignSimulator.envelope(command, "released")
    return m.TaskReleased(**fields, reason="the worker is stopping")


def test_the_tasks_of_an_ended_process_are_issued_again_at_once(
    harness: CoordinatorHarness,
) -> None:
    open_campaign = harness.submit(small(), frames=20)
    commands = harness.published()[:3]
    for command, process in zip(commands, ("cpu-1-0", "cpu-1-1", None), strict=True):
        harness.publish(claim_by(command, process))
    harness.step()
    harness.coordinator.processes.end({"cpu-1-0"}, harness.now)
    harness.step()
    assert [(c.task, c.attempt) for c in harness.published()] == [(commands[0].task, 2)]
    assert [status(open_campaign, each) for each in commands] == ["open", "running", "running"]
    lapse = next(
        entry.event
        for segment in read_segments(harness.store, "world")
        for entry in segment.entries
        if isinstance(entry.event, m.LeaseLapsed)
    )
    assert lapse.describe() == "the process cpu-1-0 of the worker has ended"


@pytest.mark.parametrize("last", ["release", "result"])
def test_what_a_process_published_before_its_end_counts(
    harness: CoordinatorHarness, last: str
) -> None:
    open_campaign, command = first_task(harness)
    harness.publish(claim_by(command, "cpu-1-0"))
    harness.step()
    words = [released(command)] if last == "release" else harness.world.answer(command)[1:]
    harness.publish(*words)
    harness.coordinator.processes.end({"cpu-1-0"}, harness.now)
    harness.coordinator.check_clock(harness.coordinator.processes.ended)  # still in the queue
    assert status(open_campaign, command) == "running"
    harness.step()
    task = tasks_of(open_campaign.state)[command.task]
    assert task.lapses == 0
    assert (task.status, task.attempt) == (("open", 2) if last == "release" else ("done", 1))


def test_after_a_full_batch_more_messages_of_an_ended_process_may_follow(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that the client has received and the coordinator has not is not in the queue."""
    monkeypatch.setattr(InProcessBus, "depth", lambda bus, queue: 0)
    harness = CoordinatorHarness(store)
    open_campaign, command = first_task(harness)
    harness.publish(claim_by(command, "cpu-1-0"))
    harness.step()
    harness.publish(*[beat_by(command, "cpu-1-0")] * service.BATCH, released(command))
    harness.coordinator.processes.end({"cpu-1-0"}, harness.now)
    for _, attempt in zip(harness.coordinator._passes(threading.Event()), (1, 2), strict=False):
        task = open_campaign.state.tasks[command.task]
        assert (task.command.attempt, task.lapses) == (attempt, 0)


def test_a_claim_may_arrive_after_the_news_that_its_process_has_ended(
    harness: CoordinatorHarness,
) -> None:
    open_campaign, command = first_task(harness)
    processes = harness.coordinator.processes
    processes.end({"cpu-1-0"}, harness.now)
    processes.end((), harness.now + 600)  # no longer listed
    harness.publish(claim_by(command, "cpu-1-0"))
    harness.step()
    assert tasks_of(open_campaign.state)[command.task].attempt == 2
    processes.end((), harness.now + 6000)
    assert processes.ended == frozenset()


@pytest.mark.parametrize("process", ["cpu-1-0", None])
def test_after_a_restart_the_claims_tell_which_process_has_a_task(
    harness: CoordinatorHarness, process: str | None
) -> None:
    _, command = first_task(harness)
    claimed = claim_by(command, process)
    harness.store.create(claim_uri("world", command.task, 1), encode(claimed))
    harness.publish(claimed)
    harness.step()
    harness.restart().open("world")
    harness.coordinator.processes.end({"cpu-1-0"}, harness.now)
    harness.step()
    task = harness.coordinator.open_campaigns["world"].state.tasks[command.task]
    assert task.command.attempt == (2 if process else 1)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_lapse_tells_how_much_work_is_lost(harness: CoordinatorHarness, restarted: bool) -> None:
    _, command = first_task(harness)
    claimed = claim_by(command, "cpu-1-0").model_copy(update={"time": harness.now})
    harness.store.create(claim_uri("world", command.task, 1), encode(claimed))
    harness.publish(claimed)
    harness.step()
    harness.now += 20.0
    if restarted:
        harness.restart().open("world")
    harness.coordinator.processes.end({"cpu-1-0"}, harness.now)
    harness.step()
    assert harness.coordinator.open_campaigns["world"].state.lost.microseconds == 20_000_000


def test_what_a_checkpoint_has_saved_is_not_lost(harness: CoordinatorHarness) -> None:
    open_campaign, command = first_task(harness)
    fields = CampaignSimulator.envelope(command, "checkpoint")
    saved = m.CheckpointSaved(**fields, checkpoint=m.Ref.to("checkpoint", b""), step=1)
    claimed = claim_by(command, "cpu-1-0")
    assert harness.store.create(claim_uri("world", command.task, 1), encode(claimed))
    for event in (saved, claimed):  # reordered
        harness.publish(event)
        harness.step()
        harness.now += 5.0
    harness.coordinator.processes.end({"cpu-1-0"}, harness.now)
    harness.step()
    assert open_campaign.state.lost.microseconds == 10_000_000


@pytest.mark.parametrize("seed", range(24))
def test_news_of_an_end_in_any_order_with_doubled_and_lost_messages(
    harness: CoordinatorHarness, seed: int
) -> None:
    """A task whose verdicts all arrive is done; any other is issued again without the frames that
    have one, and lapses at most once."""
    chance = random.Random(seed)
    open_campaign, command = first_task(harness)
    claimed = claim_by(command, "cpu-1-0")
    harness.store.create(claim_uri("world", command.task, 1), encode(claimed))
    said = [claimed, beat_by(command, "cpu-1-0"), released(command)]
    said += harness.world.answer(command)[1:] if chance.random() < 0.5 else []
    arriving = [each for each in said for _ in range(chance.choice([0, 1, 2]))]
    chance.shuffle(arriving)
    ends = chance.randrange(len(arriving) + 1)
    for number, event in enumerate([*arriving, claimed]):  # the next worker repeats the claim
        if number == ends:
            harness.coordinator.processes.end({"cpu-1-0"}, harness.now)
        harness.publish(event)
        if chance.random() < 0.5:
            harness.step()
    harness.step()
    harness.step()
    task = tasks_of(open_campaign.state)[command.task]
    results = [event for event in arriving if isinstance(event, m.LabelsDone)]
    answered = {accepted.key for result in results for accepted in result.accepted}
    left = [frame for frame in command.frames if frame.key not in answered]
    if not left:
        assert task.status == "done"
    else:
        assert list(open_campaign.state.tasks[command.task].label_frames) == left
        assert (task.status, task.attempt) == ("open", 2)
    assert task.lapses <= 1


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
            if not isinstance(event, m.TasksRetried):
                return after, decided
            order = cancelled(command)
            return replace(service.apply(state, order)), (order,)

        monkeypatch.setattr(service, "decide", once)

    return arm


TRIGGER = m.TasksRetried(id="trigger", campaign="world", time=0.0)


def test_a_revocation_that_wins_the_claim_ends_the_task(
    harness: CoordinatorHarness, cancelling: Callable[[m.Command], None]
) -> None:
    open_campaign, command = first_task(harness)
    assert isinstance(command, m.Label)
    cancelling(command)
    harness.publish(TRIGGER)
    harness.step()
    harness.step()
    assert status(open_campaign, command) == "cancelled"
    assert not harness.claim(command), "no worker can start it any more"
    assert open_campaign.own_events == []
    asked = {f.key for c in harness.published() for f in c.frames}
    assert asked == {f.key for f in command.frames}, "its frames are asked for by another task"


def test_a_revocation_that_loses_the_claim_lets_a_label_finish(
    harness: CoordinatorHarness, cancelling: Callable[[m.Command], None]
) -> None:
    open_campaign, command = first_task(harness)
    cancelling(command)
    assert harness.claim(command)
    harness.publish(TRIGGER)
    harness.step()
    assert status(open_campaign, command) == "open"
    key = claim_uri("world", command.task, 1)
    assert not harness.store.exists(f"{key}.stop")
    harness.publish(*harness.world.answer(command))
    harness.step()
    assert status(open_campaign, command) == "done"


def test_a_running_task_other_than_a_label_is_asked_to_stop(
    harness: CoordinatorHarness, cancelling: Callable[[m.Command], None]
) -> None:
    open_campaign = harness.submit(small())
    while not (commands := harness.published("explore")):
        harness.work()
        harness.step()
    command = commands[0]
    cancelling(command)
    assert harness.claim(command)
    harness.publish(TRIGGER)
    harness.step()
    assert status(open_campaign, command) == "cancelled"
    assert harness.store.exists(claim_uri("world", command.task, 1) + ".stop")
    harness.pass_time(REISSUE * 1.2)
    assert command.task not in {c.task for c in harness.published()}


def test_with_all_workers_gone_their_claims_are_free_at_once(harness: CoordinatorHarness) -> None:
    _, command = first_task(harness)
    assert harness.claim(command), "and it is killed before anybody hears of it"
    harness.restart().open("world", workers_are_gone=True)
    harness.step()
    attempts = {c.task: c.attempt for c in harness.published()}
    assert attempts[command.task] == 2
    assert set(attempts.values()) == {1, 2}, "who had no claim has not been tried"
    assert tasks_of(harness.coordinator.open_campaigns["world"].state)[command.task].lapses == 0


def test_a_revocation_cut_off_by_a_crash_is_taken_up_again(
    harness: CoordinatorHarness,
    cancelling: Callable[[m.Command], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, command = first_task(harness)
    cancelling(command)
    harness.publish(TRIGGER)
    monkeypatch.setattr(
        harness.coordinator, "check_clock", lambda ended: None
    )  # dies before its own event
    harness.step()
    assert harness.store.exists(claim_uri("world", command.task, 1))
    harness.restart().open("world")
    harness.step()
    assert status(harness.coordinator.open_campaigns["world"], command) == "cancelled"


# ------------------------------------------------------------------------------ several campaigns


def test_an_unprocessable_event_pauses_its_campaign_and_no_other(
    harness: CoordinatorHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def brittle(state: State, event: m.Message) -> Any:
        if event.campaign == "sick" and isinstance(event, m.LabelsDone):
            raise KeyError("a bug")
        return decide(state, event)

    monkeypatch.setattr(service, "decide", brittle)
    harness.submit(small("sick"))
    harness.submit(small("sound"))
    assert harness.finish("sound").finished
    sick = harness.coordinator.open_campaigns["sick"].state
    assert sick.paused is not None
    assert "cannot process LabelsDone" in sick.paused
    told = [d for s in read_segments(harness.store, "sick") for e in s.entries for d in e.decided]
    (pause,) = [d for d in told if isinstance(d, m.CampaignPaused)][:1]
    assert "KeyError: 'a bug'" in pause.trace
    assert load_state(harness.store, "sick").dumps() == sick.dumps()


def test_a_repaired_campaign_goes_on_after_an_unprocessable_event(
    harness: CoordinatorHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(state: State, event: m.Message) -> Any:
        raise KeyError("a bug")

    open_campaign = harness.submit(small())
    monkeypatch.setattr(service, "decide", broken)
    harness.work()
    harness.step()
    assert open_campaign.state.paused
    monkeypatch.undo()
    harness.restart().open("world")
    harness.publish(m.CampaignResumed(id="r", campaign="world", time=0.0))
    harness.step()
    harness.work()  # the claims are taken, by workers long gone
    harness.step()
    harness.pass_time(LEASE * 1.2)
    assert harness.finish().finished


def test_a_command_too_long_for_the_wire_pauses_its_campaign(
    harness: CoordinatorHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpstream.shared.codec.MAX_BODY", 3000)
    open_campaign = harness.submit(small(labels={"bundle": 100}))
    assert (
        open_campaign.state.paused is None or "at most 3000 allowed" in open_campaign.state.paused
    )
    monkeypatch.setattr("dpstream.shared.codec.MAX_BODY", 900)
    monkeypatch.setattr(
        "dpstream.services.coordinator.inbox.decode_leniently", decode
    )  # any length is heard
    harness.store.put(campaign_uri("long", "spec.json"), small("long").model_dump_json().encode())
    delivery = RecordedDelivery(TRIGGER, Recorder())
    delivery.body = submission(small("long")).model_dump_json().encode()
    harness.coordinator.receive([delivery])
    assert "at most 900 allowed" in (harness.coordinator.open_campaigns["long"].state.paused or "")


def test_two_campaigns_share_what_is_published(harness: CoordinatorHarness) -> None:
    of = {"labels": {"bundle": 1}}
    for name in ("one", "two"):
        body = small(name, **of).model_dump_json().encode()
        harness.store.put(campaign_uri(name, "spec.json"), body)
        harness.coordinator.open(name)
        harness.publish(submission(small(name, **of), frames=30))
    harness.step()
    assert Counter(c.campaign for c in harness.published()) == {"one": 10, "two": 10}


def test_a_campaign_that_is_over_takes_no_share(harness: CoordinatorHarness) -> None:
    harness.submit(small("over"))
    assert harness.finish("over").finished
    of = small("next", labels={"bundle": 1})
    harness.store.put(campaign_uri("next", "spec.json"), of.model_dump_json().encode())
    harness.publish(submission(of, frames=30))
    harness.step()
    assert len(harness.published()) == 20


def test_a_paused_campaign_publishes_nothing(harness: CoordinatorHarness) -> None:
    open_campaign = harness.submit(small(labels={"bundle": 1}))
    harness.published()
    open_campaign.state = replace(open_campaign.state, paused="a person looks at it")
    harness.pass_time(REISSUE * 1.2)
    assert harness.published() == []


def test_events_of_unknown_campaigns_are_ignored(harness: CoordinatorHarness) -> None:
    harness.publish(submission(small("nobody")))
    harness.step()
    assert harness.coordinator.open_campaigns == {}
    assert harness.bus.depth(COORDINATOR) == 0
    harness.submit(small())
    assert harness.finish().finished


def test_what_cannot_be_decoded_is_buried_and_blocks_nothing(harness: CoordinatorHarness) -> None:
    bodies = [b"", b"{", b'{"type": "future/9"}', b"\xff\xfe", b"[]"]
    for body in bodies:
        harness.bus.publish([Outgoing(body, topic="world.labels-done")])
    harness.submit(small())
    assert sorted(buried_bodies(harness.store)) == sorted(bodies)
    assert harness.finish().finished


def test_a_campaign_whose_ledger_is_damaged_is_left_alone(harness: CoordinatorHarness) -> None:
    harness.submit(small("sick"))
    harness.submit(small("sound"))
    harness.store.put("campaigns/sick/ledger/00000001-000001.json", b"damage")
    harness.restart().open("sound")
    harness.publish(submission(small("sick")), submission(small("sick")))
    assert harness.finish("sound").finished
    assert "00000001-000001.json" in harness.coordinator.broken["sick"]


def test_the_coordinator_does_not_react_to_its_own_words(harness: CoordinatorHarness) -> None:
    open_campaign = harness.submit(small())
    harness.finish()
    seq = open_campaign.ledger.seq
    entries = [e for s in read_segments(harness.store, "world") for e in s.entries]
    harness.publish(*(d for e in entries for d in e.decided if not isinstance(d, m.Command)))
    harness.publish(*(e.event for e in entries))
    harness.step()
    assert open_campaign.ledger.seq == seq


# ----------------------------------------------------------------------------- outages, two at once


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
    harness = CoordinatorHarness(store, bus)
    faulty = FlakyBus(FaultyBus(bus, seed), fails)
    harness.coordinator = Coordinator(
        faulty, FlakyStore(store, fails), clock=lambda: harness.now, timer=lambda: harness.now
    )
    monkeypatch.setattr(service, "PAUSE", 0.001)
    monkeypatch.setattr(service, "LONGEST_PAUSE", 0.002)
    store.put(campaign_uri("world", "spec.json"), small().model_dump_json().encode())
    harness.publish(submission(small()))
    stopping, thread, errors = serving(harness.coordinator)
    try:
        state = worked_to_the_end(harness, thread)
    finally:
        fails.enabled = False
        stopping.set()
        thread.join(timeout=10)
    assert not errors
    quiet = CoordinatorHarness(FolderStore(Path(str(store.root) + "-quiet")))
    quiet.submit(small())
    assert state.dumps() == quiet.finish().dumps()


def worked_to_the_end(harness: CoordinatorHarness, thread: threading.Thread) -> State:
    ticks = threading.Event()
    for _ in range(3000):
        assert thread.is_alive(), "the coordinator died"
        harness.work()
        ticks.wait(0.005)
        open_campaign = harness.coordinator.open_campaigns.get("world")
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
    harness = CoordinatorHarness(store)
    open_campaign = harness.submit(small())
    harness.work()
    failing = [True]
    flaky = FlakyStore(store, lambda asked: failing[0] and asked == operation)
    harness.coordinator.store = flaky
    open_campaign.ledger.store = flaky
    waiting = harness.bus.depth(COORDINATOR)
    with pytest.raises(StoreError):
        harness.step()
    assert harness.bus.depth(COORDINATOR) == waiting
    failing[0] = False
    assert harness.finish().finished
    assert load_state(store, "world").dumps() == open_campaign.state.dumps()
    assert harness.coordinator.open_campaigns["world"] is open_campaign, "watchers keep watching it"


def test_an_outage_of_one_campaigns_objects_holds_up_no_other(store: FolderStore) -> None:
    class Half(FolderStore):
        def create(self, key: str, data: bytes) -> bool:
            if "/sick/ledger" in key and failing:
                raise StoreError("access denied")
            return super().create(key, data)

    failing = [True]
    harness = CoordinatorHarness(Half(store.root))
    for name in ("sick", "sound"):
        harness.store.put(campaign_uri(name, "spec.json"), small(name).model_dump_json().encode())
        harness.publish(submission(small(name)))
    for _ in range(200):
        with suppress(StoreError):
            harness.step()
        harness.work()
        if harness.coordinator.open_campaigns["sound"].state.finished:
            break
    assert harness.coordinator.open_campaigns["sound"].state.finished
    failing.clear()
    assert harness.finish("sick").finished


def test_events_of_our_own_survive_an_outage(harness: CoordinatorHarness) -> None:
    open_campaign = harness.submit(small())
    open_campaign.state = replace(open_campaign.state, paused="a person looks at it")
    open_campaign.own_events.append(m.CampaignResumed(id="r", campaign="world", time=0.0))
    good = open_campaign.ledger.store
    open_campaign.ledger.store = FlakyStore(good, lambda operation: operation == "create")
    with pytest.raises(StoreError):
        harness.step()
    assert [type(event) for event in open_campaign.own_events] == [m.CampaignResumed]


def pause() -> m.CampaignPaused:
    return m.CampaignPaused(id="pause", campaign="world", time=0.0, why="maintenance")


def test_a_request_overtakes_a_backlog_and_takes_effect_once(harness: CoordinatorHarness) -> None:
    open_campaign = harness.submit(small())
    junk = [Outgoing(str(number).encode(), topic="world.task-heartbeat") for number in range(200)]
    harness.bus.publish(junk)
    harness.publish(pause())
    passes = harness.coordinator._passes(threading.Event())
    next(passes)
    assert open_campaign.state.paused == "maintenance"
    assert harness.bus.depth(COORDINATOR) > 0
    harness.publish(m.CampaignResumed(id="resume", campaign="world", time=0.0))
    while harness.bus.depth(COORDINATOR):
        next(passes)
        assert open_campaign.state.paused is None


def test_a_request_in_the_queue_of_an_earlier_release_is_found(
    harness: CoordinatorHarness,
) -> None:
    open_campaign = harness.submit(small())
    harness.publish(pause())
    subscription = harness.bus.consume(CONTROL, prefetch=10)
    while (delivery := subscription.next(timeout=0.0)) is not None:
        delivery.ack()
    subscription.cancel()
    next(harness.coordinator._passes(threading.Event()))
    assert open_campaign.state.paused == "maintenance"


def test_the_older_of_two_coordinators_stops_without_acknowledging(
    harness: CoordinatorHarness,
) -> None:
    harness.submit(small())
    older = harness.coordinator
    harness.work()
    newer = harness.restart()
    newer.open("world")
    waiting = harness.bus.depth(COORDINATOR)
    with pytest.raises(Fenced):
        harness.step(older)
    assert harness.bus.depth(COORDINATOR) == waiting
    assert harness.finish().finished


def test_a_fenced_coordinator_ends_its_service(harness: CoordinatorHarness) -> None:
    harness.submit(small())
    older = harness.coordinator
    harness.restart().open("world")
    stopping, thread, errors = serving(older)
    harness.work()
    thread.join(timeout=10)
    stopping.set()
    assert [type(error) for error in errors] == [Fenced]
    assert harness.finish().finished


def test_a_coordinator_stops_when_asked_even_during_an_outage(harness: CoordinatorHarness) -> None:
    harness.bus.close()
    stopping, thread, errors = serving(harness.coordinator)
    stopping.wait(0.05)
    stopping.set()
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert not errors


def test_a_bus_that_fails_when_a_task_is_published_gets_it_later(
    harness: CoordinatorHarness,
) -> None:
    failing = [True]
    harness.coordinator.bus = FlakyBus(harness.bus, lambda asked: failing[0] and asked == "publish")
    of = small()
    harness.store.put(campaign_uri("world", "spec.json"), of.model_dump_json().encode())
    harness.publish(submission(of))
    with pytest.raises(BusError):
        harness.step()
    failing[0] = False
    harness.step()
    assert len(harness.published()) == 2


def test_a_deleted_campaigns_name_is_free_at_once(harness: CoordinatorHarness) -> None:
    first = harness.submit(spec())
    harness.publish(m.CampaignCancelled(id="c", campaign="world", time=5.0))
    harness.step()
    assert first.state.finished is not None
    for key in list(harness.store.list("campaigns/world/")):
        harness.store.delete(key)
    again = harness.submit(spec())
    assert again is not first
    assert again.state.finished is None
    assert again.state.submitted is not None
