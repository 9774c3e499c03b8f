"""The sections of a campaign spec, each a frozen model with every key described.

Units: eV, Å, ps, K, bar.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, PositiveInt, Tag, model_validator

from shared.explorers import AnyEngine, AsGiven, Plain, Template, frames_per_check
from shared.frames import PARAMETERS
from shared.section import Positive, Section, Share
from shared.values import Carrier, Condition, Kpoints, LabelInputs, Name, Trust


class Slabs(Section):
    """Surfaces cut from crystals, instead of the crystals."""

    miller: tuple[tuple[int, int, int], ...] = Field(
        min_length=1, description="indices in the cell of the file, usually the conventional one"
    )
    layers: int | None = Field(
        default=None, ge=1, description="cells along the normal; or thickness"
    )
    thickness: Positive | None = Field(default=None, description="Å, instead of layers")
    vacuum: tuple[Positive, ...] = Field(
        default=(10.0,), min_length=1, description="Å in all, each a slab of its own"
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> Slabs:
        if (self.layers is None) == (self.thickness is None):
            raise ValueError("give either layers or thickness")
        if (0, 0, 0) in self.miller:
            raise ValueError("miller: [0, 0, 0] is no plane")
        return self


class SystemLabel(Section):
    """What the labels of a system are computed with, where it is not what `labels` says. It holds
    for every frame of the same composition."""

    charge: int | None = Field(default=None, description="e")
    multiplicity: int | None = Field(
        default=None, ge=0, description="2S + 1; 0: the lowest that the electrons allow"
    )
    kpoints: Kpoints | None = Field(default=None, description="divisions of the mesh, [4, 4, 4]")
    magmom: dict[str, float] | tuple[float, ...] | None = Field(
        default=None, description="µB by element, or of each atom in the order of the file"
    )


class System(Section):
    structures: tuple[str, ...] = Field(
        min_length=1,
        description="files (globs allowed) that ASE reads: POSCAR, extxyz, xyz, cif…; relative to "
        "the spec. Every frame of every file is a starting structure",
    )
    periodic: bool | None = Field(
        default=None, description="default: as the file says; false drops the cell"
    )
    format: str | None = Field(
        default=None,
        description="dpdata's name of the files' format, e.g. lammps/lmp, abacus/stru; default: as "
        "ASE tells from the file",
    )
    fparam: tuple[float, ...] = Field(
        default=(),
        description="frame parameters of every frame that comes from these structures (an electron "
        "temperature…), as many as model.fitting_net.numb_fparam says",
    )
    aparam: tuple[float, ...] = Field(
        default=(), description="likewise of every atom, as many as numb_aparam says"
    )
    label: SystemLabel | None = Field(
        default=None, description="label inputs of this system: charge, kpoints, magmom…"
    )
    slabs: Slabs | None = Field(default=None, description="surfaces of the structures, instead")
    supercell: tuple[PositiveInt, PositiveInt, PositiveInt] | None = Field(
        default=None, description="repeats along the cell vectors, of slabs too"
    )


class Perturb(Section):
    """Perturbed copies of the starting structures, labelled before the first training."""

    copies: int = Field(default=20, ge=1, description="per system")
    displace: Positive = Field(default=0.1, description="Å, largest displacement of one atom")
    strain: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        default=0.03, description="largest change of a cell component, as a fraction"
    )
    scale: tuple[Annotated[float, Field(ge=0.5, le=2)], ...] = Field(
        default=(1.0,),
        min_length=1,
        description="factors on every length first, dealt over the copies in turn, e.g. "
        "[0.96, 1.0, 1.04]",
    )


class Dimers(Section):
    """Two atoms alone at given distances, labelled before the first training. They are not
    rejected as too close, and do not count in a member's error on its training frames."""

    pairs: tuple[str, ...] = Field(
        default=(), description="e.g. [C-H, H-H]; default: all that the recipe can compute"
    )
    distances: tuple[Annotated[float, Field(ge=0.1, le=20)], ...] = Field(
        min_length=1, max_length=50, description="Å, of every pair"
    )
    box: Positive | None = Field(
        default=None, description="Å, edge of a cubic cell; default: in vacuum"
    )
    max_force: Positive = Field(
        default=500.0, description="eV/Å; a label above is rejected (instead of labels.max_force)"
    )

    @model_validator(mode="after")
    def _inside(self) -> Dimers:
        if self.box is not None and max(self.distances) > self.box / 2:
            raise ValueError(f"distances: above half the box ({self.box / 2:g} Å) meet an image")
        return self


