"""The whole loop, pure: `decide(state, event) -> (state, decisions)`.

No I/O, no clock, no randomness: time and seeds arrive in events and the spec. A decision is a
command, or a fact for the ledger; each changes the state through `evolve`, and the rules run, in
loop order, until none has anything left to say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from services.coordinator import convergence
from services.coordinator.state import KnownFrame, State, Task, evolve
from shared import messages as m
from shared.spec import AutoTrust, Stage
from shared.values import (
    Committee,
    Condition,
    Dataset,
    Pool,
    Ref,
    Trust,
    campaign_uri,
    stable_id,
    stable_seed,
)

DAY = 86_400.0
JUDGE_BATCH = 60
HEARD = (m.CampaignSubmitted, m.CampaignResumed, m.TaskEvent)
"""Events to act upon. Everything else on the bus is our own word coming back."""
ESSENTIAL = (m.Train, m.Select, m.Audit)
"""The campaign cannot go on without these: abandoning one pauses it."""


class Turn:
    """One event being decided upon: the state as it stands, and what was decided so far."""

    def __init__(self, state: State, event: m.Message) -> None:
        self.state, self.event = state, event
        self.decided: list[m.Message] = []

    def decide(self, decision: m.Message) -> None:
        self.decided.append(decision)
        self.state = evolve(self.state, decision)

    def fact(self, kind: type[m.Message], *what: object, **fields: Any) -> None:
        """Decide a fact; its identity is what it is."""
        name = self.state.spec.name
        identity = stable_id(name, kind.__name__, *what)
        self.decide(
            kind(id=identity, campaign=name, time=self.event.time, cause=self.event.id, **fields)
        )

    def command(self, kind: type[m.Command], *what: object, **fields: Any) -> None:
        """Decide a new task; its identity is what it is."""
        name, submitted = self.state.spec.name, self.state.submitted
        assert submitted is not None
        task = stable_id(name, kind.__name__, *what)
        fields = {"max_seconds": DAY, "spec": submitted.spec, **fields}
        self.fact(kind, task, 1, task=task, **fields)

    def manifest(self, purpose: str, name: str, body: str) -> Ref:
        """Decide that `body` is stored; the reference to it."""
        ref = Ref.to(campaign_uri(self.state.spec.name, "manifests", f"{name}.json"), body.encode())
        self.fact(m.ManifestFrozen, ref.uri, purpose=purpose, manifest=ref, body=body)
        return ref


def decide(state: State, event: m.Message) -> tuple[State, tuple[m.Message, ...]]:
    """The state after `event`, and what follows from it. An event that changes nothing (doubled,
    late, unknown) returns the very same state and nothing."""
    if not isinstance(event, HEARD):
        return state, ()
    turn = Turn(evolve(state, event), event)
    if turn.state is state:
        return state, ()
    REACTIONS.get(type(event), lambda turn: None)(turn)
    settled = -1
    while settled != len(turn.decided) and _may_go_on(turn.state):
        settled = len(turn.decided)
        for rule in RULES:
            rule(turn)
    return turn.state, tuple(turn.decided)


def _may_go_on(state: State) -> bool:
    return state.submitted is not None and state.paused is None and state.finished is None


# ------------------------------------------------------------------------------- lost work


def reissue_lost(turn: Turn) -> None:
    """The next attempt of a task that was released, failed or lapsed; or its end."""
    event = turn.event
    assert isinstance(event, m.TaskEvent)
    task = turn.state.tasks.get(event.task)
    if task is None or task.status != "lost":
        return
    permanent = isinstance(event, m.TaskFailed) and event.permanent
    if permanent or task.lapses >= turn.state.spec.max_attempts:
        reason = getattr(event, "reason", "its worker was lost")
        _abandon(turn, task, reason)
    else:
        _reissue(turn, task)


def _reissue(turn: Turn, task: Task) -> None:
    command, attempt = task.command, task.command.attempt + 1
    update: dict[str, Any] = {"attempt": attempt, "id": stable_id(command.task, attempt)}
    if turn.state.spec.starts_over and isinstance(command, m.Train):
        update["resume"] = None
    turn.decide(command.model_copy(update={**update, "time": turn.event.time}))


def _abandon(turn: Turn, task: Task, reason: str) -> None:
    command = task.command
    attempts = f"after {command.attempt} attempt{'s' if command.attempt > 1 else ''}"
    why = f"{attempts}: {reason}"
    turn.fact(
        m.TaskAbandoned,
        command.task,
        command.attempt,
        task=command.task,
        title=command.title,
        why=why,
    )
    if isinstance(command, ESSENTIAL):
        turn.fact(m.CampaignPaused, command.task, command.attempt, why=f"{command.title}: {why}")


def retry_abandoned(turn: Turn) -> None:
    """A person said go on: what paused the campaign gets another attempt."""
    for task in turn.state.tasks.values():
        if task.status == "abandoned" and isinstance(task.command, ESSENTIAL):
            _reissue(turn, task)


# ------------------------------------------------------------------------------- labels


def begin(turn: Turn) -> None:
    """Reference dynamics for the held-out set, beside everything else."""
    state = turn.state
    reference, submitted = state.spec.verification.reference_md, state.submitted
    assert submitted is not None
    if reference is None:
        return
    structures = submitted.systems[reference.system]
    for number in range(reference.trajectories):
        turn.command(
            m.Reference,
            number,
            title=f"reference trajectory {number}",
            capability=state.spec.labels.code,
            recipe=submitted.recipe.digest,
            structure=structures[number % len(structures)],
            trajectory=number,
            seed=stable_seed(state.spec.seed, "reference", number),
        )


def label_waiting(turn: Turn) -> None:
    """Frames that wait for a label, in bundles."""
    state = turn.state
    if not state.waiting:
        return
    assert state.submitted is not None
    keys, size = sorted(state.waiting), state.spec.labels.bundle
    for first in range(0, len(keys), size):
        refs = tuple(state.frames[key].ref for key in keys[first : first + size])
        turn.command(
            m.Label,
            state.version,
            *(ref.key for ref in refs),
            title=f"label {len(refs)} frames",
            capability=state.spec.labels.code,
            recipe=state.submitted.recipe.digest,
            frames=refs,
            max_seconds=state.spec.labels.max_seconds * len(refs),
        )


def freeze_test(turn: Turn) -> None:
    """The held-out set, once every reference trajectory has ended."""
    state = turn.state
    if state.test is not None or not state.references or state.alive(m.Reference):
        return
    packs = tuple(state.references[key].pack for key in sorted(state.references, key=int))
    turn.manifest("test", "test", Dataset(version=1, packs=packs).model_dump_json())


# ------------------------------------------------------------------------------- training


def train_first(turn: Turn) -> None:
    """The first committee, as soon as the initial labels are in."""
    state = turn.state
    if state.version or state.training is not None or state.pending or state.stages_over:
        return
    if state.spec.mode == "lockstep" and state.alive(m.Reference):
        return
    assert state.submitted is not None
    if not state.fresh and not state.submitted.pack_frames:
        turn.fact(m.CampaignFinished, verdict="not-converged", why="no initial label was accepted")
        return
    start_training(turn)


def start_training(turn: Turn) -> None:
    """Freeze what is known into a dataset version and train a committee on it."""
    _freeze_dataset(turn)
    state = turn.state
    version = _next_version(state)
    cold = _is_cold(state, version)
    steps, audit = _steps(state, cold), _audit_manifest(turn, range(len(state.spec.stages)))
    for member in range(state.spec.training.members):
        turn.command(
            m.Train,
            version,
            member,
            title=f"train committee {version}, member {member}",
            version=version,
            member=member,
            seed=stable_seed(state.spec.seed, "train", version, member),
            dataset=state.dataset,
            steps=steps,
            start=None if cold else state.checkpoints[member],
            audit=audit,
            test=state.test,
            max_seconds=state.spec.training.max_hours * 3600,
        )


def _next_version(state: State) -> int:
    return (state.judged_training.version if state.judged_training else 0) + 1


def _freeze_dataset(turn: Turn) -> None:
    state = turn.state
    assert state.submitted is not None
    if not state.fresh and state.dataset is not None:
        return
    version = state.dataset_version + 1
    dataset = Dataset(
        version=version,
        parent=state.dataset,
        packs=() if state.dataset else state.submitted.packs,
        labels=tuple(state.fresh[key] for key in sorted(state.fresh)),
    )
    turn.manifest("dataset", f"dataset-{version}", dataset.model_dump_json())


def _is_cold(state: State, version: int) -> bool:
    """Cold: the first, every `cold_every`-th, and whenever warm starts became suspect."""
    training = state.spec.training
    return (
        not training.warm
        or not state.checkpoints
        or state.force_cold
        or version - state.cold_version >= training.cold_every
        or bool(state.ended and state.stage.rounds == 0 and _new_systems(state))
    )


def _new_systems(state: State) -> bool:
    seen = {name for stage in state.spec.stages[: state.stage.index] for name in stage.systems}
    return bool(set(state.spec.stages[state.stage.index].systems) - seen)


def _steps(state: State, cold: bool) -> int:
    """Steps follow the data: `epochs` passes, within the spec's bounds."""
    training, submitted = state.spec.training, state.submitted
    assert submitted is not None
    batch = math.ceil(training.batch_atoms / max(submitted.atoms.values(), default=1))
    lengthen = state.judged_training.lengthen if state.judged_training else 1.0
    steps = max(training.min_steps, training.epochs * state.trained / batch) * lengthen
    share = 1.0 if cold else training.warm
    return max(1, min(training.max_steps, round(steps * share)))


