"""Amendments of a campaign that a coordinator serves: ledgered, replayed, and told by all views."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpstream.report.page import render
from dpstream.running.local_cluster import LocalCluster
from dpstream.services.coordinator.ledger.ledger import (
    Segment,
    begun_and_ended,
    load_state,
    messages_of,
    read_messages,
    verdict,
)
from dpstream.services.coordinator.open_campaign import OpenCampaign
from dpstream.services.coordinator.views.campaign import CampaignView
from dpstream.services.coordinator.views.frames import History
from dpstream.services.coordinator.views.overview import overview
from dpstream.services.coordinator.views.why import why
from dpstream.services.explorer.resources import ExplorerResources
from dpstream.services.labeler.resources import LabelerResources
from dpstream.shared import messages as m
from dpstream.shared.runtime.device import chosen
from dpstream.shared.spec import Spec
from dpstream.shared.store.dead_letters import count_buried
from dpstream.shared.store.folder import FolderStore
from dpstream.shared.values import Ref
from dpstream.terminal.status import figures
from tests.support.campaigns.amendments import amendment, announced, changed, verdicts, with_stage
from tests.support.campaigns.archived import whole_state
from tests.support.campaigns.campaign_simulator import submission
from tests.support.campaigns.coordinator import CoordinatorHarness, small

pytestmark = pytest.mark.usefixtures("no_log_lines")


@pytest.fixture
def harness(tmp_path: Path) -> CoordinatorHarness:
    return CoordinatorHarness(FolderStore(tmp_path))


def send(harness: CoordinatorHarness, event: m.CampaignAmended) -> m.CampaignAmended:
    message = announced(harness.store, event)
    harness.publish(message)
    harness.step()
    return message


def plans() -> list[Spec]:
    """A stage is appended, trust is tightened, the budget is raised."""
    first = with_stage(small(), "hotter")
    second = changed(first, trust={"low": 0.08})
    return [first, second, changed(second, budget={"labels": 20_000})]


def amended_while_it_runs(harness: CoordinatorHarness) -> None:
    """Three amendments, and the coordinator is killed after each."""
    harness.submit(small())
    for number, plan in enumerate(plans(), start=1):
        harness.work()
        send(harness, amendment(plan, number, author="ada" if number < 3 else "bob"))
        harness.restart().open_all()
        harness.work()
        harness.step()


def test_three_amendments_and_kills_replay_to_the_same_state(harness: CoordinatorHarness) -> None:
    amended_while_it_runs(harness)
    state = harness.finish()
    assert state.finished is not None
    assert state.plan.number == 4
    assert verdicts(state) == {"cold": "converged", "hotter": "converged"}
    assert load_state(harness.store, "world").dumps() == state.dumps()
    assert whole_state(harness.store, "world").dumps() == state.dumps()


@pytest.mark.slow
def test_the_report_tells_the_plans_one_after_another(harness: CoordinatorHarness) -> None:
    amended_while_it_runs(harness)
    harness.finish()
    view = CampaignView.read(harness.store, "world")
    assert [(each.number, each.author, each.changes) for each in view.plans.changed] == [
        (2, "ada", ("stage `hotter` added after `cold`: methane at 600 K",)),
        (3, "ada", ("trust.low 0.1 → 0.08",)),
        (4, "bob", ("budget.labels 10000 → 20000",)),
    ]
    page = render(harness.store, "world")
    rows = page.split("<h2>Plans</h2>")[1].split("</table>")[0]
    told = ["as it was submitted", "stage `hotter` added", "trust.low 0.1", "budget.labels 10000"]
    places = [rows.index(line) for line in told]
    assert places == sorted(places)
    assert rows.count("<td>ada</td>") == 2
    assert rows.count("<td>bob</td>") == 1


def test_a_report_of_one_plan_has_no_table_of_plans(harness: CoordinatorHarness) -> None:
    harness.submit(small())
    harness.finish()
    assert "<h2>Plans</h2>" not in render(harness.store, "world")


def test_the_status_tells_the_plan_in_force(harness: CoordinatorHarness) -> None:
    amended_while_it_runs(harness)
    status = CampaignView.read(harness.store, "world").status
    assert status.overview.plan is not None
    assert status.overview.plan.number == 4
    assert figures(status)["plan"].endswith(" by bob: budget.labels 10000 → 20000")


def test_why_tells_the_plan_under_which_a_frame_was_chosen(harness: CoordinatorHarness) -> None:
    amended_while_it_runs(harness)
    harness.finish()
    lives = History.of(read_messages(harness.store, "world")).lives
    chosen = {life.plan: key for key, life in lives.items() if life.chosen is not None}
    assert len(chosen) > 1
    for plan, key in chosen.items():
        assert any(f" and plan {plan}" in line for line in why(harness.store, "world", key))


# ------------------------------------------------------------------------- after the end


def test_an_ended_campaign_goes_on_and_ends_again(harness: CoordinatorHarness) -> None:
    harness.submit(small())
    assert harness.finish().finished
    coordinator = harness.restart()
    coordinator.open_all()
    assert coordinator.ended == {"world"}
    assert not coordinator.open_campaigns
    send(harness, amendment(plans()[0]))
    assert coordinator.ended == set()
    assert verdict(harness.store, "world") is None
    assert begun_and_ended(harness.store) == ({"world"}, set())
    harness.restart().open_all()
    assert "world" in harness.coordinator.open_campaigns
    state = harness.finish()
    assert verdicts(state) == {"cold": "converged", "hotter": "converged"}
    last = verdict(harness.store, "world")
    assert last is not None
    assert last.plan == 2
    assert begun_and_ended(harness.store) == ({"world"}, {"world"})
    keys = set(harness.store.list("campaigns/world/finished"))
    assert keys == {"campaigns/world/finished.json", "campaigns/world/finished-2.json"}


def test_a_crash_before_the_plan_is_stored_is_made_up_for(
    harness: CoordinatorHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.submit(small())
    harness.finish()
    coordinator = harness.restart()
    with monkeypatch.context() as patched:
        act = coordinator._act

        def dies(open_campaign: OpenCampaign, segment: Segment) -> None:
            if any(isinstance(each, m.PlanChanged) for each in messages_of([segment])):
                raise KeyboardInterrupt
            act(open_campaign, segment)

        patched.setattr(coordinator, "_act", dies)
        message = announced(harness.store, amendment(plans()[0]))
        harness.publish(message)
        with pytest.raises(KeyboardInterrupt):
            harness.step()
    assert list(harness.store.list("campaigns/world/plans/")) == []
    harness.restart().open_all()
    assert not harness.coordinator.open_campaigns
    harness.publish(message)  # it was not acknowledged, and comes again
    harness.step()
    (plan,) = harness.store.list("campaigns/world/plans/")
    assert Spec.model_validate_json(harness.store.get(plan)) == plans()[0]
    assert verdicts(harness.finish()) == {"cold": "converged", "hotter": "converged"}


def test_labelers_of_a_run_serve_the_plan_that_waits(
    harness: CoordinatorHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_campaign = harness.submit(small())
    while open_campaign.state.exploration.round is None:
        harness.work()
        harness.step()
    monkeypatch.setattr(LabelerResources, "start", lambda self: None)
    monkeypatch.setattr(ExplorerResources, "start", lambda self: None)
    cluster = LocalCluster(tmp_path, {"labeler": 1}, chosen("cpu"))
    after = changed(small(), trust={"low": 0.05}, labels={"worker_class": "big"})
    try:
        state = cluster.start(submission(small()), amendment(after)).state
        assert state.plan.number == 1
        (labeler,) = (each for each in cluster.crew if each.name == "labeler-0")
        assert (labeler.queue, labeler.others) == ("label.tblite", ("label.tblite-big",))
    finally:
        cluster.stop()


# ------------------------------------------------------------------------- not believed


def test_an_object_that_is_another_message_is_a_dead_letter(harness: CoordinatorHarness) -> None:
    open_campaign = harness.submit(small())
    event = amendment(plans()[0])
    message = announced(harness.store, event)
    assert message.complete is not None
    elsewhere = Ref.to("campaigns/world/results/x.json", b"{}")
    for forged in (
        message.model_copy(update={"follows": 3}),
        message.model_copy(update={"complete": None}),
        message.model_copy(update={"complete": elsewhere}),
        message.model_copy(
            update={"complete": message.complete.model_copy(update={"sha256": "0" * 64})}
        ),
    ):
        before = count_buried(harness.store)
        harness.publish(forged)
        harness.step()
        assert count_buried(harness.store) == before + 1
    assert open_campaign.state.plan.number == 1
    assert overview(open_campaign.state).plan is None


def test_the_coordinator_checks_the_spec_again(harness: CoordinatorHarness) -> None:
    open_campaign = harness.submit(small())
    send(harness, amendment(changed(small(), seed=9)))
    (refused,) = CampaignView.read(harness.store, "world").plans.refused
    assert refused.why.startswith("seed: 1 → 9: cannot change in a campaign")
    assert "seed: 1 → 9" in render(harness.store, "world")
    assert open_campaign.state.spec == small()
