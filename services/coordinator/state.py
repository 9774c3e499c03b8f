"""The state of one campaign, as `policy.decide` sees it.

`State` has ten parts (labels, cross-check, dataset, committee, exploration, candidates, proposals,
final, lost work and archive), the table of tasks, and what workers have declined. Every part is a
frozen dataclass with persistent maps: `apply/` makes a changed copy with `replace`, whose keywords
mypy checks. Methods such as `with_frame` and `with_task` keep counters and indices consistent with
the tables they are derived from.

A task that has ended and a frame in a dataset leave their tables for the archive: of these, no rule
needs more than the id. What views show of them is in segments of the archive in the store.

The state follows from the ledger; snapshots of it only save time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import ClassVar, Literal, NamedTuple, TypeVar

from immutables import Map
from pydantic import ConfigDict, TypeAdapter

from dpstream.services.coordinator.records import NO_KEYS, KeySet, Table, replace
from dpstream.shared import messages as m
from dpstream.shared.codec import AnyCommand, kind_of
from dpstream.shared.cross_check import ComparedLabel, ImportedLabel, disagreement
from dpstream.shared.spec import Spec
from dpstream.shared.values import (
    OFFERED,
    Chosen,
    Counts,
    FrameRef,
    Offered,
    PoolItem,
    Ref,
    Trust,
    is_offered,
    stable_id,
)

M = TypeVar("M", bound=m.Message)
V = TypeVar("V")

NEVER_LEARNED = ("audit", "property")
"""Purposes of labels that models are tested on and never trained on."""
Purpose = Literal["initial", "train", "audit", "proposed", "property"]
"""What a label was requested for."""
TaskStatus = Literal["open", "running", "lost", "done", "abandoned", "cancelled"]
FrameStatus = Literal["waiting", "pending", "labelled", "rejected", "revoked"]
CheckStatus = Literal["due", "issued", "agrees", "differs", "unknown"]
CrossCheckStatus = Literal["comparing", "reported", "over"]
"""*unknown*: the label could not be computed again."""


def timeless(message: M) -> M:
    """The message without its time and cause, which depend on the order of deliveries."""
    return message.model_copy(update={"time": 0.0, "cause": None})


# ------------------------------------------------------------------------------------------ tasks


@dataclass(frozen=True)
class Task:
    """One piece of work. *lost*: its attempt failed or lapsed, the next is not issued yet."""

    command: AnyCommand
    """Of the newest attempt, without the work whose results have arrived since."""
    status: TaskStatus = "open"
    lapses: int = 0
    """Attempts that count against the task."""
    delay: float = 0.0
    """Seconds after which the next attempt may begin."""
    chunks: frozenset[int] = frozenset()
    """Numbers of the chunks of its result that have arrived."""
    last_chunk: int | None = None
    """The highest of these numbers, once it is known."""

    @property
    def is_live(self) -> bool:
        return self.status in ("open", "running", "lost")

    @property
    def label_frames(self) -> tuple[FrameRef, ...]:
        """The frames that a label task has no verdict on."""
        return self.command.frames if isinstance(self.command, m.Label) else ()


# ----------------------------------------------------------------------------------------- labels


@dataclass(frozen=True)
class KnownFrame:
    """A frame whose label was requested. *waiting*: in no label task yet."""

    ref: FrameRef
    purpose: Purpose
    """*proposed*: a generator requested its label directly; *property*: the models' properties are
    compared with those that follow from it."""
    status: FrameStatus = "waiting"
    label: Ref | None = None
    stage: int = -1
    """The stage that chose it; -1: none did."""
    version: int = 0
    """Of the committee that judged it; 0: none did."""
    origin: str = ""
    """Its trajectory, or its generator and proposal."""
    weight: float = 1.0
    """Of an audit frame: its inverse inclusion probability."""
    accurate: bool = False
    """Whether a newer committee finds it accurate."""

    @property
    def is_awaited(self) -> bool:
        return self.status in ("waiting", "pending")

    @property
    def is_answered(self) -> bool:
        return self.status in ("labelled", "rejected")


@dataclass(frozen=True)
class LabelCheck:
    """A reused label that is computed again. `writer`: the user that signed it, '' without
    signature."""

    label: Ref
    writer: str
    status: CheckStatus = "due"


@dataclass(frozen=True)
class LabelState:
    """Frames whose label was requested. The counters follow from `frames`."""

    frames: Table[KnownFrame] = Map()
    """Those that are not in a dataset, by frame key."""
    waiting: Table[None] = Map()
    """Keys of frames in no label task yet."""
    pending: int = 0
    """Frames that wait for their label, in a task or in none."""
    proposed: int = 0
    """Those of them that generators requested directly."""
    revoked: int = 0
    """Frames no longer to be labelled, because a newer version finds them accurate."""
    reused: int = 0
    """Labels that were in the store already and cost nothing."""
    computed: int = 0
    """Labels and rejections that took time."""
    microseconds: int = 0
    """Time they took in all; whole numbers, whose sum does not depend on the order."""
    audited: Table[None] = Map()
    """Keys of the labelled audit frames of all stages."""
    checks: Table[LabelCheck] = Map()
    """Reused labels that are computed again, by frame key."""
    unissued_checks: Table[None] = Map()
    """Frame keys of those that no task was issued for."""
    failures: Table[tuple[str, ...]] | None = Map()
    """Keys of the frames rejected after they were computed, in alphabetical order, by
    `Rejected.kind`; None once a label was accepted, or is not waited for any longer."""
    failures_retried: bool = False
    """Whether such frames were requested again, after their rejections had paused the campaign."""
    paused: bool = False
    """Whether their rejections have paused the campaign, by the plan then in force."""

    @property
    def distrusted(self) -> tuple[str, ...]:
        """Writers of whom a label was wrong."""
        return tuple(sorted({c.writer for c in self.checks.values() if c.status == "differs"}))

    def with_check(self, key: str, check: LabelCheck) -> LabelState:
        """With the check of a reused label, new or changed."""
        unissued = self.unissued_checks
        if check.status == "due":
            unissued = unissued.set(key, None)
        elif key in unissued:
            unissued = unissued.delete(key)
        return replace(self, checks=self.checks.set(key, check), unissued_checks=unissued)

    def with_frame(self, frame: KnownFrame, before: KnownFrame | None) -> LabelState:
        """With a frame, new or in place of `before`."""
        key, waiting, audited = frame.ref.key, self.waiting, self.audited
        if frame.status == "waiting":
            waiting = waiting.set(key, None)
        elif before is not None and before.status == "waiting":
            waiting = waiting.delete(key)
        if frame.status == "labelled" and frame.purpose == "audit":
            audited = audited.set(key, None)
        more = frame.is_awaited - (before is not None and before.is_awaited)
        was_revoked = before is not None and before.status == "revoked"
        return replace(
            self,
            frames=self.frames.set(key, frame),
            waiting=waiting,
            pending=self.pending + more,
            proposed=self.proposed + (more if frame.purpose == "proposed" else 0),
            revoked=self.revoked + (frame.status == "revoked") - was_revoked,
            audited=audited,
        )


@dataclass(frozen=True)
class CrossCheckState:
    """Imported labels that are computed again before anything else."""

    compared: Table[ComparedLabel] = Map()
    """By frame key."""
    repeated: bool = False
    """Whether frames that the recipe had rejected were requested again."""
    status: CrossCheckStatus = "comparing"
    """`reported`: the campaign is paused for want of agreement, and says so; `over`: the labels
    agree with the recipe, or a user has accepted them."""

    @property
    def over(self) -> bool:
        return self.status == "over"

    @property
    def awaits_acceptance(self) -> bool:
        """Whether `resume` accepts labels that disagree with the recipe."""
        return self.status == "reported" and not self.to_repeat

    @property
    def to_repeat(self) -> tuple[str, ...]:
        """Keys of the frames that `resume` has computed once more; where there are none, it accepts
        the labels."""
        rejected = (key for key, each in self.compared.items() if each.rejected)
        return () if self.repeated else tuple(rejected)


@dataclass(frozen=True)
class DatasetState:
    """The training set, its newest version and what the next one adds; and the held-out set."""

    fresh: Table[Ref] = Map()
    """Training labels in no dataset version yet, by frame key."""
    version: int = 0
    """Of the newest dataset; 0: none yet."""
    manifest: Ref | None = None
    """Of the newest dataset."""
    size: int = 0
    """Frames in the newest dataset."""
    test: Ref | None = None
    """Manifest of the held-out set."""
    references: Table[m.ReferenceDone] = Map()
    """Reference trajectories that the held-out set is made of, by number."""


# -------------------------------------------------------------------------------------- committee


@dataclass(frozen=True)
class CommitteeState:
    """The newest committee, the one in training, and what was measured of them."""

    version: int = 0
    """Of the newest committee that is ready; 0: none yet."""
    manifest: Ref | None = None
    """Of that committee."""
    training: int | None = None
    """The version in training."""
    size: int = 0
    """Members of that version, or else of the newest."""
    dataset: Ref | None = None
    """Manifest of the dataset that they are trained on."""
    members: Table[m.MemberTrained] = Map()
    """Trained members, by number: of the version in training, or else of the newest."""
    checkpoints: tuple[Ref, ...] = ()
    """Of the newest committee's members: what warm trainings start from."""
    cold_version: int = 0
    """The last version that was trained from scratch."""
    force_cold: bool = False
    """Whether the next training has to be from scratch."""
    judged_training: m.TrainingJudged | None = None
    """The verdict on the last training."""
    deviation_over_error: float | None = None
    """As the audit of the last cold version found it."""
    measured: m.Measured | None = None
    """Properties by the newest committee that was measured."""
    batch_atoms: int | None = None
    """What `auto` means in this campaign; None: not resolved yet."""

    @property
    def is_cold(self) -> bool:
        """Whether the newest committee was trained from scratch."""
        return self.cold_version == self.version

    @property
    def is_training_cold(self) -> bool:
        """Whether the committee in training is trained from scratch."""
        return self.cold_version == self.training