def complete_committee(turn: Turn) -> None:
    """All members are in: a committee, unless it has not learned its own training frames."""
    state = turn.state
    if state.training is None or len(state.members) < state.spec.training.members:
        return
    judged = convergence.judge_training(state, current_trust(state))
    turn.fact(m.TrainingJudged, state.training, version=state.training, **judged)
    if judged["verdict"] == "training-limited" and judged["lengthen"] > _lengthen(state):
        start_training(turn)
    else:
        _announce(turn)


def _lengthen(state: State) -> float:
    return state.judged_training.lengthen if state.judged_training else 1.0


def _announce(turn: Turn) -> None:
    state = turn.state
    assert state.training is not None
    members = [state.members[str(i)] for i in range(len(state.members))]
    committee = Committee(
        version=state.training,
        models=tuple(member.model for member in members),
        type_map=state.spec.type_map,
    )
    body = committee.model_dump_json()
    ref = Ref.to(committee_uri(state.spec.name, committee.version), body.encode())
    turn.fact(m.ManifestFrozen, ref.uri, purpose="committee", manifest=ref, body=body)
    turn.fact(
        m.ModelsReady, committee.version, committee=committee, manifest=ref, labels=state.trained
    )


def committee_uri(campaign: str, version: int) -> str:
    """Where a committee's manifest appears, once and for all; workers look for the next version."""
    return campaign_uri(campaign, "committees", f"{version}.json")


