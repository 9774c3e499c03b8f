"""The vocabulary, in loop order: every command and event that crosses the bus.

Commands are imperatives and go to one work queue; events are past tense and go to whoever listens.
All are frozen, carry references instead of arrays, and stay under 64 KB on the wire.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from shared.values import (
    Accepted,
    Chosen,
    Committee,
    Compared,
    Condition,
    Correlation,
    Counts,
    FileName,
    FrameKey,
    FrameRef,
    FrameVerdict,
    Name,
    OfferedFrame,
    PoolItem,
    Recipe,
    Ref,
    Rejected,
    Rmse,
    Screened,
    TaskId,
    Trust,
    Value,
)


class Message(Value):
    """What every message carries. `cause` is the id of the message that led to this one; `time`
    is seconds since the epoch (UTC) at its writer's clock."""

    id: str
    campaign: Name
    time: float
    cause: str | None = None


# ---------------------------------------------------------------------------- the campaign begins


class CampaignSubmitted(Message):
    """A frozen spec and its initial data have been stored. All of it is in the campaign's
    `submitted.json`; over the bus it goes without the lists of frames, which have no bound."""

    type: Literal["campaign-submitted/1"] = "campaign-submitted/1"
    spec: Ref
    packs: tuple[Ref, ...] = Field(default=(), description="imported labelled batches")
    pack_frames: int = 0
    frames: tuple[FrameRef, ...] = Field(default=(), description="to be labelled before version 1")
    systems: dict[str, tuple[FrameRef, ...]] = Field(
        default={}, description="starting structures by system"
    )
    test: Ref | None = Field(default=None, description="held-out set, as a dataset manifest")
    atoms: dict[str, int] = Field(description="atoms per frame, by system")
    recipe: Recipe
    files: dict[FileName, Ref] = Field(
        default={}, description="what trainings are given: models to begin from, a table"
    )
    points: tuple[tuple[FrameRef, ...], ...] = Field(
        default=(), description="structures of each of the spec's `verification.properties`"
    )


class StructuresProposed(Message):
    """An external generator offers frames, written out in `frames` (small ones) or as an object
    under `campaigns/<campaign>/proposals/`: a `.npz` batch or `.extxyz`. *screen*: the committee
    judges them, and what it disagrees on waits to be chosen like any candidate; *label*: they go
    straight to labeling. The same frames under the same correlation are the same proposal.
    `time` is set anew by who hears it."""

    type: Literal["structures-proposed/1"] = "structures-proposed/1"
    id: str = Field(max_length=100)
    generator: Name
    correlation: Correlation
    mode: Literal["screen", "label"] = "screen"
    priority: int = Field(default=0, description="of labels: higher first; the campaign's own: 0")
    first: int = Field(default=0, ge=0, description="index of the first frame in the proposal")
    frames: tuple[OfferedFrame, ...] = Field(default=(), max_length=1000)
    batch: Ref | None = None
    count: int = Field(default=0, ge=0, description="frames in `batch`")


# ---------------------------------------------------------------------------- commands


class Command(Message):
    """Work for one worker. `attempt` counts issues of the same task; every attempt writes under a
    folder of its own."""

    QUEUE: ClassVar[str]
    """The work queue; `{}` is filled by `capability`."""

    task: TaskId
    attempt: int = Field(default=1, ge=1)
    title: str = Field(description="for people: what this task is")
    max_seconds: float
    spec: Ref


class Train(Command):
    """Train one member of a committee."""

    QUEUE: ClassVar[str] = "train"
    type: Literal["train/1"] = "train/1"
    version: int
    member: int
    seed: int
    dataset: Ref
    steps: int
    start: Ref | None = Field(default=None, description="checkpoint for a warm start")
    resume: Ref | None = Field(default=None, description="checkpoint of an earlier attempt")
    audit: Ref | None = None
    test: Ref | None = None
    final: bool = False
    files: dict[FileName, Ref] = Field(default={}, description="as campaign-submitted has them")


class Explore(Command):
    """Run one trajectory and judge its frames. `pinned`: one committee version from start to end
    in one chunk (lockstep); otherwise the worker moves to a newer committee between chunks."""

    QUEUE: ClassVar[str] = "explore"
    type: Literal["explore/1"] = "explore/1"
    committee: Ref
    version: int
    stage: int
    trajectory: str = Field(description="its name, the same in every campaign of the same spec")
    condition: Condition
    structure: FrameRef
    seed: int
    driver: int = Field(description="committee member that drives the dynamics")
    trust: Trust
    pinned: bool
    from_chunk: int = 0
    resume: Ref | None = Field(default=None, description="restart file of the last accepted chunk")
    known: Ref | None = Field(
        default=None, description="JSON list of keys: frames that the engine `frames` leaves out"
    )


