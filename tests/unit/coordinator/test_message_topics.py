"""A message is taken in only if it is what its topic says: the broker checks the rights of its
publisher by the topic alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpstream.shared import messages as m
from dpstream.shared.bus.topology import COORDINATOR
from dpstream.shared.codec import encode, is_published_under, kind_of, names_of
from dpstream.shared.ports import Outgoing
from dpstream.shared.runtime.worker import claim_uri
from dpstream.shared.store.folder import FolderStore
from tests.support.campaigns.archived import tasks_of
from tests.support.campaigns.campaign_simulator import CampaignSimulator
from tests.support.campaigns.coordinator import CoordinatorHarness, first_task, small
from tests.support.campaigns.sample_messages import example

KINDS = [*m.COMMANDS, *m.EVENTS]


@pytest.fixture
def harness(tmp_path: Path) -> CoordinatorHarness:
    harness = CoordinatorHarness(FolderStore(tmp_path))
    harness.submit(small())
    return harness


def forge(harness: CoordinatorHarness, event: m.Message, topic: str) -> None:
    """Publishes under the topic of another kind or campaign."""
    harness.bus.publish([Outgoing(encode(event), topic=topic)])
    harness.step()


@pytest.mark.parametrize("kind", KINDS, ids=kind_of)
def test_every_message_belongs_under_its_own_topics_alone(kind: type[m.Message]) -> None:
    message = example(kind)
    own = {f"{message.campaign}.{name}" for name in names_of(kind)}
    for campaign in (message.campaign, "another"):
        for other in KINDS:
            topic = f"{campaign}.{kind_of(other)}"
            expected = issubclass(kind, m.Event) and topic in own
            assert is_published_under(message, topic) == expected


@pytest.mark.parametrize(
    "word", [m.CampaignPaused, m.CampaignCancelled, m.CampaignFinished, m.LeaseLapsed], ids=kind_of
)
def test_a_generator_speaks_for_nobody_else(
    harness: CoordinatorHarness, word: type[m.Message]
) -> None:
    name = next(iter(harness.coordinator.open_campaigns))
    before = harness.coordinator.open_campaigns[name].state
    forged = example(word).model_copy(update={"campaign": name})
    forge(harness, forged, f"{name}.structures-proposed")
    assert harness.coordinator.open_campaigns[name].state == before
    assert harness.coordinator.inbox.dead_letters.count == 1
    assert harness.bus.depth(COORDINATOR) == 0
    assert harness.finish().finished


def test_a_worker_reports_failures_under_its_own_campaign_alone(
    harness: CoordinatorHarness,
) -> None:
    campaign, command = first_task(harness)
    failed = m.TaskFailed(**CampaignSimulator.envelope(command), permanent=True, reason="forged")
    forge(harness, failed, f"another.{kind_of(failed)}")
    assert tasks_of(campaign.state)[command.task].status == "open"


@pytest.mark.parametrize("kind", ["structures-proposed/2", "labels-done/1", "labels-done/2"])
def test_an_attempt_without_bounds_is_a_dead_letter_and_no_outage(
    harness: CoordinatorHarness, kind: str
) -> None:
    name = next(iter(harness.coordinator.open_campaigns))
    body = {"type": kind, "campaign": name, "id": "1", "time": 1.0, "task": "t"}
    text = json.dumps(body | {"attempt": 10**600})
    harness.bus.publish([Outgoing(text.encode(), topic=f"{name}.{kind.partition('/')[0]}")])
    harness.step()
    assert harness.coordinator.inbox.dead_letters.count == 1
    assert harness.finish().finished


@pytest.mark.parametrize("finished", [False, True])
def test_newer_events_are_kept_of_workers_and_while_their_campaign_runs(
    harness: CoordinatorHarness, finished: bool
) -> None:
    name = next(iter(harness.coordinator.open_campaigns))
    if finished:
        assert harness.finish(name).finished
    for kind in ("structures-proposed", "models-doubted"):
        body = {"type": f"{kind}/2", "campaign": name, "id": "1", "time": 1.0}
        harness.bus.publish([Outgoing(json.dumps(body).encode(), topic=f"{name}.{kind}")])
    harness.step()
    assert len(list(harness.store.list(f"campaigns/{name}/parked/"))) == (not finished)


def test_a_command_among_the_events_takes_no_claim(harness: CoordinatorHarness) -> None:
    _, command = first_task(harness)
    forge(harness, command, f"{command.campaign}.structures-proposed")
    assert not harness.store.exists(claim_uri(command.campaign, command.task, command.attempt))