def retrain_early(turn: Turn) -> None:
    """Streaming: enough new labels start a training while exploration goes on; but a round that
    looks good is let finish."""
    state = turn.state
    if state.spec.mode != "streaming" or state.round is None or state.training is not None:
        return
    if state.version and len(state.fresh) >= state.spec.streaming.retrain_after:
        if convergence.looks_good(state):
            return
        start_training(turn)


# ------------------------------------------------------------------------------- exploration


def supersede(turn: Turn) -> None:
    """A new committee: what waits to explore by the old one is not wanted any more, and what
    waits to be labelled is judged again."""
    if not isinstance(turn.decided[-1] if turn.decided else None, m.ModelsReady):
        return
    for task in _tasks(turn.state, m.Explore, "open"):
        _cancel(turn, task, f"committee {turn.state.version} is ready")


def _cancel(turn: Turn, task: Task, why: str) -> None:
    task_id, attempt = task.command.task, task.command.attempt
    turn.fact(m.TaskCancelled, task_id, attempt, task=task_id, attempt=attempt, why=why)


def _tasks(state: State, kind: type[m.Command], *statuses: str) -> list[Task]:
    if not state.alive(kind):
        return []
    found = [
        t for t in state.tasks.values() if t.status in statuses and isinstance(t.command, kind)
    ]
    return sorted(found, key=lambda task: task.command.task)


def rejudge(turn: Turn) -> None:
    """Waiting candidates, and frames whose label nobody has started, before the new committee."""
    state = turn.state
    new = any(isinstance(d, m.ModelsReady) for d in turn.decided)
    frames = tuple(
        ref
        for task in (
            _tasks(state, m.Label, "open") if new and state.spec.mode == "streaming" else []
        )
        for ref in task.command.frames
        if state.frames[ref.key].purpose == "train"
    )
    if already_asked(turn, m.Judge):
        frames = ()
    items = tuple(state.stale[uri] for uri in sorted(state.stale))
    for first in range(0, max(len(items), len(frames)), JUDGE_BATCH):
        pool, waiting = items[first : first + JUDGE_BATCH], frames[first : first + JUDGE_BATCH]
        turn.command(
            m.Judge,
            state.version,
            *(item.frames.uri for item in pool),
            *(ref.key for ref in waiting),
            title=f"judge {sum(i.count for i in pool) + len(waiting)} frames again",
            committee=state.manifest,
            version=state.version,
            trust=current_trust(state),
            pool=pool,
            frames=waiting,
        )


