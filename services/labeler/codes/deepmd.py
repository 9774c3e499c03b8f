"""A trained Deep Potential as labeling code: for distillation, or for trial runs without DFT.

J. Zeng et al., J. Chem. Phys. 159, 054801 (2023).
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from pydantic import Field

from dpstream.services.labeler.codes.base import CodeDefaults, CodeSettings, installed_version
from dpstream.services.labeler.codes.potentials import PotentialName, digests, potential
from dpstream.services.labeler.machine_settings import machine_settings
from dpstream.shared.atoms.tensorflow_graph import check_model_file
from dpstream.shared.errors import Permanent
from dpstream.shared.values import Recipe

GRAPH = ".pb"


class DeepmdSettings(CodeSettings):
    model: PotentialName = Field(
        description="frozen model in the worker's folder (DPSTREAM_LABELER_POTENTIALS)"
    )
    sha256: str = Field(
        default="", description="first digits of the model's sha256, as for pseudopotentials"
    )


class Deepmd(CodeDefaults):
    """DeePMD-kit in the child process; the model is loaded once."""

    name = "deepmd"
    molecular = True
    periodic = True
    settings: type[CodeSettings] = DeepmdSettings

    def version(self, settings: dict[str, Any]) -> str:
        """The version of DeePMD-kit and the digest of the model."""
        return f"{installed_version('deepmd-kit', 'trainer')}; {self.files(settings)}"

    def files(self, settings: dict[str, Any]) -> str:
        names, stated = {"model": settings["model"]}, {"model": settings["sha256"]}
        return digests(self.name, names, stated, "labels.settings")

    def is_here(self) -> bool:
        return find_spec("deepmd") is not None and machine_settings().folder(self.name) is not None

    def method(self, settings: dict[str, Any]) -> str:
        return f"Deep Potential {settings['model']}"

    def semi_empirical(self, settings: dict[str, Any]) -> bool:
        return True

    def localized(self, recipe: Recipe) -> Recipe:
        """The recipe with the model's path on this worker, for the child process. Raises Permanent
        for a graph that does more than compute."""
        path = potential(self.name, recipe.settings, "model")
        if path.suffix == GRAPH:
            try:
                check_model_file(path, path.stat().st_mtime_ns)
            except ValueError as error:
                raise Permanent(f"{path.name}: {error}") from error
        return recipe.model_copy(update={"settings": {**recipe.settings, "model": str(path)}})
