"""What the coordinator knows of one campaign, and how each message changes it.

`evolve(state, message)` is a pure fold: the ledger replayed through it gives the state back, byte
for byte, without deciding anything again. Times, ids of workers' messages and the order of
deliveries leave no trace in the state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal, TypeVar, get_args

from immutables import Map
from pydantic import BaseModel, ConfigDict
from pydantic_core import core_schema

from shared import messages as m
from shared.spec import Spec
from shared.values import Chosen, Committee, Counts, FrameRef, PoolItem, Ref, Trust

V = TypeVar("V")


class _AsDict:
    """Lets pydantic read and write an `immutables.Map` as an object with sorted keys."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> core_schema.CoreSchema:
        inner = handler.generate_schema(dict[get_args(source)])  # type: ignore[misc]
        return core_schema.no_info_before_validator_function(
            lambda value: dict(value) if isinstance(value, Map) else value,
            core_schema.no_info_after_validator_function(
                Map,
                inner,
                serialization=core_schema.wrap_serializer_function_ser_schema(
                    lambda value, serialize: serialize(dict(sorted(value.items()))), schema=inner
                ),
            ),
        )


Table = Annotated[Map[str, V], _AsDict]


class Known(BaseModel):
    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)


class Task(Known):
    """One piece of work. *lost*: its attempt failed or lapsed, the next is not issued yet."""

    command: m.AnyCommand
    status: Literal["open", "running", "lost", "done", "abandoned", "cancelled"] = "open"
    lapses: int = 0
    not_before: float = 0.0
    chunks: frozenset[int] = frozenset()
    last_chunk: int | None = None


class KnownFrame(Known):
    """A frame that was asked to be labelled. *waiting*: in no label task yet."""

    ref: FrameRef
    purpose: Literal["initial", "train", "audit"]
    status: Literal["waiting", "pending", "labelled", "rejected", "revoked"] = "waiting"
    label: Ref | None = None
    stage: int = -1
    version: int = 0
    origin: str = ""
    weight: float = 1.0
    accurate: bool = False


class Tally(Known):
    """How far one trajectory of a round has come."""

    condition: str
    checks: int = 0
    done: bool = False


class ByCondition(Known):
    """What the trajectories of one condition have found so far, all together."""

    counts: Counts = Counts()
    dropped: int = 0


class Round(Known):
    """One committee version tried on every condition of a stage."""

    number: int
    version: int
    tallies: Table[Tally] = Map()
    conditions: Table[ByCondition] = Map()
    unfinished: int = 0
    reservoirs: Table[PoolItem] = Map()
    closing: str | None = None
    closed: bool = False
    asked: int = 0
    audited: bool = False


class StageState(Known):
    index: int = 0
    rounds: int = 0
    good: int = 0
    barren: int = 0
    trust: Trust | None = None
    audit: m.AuditDone | None = None
    tried: int = 0
    rejected: int = 0
    audits: Table[str] = Map()
    """Labelled audit frames: key → trajectory."""


class State(Known):
    spec: Spec
    submitted: m.CampaignSubmitted | None = None
    paused: str | None = None
    finished: m.CampaignFinished | None = None

    tasks: Table[Task] = Map()
    live: Table[int] = Map()
    """Open, running and lost tasks, counted by kind."""

    frames: Table[KnownFrame] = Map()
    waiting: Table[None] = Map()
    """Keys of frames in no label task yet."""
    pending: int = 0
    fresh: Table[Ref] = Map()
    """Training labels in no dataset version yet."""
    trained: int = 0
    """Frames in the newest dataset version."""

    dataset: Ref | None = None
    dataset_version: int = 0
    test: Ref | None = None
    references: Table[m.ReferenceDone] = Map()

    version: int = 0
    committee: Committee | None = None
    manifest: Ref | None = None
    training: int | None = None
    members: Table[m.MemberTrained] = Map()
    checkpoints: tuple[Ref, ...] = ()
    cold_version: int = 0
    force_cold: bool = False
    judged_training: m.TrainingJudged | None = None
    ratio: float | None = None
    """Deviation over true error of the last cold version."""

    stage: StageState = StageState()
    ended: tuple[m.StageEnded, ...] = ()
    waves: int = 0
    round: Round | None = None
    verdict: m.RoundJudged | None = None
    """The last round's verdict, until it has been acted upon."""

    pool: Table[PoolItem] = Map()
    pool_new: int = 0
    stale: Table[PoolItem] = Map()
    taken: Table[tuple[float, ...]] = Map()
    selected: int = 0
    """Frames selected for training under this version."""

    final: m.MemberTrained | None = None
    verified: m.Verified | None = None
    verify_failed: str | None = None

    @property
    def stages_over(self) -> bool:
        stuck = bool(self.ended) and self.ended[-1].verdict != "converged"
        return stuck or self.stage.index >= len(self.spec.stages)

    def alive(self, kind: type[m.Command]) -> int:
        return self.live.get(kind.__name__, 0)

    def dumps(self) -> bytes:
        return self.model_dump_json().encode()