def already_asked(turn: Turn, kind: type[m.Message]) -> bool:
    return any(isinstance(decision, kind) for decision in turn.decided)


def revoke_accurate(turn: Turn) -> None:
    """Labels nobody has started and nobody needs any more."""
    event = turn.event
    assert isinstance(event, m.FramesJudged)
    accurate = set(event.accurate)
    for task in _tasks(turn.state, m.Label, "open") if accurate else []:
        if accurate & {ref.key for ref in task.command.frames}:
            _cancel(turn, task, f"accurate under committee {event.version}")


def begin_round(turn: Turn) -> None:
    """Try the newest committee on every condition of the stage, from the start."""
    state = turn.state
    if not state.version or state.training is not None or state.round is not None:
        return
    if state.stages_over or _must_train_first(state):
        return
    if state.stage.trust is None:
        _set_trust(turn, *_opening_trust(state))
    for index, (condition, number) in enumerate(_trajectories(_stage(state))):
        _explore(turn, index, condition, number)


def _must_train_first(state: State) -> bool:
    """A stage begins with everything the last one taught."""
    return state.stage.rounds == 0 and bool(state.ended) and bool(state.fresh)


def _explore(turn: Turn, index: int, condition: Condition, number: int) -> None:
    state = turn.state
    assert state.submitted is not None
    stage, wave = _stage(state), state.waves + (state.round is None)
    structures = state.submitted.systems[condition.system]
    name = f"{stage.name}/{wave}/{str(condition).replace(' ', '-')}/{number}"
    turn.command(
        m.Explore,
        name,
        title=f"explore {condition}, trajectory {number}",
        committee=state.manifest,
        version=state.version,
        stage=state.stage.index,
        trajectory=name,
        condition=condition,
        structure=structures[(wave + index) % len(structures)],
        seed=stable_seed(state.spec.seed, "explore", name),
        driver=index % state.spec.training.members,
        trust=current_trust(state),
        pinned=state.spec.mode == "lockstep",
    )


def _trajectories(stage: Stage) -> Iterator[tuple[Condition, int]]:
    for number in range(stage.md.trajectories):
        for system in stage.systems:
            for temperature in stage.temperatures:
                for pressure in stage.pressures or (None,):
                    yield (
                        Condition(system=system, temperature=temperature, pressure=pressure),
                        number,
                    )


def _stage(state: State) -> Stage:
    return state.spec.stages[min(state.stage.index, len(state.spec.stages) - 1)]


# ------------------------------------------------------------------------------- trust levels


def current_trust(state: State) -> Trust:
    return state.stage.trust or _opening_trust(state)[0]


def _opening_trust(state: State) -> tuple[Trust, str]:
    """As given; or, `auto`, 0.2 and 0.5 × the RMS force of the labels (practical guide)."""
    given = _stage(state).trust or state.spec.trust
    if not isinstance(given, AutoTrust):
        return given.values(), "as given"
    trained = list(state.members.values())
    rms = max((member.train.rms_force for member in trained), default=1.0)
    return (
        Trust(low=0.2 * rms, high=0.5 * rms),
        f"0.2 and 0.5 times the RMS force of the labels, {rms:.3g} eV/Å",
    )


def _set_trust(turn: Turn, trust: Trust, why: str) -> None:
    state = turn.state
    stage = state.stage.index
    turn.fact(
        m.TrustChanged,
        stage,
        state.version,
        stage=stage,
        version=state.version,
        trust=trust,
        why=why,
    )


def calibrate_trust(turn: Turn) -> None:
    """`auto`: levels move between versions only, to what the last audit found."""
    state, audit = turn.state, turn.state.stage.audit
    given = _stage(state).trust or state.spec.trust
    if not isinstance(given, AutoTrust) or audit is None or audit.levels is None:
        return
    if not already_asked(turn, m.ModelsReady) or already_asked(turn, m.TrustChanged):
        return
    low, high = audit.levels
    _set_trust(
        turn, current_trust(state).model_copy(update={"low": low, "high": high}), audit.levels_why
    )


# ------------------------------------------------------------------------------- selection


