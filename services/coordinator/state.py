"""What the coordinator knows of one campaign, and how each message changes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args

from immutables import Map
from pydantic import BaseModel, ConfigDict
from pydantic_core import core_schema

from dpstream.shared import messages as m
from dpstream.shared.codec import AnyCommand
from dpstream.shared.spec import Spec
from dpstream.shared.values import OFFERED, Committee, Counts, FrameRef, PoolItem, Ref, Trust

V = TypeVar("V")
K = TypeVar("K", bound="Known")


NEVER_LEARNED = ("audit", "property")
"""Purposes of labels that models are measured by."""


class _AsDict:
    """Lets pydantic read and write an `immutables.Map` as an object with sorted keys."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> core_schema.CoreSchema:
        inner = handler.generate_schema(dict[get_args(source)])  # type: ignore[misc]
        made = core_schema.no_info_after_validator_function(Map, inner)
        return core_schema.json_or_python_schema(
            json_schema=made,
            python_schema=core_schema.no_info_before_validator_function(
                lambda value: dict(value) if isinstance(value, Map) else value, made
            ),
            serialization=core_schema.wrap_serializer_function_ser_schema(
                lambda value, serialize: serialize(dict(sorted(value.items()))), schema=inner
            ),
        )


Table = Annotated[Map[str, V], _AsDict]


class Known(BaseModel):
    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True, ser_json_inf_nan="strings")

    def model_copy(self: K, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> K:
        """As pydantic's, several times faster: every event makes a handful of copies. What two
        copies have in common they share, the names of the fields set among it."""
        assert not deep
        copy = self.__new__(type(self))
        object.__setattr__(copy, "__dict__", {**self.__dict__, **(update or {})})
        for name in ("__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__"):
            object.__setattr__(copy, name, getattr(self, name))
        return copy


class Task(Known):
    """One piece of work. *lost*: its attempt failed or lapsed, the next is not issued yet."""

    command: AnyCommand
    status: Literal["open", "running", "lost", "done", "abandoned", "cancelled"] = "open"
    lapses: int = 0
    not_before: float = 0.0
    chunks: frozenset[int] = frozenset()
    last_chunk: int | None = None


class KnownFrame(Known):
    """A frame that was asked to be labelled. *waiting*: in no label task yet."""

    ref: FrameRef
    purpose: Literal["initial", "train", "audit", "proposed", "property"]
    """*proposed*: a generator asked for its label straight away; *property*: the models' properties
    are compared with those it tells."""
    status: Literal["waiting", "pending", "labelled", "rejected", "revoked"] = "waiting"
    label: Ref | None = None
    stage: int = -1
    version: int = 0
    origin: str = ""
    weight: float = 1.0
    accurate: bool = False


class Proposal(Known):
    """Frames of a generator that wait for their judge. `wave`: the round that heard of them."""

    generator: str
    correlation: str
    mode: Literal["screen", "label"]
    priority: int
    first: int
    frames: Ref
    count: int
    wave: int

    @property
    def origin(self) -> str:
        return f"{OFFERED}{self.generator}/{self.correlation}"


class Offer(Known):
    """A frame of a generator whose last word is not spoken: what to call it then."""

    proposal: str
    generator: str
    correlation: str
    index: int
    priority: int
    deviation: float | None


class Intake(Known):
    """Frames one generator has offered in the newest hour (since the epoch) it was heard in."""

    hour: int
    frames: int


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
    """Frames chosen that the stage learns from: for training, or for an audit still too small."""
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
    """Labelled audit frames of this stage: key → trajectory."""


class State(Known):
    spec: Spec
    submitted: m.CampaignSubmitted | None = None
    paused: str | None = None
    finished: m.CampaignFinished | None = None
    heeded: Table[None] = Map()
    """Ids of what people said, and of pauses: each counts once, however often it is heard."""

    tasks: Table[Task] = Map()
    live: Table[Table[None]] = Map()
    """Ids of open, running and lost tasks, by kind."""

    frames: Table[KnownFrame] = Map()
    waiting: Table[None] = Map()
    """Keys of frames in no label task yet."""
    pending: int = 0
    """Frames that wait for their label, in a task or in none."""
    proposed: int = 0
    """Those of them that generators asked for straight away."""
    revoked: int = 0
    """Frames nobody labels any more, because a newer version finds them accurate."""
    reused: int = 0
    """Labels that were known already and cost nothing."""
    audited: Table[None] = Map()
    """Keys of the labelled audit frames of all stages."""
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
    measured: m.Measured | None = None
    """Properties by the newest committee that was asked for them."""

    pool: Table[PoolItem] = Map()
    pool_new: int = 0
    stale: Table[PoolItem] = Map()
    taken: Table[tuple[float, ...]] = Map()
    selected: int = 0
    """Frames selected for training under this version."""

    proposals: Table[Proposal] = Map()
    """What is not judged yet, by content id."""
    unscreened: Table[None] = Map()
    """Those of them that no judge has been asked about."""
    answered: Table[None] = Map()
    """Ids of the proposals that are judged."""
    offers: Table[Offer] = Map()
    """By frame key."""
    intake: Table[Intake] = Map()
    """By generator."""
    offered_labels: int = 0
    """Labels asked for straight away, so far."""

    final: m.MemberTrained | None = None
    verified: m.Verified | None = None
    verify_failed: str | None = None

    @property
    def label_room(self) -> int:
        """Labels that the budget still allows to ask for."""
        return max(0, self.spec.budget.labels - len(self.frames) + self.revoked)

    @property
    def stages_over(self) -> bool:
        stuck = bool(self.ended) and self.ended[-1].verdict not in ("converged", "explored")
        return stuck or self.stage.index >= len(self.spec.stages)

    @property
    def awaited(self) -> int:
        """Frames whose label the loop waits for. While streaming nobody waits for those that
        generators asked for straight away: they may never cease."""
        return self.pending - (self.proposed if self.spec.mode == "streaming" else 0)

    def alive(self, kind: type[m.Command]) -> int:
        return len(self.live.get(kind.__name__, ()))

    def under_way(self, *kinds: type[m.Command]) -> list[Task]:
        """Live tasks, of these kinds or of all, by their ids."""
        names = [kind.__name__ for kind in kinds] or list(self.live)
        found = sorted(task for name in names for task in self.live.get(name, ()))
        return [self.tasks[task] for task in found]

    def dumps(self) -> bytes:
        return self.model_dump_json().encode()