def evolve(state: State, message: m.Message) -> State:
    """The state after `message`; the very same object when the message changes nothing."""
    change = EVOLVE.get(type(message))
    return state if change is None else change(state, message)


def _with(state: State, **changes: Any) -> State:
    return state.model_copy(update=changes)


# ------------------------------------------------------------------------------- tasks


def _timeless(message: V) -> V:
    """Without what depends on when and in which order messages came."""
    assert isinstance(message, m.Message)
    return message.model_copy(update={"time": 0.0, "cause": None})


def _issued(state: State, command: Any) -> State:
    """A command: a new task, or the next attempt of one that was lost."""
    known = state.tasks.get(command.task)
    if known is not None:
        task = known.model_copy(update={"command": _timeless(command), "status": "open"})
        live = state.live if known.status == "lost" else _count(state.live, command, 1)
        return _with(state, tasks=state.tasks.set(command.task, task), live=live)
    task = Task(command=_timeless(command))
    state = _with(
        state,
        tasks=state.tasks.set(command.task, task),
        live=_count(state.live, command, 1),
    )
    return ISSUED.get(type(command), lambda s, c: s)(state, command)


def _count(live: Map[str, int], command: m.Command, change: int) -> Map[str, int]:
    kind = type(command).__name__
    return live.set(kind, live.get(kind, 0) + change)


def _settle(state: State, task: Task, status: str, **changes: Any) -> State:
    """The task comes to an end."""
    ended = task.model_copy(update={"status": status, **changes})
    live = _count(state.live, task.command, -1) if is_live(task) else state.live
    return _with(state, tasks=state.tasks.set(task.command.task, ended), live=live)


def is_live(task: Task) -> bool:
    return task.status in ("open", "running", "lost")


def _current(state: State, event: m.TaskEvent) -> Task | None:
    """The task an event speaks of, if it speaks of the attempt that is under way."""
    task = state.tasks.get(event.task)
    if task is None or task.status not in ("open", "running"):
        return None
    return task if task.command.attempt == event.attempt else None


def _claimed(state: State, event: m.TaskClaimed) -> State:
    task = _current(state, event)
    if task is None or task.status == "running":
        return state
    return _with(
        state, tasks=state.tasks.set(event.task, task.model_copy(update={"status": "running"}))
    )


def _lost(held_against: bool) -> Callable[[State, Any], State]:
    def change(state: State, event: Any) -> State:
        task = _current(state, event)
        if task is None:
            return state
        delay = getattr(event, "delay", 0.0)
        update = {
            "status": "lost",
            "lapses": task.lapses + held_against,
            "not_before": event.time + delay if delay else 0.0,
        }
        return _with(state, tasks=state.tasks.set(event.task, task.model_copy(update=update)))

    return change


def _checkpointed(state: State, event: m.CheckpointSaved) -> State:
    task = _current(state, event)
    if task is None or not isinstance(task.command, m.Train):
        return state
    command = task.command.model_copy(update={"resume": event.checkpoint})
    if command == task.command:
        return state
    return _with(
        state, tasks=state.tasks.set(event.task, task.model_copy(update={"command": command}))
    )


