"""Labels that came with a dataset, as labeling code: put where labels are kept when the campaign is
submitted, looked up there, never computed."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from dpstream.services.labeler.codes.base import CodeSettings
from dpstream.shared.atoms.frames import Frame
from dpstream.shared.spec import DATASET
from dpstream.shared.values import Sha256


class DatasetSettings(CodeSettings):
    sha256: Sha256 = Field(description="of its frames and labels; `dpstream simplify` fills it in")


class GivenLabels:
    """Whatever computed them: frames of any kind."""

    name = DATASET
    molecular = True
    periodic = True
    electronic = False
    max_z = 118
    settings: type[CodeSettings] = DatasetSettings
    inputs: frozenset[str] = frozenset()

    def version(self, settings: dict[str, Any]) -> str:
        return "as given"

    def method(self, settings: dict[str, Any]) -> str:
        return "a dataset's own labels"

    def semi_empirical(self, settings: dict[str, Any]) -> bool:
        return False

    def refusal(self, frame: Frame, settings: dict[str, Any]) -> str | None:
        return None

    def warnings(self, frame: Frame) -> list[str]:
        return []
