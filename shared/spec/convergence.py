"""Sections on convergence, audit, budget, proposals and verification."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dpstream.shared.spec.base import Positive, Section, Share
from dpstream.shared.spec.systems import AnySet


class AuditSettings(Section):
    """Labels of randomly drawn frames that are never trained on; they measure the true error."""

    per_round: int = Field(default=10, ge=0, description="audit frames per round; 0: no audit")
    min_frames: int = Field(
        default=30, ge=1, description="audit frames that a stage needs to converge"
    )
    min_trajectories: int = Field(
        default=5, ge=1, description="different trajectories these frames must come from"
    )
    reservoir: int = Field(
        default=4, ge=1, description="frames kept for the draw, per trajectory and class"
    )
    force_rmse: Positive = Field(
        default=0.1, description="eV/Å, limit for the 95 % upper bound of the force RMSE"
    )
    error_target: Positive = Field(
        default=0.5, description="eV/Å, tolerated largest force error of an atom"
    )
    exceed: Share = Field(
        default=0.2,
        description="limit for the upper bound of the share of accurate frames above error_target",
    )


class Convergence(Section):
    accurate_ratio: Share = Field(
        default=0.95, description="smallest accurate share, in the worst condition"
    )
    max_failed: Share = Field(
        default=0.02, description="largest failed share, in the worst condition"
    )
    max_rejected: Share = Field(default=0.2, description="largest share of rejected labels")
    rounds: int = Field(
        default=1, ge=1, description="consecutive rounds that must meet the criteria"
    )


class Budget(Section):
    labels: int = Field(
        default=10_000,
        ge=1,
        description="largest number of labels of any kind, computed or reused; single points of "
        "reference_md count",
    )
    rounds: int = Field(default=20, ge=1, description="largest number of rounds per stage")


class Streaming(Section):
    retrain_after: int = Field(
        default=10, ge=1, description="number of new labels that starts a training"
    )
    max_staleness: int = Field(
        default=1, ge=0, description="committee versions that a candidate may be old"
    )


class Proposals(Section):
    """Limits for frames from external generators."""

    enabled: bool = Field(default=True, description="false: every proposal is refused")
    max_frames: int = Field(default=100, ge=1, le=100, description="frames per message")
    max_atoms: int = Field(default=500, ge=1, description="atoms per frame")
    max_bytes: int = Field(
        default=16 * 1024 * 1024, ge=1, description="unpacked size of frames sent by reference"
    )
    frames_per_hour: int = Field(default=2000, ge=1, description="frames per hour and generator")
    outstanding: int = Field(
        default=1000, ge=1, description="frames per generator that may wait for a verdict"
    )
    labels: int = Field(
        default=1000, ge=0, description="largest number of labels for frames proposed with --label"
    )

    def wrong_size(self, atoms: int) -> str | None:
        """Reason why a frame with so many atoms is refused, or None."""
        return (
            None
            if 1 <= atoms <= self.max_atoms
            else f"{atoms} atoms; allowed: 1 to {self.max_atoms}"
        )


class ReferenceMd(Section):
    """Held-out frames from dynamics with the labeling code itself (in-process codes only)."""

    system: str = Field(description="a name from `systems`; starts from its first structure")
    temperature: Positive = Field(default=300.0, description="K")
    trajectories: int = Field(default=10, ge=1, description="independent trajectories")
    frames: int = Field(default=5, ge=1, description="frames kept per trajectory")
    spacing: Positive = Field(default=0.1, description="ps between kept frames")
    equilibrate: Annotated[float, Field(ge=0)] = Field(
        default=0.2, description="ps discarded at the start"
    )
    timestep: Positive = Field(default=0.001, description="ps")

    @property
    def single_points(self) -> int:
        """Calculations of all trajectories: of the start, of every step, and of the kept frames,
        whose coordinates are rounded."""
        between = max(1, round(self.spacing / self.timestep))
        equilibration = round(self.equilibrate / self.timestep)
        return self.trajectories * (1 + equilibration + self.frames * (between + 1))


class PropertyTolerance(Section):
    """A crystal property for which the models must agree with the recipe. Both use the same
    structures with unrelaxed fractional coordinates; these labels are never trained on."""

    property: Literal["volume", "bulk-modulus", "elastic", "vacancy"] = Field(
        description="volume, bulk-modulus: from 7 volumes within ±6 %; elastic: from stresses at "
        "strains of ±0.5 %; vacancy: the first atom of each element removed"
    )
    system: str = Field(
        description="a name from `systems`; its first structure should be close to relaxed"
    )
    tolerance: Positive = Field(description="largest relative deviation from the recipe's value")


class Verification(Section):
    """Tests that the final model must pass."""

    data: tuple[AnySet, ...] = Field(
        default=(), description="held-out labelled sets, as initial.data"
    )
    reference_md: ReferenceMd | None = Field(
        default=None, description="held-out frames generated with the labeling code"
    )
    max_force_error: Share = Field(
        default=0.05, description="largest force RMSE, relative to the RMS force"
    )
    nve_ps: Annotated[float, Field(ge=0)] = Field(
        default=10.0, description="length of an NVE test run, ps; 0: no such run"
    )
    nve_temperature: Positive = Field(default=300.0, description="K")
    max_drift: Positive = Field(
        default=1e-3, description="largest energy drift, eV per atom per ps"
    )
    properties: tuple[PropertyTolerance, ...] = Field(
        default=(),
        max_length=20,
        description="crystal properties; the last stage ends only when the committee passes too",
    )

    @property
    def reference_points(self) -> int:
        """Single points of the reference dynamics."""
        return 0 if self.reference_md is None else self.reference_md.single_points