class Initial(Section):
    data: tuple[str, ...] = Field(
        default=(),
        description="labelled sets: DeePMD npy folders or HDF5 files, extxyz, VASP OUTCAR",
    )
    pick: int = Field(
        default=0,
        ge=0,
        description="structures of the systems drawn at random, labelled before the first training",
    )
    perturb: Perturb | None = Field(
        default=None, description="perturbed copies of the starting structures"
    )
    dimers: Dimers | None = Field(default=None, description="two atoms at given distances")


ZBL = "zbl"


class Repulsion(Section):
    """Where an atom's nearest neighbour is nearer than `inner` a table of pair energies replaces
    the model, between `inner` and `outer` both share (H. Wang et al., Appl. Phys. Lett. 114,
    244101 (2019); DeePMD-kit's use_srtab)."""

    table: str = Field(
        default=ZBL,
        description="zbl: the universal potential of Ziegler, Biersack and Littmark; or a file: "
        "r (Å), then the energies (eV) of all pairs of types, evenly spaced, down to zero",
    )
    inner: Positive = Field(description="Å; below: the table alone")
    outer: Positive = Field(description="Å; above: the model alone")
    smin_alpha: Positive = Field(
        default=0.1, description="softness of the nearest distance, DeePMD-kit's"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Repulsion:
        if self.inner >= self.outer:
            raise ValueError(f"inner ({self.inner:g}) must be below outer ({self.outer:g})")
        return self


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class Init(Section):
    """A given model in whose weights every training begins that would else begin from scratch. Its
    architecture is taken with it: `training.input.model` counts for nothing."""

    model: Annotated[tuple[str, ...], BeforeValidator(_listed)] = Field(
        min_length=1, description="file, or one file for each member"
    )
    how: Literal["init-model", "init-frz-model", "finetune"] = Field(
        description="init-model: from a checkpoint; init-frz-model: from a frozen model; "
        "finetune: likewise, with the energies of atoms adapted to the data (DeePMD-kit's words)"
    )


class Final(Section):
    """The one long cold training on all labels that ends a campaign."""

    steps_factor: Positive = Field(default=3.0, description="times the steps of a cold training")


class Training(Section):
    members: int = Field(default=4, ge=2, le=16, description="models in the committee")
    backend: Literal["tensorflow", "pytorch", "jax"] = Field(
        default="tensorflow", description="DeePMD-kit's"
    )
    input: dict[str, Any] = Field(
        default={},
        description="sections of a DeePMD-kit input.json, merged over the defaults key by key; "
        "type_map, seeds, systems and number of steps are dpstream's",
    )
    member_input: dict[int, dict[str, Any]] = Field(
        default={}, description="further overrides by member number, from 0"
    )
    batch_atoms: int = Field(
        default=32, ge=1, description="frames per batch = ceil(batch_atoms / n_atoms)"
    )
    epochs: Positive = Field(default=60.0, description="passes over the dataset")
    min_steps: int = Field(default=1000, ge=1, description="steps, however small the dataset")
    max_steps: int = Field(default=1_000_000, ge=1, description="steps, however large it is")
    decay: Literal["scaled", "fixed"] = Field(
        default="scaled",
        description="scaled: the learning rate reaches its end with the last step; fixed: "
        "decay_steps as given, like DP-GEN",
    )
    warm: Share = Field(
        default=0.0,
        description="warm starts train this fraction of a cold training's steps; 0: always cold",
    )
    warm_start_lr: Positive = Field(
        default=1e-4, description="learning rate a warm start begins at, or one from a given model"
    )
    warm_input: dict[str, Any] = Field(
        default={}, description="sections of input.json for warm starts, over all others"
    )
    cold_every: int = Field(default=4, ge=1, description="every so many versions start cold")
    limited_above: Positive = Field(
        default=0.5,
        description="training-limited when a member's force RMSE on its own training frames is "
        "above this fraction of the trust level `low`",
    )
    lengthen: Annotated[float, Field(ge=1)] = Field(
        default=2.0, description="factor on the steps after a training-limited verdict"
    )
    max_lengthen: Annotated[float, Field(ge=1)] = Field(
        default=4.0, description="largest such factor in all; 1 never lengthens"
    )
    compress: bool = Field(default=True, description="compress models where the descriptor allows")
    checkpoint_steps: int = Field(default=1000, ge=1, description="steps between checkpoints")
    max_hours: Positive = Field(default=24.0, description="longest wall time of one training")
    final: Final = Field(default=Final(), description="the training that ends the campaign")
    repulsion: Repulsion | None = Field(
        default=None, description="at short range, instead of the model"
    )
    init: Init | None = Field(default=None, description="a given model to begin from")

    @property
    def parameters(self) -> dict[str, int]:
        """How many frame and atomic parameters the models take."""
        model = self.input.get("model", {})
        fitting = model.get("fitting_net", {}) if isinstance(model, dict) else {}
        sizes = fitting if isinstance(fitting, dict) else {}
        return {name: sizes.get(f"numb_{name}", 0) for name in PARAMETERS}


class Md(Section):
    ensemble: Literal["nve", "nvt", "npt", "npt-iso", "npt-aniso", "npt-tri"] = Field(
        default="nvt", description="npt means npt-iso"
    )
    timestep: Positive = Field(default=0.001, description="ps")
    steps: int = Field(default=1000, ge=1)
    every: int = Field(default=10, ge=1, description="steps between deviation checks")
    skip: int = Field(default=0, ge=0, description="first steps, whose frames are not judged")
    trajectories: int = Field(default=1, ge=1, description="per condition and round")
    tau_t: Positive = Field(default=0.1, description="thermostat damping, ps")
    tau_p: Positive = Field(default=0.5, description="barostat damping, ps")
    chunk: int = Field(default=25, ge=1, description="checks per chunk in streaming mode")
    stop_after: int = Field(default=5, ge=1, description="checks in a row above `high`")
    overlap: Positive = Field(default=0.4, description="Å; closer atoms stop the trajectory")
    masses: dict[str, Positive] = Field(default={}, description="amu, instead of the standard ones")


class AutoTrust(Section):
    """Trust levels found from the labels: low, high = 0.2, 0.5 × RMS force, then calibrated."""

    target: Positive = Field(description="force error to aim at, eV/Å")
    min_pairs: int = Field(
        default=30, ge=5, description="pairs of deviation and true error before calibrating"
    )


class TrustLevels(Section):
    """Levels of the model deviation: force in eV/Å, virial in eV per atom."""

    low: Annotated[float, Field(ge=0)] = Field(description="eV/Å; below: accurate")
    high: Positive = Field(description="eV/Å; from here on: failed, between the two: candidate")
    low_v: Positive | None = Field(default=None, description="eV per atom; with high_v")
    high_v: Positive | None = Field(default=None, description="eV per atom; with low_v")
    relative: Positive | None = Field(
        default=None, description="divide the force deviation by |mean force| + this (eV/Å)"
    )
    relative_v: Positive | None = Field(
        default=None, description="likewise for the virial deviation (eV)"
    )

    @model_validator(mode="after")
    def _ordered(self) -> TrustLevels:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        if (self.low_v is None) != (self.high_v is None):
            raise ValueError("low_v and high_v come together")
        if self.low_v is not None and self.high_v is not None and self.low_v >= self.high_v:
            raise ValueError(f"low_v ({self.low_v:g}) must be below high_v ({self.high_v:g})")
        return self

    def values(self) -> Trust:
        return Trust(**self.model_dump())


def _trust_kind(value: Any) -> str | None:
    """Which of the two forms of `trust` a value means; None when that cannot be told."""
    if isinstance(value, TrustLevels):
        return "levels"
    if isinstance(value, AutoTrust):
        return "auto"
    if not isinstance(value, dict):
        return None
    auto, levels = value.keys() & {"target", "min_pairs"}, value.keys() & {"low", "high"}
    if auto and levels:
        return None
    return "auto" if auto else "levels"


TRUST_TAGS = ("levels", "auto")
AnyTrust = Annotated[
    Annotated[TrustLevels, Tag("levels")] | Annotated[AutoTrust, Tag("auto")],
    Discriminator(
        _trust_kind,
        custom_error_type="trust",
        custom_error_message="give either levels {low, high, …} or automatic {target, min_pairs}",
    ),
]


class Selection(Section):
    policy: Literal["random", "max-deviation", "diverse"] = Field(
        default="random", description="which candidates are labelled"
    )
    per_round: int = Field(
        default=20,
        ge=1,
        le=150,
        description="most new labels per round; one message names them all, hence 150 at most",
    )
    per_system: int | None = Field(default=None, ge=1, description="most per system and round")
    min_per_system: int = Field(
        default=0, ge=0, description="a system with less to label in a round has none labelled"
    )
    none_above: Share | None = Field(
        default=None, description="accurate share of a system from which none of it is labelled"
    )
    fewer_above: Share | None = Field(
        default=None,
        description="accurate share from which `per_system` shrinks, linearly to none at "
        "`none_above`",
    )
    per_trajectory: int = Field(
        default=1, ge=1, description="most frames of one trajectory per committee version"
    )
    min_separation: Annotated[float, Field(ge=0)] = Field(
        default=0.1, description="ps between frames of one trajectory"
    )
    time_bins: int = Field(
        default=4, ge=1, description="bins of trajectory time dealt from in turn"
    )
    select_every: int = Field(default=10, ge=1, description="streaming: candidates per selection")
    min_distance: dict[str, Positive] = Field(
        default={}, description="Å by pair, e.g. {C-H: 0.6}; default 0.5 × sum of covalent radii"
    )
    max_skew: Positive = Field(
        default=1.0, description="largest tilt of the cell over the length it tilts along"
    )

    @model_validator(mode="after")
    def _shrinks(self) -> Selection:
        if self.fewer_above is None:
            return self
        if self.per_system is None or self.none_above is None:
            raise ValueError("fewer_above needs per_system and none_above")
        if self.fewer_above > self.none_above:
            raise ValueError(
                f"fewer_above ({self.fewer_above:g}) must not be above none_above "
                f"({self.none_above:g})"
            )
        return self


class Stage(Section):
    name: Name = Field(description="what the stage is called")
    systems: tuple[str, ...] = Field(min_length=1, description="names from `systems`")
    temperatures: tuple[Positive, ...] = Field(min_length=1, description="K")
    electron_temperatures: tuple[Positive, ...] = Field(
        default=(),
        description="K, one beside each of `temperatures`; default: what the systems say; with "
        "labels.electron_temperature only",
    )
    pressures: tuple[float, ...] = Field(default=(), description="bar; npt only")
    md: Md = Field(default=Md(), description="overrides of the campaign's `md`")
    engine: AnyEngine = Field(
        default=Plain(), description="what drives the trajectories, with its settings"
    )
    trust: AnyTrust | None = Field(default=None, description="default: the campaign's")
    system_trust: dict[Name, TrustLevels] = Field(
        default={},
        description="levels of single systems, by name, instead of `trust`; of mode lockstep",
    )
    starts: Literal["in-turn", "all"] = Field(
        default="in-turn",
        description="where trajectories start: at the structures of a system in turn, or "
        "`md.trajectories` at every one of them",
    )
    repeat: bool = Field(
        default=True,
        description="false: one round, then the next stage whatever was found (DP-GEN's jobs)",
    )

    @model_validator(mode="after")
    def _paired(self) -> Stage:
        electrons, ions = len(self.electron_temperatures), len(self.temperatures)
        if electrons not in (0, ions):
            raise ValueError(
                f"electron_temperatures: {electrons} for {ions} temperatures; give one beside each"
            )
        return self

    @property
    def frames(self) -> int:
        """Judged along one trajectory."""
        return self.md.steps // self.md.every * frames_per_check(self.engine)

    def conditions(self) -> Iterator[Condition]:
        """Systems × temperatures × pressures, and the revisions of a template."""
        for system in self.systems:
            for temperature, electrons in self._temperatures():
                for pressure in self.pressures or (None,):
                    for revision in self._revisions(system):
                        yield Condition(
                            system=system,
                            temperature=temperature,
                            pressure=pressure,
                            revision=revision,
                            electrons=electrons,
                        )

    @property
    def at_every_start(self) -> bool:
        """Whether trajectories start at each of a system's structures, instead of in turn."""
        return self.starts == "all" or isinstance(self.engine, AsGiven)

    def trajectories(self, structures: int) -> int:
        """Of one condition, whose system has so many structures."""
        if isinstance(self.engine, AsGiven):
            return structures
        return self.md.trajectories * (structures if self.at_every_start else 1)

    def _temperatures(self) -> list[tuple[float, float | None]]:
        """Of the atoms and of the electrons, K."""
        electrons = self.electron_temperatures or (None,) * len(self.temperatures)
        return list(zip(self.temperatures, electrons, strict=True))

    def _revisions(self, system: str) -> tuple[int | None, ...]:
        rows = self.engine.rows(system) if isinstance(self.engine, Template) else ()
        return tuple(range(len(rows))) if len(rows) > 1 else (None,)


class Material(Section):
    """A stage plan from the melting point and bulk modulus: temperatures in four groups 0–0.5,
    0.5–1, 1–1.5 and 1.5–2 Tm, pressures 0, 0.03, 0.06 and 0.09 B, each group a stage; below Tm
    also −0.01 B. (DP-GEN's practical guide: W. Jiang et al.)"""

    Tm: Positive = Field(description="melting point, K")
    B: Positive = Field(description="bulk modulus, GPa")
    temperatures_per_group: int = Field(default=2, ge=1, description="evenly spaced")


DATASET = "dataset"
"""The labeling code of labels that came with a dataset."""


class Labels(Section):
    code: Name = Field(default="tblite", description="labeling code; docs/labeling lists them")
    settings: dict[str, Any] = Field(
        default={}, description="the code's own settings; {file: NAME} stands for a file's text"
    )
    charge: int = Field(default=0, description="of every frame, in e")
    multiplicity: int = Field(
        default=1, ge=0, description="2S + 1; 0: the lowest that the electrons allow"
    )
    compositions: dict[str, LabelInputs] = Field(
        default={}, description="by formula, e.g. C1H4; written from systems.NAME.label"
    )
    electron_temperature: Carrier | None = Field(
        default=None,
        description="the parameter of frames that is their electron temperature in K: electrons "
        "are occupied by Fermi and Dirac there, instead of the smearing in `settings`",
    )
    bundle: int = Field(default=5, ge=1, le=100, description="frames per label task")
    max_force: Positive = Field(default=50.0, description="eV/Å; a label above is rejected")
    min_distance: Positive = Field(default=0.5, description="Å; a closer frame is not computed")
    force: bool = Field(default=False, description="compute where the code would refuse by default")
    max_seconds: Positive = Field(default=3600.0, description="longest wall time of one frame")
    version: str | None = Field(
        default=None,
        min_length=1,
        description="of the code, e.g. 2023.1; needed where the submitting machine has none",
    )
    worker_class: Name | None = Field(
        default=None,
        max_length=30,
        description="label only on workers of this class (e.g. 32-cores); default: of none",
    )

    @property
    def capability(self) -> str:
        """The label queue of this campaign: the code, and the class of worker where one is asked
        for."""
        return self.code if self.worker_class is None else f"{self.code}-{self.worker_class}"


class Audit(Section):
    """Labels of frames nobody asked for, never trained on: the measure of the true error."""

    per_round: int = Field(default=10, ge=0, le=50, description="0: no audit")
    min_frames: int = Field(default=30, ge=1, description="per stage, before it may converge")
    min_trajectories: int = Field(default=5, ge=1, description="that these frames come from")
    reservoir: int = Field(default=4, ge=1, description="frames kept per trajectory and class")
    force_rmse: Positive = Field(default=0.1, description="eV/Å, on the 95 % upper bound")
    error_target: Positive = Field(default=0.5, description="eV/Å, max-atom force error")
    exceed: Share = Field(
        default=0.2,
        description="largest P(max-atom error > error_target | accurate), on the upper bound",
    )


class Convergence(Section):
    accurate_ratio: Share = Field(default=0.95, description="of the worst condition")
    max_failed: Share = Field(default=0.02, description="failed share, of the worst condition")
    max_rejected: Share = Field(default=0.2, description="rejected labels over labels tried")
    rounds: int = Field(default=1, ge=1, description="good rounds in a row")


class Budget(Section):
    labels: int = Field(default=10_000, ge=1, description="labels computed or reused, of any kind")
    rounds: int = Field(default=20, ge=1, description="most rounds of one stage")


class Streaming(Section):
    retrain_after: int = Field(default=10, ge=1, description="new labels that start a training")
    max_staleness: int = Field(default=1, ge=0, description="versions a candidate may lag behind")


class Proposals(Section):
    """Frames that external generators offer, and how many."""

    enabled: bool = Field(default=True, description="false: every proposal is refused")
    max_frames: int = Field(default=100, ge=1, le=100, description="per message")
    max_atoms: int = Field(default=500, ge=1, description="per frame")
    max_bytes: int = Field(
        default=16 * 1024 * 1024, ge=1, description="of frames given by reference, unpacked"
    )
    frames_per_hour: int = Field(default=2000, ge=1, description="per generator")
    outstanding: int = Field(
        default=1000, ge=1, description="frames of one generator that wait to be judged"
    )
    labels: int = Field(
        default=1000, ge=0, description="most labels of frames that go straight to labeling"
    )


class ReferenceMd(Section):
    """Held-out frames from dynamics driven by the labeling code itself (in-process codes)."""

    system: str = Field(description="a name from `systems`; its first structure starts")
    temperature: Positive = Field(default=300.0, description="K")
    trajectories: int = Field(default=10, ge=1, description="independent ones")
    frames: int = Field(default=5, ge=1, description="kept per trajectory")
    spacing: Positive = Field(default=0.1, description="ps between kept frames")
    equilibrate: Annotated[float, Field(ge=0)] = Field(default=0.2, description="ps thrown away")
    timestep: Positive = Field(default=0.0005, description="ps")


class Property(Section):
    """A property of a crystal by the models, which must lie near that by the recipe. Both from the
    same structures, atoms at their fractional places: the labels are never trained on."""

    property: Literal["volume", "bulk-modulus", "elastic", "vacancy"] = Field(
        description="equilibrium volume and bulk modulus: 7 volumes, ±6 %; elastic constants: "
        "stresses at strains of ±0.5 %; vacancy: the first atom of each element taken out"
    )
    system: str = Field(description="a name from `systems`; its first structure, near rest")
    tolerance: Positive = Field(description="of each number, as a share of the recipe's")


class Verification(Section):
    """What the final model must show."""

    data: tuple[str, ...] = Field(default=(), description="held-out labelled sets")
    reference_md: ReferenceMd | None = Field(
        default=None, description="held-out frames made by the labeling code"
    )
    max_force_error: Share = Field(default=0.05, description="force RMSE over RMS force")
    nve_ps: Annotated[float, Field(ge=0)] = Field(default=10.0, description="0: no such run")
    nve_temperature: Positive = Field(default=300.0, description="K")
    max_drift: Positive = Field(default=1e-3, description="eV per atom per ps")
    properties: tuple[Property, ...] = Field(
        default=(),
        max_length=20,
        description="also of the committee that ends the last stage, or exploring goes on",
    )
