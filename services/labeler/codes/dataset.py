"""Labels of an existing dataset as a labeling code.

Submitting the campaign stores the labels; the labeler finds them in the store and never computes
one.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from dpstream.services.labeler.codes.base import CodeDefaults, CodeSettings
from dpstream.shared.spec import DATASET
from dpstream.shared.values import Sha256


class DatasetSettings(CodeSettings):
    sha256: Sha256 = Field(
        description="digest of frames and labels; filled in by `dpstream simplify`"
    )


class GivenLabels(CodeDefaults):
    """Labels given by the user, for frames of any kind."""

    name = DATASET
    molecular = True
    periodic = True
    settings: type[CodeSettings] = DatasetSettings

    def version(self, settings: dict[str, Any]) -> str:
        return "as given"

    def method(self, settings: dict[str, Any]) -> str:
        return "a dataset's own labels"