def _cancelled(state: State, decision: m.TaskCancelled) -> State:
    """Wished for; it is over when the edge has won the claim, or the worker has stopped."""
    task = state.tasks[decision.task]
    if isinstance(task.command, m.Label):
        return state
    return _settle(state, task, "cancelled")


def _revoked(state: State, event: m.TaskRevoked) -> State:
    task = _current(state, event)
    if task is None:
        return state
    state = _settle(state, task, "cancelled")
    if not isinstance(task.command, m.Label):
        return state
    frames, waiting, pending = state.frames, state.waiting, state.pending
    for ref in task.command.frames:
        frame = frames[ref.key]
        status = "revoked" if frame.accurate else "waiting"
        frames = frames.set(ref.key, frame.model_copy(update={"status": status}))
        if frame.accurate:
            pending -= 1
        else:
            waiting = waiting.set(ref.key, None)
    return _with(state, frames=frames, waiting=waiting, pending=pending)


def _abandoned(state: State, decision: m.TaskAbandoned) -> State:
    task = state.tasks[decision.task]
    state = _settle(state, task, "abandoned")
    if isinstance(task.command, m.Label):
        for ref in task.command.frames:
            state = _rejected(state, ref.key)
    elif isinstance(task.command, m.Explore):
        state = _tally(state, decision.task, Counts(), _checks_left(state, task.command), done=True)
    elif isinstance(task.command, m.Verify):
        state = _with(state, verify_failed=decision.why)
    return state


def _checks_left(state: State, command: m.Explore) -> int:
    md = state.spec.stages[command.stage].md
    tally = state.round.tallies.get(command.task) if state.round else None
    return md.steps // md.every - (tally.checks if tally else 0)


# ------------------------------------------------------------------------------- labels


def _submitted(state: State, event: m.CampaignSubmitted) -> State:
    if state.submitted is not None:
        return state
    state = _with(
        state,
        submitted=_timeless(event),
        test=event.test,
        trained=0,
    )
    return _ask(state, [KnownFrame(ref=ref, purpose="initial") for ref in event.frames])


def _ask(state: State, frames: Iterable[KnownFrame]) -> State:
    known, waiting, pending = state.frames, state.waiting, state.pending
    for frame in frames:
        key = frame.ref.key
        if key not in known:
            known = known.set(key, frame)
            waiting = waiting.set(key, None)
            pending += 1
    return _with(state, frames=known, waiting=waiting, pending=pending)


def _label_issued(state: State, command: m.Label) -> State:
    frames, waiting = state.frames, state.waiting
    for ref in command.frames:
        frames = frames.set(ref.key, frames[ref.key].model_copy(update={"status": "pending"}))
        waiting = waiting.delete(ref.key)
    return _with(state, frames=frames, waiting=waiting)


def _labelled(state: State, event: m.LabelsDone) -> State:
    task = state.tasks.get(event.task)
    if task is None or task.status in ("done", "cancelled"):
        return state
    state = _settle(state, task, "done")
    for accepted in event.accepted:
        state = _accept(state, accepted.key, accepted.label)
    for rejection in event.rejected:
        state = _rejected(state, rejection.key)
    return state


def _accept(state: State, key: str, label: Ref) -> State:
    frame = state.frames[key]
    if frame.status == "labelled":
        return state
    changes: dict[str, Any] = {
        "frames": state.frames.set(
            key, frame.model_copy(update={"status": "labelled", "label": label})
        ),
    }
    if frame.status != "rejected":
        changes["pending"] = state.pending - 1
    if frame.purpose == "audit":
        audits = state.stage.audits
        if frame.stage == state.stage.index:
            audits = audits.set(key, frame.origin)
        changes["stage"] = _tried(state.stage, frame, 0).model_copy(update={"audits": audits})
    else:
        changes["fresh"] = state.fresh.set(key, label)
        changes["stage"] = _tried(state.stage, frame, 0)
    return _with(state, **changes)


