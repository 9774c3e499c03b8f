"""Values used in messages: references, conditions, trust levels, counts, verdicts, manifests."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

OFFERED = "generator:"
"""Prefix of origins and conditions of offered frames; stage names contain no colon."""
ANONYMOUS = "-"
"""In place of the user of a message that states none, where the broker knows users."""
LONGEST_REASON = 100
"""Characters of a verdict's reason: a hundred verdicts must fit in one message."""

NUMBERS = re.compile(r"\d[\d.,eEdD+-]*")

NAMESPACE = uuid.UUID("5d7c1c3e-8d0f-5d2c-9a51-0f3e6a9b7d11")

NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"
Name = Annotated[str, StringConstraints(pattern=NAME)]
TaskId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$")]
Correlation = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$")]
"""A generator's own id of a proposal; every verdict repeats it."""
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
FrameKey = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
FileName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
Key = Annotated[
    str,
    StringConstraints(
        pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$", max_length=512
    ),
]
_KEY: TypeAdapter[str] = TypeAdapter(Key)


def is_key(text: str) -> bool:
    """Whether `text` is a valid object key."""
    try:
        _KEY.validate_python(text, strict=True)
    except ValidationError:
        return False
    return True


def stable_id(*parts: object) -> str:
    """uuid5 of `parts`: the same parts give the same id on any machine."""
    return str(uuid.uuid5(NAMESPACE, "\x1f".join(str(part) for part in parts)))


def stable_seed(*parts: object) -> int:
    """A positive 31-bit seed derived from `parts`."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:4], "big") % (2**31 - 1) + 1


def given_model(number: int) -> str:
    """Name within a campaign of the user's initial model `number`."""
    return f"given-model-{number}"


class Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Ref(Value):
    """An object in the store: its key, its digest, its size."""

    uri: Key
    sha256: Sha256
    size: int = Field(ge=0, description="bytes")

    @staticmethod
    def to(uri: str, data: bytes) -> Ref:
        return Ref(uri=uri, sha256=hashlib.sha256(data).hexdigest(), size=len(data))


class Condition(Value):
    """Condition of an exploration: a starting system at one temperature and pressure."""

    system: str
    temperature: float = Field(description="K")
    pressure: float | None = Field(default=None, description="bar; None without a barostat")
    revision: int | None = Field(
        default=None, description="row of a template's revisions; None if there is only one"
    )
    electrons: float | None = Field(
        default=None, description="electron temperature, K; None: that of the starting frame"
    )

    def __str__(self) -> str:
        pressure = "" if self.pressure is None else f" {self.pressure:g} bar"
        revision = "" if self.revision is None else f" revision {self.revision}"
        electrons = "" if self.electrons is None else f" electrons {self.electrons:g} K"
        return f"{self.system} {self.temperature:g} K{pressure}{revision}{electrons}"


class Trust(Value):
    """Trust levels of the model deviation. `low`/`high` in eV/Å on forces; `low_v`/`high_v` in eV
    per atom on the virial (None: not judged). With `relative` the force deviation is divided by
    |mean force| + relative (eV/Å); likewise `relative_v` (eV)."""

    low: float
    high: float
    low_v: float | None = None
    high_v: float | None = None
    relative: float | None = None
    relative_v: float | None = None


class Counts(Value):
    """Frames by verdict."""

    accurate: int = 0
    candidate: int = 0
    failed: int = 0

    @property
    def total(self) -> int:
        return self.accurate + self.candidate + self.failed

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            accurate=self.accurate + other.accurate,
            candidate=self.candidate + other.candidate,
            failed=self.failed + other.failed,
        )


class FrameRef(Value):
    """One frame of a batch object (`dpstream.shared.atoms.frames.Batch`)."""

    batch: Ref
    index: int = Field(ge=0)
    key: FrameKey


class Rmse(Value):
    """Root mean square errors: energy per atom (eV), force component (eV/Å), virial per atom (eV);
    `rms_force` is the root mean square of the labels' own force components (eV/Å)."""

    frames: int
    energy: float
    force: float
    virial: float | None = None
    rms_force: float


class Compared(Value):
    """One number of a property, computed by models and by the recipe; `property` is the index in
    the spec's `verification.properties`. `why`: reason if one of the two is missing."""

    property: int
    name: str
    unit: str = ""
    model: float | None = None
    recipe: float | None = None
    why: str = ""


class DeviceFacts(Value):
    """What a model was trained on. `model`, `memory_mib`, `driver` and `runtime` (CUDA's) are those
    of a GPU; `backend` is named with its version; `precision` is that of the weights, *mixed* if
    parts of the model differ."""

    kind: Literal["cpu", "cuda"]
    model: str = ""
    memory_mib: int = 0
    driver: str = ""
    runtime: str = ""
    backend: str
    precision: str

    def __str__(self) -> str:
        return f"{self.model or self.kind.upper()}, {self.backend}, {self.precision}"