class Judge(Command):
    """Judge waiting candidates, and frames that wait for their label, by a newer committee."""

    QUEUE: ClassVar[str] = "judge"
    type: Literal["judge/1"] = "judge/1"
    committee: Ref
    version: int
    trust: Trust
    pool: tuple[PoolItem, ...] = Field(default=(), max_length=60)
    frames: tuple[FrameRef, ...] = Field(default=(), max_length=60)


class Screen(Command):
    """Check frames that a generator offers and, with a committee, judge them by it."""

    QUEUE: ClassVar[str] = "judge"
    type: Literal["screen/1"] = "screen/1"
    proposal: str
    frames: Ref = Field(description="JSON object `Offered`, a batch as `.npz`, or `.extxyz`")
    count: int
    first: int
    committee: Ref | None = None
    version: int = 0
    trust: Trust | None = None


class Select(Command):
    """Choose frames from a pool: filters, dedupe, spacing, batch policy, audit draw."""

    QUEUE: ClassVar[str] = "judge"
    type: Literal["select/1"] = "select/1"
    committee: Ref
    version: int
    stage: int
    seed: int
    pool: Ref = Field(description="JSON object: Pool")
    labels: int = Field(description="at most so many frames for training")
    per_system: int | None = None
    caps: dict[str, int] = Field(
        default={}, description="systems that get less than `per_system`, and how much"
    )
    audits: int = Field(description="at most so many frames for the audit")


class Label(Command):
    """Compute labels of a few frames by the campaign's recipe."""

    QUEUE: ClassVar[str] = "label.{}"
    type: Literal["label/1"] = "label/1"
    capability: Name
    recipe: str
    frames: tuple[FrameRef, ...]
    priority: int = Field(default=0, description="higher first")


class Reference(Command):
    """Run reference-driven molecular dynamics and keep spaced frames as the held-out test set."""

    QUEUE: ClassVar[str] = "label.{}"
    type: Literal["reference/1"] = "reference/1"
    capability: Name
    recipe: str
    structure: FrameRef
    trajectory: int
    seed: int


class Audit(Command):
    """Measure a committee's true error on labelled audit frames."""

    QUEUE: ClassVar[str] = "judge"
    type: Literal["audit/1"] = "audit/1"
    committee: Ref
    version: int
    stage: int
    trust: Trust
    audit: Ref = Field(description="dataset manifest")
    pairs: Ref | None = Field(
        default=None, description="labels of this round, not yet trained on: calibrates levels"
    )
    seed: int


class Measure(Command):
    """Compare properties by a committee's mean with those by the recipe."""

    QUEUE: ClassVar[str] = "judge"
    type: Literal["measure/1"] = "measure/1"
    committee: Ref
    version: int
    points: Ref = Field(description="dataset manifest; origins: number of the property")


class Verify(Command):
    """Run the final model alone at constant energy, measure it on the held-out set, and compare
    its properties with those by the recipe."""

    QUEUE: ClassVar[str] = "explore"
    type: Literal["verify/1"] = "verify/1"
    model: Ref
    type_map: tuple[str, ...]
    structure: FrameRef
    seed: int
    test: Ref | None = None
    points: Ref | None = Field(default=None, description="as measure has them")


# ---------------------------------------------------------------------------- events about tasks


class TaskEvent(Message):
    task: TaskId
    attempt: int


class TaskClaimed(TaskEvent):
    type: Literal["task-claimed/1"] = "task-claimed/1"
    worker: str


class TaskHeartbeat(TaskEvent):
    """Neither ledgered nor decided upon."""

    type: Literal["task-heartbeat/1"] = "task-heartbeat/1"
    worker: str
    progress: str = ""


class TaskReleased(TaskEvent):
    """The worker gave the task back, through no fault of the task."""

    type: Literal["task-released/1"] = "task-released/1"
    reason: str
    delay: float = 0.0


class TaskFailed(TaskEvent):
    type: Literal["task-failed/1"] = "task-failed/1"
    permanent: bool
    reason: str
    trace: str = ""