def select(turn: Turn) -> None:
    """Choose from the pool: at the end of a round, and while streaming whenever enough wait."""
    state = turn.state
    if state.round is None or state.alive(m.Select) or state.round.closed:
        return
    if state.alive(m.Judge):
        return
    over = state.round.unfinished == 0
    enough = state.spec.mode == "streaming" and state.pool_new >= state.spec.selection.select_every
    if over or (enough and _slots(state)):
        _select(turn, over)


def _slots(state: State) -> int:
    """Labels that may still be asked for under this version."""
    budget = state.spec.budget.labels - len(state.frames)
    return max(0, min(state.spec.selection.per_round - state.selected, budget))


def _select(turn: Turn, over: bool) -> None:
    state = turn.state
    assert state.round is not None
    reservoirs = state.round.reservoirs if over else {}
    pool = Pool(
        candidates=tuple(state.pool[uri] for uri in sorted(state.pool)),
        reservoirs=tuple(reservoirs[uri] for uri in sorted(reservoirs)),
        fallback=over and not state.pool and not convergence.looks_good(state),
        taken=dict(state.taken),
    )
    body = pool.model_dump_json()
    name = f"pool-{state.round.number}-{'end' if over else 'mid'}-{stable_id(body)[:8]}"
    ref = turn.manifest("pool", name, body)
    turn.command(
        m.Select,
        name,
        title=f"select from {sum(item.count for item in pool.candidates)} candidates",
        committee=state.manifest,
        version=state.version,
        stage=state.stage.index,
        seed=stable_seed(state.spec.seed, "select", state.round.number, state.selected),
        pool=ref,
        labels=_slots(state),
        per_system=state.spec.selection.per_system,
        audits=_audits_wanted(state) if over else 0,
    )


def _audits_wanted(state: State) -> int:
    """So many per round, until there are twice as many as the stage needs."""
    audit = state.spec.audit
    room = state.spec.budget.labels - len(state.frames)
    return max(0, min(audit.per_round, 2 * audit.min_frames - len(state.stage.audits), room))


# ------------------------------------------------------------------------------- verdicts


def audit_round(turn: Turn) -> None:
    """The true error of the version just tried, before it trains on this round's labels."""
    state = turn.state
    if not _round_is_settled(state) or state.alive(m.Audit):
        return
    assert state.round is not None
    if state.round.audited or not state.stage.audits:
        return
    manifest = _audit_manifest(turn, [state.stage.index])
    turn.command(
        m.Audit,
        state.version,
        state.round.number,
        title=f"audit committee {state.version}",
        committee=state.manifest,
        version=state.version,
        stage=state.stage.index,
        trust=current_trust(state),
        audit=manifest,
        pairs=_pairs_manifest(turn),
        seed=stable_seed(state.spec.seed, "audit", state.round.number),
    )


def _round_is_settled(state: State) -> bool:
    return state.round is not None and state.round.closed and state.pending == 0


def _audit_manifest(turn: Turn, stages: Iterable[int]) -> Ref | None:
    """Audit labels drawn under these stages."""
    wanted = set(stages)
    frames = {
        key: frame
        for key, frame in turn.state.frames.items()
        if frame.purpose == "audit" and frame.label and frame.stage in wanted
    }
    if not frames:
        return None
    body = _labelled_manifest([frames[key] for key in sorted(frames)])
    return _once(turn, "audit", f"audit-{stable_id(body)[:8]}", body)


def _labelled_manifest(frames: Sequence[KnownFrame]) -> str:
    return Dataset(
        version=1,
        labels=tuple(frame.label for frame in frames if frame.label),
        origins=tuple(frame.origin for frame in frames),
        weights=tuple(frame.weight for frame in frames),
    ).model_dump_json()


def _pairs_manifest(turn: Turn) -> Ref | None:
    """Labels that this version has not trained on: what calibrates `auto` trust levels."""
    state = turn.state
    given = _stage(state).trust or state.spec.trust
    if not isinstance(given, AutoTrust) or not state.fresh:
        return None
    body = _labelled_manifest([state.frames[key] for key in sorted(state.fresh)])
    return _once(turn, "pairs", f"pairs-{state.waves}", body)


def _once(turn: Turn, purpose: str, name: str, body: str) -> Ref:
    """Freeze a manifest unless this turn has done so already."""
    for decision in turn.decided:
        if isinstance(decision, m.ManifestFrozen) and decision.body == body:
            return decision.manifest
    return turn.manifest(purpose, name, body)