class Committee(Value):
    """A committee: models trained on the same dataset version with different seeds."""

    version: int
    models: tuple[Ref, ...]
    type_map: tuple[str, ...]


class PoolItem(Value):
    """Frames of one trajectory, judged by one committee version, available for selection."""

    frames: Ref
    count: int
    trajectory: str
    condition: Condition
    version: int
    planned_ps: float = Field(description="planned length of the trajectory, ps")


class Chosen(Value):
    """One frame picked by a select task: row `index` of batch `batch` of its event."""

    batch: int = Field(ge=0)
    index: int = Field(ge=0)
    key: FrameKey
    trajectory: str
    version: int
    time_ps: float
    deviation: float = Field(description="max force deviation, eV/Å")
    weight: float = Field(default=1.0, description="inverse inclusion probability")
    reason: str

    def frame_ref(self, batches: Sequence[Ref]) -> FrameRef:
        """The frame, given the batches of its event."""
        return FrameRef(batch=batches[self.batch], index=self.index, key=self.key)


def is_offered(trajectory: str) -> bool:
    """Whether frames of that origin come from an external generator, not from exploration."""
    return trajectory.startswith(OFFERED)


class OfferedFrame(Value):
    """A frame as a generator writes it. Validation never fails: screening reports what is wrong.
    species `(n_atoms,)`; positions `(n_atoms, 3)` Å; cell `(3, 3)` row
    vectors in Å, or None for a molecule."""

    species: tuple[str, ...] = ()
    positions: tuple[tuple[float, ...], ...] = ()
    cell: tuple[tuple[float, ...], ...] | None = None
    malformed: str = Field(
        default="",
        description="why the frame could not be read; set by the reader, not by generators",
    )

    @model_validator(mode="wrap")
    @classmethod
    def _leniently(cls, given: Any, read: ModelWrapValidatorHandler[OfferedFrame]) -> OfferedFrame:
        try:
            return read(given)
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            where = "".join(f"{part}: " for part in problem["loc"])
            return cls(malformed=f"malformed: {where}{problem['msg']}"[:LONGEST_REASON])


class Offered(Value):
    """The frames of a proposal, stored as an object that the command refers to."""

    frames: tuple[OfferedFrame, ...]


class FrameVerdict(Value):
    """Verdict on one offered frame; `index` counts from 0 in the generator's proposal.

    *accurate*, *candidate*, *failed*: by its model deviation; *candidate* also for a frame that
    goes straight to labeling; *duplicate*: known or offered before; *refused*: not usable;
    *labelled*, *rejected*: outcome of its label; *dropped*: a candidate that is no longer
    needed."""

    index: int = Field(ge=0)
    key: FrameKey | None = None
    verdict: Literal[
        "accurate", "candidate", "failed", "duplicate", "refused", "labelled", "rejected", "dropped"
    ]
    deviation: float | None = Field(default=None, description="max force deviation, eV/Å")
    energy: float | None = Field(default=None, description="eV")
    reason: str = ""


class Screened(FrameVerdict):
    """Screening verdict on one offered frame; a candidate is stored as row `row` of batch `batch`
    of the event."""

    batch: int | None = Field(default=None, ge=0)
    row: int | None = None


class Accepted(Value):
    key: FrameKey
    label: Ref
    reused: bool
    max_force: float
    seconds: float
    energy: float | None = Field(default=None, description="eV")
    writer: str | None = Field(
        default=None, description="user whose signature a reused label has; None: it has none"
    )


class Rejected(Value):
    """A frame or label that violates the acceptance contract; `rule` is the first rule violated."""

    key: FrameKey
    rule: str
    detail: str
    seconds: float = 0.0

    @property
    def kind(self) -> str:
        """Equal for rejections that differ only in their numbers."""
        return f"{self.rule}: {NUMBERS.sub('#', self.detail)}"


class CandidatePool(Value):
    """Input of a select task, stored as an object that the command refers to."""

    candidates: tuple[PoolItem, ...] = ()
    reservoirs: tuple[PoolItem, ...] = ()
    fallback: bool = Field(
        default=False, description="without candidates, choose the failed frames that deviate least"
    )
    taken: dict[str, tuple[float, ...]] = Field(
        default={}, description="times in ps already chosen, by trajectory"
    )
    used: dict[str, int] = Field(
        default={}, description="frames chosen under this committee version, by trajectory"
    )


class RefusedFrames(Value):
    """Why individual frames of a pool were not chosen; stored as an object that the event refers
    to."""

    frames: dict[FrameKey, str]


