"""All commands and events on the bus, in the order of the learning loop.

Commands are imperatives and go to one work queue; events are in the past tense and go to all
subscribers. All are frozen, carry references instead of arrays, and stay under 64 KB on the wire.
Facts about a message class (its queue, its service, its publishers) are class attributes, from
which access roles, the codec, AsyncAPI, the policy and all views are derived.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Literal, TypeVar, get_args

from pydantic import Field, field_validator

from dpstream.shared.cross_check import CrossCheck
from dpstream.shared.values import (
    Accepted,
    Chosen,
    Committee,
    Compared,
    Condition,
    Correlation,
    Counts,
    DeviceFacts,
    FileName,
    FrameKey,
    FrameRef,
    FrameVerdict,
    ImportedSet,
    Name,
    OfferedFrame,
    PoolItem,
    Recipe,
    Ref,
    Rejected,
    Rmse,
    Screened,
    Sha256,
    TaskId,
    Trust,
    Value,
)

Service = Literal["trainer", "explorer", "labeler"]
"""A worker service: runs commands and publishes their results."""
SERVICES: tuple[Service, ...] = get_args(Service)
Publisher = Service | Literal["coordinator", "operator", "generator"]
"""A role that publishes events (`dpstream.shared.access`)."""
LEDGER_ONLY: tuple[Publisher, ...] = ()
"""Publishers of an event that the coordinator writes to the ledger and does not publish."""
MOST_ATTEMPTS = 1_000_000
"""A number beyond it is no attempt, and would make keys that are too long."""
M = TypeVar("M", bound="Message")


class Message(Value):
    """Base of all messages. `cause` is the id of the message that led to this one; `time` is
    seconds since the epoch (UTC) by the publisher's clock."""

    id: str
    campaign: Name
    time: float
    cause: str | None = None

    def describe(self) -> str:
        """The message's content on one line of `dpstream logs`."""
        return str(getattr(self, "reason", "") or getattr(self, "why", ""))


class Event(Message):
    """Something that happened."""

    PUBLISHERS: ClassVar[tuple[Publisher, ...]]
    """Roles that may publish the event."""


# ---------------------------------------------------------------------------- the campaign begins


class CampaignSubmitted(Event):
    """A frozen spec and its initial data have been stored. The campaign's `submitted.json` holds
    the complete message; on the bus it omits the lists of frames, whose length is unbounded."""

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
    # Left out where it is empty, as in the ledgers of earlier releases.
    imported: tuple[ImportedSet, ...] = Field(
        default=(), exclude_if=lambda value: not value, description="sources of the imported labels"
    )
    atoms: dict[str, int] = Field(description="atoms per frame, by system")
    recipe: Recipe
    files: dict[FileName, Ref] = Field(
        default={}, description="files for training: initial models, repulsion table"
    )
    points: tuple[tuple[FrameRef, ...], ...] = Field(
        default=(), description="structures of each of the spec's `verification.properties`"
    )
    # Both as `imported`.
    cross_check: CrossCheck | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="imported labels that are computed again before anything else",
    )
    reference_points: int = Field(
        default=0,
        ge=0,
        exclude_if=lambda value: not value,
        description="single points of the reference dynamics, which count as labels in the budget",
    )

    def describe(self) -> str:
        return f"{len(self.frames)} frames to label, recipe {self.recipe.code}"


class CampaignAmended(Event):
    """An operator changes the plan of a campaign. On the bus the message omits the spec and the
    lists, whose length is unbounded; the object `complete` holds all of it. The coordinator
    replaces `author` on receipt where the broker states users."""

    PUBLISHERS = ("operator",)
    type: Literal["campaign-amended/1"] = "campaign-amended/1"
    id: str = Field(max_length=100)
    follows: int = Field(
        ge=1, description="number of the plan that it changes; the submitted one is 1"
    )
    author: str = Field(default="", max_length=200)
    complete: Ref | None = Field(default=None, description="the complete message, as an object")
    spec: dict[str, Any] = Field(default={}, description="the amended spec, with all its defaults")
    systems: dict[str, tuple[FrameRef, ...]] = Field(
        default={}, description="starting structures of the systems that it adds"
    )
    atoms: dict[str, int] = Field(default={}, description="atoms per frame of these systems")
    frames: tuple[FrameRef, ...] = Field(
        default=(), description="frames of these systems to be labelled at once"
    )

    def describe(self) -> str:
        return f"of plan {self.follows}, by {self.author or 'an operator'}"