# ------------------------------------------------------------------------------------ exploration


@dataclass(frozen=True)
class Tally:
    """How far one trajectory of a round has come."""

    condition: str
    checks: int = 0
    """Frames judged or dropped so far."""
    done: bool = False
    failure: str = ""
    """Why it was abandoned."""


@dataclass(frozen=True)
class ByCondition:
    """What the trajectories of one condition have found so far, all together."""

    counts: Counts = Counts()
    dropped: int = 0
    """Checks that an early stop cut off."""

    def __add__(self, other: ByCondition) -> ByCondition:
        return ByCondition(self.counts + other.counts, self.dropped + other.dropped)


@dataclass(frozen=True)
class Round:
    """One committee version, tried on every condition of a stage."""

    number: int
    version: int
    tallies: Table[Tally] = Map()
    """By the id of the trajectory's task."""
    conditions: Table[ByCondition] = Map()
    unfinished: int = 0
    """Trajectories that are not done."""
    reservoirs: Table[PoolItem] = Map()
    """Random samples of the trajectories, for audits; by URI."""
    closing: str | None = None
    """The select task that ends the round."""
    closed: bool = False
    """Whether that task is done."""
    chosen: int = 0
    """Frames chosen that the stage learns from: for training, or for an audit still too small."""
    audited: bool = False

    def begun(self, task: str, condition: str) -> Round:
        """With one more trajectory."""
        found = self.conditions.get(condition, ByCondition())
        return replace(
            self,
            tallies=self.tallies.set(task, Tally(condition)),
            conditions=self.conditions.set(condition, found),
            unfinished=self.unfinished + 1,
        )

    def counted(self, task: str, counts: Counts, dropped: int, done: bool) -> Round:
        """With more checks of a trajectory, which has ended if `done`."""
        old = self.tallies.get(task)
        if old is None:
            return self
        new = Tally(old.condition, old.checks + counts.total + dropped, old.done or done)
        found = self.conditions[old.condition] + ByCondition(counts, dropped)
        return replace(
            self,
            tallies=self.tallies.set(task, new),
            conditions=self.conditions.set(old.condition, found),
            unfinished=self.unfinished - (new.done and not old.done),
        )

    def abandoned(self, task: str, planned: int, why: str) -> Round:
        """With a trajectory that ends before it has made all `planned` checks."""
        old = self.tallies.get(task)
        if old is None:
            return self
        ended = self.counted(task, Counts(), planned - old.checks, done=True)
        tally = replace(ended.tallies[task], failure=why)
        return replace(ended, tallies=ended.tallies.set(task, tally))


