"""Imported labels that a campaign has computed again: its first tasks, whose verdict decides
whether it goes on."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dpstream.commands.run import local
from dpstream.services.coordinator.ledger.submission import submission as submitted
from dpstream.services.coordinator.policy import decide
from dpstream.services.coordinator.views.campaign import CampaignView, Status
from dpstream.services.coordinator.views.overview import overview
from dpstream.services.coordinator.views.tasks import retryable
from dpstream.shared import messages as m
from dpstream.shared.cross_check import ComparedLabel, disagreement
from dpstream.shared.store.folder import FolderStore
from dpstream.terminal.status import next_step
from tests.support.campaigns.campaign_simulator import (
    CampaignSimulator,
    cross_check,
    key,
    spec,
    submission,
)
from tests.support.campaigns.coordinator import CoordinatorHarness
from tests.support.campaigns.lossy_delivery import (
    LossyDelivery,
    check_counters,
    check_snapshot,
    replayed,
    resumed,
)
from tests.support.campaigns.single_tasks import give_up
from tests.support.command_line import run_command, with_embedded_broker
from tests.support.soak import examples

AGREES = ComparedLabel(forces=0.02, energy=0.001)
DIFFERS = ComparedLabel(forces=0.06)
REJECTED = ComparedLabel(rejected="scf: not converged")
KEYS = [key("imported", number) for number in range(5)]


def comparing(*found: ComparedLabel, seed: int | None = None, faults: float = 0.0) -> LossyDelivery:
    """A campaign whose imported labels compare like this; the others agree."""
    compared = dict(zip(KEYS, [*found, *[AGREES] * (5 - len(found))], strict=True))
    of = spec(mode="streaming")
    campaign = LossyDelivery(CampaignSimulator(compared=compared), of, seed, faults)
    campaign.events = [submission(of, cross_check=cross_check())]
    return campaign


def checks(campaign: LossyDelivery) -> list[m.CheckLabel]:
    return [c for c in campaign.issued if isinstance(c, m.CheckLabel)]


def test_the_checks_are_the_first_tasks_and_nothing_else_begins_before_their_verdict() -> None:
    campaign = comparing()
    campaign.until(lambda state: len(state.cross_check.compared) == 4)
    assert [c.frame.key for c in checks(campaign)] == KEYS
    assert campaign.issued == checks(campaign)
    assert overview(campaign.state).headline == "cross-check: 4 of 5 imported labels compared"
    assert overview(campaign.state).tasks["check-label"]["done"] == 4
    campaign.until(lambda state: state.cross_check.over)
    assert {type(c) for c in campaign.issued[5:]} == {m.Label, m.Reference}
    assert campaign.run(check_counters).finished
    assert overview(campaign.state).cross_check == (
        "5 computed again: forces within 0.02 eV/Å, energies within 0.001 eV/atom"
    )


def test_without_imported_labels_the_campaign_begins_at_once() -> None:
    campaign = LossyDelivery(CampaignSimulator(), spec())
    campaign.step()
    assert {type(c) for c in campaign.issued} == {m.Label, m.Reference}


def test_checks_leave_the_label_budget_to_the_campaign() -> None:
    """Budgets of DP-GEN's jobs are exact."""
    campaign = comparing()
    campaign.step()
    plain = LossyDelivery(CampaignSimulator(), spec())
    plain.step()
    assert plain.state.label_room == campaign.state.label_room


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (
            DIFFERS,
            "forces of 5 .* by up to 0.06 eV/Å; allowed: 0.05 .* cancel this campaign and start",
        ),
        (ComparedLabel(energy=3.0), "energies of 5 .* by up to 3 eV per atom"),
        (
            REJECTED,
            "no label for an imported frame with the recipe in `labels`: C1H4: scf: not "
            "converged. If a labeler is the",
        ),
    ],
)
def test_if_they_disagree_the_campaign_pauses_and_says_what_to_do(
    found: ComparedLabel, why: str
) -> None:
    campaign = comparing(AGREES, found)
    state = campaign.run(check_counters)
    assert campaign.issued == checks(campaign)
    assert state.paused is not None
    assert re.search(why, state.paused)


