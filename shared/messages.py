"""The vocabulary, in loop order: every command and event that crosses the bus.

Commands are imperatives and go to one work queue; events are past tense and go to whoever listens.
All are frozen, carry references instead of arrays, and stay under 64 KB on the wire. What is true
of every message of a class (its queue, its service, its publishers) stands on the class; access
roles, the codec, AsyncAPI, the policy and all views derive it from there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Literal, TypeVar, get_args

from pydantic import Field, field_validator

from dpstream.shared.values import (
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

Service = Literal["trainer", "explorer", "labeler"]
"""A worker service, which runs commands and publishes their results."""
SERVICES: tuple[Service, ...] = get_args(Service)
Publisher = Service | Literal["coordinator", "operator", "generator"]
"""A role that publishes events (`dpstream.shared.access`)."""
LEDGER_ONLY: tuple[Publisher, ...] = ()
"""Publishers of an event that the coordinator writes to the ledger and does not publish."""
M = TypeVar("M", bound="Message")


class Message(Value):
    """What every message carries. `cause` is the id of the message that led to this one; `time`
    is seconds since the epoch (UTC) at its writer's clock."""

    id: str
    campaign: Name
    time: float
    cause: str | None = None

    def describe(self) -> str:
        """The message's content on one line of `dpstream logs`."""
        return str(getattr(self, "reason", "") or getattr(self, "why", ""))


class Event(Message):
    """What has happened."""

    PUBLISHERS: ClassVar[tuple[Publisher, ...]]
    """Roles that may publish it."""


# ---------------------------------------------------------------------------- the campaign begins


class CampaignSubmitted(Event):
    """A frozen spec and its initial data have been stored. All of it is in the campaign's
    `submitted.json`; over the bus it goes without the lists of frames, which have no bound."""

    PUBLISHERS = ("operator",)
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

    def describe(self) -> str:
        return f"{len(self.frames)} frames to label, recipe {self.recipe.code}"


class StructuresProposed(Event):
    """An external generator offers frames, written out in `frames` (small ones) or as an object
    under `campaigns/<campaign>/proposals/`: a `.npz` batch or `.extxyz`. *screen*: the committee
    judges them, and what it disagrees on waits to be chosen like any candidate; *label*: they go
    straight to labeling. The same frames under the same correlation are the same proposal.
    `time` is set anew by who hears it."""

    PUBLISHERS = ("generator",)
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

    def describe(self) -> str:
        count = self.count if self.batch else len(self.frames)
        return f"{self.generator}, {self.correlation}: {count} to {self.mode}"


# ---------------------------------------------------------------------------- commands


class Command(Message):
    """Work for one worker. `attempt` counts issues of the same task; every attempt writes under a
    folder of its own."""

    SERVICE: ClassVar[Service]
    """The service that runs it."""
    QUEUE: ClassVar[str]
    """The work queue; `{}` is filled by `capability`."""

    task: TaskId
    attempt: int = Field(default=1, ge=1)
    title: str = Field(description="for people: what this task is")
    max_seconds: float
    spec: Ref


class Train(Command):
    """Train one member of a committee."""

    SERVICE = "trainer"
    QUEUE = "train"
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

    SERVICE = "explorer"
    QUEUE = "explore"
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

    SERVICE = "explorer"
    QUEUE = "judge"
    type: Literal["judge/1"] = "judge/1"
    committee: Ref
    version: int
    trust: Trust
    pool: tuple[PoolItem, ...] = Field(default=(), max_length=60)
    frames: tuple[FrameRef, ...] = Field(default=(), max_length=60)


class Screen(Command):
    """Check frames that a generator offers and, with a committee, judge them by it."""

    SERVICE = "explorer"
    QUEUE = "judge"
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

    SERVICE = "explorer"
    QUEUE = "judge"
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

    SERVICE = "labeler"
    QUEUE = "label.{}"
    type: Literal["label/1"] = "label/1"
    capability: Name
    recipe: str
    frames: tuple[FrameRef, ...]
    priority: int = Field(default=0, description="higher first")


class Reference(Command):
    """Run reference-driven molecular dynamics and keep spaced frames as the held-out test set."""

    SERVICE = "labeler"
    QUEUE = "label.{}"
    type: Literal["reference/1"] = "reference/1"
    capability: Name
    recipe: str
    structure: FrameRef
    trajectory: int
    seed: int


class Audit(Command):
    """Measure a committee's true error on labelled audit frames."""

    SERVICE = "explorer"
    QUEUE = "judge"
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

    SERVICE = "explorer"
    QUEUE = "judge"
    type: Literal["measure/1"] = "measure/1"
    committee: Ref
    version: int
    points: Ref = Field(description="dataset manifest; origins: number of the property")