class StructuresProposed(Event):
    """An external generator offers frames, either inline in `frames` or as an object under
    `campaigns/<campaign>/proposals/` (a `.npz` batch or `.extxyz`). *screen*: the committee judges
    the frames, and those it disagrees on join the candidates; *label*: the frames go straight to
    labeling. The same frames under the same correlation are the same proposal. The coordinator
    replaces `time` and `user` on receipt."""

    PUBLISHERS = ("generator",)
    type: Literal["structures-proposed/1"] = "structures-proposed/1"
    id: str = Field(max_length=100)
    generator: Name
    correlation: Correlation
    mode: Literal["screen", "label"] = "screen"
    priority: int = Field(
        default=0,
        description="priority of the labels, higher first; the campaign's own labels have 0",
    )
    first: int = Field(default=0, ge=0, description="index of the first frame in the proposal")
    frames: tuple[OfferedFrame, ...] = Field(default=(), max_length=1000)
    batch: Ref | None = None
    count: int = Field(default=0, ge=0, description="frames in `batch`")
    # Left out where it is None, as in the ledgers of earlier releases.
    user: str | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="user of the generator at the broker; limits apply to each user, or to each "
        "`generator` where the broker states no users",
    )

    def describe(self) -> str:
        count = self.count if self.batch else len(self.frames)
        return f"{generator_of(self)}, {self.correlation}: {count} to {self.mode}"


# ---------------------------------------------------------------------------- commands


class Command(Message):
    """A task for one worker. `attempt` counts the issues of the same task; every attempt writes to
    its own folder."""

    SERVICE: ClassVar[Service]
    """The service that runs the command."""
    QUEUE: ClassVar[str]
    """The work queue; `{}` is filled by `capability`."""
    STUCK_AFTER: ClassVar[float] = 3600.0
    """Seconds without progress after which an attempt counts as stuck, whose worker ends it:
    without a step, a frame, bytes read or, of a training or a label, processor time. Workers may
    set another limit; none is below the lease."""

    task: TaskId
    attempt: int = Field(default=1, ge=1, le=MOST_ATTEMPTS)
    title: str = Field(description="human-readable description of the task")
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
    files: dict[FileName, Ref] = Field(default={}, description="as in campaign-submitted")
    # Both are left out where the spec states a number, as `Label.resume`.
    batch_atoms: int | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="atoms of a batch; None: as the spec states",
    )
    rate: float = Field(
        default=1.0,
        gt=0,
        exclude_if=lambda value: value == 1.0,
        description="factor on the learning rate",
    )


class Explore(Command):
    """Run one trajectory and judge its frames. `pinned`: one committee version throughout, in a
    single chunk (lockstep); otherwise the worker switches to newer committees between chunks."""

    SERVICE = "explorer"
    QUEUE = "explore"
    type: Literal["explore/1"] = "explore/1"
    committee: Ref
    version: int
    stage: int
    trajectory: str = Field(
        description="name of the trajectory, the same in every campaign of the same spec"
    )
    condition: Condition
    structure: FrameRef
    seed: int
    driver: int = Field(description="committee member that drives the dynamics")
    trust: Trust
    pinned: bool
    from_chunk: int = 0
    resume: Ref | None = Field(default=None, description="restart file of the last accepted chunk")
    known: Ref | None = Field(
        default=None, description="JSON list of frame keys that the engine `frames` skips"
    )


class Judge(Command):
    """Judge candidates of the pool and frames pending a label again, with a newer committee."""

    SERVICE = "explorer"
    QUEUE = "judge"
    STUCK_AFTER = 1800.0
    type: Literal["judge/1"] = "judge/1"
    committee: Ref
    version: int
    trust: Trust
    pool: tuple[PoolItem, ...] = Field(default=(), max_length=60)
    frames: tuple[FrameRef, ...] = Field(default=(), max_length=60)