class LeaseLapsed(TaskEvent):
    """Said by the coordinator's own edge: no heartbeat for a whole lease."""

    type: Literal["lease-lapsed/1"] = "lease-lapsed/1"


class TaskRevoked(TaskEvent):
    """Said by the coordinator's own edge: it won the claim of a task nobody had started."""

    type: Literal["task-revoked/1"] = "task-revoked/1"


class CheckpointSaved(TaskEvent):
    type: Literal["checkpoint-saved/1"] = "checkpoint-saved/1"
    checkpoint: Ref
    step: int


# ---------------------------------------------------------------------------- results


class Result(TaskEvent):
    """A terminal event: the first accepted one of a task stands. `seconds` is time worked."""

    seconds: float = 0.0


class Chunk(Result):
    """One of several results of a task, which ends when the one that is `last` and all before it
    are in."""

    chunk: int = 0
    last: bool = True


class MemberTrained(Result):
    type: Literal["member-trained/1"] = "member-trained/1"
    version: int
    member: int
    steps: int
    model: Ref = Field(description="compressed where the descriptor allows, else frozen")
    frozen: Ref
    compressed: bool
    checkpoint: Ref
    lcurve: Ref
    train: Rmse
    audit: Rmse | None = None
    test: Rmse | None = None


class ModelsReady(Message):
    """A committee is complete. Also stored as `campaigns/<c>/committees/<version>.json`."""

    type: Literal["models-ready/1"] = "models-ready/1"
    committee: Committee
    manifest: Ref
    labels: int


class ChunkExplored(Chunk):
    """One chunk of a trajectory. `histogram` counts frames by deviation in
    `shared.deviation.BINS`. `dropped`: planned checks never made because the trajectory was stopped
    early; they count as failed."""

    type: Literal["candidates-found/1"] = "candidates-found/1"
    version: int
    counts: Counts
    dropped: int = 0
    stopped: str | None = None
    uniform: bool = Field(default=True, description="one version from the trajectory's start on")
    candidates: PoolItem | None = None
    reservoir: PoolItem | None = None
    restart: Ref | None = None
    histogram: tuple[int, ...]


class FramesJudged(Result):
    """Waiting candidates after a new verdict: `pool` holds what remains of them. `accurate` names
    those of the command's `frames` that need no label any more. `offered`: what became of frames
    from generators that are no candidates any more."""

    type: Literal["frames-judged/1"] = "frames-judged/1"
    version: int
    pool: tuple[PoolItem, ...]
    counts: Counts
    accurate: tuple[FrameKey, ...] = ()
    offered: dict[FrameKey, Literal["accurate", "failed"]] = Field(default={})


class StructuresScreened(Result):
    """The judge's word on a proposal. `batches` keep the frames that `found` refers to; `refused`:
    why none of them could be looked at."""

    type: Literal["structures-screened/1"] = "structures-screened/1"
    version: int
    batches: tuple[Ref, ...] = ()
    found: tuple[Screened, ...] = ()
    refused: str = ""


class CandidatesSelected(Chunk):
    """What a select task chose, in as many chunks as it takes to name it all. `refused` and
    `refusals`, of the whole pool, come with the last."""

    type: Literal["candidates-selected/1"] = "candidates-selected/1"
    version: int
    stage: int
    batches: tuple[Ref, ...] = ()
    labels: tuple[Chosen, ...] = ()
    audits: tuple[Chosen, ...] = ()
    refused: dict[str, int] = Field(default={}, description="candidates not taken, by reason")
    refusals: Ref | None = Field(default=None, description="JSON object: RefusedFrames")


class LabelsDone(Result):
    type: Literal["labels-done/1"] = "labels-done/1"
    accepted: tuple[Accepted, ...] = ()
    rejected: tuple[Rejected, ...] = ()


class ReferenceDone(Result):
    """Held-out labelled frames of one reference trajectory, as a labelled batch."""

    type: Literal["reference-done/1"] = "reference-done/1"
    trajectory: int
    pack: Ref
    frames: int


class AuditDone(Result):
    """Force RMSE (eV/Å) of the committee on audit frames it does not judge failed, and
    P(max-atom error > target | accurate), each with its bootstrap 95 % upper bound over
    trajectories. `deviation_over_error` is mean ε / mean ε̂."""

    type: Literal["audit-done/1"] = "audit-done/1"
    version: int
    stage: int
    frames: int
    trajectories: int
    force: float
    force_upper: float
    exceed: float
    exceed_upper: float
    deviation_over_error: float
    pairs: Ref = Field(description="per frame: deviation, true error, weight, class")
    levels: tuple[float, float] | None = Field(
        default=None, description="calibrated low and high, where trust levels are `auto`"
    )
    levels_why: str = ""