class Verify(Command):
    """Run the final model alone at constant energy, measure it on the held-out set, and compare
    its properties with those by the recipe."""

    SERVICE = "explorer"
    QUEUE = "explore"
    type: Literal["verify/1"] = "verify/1"
    model: Ref
    type_map: tuple[str, ...]
    structure: FrameRef
    seed: int
    test: Ref | None = None
    points: Ref | None = Field(default=None, description="as measure has them")


# ---------------------------------------------------------------------------- events about tasks


class TaskEvent(Event):
    task: TaskId
    attempt: int


class TaskClaimed(TaskEvent):
    PUBLISHERS = SERVICES
    type: Literal["task-claimed/1"] = "task-claimed/1"
    worker: str

    def describe(self) -> str:
        return f"by {self.worker}"


class TaskHeartbeat(TaskEvent):
    """Neither ledgered nor decided upon."""

    PUBLISHERS = SERVICES
    type: Literal["task-heartbeat/1"] = "task-heartbeat/1"
    worker: str
    progress: str = ""


class TaskReleased(TaskEvent):
    """The worker gave the task back, through no fault of the task."""

    PUBLISHERS = SERVICES
    type: Literal["task-released/1"] = "task-released/1"
    reason: str
    delay: float = 0.0


class TaskFailed(TaskEvent):
    PUBLISHERS = SERVICES
    type: Literal["task-failed/1"] = "task-failed/1"
    permanent: bool
    reason: str
    trace: str = ""


class LeaseLapsed(TaskEvent):
    """Said by the coordinator's own edge: no heartbeat for a whole lease."""

    PUBLISHERS = LEDGER_ONLY
    type: Literal["lease-lapsed/1"] = "lease-lapsed/1"


class TaskRevoked(TaskEvent):
    """Said by the coordinator's own edge: it won the claim of a task nobody had started."""

    PUBLISHERS = LEDGER_ONLY
    type: Literal["task-revoked/1"] = "task-revoked/1"


class CheckpointSaved(TaskEvent):
    PUBLISHERS = ("trainer",)
    type: Literal["checkpoint-saved/1"] = "checkpoint-saved/1"
    checkpoint: Ref
    step: int


# ---------------------------------------------------------------------------- results


class Result(TaskEvent):
    """A terminal event: the first accepted one of a task stands. `seconds` is time worked."""

    ANSWERS: ClassVar[type[Command]]
    """The command it is the result of, whose service publishes it."""

    seconds: float = 0.0

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        if "ANSWERS" in vars(cls):
            cls.PUBLISHERS = (cls.ANSWERS.SERVICE,)


class Chunk(Result):
    """One of several results of a task, which ends when the one that is `last` and all before it
    are in."""

    chunk: int = 0
    last: bool = True


class MemberTrained(Result):
    ANSWERS = Train
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

    def describe(self) -> str:
        return f"{self.steps} steps, force RMSE {self.train.force:.3g} eV/Å"


class ModelsReady(Event):
    """A committee is complete. Also stored as `campaigns/<c>/committees/<version>.json`."""

    PUBLISHERS = ("coordinator",)
    type: Literal["models-ready/1"] = "models-ready/1"
    committee: Committee
    manifest: Ref
    labels: int

    def describe(self) -> str:
        return f"committee {self.committee.version}, {self.labels} labels"


class ChunkExplored(Chunk):
    """One chunk of a trajectory. `histogram` counts frames by deviation, in the bins `BINS` of
    `atoms/deviation.py`. `dropped`: planned checks never made because the trajectory stopped early;
    they count as failed."""

    ANSWERS = Explore
    # The second tag is the name up to 0.1: it is read, and workers may publish it, until 0.3.
    type: Literal["chunk-explored/1", "candidates-found/1"] = "chunk-explored/1"
    version: int
    counts: Counts
    dropped: int = 0
    stopped: str | None = None
    uniform: bool = Field(default=True, description="one version from the trajectory's start on")
    candidates: PoolItem | None = None
    reservoir: PoolItem | None = None
    restart: Ref | None = None
    histogram: tuple[int, ...]

    @field_validator("type")
    @classmethod
    def _renamed(cls, tag: str) -> str:
        return "chunk-explored/1"

    def describe(self) -> str:
        counts = self.counts
        never = f", {self.dropped} never made" if self.dropped else ""
        return (
            f"chunk {self.chunk}: {counts.accurate} accurate, {counts.candidate} candidate, "
            f"{counts.failed} failed{never}"
        )


class FramesJudged(Result):
    """Waiting candidates after a new verdict: `pool` holds what remains of them. `accurate` names
    those of the command's `frames` that need no label any more. `offered`: what became of frames
    from generators that are no candidates any more."""

    ANSWERS = Judge
    type: Literal["frames-judged/1"] = "frames-judged/1"
    version: int
    pool: tuple[PoolItem, ...]
    counts: Counts
    accurate: tuple[FrameKey, ...] = ()
    offered: dict[FrameKey, Literal["accurate", "failed"]] = Field(default={})