class Screen(Command):
    """Check the frames that a generator offers and judge them with a committee, if there is one."""

    SERVICE = "explorer"
    QUEUE = "screen"
    STUCK_AFTER = 1800.0
    type: Literal["screen/1"] = "screen/1"
    proposal: str
    frames: Ref = Field(description="JSON object `Offered`, a batch as `.npz`, or `.extxyz`")
    count: int
    first: int
    committee: Ref | None = None
    version: int = 0
    trust: Trust | None = None


class Select(Command):
    """Choose frames from a pool: geometry filters, deduplication, spacing, policy, audit draw."""

    SERVICE = "explorer"
    QUEUE = "judge"
    STUCK_AFTER = 1800.0
    type: Literal["select/1"] = "select/1"
    committee: Ref
    version: int
    stage: int
    seed: int
    pool: Ref = Field(description="JSON object: Pool")
    labels: int = Field(description="maximum number of frames for training")
    per_system: int | None = None
    caps: dict[str, int] = Field(
        default={}, description="lower limits than `per_system`, by system"
    )
    audits: int = Field(description="maximum number of frames for the audit")


class Label(Command):
    """Label a few frames by the campaign's recipe."""

    SERVICE = "labeler"
    QUEUE = "label.{}"
    type: Literal["label/1"] = "label/1"
    capability: Name
    recipe: str
    frames: tuple[FrameRef, ...]
    priority: int = Field(default=0, description="higher first")
    # Left out where it is None: labelers of 0.1, which do not know it, still read such commands.
    resume: Ref | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="restart files of the frame that an earlier attempt was computing",
    )
    distrusted: tuple[str, ...] = Field(
        default=(),
        exclude_if=lambda value: not value,
        description="writers whose labels are not used again, because one of them was wrong; "
        "'': of labels without signature",
    )


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


class CheckLabel(Command):
    """Compute a label anew that was reused or imported, and compare the two."""

    SERVICE = "labeler"
    QUEUE = "label.{}"
    type: Literal["check-label/1"] = "check-label/1"
    capability: Name
    recipe: str
    frame: FrameRef
    label: Ref


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
        default=None,
        description="labels of this round, not yet trained on; used to calibrate trust levels",
    )
    seed: int


class Measure(Command):
    """Compare properties computed by the committee's mean with those computed by the recipe."""

    SERVICE = "explorer"
    QUEUE = "judge"
    type: Literal["measure/1"] = "measure/1"
    committee: Ref
    version: int
    points: Ref = Field(description="dataset manifest; origins: number of the property")


class Verify(Command):
    """Run the final model at constant energy, measure its errors on the held-out set, and compare
    its properties with those computed by the recipe."""

    SERVICE = "explorer"
    QUEUE = "explore"
    type: Literal["verify/1"] = "verify/1"
    model: Ref
    type_map: tuple[str, ...]
    structure: FrameRef
    seed: int
    test: Ref | None = None
    points: Ref | None = Field(default=None, description="as in measure")


# ---------------------------------------------------------------------------- events about workers


class ProcessStarted(Event):
    """A worker process is connected and takes tasks from now on. It belongs to no campaign and to
    no ledger, and no campaign depends on its arrival."""

    campaign: Literal["-"] = Field(default="-", description="in place of a campaign's name")
    worker: str
    host: str
    process: str | None = Field(default=None, description="as in task-claimed")
    pool: str | None = Field(default=None, description="pool of the fleet file")
    slots: int = Field(description="tasks that it runs at once")
    queues: tuple[str, ...]
    programs: dict[str, str] = Field(
        default={},
        description="labeling codes, ASE calculators and engines that it runs, with their "
        "versions, as in recipes; empty where a campaign states them",
    )
    devices: tuple[str, ...] = Field(default=(), description="models of the GPUs that it may use")

    def describe(self) -> str:
        return f"{self.worker} on {self.host} for {', '.join(self.queues)}"


class WorkerStarted(ProcessStarted):
    """A worker process is connected and takes tasks from now on. It belongs to no campaign and to
    no ledger, and no campaign depends on its arrival. The coordinator keeps what labelers run for
    those who submit campaigns."""

    PUBLISHERS = SERVICES
    type: Literal["worker-started/1"] = "worker-started/1"


