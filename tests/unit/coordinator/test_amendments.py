"""Plans that change: what an amendment ends, reopens and leaves alone, whatever the deliveries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dpstream.services.coordinator.amendment import Amended, newest_plan
from dpstream.services.coordinator.policy import decide
from dpstream.services.coordinator.state import State
from dpstream.services.coordinator.views.amendment import preview
from dpstream.services.coordinator.views.overview import headline
from dpstream.shared import messages as m
from dpstream.shared.codec import queue_of
from dpstream.shared.spec import Spec
from dpstream.shared.values import OfferedFrame
from tests.support.campaigns.amendments import (
    amendment,
    changed,
    new_frames,
    verdicts,
    with_stage,
    without_stage,
)
from tests.support.campaigns.archived import frames_of
from tests.support.campaigns.campaign_simulator import CampaignSimulator, spec
from tests.support.campaigns.lossy_delivery import (
    LossyDelivery,
    check_counters,
    check_snapshot,
    replayed,
    resumed,
)
from tests.support.campaigns.single_tasks import ATTEMPTS, claim, give_up, lapsed, next_attempt
from tests.support.soak import examples

SEEDS = st.integers(0, 2**32)
MODES = st.sampled_from(["lockstep", "streaming"])


def campaign_of(mode: str = "streaming", seed: int | None = None, **more: Any) -> LossyDelivery:
    faults = more.pop("faults", 0.0)
    return LossyDelivery(CampaignSimulator(), spec(mode=mode, **more), seed, faults)


def answers(campaign: LossyDelivery) -> list[str]:
    """What became of each amendment, in order."""
    facts = [d for _, decided in campaign.ledger for d in decided]
    return [
        f"plan {each.number}" if isinstance(each, m.PlanChanged) else each.why
        for each in facts
        if isinstance(each, (m.PlanChanged, m.AmendmentRefused))
    ]


def effects(campaign: LossyDelivery) -> list[str]:
    return [line for each in campaign.decisions(m.PlanChanged) for line in each.effects]


def refused(campaign: LossyDelivery, after: Spec, follows: int = 1) -> str:
    before = len(answers(campaign))
    campaign.deliver(amendment(after, follows))
    (answer,) = answers(campaign)[before:]
    return answer


# ------------------------------------------------------------------------- any delivery


THREE: tuple[Callable[[Spec], Spec], ...] = (
    lambda before: with_stage(before, "hotter"),
    lambda before: changed(before, trust={"low": 0.08}),
    lambda before: changed(before, budget={"labels": 20_000}),
)
"""A stage is appended, trust is tightened, the budget is raised."""


def amended_three_times(campaign: LossyDelivery, seed: int) -> list[m.CampaignAmended]:
    """Sends the three amendments while the campaign runs, each some steps after the one before."""
    plan, sent = campaign.state.spec, list[m.CampaignAmended]()
    for number, change in enumerate(THREE, start=1):
        for _ in range(20 + (seed + 17 * number) % 60):
            if campaign.events or campaign.commands:
                campaign.step()
        plan = change(plan)
        sent.append(amendment(plan, number))
        campaign.deliver(sent[-1])
        if not campaign.calm and campaign.random.random() < 0.5:
            campaign.events += sent  # doubled, and late
    return sent


@pytest.mark.slow
@examples(40, usual=4)
@given(SEEDS, MODES, st.sampled_from([0.0, 0.2]))
def test_three_amendments_in_any_weather_end_by_the_last_plan(
    seed: int, mode: str, faults: float
) -> None:
    campaign = campaign_of(mode, seed, faults=faults)
    amended_three_times(campaign, seed)
    state = campaign.run_resumed(check_counters)
    assert state.finished is not None
    assert state.finished.plan == state.plan.number == 4
    assert answers(campaign) == ["plan 2", "plan 3", "plan 4"]
    assert [record.number for record in state.plan.records] == [2, 3, 4]
    assert state.plan.records[0].changes == ("stage `hotter` added after `hot`: methane at 600 K",)
    assert state.plan.records[1].changes == ("trust.low 0.1 → 0.08",)
    assert state.plan.records[2].changes == ("budget.labels 10000 → 20000",)
    if state.finished.verdict == "converged":
        assert verdicts(state) == dict.fromkeys(("cold", "hot", "hotter"), "converged")
    assert replayed(spec(mode=mode), campaign.ledger).dumps() == state.dumps()


def _dropped(before: Spec) -> Spec:
    names = [stage.name for stage in before.stages]
    return without_stage(before, names[len(names) // 2]) if len(names) > 1 else before


def _hotter(before: Spec) -> Spec:
    stages = before.model_dump(mode="json")["stages"]
    stages[0]["temperatures"] = [each + 10 for each in stages[0]["temperatures"]]
    return changed(before, stages=stages)


def _reversed(before: Spec) -> Spec:
    return changed(before, stages=before.model_dump(mode="json")["stages"][::-1])


def _tighter(before: Spec) -> Spec:
    low = before.model_dump()["trust"]["low"]
    return changed(before, trust={"low": 0.9 * low})


CHANGES: dict[str, Callable[[Spec], Spec]] = {
    "append": lambda before: with_stage(
        before, f"stage-{len(before.stages)}-{before.budget.rounds}"
    ),
    "insert": lambda before: with_stage(
        before, f"early-{len(before.stages)}-{before.budget.rounds}", at=0
    ),
    "drop": _dropped,
    "explore otherwise": _hotter,
    "reverse": _reversed,
    "tighten": _tighter,
    "loosen": lambda before: changed(before, trust={"low": 0.2}),
    "more rounds": lambda before: changed(before, budget={"rounds": before.budget.rounds + 1}),
    "fewer labels": lambda before: changed(before, budget={"labels": 30}),
    "three in a row": lambda before: changed(before, convergence={"rounds": 3}),
    "another member": lambda before: changed(before, training={"members": 4}),
    "another batch": lambda before: changed(before, training={"batch_atoms": 64}),
    "more hours": lambda before: changed(
        before, training={"max_hours": before.training.max_hours + 1}
    ),
    "other workers": lambda before: changed(before, labels={"worker_class": "big"}),
    "more attempts": lambda before: changed(before, max_attempts=before.max_attempts + 1),
    "no audit": lambda before: changed(before, audit={"per_round": 0}),
}


@pytest.mark.slow
@examples(150, usual=5)
@given(
    SEEDS,
    MODES,
    st.sampled_from([0.0, 0.2]),
    st.lists(st.tuples(st.sampled_from(sorted(CHANGES)), st.integers(0, 120)), max_size=6),
)
def test_any_amendments_at_any_time_end_in_a_verdict_and_true_books(
    seed: int, mode: str, faults: float, amendments: list[tuple[str, int]]
) -> None:
    campaign = campaign_of(mode, seed, faults=faults, training={"members": 2, "warm": 0.5})
    first = plan = campaign.state.spec
    follows = 1
    for name, steps in amendments:
        for _ in range(steps):
            if (campaign.events or campaign.commands) and campaign.step():
                check_counters(campaign.state)
        after = CHANGES[name](plan)
        campaign.deliver(amendment(after, follows, name=f"{name}-{steps}-{follows}"))
        if campaign.state.plan.newest > follows:
            plan, follows = after, campaign.state.plan.newest
    state = campaign.run_resumed(check_counters)
    assert state.finished is not None, "nothing is under way, and it has not ended"
    assert state.finished.plan == state.plan.number == follows
    assert not state.plan.asked
    assert [state.spec.stages[index] for index in state.planned] == list(plan.stages)
    if state.finished.verdict == "converged":
        assert set(verdicts(state)) == {stage.name for stage in plan.stages}
    assert replayed(first, campaign.ledger).dumps() == state.dumps()


@pytest.mark.slow
@examples(30, usual=4)
@given(SEEDS, st.integers(1, 3), st.booleans())
def test_in_lockstep_the_labels_follow_from_the_plans_and_their_rounds(
    seed: int, number: int, is_training: bool
) -> None:
    """Within a round, or within a training, it does not matter when an amendment arrives, nor in
    which order the other messages do."""
    after = with_stage(changed(spec(), trust={"low": 0.08}, selection={"per_round": 3}), "hotter")

    def is_then(state: State) -> bool:
        if is_training:
            return state.committee.training == number
        return state.exploration.round is not None and state.exploration.rounds == number

    def labelled(campaign: LossyDelivery, later: int) -> set[str]:
        campaign.until(is_then)
        for _ in range(later):
            if is_then(campaign.state):
                campaign.step()
        assume(is_then(campaign.state))
        campaign.deliver(amendment(after))
        state = campaign.run(check_counters)
        assert state.finished is not None
        assert state.plan.number == 2
        return set(frames_of(state))

    calm = labelled(campaign_of("lockstep"), 0)
    assert labelled(campaign_of("lockstep", seed), seed % 40) == calm


@examples(10, usual=4)
@given(SEEDS, MODES)
def test_a_lost_amendment_changes_nothing(seed: int, mode: str) -> None:
    without = campaign_of(mode, seed)
    without.run()
    also = campaign_of(mode, seed)
    amended = with_stage(spec(mode=mode), "hotter")
    also.deliver(amendment(amended, follows=7))
    also.run()
    assert len(answers(also)) == 1, "stale: refused, and nothing else"
    before, after = without.state.plan, also.state.plan
    assert before == after
    assert frames_of(without.state) == frames_of(also.state)


def test_a_doubled_amendment_is_not_even_ledgered() -> None:
    campaign = campaign_of()
    campaign.until(lambda state: state.exploration.round)
    event = amendment(with_stage(spec(mode="streaming"), "hotter"))
    assert campaign.deliver(event)
    before = campaign.state
    assert decide(before, event) == (before, ())
    campaign.run()
    assert decide(campaign.state, event) == (campaign.state, ())


def test_a_ledger_replays_without_the_rules_that_found_the_outcome(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of = spec(mode="streaming")
    campaign = campaign_of()
    campaign.until(lambda state: state.candidates.pool)
    stricter = changed(of, trust={"low": 0.05}, training={"members": 4})
    campaign.deliver(amendment(stricter))
    campaign.until(lambda state: state.exploration.stage.index == 1 and state.exploration.round)
    campaign.deliver(amendment(without_stage(stricter, "hot"), follows=2))
    outcomes = campaign.decisions(m.PlanChanged)
    assert [each.gives_up_round for each in outcomes] == [True, True]
    assert [each.leaves for each in outcomes] == [False, True]
    assert outcomes[0].trains_from_scratch
    for name in outcomes[0].model_dump().keys() & vars(Amended).keys():
        monkeypatch.delattr(Amended, name)
    assert replayed(of, campaign.ledger).dumps() == campaign.state.dumps()


@examples(6, usual=3)
@given(SEEDS, MODES)
def test_a_snapshot_of_an_amended_campaign_reads_back(seed: int, mode: str) -> None:
    campaign = campaign_of(mode, seed)
    amended_three_times(campaign, seed)
    check_snapshot(campaign.state)


# ------------------------------------------------------------------------- stages


def test_an_appended_stage_is_explored_after_the_others() -> None:
    campaign = campaign_of("lockstep")
    campaign.until(lambda state: state.exploration.round)
    campaign.deliver(amendment(with_stage(spec(), "hotter")))
    state = campaign.run(check_counters)
    assert [ended.stage for ended in campaign.decisions(m.StageEnded)] == [0, 1, 2]
    assert state.finished is not None
    assert state.finished.verdict == "converged"


def test_an_inserted_stage_is_explored_before_those_that_follow() -> None:
    campaign = campaign_of("lockstep")
    campaign.until(lambda state: state.exploration.round)
    campaign.deliver(amendment(with_stage(spec(), "warm", at=1)))
    state = campaign.run(check_counters)
    stages = [state.spec.stages[each.stage].name for each in campaign.decisions(m.StageEnded)]
    assert stages == ["cold", "warm", "hot"]


def test_a_stage_ahead_that_is_dropped_is_never_explored() -> None:
    campaign = campaign_of("lockstep")
    campaign.until(lambda state: state.exploration.round)
    campaign.deliver(amendment(without_stage(spec(), "hot")))
    state = campaign.run(check_counters)
    assert {each.stage for each in campaign.decisions(m.Explore)} == {0}
    assert verdicts(state) == {"cold": "converged"}
    assert state.finished is not None
    assert state.finished.verdict == "converged"


def test_the_running_stage_is_left_at_once_when_it_is_dropped() -> None:
    campaign = campaign_of()
    campaign.until(lambda state: state.exploration.round)
    campaign.deliver(amendment(without_stage(spec(mode="streaming"), "cold")))
    assert not campaign.state.alive(m.Explore) or campaign.state.exploration.stage.index == 1
    assert headline(campaign.state).startswith("stage hot (1 of 1)")
    state = campaign.run(check_counters)
    assert verdicts(state) == {"hot": "converged"}
    assert "stage `cold` is left as it is; its labels stay" in effects(campaign)


def test_a_dropped_stage_comes_back_with_its_labels_and_rounds() -> None:
    of = spec(mode="streaming")
    campaign = campaign_of()
    campaign.until(lambda state: state.committee.version == 2 and state.exploration.round)
    rounds = campaign.state.exploration.stage.rounds
    answered = campaign.state.exploration.stage.answered
    assert rounds
    assert answered
    campaign.deliver(amendment(without_stage(of, "cold")))
    campaign.deliver(amendment(of, follows=2))
    campaign.run(check_counters)
    assert verdicts(campaign.state) == {"cold": "converged", "hot": "converged"}
    assert campaign.state.exploration.left["0"].rounds > rounds
    assert campaign.state.exploration.left["0"].answered >= answered


def test_a_stage_that_is_stuck_is_tried_again_by_other_rules() -> None:
    of = spec(budget={"rounds": 2})
    campaign = LossyDelivery(CampaignSimulator(ripe=6), of)
    campaign.run()
    assert verdicts(campaign.state) == {"cold": "out-of-budget"}
    campaign.deliver(amendment(changed(of, budget={"rounds": 20})))
    state = campaign.run(check_counters)
    assert verdicts(state) == {"cold": "converged", "hot": "converged"}
    assert effects(campaign) == [
        "the campaign, which ended not-converged, goes on",
        "stage `cold`, which ended out-of-budget, is judged again: its rules have changed",
        "the final model is trained again at the end",
    ]


def test_stages_after_a_stuck_one_wait_until_it_is_dropped() -> None:
    of = spec(budget={"rounds": 2})
    campaign = LossyDelivery(CampaignSimulator(ripe=6), of)
    campaign.run()
    longer = with_stage(of, "hotter")
    campaign.deliver(amendment(longer))
    campaign.run()
    assert verdicts(campaign.state) == {"cold": "out-of-budget"}
    assert effects(campaign)[1].startswith("stage `cold` stays out-of-budget, and no later stage")
    campaign.deliver(amendment(without_stage(longer, "cold"), follows=2))
    campaign.run(check_counters)
    assert {each.stage for each in campaign.decisions(m.Explore)} >= {1}


# ------------------------------------------------------------------------- given up


def paused_by(campaign: LossyDelivery, kind: type[m.Command]) -> m.Command:
    """Runs until a task of this kind is published, and has it given up."""
    campaign.until(lambda state: any(isinstance(each, kind) for each in campaign.commands))
    command = campaign.hold(kind)[0]
    give_up(campaign, command, permanent=True)
    assert campaign.state.paused is not None
    return command


def test_a_final_training_that_was_given_up_is_not_resumed_under_another_plan() -> None:
    campaign = campaign_of("lockstep", training={"members": 2})
    campaign.until(lambda state: state.stages_over)
    former = paused_by(campaign, m.Train)
    assert isinstance(former, m.Train)
    assert former.final
    campaign.deliver(amendment(with_stage(campaign.state.spec, "hotter")))
    count = len(campaign.issued)
    campaign.deliver(m.TasksRetried(id="retry", campaign="world", time=2.0))
    campaign.deliver(resumed())
    state = campaign.run(check_counters)
    assert former.task not in {each.task for each in campaign.issued[count:]}
    assert state.final.model is not None
    assert state.final.model.task != former.task
    assert verdicts(state)["hotter"] == "converged"


def test_an_audit_that_was_given_up_ends_with_its_round() -> None:
    campaign = campaign_of()
    former = paused_by(campaign, m.Audit)
    campaign.deliver(amendment(changed(campaign.state.spec, trust={"low": 0.05})))
    count = len(campaign.issued)
    campaign.deliver(resumed())
    assert former.task not in {each.task for each in campaign.issued[count:]}
    assert campaign.run(check_counters).finished is not None


@pytest.mark.parametrize("version", [1, 2])
def test_a_training_that_was_given_up_begins_again_by_new_settings(version: int) -> None:
    campaign = campaign_of("lockstep", training={"members": 3, "warm": 0.5})
    campaign.until(lambda state: state.committee.training == version)
    former = paused_by(campaign, m.Train)
    campaign.run()
    trained = [c for c in campaign.issued if isinstance(c, m.Train) and c.version == version]
    after = changed(campaign.state.spec, training={"batch_atoms": 64, "members": 2})
    decided = campaign.deliver(amendment(after))
    again = [each for each in decided if isinstance(each, m.Train)]
    assert [each.member for each in again] == [0, 1]
    assert {each.version for each in again} == {version}
    assert {each.spec for each in again} == {campaign.state.submitted.spec}
    assert not {each.task for each in again} & {each.task for each in trained}
    assert f"the training of committee {version} begins again" in effects(campaign)
    campaign.deliver(resumed())
    assert former.task not in {each.task for each in campaign.commands}
    state = campaign.run(check_counters)
    assert len(campaign.decisions(m.ModelsReady)[version - 1].committee.models) == 2
    assert state.finished is not None
    assert replayed(spec(training={"members": 3, "warm": 0.5}), campaign.ledger).dumps() == (
        state.dumps()
    )


def test_a_training_that_was_given_up_goes_on_with_more_time() -> None:
    campaign = campaign_of("lockstep", training={"members": 2})
    former = paused_by(campaign, m.Train)
    campaign.deliver(amendment(changed(campaign.state.spec, training={"max_hours": 99.0})))
    (again,) = [each for each in campaign.deliver(resumed()) if isinstance(each, m.Train)]
    assert again.task == former.task
    assert again.max_seconds == 99 * 3600


# ------------------------------------------------------------------------- rules


def test_an_ended_campaign_goes_on_with_the_stages_that_are_added() -> None:
    campaign = campaign_of("lockstep")
    ended = campaign.run()
    assert ended.finished is not None
    dataset = ended.dataset.version
    campaign.deliver(amendment(with_stage(spec(), "hotter")))
    state = campaign.run(check_counters)
    assert state.finished is not None
    assert state.finished.plan == 2
    assert verdicts(state) == dict.fromkeys(("cold", "hot", "hotter"), "converged")
    assert state.dataset.version >= dataset
    finals = [c for c in campaign.decisions(m.Train) if c.final]
    assert len({c.task for c in finals}) == 2, "the final model is trained once per plan"


@pytest.mark.parametrize("lapses", [0, 1, ATTEMPTS - 1])
def test_a_task_that_was_lost_after_the_end_is_done_when_the_campaign_goes_on(lapses: int) -> None:
    campaign = campaign_of()
    campaign.until(lambda state: state.committee.version)
    frame = OfferedFrame(species=("H",), positions=((1.0, 0.0, 0.0),))
    campaign.deliver(
        m.StructuresProposed(
            id="offer",
            campaign="world",
            time=1.0,
            generator="ga",
            correlation="a",
            frames=(frame,),
        )
    )
    command = campaign.hold(m.Screen)[0]
    for _ in range(lapses):
        claim(campaign, command)
        command = next_attempt(campaign, lapsed(command))
    assert campaign.run().finished is not None
    claim(campaign, command)
    assert campaign.deliver(lapsed(command)) == ()
    assert campaign.state.tasks[command.task].status == "lost"
    decided = campaign.deliver(amendment(with_stage(campaign.state.spec, "hotter")))
    if lapses == ATTEMPTS - 1:
        assert [d.task for d in decided if isinstance(d, m.TaskAbandoned)] == [command.task]
    else:
        (again,) = [d for d in decided if isinstance(d, m.Screen)]
        assert (again.task, again.attempt) == (command.task, command.attempt + 1)
    assert campaign.run(check_counters).finished is not None
    assert not campaign.state.alive(m.Screen)
    assert [each.proposal for each in campaign.decisions(m.StructuresJudged)]


def test_more_time_for_trainings_alone_keeps_the_final_model() -> None:
    campaign = campaign_of("lockstep")
    before = campaign.run()
    trained = len(campaign.decisions(m.Train))
    campaign.deliver(amendment(changed(campaign.state.spec, training={"max_hours": 99.0})))
    state = campaign.run(check_counters)
    assert state.finished is not None
    assert state.finished.plan == 2
    assert (state.final, len(campaign.decisions(m.Train))) == (before.final, trained)
    more = {"max_hours": 99.0, "final": {"steps_factor": 5.0}}
    campaign.deliver(amendment(changed(campaign.state.spec, training=more), follows=2))
    campaign.run(check_counters)
    assert len(campaign.decisions(m.Train)) == trained + 1


def test_an_ended_campaign_learns_all_its_labels_before_it_explores_further() -> None:
    once = [{**s, "repeat": False} for s in spec().model_dump(mode="json")["stages"]]
    of = spec(stages=once[:1], audit={"per_round": 0})
    campaign = LossyDelivery(CampaignSimulator(ripe=9), of)
    learned = campaign.run().dataset.version
    assert campaign.state.committee.version == 1
    campaign.deliver(amendment(changed(of, stages=once)))
    campaign.run(check_counters)
    explored = [c.version for c in campaign.decisions(m.Explore) if c.stage == 1]
    assert set(explored) == {2}
    (dataset,) = {c.dataset for c in campaign.decisions(m.Train) if c.version == 2 and not c.final}
    frozen = [f for f in campaign.decisions(m.ManifestFrozen) if f.purpose == "dataset"]
    assert frozen[learned - 1].manifest == dataset


def test_a_converged_stage_is_judged_again_by_stricter_rules_alone() -> None:
    campaign = campaign_of("lockstep")
    campaign.run()
    looser = changed(spec(), convergence={"accurate_ratio": 0.9})
    campaign.deliver(amendment(looser))
    campaign.run()
    assert campaign.state.plan.number == 2
    assert len(campaign.decisions(m.StageEnded)) == 2, "looser rules judge nothing again"
    stricter = changed(looser, trust={"low": 0.09}, convergence={"rounds": 2})
    labels = set(frames_of(campaign.state))
    campaign.deliver(amendment(stricter, follows=2))
    state = campaign.run(check_counters)
    assert [each.stage for each in campaign.decisions(m.StageEnded)] == [0, 1, 0, 1]
    assert verdicts(state) == {"cold": "converged", "hot": "converged"}
    assert labels <= set(frames_of(state)), "labels stay"
    levels = {c.trust.low for c in campaign.issued if isinstance(c, m.Explore)}
    assert levels == {0.1, 0.09}


def test_new_trust_levels_begin_the_round_again_and_judge_the_pool_again() -> None:
    campaign = campaign_of()
    campaign.until(lambda state: state.candidates.pool)
    number = campaign.state.exploration.rounds
    after = changed(spec(mode="streaming"), trust={"low": 0.05, "high": 0.2})
    decided = campaign.deliver(amendment(after))
    assert campaign.state.exploration.rounds == number + 1
    judged = [each for each in decided if isinstance(each, m.Judge)]
    assert judged
    assert {each.trust.low for each in judged} == {0.05}
    assert [each.trust.low for each in decided if isinstance(each, m.TrustChanged)] == [0.05]
    campaign.run(check_counters)


def test_a_budget_changes_no_round_that_is_under_way() -> None:
    campaign = campaign_of()
    campaign.until(lambda state: state.candidates.pool)
    before = campaign.state.exploration
    campaign.deliver(amendment(changed(spec(mode="streaming"), budget={"labels": 500})))
    assert campaign.state.exploration == before
    assert campaign.state.label_room < 500


def test_in_lockstep_a_round_is_finished_by_its_own_plan() -> None:
    campaign = campaign_of("lockstep")
    campaign.until(lambda state: state.exploration.round)
    campaign.deliver(amendment(changed(spec(), trust={"low": 0.05})))
    assert (campaign.state.plan.number, campaign.state.plan.newest) == (1, 2)
    campaign.until(lambda state: state.exploration.round is None)
    assert campaign.state.plan.number == 2


def test_in_lockstep_workers_change_at_once() -> None:
    campaign = campaign_of("lockstep")
    campaign.until(lambda state: state.exploration.round)
    campaign.deliver(amendment(changed(spec(), labels={"worker_class": "big"})))
    assert campaign.state.plan.number == 2


def test_in_lockstep_workers_change_at_once_though_another_plan_waits() -> None:
    campaign = campaign_of("lockstep")
    campaign.until(lambda state: state.exploration.round)
    first = changed(spec(), trust={"low": 0.05}, labels={"max_seconds": 77.0})
    second = with_stage(first, "hotter")
    urgent = changed(second, labels={"worker_class": "big"}, max_attempts=9)
    for follows, plan in enumerate((first, second, urgent), start=1):
        assert preview(campaign.state, amendment(plan, follows)).waits == (plan is not urgent)
        campaign.deliver(amendment(plan, follows))
    state = campaign.state
    assert (state.plan.number, state.plan.newest) == (2, 4)
    now = changed(spec(), max_attempts=9, labels={"worker_class": "big", "max_seconds": 77.0})
    assert state.spec == now
    assert newest_plan(state) == urgent
    last = changed(urgent, budget={"labels": 500}, max_attempts=7)
    campaign.deliver(amendment(last, follows=4))
    campaign.until(lambda state: state.exploration.round is None)
    assert (campaign.state.plan.number, campaign.state.plan.asked) == (5, ())
    assert campaign.state.spec == last
    assert [record.changes for record in campaign.state.plan.records] == [
        (
            "labels.max_seconds 3600.0 → 77.0",
            'labels.worker_class null → "big"',
            "max_attempts 3 → 9",
        ),
        ("trust.low 0.1 → 0.05",),
        ("stage `hotter` added after `hot`: methane at 600 K",),
        ("budget.labels 10000 → 500", "max_attempts 9 → 7"),
    ]


def test_labels_that_no_worker_has_taken_move_to_the_new_workers() -> None:
    campaign = campaign_of("streaming")
    campaign.until(lambda state: state.alive(m.Label) > 1)
    held = campaign.hold(m.Label)
    campaign.deliver(amendment(changed(spec(mode="streaming"), labels={"worker_class": "big"})))
    assert all(each.capability == "tblite" for each in held)
    campaign.run(check_counters)
    later = [c for c in campaign.issued if isinstance(c, m.Label) and c not in held]
    assert {each.capability for each in later} == {"tblite-big"}
    assert campaign.state.finished is not None


def unserved(campaign: LossyDelivery) -> None:
    """No worker serves the published label tasks, so that the campaign pauses."""
    (held, *_) = campaign.hold(m.Label)
    told = CampaignSimulator.envelope(held, "declined")
    campaign.deliver(m.TaskDeclined(**told, worker="w", reason="no tblite"))
    fields = {"campaign": "world", "time": 2.0, "queue": queue_of(held)}
    campaign.deliver(m.WorkersMissing(id="missing", why="no worker", **fields))
    assert campaign.state.paused == "no worker"


def test_a_campaign_without_workers_goes_on_when_the_plan_names_others() -> None:
    campaign = campaign_of("lockstep")
    campaign.until(lambda state: state.exploration.round and state.alive(m.Label))
    unserved(campaign)
    campaign.deliver(amendment(changed(spec(), labels={"worker_class": "big"})))
    assert campaign.state.paused is None
    assert not campaign.state.declined
    assert campaign.run(check_counters).finished is not None


def test_other_workers_end_no_pause_that_an_operator_asked_for() -> None:
    campaign = campaign_of("lockstep")
    campaign.until(lambda state: state.exploration.round and state.alive(m.Label))
    unserved(campaign)
    campaign.deliver(m.CampaignPaused(id="stop", campaign="world", time=1.0, why="lunch"))
    campaign.deliver(amendment(changed(spec(), labels={"worker_class": "big"})))
    assert campaign.state.paused == "lunch"


def test_the_next_training_has_the_new_number_of_members() -> None:
    campaign = campaign_of("lockstep", training={"members": 2, "warm": 0.5})
    campaign.until(lambda state: state.committee.training == 1)
    of = spec(training={"members": 2, "warm": 0.5})
    campaign.deliver(amendment(changed(of, training={"members": 4})))
    state = campaign.run(check_counters)
    ready = campaign.decisions(m.ModelsReady)
    assert [len(each.committee.models) for each in ready[:2]] == [2, 4]
    assert [c.start for c in campaign.decisions(m.Train) if c.version == 2] == [None] * 4
    assert {c.driver for c in campaign.decisions(m.Explore) if c.version == 1} <= {0, 1}
    assert state.finished is not None


def test_a_paused_campaign_is_amended_and_stays_paused() -> None:
    campaign = campaign_of()
    campaign.until(lambda state: state.exploration.round)
    campaign.deliver(m.CampaignPaused(id="stop", campaign="world", time=1.0, why="lunch"))
    campaign.deliver(amendment(with_stage(spec(mode="streaming"), "hotter")))
    assert campaign.state.plan.number == 2
    assert campaign.state.paused == "lunch"
    campaign.deliver(resumed())
    assert campaign.run().finished is not None


def test_a_new_system_brings_its_structures_and_frames() -> None:
    of = spec()
    campaign = campaign_of("lockstep")
    campaign.until(lambda state: state.exploration.round)
    systems = {**of.model_dump(mode="json")["systems"], "ethane": {"structures": ["y"]}}
    after = with_stage(changed(of, systems=systems), "ethane", systems=["ethane"])
    assert refused(campaign, after) == "systems.ethane: the amendment lacks its structures"
    campaign.deliver(amendment(after, name="again", **new_frames("ethane", 3)))
    state = campaign.run(check_counters)
    assert state.plan.records[0].changes == (
        "stage `ethane` added after `hot`: ethane at 600 K",
        "system `ethane` added",
    )
    initial = [frame for frame in frames_of(state).values() if frame.purpose == "initial"]
    assert len(initial) == 6 + 2
    assert {c.condition.system for c in campaign.decisions(m.Explore)} == {"methane", "ethane"}


def test_tasks_name_the_plan_that_they_belong_to() -> None:
    campaign = campaign_of()
    campaign.until(lambda state: state.exploration.round)
    first = {c.spec.uri for c in campaign.issued}
    campaign.deliver(amendment(with_stage(spec(mode="streaming"), "hotter")))
    count = len(campaign.issued)
    campaign.run()
    assert first == {"objects/spec"}
    later = [c for c in campaign.issued[count:] if c.attempt == 1]
    (frozen,) = [f for f in campaign.decisions(m.ManifestFrozen) if f.purpose == "plan"]
    assert {c.spec for c in later} == {frozen.manifest}
    assert frozen.manifest.uri.startswith("campaigns/world/plans/2-")
    assert Spec.model_validate_json(frozen.body) == campaign.state.spec


# ------------------------------------------------------------------------- refused


FIXED: dict[str, Any] = {
    "seed": 2,
    "mode": "lockstep",
    "type_map": ["C", "H"],
    "initial": {"pick": 1},
    "labels": {"charge": 1},
    "verification": {"reference_md": None},
    "training": {"backend": "pytorch"},
}


@pytest.mark.parametrize("section", FIXED)
def test_what_cannot_change_is_refused_in_one_line_that_says_what_to_do(section: str) -> None:
    campaign = campaign_of()
    campaign.until(lambda state: state.exploration.round)
    before = campaign.state.exploration
    why = refused(campaign, changed(spec(mode="streaming"), **{section: FIXED[section]}))
    assert why.startswith(section)
    assert ": cannot change in a campaign: " in why
    assert why.endswith("dpstream new NAME --from world")
    assert "\n" not in why
    assert campaign.state.plan.number == 1
    assert campaign.state.exploration == before


def test_a_known_system_keeps_its_meaning() -> None:
    campaign = campaign_of()
    campaign.until(lambda state: state.exploration.round)
    after = changed(spec(mode="streaming"), systems={"methane": {"structures": ["z"]}})
    assert refused(campaign, after).startswith(
        'systems.methane.structures: ["x"] → ["z"]: cannot change in a campaign: existing frames'
    )


ETHANE = new_frames("ethane", 2)
OTHER = new_frames("methane", 2)


@pytest.mark.parametrize(
    ("adds", "inputs", "why"),
    [
        (True, {**ETHANE, "systems": {"ethane": ()}}, "systems.ethane: the amendment lacks its"),
        (True, {**ETHANE, "systems": ETHANE["systems"] | OTHER["systems"]}, "systems.methane: the"),
        (True, {**ETHANE, "atoms": {}}, "atoms: the amendment must state the atoms of ethane"),
        (True, {**ETHANE, "atoms": {"ethane": 0}}, "atoms: the amendment must state the atoms of"),
        (True, {**ETHANE, "atoms": {"ethane": 5, "x": 5}}, "atoms: the amendment must state the"),
        (False, {"systems": OTHER["systems"]}, "systems.methane: the amendment has structures of"),
        (False, {"atoms": {"methane": 99}}, "atoms: the amendment must state the atoms of no"),
        (False, {"frames": ETHANE["frames"]}, "frames: the amendment has frames to be labelled"),
    ],
)
def test_an_amendment_brings_the_inputs_of_new_systems_and_no_others(
    adds: bool, inputs: dict[str, Any], why: str
) -> None:
    campaign = campaign_of()
    campaign.until(lambda state: state.exploration.round)
    after = changed(spec(mode="streaming"), budget={"labels": 500})
    if adds:
        systems = {**after.model_dump(mode="json")["systems"], "ethane": {"structures": ["y"]}}
        after = changed(after, systems=systems)
    campaign.deliver(amendment(after, **inputs))
    (answer,) = answers(campaign)
    assert answer.startswith(why)
    assert campaign.state.submitted is not None
    assert campaign.state.submitted.atoms == {"methane": 5}
    campaign.deliver(amendment(after, name="again", **(ETHANE if adds else {})))
    assert answers(campaign)[1:] == ["plan 2"]


def test_an_invalid_spec_is_refused_by_the_coordinator_too() -> None:
    campaign = campaign_of()
    campaign.until(lambda state: state.exploration.round)
    event = amendment(spec(mode="streaming"))
    document = {**event.spec, "trust": {"low": 0.3, "high": 0.1}}
    campaign.deliver(event.model_copy(update={"spec": document}))
    assert answers(campaign) == ["the spec is not valid: trust: low (0.3) must be below high (0.1)"]


def test_a_stale_amendment_is_refused_and_says_whose_plan_is_in_force() -> None:
    campaign = campaign_of()
    campaign.until(lambda state: state.exploration.round)
    of = spec(mode="streaming")
    campaign.deliver(amendment(with_stage(of, "hotter"), author="ada"))
    why = refused(campaign, changed(of, budget={"labels": 99}))
    assert why == (
        "it follows plan 1, but plan 2, by ada, is in force; look at it with dpstream status, and "
        "amend that one"
    )


def test_the_same_plan_again_is_refused() -> None:
    campaign = campaign_of()
    campaign.until(lambda state: state.exploration.round)
    assert refused(campaign, spec(mode="streaming")) == "nothing differs from the plan in force"


def test_a_cancelled_campaign_is_over_for_good() -> None:
    campaign = campaign_of()
    campaign.until(lambda state: state.exploration.round)
    campaign.deliver(m.CampaignCancelled(id="no", campaign="world", time=1.0))
    why = refused(campaign, with_stage(spec(mode="streaming"), "hotter"))
    assert why.startswith("the campaign was cancelled for good")
    assert campaign.state.finished is not None


def _unbegun() -> State:
    return State(spec=spec())


def test_an_amendment_before_the_campaign_is_refused() -> None:
    state, decided = decide(_unbegun(), amendment(with_stage(spec(), "hotter")))
    assert [each.why for each in decided if isinstance(each, m.AmendmentRefused)] == [
        "the campaign has not begun"
    ]
    assert state.plan.asked == ()


# ------------------------------------------------------------------------- the same plan once more


def unverified() -> LossyDelivery:
    """A campaign that ended because its final model could not be verified."""
    campaign = campaign_of()
    while not (held := campaign.hold(m.Verify)):
        campaign.step()
    give_up(campaign, held[0], permanent=False)
    campaign.commands.clear()
    finished = campaign.run().finished
    assert finished is not None
    assert finished.why.startswith("the final model was not verified: after 3 attempts")
    return campaign


def test_a_campaign_that_ended_for_want_of_a_verification_goes_on_by_its_plan() -> None:
    campaign = unverified()
    trained = campaign.state.final.model
    campaign.deliver(amendment(newest_plan(campaign.state)))
    assert answers(campaign) == ["plan 2"]
    assert campaign.state.plan.records[-1].changes == ("none: the final model is verified again",)
    assert campaign.state.finished is None
    state = campaign.run()
    assert state.finished is not None
    assert (state.finished.verdict, state.finished.plan) == ("converged", 2)
    assert state.final.model == trained, "nothing is trained again"
    assert replayed(spec(mode="streaming"), campaign.ledger) == state


def test_any_other_amendment_has_it_verified_too() -> None:
    campaign = unverified()
    campaign.deliver(amendment(changed(newest_plan(campaign.state), max_attempts=5)))
    state = campaign.run()
    assert state.finished is not None
    assert state.finished.verdict == "converged"


def test_a_campaign_with_a_verdict_on_its_model_does_not_go_on_by_the_same_plan() -> None:
    campaign = campaign_of()
    campaign.run()
    assert refused(campaign, newest_plan(campaign.state)) == (
        "nothing differs from the plan in force"
    )
    assert campaign.state.finished is not None
