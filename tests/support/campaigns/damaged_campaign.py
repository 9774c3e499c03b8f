"""A campaign half way to its end, whose ledger is damaged, repaired and gone on with."""

from __future__ import annotations

from collections import Counter

from dpstream.integrity.repair import Repair, plan
from dpstream.integrity.verify import verify
from dpstream.services.coordinator.ledger.ledger import read_messages
from dpstream.services.coordinator.state import State
from dpstream.shared import messages as m
from dpstream.shared.codec import encode
from dpstream.shared.ports import Store
from dpstream.shared.values import TRAINED, campaign_uri
from tests.support.campaigns.coordinator import CoordinatorHarness, small
from tests.support.campaigns.sample_messages import example


def half_way(store: Store, turns: int = 8) -> CoordinatorHarness:
    """A campaign in the middle, with the coordinator stopped. Trainers store their events."""
    harness = CoordinatorHarness(store)
    open_campaign = harness.submit(small())
    submitted = open_campaign.state.submitted
    assert submitted is not None
    store.put(campaign_uri("world", "submitted.json"), encode(submitted))
    for _ in range(turns):
        harness.work()
        harness.step()
    commands = dict[str, m.Train]()
    for message in read_messages(store, "world"):
        if isinstance(message, m.Train):
            commands[message.task] = message.model_copy(update={"time": 0.0, "cause": None})
        elif isinstance(message, m.MemberTrained):
            key = campaign_uri("world", "results", message.task, message.attempt, TRAINED)
            store.put(key, encode(commands[message.task]) + b"\n" + encode(message))
    harness.coordinator._write_heads()
    assert harness.coordinator.open_campaigns["world"].ledger.seq > 8
    return harness


def segments(store: Store) -> list[str]:
    return list(store.list("campaigns/world/ledger/"))


def repaired(store: Store, backup: Store | None = None) -> Repair:
    """The simulator's objects do not exist: only what concerns the ledger is looked at."""
    assert verify(store, "world").ledger.damage
    planned = plan(store, "world", backup)
    planned.write()
    assert not verify(store, "world").ledger.damage
    return planned


def of_ledger(lines: list[str]) -> list[str]:
    return [line for line in lines if "ledger" in line]


def resumed(store: Store) -> CoordinatorHarness:
    harness = CoordinatorHarness(store)
    harness.coordinator.open_all()
    assert harness.coordinator.broken == {}
    assert harness.coordinator.open_campaigns["world"].state.paused is not None
    harness.publish(example(m.CampaignResumed).model_copy(update={"campaign": "world"}))
    return harness


def finished(harness: CoordinatorHarness) -> State:
    """The end of the campaign. Tasks whose claims are lost run anew when their leases end."""
    for _ in range(10):
        state = harness.finish()
        if state.finished:
            return state
        harness.pass_time(150.0)
    raise AssertionError(state.paused)


def trainings(store: Store) -> Counter[tuple[int, int]]:
    """How often each member of each version was trained, by the attempts of its task."""
    issued = Counter[tuple[int, int]]()
    for message in read_messages(store, "world"):
        if isinstance(message, m.MemberTrained):
            issued[message.version, message.member] = message.attempt
    return issued