class TrainerStarted(ProcessStarted):
    """As worker-started, of a trainer. Its GPUs decide what `training.batch_atoms: auto` means, so
    that trainers alone may publish it."""

    PUBLISHERS = ("trainer",)
    type: Literal["trainer-started/1"] = "trainer-started/1"


# ---------------------------------------------------------------------------- events about tasks


class TaskEvent(Event):
    task: TaskId
    attempt: int = Field(ge=1, le=MOST_ATTEMPTS)


class TaskClaimed(TaskEvent):
    """A worker has an attempt. The message is stored as the claim itself: later events of the
    attempt count if they come from `user` with the secret of the claim. `process`: name of the
    worker's process in the fleet engine that started it, if any did."""

    PUBLISHERS = SERVICES
    type: Literal["task-claimed/1"] = "task-claimed/1"
    worker: str
    process: str | None = None
    # Both are left out where they are None, as in the claims of earlier releases.
    user: str | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="user of the worker at the broker; None: the broker states no users",
    )
    proof_sha256: Sha256 | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="SHA-256 of the proof: the SHA-256 of the secret beside the later events",
    )

    def describe(self) -> str:
        return f"by {self.worker}"


class TaskHeartbeat(TaskEvent):
    """A task is still running. Not recorded in the ledger and not input to the policy. `process`:
    as in task-claimed."""

    PUBLISHERS = SERVICES
    type: Literal["task-heartbeat/1"] = "task-heartbeat/1"
    worker: str
    process: str | None = None
    progress: str = ""


class TaskDeclined(TaskEvent):
    """A worker cannot serve the task, for want of a program, a version or a permission, and leaves
    it unclaimed. The coordinator publishes it again. `reason`: what the worker lacks."""

    PUBLISHERS = SERVICES
    type: Literal["task-declined/1"] = "task-declined/1"
    worker: str
    reason: str = Field(max_length=2000)


class TaskReleased(TaskEvent):
    """The worker returned the task for a reason other than the task itself. `preempted`: because
    the worker had to stop. `seconds`: work of this attempt since its last checkpoint or chunk,
    which the next attempt repeats. `restart`: files from which the next attempt of a label
    continues the interrupted calculation."""

    PUBLISHERS = SERVICES
    type: Literal["task-released/1"] = "task-released/1"
    reason: str
    delay: float = Field(default=0.0, ge=0.0, le=3600.0)
    preempted: bool = False
    seconds: float = 0.0
    restart: Ref | None = None


class TaskFailed(TaskEvent):
    PUBLISHERS = SERVICES
    type: Literal["task-failed/1"] = "task-failed/1"
    permanent: bool
    reason: str
    trace: str = ""


class LeaseLapsed(TaskEvent):
    """No heartbeat arrived for a whole lease, or the worker's process has ended; written by the
    coordinator itself. `seconds`: as in task-released."""

    PUBLISHERS = LEDGER_ONLY
    type: Literal["lease-lapsed/1"] = "lease-lapsed/1"
    reason: str = ""
    seconds: float = 0.0


class TaskRevoked(TaskEvent):
    """The coordinator itself won the claim of a task that no worker had started."""

    PUBLISHERS = LEDGER_ONLY
    type: Literal["task-revoked/1"] = "task-revoked/1"


class CheckpointSaved(TaskEvent):
    PUBLISHERS = ("trainer",)
    type: Literal["checkpoint-saved/1"] = "checkpoint-saved/1"
    checkpoint: Ref
    step: int


# ---------------------------------------------------------------------------- results


class Result(TaskEvent):
    """End of a task; the first accepted result counts. `seconds` is the time the worker spent."""

    ANSWERS: ClassVar[type[Command]]
    """The command that it answers; the command's service publishes it."""

    seconds: float = 0.0

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        if "ANSWERS" in vars(cls):
            cls.PUBLISHERS = (cls.ANSWERS.SERVICE,)


class Chunk(Result):
    """One of several results of a task, which ends when the `last` chunk and all earlier ones have
    arrived. The last one has the `seconds`."""

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
    # Left out where it is None, as in the results of earlier releases.
    device: DeviceFacts | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="what it was trained on",
    )

    def describe(self) -> str:
        where = f" on {self.device}" if self.device else ""
        return f"{self.steps} steps, force RMSE {self.train.force:.3g} eV/Å{where}"