@pytest.mark.parametrize("field", ["forces", "energy"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_an_impossible_difference_is_no_result(field: str, value: float) -> None:
    campaign = comparing()
    campaign.step()
    fields = CampaignSimulator.envelope(checks(campaign)[0])
    with pytest.raises(ValidationError):
        m.LabelChecked.model_validate({**fields, "forces": 0.0, "energy": 0.0, field: value})


@pytest.mark.parametrize("place", [0, 1, 4])
def test_what_is_not_a_number_disagrees(place: int) -> None:
    for broken in (replace(AGREES, forces=math.nan), replace(AGREES, energy=math.nan)):
        compared = [AGREES] * 5
        compared[place] = broken
        assert "by up to inf eV" in str(disagreement(compared, 0.05))


def test_virials_of_the_opposite_sign_pause_it_if_all_have() -> None:
    opposed = replace(AGREES, opposed=True)
    assert "opposite sign" in str(comparing(*[opposed] * 5).run().paused)
    assert comparing(*[opposed] * 4, replace(AGREES, opposed=False)).run().finished


def test_resume_accepts_numbers_that_differ() -> None:
    campaign = comparing(DIFFERS)
    campaign.run()
    campaign.events.append(resumed())
    assert campaign.run(check_counters).finished
    assert len(checks(campaign)) == 5


def test_resume_has_rejected_frames_computed_once_more() -> None:
    campaign = comparing(REJECTED, REJECTED)
    campaign.run()
    campaign.events.append(resumed(1))
    state = campaign.run()
    assert [c.frame.key for c in checks(campaign)] == [*KEYS, *KEYS[:2]]
    assert "to use the data as they are, resume" in str(state.paused)
    campaign.events.append(resumed(2))
    assert campaign.run(check_counters).finished
    assert len(checks(campaign)) == 7


def test_a_labeler_that_was_mended_gives_the_label_after_resume() -> None:
    campaign = comparing(REJECTED)
    campaign.run()
    campaign.world.by_key[KEYS[0]] = AGREES
    campaign.events.append(resumed())
    assert campaign.run().finished


def test_a_check_that_was_given_up_pauses_the_campaign_and_may_be_retried() -> None:
    campaign = comparing()
    command = given_up(campaign)
    assert "`labels`: C1H4: after 1 attempt: it broke" in str(campaign.state.paused)
    campaign.events.append(retried(command.task))
    assert campaign.run().cross_check.over
    campaign.events.append(resumed())
    assert campaign.run().finished


def given_up(campaign: LossyDelivery) -> m.CheckLabel:
    """The first check, abandoned in a campaign that has paused for it."""
    campaign.step()
    command = checks(campaign)[0]
    campaign.commands.remove(command)
    give_up(campaign, command, permanent=True)
    assert "no label" in str(campaign.run().paused)
    return command


def retried(*tasks: str, number: int = 1) -> m.TasksRetried:
    return m.TasksRetried(id=f"retry {number}", campaign="world", time=4.0, tasks=tasks)


def test_a_retried_check_is_not_issued_a_second_time_by_resume() -> None:
    campaign = comparing()
    command = given_up(campaign)
    campaign.deliver(retried(command.task))
    campaign.deliver(resumed(1))
    assert [c.task for c in checks(campaign)[5:]] == [command.task]
    assert campaign.run(check_counters).finished


def test_a_check_is_of_no_use_while_another_task_computes_it_or_after_the_verdict() -> None:
    campaign = comparing()
    command = given_up(campaign)
    assert [line.task for line in retryable(campaign.state)] == [command.task]
    campaign.deliver(resumed(1))
    assert not retryable(campaign.state)
    assert len(checks(campaign)) == 6
    campaign.deliver(retried(command.task))
    assert len(checks(campaign)) == 6
    campaign.until(lambda state: state.cross_check.over)
    assert not retryable(campaign.state)
    campaign.deliver(retried(command.task, number=2))
    assert len(checks(campaign)) == 6


@pytest.mark.parametrize("found", [DIFFERS, REJECTED])
def test_a_disagreement_that_no_pause_has_stated_is_not_accepted(found: ComparedLabel) -> None:
    campaign = comparing(found)
    campaign.step()
    campaign.events.append(
        m.CampaignPaused(id="lunch", campaign="world", time=2.0, why="on request")
    )
    assert campaign.run().paused == "on request"
    assert len(campaign.state.cross_check.compared) == 5
    campaign.events.append(resumed(1))
    assert str(campaign.run(check_counters).paused).startswith("initial.data: ")
    assert campaign.issued == checks(campaign)
    assert len(checks(campaign)) == 5
    for number in (2, 3):
        campaign.events.append(resumed(number))
        campaign.run(check_counters)
    assert campaign.state.finished


def test_the_pause_of_a_user_hides_a_disagreement_until_it_is_stated_again() -> None:
    campaign = comparing(DIFFERS)
    campaign.run()
    campaign.events.append(
        m.CampaignPaused(id="lunch", campaign="world", time=2.0, why="on request")
    )
    campaign.run()
    campaign.events.append(resumed(1))
    assert str(campaign.run().paused).startswith("initial.data: forces")


def test_what_a_retry_finds_after_the_report_is_reported_too() -> None:
    campaign = comparing(DIFFERS)
    campaign.events.append(retried(given_up(campaign).task))
    campaign.run()
    campaign.events.append(resumed(1))
    assert "forces of 5" in str(campaign.run().paused)


def test_a_late_check_changes_nothing_once_the_verdict_is_known() -> None:
    campaign = comparing(DIFFERS)
    campaign.run()
    campaign.events.append(resumed())
    state = campaign.run()
    again = campaign.world.results(checks(campaign)[0])[0]
    assert decide(state, again) == (state, ())


@pytest.mark.slow
@given(
    seed=st.integers(0, 2**31),
    found=st.lists(st.sampled_from([AGREES, DIFFERS, REJECTED]), max_size=5),
)
@examples(full=1000, usual=50)
def test_in_any_order_with_lost_and_doubled_messages(seed: int, found: list[ComparedLabel]) -> None:
    campaign = comparing(*found, seed=seed, faults=0.2)
    for number in range(50):
        while not campaign.state.cross_check.over and (campaign.events or campaign.commands):
            assert all(isinstance(c, m.CheckLabel) for c in campaign.issued)
            campaign.step()
            check_counters(campaign.state)
        if campaign.state.cross_check.over:
            break
        assert str(campaign.state.paused).startswith("initial.data: ")
        campaign.events.append(resumed(number))
    state = campaign.state
    assert state.cross_check.over
    assert set(state.cross_check.compared) == set(KEYS)
    assert replayed(spec(mode="streaming"), campaign.ledger).dumps() == state.dumps()
    check_snapshot(state)
    if any(each is not AGREES for each in found):
        assert campaign.decisions(m.CampaignPaused)


def test_the_coordinator_goes_on_with_the_checks_after_a_restart(tmp_path: Path) -> None:
    harness = CoordinatorHarness(FolderStore(tmp_path))
    of = spec()
    harness.store.put("campaigns/world/spec.json", of.model_dump_json().encode())
    harness.publish(submission(of, cross_check=cross_check()))
    harness.step()
    first, *others = harness.published("label.tblite")
    assert len(others) == 4
    harness.claim(first)
    harness.publish(*harness.world.answer(first))
    harness.step()
    harness.restart()
    harness.coordinator.open_all()
    harness.step()
    assert harness.finish().finished


@pytest.fixture
def other_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A spec whose data has another energy zero, by which the labelers will know it."""
    monkeypatch.chdir(tmp_path)
    atoms = molecule("CH4")
    atoms.write("a.xyz")
    atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=np.zeros((5, 3)))
    atoms.write("set.extxyz")
    stage = {"name": "one", "systems": ["a"], "temperatures": [300]}
    document = {
        "name": "light",
        "type_map": ["C", "H"],
        "systems": {"a": {"structures": ["a.xyz"]}},
        "initial": {"data": ["set.extxyz"]},
        "stages": [stage],
    }
    Path("light.yaml").write_text(yaml.safe_dump(document))
    return Path("light.yaml")


def test_submit_shows_the_plan_and_computes_nothing(
    other_zero: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_embedded_broker(monkeypatch)
    store = FolderStore(Path("runs"))

    def submit(*options: str) -> str:
        words = ("submit", other_zero, "--wait", "0", "--store", "runs", *options)
        status, out, err = run_command(monkeypatch, capsys, *words)
        assert status == 0, err
        return " ".join(out.split())

    said = submit()
    assert "the labelers compute 1 of 1 imported labels again before anything else" in said
    wanted = submitted(store, "light").cross_check
    assert wanted is not None
    assert [each.formula for each in wanted.labels] == ["C1H4"]
    assert not list(store.list("labels/"))
    assert "imported labels again" not in submit("--no-cross-check", "--name", "bold")
    assert submitted(store, "bold").cross_check is None


def test_the_same_run_again_does_not_accept_what_differs(
    other_zero: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bus, store = with_embedded_broker(monkeypatch), FolderStore(Path("runs"))
    harness = CoordinatorHarness(store, bus)
    run_command(monkeypatch, capsys, "submit", other_zero, "--wait", "0", "--store", "runs")
    wanted = submitted(store, "light").cross_check
    assert wanted is not None
    harness.world.by_key[wanted.labels[0].frame.key] = DIFFERS
    assert harness.finish("light").cross_check.awaits_acceptance

    started: list[str] = []

    def grow(of: m.CampaignSubmitted, view: CampaignView, *others: object) -> Status:
        started.append(of.campaign)
        return view.status

    monkeypatch.setattr(local, "_grow", grow)
    run = ("run", other_zero, "--store", "runs")
    status, out, _ = run_command(monkeypatch, capsys, *run)
    assert (status, started) == (1, [])
    assert " ".join(out.split()) == (
        "light: still paused: imported labels differ; correct labels and start it under another "
        "name (--name), or run the same command with --no-cross-check to use the imported labels "
        "as they are"
    )
    status, out, _ = run_command(monkeypatch, capsys, *run, "--no-cross-check")
    assert (status, started) == (1, ["light"])
    assert "results are kept; correct labels and start it under another name" in " ".join(
        out.split()
    )
    now = overview(harness.coordinator.open_campaigns["light"].state)
    assert next_step(now) == (
        "next: dpstream resume light, or dpstream run SPEC --no-cross-check if nothing runs it"
    )
