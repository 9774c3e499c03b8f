"""How it is explored, which frames are asked about, and in which stages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from dpstream.shared.spec.base import Positive, Section, Share
from dpstream.shared.spec.engines import AnyEngine, AsGiven, Plain, Template, frames_per_check
from dpstream.shared.values import Condition, Name, Trust


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
    per_round: int = Field(default=20, ge=1, description="most new labels per round")
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
