"""The section on how labels are computed."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from dpstream.shared.spec.base import Positive, Section, Share
from dpstream.shared.values import Carrier, LabelInputs, Name

CHECKED = 0.01
"""Default of `check_reused`."""
DATASET = "dataset"
"""The code of labels that come with a dataset instead of being computed."""


class LabelSettings(Section):
    code: Name = Field(default="tblite", description="labeling code; see docs/labeling")
    settings: dict[str, Any] = Field(
        default={}, description="settings of the code; {file: NAME} inserts the text of a file"
    )
    charge: int = Field(default=0, description="charge of every frame, e")
    multiplicity: int = Field(
        default=1, ge=0, description="2S + 1; 0: the lowest possible for the number of electrons"
    )
    compositions: dict[str, LabelInputs] = Field(
        default={}, description="label inputs by formula, e.g. C1H4; set by systems.NAME.label"
    )
    electron_temperature: Carrier | None = Field(
        default=None,
        description="frame parameter that holds the electron temperature (K); it replaces the "
        "smearing in `settings` by Fermi-Dirac occupations",
    )
    bundle: int | None = Field(
        default=None,
        ge=1,
        le=100,
        description="most frames per label task; a task has as many as take about a second, in a "
        "reproducible campaign this number or 1",
    )
    check_reused: Share | None = Field(
        default=None,
        description="share of the labels found in the store that are computed again and compared, "
        "at least one of each labeler; default: 0.01, none in a reproducible campaign",
    )
    max_force: Positive = Field(
        default=50.0, description="eV/Å; labels with a larger force are rejected"
    )
    min_distance: Positive = Field(
        default=0.5, description="Å; frames with closer atoms are not computed"
    )
    force: bool = Field(
        default=False, description="also compute frames that the code refuses by default"
    )
    virial: bool | None = Field(
        default=None,
        description="whether labels of periodic frames must have a virial; default: if the loss, "
        "an npt stage, trust.low_v or an elastic property uses it, and outside campaigns",
    )
    pause_after: int = Field(
        default=5,
        ge=0,
        description="frames rejected alike after they were computed that pause the campaign, while "
        "none has been accepted; 0: never",
    )
    max_seconds: Positive = Field(default=3600.0, description="wall time limit per frame, s")
    version: str | None = Field(
        default=None,
        min_length=1,
        description="version of the code, e.g. 2023.1; default: that installed here, or, for "
        "dpstream submit, the one that the workers state",
    )
    worker_class: Name | None = Field(
        default=None,
        max_length=30,
        description="label only on workers of this class (e.g. 32-cores); default: those without",
    )

    @property
    def capability(self) -> str:
        """The label queue of this campaign: the code, followed by the worker class if set."""
        return self.code if self.worker_class is None else f"{self.code}-{self.worker_class}"