@dataclass(frozen=True)
class StageState:
    index: int = 0
    rounds: int = 0
    """Rounds begun in this stage."""
    passed: int = 0
    """Rounds passed in a row."""
    rounds_without_labels: int = 0
    """Failed rounds in a row that chose no frame to learn from."""
    trust: Trust | None = None
    audit: m.AuditDone | None = None
    """The last audit."""
    answered: int = 0
    """Frames of this stage that were labelled or rejected."""
    rejected: int = 0
    """Those of them that were rejected."""
    audits: Table[str] = Map()
    """Labelled audit frames of this stage: key → trajectory."""
    learned: int = 0
    """Frames that this stage has chosen for training and that are in a dataset."""

    def with_frame(self, frame: KnownFrame, before: KnownFrame | None) -> StageState:
        """With a frame, new or in place of `before`."""
        was = None if before is None else before.status
        if frame.stage != self.index or frame.status == was:
            return self
        was_answered = before is not None and before.is_answered
        audit = frame.status == "labelled" and frame.purpose == "audit"
        return replace(
            self,
            answered=self.answered + frame.is_answered - was_answered,
            rejected=self.rejected + (frame.status == "rejected") - (was == "rejected"),
            audits=self.audits.set(frame.ref.key, frame.origin) if audit else self.audits,
        )