class StructuresScreened(Result):
    """The judge's word on a proposal. `batches` keep the frames that `found` refers to; `refused`:
    why none of them could be looked at."""

    ANSWERS = Screen
    type: Literal["structures-screened/1"] = "structures-screened/1"
    version: int
    batches: tuple[Ref, ...] = ()
    found: tuple[Screened, ...] = ()
    refused: str = ""

    def describe(self) -> str:
        return self.refused or _counted(self.found)


class CandidatesSelected(Chunk):
    """What a select task chose, in as many chunks as it takes to name it all. `refused` and
    `refusals`, of the whole pool, come with the last."""

    ANSWERS = Select
    type: Literal["candidates-selected/1"] = "candidates-selected/1"
    version: int
    stage: int
    batches: tuple[Ref, ...] = ()
    labels: tuple[Chosen, ...] = ()
    audits: tuple[Chosen, ...] = ()
    refused: dict[str, int] = Field(default={}, description="candidates not taken, by reason")
    refusals: Ref | None = Field(default=None, description="JSON object: RefusedFrames")

    def describe(self) -> str:
        return f"{len(self.labels)} to train on, {len(self.audits)} for the audit"


class LabelsDone(Result):
    ANSWERS = Label
    type: Literal["labels-done/1"] = "labels-done/1"
    accepted: tuple[Accepted, ...] = ()
    rejected: tuple[Rejected, ...] = ()

    def describe(self) -> str:
        rejected = "".join(f"; {r.key[:8]} rejected by {r.rule}: {r.detail}" for r in self.rejected)
        return f"{len(self.accepted)} accepted in {self.seconds:.3g} s{rejected}"


class ReferenceDone(Result):
    """Held-out labelled frames of one reference trajectory, as a labelled batch."""

    ANSWERS = Reference
    type: Literal["reference-done/1"] = "reference-done/1"
    trajectory: int
    pack: Ref
    frames: int


class AuditDone(Result):
    """Force RMSE (eV/Å) of the committee on audit frames it does not judge failed, and
    P(max-atom error > target | accurate), each with its bootstrap 95 % upper bound over
    trajectories. `deviation_over_error` is mean ε / mean ε̂."""

    ANSWERS = Audit
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

    def describe(self) -> str:
        return (
            f"force RMSE {self.force:.3g}, up to {self.force_upper:.3g} eV/Å, "
            f"on {self.frames} frames of {self.trajectories} trajectories"
        )


class Measured(Result):
    ANSWERS = Measure
    type: Literal["measured/1"] = "measured/1"
    version: int
    properties: tuple[Compared, ...]

    def describe(self) -> str:
        numbers = (f"{p.name} {_number(p.model)}, {_number(p.recipe)}" for p in self.properties)
        return f"by committee {self.version} and by the recipe: {'; '.join(numbers)}"


class Verified(Result):
    ANSWERS = Verify
    type: Literal["verified/1"] = "verified/1"
    stable: bool
    drift: float = Field(description="total-energy drift, eV per atom per ps")
    length_ps: float
    detail: str = ""
    test: Rmse | None = None
    properties: tuple[Compared, ...] = ()

    def describe(self) -> str:
        return f"{'stable' if self.stable else 'not stable'} {self.detail}"


# --------------------------------------------------------------------------- the coordinator's word


class ManifestFrozen(Event):
    """A list too long for a message, stored under its key before anything refers to it."""

    PUBLISHERS = LEDGER_ONLY
    type: Literal["manifest-frozen/1"] = "manifest-frozen/1"
    purpose: Literal[
        "dataset", "audit", "pairs", "test", "pool", "committee", "proposal", "points", "known"
    ]
    manifest: Ref
    body: str


class TrainingJudged(Event):
    """Whether a committee learned what its dataset has to teach. *training-limited*: its error on
    its own training frames is too high, and longer training may help; *label-noise-limited*:
    longer training did not."""

    PUBLISHERS = LEDGER_ONLY
    type: Literal["training-judged/1"] = "training-judged/1"
    version: int
    verdict: Literal["sound", "training-limited", "label-noise-limited"]
    force: float = Field(description="largest training force RMSE of a member, eV/Å")
    lengthen: float = Field(description="factor on the steps from now on")
    why: str

    def describe(self) -> str:
        return f"{self.verdict}: {self.why}"


class RoundJudged(Event):
    """One committee version has been tried on every condition of its stage."""

    PUBLISHERS = LEDGER_ONLY
    type: Literal["round-judged/1"] = "round-judged/1"
    stage: int
    round: int
    version: int
    counts: dict[str, Counts] = Field(description="by condition")
    outcome: Literal["passed", "failed", "stuck"]
    why: str

    def describe(self) -> str:
        return f"round {self.round} {self.outcome}: {self.why}"