class ModelsReady(Event):
    """A committee is complete; also stored as `campaigns/<campaign>/committees/<version>.json`."""

    PUBLISHERS = ("coordinator",)
    type: Literal["models-ready/1"] = "models-ready/1"
    committee: Committee
    manifest: Ref
    labels: int

    def describe(self) -> str:
        return f"committee {self.committee.version}, {self.labels} labels"


class ChunkExplored(Chunk):
    """One chunk of a trajectory. `histogram` counts frames by deviation, in the bins `BINS` of
    `atoms/deviation.py`. `dropped`: planned checks that were not made because the trajectory
    stopped early; they count as failed."""

    ANSWERS = Explore
    # Versions up to 0.1 use the second tag, which is read, and may be published, until 0.3.
    type: Literal["chunk-explored/1", "candidates-found/1"] = "chunk-explored/1"
    version: int
    counts: Counts
    dropped: int = 0
    stopped: str | None = None
    uniform: bool = Field(
        default=True, description="a single committee version since the start of the trajectory"
    )
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
    """Verdicts of a newer committee. `pool` holds the remaining candidates; `accurate` lists those
    of the command's `frames` that no longer need a label; `offered` holds the verdicts on
    generators' frames that are no longer candidates."""

    ANSWERS = Judge
    type: Literal["frames-judged/1"] = "frames-judged/1"
    version: int
    pool: tuple[PoolItem, ...]
    counts: Counts
    accurate: tuple[FrameKey, ...] = ()
    offered: dict[FrameKey, Literal["accurate", "failed"]] = Field(default={})


class StructuresScreened(Result):
    """Verdicts on a proposal. `batches` hold the frames that `found` refers to; `refused` is the
    reason if the proposal could not be read at all."""

    ANSWERS = Screen
    type: Literal["structures-screened/1"] = "structures-screened/1"
    version: int
    batches: tuple[Ref, ...] = ()
    found: tuple[Screened, ...] = ()
    refused: str = ""

    def describe(self) -> str:
        return self.refused or _counted(self.found)


class CandidatesSelected(Chunk):
    """Frames chosen by a select task, in as many chunks as needed. `refused` and `refusals` cover
    the whole pool and come with the last chunk."""

    ANSWERS = Select
    type: Literal["candidates-selected/1"] = "candidates-selected/1"
    version: int
    stage: int
    batches: tuple[Ref, ...] = ()
    labels: tuple[Chosen, ...] = ()
    audits: tuple[Chosen, ...] = ()
    refused: dict[str, int] = Field(
        default={}, description="number of candidates not chosen, by reason"
    )
    refusals: Ref | None = Field(default=None, description="JSON object: RefusedFrames")

    def describe(self) -> str:
        return f"{len(self.labels)} to train on, {len(self.audits)} for the audit"


class LabelsDone(Chunk):
    """Verdicts on frames of a label task, which ends when each of its frames has one. The first
    verdict of the task on a frame counts, whichever attempt it comes from: attempts number their
    chunks independently."""

    ANSWERS = Label
    type: Literal["labels-done/1"] = "labels-done/1"
    accepted: tuple[Accepted, ...] = ()
    rejected: tuple[Rejected, ...] = ()

    def describe(self) -> str:
        rejected = "".join(f"; {r.key[:8]} rejected by {r.rule}: {r.detail}" for r in self.rejected)
        seconds = f" in {self.seconds:.3g} s" if self.last else ""
        return f"{len(self.accepted)} accepted{seconds}{rejected}"


class ReferenceDone(Result):
    """Held-out labelled frames of one reference trajectory, as a labelled batch."""

    ANSWERS = Reference
    type: Literal["reference-done/1"] = "reference-done/1"
    trajectory: int
    pack: Ref
    frames: int