@dataclass(frozen=True)
class ExplorationState:
    """Stages and rounds."""

    stage: StageState = StageState()
    """The running stage."""
    ended: tuple[m.StageEnded, ...] = ()
    """Verdicts on the stages that the plan does not return to."""
    left: Table[StageState] = Map()
    """Stages that were begun and are not the running one, by index."""
    rounds: int = 0
    """Rounds begun so far, in all stages."""
    round: Round | None = None
    """The running round."""
    verdict: m.RoundJudged | None = None
    """The last round's verdict, until the rules have acted upon it."""

    def with_learned(self, learned: Mapping[int, int]) -> ExplorationState:
        """With more chosen frames in a dataset, by stage."""
        stage, left = self.stage, self.left
        for index, count in learned.items():
            if index == stage.index:
                stage = replace(stage, learned=stage.learned + count)
            elif (other := left.get(str(index))) is not None:
                left = left.set(str(index), replace(other, learned=other.learned + count))
        return replace(self, stage=stage, left=left)


# ------------------------------------------------------------------------------------------- plan


@dataclass(frozen=True)
class PlanRecord:
    """How a plan came about. The plan that was submitted has no record."""

    number: int
    author: str
    time: float
    """Seconds since the epoch, by the clock of the person who amended the plan."""
    changes: tuple[str, ...]


@dataclass(frozen=True)
class PlanState:
    """Which plan is in force. `State.spec` is that plan, with the stages that were ever begun
    first: the index of a stage never changes once it has begun."""

    number: int = 1
    order: tuple[str, ...] = ()
    """Names of the stages as the plan lists them; empty: as `State.spec` does."""
    records: tuple[PlanRecord, ...] = ()
    asked: tuple[m.CampaignAmended, ...] = ()
    """Amendments that wait for the end of a round, in the order of their plans."""
    upcoming: Spec | None = None
    """The plan that the next decision puts in force."""

    @property
    def newest(self) -> int:
        """Number of the plan that an amendment has to follow."""
        return self.number + len(self.asked)


# ------------------------------------------------------------------------------------- candidates


@dataclass(frozen=True)
class CandidateState:
    """Frames to choose from, and what was chosen."""

    pool: Table[PoolItem] = Map()
    """Candidates, batch by batch, by URI."""
    added: int = 0
    """Frames that have entered the pool since the last selection."""
    stale: Table[PoolItem] = Map()
    """Batches that a newer committee has to judge again, by URI."""
    taken: Table[tuple[float, ...]] = Map()
    """Times of chosen frames, ps: of each trajectory, and of the share that each committee version
    has taken of it; without those of former versions, and of trajectories that no selection can
    choose from any more."""
    selected: int = 0
    """Frames selected for training under the newest version."""

    def pooled(self, items: Iterable[PoolItem]) -> CandidateState:
        """With batches in the pool."""
        more = {item.frames.uri: item for item in items}
        count = sum(item.count for item in more.values())
        return replace(self, pool=self.pool.update(more), added=self.added + count)

    def outdated(self, item: PoolItem) -> CandidateState:
        """With a batch that has to be judged again."""
        return replace(self, stale=self.stale.set(item.frames.uri, item))

    def share(self, version: int, trajectory: str) -> tuple[float, ...]:
        """Times of the frames that a committee version has taken of a trajectory, ps."""
        return self.taken.get(_share_key(version, trajectory), ())

    def took(
        self, version: int, labels: Iterable[Chosen], audits: Iterable[Chosen]
    ) -> CandidateState:
        """With chosen frames: later selections keep their distance from all of them, and those for
        training count towards the share of the version."""
        labels, taken = tuple(labels), self.taken
        places = [(choice.trajectory, choice) for choice in (*labels, *audits)]
        places += [(_share_key(version, choice.trajectory), choice) for choice in labels]
        for place, choice in places:
            taken = taken.set(place, tuple(sorted((*taken.get(place, ()), choice.time_ps))))
        return replace(self, taken=taken, selected=self.selected + len(labels))

    def forgot_all_but(self, trajectories: Collection[str]) -> CandidateState:
        """With the chosen frames of these trajectories alone, and without the shares, which are
        those of former versions."""
        taken = {name: self.taken[name] for name in trajectories if name in self.taken}
        return replace(self, taken=Map(taken))


