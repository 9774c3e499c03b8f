"""How labels are computed."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from dpstream.shared.spec.base import Positive, Section
from dpstream.shared.values import Carrier, LabelInputs, Name

DATASET = "dataset"
"""The labeling code of labels that came with a dataset."""


class LabelSettings(Section):
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
