"""Decides when a committee is trained, on which dataset, from which checkpoint and for how long.

`start_training` freezes all labels so far into a dataset version and issues one Train task per
member. `complete_committee` judges the training once all members are in, and publishes the
committee or trains again for longer. The other rules decide when a training starts: at the
beginning, early while streaming, between stages; `train_final` issues the last one.
"""

from __future__ import annotations

from typing import Any

from dpstream.services.coordinator.decisions import Decisions, plan_identity
from dpstream.services.coordinator.rules import convergence
from dpstream.services.coordinator.rules.labels import audit_manifest
from dpstream.services.coordinator.rules.lost_work import abandoned, has_labels
from dpstream.services.coordinator.rules.trust import current_trust, stage_of
from dpstream.services.coordinator.state import State
from dpstream.shared import messages as m
from dpstream.shared.spec.training import CPU_BATCH
from dpstream.shared.values import Committee, Dataset, Ref, campaign_uri, stable_seed


def train_first(decisions: Decisions) -> None:
    """Starts the first training as soon as the initial labels are in."""
    state, committee = decisions.state, decisions.state.committee
    if committee.version or committee.training is not None or state.awaited or state.stages_over:
        return
    if not has_labels(state):
        _end_without_labels(decisions)
    elif state.spec.mode != "lockstep" or not state.alive(m.Reference):
        start_training(decisions)


def _end_without_labels(decisions: Decisions) -> None:
    """Pauses if label tasks were abandoned, which is a fault of the set-up; ends the campaign if
    all frames were rejected."""
    why = "no initial label was accepted"
    given_up = [each for each in abandoned(decisions.state) if isinstance(each.command, m.Label)]
    if not given_up:
        end_campaign(decisions, "not-converged", why)
        return
    ends = [each for each in decisions.decided if isinstance(each, m.TaskAbandoned)]
    reason = f"{ends[-1].title}: {ends[-1].why}" if ends else "dpstream logs shows the reasons"
    decisions.fact(m.CampaignPaused, decisions.event.id, why=f"{why}; {reason}")


def end_campaign(decisions: Decisions, verdict: str, why: str) -> None:
    state = decisions.state
    what = plan_identity(state)
    decisions.fact(m.CampaignFinished, *what, verdict=verdict, why=why, plan=state.plan.number)


def start_training(decisions: Decisions, again_cold: bool = False) -> None:
    """Freezes the labels into a dataset version and trains a committee on it; with `again_cold`
    from scratch, like the training that it replaces."""
    new_systems = _first_of_new_systems(decisions.state)
    _resolve_batch(decisions)
    _freeze_dataset(decisions)
    state = decisions.state
    assert state.submitted is not None
    version = _next_version(state)
    cold = again_cold or new_systems or _is_cold(state, version)
    steps = _training_steps(state, cold)
    audit = audit_manifest(decisions, range(len(state.spec.stages)))
    for member in range(state.spec.training.members):
        decisions.command(
            m.Train,
            version,
            member,
            *plan_identity(state),
            title=f"train committee {version}, member {member}",
            version=version,
            member=member,
            seed=stable_seed(state.spec.seed, "train", version, member),
            dataset=state.dataset.manifest,
            steps=steps,
            start=None if cold else state.committee.checkpoints[member],
            audit=audit,
            test=state.dataset.test,
            files=state.submitted.files,
            max_seconds=state.spec.training.max_hours * 3600,
            **_batch(state),
        )


def _resolve_batch(decisions: Decisions) -> None:
    """Fixes what `auto` means in this campaign, if no trainer on a GPU has done so."""
    state = decisions.state
    if state.batch_atoms is None:
        lockstep = state.spec.mode == "lockstep"
        why = "as always in lockstep" if lockstep else "no trainer on a GPU has started"
        decisions.fact(m.BatchResolved, batch_atoms=CPU_BATCH, why=why)


def _batch(state: State) -> dict[str, Any]:
    """What `auto` means, for a training on the newest dataset; empty if the spec states a number,
    which the trainer reads itself."""
    training, batch_atoms = state.spec.training, state.batch_atoms
    if training.batch_atoms != "auto":
        return {}
    rate = training.pace(batch_atoms, _atoms(state), state.dataset.size)
    return {"batch_atoms": batch_atoms, "rate": rate}


def _next_version(state: State) -> int:
    judged = state.committee.judged_training
    return (judged.version if judged else 0) + 1


def _freeze_dataset(decisions: Decisions) -> None:
    newest, submitted = decisions.state.dataset, decisions.state.submitted
    assert submitted is not None
    if not newest.fresh and newest.manifest is not None:
        return
    dataset = Dataset(
        version=newest.version + 1,
        parent=newest.manifest,
        packs=() if newest.manifest else submitted.packs,
        labels=tuple(newest.fresh[key] for key in sorted(newest.fresh)),
    )
    decisions.manifest("dataset", f"dataset-{dataset.version}", dataset.model_dump_json())