def _share_key(version: int, trajectory: str) -> str:
    """The key of a share. Trajectory names contain no space, so it is not the name of one."""
    return f"{version} {trajectory}"


# -------------------------------------------------------------------------------------- proposals


@dataclass(frozen=True)
class Proposal:
    """Frames of a generator that wait to be screened."""

    generator: str
    correlation: str
    mode: Literal["screen", "label"]
    priority: int
    first: int
    """Number of its first frame, as the generator counts."""
    frames: Ref
    count: int
    round: int
    """The newest round when the proposal arrived."""
    user: str | None = None
    """The generator's user at the broker; None where the broker states no users."""

    @property
    def source(self) -> str:
        """Whom the limits apply to. Anyone may choose a name, so that it counts only where there
        are no users."""
        return self.user or self.generator

    @property
    def origin(self) -> str:
        name = f"{self.user}/{self.generator}" if self.user else self.generator
        return f"{OFFERED}{name}/{self.correlation}"


def proposal_id(event: m.StructuresProposed) -> str:
    """By content: a proposal that is sent again with the same frames is the same one."""
    content = event.batch.sha256 if event.batch else Ref.to("frames", written_out(event)).sha256
    name = (event.user, event.generator) if event.user else (event.generator,)
    return stable_id(event.campaign, *name, event.correlation, event.first, event.mode, content)


def written_out(event: m.StructuresProposed) -> bytes:
    """The frames of a proposal that the message itself holds."""
    return Offered(frames=event.frames).model_dump_json().encode()


@dataclass(frozen=True)
class Offer:
    """An offered frame without a final verdict, and the ids to report it under."""

    proposal: str
    generator: str
    correlation: str
    index: int
    priority: int
    deviation: float | None
    user: str | None = None

    @property
    def source(self) -> str:
        """As of its proposal."""
        return self.user or self.generator


@dataclass(frozen=True)
class Intake:
    """Frames that one user, or one generator, has offered in its newest hour (since the epoch)."""

    hour: int
    frames: int


@dataclass(frozen=True)
class ProposalState:
    """What external generators have offered."""

    waiting: Table[Proposal] = Map()
    """Proposals that are not screened yet, by id."""
    unscreened: Table[None] = Map()
    """Ids of those of them that no screen task was issued for."""
    judged: Table[None] = Map()
    """Ids of the proposals that are judged."""
    offers: Table[Offer] = Map()
    """By frame key."""
    intake: Table[Intake] = Map()
    """By user, or by generator where the broker states no users."""
    labels: int = 0
    """Labels that generators have requested directly so far."""
    chosen: Table[None] = Map()
    """Those, by origin, of which a frame was chosen from the pool."""


# ---------------------------------------------------------------------------------------- archive


class EndedTask(NamedTuple):
    """What views show of a task that has ended."""

    kind: str
    title: str
    status: TaskStatus
    attempt: int
    lapses: int


class SettledFrame(NamedTuple):
    """What views show of a frame in a dataset, as in `KnownFrame`; `label`: the key of its
    object."""

    purpose: Purpose
    stage: int
    version: int
    origin: str
    label: str


@dataclass(frozen=True)
class ArchiveSegment:
    """An object with records of ended tasks and settled frames."""

    stored: Ref
    tasks: Table[int]
    """Number by kind and status (`counted_as`)."""
    frames: int
    is_merged: bool = False