class Dataset(Value):
    """A dataset version: its parent plus what was added. `packs` are labelled batches (`Batch`
    with arrays energy, forces and, when periodic, virial), `labels` single labelled frames."""

    version: int
    parent: Ref | None = None
    packs: tuple[Ref, ...] = ()
    labels: tuple[Ref, ...] = ()
    origins: tuple[str, ...] = Field(
        default=(), description="audit sets: the trajectory each label comes from"
    )
    weights: tuple[float, ...] = Field(
        default=(), description="audit sets: inverse inclusion probability of each label"
    )


Kpoints = tuple[
    Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]
]


Carrier = Literal["fparam", "aparam"]
"""The parameter that holds the electron temperature: one number per frame, or per atom."""


class ImportedSet(Value):
    """What became of a source of imported labels, a name or pattern of the spec."""

    name: str
    found: int = Field(ge=0, description="frames")
    taken: int = Field(ge=0, description="frames with a valid label")
    left_out: dict[str, int] = Field(default={}, description="frames by broken rule")
    energies: tuple[str, ...] = Field(
        default=(), description="kinds of energies: free, internal, or empty if not stated"
    )


class LabelInputs(Value):
    """Inputs of the labels of one composition that override those of the recipe."""

    charge: int | None = Field(default=None, description="e")
    multiplicity: int | None = Field(default=None, ge=0, description="2S + 1; 0: the lowest")
    kpoints: Kpoints | None = Field(default=None, description="divisions of the mesh")
    magmom: tuple[float, ...] | None = Field(
        default=None, description="µB of each atom, atoms sorted by element"
    )

    @property
    def given(self) -> dict[str, Any]:
        return {name: value for name, value in self if value is not None}


class Recipe(Value):
    """How labels are computed: everything that affects the numbers, and nothing else. `settings`
    are those of the code, complete and normalised; `version` is the code's version, which only
    before a submission may be None: the workers of the deployment are yet to state it. A
    `multiplicity` of 0 is the lowest that the number of electrons allows. `compositions` are keyed
    by formula, as `C1H4`. `electron_temperature` names the frame parameter that holds the electron
    temperature."""

    code: Name
    version: str | None
    settings: dict[str, Any]
    charge: int
    multiplicity: int
    magmom: tuple[float, ...] | None = None
    compositions: dict[str, LabelInputs] = {}
    electron_temperature: Carrier | None = None

    @property
    def program(self) -> str:
        """The code and its version, for people; versions of calculators name their packages."""
        if self.version is None:
            return f"{self.code} of the workers' version"
        named = self.version.startswith(f"{self.code} ")
        return self.version if named else f"{self.code} {self.version}"

    @property
    def digest(self) -> str:
        """Digest of the recipe's content; names the folder of its labels."""
        fields = self.model_dump(exclude_defaults=True)
        canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def of(self, formula: str, electrons: int) -> Recipe:
        """The recipe for frames of one composition, which have `electrons` when neutral. It equals
        that of a campaign with this composition alone, so that campaigns share labels."""
        given = self.compositions.get(formula, LabelInputs()).given
        settings = self.settings
        if "kpoints" in given:
            spaced = {"kspacing": None} if "kspacing" in settings else {}
            settings = {**settings, **spaced, "kpoints": list(given.pop("kpoints"))}
        own = self.model_copy(update={"compositions": {}, "settings": settings, **given})
        if own.multiplicity:
            return own
        return own.model_copy(update={"multiplicity": 1 + (electrons - own.charge) % 2})


DEADLETTER_PREFIX = "deadletters/"
"""Key prefix of messages that could not be decoded."""
FLEET_PREFIX = "fleet/"
"""Objects about deployments: what their workers have cost, and which coordinator is in charge."""
PROGRAMS = f"{FLEET_PREFIX}programs.json"
"""What the workers of a deployment say that they run (`shared/programs.py`)."""
ROOMS = ("campaigns", "labels", DEADLETTER_PREFIX.removesuffix("/"))
"""Top-level folders of a store, for objects only; campaign exports may lie beside them."""


SIGNERS = "access/label-signers.json"
"""Object with the public keys of labelers (`services/labeler/signatures.py`)."""
TRAINED = "member-trained.jsonl"
"""Among the results of a training: its command and its event, from which `dpstream repair` knows
them if the ledger has lost them."""


def label_uri(recipe: str, key: str) -> str:
    """Key of the label of frame `key` by recipe digest `recipe`, shared by all campaigns."""
    return f"labels/{recipe}/{key[:2]}/{key}.json"


def campaign_uri(campaign: str, *parts: object) -> str:
    """A key inside a campaign's folder."""
    return "/".join(["campaigns", campaign, *(str(part) for part in parts)])