class LabelChecked(Result):
    """Largest difference of the forces on an atom (eV/Å) and difference of the energies (eV/atom)
    between a reused or imported label and a new one, if there is a new one. `differs`: how a reused
    label is wrong; empty if it agrees."""

    ANSWERS = CheckLabel
    type: Literal["label-checked/1"] = "label-checked/1"
    forces: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    energy: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    differs: str = ""
    # Both are left out where they are not known, as in the results of earlier releases.
    opposed: bool | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="whether the virials have opposite signs; None: one of the labels has none",
    )
    rejected: str = Field(
        default="",
        max_length=2000,
        exclude_if=lambda value: not value,
        description="why there is no new label",
    )

    def describe(self) -> str:
        if self.forces is None or self.energy is None:
            return self.rejected
        apart = f"forces within {self.forces:.2g} eV/Å, energy within {self.energy:.2g} eV/atom"
        return self.differs or apart


class AuditDone(Result):
    """Force RMSE (eV/Å) of the committee on audit frames that it does not judge failed, and
    P(max-atom error > target | accurate), each with its 95 % upper bound from a bootstrap over
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


# ------------------------------------------------------------------------ decisions and operators


class ManifestFrozen(Event):
    """A list too long for a message, stored as an object before any message refers to it."""

    PUBLISHERS = LEDGER_ONLY
    type: Literal["manifest-frozen/1"] = "manifest-frozen/1"
    purpose: Literal[
        "dataset",
        "audit",
        "pairs",
        "test",
        "pool",
        "committee",
        "proposal",
        "points",
        "known",
        "plan",
    ]
    manifest: Ref
    body: str


class BatchResolved(Event):
    """What `training.batch_atoms: auto` means in this campaign, for all its trainings."""

    PUBLISHERS = LEDGER_ONLY
    type: Literal["batch-resolved/1"] = "batch-resolved/1"
    batch_atoms: int = Field(ge=1)
    why: str

    def describe(self) -> str:
        return f"batches of {self.batch_atoms} atoms: {self.why}"


class WorkersMissing(Event):
    """No worker has claimed a task of the queue since the first was declined. The campaign pauses
    with this reason, until a worker claims one or an operator resumes the campaign."""

    PUBLISHERS = LEDGER_ONLY
    type: Literal["workers-missing/1"] = "workers-missing/1"
    queue: str
    why: str


class TrainingJudged(Event):
    """Whether a committee fits its own dataset. *training-limited*: the error on its training
    frames is too high, and longer training may help; *label-noise-limited*: longer training did not
    help."""

    PUBLISHERS = LEDGER_ONLY
    type: Literal["training-judged/1"] = "training-judged/1"
    version: int
    verdict: Literal["sound", "training-limited", "label-noise-limited"]
    force: float = Field(description="largest training force RMSE of a member, eV/Å")
    lengthen: float = Field(description="factor on the number of training steps from now on")
    why: str

    def describe(self) -> str:
        return f"{self.verdict}: {self.why}"


class RoundJudged(Event):
    """One committee version has explored every condition of its stage."""

    PUBLISHERS = LEDGER_ONLY
    type: Literal["round-judged/1"] = "round-judged/1"
    stage: int
    round: int
    version: int
    counts: dict[str, Counts] = Field(description="by condition")
    outcome: Literal["passed", "failed", "stuck"]
    why: str
    trajectories_failed: bool = Field(
        default=False,
        exclude_if=lambda value: not value,
        description="nearly all trajectories were abandoned: the counts say nothing of the models",
    )

    def describe(self) -> str:
        return f"round {self.round} {self.outcome}: {self.why}"


class StructuresJudged(Event):
    """Verdicts on frames that a generator offered. `refused` is the reason if the proposal's
    `count` frames from index `first` on could not be read. `version`: the judging committee, 0 for
    none."""

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
    # As in structures-proposed.
    user: str | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="user of the generator at the broker; None: not known",
    )

    def describe(self) -> str:
        return (
            f"{generator_of(self)}, {self.correlation}: {self.refused or _counted(self.verdicts)}"
        )


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
        description="explored: one round without convergence, as the spec requests"
    )
    why: str

    def describe(self) -> str:
        return f"stage {self.stage + 1} {self.verdict}: {self.why}"


class TaskCancelled(Event):
    """A task's result is no longer needed. The coordinator revokes the task by winning its claim
    or, if a worker holds the claim, requests a stop with the object
    `claims/<task>/<attempt>.stop`."""

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
    """The campaign waits for an operator: an event could not be processed, an indispensable task
    was abandoned, or the operator requested it. Other campaigns continue."""

    PUBLISHERS = ("coordinator", "operator")
    type: Literal["campaign-paused/1"] = "campaign-paused/1"
    why: str
    trace: str = ""
    # Left out where it is False, as in the ledgers of earlier releases.
    labels_fail: bool = Field(
        default=False,
        exclude_if=lambda value: not value,
        description="labels were rejected alike; resume requests them again",
    )
    imports_differ: bool = Field(
        default=False,
        exclude_if=lambda value: not value,
        description="imported labels disagree with the recipe; resume has rejected frames computed "
        "once more, or accepts the labels",
    )


class CampaignResumed(Event):
    """An operator resumes the campaign; abandoned tasks are tried once more."""

    PUBLISHERS = ("operator",)
    type: Literal["campaign-resumed/1"] = "campaign-resumed/1"


class CampaignCancelled(Event):
    """An operator ends the campaign. Finished results are kept."""

    PUBLISHERS = ("operator",)
    type: Literal["campaign-cancelled/1"] = "campaign-cancelled/1"
    why: str = Field(default="", max_length=2000)


class TasksRetried(Event):
    """An operator retries abandoned tasks: those in `tasks`, or all if it is empty."""

    PUBLISHERS = ("operator",)
    type: Literal["tasks-retried/1"] = "tasks-retried/1"
    tasks: tuple[TaskId, ...] = Field(default=(), max_length=500)

    def describe(self) -> str:
        return ", ".join(task[:8] for task in self.tasks) or "all"


class AmendmentRefused(Event):
    """An amendment has no effect, and why."""

    PUBLISHERS = LEDGER_ONLY
    type: Literal["amendment-refused/1"] = "amendment-refused/1"
    amendment: str = Field(description="id of the campaign-amended event")
    author: str
    why: str

    def describe(self) -> str:
        return f"by {self.author or 'an operator'}: {self.why}"


class PlanChanged(Event):
    """A plan is in force from now on; the plan itself is the manifest frozen just before. The
    message states what follows, so that the ledger replays without the rules that found it."""

    PUBLISHERS = LEDGER_ONLY
    type: Literal["plan-changed/1"] = "plan-changed/1"
    amendment: str = Field(description="id of the campaign-amended event")
    number: int
    author: str
    plan: Ref
    changes: tuple[str, ...] = Field(description="what differs from the plan before")
    effects: tuple[str, ...] = Field(default=(), description="what is done again, or given up")
    order: tuple[str, ...] = Field(description="names of the stages, in the user's order")
    reopened: tuple[int, ...] = Field(
        default=(), description="indices of ended stages that are judged again"
    )
    leaves: bool = Field(default=False, description="the running stage is dropped")
    enters: bool = Field(default=False, description="the next stage of the plan begins")
    gives_up_round: bool = Field(default=False, description="the running round is given up")
    starts_anew: bool = Field(
        default=False, description="passed rounds of the running stage no longer count"
    )
    trains_again: bool = Field(
        default=False, description="the running training, which had failed, is given up"
    )
    trains_final_again: bool = False
    verifies_again: bool = False
    trains_from_scratch: bool = Field(
        default=False, description="the next training is from scratch"
    )

    def describe(self) -> str:
        return f"plan {self.number} by {self.author or 'an operator'}: {'; '.join(self.changes)}"


class CampaignFinished(Event):
    PUBLISHERS = ("coordinator",)
    type: Literal["campaign-finished/1"] = "campaign-finished/1"
    verdict: Literal["converged", "not-converged", "cancelled"]
    why: str
    # Left out where it is 1, as by earlier releases.
    plan: int = Field(
        default=1,
        ge=1,
        exclude_if=lambda value: value == 1,
        description="number of the plan that has ended; an amended campaign goes on",
    )

    def describe(self) -> str:
        return f"{self.verdict}: {self.why}"


# ---------------------------------------------------------------------------- formatting


def generator_of(event: StructuresProposed | StructuresJudged) -> str:
    """The generator, with its user where that is not its name."""
    other = event.user is not None and event.user != event.generator
    return f"{event.generator} of {event.user}" if other else event.generator


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
    """The type tags decoded as this class; the first is the one encoded."""
    return get_args(kind.model_fields["type"].annotation)