class StructuresJudged(Event):
    """What became of frames that a generator offered. `refused`: why none of the proposal's `count`
    frames from index `first` on was looked at. `version`: the committee that judged, 0 for none."""

    PUBLISHERS = ("coordinator",)
    type: Literal["structures-judged/1"] = "structures-judged/1"
    generator: Name
    correlation: Correlation
    proposal: str
    version: int
    verdicts: tuple[FrameVerdict, ...] = ()
    refused: str = ""
    first: int = 0
    count: int = 0

    def describe(self) -> str:
        return f"{self.generator}, {self.correlation}: {self.refused or _counted(self.verdicts)}"


class TrustChanged(Event):
    PUBLISHERS = LEDGER_ONLY
    type: Literal["trust-changed/1"] = "trust-changed/1"
    stage: int
    version: int
    trust: Trust
    why: str

    def describe(self) -> str:
        return f"{self.trust.low:.3g} and {self.trust.high:.3g}: {self.why}"


class StageEnded(Event):
    PUBLISHERS = ("coordinator",)
    type: Literal["stage-ended/1"] = "stage-ended/1"
    stage: int
    verdict: Literal["converged", "explored", "stuck", "out-of-budget"] = Field(
        description="explored: once, as asked, without converging"
    )
    why: str

    def describe(self) -> str:
        return f"stage {self.stage + 1} {self.verdict}: {self.why}"


class TaskCancelled(Event):
    """Not wanted any more. The edge revokes the task by winning its claim, or else asks the
    worker to stop through `claims/<task>/<attempt>.stop`."""

    PUBLISHERS = LEDGER_ONLY
    type: Literal["task-cancelled/1"] = "task-cancelled/1"
    task: TaskId
    attempt: int
    why: str


class TaskAbandoned(Event):
    PUBLISHERS = LEDGER_ONLY
    type: Literal["task-abandoned/1"] = "task-abandoned/1"
    task: TaskId
    title: str
    why: str


class CampaignPaused(Event):
    """Something needs a person: an event that could not be processed, or a task the campaign
    cannot do without; or a person says so. Only this campaign waits."""

    PUBLISHERS = ("coordinator", "operator")
    type: Literal["campaign-paused/1"] = "campaign-paused/1"
    why: str
    trace: str = ""


class CampaignResumed(Event):
    """Said by a person: go on, and try abandoned tasks once more."""

    PUBLISHERS = ("operator",)
    type: Literal["campaign-resumed/1"] = "campaign-resumed/1"


class CampaignCancelled(Event):
    """Said by a person: end it. What is computed stays."""

    PUBLISHERS = ("operator",)
    type: Literal["campaign-cancelled/1"] = "campaign-cancelled/1"
    why: str = Field(default="", max_length=2000)


class TasksRetried(Event):
    """Said by a person: give abandoned tasks another try. `tasks` names them; none means all."""

    PUBLISHERS = ("operator",)
    type: Literal["tasks-retried/1"] = "tasks-retried/1"
    tasks: tuple[TaskId, ...] = Field(default=(), max_length=500)

    def describe(self) -> str:
        return ", ".join(task[:8] for task in self.tasks) or "all"


class CampaignFinished(Event):
    PUBLISHERS = ("coordinator",)
    type: Literal["campaign-finished/1"] = "campaign-finished/1"
    verdict: Literal["converged", "not-converged", "cancelled"]
    why: str

    def describe(self) -> str:
        return f"{self.verdict}: {self.why}"


# ---------------------------------------------------------------------------- words and numbers


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _counted(verdicts: Iterable[FrameVerdict]) -> str:
    counts = Counter(each.verdict for each in verdicts)
    return ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))


# ---------------------------------------------------------------------------- all classes


def _concrete(base: type[M]) -> Iterator[type[M]]:
    """The classes below `base` that have a type tag, in the order of their definitions."""
    for kind in base.__subclasses__():
        if "type" in kind.model_fields:
            yield kind
        yield from _concrete(kind)


COMMANDS: tuple[type[Command], ...] = tuple(_concrete(Command))
EVENTS: tuple[type[Event], ...] = tuple(_concrete(Event))
RESULTS: tuple[type[Result], ...] = tuple(_concrete(Result))


def commands_of(service: Service) -> tuple[type[Command], ...]:
    """The commands that a service runs."""
    return tuple(kind for kind in COMMANDS if service == kind.SERVICE)


def tags_of(kind: type[Message]) -> tuple[str, ...]:
    """The type tags that are read as this class; the first is the one that is written."""
    return get_args(kind.model_fields["type"].annotation)