def _rejected(state: State, key: str) -> State:
    frame = state.frames[key]
    if frame.status not in ("waiting", "pending"):
        return state
    return _with(
        state,
        frames=state.frames.set(key, frame.model_copy(update={"status": "rejected"})),
        pending=state.pending - 1,
        stage=_tried(state.stage, frame, 1),
    )


def _tried(stage: StageState, frame: KnownFrame, rejected: int) -> StageState:
    if frame.stage != stage.index:
        return stage
    return stage.model_copy(
        update={"tried": stage.tried + 1, "rejected": stage.rejected + rejected}
    )


def _reference_done(state: State, event: m.ReferenceDone) -> State:
    task = state.tasks.get(event.task)
    if task is None or not is_live(task):
        return state
    references = state.references.set(str(event.trajectory), event)
    return _with(_settle(state, task, "done"), references=references)


# ------------------------------------------------------------------------------- training


def _manifest(state: State, decision: m.ManifestFrozen) -> State:
    if decision.purpose == "dataset":
        return _with(
            state,
            dataset=decision.manifest,
            dataset_version=state.dataset_version + 1,
            trained=state.trained
            + len(state.fresh)
            + (state.submitted.pack_frames if state.submitted and not state.dataset else 0),
            fresh=Map(),
        )
    if decision.purpose == "test":
        return _with(state, test=decision.manifest)
    return state


def _train_issued(state: State, command: m.Train) -> State:
    if command.final or state.training == command.version:
        return state
    cold = command.start is None
    return _with(
        state,
        training=command.version,
        members=Map(),
        verdict=None,
        cold_version=command.version if cold else state.cold_version,
        force_cold=False if cold else state.force_cold,
    )


def _trained(state: State, event: m.MemberTrained) -> State:
    task = state.tasks.get(event.task)
    if task is None or not is_live(task):
        return state
    state = _settle(state, task, "done")
    if task.command.final:
        return _with(state, final=event)
    if event.version != state.training:
        return state
    return _with(state, members=state.members.set(str(event.member), event))


def _training_judged(state: State, decision: m.TrainingJudged) -> State:
    return _with(state, judged_training=_timeless(decision))


def _models_ready(state: State, decision: m.ModelsReady) -> State:
    checkpoints = tuple(state.members[str(i)].checkpoint for i in range(len(state.members)))
    stale = state.stale.update(state.pool)
    return _with(
        state,
        version=decision.committee.version,
        committee=decision.committee,
        manifest=decision.manifest,
        training=None,
        checkpoints=checkpoints,
        round=None,
        verdict=None,
        pool=Map(),
        pool_new=0,
        stale=stale,
        taken=Map(),
        selected=0,
    )


# ------------------------------------------------------------------------------- exploration


def _explore_issued(state: State, command: m.Explore) -> State:
    current = state.round
    if current is None:
        number = state.waves + 1
        current = Round(number=number, version=command.version)
        stage = state.stage.model_copy(update={"rounds": state.stage.rounds + 1})
        state = _with(state, waves=number, stage=stage, verdict=None)
    condition = str(command.condition)
    update = {
        "tallies": current.tallies.set(command.task, Tally(condition=condition)),
        "conditions": current.conditions.set(
            condition, current.conditions.get(condition, ByCondition())
        ),
        "unfinished": current.unfinished + 1,
    }
    return _with(state, round=current.model_copy(update=update))


def _chunk(state: State, event: m.ChunkExplored) -> State:
    task = state.tasks.get(event.task)
    if task is None or event.chunk in task.chunks or not is_live(task):
        return state
    state = _tally(state, event.task, event.counts, event.dropped, done=False)
    if event.candidates is not None:
        state = _offer(state, event.candidates)
    if event.reservoir is not None and state.round and event.task in state.round.tallies:
        reservoirs = state.round.reservoirs.set(event.reservoir.frames.uri, event.reservoir)
        state = _with(state, round=state.round.model_copy(update={"reservoirs": reservoirs}))
    return _chunk_counted(state, task, event)


