"""When a campaign ends, and how it is measured meanwhile."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dpstream.shared.spec.base import Positive, Section, Share


class AuditSettings(Section):
    """Labels of frames nobody asked for, never trained on: the measure of the true error."""

    per_round: int = Field(default=10, ge=0, description="0: no audit")
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


class PropertyTolerance(Section):
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
    properties: tuple[PropertyTolerance, ...] = Field(
        default=(),
        max_length=20,
        description="also of the committee that ends the last stage, or exploring goes on",
    )