@dataclass(frozen=True)
class Archive:
    """Tasks that have ended and frames in a dataset: nothing changes them any more. A record is in
    `ended` or `settled` until a segment with it is stored; then the state has its id alone."""

    ended: Table[EndedTask] = Map()
    settled: Table[SettledFrame] = Map()
    """By frame key."""
    tasks: KeySet = NO_KEYS
    frames: KeySet = NO_KEYS
    segments: tuple[ArchiveSegment, ...] = ()
    """Oldest first."""
    tasks_by_status: Table[int] = Map()
    """Numbers of ended tasks by kind and status (`counted_as`)."""
    frames_by_purpose: Table[int] = Map()
    """Numbers of settled frames."""

    def has_task(self, task: str) -> bool:
        return task in self.ended or task in self.tasks

    def has_frame(self, key: str) -> bool:
        return key in self.settled or key in self.frames

    @property
    def frame_keys(self) -> Iterator[str]:
        return chain(self.settled, self.frames)

    @property
    def requested(self) -> int:
        """Number of frames."""
        return len(self.settled) + len(self.frames)

    def __len__(self) -> int:
        return len(self.ended) + len(self.tasks) + self.requested

    def with_task(self, task: Task) -> Archive:
        command, status = task.command, counted_as(kind_of(task.command), task.status)
        record = EndedTask(
            kind_of(command), command.title, task.status, command.attempt, task.lapses
        )
        counts = self.tasks_by_status
        return replace(
            self,
            ended=self.ended.set(command.task, record),
            tasks_by_status=counts.set(status, counts.get(status, 0) + 1),
        )

    def with_frame(self, frame: KnownFrame) -> Archive:
        assert frame.label is not None
        record = SettledFrame(
            frame.purpose, frame.stage, frame.version, frame.origin, frame.label.uri
        )
        counts = self.frames_by_purpose
        return replace(
            self,
            settled=self.settled.set(frame.ref.key, record),
            frames_by_purpose=counts.set(frame.purpose, counts.get(frame.purpose, 0) + 1),
        )

    def stored(self, before: Archive, stored: Archive) -> Archive:
        """Without the records that it had `before` they were stored in segments. `stored`: that
        archive without records."""
        return replace(
            stored,
            ended=_without(self.ended, before.ended),
            settled=_without(self.settled, before.settled),
            tasks_by_status=self.tasks_by_status,
            frames_by_purpose=self.frames_by_purpose,
        )

    def __eq__(self, other: object) -> bool:
        """Whether both have the same tasks and frames, whatever is in segments."""
        return isinstance(other, Archive) and vars(self.ids) == vars(other.ids)

    @property
    def ids(self) -> Archive:
        """The ids alone, and the counts."""
        tasks, frames = KeySet.of(self.ended), KeySet.of(self.settled)
        return replace(
            self,
            ended=Map(),
            settled=Map(),
            tasks=self.tasks | tasks,
            frames=self.frames | frames,
            segments=(),
        )


def _without(table: Map[str, V], gone: Map[str, V]) -> Map[str, V]:
    return Map({key: value for key, value in table.items() if key not in gone})


def counted_as(kind: str, status: str) -> str:
    """What a task counts as: its kind and its status."""
    return f"{kind} {status}"


# --------------------------------------------------------------------------------------- the whole


@dataclass(frozen=True)
class FinalState:
    """The final model and its verification."""

    model: m.MemberTrained | None = None
    verified: m.Verified | None = None
    failure: str | None = None
    """Why the verification was abandoned."""

    @property
    def is_verified(self) -> bool:
        """Whether the verification has ended, with or without a result."""
        return self.verified is not None or self.failure is not None


@dataclass(frozen=True)
class LostWork:
    """What stopped and lost workers have cost."""

    preemptions: int = 0
    """Attempts released because their worker had to stop."""
    microseconds: int = 0
    """Work of these attempts, and of those whose lease lapsed, that was done again; whole numbers,
    as in `LabelState`."""


@dataclass(frozen=True)
class Declined:
    """What workers lack that have declined tasks of a queue, since one was last claimed."""

    reasons: tuple[str, ...] = ()
    """The first few different ones."""
    pause: str | None = None
    """Why the campaign was paused, if it was for this."""