def _chunk_counted(state: State, task: Task, event: m.ChunkExplored) -> State:
    """Chunk k is counted once; the trajectory is over when its last and all before are in."""
    chunks = task.chunks | {event.chunk}
    last = event.chunk if event.last else task.last_chunk
    command = task.command
    if event.restart is not None and event.chunk == max(chunks):
        command = command.model_copy(
            update={"resume": event.restart, "from_chunk": event.chunk + 1}
        )
    changes = {"chunks": chunks, "last_chunk": last, "command": command}
    if last is not None and len(chunks) == last + 1:
        state = _settle(state, task, "done", **changes)
        return _tally(state, event.task, Counts(), 0, done=True)
    return _with(state, tasks=state.tasks.set(event.task, task.model_copy(update=changes)))


def _tally(state: State, task: str, counts: Counts, dropped: int, done: bool) -> State:
    if state.round is None or task not in state.round.tallies:
        return state
    old = state.round.tallies[task]
    checks = old.checks + counts.total + dropped
    new = old.model_copy(update={"checks": checks, "done": old.done or done})
    sums = state.round.conditions[old.condition]
    sums = ByCondition(counts=sums.counts + counts, dropped=sums.dropped + dropped)
    update = {
        "tallies": state.round.tallies.set(task, new),
        "conditions": state.round.conditions.set(old.condition, sums),
        "unfinished": state.round.unfinished - (new.done and not old.done),
    }
    return _with(state, round=state.round.model_copy(update=update))


def _offer(state: State, item: PoolItem) -> State:
    """Candidates enter the pool, or the queue for a newer verdict when theirs is too old."""
    if state.version - item.version > state.spec.streaming.max_staleness:
        return _with(state, stale=state.stale.set(item.frames.uri, item))
    return _with(
        state, pool=state.pool.set(item.frames.uri, item), pool_new=state.pool_new + item.count
    )


def _judge_issued(state: State, command: m.Judge) -> State:
    stale = state.stale
    for item in command.pool:
        stale = stale.delete(item.frames.uri)
    return _with(state, stale=stale)


def _rejudged(state: State, event: m.FramesJudged) -> State:
    task = state.tasks.get(event.task)
    if task is None or not is_live(task):
        return state
    state = _settle(state, task, "done")
    for item in event.pool:
        state = _offer(state, item)
    frames = state.frames
    for key in event.accurate:
        frames = frames.set(key, frames[key].model_copy(update={"accurate": True}))
    return _with(state, frames=frames)


def _select_issued(state: State, command: m.Select) -> State:
    current = state.round
    if current is not None and current.unfinished == 0:
        state = _with(state, round=current.model_copy(update={"closing": command.task}))
    return _with(state, pool_new=0)


def _selected(state: State, event: m.CandidatesSelected) -> State:
    task = state.tasks.get(event.task)
    if task is None or not is_live(task):
        return state
    state = _settle(state, task, "done")
    room = state.spec.budget.labels - len(state.frames)
    new = [c for c in event.labels if c.key not in state.frames][: max(room, 0)]
    room -= len(new)
    audits = [c for c in event.audits if c.key not in state.frames][: max(room, 0)]
    picked = [_chosen(event, c, "train") for c in new] + [
        _chosen(event, c, "audit") for c in audits
    ]
    taken = state.taken
    for choice in new:
        times = (*taken.get(choice.trajectory, ()), choice.time_ps)
        taken = taken.set(choice.trajectory, tuple(sorted(times)))
    state = _with(_ask(state, picked), taken=taken, selected=state.selected + len(new))
    current = state.round
    if current is None:
        return state
    update = {"asked": current.asked + len(new), "closed": current.closing == event.task}
    return _with(state, round=current.model_copy(update=update))


def _chosen(event: m.CandidatesSelected, choice: Chosen, purpose: Any) -> KnownFrame:
    return KnownFrame(
        ref=FrameRef(batch=event.batches[choice.batch], index=choice.index, key=choice.key),
        purpose=purpose,
        stage=event.stage,
        version=choice.version,
        origin=choice.trajectory,
        weight=choice.weight,
    )


# ------------------------------------------------------------------------------- verdicts