class Measured(Result):
    type: Literal["measured/1"] = "measured/1"
    version: int
    properties: tuple[Compared, ...]


class Verified(Result):
    type: Literal["verified/1"] = "verified/1"
    stable: bool
    drift: float = Field(description="total-energy drift, eV per atom per ps")
    length_ps: float
    detail: str = ""
    test: Rmse | None = None
    properties: tuple[Compared, ...] = ()


# --------------------------------------------------------------------------- the coordinator's word


class ManifestFrozen(Message):
    """A list too long for a message, stored under its key before anything refers to it."""

    type: Literal["manifest-frozen/1"] = "manifest-frozen/1"
    purpose: Literal[
        "dataset", "audit", "pairs", "test", "pool", "committee", "proposal", "points", "known"
    ]
    manifest: Ref
    body: str


class TrainingJudged(Message):
    """Whether a committee learned what its dataset has to teach. *training-limited*: its error on
    its own training frames is too high, and longer training may help; *label-noise-limited*:
    longer training did not."""

    type: Literal["training-judged/1"] = "training-judged/1"
    version: int
    verdict: Literal["sound", "training-limited", "label-noise-limited"]
    force: float = Field(description="largest training force RMSE of a member, eV/Å")
    lengthen: float = Field(description="factor on the steps from now on")
    why: str


class RoundJudged(Message):
    """One committee version has been tried on every condition of its stage."""

    type: Literal["round-judged/1"] = "round-judged/1"
    stage: int
    round: int
    version: int
    counts: dict[str, Counts] = Field(description="by condition")
    outcome: Literal["passed", "failed", "stuck"]
    why: str


class StructuresJudged(Message):
    """What became of frames that a generator offered. `refused`: why none of the proposal's `count`
    frames from index `first` on was looked at. `version`: the committee that judged, 0 for none."""

    type: Literal["structures-judged/1"] = "structures-judged/1"
    generator: Name
    correlation: Correlation
    proposal: str
    version: int
    verdicts: tuple[FrameVerdict, ...] = ()
    refused: str = ""
    first: int = 0
    count: int = 0


class TrustChanged(Message):
    type: Literal["trust-changed/1"] = "trust-changed/1"
    stage: int
    version: int
    trust: Trust
    why: str


class StageEnded(Message):
    type: Literal["stage-ended/1"] = "stage-ended/1"
    stage: int
    verdict: Literal["converged", "explored", "stuck", "out-of-budget"] = Field(
        description="explored: once, as asked, without converging"
    )
    why: str


class TaskCancelled(Message):
    """Not wanted any more. The edge revokes the task by winning its claim, or else asks the
    worker to stop through `claims/<task>/<attempt>.stop`."""

    type: Literal["task-cancelled/1"] = "task-cancelled/1"
    task: TaskId
    attempt: int
    why: str


class TaskAbandoned(Message):
    type: Literal["task-abandoned/1"] = "task-abandoned/1"
    task: TaskId
    title: str
    why: str


class CampaignPaused(Message):
    """Something needs a person: an event that could not be processed, or a task the campaign
    cannot do without; or a person says so. Only this campaign waits."""

    type: Literal["campaign-paused/1"] = "campaign-paused/1"
    why: str
    trace: str = ""


class CampaignResumed(Message):
    """Said by a person: go on, and try abandoned tasks once more."""

    type: Literal["campaign-resumed/1"] = "campaign-resumed/1"


class CampaignCancelled(Message):
    """Said by a person: end it. What is computed stays."""

    type: Literal["campaign-cancelled/1"] = "campaign-cancelled/1"
    why: str = Field(default="", max_length=2000)


class TasksRetried(Message):
    """Said by a person: give abandoned tasks another try. `tasks` names them; none means all."""

    type: Literal["tasks-retried/1"] = "tasks-retried/1"
    tasks: tuple[TaskId, ...] = Field(default=(), max_length=500)


class CampaignFinished(Message):
    type: Literal["campaign-finished/1"] = "campaign-finished/1"
    verdict: Literal["converged", "not-converged", "cancelled"]
    why: str
