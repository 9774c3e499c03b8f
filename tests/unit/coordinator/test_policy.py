"""The loop, without engines: order, loss and repetition of deliveries change nothing, and what is
done about versions, modes and the end of stages."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpstream.services.coordinator.apply import apply
from dpstream.services.coordinator.policy import decide
from dpstream.services.coordinator.state import ByCondition, State
from dpstream.shared import messages as m
from dpstream.shared.codec import MAX_BODY, encode
from dpstream.shared.values import CandidatePool, Counts, Trust
from tests.support.campaigns.archived import frames_of, tasks_of
from tests.support.campaigns.campaign_simulator import CampaignSimulator, key, ref, spec
from tests.support.campaigns.lossy_delivery import (
    LossyDelivery,
    check_counters,
    check_snapshot,
    replayed,
)
from tests.support.soak import examples

SEEDS = st.integers(0, 2**32)
MODES = st.sampled_from(["lockstep", "streaming"])


@examples(8, usual=4)
@given(SEEDS)
def test_lockstep_ends_in_the_same_state_whatever_the_deliveries(seed: int) -> None:
    calm, stormy = (
        LossyDelivery(CampaignSimulator(), spec()).run(),
        LossyDelivery(CampaignSimulator(), spec(), seed).run(),
    )
    assert calm.finished is not None
    assert stormy.dumps() == calm.dumps()


@examples(8, usual=4)
@given(SEEDS)
def test_streaming_finishes_and_asks_for_no_label_twice(seed: int) -> None:
    world = CampaignSimulator()
    state = LossyDelivery(world, spec(mode="streaming"), seed).run(check_counters)
    assert state.finished is not None
    assert state.finished.verdict == "converged"
    assert len(world.labelled) == len(set(world.labelled))
    assert state.labels.pending == 0


@examples(15, usual=6)
@given(SEEDS, MODES, st.sampled_from([0.05, 0.2, 0.5]), st.booleans())
def test_the_worst_weather_ends_in_a_verdict_and_true_books(
    seed: int, mode: str, faults: float, warm: bool
) -> None:
    of = spec(mode=mode, training={"members": 2, "warm": 0.5 * warm})
    campaign = LossyDelivery(CampaignSimulator(reject=lambda key: key[0] == "7"), of, seed, faults)
    state = campaign.run_resumed(check_counters)
    assert state.finished is not None, "nothing is under way, and it has not ended"
    assert replayed(of, campaign.ledger).dumps() == state.dumps()
    _assert_asked_once(campaign)
    _assert_audits_never_trained_on(campaign)


def _assert_asked_once(campaign: LossyDelivery) -> None:
    """A frame is in one label task, unless an earlier one was revoked."""
    tasks = [c for c in campaign.issued if isinstance(c, m.Label) and c.attempt == 1]
    revoked = {event.task for event, _ in campaign.ledger if isinstance(event, m.TaskRevoked)}
    asked = Counter(r.key for c in tasks if c.task not in revoked for r in c.frames)
    late = {r.key for c in tasks if c.task in revoked for r in c.frames}
    assert {key for key, count in asked.items() if count > 1} <= late


def _assert_audits_never_trained_on(campaign: LossyDelivery) -> None:
    frozen = [f for f in campaign.decisions(m.ManifestFrozen) if f.purpose == "dataset"]
    learned = Counter(label["uri"] for f in frozen for label in json.loads(f.body)["labels"])
    assert set(learned.values()) == {1}, "a label enters one version, and its children inherit it"
    frames = frames_of(campaign.state).values()
    audits = {f.label for f in frames if f.purpose == "audit" and f.label}
    assert not audits & set(learned)


def test_a_quiet_campaign_trains_on_no_audit_frame_and_counts_them_all() -> None:
    campaign = LossyDelivery(CampaignSimulator(), spec())
    state = campaign.run(check_counters)
    audits = [f for f in frames_of(state).values() if f.purpose == "audit"]
    assert len(audits) > 5
    _assert_audits_never_trained_on(campaign)


@examples(5, usual=3)
@given(SEEDS)
def test_a_snapshot_reads_back_to_the_same_state(seed: int) -> None:
    campaign = LossyDelivery(CampaignSimulator(), spec(mode="streaming"), seed)
    for _ in range(90):
        campaign.step()
    check_snapshot(campaign.state)


def test_a_doubled_event_is_not_even_ledgered() -> None:
    campaign = LossyDelivery(CampaignSimulator(), spec())
    campaign.run()
    before = campaign.state
    for event, _ in tuple(campaign.ledger):
        assert decide(before, event) == (before, ())


def test_a_result_of_another_kind_of_task_changes_nothing() -> None:
    campaign = LossyDelivery(CampaignSimulator(), spec())
    campaign.until(lambda state: state.alive(m.Train))
    train = campaign.hold(m.Train)[0]
    label = next(command for command in campaign.issued if isinstance(command, m.Label))
    answer = campaign.world.answer(label)[-1]
    before = campaign.state
    assert campaign.deliver(answer.model_copy(update={"id": "x", "task": train.task})) == ()
    assert campaign.state is before


def test_labels_of_other_frames_than_were_asked_for_change_nothing() -> None:
    campaign = LossyDelivery(CampaignSimulator(), spec())
    campaign.until(lambda state: state.alive(m.Label) > 1)
    first, second = campaign.hold(m.Label)[:2]
    answers = campaign.take(first)
    before = campaign.state
    for answer in answers:
        campaign.deliver(answer.model_copy(update={"task": second.task}))
        campaign.deliver(answer.model_copy(update={"accepted": (), "rejected": ()}))
    assert campaign.state is before
    for answer in answers:
        campaign.deliver(answer)
    assert tasks_of(campaign.state)[first.task].status == "done"


def test_our_own_words_coming_back_change_nothing() -> None:
    campaign = LossyDelivery(CampaignSimulator(), spec())
    campaign.until(lambda state: state.committee.version == 1)
    for _, decided in campaign.ledger:
        for word in decided:
            assert decide(campaign.state, word) == (campaign.state, ())


# ----------------------------------------------------------------------------------------- modes


def test_lockstep_never_overlaps() -> None:
    def check(state: State) -> None:
        exploring, training = state.alive(m.Explore), state.alive(m.Train)
        assert not (exploring and training)
        assert not (exploring and state.labels.pending)
        assert not (training and state.labels.pending)

    assert LossyDelivery(CampaignSimulator(), spec(), seed=3).run(check).finished


def streaming(world: CampaignSimulator | None = None, **changes: Any) -> LossyDelivery:
    """A streaming campaign whose first round has just begun, its commands held."""
    campaign = LossyDelivery(world or CampaignSimulator(), spec(mode="streaming", **changes))
    campaign.until(lambda state: state.alive(m.Explore))
    return campaign


def test_streaming_labels_and_retrains_while_a_trajectory_is_still_going_on() -> None:
    campaign = streaming()
    slow = campaign.commands.pop()
    campaign.take(slow)
    campaign.until(lambda state: state.labels.pending)
    assert campaign.state.exploration.round is not None
    assert campaign.state.exploration.round.unfinished == 1
    campaign.until(lambda state: state.committee.training == 2)
    assert tasks_of(campaign.state)[slow.task].status == "running"


def test_in_lockstep_nothing_happens_until_the_last_trajectory_is_in() -> None:
    campaign = LossyDelivery(CampaignSimulator(), spec())
    campaign.until(lambda state: state.alive(m.Explore))
    slow = campaign.commands.pop()
    results = campaign.take(slow)
    state = campaign.run()
    assert state.alive(m.Select) == state.labels.pending == 0
    campaign.events += results
    assert campaign.run().finished


@pytest.mark.parametrize("good", [True, False])
def test_a_round_that_looks_good_is_let_finish_before_retraining(good: bool) -> None:
    campaign = streaming(CampaignSimulator(ripe=1 if good else 5), selection={"select_every": 1000})
    slow = campaign.commands.pop()
    campaign.run()
    campaign.learn("one", "two", "three")
    campaign.take(slow)
    assert campaign.state.committee.training == (None if good else 2)


# ------------------------------------------------------------------------------- a newer version


class Choosy(CampaignSimulator):
    """Of the frames that wait for a label, the first of each judge task is accurate by now."""

    def _judge(self, command: m.Judge) -> list[m.Message]:
        judged = super()._judge(command)[0]
        return [judged.model_copy(update={"accurate": tuple(f.key for f in command.frames[:1])})]


def test_a_new_version_supersedes_rejudges_and_revokes() -> None:
    world = Choosy(ripe=9)
    campaign = streaming(world, selection={"select_every": 2, "per_round": 12})
    unclaimed, labels = campaign.commands.pop(), []
    while campaign.commands or campaign.events:
        campaign.step()
        labels += campaign.hold(m.Label)
    first, second, *rest = labels
    asked = [frame.key for command in rest for frame in _frames(command)]
    campaign.events += [*campaign.take(first), *campaign.take(second)]
    campaign.until(lambda state: state.committee.version == 2)
    assert tasks_of(campaign.state)[unclaimed.task].status == "cancelled"
    judge = next(c for c in campaign.issued if isinstance(c, m.Judge))
    assert sorted(frame.key for frame in judge.frames) == sorted(asked)
    assert {item.version for item in judge.pool} == {1}

    accurate = judge.frames[0].key
    campaign.until(lambda state: frames_of(state)[accurate].status == "revoked")
    check_counters(campaign.state)
    gone = next(c for c in rest if accurate in [frame.key for frame in _frames(c)])
    assert tasks_of(campaign.state)[gone.task].status == "cancelled"
    mates = [frame.key for frame in _frames(gone) if frame.key != accurate]
    again = {frame.key for c in campaign.issued if c.task != gone.task for frame in _frames(c)}
    assert mates
    assert set(mates) <= again
    campaign.commands += rest
    assert campaign.run(check_counters).finished
    assert accurate not in world.labelled
    assert set(mates) <= set(world.labelled)


def _frames(command: m.Command) -> tuple[Any, ...]:
    return command.frames if isinstance(command, m.Label) else ()


def test_the_last_judgement_of_a_frame_counts() -> None:
    campaign = streaming(CampaignSimulator(ripe=99), selection={"select_every": 2, "per_round": 12})
    campaign.until(lambda state: state.labels.waiting or state.labels.pending)
    frame = next(frame for frame in campaign.state.labels.frames.values() if frame.is_awaited)
    judge = m.Judge(
        id="j", campaign="world", time=0.0, task="j", title="", max_seconds=1.0, spec=ref("spec"),
        committee=ref("c"), version=1, trust=Trust(low=0.1, high=0.3), frames=(frame.ref,),
    )  # fmt: skip
    for number, accurate in enumerate([(frame.ref.key,), ()]):
        command = judge.model_copy(update={"task": f"judge-{number}"})
        state = apply(campaign.state, command)
        fields = CampaignSimulator.envelope(command) | {
            "version": 1,
            "pool": (),
            "counts": Counts(),
        }
        campaign.state = apply(state, m.FramesJudged(**fields, accurate=accurate))
        assert campaign.state.labels.frames[frame.ref.key].accurate is bool(accurate)


def test_a_chunk_that_comes_too_late_is_judged_again_before_it_may_be_chosen_from() -> None:
    campaign = streaming(
        CampaignSimulator(ripe=99), streaming={"retrain_after": 3, "max_staleness": 1}
    )
    late = campaign.take(campaign.commands.pop())
    campaign.until(lambda state: state.committee.version == 3)
    campaign.hold(m.Judge)
    offered = late[0]
    assert isinstance(offered, m.ChunkExplored)
    assert offered.candidates is not None
    judged = [c for c in campaign.deliver(offered) if isinstance(c, m.Judge)]
    assert [item for c in judged for item in c.pool] == [offered.candidates]
    assert offered.candidates.frames.uri not in campaign.state.candidates.pool


def test_nothing_is_chosen_while_older_verdicts_are_being_renewed() -> None:
    def chosen() -> bool:
        return any(isinstance(c, m.Select) and c.version == 2 for c in campaign.issued)

    campaign = streaming(CampaignSimulator(ripe=99))
    campaign.until(lambda state: state.committee.version == 2)
    held = campaign.hold(m.Judge)
    campaign.run()
    assert held
    assert not chosen()
    campaign.commands += held
    campaign.until(lambda state: chosen())


def test_the_end_of_a_stage_ends_what_was_still_judged_for_it() -> None:
    campaign = streaming(
        CampaignSimulator(ripe=2),
        streaming={"retrain_after": 3, "max_staleness": 0},
        audit={"per_round": 3, "min_frames": 3, "min_trajectories": 1},
    )
    late = campaign.take(campaign.commands.pop())
    campaign.until(
        lambda state: (
            state.committee.version == 2
            and state.exploration.round
            and state.exploration.round.closed
        )
    )
    decided = campaign.deliver(late[0])
    (judge,) = [c for c in decided if isinstance(c, m.Judge)]
    campaign.hold(m.Judge)
    campaign.until(lambda state: state.exploration.stage.index == 1)
    assert tasks_of(campaign.state)[judge.task].status == "cancelled"
    campaign.until(lambda state: state.finished)
    check_counters(campaign.state)


def test_a_chunk_one_version_old_is_good_enough() -> None:
    campaign = streaming(CampaignSimulator(ripe=99))
    late = campaign.take(campaign.commands.pop())
    campaign.until(lambda state: state.committee.version == 2)
    offered = late[0]
    assert isinstance(offered, m.ChunkExplored)
    assert offered.candidates is not None
    assert not [c for c in campaign.deliver(offered) if isinstance(c, m.Judge)]
    assert campaign.state.candidates.pool[offered.candidates.frames.uri] == offered.candidates


# ----------------------------------------------------------------------------- warm, cold, longer


def starts(campaign: LossyDelivery) -> dict[int, bool]:
    """By version trained, whether it started cold (the final model aside)."""
    trained = [c for c in campaign.issued if isinstance(c, m.Train) and not c.final]
    return {c.version: c.start is None for c in trained}


def test_warm_starts_are_cold_first_now_and_then_and_in_the_end() -> None:
    warm = {"members": 2, "warm": 0.5, "cold_every": 3}
    campaign = LossyDelivery(CampaignSimulator(ripe=6), spec(training=warm, stages=[STAGE]))
    state = campaign.run()
    found = starts(campaign)
    assert [v for v in range(1, 7) if found[v]] == [1, 4]
    assert found[state.committee.version], "a cold committee confirms convergence"
    assert state.exploration.ended[0].verdict == "converged"
    final = next(c for c in campaign.issued if isinstance(c, m.Train) and c.final)
    assert final.start is None


STAGE = {"name": "cold", "systems": ["methane"], "temperatures": [50.0]}


def test_without_warm_all_is_cold() -> None:
    campaign = LossyDelivery(CampaignSimulator(ripe=4), spec(training={"members": 2, "warm": 0.0}))
    campaign.run()
    assert all(starts(campaign).values())


class Deluded(CampaignSimulator):
    """A warm committee agrees with itself more than it should."""

    def _audit(self, command: m.Audit) -> list[m.Message]:
        ratio = {1: 0.6, 2: 0.41, 3: 0.39}.get(command.version, 0.6)
        audit = super()._audit(command)[0]
        return [audit.model_copy(update={"deviation_over_error": ratio})]


def test_cold_again_when_deviation_over_error_has_fallen_by_a_third() -> None:
    warm = {"members": 2, "warm": 0.5, "cold_every": 99}
    campaign = LossyDelivery(Deluded(ripe=6), spec(training=warm, stages=[STAGE]))
    campaign.run()
    assert [v for v, cold in starts(campaign).items() if cold][:2] == [1, 4]


def test_cold_when_the_first_labels_of_a_new_system_are_learned() -> None:
    warm = {"members": 2, "warm": 0.5, "cold_every": 99}
    systems = {name: {"structures": ["x"]} for name in ("methane", "water")}
    stages = [STAGE, {"name": "wet", "systems": ["water"], "temperatures": [50.0]}]
    for known, expected in [(["water"], 1), (["methane"], 0)]:
        stages[1] = {**stages[1], "systems": known}
        campaign = LossyDelivery(
            CampaignSimulator(ripe=2), spec(training=warm, systems=systems, stages=stages)
        )
        campaign.until(lambda state: state.exploration.stage.index == 1)
        begun, campaign.world.ripe = campaign.state.committee.version, 99
        campaign.until(lambda state, begun=begun: state.committee.version > begun + 1)
        cold = [v for v, is_cold in starts(campaign).items() if is_cold and v > begun]
        assert len(cold) == expected


class Slow(CampaignSimulator):
    """Trainings that reach a force RMSE by steps: `errors` by version, then 0.03 eV/Å."""

    def __init__(self, errors: dict[int, float]) -> None:
        super().__init__()
        self.errors = errors

    def _train(self, command: m.Train) -> list[m.Message]:
        trained = super()._train(command)[0]
        assert isinstance(trained, m.MemberTrained)
        force = self.errors.get(command.version, 0.03)
        rmse = trained.train.model_copy(update={"force": force})
        return [trained.model_copy(update={"train": rmse})]


@pytest.mark.parametrize(
    ("errors", "lengthened", "announced"),
    [
        ({1: 0.1}, [1, 2], 2),
        ({1: 0.1, 2: 0.09}, [1, 2, 4], 3),
        ({1: 0.1, 2: 0.099}, [1, 2], 2),
        ({1: 0.3, 2: 0.2, 3: 0.1}, [1, 2, 4], 3),
    ],
    ids=["longer helps", "twice", "label noise", "longest"],
)
def test_training_limited_trains_longer_instead_of_buying_labels(
    errors: dict[int, float], lengthened: list[int], announced: int
) -> None:
    campaign = LossyDelivery(Slow(errors), spec())
    campaign.until(lambda state: state.committee.version)
    assert campaign.state.committee.version == announced
    steps = {c.version: c.steps for c in campaign.issued if isinstance(c, m.Train)}
    assert [n / steps[1] for n in steps.values()] == lengthened
    assert not [c for c in campaign.issued if isinstance(c, m.Explore) and c.version < announced]
    assert len(frames_of(campaign.state)) == 6, "no label was bought meanwhile"


def test_a_longer_training_starts_as_cold_as_the_one_it_replaces() -> None:
    warm = {"members": 2, "warm": 0.5, "cold_every": 3}
    campaign = LossyDelivery(Slow({4: 0.1}), spec(training=warm, stages=[STAGE]))
    campaign.world.ripe = 9
    campaign.until(lambda state: state.committee.version == 5)
    assert starts(campaign) == {1: True, 2: False, 3: False, 4: True, 5: True}


# --------------------------------------------------------------------- pool, trust levels, budgets


class Brittle(CampaignSimulator):
    """Nothing is a candidate: frames are failed until the committee is ripe."""

    def _chunk(self, command: m.Explore, *rest: Any, **named: Any) -> m.Message:
        chunk = super()._chunk(command, *rest, **named)
        assert isinstance(chunk, m.ChunkExplored)
        accurate = chunk.counts.accurate
        counts = Counts(accurate=accurate, failed=chunk.counts.candidate)
        return chunk.model_copy(update={"counts": counts, "candidates": None})


def test_without_candidates_the_least_deviating_failed_frames_are_asked_for() -> None:
    campaign = LossyDelivery(Brittle(), spec())
    campaign.until(lambda state: state.alive(m.Select))
    select = next(c for c in campaign.issued if isinstance(c, m.Select))
    pool = CandidatePool.model_validate_json(campaign.world.manifests[select.pool.uri])
    assert (pool.candidates, pool.fallback) == ((), True)
    assert campaign.run().exploration.ended[-1].verdict == "stuck"


@pytest.mark.parametrize(
    "world", [CampaignSimulator(ripe=1), CampaignSimulator(ripe=9)], ids=["accurate", "candidates"]
)
def test_no_fallback_where_frames_are_accurate_or_candidates(world: CampaignSimulator) -> None:
    campaign = LossyDelivery(world, spec())
    campaign.until(lambda state: state.alive(m.Select))
    select = next(c for c in campaign.issued if isinstance(c, m.Select))
    assert not CandidatePool.model_validate_json(world.manifests[select.pool.uri]).fallback


class Calibrating(CampaignSimulator):
    def _audit(self, command: m.Audit) -> list[m.Message]:
        levels = {"levels": (0.1 * command.version, 0.5), "levels_why": "30 pairs"}
        return [super()._audit(command)[0].model_copy(update=levels)]


def test_automatic_trust_levels_change_between_versions_only_and_are_recorded() -> None:
    campaign = LossyDelivery(Calibrating(ripe=4), spec(trust={"target": 0.1}, stages=[STAGE]))
    state = campaign.run()
    changes = campaign.decisions(m.TrustChanged)
    assert [(c.version, c.trust.low, c.trust.high) for c in changes] == [
        (1, 0.2, 0.5),  # 0.2 and 0.5 times the RMS force of the labels
        (2, 0.1, 0.5),
        (3, 0.2, 0.5),
        (4, 0.1 * 3, 0.5),
    ]
    explored = {(c.version, c.trust) for c in campaign.issued if isinstance(c, m.Explore)}
    assert explored == {(c.version, c.trust) for c in changes}
    assert state.finished


def test_given_trust_levels_never_move() -> None:
    campaign = LossyDelivery(Calibrating(ripe=4), spec())
    campaign.run()
    assert {c.trust for c in campaign.decisions(m.TrustChanged)} == {Trust(low=0.1, high=0.3)}


@pytest.mark.parametrize("mode", ["lockstep", "streaming"])
@pytest.mark.parametrize("labels", [9, 14, 15])
def test_the_budget_of_labels_counts_audits_and_ends_the_stage(mode: str, labels: int) -> None:
    campaign = LossyDelivery(CampaignSimulator(ripe=99), spec(mode=mode, budget={"labels": labels}))
    state = campaign.run(check_counters)
    assert len(frames_of(state)) == labels
    assert state.exploration.ended[-1].verdict == "out-of-budget"
    assert {f.purpose for f in frames_of(state).values()} == {"initial", "train"} | (
        {"audit"} if labels > 10 else set()
    )


def test_the_budget_of_rounds_ends_the_stage() -> None:
    state = LossyDelivery(CampaignSimulator(ripe=99), spec(budget={"rounds": 3})).run()
    assert state.exploration.ended[-1].verdict == "out-of-budget"
    assert state.exploration.ended[-1].why.startswith("all 3 rounds used; ")
    assert state.exploration.rounds == 3


# -------------------------------------------------------------------------------- stages, the end


def test_a_stage_begins_with_everything_the_last_one_taught() -> None:
    campaign = LossyDelivery(CampaignSimulator(ripe=1), spec(audit={"per_round": 0}))
    campaign.until(lambda state: state.alive(m.Explore))
    campaign.learn("late")
    campaign.until(lambda state: state.exploration.stage.index == 1)
    assert campaign.state.committee.training == 2
    assert campaign.state.exploration.round is None
    campaign.until(lambda state: state.exploration.round)
    assert campaign.state.committee.version == 2


def test_the_end_is_a_final_training_its_verification_and_a_verdict() -> None:
    campaign = LossyDelivery(CampaignSimulator(), spec())
    state = campaign.run(check_counters)
    final = [c for c in campaign.issued if isinstance(c, m.Train) and c.final]
    assert len(final) == 1
    assert final[0].steps == 3 * max(
        c.steps for c in campaign.issued if isinstance(c, m.Train) and not c.final
    )
    assert final[0].dataset == state.dataset.manifest
    assert not state.dataset.fresh, "the final model learns from every label"
    decided = [type(d).__name__ for _, ds in campaign.ledger for d in ds]
    assert decided[-3:] == ["Train", "Verify", "CampaignFinished"]


def test_without_one_accepted_initial_label_it_ends_at_once() -> None:
    state = LossyDelivery(CampaignSimulator(reject=lambda key: True), spec()).run(check_counters)
    assert state.finished is not None
    assert state.finished.why == "no initial label was accepted"


@pytest.mark.slow
def test_a_round_takes_a_thousand_labels() -> None:
    """In hundreds of chunks, some of which come twice, in any order, or from a later attempt."""
    of = spec(
        md={"steps": 100, "every": 10, "trajectories": 300, "chunk": 5},
        stages=[{"name": "one", "systems": ["methane"], "temperatures": [50.0, 100.0]}],
        selection={"per_round": 1000},
        budget={"labels": 3000},
    )
    campaign = LossyDelivery(CampaignSimulator(ripe=2), of, seed=5, faults=0.05)
    state = campaign.run()
    chosen = [
        h for h, _ in campaign.ledger if isinstance(h, m.CandidatesSelected) and h.version == 1
    ]
    assert len(chosen) > 300
    assert len({(event.task, event.chunk) for event in chosen}) == len(chosen)
    assert sum(len(event.labels) for event in chosen) == 1000
    assert state.finished
    assert state.finished.verdict == "converged"
    check_counters(state)
    assert replayed(of, campaign.ledger) == state


def test_a_round_is_judged_only_when_every_condition_is_complete() -> None:
    campaign = LossyDelivery(CampaignSimulator(ripe=1), spec())
    campaign.until(lambda state: state.alive(m.Explore))
    campaign.take(campaign.commands.pop())
    campaign.run()
    assert not campaign.decisions(m.RoundJudged)
    assert campaign.state.exploration.round is not None
    assert campaign.state.exploration.round.conditions["methane 50 K"] == ByCondition(
        counts=Counts(accurate=2 * 10)
    )


def test_commands_of_the_longest_names_fit_on_the_wire() -> None:
    name = "n" * 63
    condition = {"system": name, "temperature": 1234.5, "pressure": -12345.6}
    uri = f"campaigns/{name}/results/{'t' * 36}/100/candidates-100.npz"
    item = {
        "frames": ref("x").model_copy(update={"uri": uri, "size": 10**9}).model_dump(),
        "count": 100,
        "trajectory": f"{name}/100/{name}-1234.5-K--12345.6-bar/100",
        "condition": condition,
        "version": 100,
        "planned_ps": 1000.123,
    }
    frame = {"batch": item["frames"], "index": 1000, "key": key("x")}
    judge = m.Judge.model_validate(
        {
            "id": "i" * 36,
            "campaign": name,
            "time": 1.0e9,
            "task": "t" * 36,
            "title": "re-judge 120 frames",
            "max_seconds": 1.0,
            "spec": item["frames"],
            "committee": item["frames"],
            "version": 100,
            "trust": {"low": 0.1, "high": 0.3},
            "pool": [item] * 60,
            "frames": [frame] * 60,
        }
    )
    assert 40_000 < len(encode(judge)) <= MAX_BODY


def test_frames_of_a_trajectory_keep_apart_over_versions() -> None:
    """Candidates that a newer committee judged again meet the times an older one has chosen of
    their trajectory, and find its share unused."""
    campaign = LossyDelivery(
        CampaignSimulator(ripe=9), spec(mode="streaming", streaming={"retrain_after": 1})
    )
    chosen: dict[str, list[tuple[int, float]]] = {}
    renewed = 0
    while renewed < 3:
        assert campaign.events or campaign.commands
        known = set(frames_of(campaign.state))
        if not campaign.step():
            continue
        heard, decided = campaign.ledger[-1]
        if isinstance(heard, m.CandidatesSelected):
            for version, picks in ((heard.version, heard.labels), (0, heard.audits)):
                for pick in (pick for pick in picks if pick.key not in known):
                    chosen.setdefault(pick.trajectory, []).append((version, pick.time_ps))
        for pool in (CandidatePool.model_validate_json(f.body) for f in decided if is_pool(f)):
            for name in {item.trajectory for item in pool.candidates}:
                before = chosen.get(name, [])
                assert pool.taken.get(name, ()) == tuple(sorted(time for _, time in before))
                used = sum(version == campaign.state.committee.version for version, _ in before)
                assert pool.used.get(name, 0) == used
                renewed += used < len(before)


def is_pool(fact: m.Message) -> bool:
    return isinstance(fact, m.ManifestFrozen) and fact.purpose == "pool"