def _is_cold(state: State, version: int) -> bool:
    """The first training is cold, every `cold_every`-th, and the next one after a sign that warm
    starts hide errors (`force_cold`)."""
    training, committee = state.spec.training, state.committee
    return (
        not training.warm
        or len(committee.checkpoints) != training.members
        or committee.force_cold
        or version - committee.cold_version >= training.cold_every
    )


def _first_of_new_systems(state: State) -> bool:
    """Whether the stage explores systems that no earlier stage did, and all its labels are new."""
    if state.stages_over or not state.exploration.ended:
        return False
    stages, current = state.spec.stages, state.exploration.stage.index
    seen = {name for index in state.exploration.left for name in stages[int(index)].systems}
    if not set(stages[current].systems) - seen:
        return False
    fresh = [state.labels.frames[key] for key in state.dataset.fresh]
    chosen_here = any(each.stage == current and each.purpose == "train" for each in fresh)
    return chosen_here and not state.exploration.stage.learned


def _training_steps(state: State, cold: bool, factor: float = 1.0) -> int:
    """Steps for `epochs` passes over the dataset, times `factor`."""
    training = state.spec.training
    share = 1.0 if cold else training.warm
    factor *= share * _lengthened(state)
    return training.steps(state.batch_atoms, _atoms(state), state.dataset.size, factor)


def _atoms(state: State) -> int:
    """Atoms of the largest system."""
    assert state.submitted is not None
    return max(state.submitted.atoms.values(), default=1)


def complete_committee(decisions: Decisions) -> None:
    """Judges the training once all members are in; publishes the committee, or trains again for
    longer if it is training-limited."""
    state, committee = decisions.state, decisions.state.committee
    if committee.training is None or len(committee.members) < committee.size:
        return
    judged = convergence.judge_training(state, current_trust(state))
    decisions.fact(m.TrainingJudged, committee.training, version=committee.training, **judged)
    if judged["verdict"] == "training-limited" and judged["lengthen"] > _lengthened(state):
        start_training(decisions, again_cold=committee.is_training_cold)
    else:
        _publish_committee(decisions)


def _lengthened(state: State) -> float:
    judged = state.committee.judged_training
    return judged.lengthen if judged else 1.0


def _publish_committee(decisions: Decisions) -> None:
    state = decisions.state
    trained = state.committee
    assert trained.training is not None
    members = [trained.members[str(i)] for i in range(len(trained.members))]
    committee = Committee(
        version=trained.training,
        models=tuple(member.model for member in members),
        type_map=state.spec.type_map,
    )
    body = committee.model_dump_json()
    # Explorers poll this key for the next version.
    uri = campaign_uri(state.spec.name, "committees", f"{committee.version}.json")
    ref = Ref.to(uri, body.encode())
    decisions.fact(m.ManifestFrozen, ref.uri, purpose="committee", manifest=ref, body=body)
    version, size = committee.version, state.dataset.size
    decisions.fact(m.ModelsReady, version, committee=committee, manifest=ref, labels=size)


def retrain_early(decisions: Decisions) -> None:
    """Streaming: starts a training once enough new labels are in, while exploration continues. A
    round that is on track to pass is allowed to finish first, and so is the only round of a
    stage."""
    state, committee = decisions.state, decisions.state.committee
    if state.spec.mode != "streaming" or state.exploration.round is None:
        return
    if committee.training is not None:
        return
    if committee.version and len(state.dataset.fresh) >= state.spec.streaming.retrain_after:
        if convergence.on_track(state) or not stage_of(state).repeat:
            return
        start_training(decisions)


def begin_stage(decisions: Decisions) -> None:
    """Trains on the labels left over from the last stage before the next one begins."""
    state, committee = decisions.state, decisions.state.committee
    if state.stages_over or committee.training is not None or state.exploration.round is not None:
        return
    if committee.version and must_train_first(state):
        start_training(decisions)


def must_train_first(state: State) -> bool:
    """Whether a stage that no round was begun of, since it is the running one, has to wait for a
    training on the labels of the last one. The final training of an earlier plan may have put them
    into a dataset."""
    exploration, stage = state.exploration, state.exploration.stage
    follows = stage.trust is None and bool(exploration.left or stage.rounds)
    unlearned = state.committee.dataset != state.dataset.manifest
    return follows and (bool(state.dataset.fresh) or unlearned)


def train_final(decisions: Decisions) -> None:
    _freeze_dataset(decisions)
    state = decisions.state
    assert state.submitted is not None
    training = state.spec.training
    steps = _training_steps(state, cold=True, factor=training.final.steps_factor)
    decisions.command(
        m.Train,
        "final",
        *plan_identity(state),
        title="train the final model",
        version=_next_version(state),
        member=0,
        seed=stable_seed(state.spec.seed, "train", "final"),
        dataset=state.dataset.manifest,
        steps=steps,
        audit=audit_manifest(decisions, range(len(state.spec.stages))),
        test=state.dataset.test,
        files=state.submitted.files,
        final=True,
        max_seconds=training.max_hours * 3600,
        **_batch(state),
    )