@dataclass(frozen=True)
class State:
    """One campaign. Tasks and frames are changed by `with_task` and `with_frame` alone, which keep
    whatever is counted of them in step."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(ser_json_inf_nan="strings")

    spec: Spec
    """The plan in force."""
    plan: PlanState = PlanState()
    submitted: m.CampaignSubmitted | None = None
    """With the inputs that amendments have added."""
    paused: str | None = None
    """Why the campaign is paused."""
    finished: m.CampaignFinished | None = None
    handled: Table[None] = Map()
    """Ids of users' requests and of pauses: each takes effect once."""
    tasks: Table[Task] = Map()
    """Those that something can still change, and the trainings of the models in the state."""
    live: Table[Table[None]] = Map()
    """Ids of open, running and lost tasks, by kind."""
    running: Table[int] = Map()
    """Number of running tasks, by kind."""
    labels: LabelState = LabelState()
    cross_check: CrossCheckState = CrossCheckState()
    dataset: DatasetState = DatasetState()
    committee: CommitteeState = CommitteeState()
    exploration: ExplorationState = ExplorationState()
    candidates: CandidateState = CandidateState()
    proposals: ProposalState = ProposalState()
    final: FinalState = FinalState()
    declined: Table[Declined] = Map()
    """By queue."""
    lost: LostWork = LostWork()
    archive: Archive = Archive()

    @property
    def missing(self) -> frozenset[str]:
        """Queues for whose workers the paused campaign waits."""
        if self.paused is None:
            return frozenset()
        return frozenset(q for q, each in self.declined.items() if each.pause == self.paused)

    @property
    def requested(self) -> int:
        """Frames whose label was requested."""
        return len(self.labels.frames) + self.archive.requested

    @property
    def imported(self) -> tuple[ImportedLabel, ...]:
        """Imported labels that the campaign has computed again."""
        wanted = None if self.submitted is None else self.submitted.cross_check
        return () if wanted is None else wanted.labels

    @property
    def is_comparing(self) -> bool:
        """Whether the campaign waits for the verdict on its imported labels."""
        return bool(self.imported) and not self.cross_check.over

    def is_of_import(self, command: m.CheckLabel) -> bool:
        """Whether a check is of an imported label, not of a reused one."""
        return any(each.label == command.label for each in self.imported)

    @property
    def import_problem(self) -> str | None:
        """How the imported labels disagree with the recipe; None: they agree, or not all of them
        are compared yet."""
        compared = self.cross_check.compared
        wanted = None if self.submitted is None else self.submitted.cross_check
        if wanted is None or len(compared) < len(wanted.labels):
            return None
        return disagreement([*compared.values()], wanted.forces)

    @property
    def label_room(self) -> int:
        """Labels that the budget still allows to request."""
        used = self.requested - self.labels.revoked
        used += len(self.labels.checks)
        used += 0 if self.submitted is None else self.submitted.reference_points
        return max(0, self.spec.budget.labels - used)

    @property
    def is_failing(self) -> bool:
        """Whether no label was accepted and `labels.pause_after` frames were rejected alike."""
        most, failures = self.spec.labels.pause_after, self.labels.failures or Map()
        alike = max(map(len, failures.values()), default=0)
        return 0 < most <= alike and not self._is_labelled

    @property
    def _is_labelled(self) -> bool:
        """Whether a label was accepted; snapshots of earlier releases have no `failures`."""
        if self.archive.frames_by_purpose:
            return True
        return any(frame.status == "labelled" for frame in self.labels.frames.values())

    def has_task(self, task: str) -> bool:
        """Whether the task was issued."""
        return task in self.tasks or self.archive.has_task(task)

    def frame_status(self, key: str) -> FrameStatus | None:
        """None if the label of the frame was not requested."""
        frame = self.labels.frames.get(key)
        if frame is not None:
            return frame.status
        return "labelled" if self.archive.has_frame(key) else None

    @property
    def proposal_room(self) -> int:
        """Labels that generators may still request directly."""
        if self.stages_over or self.finished is not None:
            return 0
        return max(0, min(self.label_room, self.spec.proposals.labels - self.proposals.labels))

    @property
    def batch_atoms(self) -> int | None:
        """Atoms of a training batch; None if `auto` is not resolved yet."""
        given = self.spec.training.batch_atoms
        return self.committee.batch_atoms if given == "auto" else given

    @property
    def planned(self) -> tuple[int, ...]:
        """Indices of the stages that the plan lists, in its order."""
        stages = self.spec.stages
        if not self.plan.order:
            return tuple(range(len(stages)))
        indices = {stage.name: index for index, stage in enumerate(stages)}
        return tuple(indices[name] for name in self.plan.order)

    @property
    def ahead(self) -> tuple[int, ...]:
        """Those of them that have not ended."""
        over = {ended.stage for ended in self.exploration.ended}
        return tuple(index for index in self.planned if index not in over)

    @property
    def is_stuck(self) -> bool:
        """Whether a stage ended without a result, so that no later one is explored."""
        ended = self.exploration.ended
        if self.plan.number == 1:  # it was the last one
            ended = ended[-1:]
        return any(each.verdict not in ("converged", "explored") for each in ended)

    @property
    def stages_over(self) -> bool:
        return self.is_stuck or self.exploration.stage.index >= len(self.spec.stages)

    @property
    def awaited(self) -> int:
        """Frames whose label the loop waits for. While streaming it does not wait for labels that
        generators requested directly, because their requests may never end."""
        labels = self.labels
        return labels.pending - (labels.proposed if self.spec.mode == "streaming" else 0)

    def alive(self, kind: type[m.Command]) -> int:
        return len(self.live.get(kind.__name__, ()))

    def under_way(self, *kinds: type[m.Command]) -> list[Task]:
        """Live tasks, of these kinds or of all, by their ids."""
        names = [kind.__name__ for kind in kinds] or list(self.live)
        found = sorted(task for name in names for task in self.live.get(name, ()))
        return [self.tasks[task] for task in found]

    def with_task(self, task: Task) -> State:
        """With a task, new or changed."""
        name, kind, live = task.command.task, type(task.command).__name__, self.live
        ids = live.get(kind, Map[str, None]())
        if task.is_live != (name in ids):
            live = live.set(kind, ids.set(name, None) if task.is_live else ids.delete(name))
        before = self.tasks.get(name)
        more = (task.status == "running") - (before is not None and before.status == "running")
        running = _added(self.running, kind, more) if more else self.running
        return replace(self, tasks=self.tasks.set(name, task), live=live, running=running)

    def without_task(self, task: Task) -> State:
        """With a task in the archive."""
        state = self.with_task(task)
        tasks = state.tasks.delete(task.command.task)
        return replace(state, tasks=tasks, archive=state.archive.with_task(task))

    def with_frame(self, frame: KnownFrame) -> State:
        """With a frame, new or changed: every counter and table that its status appears in
        follows."""
        key = frame.ref.key
        before = self.labels.frames.get(key)
        dataset, exploration = self.dataset, self.exploration
        is_new = frame.label is not None and (before is None or before.label is None)
        if frame.label is not None and is_new and frame.purpose not in NEVER_LEARNED:
            dataset = replace(dataset, fresh=dataset.fresh.set(key, frame.label))
        stage = exploration.stage.with_frame(frame, before)
        if stage is not exploration.stage:
            exploration = replace(exploration, stage=stage)
        elif (left := exploration.left.get(str(frame.stage))) is not None:
            after = left.with_frame(frame, before)
            exploration = replace(exploration, left=exploration.left.set(str(frame.stage), after))
        labels, proposals = self.labels.with_frame(frame, before), self.proposals
        if before is None and is_offered(frame.origin) and frame.purpose != "proposed":
            chosen = proposals.chosen.set(frame.origin, None)
            proposals = replace(proposals, chosen=chosen)
        return replace(
            self, labels=labels, dataset=dataset, exploration=exploration, proposals=proposals
        )

    def with_settled(self, keys: Iterable[str]) -> State:
        """With labelled frames in the archive."""
        labels, archive, learned = self.labels, self.archive, Counter[int]()
        frames = labels.frames
        for key in keys:
            frame = frames[key]
            frames, archive = frames.delete(key), archive.with_frame(frame)
            learned[frame.stage] += frame.purpose == "train"
        exploration = self.exploration.with_learned(learned)
        labels = replace(labels, frames=frames)
        return replace(self, labels=labels, exploration=exploration, archive=archive)

    def dumps(self) -> bytes:
        """All that follows from the messages; not how much of it is in segments of the archive."""
        return _adapter().dump_json(replace(self, archive=self.archive.ids))


def _added(counts: Map[str, int], key: str, more: int) -> Map[str, int]:
    """With a count changed; one of zero has no entry."""
    count = counts.get(key, 0) + more
    return counts.set(key, count) if count else counts.delete(key)


@cache
def _adapter() -> TypeAdapter[State]:
    return TypeAdapter(State)
