"""Sections on exploration: dynamics, trust levels, selection of candidates, stages."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from dpstream.shared.spec.base import Positive, Section, Share
from dpstream.shared.spec.engines import (
    AnyEngine,
    AsGiven,
    Plain,
    Template,
    driver_of,
    frames_per_check,
)
from dpstream.shared.values import Condition, Name, Trust


class Md(Section):
    ensemble: Literal["nve", "nvt", "npt", "npt-iso", "npt-aniso", "npt-tri"] = Field(
        default="nvt", description="npt is short for npt-iso"
    )
    timestep: Positive = Field(default=0.001, description="ps")
    steps: int = Field(default=1000, ge=1, description="steps per trajectory")
    every: int = Field(default=10, ge=1, description="steps between deviation checks")
    skip: int = Field(default=0, ge=0, description="steps at the start whose frames are ignored")
    trajectories: int = Field(default=1, ge=1, description="trajectories per condition and round")
    tau_t: Positive = Field(default=0.1, description="thermostat damping, ps")
    tau_p: Positive = Field(default=0.5, description="barostat damping, ps")
    chunk: int = Field(default=25, ge=1, description="checks per chunk in streaming mode")
    stop_after: int = Field(
        default=5, ge=1, description="consecutive checks above `high` that end a trajectory"
    )
    overlap: Positive = Field(
        default=0.4, description="Å; a trajectory ends when two atoms are closer"
    )
    masses: dict[str, Positive] = Field(
        default={}, description="amu by element, instead of standard masses"
    )


class AutoTrust(Section):
    """Trust levels calibrated from the labels, starting at 0.2 and 0.5 × the RMS force."""

    target: Positive = Field(description="targeted force error, eV/Å")
    min_pairs: int = Field(
        default=30, ge=5, description="pairs of deviation and true error needed to calibrate"
    )


class TrustLevels(Section):
    """Levels of the model deviation: of forces in eV/Å, of the virial in eV per atom."""

    low: Annotated[float, Field(ge=0)] = Field(description="eV/Å; below: accurate")
    high: Positive = Field(description="eV/Å; at or above: failed; in between: candidate")
    low_v: Positive | None = Field(
        default=None, description="eV per atom, for the virial; requires high_v"
    )
    high_v: Positive | None = Field(
        default=None, description="eV per atom, for the virial; requires low_v"
    )
    relative: Positive | None = Field(
        default=None, description="divide the force deviation by |mean force| + this (eV/Å)"
    )
    relative_v: Positive | None = Field(
        default=None, description="divide the virial deviation by |mean virial| + this (eV)"
    )

    @model_validator(mode="after")
    def _ordered(self) -> TrustLevels:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        if (self.low_v is None) != (self.high_v is None):
            raise ValueError("give both low_v and high_v, or neither")
        if self.low_v is not None and self.high_v is not None and self.low_v >= self.high_v:
            raise ValueError(f"low_v ({self.low_v:g}) must be below high_v ({self.high_v:g})")
        return self

    def values(self) -> Trust:
        return Trust(**self.model_dump())


def _trust_kind(value: Any) -> str | None:
    """The form of `trust` that a value has; None if it has keys of both or of neither."""
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
        custom_error_message="give either fixed levels {low, high, …} or {target, min_pairs}",
    ),
]


class Clusters(Section):
    """Molecular clusters cut from periodic frames, which are labelled instead of the frames: the
    whole molecules with an atom within `radius` of the atom with the largest deviation."""

    radius: Positive = Field(description="Å; at most half the width of the cell")
    per_frame: int = Field(
        default=1,
        ge=1,
        description="clusters of a frame, around the atoms with the largest deviations",
    )
    separation: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="Å between the centres of a frame's clusters"
    )


Policy = Literal["random", "uniform", "max-deviation", "diverse"]


class Selection(Section):
    policy: Policy | None = Field(
        default=None,
        description="which candidates are labelled; uniform (the default): each with the same "
        "probability, as by DP-GEN; random: drawn from conditions and time bins in turn; "
        "max-deviation: the largest deviations; diverse: the most diverse environments",
    )
    per_round: int = Field(default=20, ge=1, description="largest number of new labels per round")
    per_system: int | None = Field(
        default=None, ge=1, description="largest number of new labels per system and round"
    )
    min_per_system: int = Field(
        default=0,
        ge=0,
        description="no frame of a system is labelled in a round with fewer candidates of it",
    )
    none_above: Share | None = Field(
        default=None, description="accurate share of a system from which none is labelled"
    )
    fewer_above: Share | None = Field(
        default=None,
        description="accurate share from which `per_system` decreases, linearly to 0 at "
        "`none_above`",
    )
    pool_size: int | None = Field(
        default=None,
        ge=1,
        description="candidates of each system from which labels are drawn, those with the largest "
        "deviations; default: all",
    )
    pool_share: Share | None = Field(
        default=None,
        description="as pool_size, as a share of a system's candidates; the larger number counts",
    )
    per_trajectory: int = Field(
        default=1, ge=1, description="largest number of frames per trajectory and committee version"
    )
    min_separation: Annotated[float, Field(ge=0)] = Field(
        default=0.1, description="ps between selected frames of one trajectory"
    )
    time_bins: int = Field(
        default=4, ge=1, description="bins of trajectory time that are drawn from in turn"
    )
    select_every: int = Field(
        default=10, ge=1, description="streaming mode: candidates per selection"
    )
    clusters: Clusters | None = Field(
        default=None, description="label clusters of molecules instead of whole periodic frames"
    )
    min_distance: dict[str, Positive] = Field(
        default={}, description="Å by pair, e.g. {C-H: 0.6}; default: 0.5 × sum of covalent radii"
    )
    max_skew: Positive = Field(
        default=1.0, description="largest tilt of the cell, relative to the edge it tilts along"
    )

    @property
    def drawn_by(self) -> Policy:
        """The policy. The default is resolved here, so that a campaign of an earlier release, whose
        stored spec states its own, keeps that."""
        return self.policy or "uniform"

    @model_validator(mode="after")
    def _shrinks(self) -> Selection:
        if self.fewer_above is None:
            return self
        if self.per_system is None or self.none_above is None:
            raise ValueError("fewer_above requires per_system and none_above")
        if self.fewer_above > self.none_above:
            raise ValueError(
                f"fewer_above ({self.fewer_above:g}) must not exceed none_above "
                f"({self.none_above:g})"
            )
        return self


class Stage(Section):
    name: Name = Field(description="name of the stage")
    systems: tuple[str, ...] = Field(min_length=1, description="names from `systems`")
    temperatures: tuple[Positive, ...] = Field(min_length=1, description="K")
    electron_temperatures: tuple[Positive, ...] = Field(
        default=(),
        description="K, one for each of `temperatures`; default: those of the systems; requires "
        "labels.electron_temperature",
    )
    pressures: tuple[float, ...] = Field(default=(), description="bar; requires an npt ensemble")
    md: Md = Field(default=Md(), description="overrides keys of the campaign's `md`")
    engine: AnyEngine = Field(
        default=Plain(), description="exploration engine: its kind, or kind and settings"
    )
    trust: AnyTrust | None = Field(default=None, description="default: the campaign's")
    system_trust: dict[Name, TrustLevels] = Field(
        default={},
        description="levels for single systems instead of `trust`; requires mode lockstep",
    )
    starts: Literal["in-turn", "all"] = Field(
        default="in-turn",
        description="in-turn: trajectories start from the structures of a system in turn; all: "
        "`md.trajectories` start from each structure",
    )
    repeat: bool = Field(
        default=True,
        description="false: one round, then the next stage, converged or not (as DP-GEN's jobs)",
    )

    @model_validator(mode="after")
    def _paired(self) -> Stage:
        electrons, ions = len(self.electron_temperatures), len(self.temperatures)
        if electrons not in (0, ions):
            raise ValueError(
                f"electron_temperatures: {electrons} for {ions} temperatures; give one for each"
            )
        return self

    @property
    def frames(self) -> int:
        """Number of frames judged per trajectory."""
        return self.md.steps // self.md.every * frames_per_check(self.engine)

    @property
    def uses_virial(self) -> bool:
        """Whether the committee's virial moves the cell."""
        return self.md.ensemble.startswith("npt") and driver_of(self.engine) is None

    def conditions(self) -> Iterator[Condition]:
        """All combinations of systems, temperatures, pressures and revisions of a template."""
        pressures = self.pressures or (None,)
        for system in self.systems:
            combined = product(self._temperatures(), pressures, self._revisions(system))
            for (temperature, electrons), pressure, revision in combined:
                yield Condition(
                    system=system,
                    temperature=temperature,
                    pressure=pressure,
                    revision=revision,
                    electrons=electrons,
                )

    @property
    def at_every_start(self) -> bool:
        """Whether trajectories start from each structure of a system instead of in turn."""
        return self.starts == "all" or isinstance(self.engine, AsGiven)

    def trajectories(self, structures: int) -> int:
        """Number of trajectories of one condition whose system has `structures` structures."""
        if isinstance(self.engine, AsGiven):
            return structures
        return self.md.trajectories * (structures if self.at_every_start else 1)

    def _temperatures(self) -> list[tuple[float, float | None]]:
        """Temperatures of atoms and electrons, K."""
        electrons = self.electron_temperatures or (None,) * len(self.temperatures)
        return list(zip(self.temperatures, electrons, strict=True))

    def _revisions(self, system: str) -> tuple[int | None, ...]:
        rows = self.engine.rows(system) if isinstance(self.engine, Template) else ()
        return tuple(range(len(rows))) if len(rows) > 1 else (None,)


class Material(Section):
    """Stages derived from melting point and bulk modulus. Each of the temperature ranges 0–0.5,
    0.5–1, 1–1.5 and 1.5–2 Tm is a stage with pressures 0, 0.03, 0.06 and 0.09 B, below Tm also
    −0.01 B (the practical guide to DP-GEN by W. Jiang et al.)."""

    Tm: Positive = Field(description="melting point, K")
    B: Positive = Field(description="bulk modulus, GPa")
    temperatures_per_group: int = Field(
        default=2, ge=1, description="evenly spaced temperatures per stage"
    )