def judge_round(turn: Turn) -> None:
    """What the round says of the version."""
    state = turn.state
    if not _round_is_settled(state) or state.alive(m.Audit):
        return
    assert state.round is not None
    if state.stage.audits and not state.round.audited:
        return
    outcome, why = convergence.judge_round(state)
    turn.fact(
        m.RoundJudged,
        state.round.number,
        state.version,
        stage=state.stage.index,
        round=state.round.number,
        version=state.version,
        counts=convergence.by_condition(state.round),
        outcome=outcome,
        why=why,
    )


def act_on_verdict(turn: Turn) -> None:
    """After a round: next stage, another training, or the end. Another round begins by itself."""
    state, verdict = turn.state, turn.state.verdict
    if verdict is None or state.training is not None:
        return
    spec, stage = state.spec, state.stage
    if verdict.outcome == "passed" and stage.good >= spec.convergence.rounds:
        if state.cold_version == state.version:
            _end_stage(turn, "converged", verdict.why)
        else:  # warm starts shrink disagreement: a cold committee has to confirm it
            start_training(turn)
    elif verdict.outcome == "stuck":
        _end_stage(turn, "stuck", verdict.why)
    elif stage.rounds >= spec.budget.rounds:
        _end_stage(turn, "out-of-budget", f"{stage.rounds} rounds; {verdict.why}")
    elif len(state.frames) >= spec.budget.labels:
        _end_stage(turn, "out-of-budget", f"{len(state.frames)} labels; {verdict.why}")
    elif state.fresh:
        start_training(turn)


def _end_stage(turn: Turn, verdict: str, why: str) -> None:
    stage = turn.state.stage.index
    for task in _tasks(turn.state, m.Explore, "open", "running"):
        _cancel(turn, task, "the stage has ended")
    turn.fact(m.StageEnded, stage, stage=stage, verdict=verdict, why=why)


def begin_stage(turn: Turn) -> None:
    """Labels that the last stage left over are learned before the next one begins."""
    state = turn.state
    if state.stages_over or state.training is not None or state.round is not None:
        return
    if state.version and _must_train_first(state):
        start_training(turn)


# ------------------------------------------------------------------------------- the end


def finish(turn: Turn) -> None:
    """One long cold training on all labels, its verification, and the campaign's verdict."""
    state = turn.state
    if not state.stages_over or state.pending or state.alive(m.Reference):
        return
    if state.final is None:
        if not state.alive(m.Train):
            _train_final(turn)
    elif state.verified is None and state.verify_failed is None:
        if not state.alive(m.Verify):
            _verify(turn)
    else:
        verdict, why = convergence.judge_campaign(state)
        turn.fact(m.CampaignFinished, verdict=verdict, why=why)


def _train_final(turn: Turn) -> None:
    _freeze_dataset(turn)
    state = turn.state
    training = state.spec.training
    steps = min(training.max_steps, round(_steps(state, cold=True) * training.final.steps_factor))
    turn.command(
        m.Train,
        "final",
        title="train the final model",
        version=_next_version(state),
        member=0,
        seed=stable_seed(state.spec.seed, "train", "final"),
        dataset=state.dataset,
        steps=steps,
        audit=_audit_manifest(turn, range(len(state.spec.stages))),
        test=state.test,
        final=True,
        max_seconds=training.max_hours * 3600,
    )


def _verify(turn: Turn) -> None:
    state = turn.state
    assert state.final is not None
    assert state.submitted is not None
    reference = state.spec.verification.reference_md
    system = reference.system if reference else next(iter(state.submitted.systems))
    turn.command(
        m.Verify,
        title="verify the final model",
        model=state.final.model,
        type_map=state.spec.type_map,
        structure=state.submitted.systems[system][0],
        seed=stable_seed(state.spec.seed, "verify"),
        test=state.test,
    )


REACTIONS: dict[type[m.Message], Callable[[Turn], None]] = {
    m.CampaignSubmitted: begin,
    m.TaskReleased: reissue_lost,
    m.TaskFailed: reissue_lost,
    m.LeaseLapsed: reissue_lost,
    m.FramesJudged: revoke_accurate,
    m.CampaignResumed: retry_abandoned,
}

RULES: tuple[Callable[[Turn], None], ...] = (
    label_waiting,
    freeze_test,
    train_first,
    complete_committee,
    supersede,
    calibrate_trust,
    rejudge,
    select,
    retrain_early,
    audit_round,
    judge_round,
    act_on_verdict,
    begin_stage,
    begin_round,
    finish,
)