def _audited(state: State, event: m.AuditDone) -> State:
    task = state.tasks.get(event.task)
    if task is None or not is_live(task):
        return state
    state = _settle(state, task, "done")
    if state.round is None or event.version != state.version:
        return state
    plain = event.model_copy(update={"time": 0.0, "cause": None, "seconds": 0.0, "id": ""})
    ratio = event.deviation_over_error if state.cold_version == state.version else state.ratio
    fell = state.ratio is not None and event.deviation_over_error < state.ratio * 2 / 3
    return _with(
        state,
        round=state.round.model_copy(update={"audited": True}),
        stage=state.stage.model_copy(update={"audit": plain}),
        ratio=ratio,
        force_cold=state.force_cold or (fell and state.cold_version != state.version),
    )


def _round_judged(state: State, decision: m.RoundJudged) -> State:
    good = state.stage.good + 1 if decision.outcome == "passed" else 0
    asked = state.round.asked if state.round else 0
    barren = 0 if asked or good else state.stage.barren + 1
    stage = state.stage.model_copy(update={"good": good, "barren": barren})
    suspect = good >= state.spec.convergence.rounds and state.cold_version != state.version
    drained: dict[str, Any] = (
        {"pool": Map(), "pool_new": 0} if state.spec.mode == "lockstep" else {}
    )
    return _with(
        state,
        stage=stage,
        round=None,
        verdict=_timeless(decision),
        force_cold=state.force_cold or suspect,
        taken=Map(),
        selected=0,
        **drained,
    )


def _trust_changed(state: State, decision: m.TrustChanged) -> State:
    return _with(state, stage=state.stage.model_copy(update={"trust": decision.trust}))


def _stage_ended(state: State, decision: m.StageEnded) -> State:
    following = StageState(index=state.stage.index + 1)
    return _with(
        state,
        ended=(*state.ended, _timeless(decision)),
        stage=following,
        round=None,
        verdict=None,
        pool=Map(),
        pool_new=0,
        stale=Map(),
    )


def _verified(state: State, event: m.Verified) -> State:
    task = state.tasks.get(event.task)
    if task is None or not is_live(task):
        return state
    return _with(_settle(state, task, "done"), verified=event)


def _paused(state: State, decision: m.CampaignPaused) -> State:
    return _with(state, paused=decision.why)


def _resumed(state: State, event: m.CampaignResumed) -> State:
    return _with(state, paused=None) if state.paused is not None else state


def _finished(state: State, decision: m.CampaignFinished) -> State:
    return _with(state, finished=_timeless(decision))


ISSUED: dict[type[m.Command], Callable[[State, Any], State]] = {
    m.Train: _train_issued,
    m.Explore: _explore_issued,
    m.Judge: _judge_issued,
    m.Select: _select_issued,
    m.Label: _label_issued,
}

EVOLVE: dict[type[m.Message], Callable[[State, Any], State]] = {
    m.CampaignSubmitted: _submitted,
    **dict.fromkeys(get_args(m.AnyCommand), _issued),
    m.TaskClaimed: _claimed,
    m.TaskReleased: _lost(held_against=False),
    m.TaskFailed: _lost(held_against=True),
    m.LeaseLapsed: _lost(held_against=True),
    m.TaskRevoked: _revoked,
    m.CheckpointSaved: _checkpointed,
    m.MemberTrained: _trained,
    m.ChunkExplored: _chunk,
    m.FramesJudged: _rejudged,
    m.CandidatesSelected: _selected,
    m.LabelsDone: _labelled,
    m.ReferenceDone: _reference_done,
    m.AuditDone: _audited,
    m.Verified: _verified,
    m.ManifestFrozen: _manifest,
    m.TrainingJudged: _training_judged,
    m.ModelsReady: _models_ready,
    m.RoundJudged: _round_judged,
    m.TrustChanged: _trust_changed,
    m.StageEnded: _stage_ended,
    m.TaskCancelled: _cancelled,
    m.TaskAbandoned: _abandoned,
    m.CampaignPaused: _paused,
    m.CampaignResumed: _resumed,
    m.CampaignFinished: _finished,
}
