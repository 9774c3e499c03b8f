"""Checks that the chosen DeePMD-kit backend supports a training input.

DeePMD-kit's argument documentation names the backends that support an argument; these checks read
it, so that they follow the installed version.
"""

from __future__ import annotations

import re
from typing import Any

from dpstream.services.trainer.training_input import ALIASES, BACKENDS, CONVERTED
from dpstream.shared.errors import SpecError
from dpstream.shared.spec import Training

HAVE = re.compile(r"\(Supported Backend: (?P<titles>[^)]*)\)")
"""Start of the documentation of an argument that only some backends support."""


def check_backend(backend: str, document: dict[str, Any]) -> None:
    """Raises `SpecError` naming a key that only other backends support. `document`: a complete
    training input that DeePMD-kit's checker accepts."""
    from dargs import Argument  # deferred: not needed to submit
    from deepmd.utils.argcheck import gen_args

    def key(argument: Any, value: Any, path: list[str]) -> None:
        _require(backend, ".".join([*path, argument.name]), argument.doc)

    def choice(variant: Any, section: dict[str, Any], path: list[str]) -> None:
        chosen = variant.get_choice(section, path)
        _require(backend, f"{'.'.join([*path, variant.flag_name])}: {chosen.name}", chosen.doc)

    base = Argument("base", dict, gen_args())
    base.traverse_value(document, value_hook=key, variant_hook=choice)
    if backend == "jax":
        _check_converted(document["model"])


def _require(backend: str, key: str, doc: str) -> None:
    match = HAVE.match(doc)
    if match is None or BACKENDS[backend].title in match["titles"].split(", "):
        return
    raise SpecError(
        f"training.input.{key}: not supported by training.backend: {backend}; DeePMD-kit "
        f"supports it with {match['titles']}"
    )


def _check_converted(model: dict[str, Any]) -> None:
    """LAMMPS runs a JAX model converted to TensorFlow, which supports few models only."""
    descriptor = model.get("descriptor", {})
    kind = ALIASES.get(str(descriptor.get("type")), descriptor.get("type"))
    key = "training.input.model.descriptor"
    if kind != CONVERTED:
        raise SpecError(
            f"{key}.type: {kind}: LAMMPS cannot run JAX models of this type; allowed with "
            f"training.backend: jax: {CONVERTED}"
        )
    if not descriptor.get("type_one_side", True):
        raise SpecError(f"{key}.type_one_side: false: not supported with training.backend: jax")


def check_compressed(training: Training) -> None:
    """DeePMD-kit 3.2.0 converts a JAX model to one with wrong forces unless it is compressed
    (methane: force errors of 1.6 instead of 0.4 eV/Å). Raises `SpecError`."""
    if BACKENDS[training.backend].compressed_only and not training.compress:
        raise SpecError(
            f"training.compress: false: not supported with training.backend: {training.backend}, "
            "whose models are correct in LAMMPS only if compressed; set true"
        )
